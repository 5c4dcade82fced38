"""What a figure's difference means, in a word and in one sentence for people. `docs/compare.md` explains each."""

from edge.compare.intervals import LEAST_TASKS, none_of
from edge.metrics import TERMS

_LESS_IS_BETTER = ("empty_commands_pct", "premature_complete_rate_pct")
_NEITHER_IS_BETTER = ("avg_ref_cmds", "avg_pred_cmds")
_LEVEL = 0.05


def places(name: str) -> int:
    """Decimal places that a figure is told with."""
    return 2 if name in ("score", "next_action_score") else TERMS[name][1]


def amount(name: str, value: float) -> str:
    """A size for people, without its sign: `2.1 points` for percentages and scores, `0.0210` for F1 and its parts."""
    unit = " commands a step" if name in _NEITHER_IS_BETTER else "" if name.startswith("avg_") else " points"
    return f"{abs(value):.{places(name)}f}{unit}"


def verdict(
    name: str, low: float | None, high: float | None, differing: int, counted: int, tasks: int
) -> str:
    """The word: of how many steps of how many tasks the figure is made, and in how many steps the sides differ."""
    if not counted:
        return "no such steps"
    if not differing:
        return "no difference"
    if low is None or high is None:
        return "one task: no interval"
    if low <= 0 <= high:
        return "no difference detected (interval includes 0)"
    if tasks < LEAST_TASKS:
        return "too few tasks for a verdict"
    if name in _NEITHER_IS_BETTER:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) != (name in _LESS_IS_BETTER) else "worse"


def p_text(p: float) -> str:
    """A p-value for people: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _possible(name: str, reference: float) -> float:
    """The largest change for the worse that there could be, from the reference's value."""
    if name in _NEITHER_IS_BETTER:
        return float("inf")
    whole = 1.0 if name.startswith("avg_") else 100.0
    return whole - reference if name in _LESS_IS_BETTER else reference


def sentence(
    name: str,
    word: str,
    reference: float,
    difference: float,
    low: float | None,
    high: float | None,
    detectable: float | None,
    p: float | None,
    tasks: int,
) -> str:
    """The verdict `word` on a paired figure as one sentence: how large the difference is, or could have been unseen.

    `tasks` are those with steps that count; `p` is McNemar's, and is mentioned only where it disagrees.
    """
    if word == "no such steps":
        return "There are no such steps."
    if word == "no difference":
        return f"No step differs; up to {100 * none_of(tasks):.0f} % of such tasks still could."
    if low is None or high is None:
        return "One task alone gives no interval, and so no verdict."
    found = not low <= 0 <= high
    if found and tasks < LEAST_TASKS:
        return f"{_found(name, difference, low, high)}, but {tasks} tasks are too few for a verdict."
    said = _found(name, difference, low, high) if found else _not_found(name, reference, detectable)
    if p is not None and (p < _LEVEL) != found:
        says = "would find a difference" if p < _LEVEL else "finds no difference"
        said += f", yet McNemar's test, which takes steps as independent, {says} ({p_text(p)})"
    return said + "."


def _found(name: str, difference: float, low: float, high: float) -> str:
    sizes = sorted((abs(low), abs(high)))
    digits = places(name)
    across = f"{sizes[0]:.{digits}f} to {sizes[1]:.{digits}f}"
    if low == high:
        across = "the same in every task"
    size = f"{amount(name, difference)} ({across})"
    if name in _NEITHER_IS_BETTER:
        return f"A {'rise' if low > 0 else 'fall'} of {size}"
    if name in _LESS_IS_BETTER:
        return f"Worse: a rise of {size}" if low > 0 else f"Better: a fall of {size}"
    return f"A {'gain' if low > 0 else 'loss'} of {size}"


def _not_found(name: str, reference: float, detectable: float | None) -> str:
    what = (
        "change"
        if name in _NEITHER_IS_BETTER
        else "rise for the worse"
        if name in _LESS_IS_BETTER
        else "loss"
    )
    if detectable is None:
        return f"No {what} detected; the differences cancel in every task"
    possible = _possible(name, reference)
    if possible <= 0:
        return f"No {what} is possible from the reference's {reference:.{places(name)}f}"
    if detectable > possible:
        return f"No {what} detected; with so few tasks of this spread even the largest possible one might not have been"
    one = "a loss" if what == "loss" else "one"
    return f"No {what} detected; {one} of more than {amount(name, detectable)} would have been"


def unpaired_sentence(
    name: str,
    published: float | None,
    ours: tuple[float, float] | None,
    theirs: tuple[float, float] | None,
) -> str:
    """What can be said of a published figure: whether it lies in our own interval, and how sure it is itself."""
    if published is None:
        return "Not published."
    if ours is None:
        return "Cannot be paired, and our steps give no interval."
    digits = places(name)

    def span(bounds: tuple[float, float]) -> str:
        return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"

    where = "inside" if ours[0] <= published <= ours[1] else "outside"
    known = f"its own is {span(theirs)}" if theirs else "its own interval cannot be known"
    return f"Cannot be paired; the published {published:.{digits}f} lies {where} our interval ({span(ours)}); {known}."
