"""Check that the figures of a stored result follow from its steps and answers; compute again those that do not.

The scoring rules of published results changed: in April 2026 an empty answer to an empty reference scored 1, today 0.
A comparison needs the same rules on both sides. So edge computes the shares of each step again from its command lines.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from edge.errors import ResultError
from edge.metrics import (
    FIGURES,
    TERMS,
    Aggregate,
    aggregate,
    bucket,
    compare_units,
    next_action_score,
    score_step,
)
from edge.replay.stored_result import PREVIEW, SHARES, Step, whole_text

_ROUNDED = 1.01e-4  # a stored share has 4 places
_Grouping = Literal["by_bucket", "by_source_group"]
_GROUPS: tuple[_Grouping, ...] = get_args(_Grouping)
_Figure = Literal["steps", "avg_command_f1", "first_cmd_exact_pct"]
_OF_GROUPS: tuple[_Figure, ...] = get_args(_Figure)
_OF_ANSWER = ("valid_json", "has_analysis", "has_plan", "pred_task_complete", "pred_command_units")
_CHANGED = "the file was changed"


def read_again(steps: Sequence[Step], where: str) -> tuple[list[Step], dict[str, int]]:
    """The steps with the fields that follow from their answers and numbers, and how many steps stated others, by field.

    Only a whole answer is read. Raises ResultError that begins with `where` for fields that contradict each other, and
    for valid JSON that a preview does not have: it may be cut earlier than published ones.
    """
    result: list[Step] = []
    changed = Counter[str]()
    for index, step in enumerate(steps):
        place = f"{where}: per_step[{index}]"
        right: dict[str, Any] = {"bucket": bucket(step["step_idx"])}
        if (text := whole_text(step)) is not None:
            scores = score_step(text, "", step["step_idx"])
            right |= {name: cast(Mapping[str, Any], scores)[name] for name in _OF_ANSWER}
            if step["valid_json"] and not right["valid_json"] and step.get("pred_text") is None:
                raise ResultError(
                    f"{place}: valid_json is true, but its pred_preview, which is shorter than {PREVIEW:,} characters "
                    f"and so the whole answer, has no valid JSON: {_CHANGED}"
                )
        elif not step["valid_json"] and (
            name := next((name for name in _OF_ANSWER[1:4] if cast(Mapping[str, Any], step)[name]), None)
        ):
            raise ResultError(f"{place}: {name} is true, but valid_json is false: {_CHANGED}")
        complete = right.get("pred_task_complete", step["pred_task_complete"])
        if (complete is True) == (step["pred_task_complete"] is True):
            right.pop(
                "pred_task_complete", None
            )  # missing is null in results of edge, false in published ones
        right["pred_task_complete_true"] = complete is True and step["ref_task_complete"] is True
        stated = cast(Mapping[str, Any], step)
        if others := {name: value for name, value in right.items() if stated[name] != value}:
            changed.update(others.keys())
            step = cast(Step, {**step, **others})
        result.append(step)
    return result, dict(sorted(changed.items()))


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


def check_figures(stored: Aggregate, has_steps: bool, where: str) -> None:
    """Check that figures can be those of a result. Raises ResultError that begins with `where`.

    `has_steps`: whether the file has steps, from which the figures can be computed again.
    """
    if not has_steps and not any(name in stored for name in FIGURES):
        raise ResultError(f"{where}: contains neither steps nor figures")
    if (wrong := next(_impossible(stored, has_steps), None)) is not None:
        advice = "; remove `aggregate` from it to use its steps" if has_steps else ""
        raise ResultError(f"{where}: aggregate.{wrong}{advice}")


def _impossible(stored: Aggregate, has_steps: bool) -> Iterator[str]:
    """What cannot be in figures, in words that begin with the name of a figure."""
    named: list[tuple[str, str, float | None]] = [(name, name, stored.get(name)) for name in FIGURES]
    named += [("steps", "steps", stored.get("steps")), ("tasks", "tasks", stored.get("tasks"))]
    groups = {kind: stored.get(kind, {}) for kind in _GROUPS}
    for kind, members in groups.items():
        for group, figures in members.items():
            named += [(f"{kind}[{group!r}].{name}", name, figures.get(name)) for name in _OF_GROUPS]
    for path, name, value in named:
        most = _most(name)
        if value is not None and not 0 <= value <= most:
            yield f"{path} is {value}; it must be " + (
                "0 or more" if most == float("inf") else f"from 0 to {most:g}"
            )
    steps, tasks = stored.get("steps"), stored.get("tasks")
    if has_steps and steps == 0:
        return  # all figures are computed again
    if steps is not None and tasks is not None and (tasks > steps or (steps and not tasks)):
        yield f"tasks is {tasks}, which {steps} steps cannot have"
    if has_steps:
        return
    for kind, members in groups.items():
        counts = [figures.get("steps") for figures in members.values()]
        total = sum(count or 0 for count in counts)
        if steps is not None and counts and None not in counts and total != steps:
            yield f"{kind} has {total} steps, but aggregate.steps is {steps}"
    shown = next((name for name in FIGURES if stored.get(name)), None)
    if steps == 0 and shown is not None:
        yield f"steps is 0, but aggregate.{shown} is {stored[shown]}"
    if all(name in stored for name in ("next_action_score", "avg_command_f1", "first_cmd_exact_pct")):
        right = next_action_score(stored["avg_command_f1"], stored["first_cmd_exact_pct"])
        if abs(stored["next_action_score"] - right) > 0.025:  # the two figures are rounded
            yield f"next_action_score is {stored['next_action_score']}, but the other figures give {right}"


def _most(name: str) -> float:
    """The largest possible value of a figure."""
    if name.endswith("_pct") or name == "next_action_score":
        return 100.0
    return 1.0 if name.startswith("avg_command_") else float("inf")


def _place(name: str) -> float:
    """The last decimal place of a stored figure."""
    return 0.0 if name == "steps" else 10.0 ** -(TERMS[name][1] if name in TERMS else 2)
