"""The trials of a report in words: shares, the differences from the reference, whether the score predicts the share."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import SEED
from edge.compare.trials import Interval
from edge.compare.verdict import p_text
from edge.report import patterns
from edge.report.contents import Entry, Report, Tried
from edge.system.text import counted

_ENOUGH = 5  # files: with 4, the smallest possible p of the two-sided permutation test is 2 / 4! = 0.083
_ALL_ORDERS = 7  # up to this number of files, every order is computed
_DRAWN = 20_000

Values = NDArray[np.float64]


def share(found: Interval | None) -> str:
    """A share in percent with its 95 % interval: `70.0 (48.1 … 85.5)`; a dash without trials that count."""
    if found is None:
        return "–"
    return f"{100 * found['value']:.1f} ({bounds(found)})"


def bounds(found: Interval) -> str:
    """The 95 % interval of a share, in percent."""
    return f"{100 * found['low']:.1f} … {100 * found['high']:.1f}"


def of_how_many(one: Tried) -> str:
    """`15 of 20 tasks`; with several attempts at a task `60 of 100 trials`."""
    return f"{one.figures['solved']} of {counted(one.figures['trials'], unit(one))}"


def solved(one: Tried, what: str | None = None) -> str:
    """`15 of 20 tasks (75.0 %, 95 %: 53.1 to 88.8)`; without a name of what is counted if `what` is that name."""
    found = one.figures["solved_share"]
    assert found is not None
    low, high = 100 * found["low"], 100 * found["high"]
    figures = one.figures
    many = f"{figures['solved']} of {figures['trials']}" if what == unit(one) else of_how_many(one)
    return f"{many} ({100 * found['value']:.1f} %, 95 %: {low:.1f} to {high:.1f})"


def unit(one: Tried) -> str:
    """What the numbers of trials count: `task`; with several attempts at a task `trial`."""
    return "task" if one.figures["interval"] == "wilson" else "trial"


def counting(entries: Sequence[Entry]) -> list[tuple[str, Tried]]:
    """The label and the trials of the entries that have trials that count."""
    return [
        (entry.label, entry.tried)
        for entry in entries
        if entry.tried is not None and entry.tried.figures["solved_share"] is not None
    ]


def sentences(report: Report) -> list[tuple[str, str]]:
    """What the trials say against the reference's: each file's label and its sentences."""
    found = []
    reference = next((one for one in report.tried if one.is_reference), None)
    for one in report.tried:
        if reference is None or one.is_reference or not one.is_matched:
            continue
        said = [one.comparison["pairs"][0]["sentence"], *one.comparison["notes"]] if one.comparison else []
        if not one.same_tasks:
            said.insert(0, patterns.TRIALS_OTHER_TASKS(file=one.label, reference=reference.label))
        found.append((one.label, " ".join(said)))
    return found


def unmatched(report: Report) -> str:
    """One line about the trials of no result; "" if each has one."""
    names = [one.name for one in report.tried if not one.is_matched]
    return patterns.TRIALS_UNMATCHED(files=", ".join(names)) if names else ""


def both(report: Report) -> list[Entry]:
    """The files with a score and trials that count: those on the reference's tasks, if the reference was tried."""
    entries = [entry for entry in report.files if entry.tried and entry.score is not None]
    counted_ = [entry for entry in entries if entry.tried and entry.tried.figures["solved_share"]]
    if any(entry.is_reference for entry in counted_):
        return [entry for entry in counted_ if entry.tried and entry.tried.same_tasks]
    return counted_


def prediction(report: Report) -> str:
    """What these files can say about whether the score predicts the solved share; "" without such a file."""
    scores, shares = _values(both(report))
    count = len(scores)
    if count < 3:
        return ("", patterns.PREDICT_ONE(), patterns.PREDICT_TWO())[count]
    for what, values in (("score", scores), ("solved share", shares)):
        if np.ptp(values) < 1e-9:
            return patterns.PREDICT_FLAT(count=count, what=what)
    rho, p = rank_correlation(scores, shares)
    told = f"{rho:.2f}".replace("-", "−")
    if count < _ENOUGH:
        return patterns.PREDICT_FEW(count=count, rho=told, least=f"{2 / math.factorial(count):.3f}")
    if p < 0.05:
        direction = "higher" if rho > 0 else "lower"
        return patterns.PREDICTS(count=count, direction=direction, rho=told, p=p_text(p))
    return patterns.PREDICTS_NOT(count=count, rho=told, p=p_text(p))


def rank_correlation(first: Values, second: Values) -> tuple[float, float]:
    """Spearman's rank correlation of two figures of the same files, and p of its two-sided permutation test.

    `first`, `second`: shape (files,), each with at least two different values. Up to 7 files, p is over all orders;
    beyond, over 20,000 drawn ones with a fixed seed.
    """
    ours, theirs = _ranks(first), _ranks(second)
    count = len(ours)
    if count <= _ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        rng = np.random.default_rng(SEED)
        orders = np.vstack([np.arange(count), rng.permuted(np.tile(np.arange(count), (_DRAWN, 1)), axis=1)])
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    size = math.sqrt(float(np.square(ours).sum() * np.square(theirs).sum()))
    found = theirs[orders] @ ours / size
    rho = float(ours @ theirs / size)
    return rho, float((np.abs(found) >= abs(rho) - 1e-9).mean())


def _values(entries: Sequence[Entry]) -> tuple[Values, Values]:
    scores, shares = [], []
    for entry in entries:
        found = entry.tried.figures["solved_share"] if entry.tried else None
        assert found is not None and entry.score is not None
        scores.append(round(entry.score, 9))
        shares.append(found["value"])
    return np.array(scores), np.array(shares)


def _ranks(values: Values) -> Values:
    """Ranks from 1; equal values share the mean of their ranks."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    ranks: Values = below + (equal + 1) / 2
    return ranks
