"""Check that the figures of a stored result follow from its steps, and score steps of other rules again.

The scoring rules of published results changed: in April 2026 an empty answer to an empty reference scored 1, today 0.
A comparison needs the same rules on both sides. So edge computes the shares of each step again from its command lines.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from edge.errors import ResultError
from edge.metrics import FIGURES, TERMS, Aggregate, aggregate, compare_units
from edge.replay.stored_result import SHARES, Step

_ROUNDED = 1.01e-4  # a stored share has 4 places
_Grouping = Literal["by_bucket", "by_source_group"]
_GROUPS: tuple[_Grouping, ...] = get_args(_Grouping)
_Figure = Literal["steps", "avg_command_f1", "first_cmd_exact_pct"]
_OF_GROUPS: tuple[_Figure, ...] = get_args(_Figure)


def scored_again(steps: Sequence[Step]) -> tuple[list[Step], int]:
    """The steps with the shares that follow from their command lines, and how many of them had other shares.

    A share that was not rounded, or was rounded in another way, is not another share.
    """
    result, changed = [], 0
    for step in steps:
        shares = compare_units(step["pred_command_units"], step["ref_command_units"])
        first, precision, recall, f1 = right = tuple(round(share, 4) for share in shares)
        stored = tuple(step[name] for name in SHARES)
        if stored == right:
            result.append(step)
            continue
        # Without the rounding of edge, the same answers would differ.
        changed += any(abs(ours - theirs) > _ROUNDED for ours, theirs in zip(shares, stored, strict=True))
        result.append(
            {
                **step,
                "first_cmd_exact": first,
                "command_precision": precision,
                "command_recall": recall,
                "command_f1": f1,
            }
        )
    return result, changed


def check_aggregate(stored: Aggregate, steps: Sequence[Step], where: str) -> None:
    """Check that the aggregate's figures are those of the steps. Raises ResultError that begins with `where`.

    A group that no step names is not checked.
    """
    if not steps:
        return
    own = aggregate(steps)
    found: list[tuple[str, float, float | None, float]] = [
        (name, _place(name), stored.get(name), own[name]) for name in FIGURES
    ]
    found.append(("tasks", 0, stored.get("tasks"), own["tasks"]))
    for kind in _GROUPS:
        for group, figures in stored.get(kind, {}).items():
            if (ours := own[kind].get(group)) is not None:
                found += [
                    (f"{kind}[{group!r}].{name}", _place(name), figures.get(name), ours.get(name, 0.0))
                    for name in _OF_GROUPS
                ]
    for path, place, value, right in found:
        if value is not None and abs(value - right) > 1.01 * place:
            raise ResultError(
                f"{where}: aggregate.{path} is {value}, but its steps give {right}: the file was changed; remove "
                "`aggregate` from it to use its steps"
            )


def _place(name: str) -> float:
    """The last decimal place of a stored figure."""
    return 0.0 if name == "steps" else 10.0 ** -(TERMS[name][1] if name in TERMS else 2)
