"""Say what the difference of a figure means, in one word and in plain sentences. docs/compare.md explains each."""

from edge.compare import patterns
from edge.compare.paired import LEAST_DIFFERING, TaskDifferences, most_differing
from edge.metrics import TERMS
from edge.system.text import counted

_LESS_IS_BETTER = ("empty_commands_pct", "premature_complete_rate_pct")
_NEITHER_IS_BETTER = ("avg_ref_cmds", "avg_pred_cmds")
_LEVEL = 0.05
NONE_DIFFERS = "no step differs"


def places(name: str) -> int:
    """Decimal places of a figure in text and tables."""
    return 2 if name in ("score", "next_action_score") else TERMS[name][1]


def looks_whole(share: float, digits: int = 1) -> bool:
    """Whether a share in per cent is below 100, and rounding would make it 100."""
    return share < 100 <= round(share, digits)


def amount(name: str, value: float) -> str:
    """The size of a difference without its sign: `2.1 points` (percentages, scores) or `0.0210` (F1 and its parts)."""
    unit = " commands a step" if name in _NEITHER_IS_BETTER else "" if name.startswith("avg_") else " points"
    return f"{abs(value):.{places(name)}f}{unit}"


def half_range(name: str) -> float:
    """Half of the largest possible difference of the figure in a step: 50 points, or 0.5 for F1 and its parts.

    The number of commands has no limit; a difference of two commands is then taken as large.
    """
    return 1.0 if name in _NEITHER_IS_BETTER else _whole(name) / 2


def within_range(name: str, reference: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds of a difference, cut where the figure would leave its range (0 to 100, or 0 to 1)."""
    low, high = bounds
    if name in _NEITHER_IS_BETTER:
        return max(low, -reference), high
    return max(low, -reference), min(high, _whole(name) - reference)


def verdict(name: str, bounds: tuple[float, float] | None, differing: int, counted: int) -> str:
    """The verdict in a few words.

    `bounds` are those of the difference at 95 %, None if too few tasks differ. `counted` steps count for the figure;
    the two sides differ in `differing` of them.
    """
    if not counted:
        return "no such steps"
    if not differing:
        return NONE_DIFFERS
    if bounds is None:
        return "too few tasks differ"
    low, high = bounds
    if low <= 0 <= high:
        return "no difference detected (interval includes 0)"
    if name in _NEITHER_IS_BETTER:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) != (name in _LESS_IS_BETTER) else "worse"


def is_few(word: str) -> bool:
    """Whether a verdict says that the data are too few for one."""
    return word.startswith("too few")


def p_text(p: float) -> str:
    """A p-value for people: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _whole(name: str) -> float:
    return 1.0 if name.startswith("avg_") else 100.0


def _possible(name: str, reference: float) -> float:
    """The largest possible change for the worse from the value of the reference."""
    if name in _NEITHER_IS_BETTER:
        return float("inf")
    return _whole(name) - reference if name in _LESS_IS_BETTER else reference


def sentence(
    name: str,
    word: str,
    reference: float,
    difference: float,
    bounds: tuple[float, float] | None,
    detectable: float | None,
    p: float | None,
    by_task: TaskDifferences | None,
) -> str:
    """The verdict `word` on a paired figure in sentences: the size of the difference, or the size that could be missed.

    `by_task` has the differences of the tasks with steps that count. `p` is the p-value of McNemar's test. The
    sentences mention it only if it disagrees with the interval.
    """
    if by_task is None:
        return patterns.NO_SUCH_STEPS()
    if word == NONE_DIFFERS:
        return f"{patterns.NO_STEP()} {_at_most(by_task)}"
    if bounds is None:
        return f"{_few_differ(by_task)} {_at_most(by_task)}"
    found = not bounds[0] <= 0 <= bounds[1]
    text = _found(name, difference, *bounds) if found else _not_found(name, reference, detectable)
    if p is not None and (p < _LEVEL) != found:
        what = "a difference" if p < _LEVEL else "no difference"
        text += f" {patterns.MCNEMAR_DISAGREES(what=what, p=p_text(p))}"
    return text


def _few_differ(by_task: TaskDifferences) -> str:
    if not by_task.differing:
        return patterns.CANCEL()
    verb = "differs" if by_task.differing == 1 else "differ"
    tasks = counted(by_task.tasks, "task")
    return patterns.FEW_DIFFER(differing=by_task.differing, tasks=tasks, verb=verb, least=LEAST_DIFFERING)


def _at_most(by_task: TaskDifferences) -> str:
    share = most_differing(by_task.differing, by_task.tasks)
    return patterns.AT_MOST(share=f"{100 * share:.{0 if share >= 0.0995 else 1}f}")


def _found(name: str, difference: float, low: float, high: float) -> str:
    sizes = sorted((abs(low), abs(high)))
    digits = places(name)
    bounds = f"95 % interval: {sizes[0]:.{digits}f} to {sizes[1]:.{digits}f}"
    size = f"{amount(name, difference)} ({bounds})"
    if name in _NEITHER_IS_BETTER:
        return patterns.FOUND(word="rise" if low > 0 else "fall", size=size)
    if name in _LESS_IS_BETTER:
        return (patterns.WORSE_RISE if low > 0 else patterns.BETTER_FALL)(size=size)
    return patterns.FOUND(word="gain" if low > 0 else "loss", size=size)


def _loss(name: str) -> str:
    """The word for a change for the worse."""
    return "change" if name in _NEITHER_IS_BETTER else "rise" if name in _LESS_IS_BETTER else "loss"


def _not_found(name: str, reference: float, detectable: float | None) -> str:
    what = "change" if name in _NEITHER_IS_BETTER else "rise" if name in _LESS_IS_BETTER else "loss"
    possible = _possible(name, reference)
    if possible <= 0:
        return patterns.NONE_POSSIBLE(value=f"{reference:.{places(name)}f}", what=what)
    if detectable is None or detectable > possible:
        return patterns.NOT_FOUND_AT_ALL(what=what)
    return patterns.NOT_FOUND(what=what, size=amount(name, detectable))


def unpaired_sentence(
    name: str,
    published: float | None,
    ours: tuple[float, float] | None,
    theirs: tuple[float, float] | None,
) -> str:
    """What can be said about a published figure: whether it is in our interval, and its own interval if it has one."""
    if published is None:
        return patterns.NOT_PUBLISHED()
    if ours is None:
        return patterns.NO_OWN_INTERVAL()
    digits = places(name)

    def span(bounds: tuple[float, float]) -> str:
        return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"

    where = "inside" if ours[0] <= published <= ours[1] else "outside"
    known = patterns.OWN_INTERVAL(span=span(theirs)) if theirs else patterns.OWN_UNKNOWN()
    return f"{patterns.NOT_PAIRED(value=f'{published:.{digits}f}', where=where, span=span(ours))} {known}"
