"""Choose one of several quantizations: the best one up to a size, or the smallest one up to a loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.report import patterns
from edge.system.text import size


@dataclass(frozen=True)
class Candidate:
    """A quantized file, and its loss compared with the base (the unquantized file) on the same steps.

    `score`: 0 to 100 points. `loss`: the base's score minus this one's; `loss_low` and `loss_high` are its 95 %
    interval, None if too few tasks differ for one. `kl_mean`: nats per token, None if it was not measured.
    """

    quant: str
    n_bytes: int
    score: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    kl_mean: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen quantization, or None if no file fits, and the reason in a few sentences."""

    quant: str | None
    why: str


def choose(
    candidates: Sequence[Candidate], *, budget: int | None = None, max_loss: float | None = None
) -> Choice:
    """Choose a file by its size and its loss.

    With only a `budget` (bytes): of the files that fit, the one with the lowest mean KL divergence from the base,
    because scores of files that lose little differ by chance. If KL was not measured for all of them, the one with the
    best score. With a `max_loss` (points of score): the smallest file, of those that fit, that is 95 % sure to lose at
    most that: the upper bound of its loss is not larger. A file without an interval is never sure, although its answers
    may all be equal to the base's: with so few differing tasks, that can be chance. If no file is sure, none is chosen.
    """
    fitting = [each for each in candidates if budget is None or each.n_bytes <= budget]
    if not fitting:
        smallest = min(candidates, key=lambda each: each.n_bytes)
        return Choice(None, patterns.NOTHING_FITS(budget=size(budget or 0), smallest=_named(smallest)))
    fits = "" if budget is None else f" that fits into {size(budget)}"
    if max_loss is None:
        return _best(fitting, fits)
    sure = [each for each in fitting if each.loss_high is not None and each.loss_high <= max_loss]
    if sure:
        chosen = min(sure, key=lambda each: each.n_bytes)
        why = patterns.SURE(file=_named(chosen), fits=fits, points=_points(max_loss))
        return Choice(chosen.quant, f"{why} {_loss(chosen)}")
    return Choice(None, _none_sure(fitting, fits, max_loss))


def _none_sure(fitting: Sequence[Candidate], fits: str, max_loss: float) -> str:
    """Why no file is sure to lose at most `max_loss`, and what can be done."""
    found = [patterns.NONE_SURE(fits=fits, points=_points(max_loss))]
    bounded = [(each.loss_high, each) for each in fitting if each.loss_high is not None]
    if bounded:
        high, nearest = min(bounded, key=lambda pair: pair[0])
        found.append(patterns.NEAREST_BOUND(file=nearest.quant, high=f"{high:.2f}"))
    unbounded = [each.quant for each in fitting if each.loss_high is None]
    if unbounded:
        found.append(patterns.NO_BOUND(files=", ".join(unbounded)))
    return " ".join([*found, patterns.SURE_ADVICE()])


def _best(fitting: Sequence[Candidate], fits: str) -> Choice:
    measured = [(each.kl_mean, each.n_bytes, each) for each in fitting if each.kl_mean is not None]
    if len(measured) == len(fitting):
        kl, _, chosen = min(measured, key=lambda item: item[:2])
        why = patterns.LOWEST_KL(file=_named(chosen), fits=fits, kl=f"{kl:.2g}")
    else:
        chosen = min(fitting, key=lambda each: (-each.score, each.n_bytes))
        why = patterns.BEST_SCORE(file=_named(chosen), fits=fits, score=f"{chosen.score:.2f}")
    return Choice(chosen.quant, f"{why} {_loss(chosen)}")


def _points(loss: float) -> str:
    """`1 point`, `0.5 points`."""
    return f"{loss:g} point{'' if loss == 1 else 's'}"


def _named(each: Candidate) -> str:
    return f"{each.quant} ({size(each.n_bytes)})"


def _loss(each: Candidate) -> str:
    """The difference of its score, with the interval, in one sentence."""
    change = f"{-each.loss + 0.0:+.2f}"
    if each.loss_low is None or each.loss_high is None:
        return patterns.DIFFERENCE_ALONE(change=change)
    return patterns.DIFFERENCE(
        change=change, low=f"{-each.loss_high + 0.0:+.2f}", high=f"{-each.loss_low + 0.0:+.2f}"
    )
