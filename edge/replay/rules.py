"""Check that the figures of a stored result follow from its steps, and score steps of other rules again.

The scoring rules of published results changed: in April 2026 an empty answer to an empty reference scored 1, today 0.
A comparison needs the same rules on both sides. So edge computes the shares of each step again from its command lines.
"""

from collections.abc import Sequence

from edge.errors import ResultError
from edge.metrics import FIGURES, TERMS, Aggregate, aggregate, compare_units
from edge.replay.stored_result import SHARES, Step

_ROUNDED = 1.01e-4  # a stored share has 4 places


def scored_again(steps: Sequence[Step]) -> tuple[list[Step], int]:
    """The steps with the shares that follow from their command lines, and how many of them had other shares."""
    result, changed = [], 0
    for step in steps:
        shares = compare_units(step["pred_command_units"], step["ref_command_units"])
        if all(
            abs(stored - share) <= _ROUNDED
            for stored, share in zip((step[name] for name in SHARES), shares, strict=True)
        ):
            result.append(step)
            continue
        changed += 1
        first, precision, recall, f1 = (round(share, 4) for share in shares)
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

    An aggregate of another number of steps is not checked: some published files have only a part of their steps.
    """
    if not steps or stored.get("steps", len(steps)) != len(steps):
        return
    own = aggregate(steps)
    for name in FIGURES:
        value = stored.get(name)
        if value is None:
            continue
        digits = TERMS[name][1] if name in TERMS else 2
        if abs(value - own[name]) > 1.01 * 10**-digits:
            raise ResultError(
                f"{where}: aggregate.{name} is {value}, but its steps give {own[name]}: the file was changed; remove "
                "`aggregate` from it to use its steps"
            )
