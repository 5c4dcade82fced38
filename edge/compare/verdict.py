"""Say what the difference of a figure means, in one word and in plain sentences. docs/compare.md explains each."""

from edge.compare.intervals import LEAST_TASKS, none_of
from edge.metrics import TERMS

_LESS_IS_BETTER = ("empty_commands_pct", "premature_complete_rate_pct")
_NEITHER_IS_BETTER = ("avg_ref_cmds", "avg_pred_cmds")
_LEVEL = 0.05
NONE_DIFFERS = "no step differs"


def places(name: str) -> int:
    """Decimal places of a figure in text and tables."""
    return 2 if name in ("score", "next_action_score") else TERMS[name][1]


def amount(name: str, value: float) -> str:
    """The size of a difference without its sign: `2.1 points` (percentages, scores) or `0.0210` (F1 and its parts)."""
    unit = " commands a step" if name in _NEITHER_IS_BETTER else "" if name.startswith("avg_") else " points"
    return f"{abs(value):.{places(name)}f}{unit}"


def verdict(
    name: str, low: float | None, high: float | None, differing: int, counted: int, tasks: int
) -> str:
    """The verdict in a few words.

    `low` and `high` bound the difference at 95 %. `counted` steps of `tasks` tasks count for the figure; the two sides
    differ in `differing` of the tasks.
    """
    if not counted:
        return "no such steps"
    if not differing:
        return NONE_DIFFERS
    if low is None or high is None:
        return "one task: no interval"
    if tasks < LEAST_TASKS:
        return "too few tasks for a verdict"
    if differing < LEAST_TASKS:
        return "too few tasks differ for a verdict"
    if low <= 0 <= high:
        return "no difference detected (interval includes 0)"
    if name in _NEITHER_IS_BETTER:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) != (name in _LESS_IS_BETTER) else "worse"


def is_few(word: str) -> bool:
    """Whether a verdict says that the data are too few for one."""
    return word.startswith(("too few", "one task"))


def p_text(p: float) -> str:
    """A p-value for people: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _possible(name: str, reference: float) -> float:
    """The largest possible change for the worse from the value of the reference."""
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
    differing: int,
) -> str:
    """The verdict `word` on a paired figure in sentences: the size of the difference, or the size that could be missed.

    `tasks` is the number of tasks with steps that count; the two sides differ in `differing` of them. `p` is the
    p-value of McNemar's test. The sentences mention it only if it disagrees with the interval.
    """
    if word == "no such steps":
        return "There are no such steps."
    if word == NONE_DIFFERS:
        share = f"{100 * none_of(tasks):.0f} %"
        return f"No step differs. At most {share} of all such tasks differ (95 % confidence)."
    if low is None or high is None:
        return "With only one task there is no interval and no verdict."
    found = not low <= 0 <= high
    if min(tasks, differing) < LEAST_TASKS:
        verb = "differs" if differing == 1 else "differ"
        few = (
            f"{tasks} tasks are"
            if tasks < LEAST_TASKS
            else f"only {differing} of {tasks} tasks {verb}, which is"
        )
        if not found and _possible(name, reference) <= 0:
            text = _not_found(name, reference, detectable)
        elif found:
            text = f"{_found(name, difference, low, high)}, but {few} too few for a verdict."
        else:
            few = f"{few[0].upper()}{few[1:]} too few for a verdict"
            text = f"{few}, and too few to say how large a {_loss(name)} could be missed."
    else:
        text = f"{_found(name, difference, low, high)}." if found else _not_found(name, reference, detectable)
    if p is not None and (p < _LEVEL) != found:
        what = "a difference" if p < _LEVEL else "no difference"
        text += f" McNemar's test finds {what} ({p_text(p)}), but it treats steps as independent."
    return text


def _found(name: str, difference: float, low: float, high: float) -> str:
    sizes = sorted((abs(low), abs(high)))
    digits = places(name)
    bounds = f"95 % interval: {sizes[0]:.{digits}f} to {sizes[1]:.{digits}f}"
    size = f"{amount(name, difference)} ({'the same in every task' if low == high else bounds})"
    if name in _NEITHER_IS_BETTER:
        return f"A {'rise' if low > 0 else 'fall'} of {size}"
    if name in _LESS_IS_BETTER:
        return f"Worse: a rise of {size}" if low > 0 else f"Better: a fall of {size}"
    return f"A {'gain' if low > 0 else 'loss'} of {size}"


def _loss(name: str) -> str:
    """The word for a change for the worse."""
    return "change" if name in _NEITHER_IS_BETTER else "rise" if name in _LESS_IS_BETTER else "loss"


def _not_found(name: str, reference: float, detectable: float | None) -> str:
    what = _loss(name)
    possible = _possible(name, reference)
    if possible <= 0:
        return f"The reference has {reference:.{places(name)}f}, so no {what} is possible."
    if detectable is None:
        return f"No {what} was detected: the differences cancel in every task."
    if detectable > possible:
        return (
            f"No {what} was detected. With so few tasks that differ this much, this comparison could miss even the "
            f"largest possible {what}."
        )
    return (
        f"No {what} was detected. This comparison would have detected a {what} of more than "
        f"{amount(name, detectable)} (80 % power, 5 % level)."
    )


def unpaired_sentence(
    name: str,
    published: float | None,
    ours: tuple[float, float] | None,
    theirs: tuple[float, float] | None,
) -> str:
    """What can be said about a published figure: whether it is in our interval, and its own interval if it has one."""
    if published is None:
        return "Not published."
    if ours is None:
        return "Not paired, and our steps give no interval."
    digits = places(name)

    def span(bounds: tuple[float, float]) -> str:
        return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"

    where = "inside" if ours[0] <= published <= ours[1] else "outside"
    known = f"Its own interval is {span(theirs)}." if theirs else "Its own interval is unknown."
    return f"Not paired. The published {published:.{digits}f} is {where} our interval ({span(ours)}). {known}"
