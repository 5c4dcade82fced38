"""Choose one of several quantizations: the best one up to a size, or the smallest one up to a loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.system.text import size


@dataclass(frozen=True)
class Candidate:
    """A quantized file, and its loss compared with the base (the unquantized file) on the same steps.

    `score`: 0 to 100 points. `loss`: the base's score minus this one's; `loss_low` and `loss_high` are its 95 %
    interval, None if there are too few tasks for one. `kl_mean`: nats per token, None if it was not measured.
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
    best score. With a `max_loss` (points of score): the smallest file, of those that fit, whose loss is at most that in
    its whole 95 % interval. If there is none, the smallest file with a measured loss of at most that.
    """
    fitting = [each for each in candidates if budget is None or each.n_bytes <= budget]
    if not fitting:
        smallest = min(candidates, key=lambda each: each.n_bytes)
        return Choice(
            None,
            f"No file fits into {size(budget or 0)}. The smallest file is {_named(smallest)}.",
        )
    fits = "" if budget is None else f" that fits into {size(budget)}"
    if max_loss is None:
        return _best(fitting, fits)
    sure = [each for each in fitting if each.loss_high is not None and each.loss_high <= max_loss]
    if sure:
        chosen = min(sure, key=lambda each: each.n_bytes)
        return Choice(
            chosen.quant,
            f"{_named(chosen)} is the smallest file{fits} whose whole 95 % interval shows a loss of at most "
            f"{max_loss:g} points. {_loss(chosen)}.",
        )
    perhaps = [each for each in fitting if each.loss <= max_loss]
    if perhaps:
        chosen = min(perhaps, key=lambda each: each.n_bytes)
        return Choice(
            chosen.quant,
            f"{_named(chosen)} is the smallest file{fits} with a measured loss of at most {max_loss:g} points. "
            f"{_loss(chosen)}. These rows are too few to be sure of this for any file.",
        )
    least = min(fitting, key=lambda each: each.loss)
    return Choice(
        None,
        f"No file{fits} has a measured loss of at most {max_loss:g} points. {least.quant} lost the least. "
        f"{_loss(least)}.",
    )


def _best(fitting: Sequence[Candidate], fits: str) -> Choice:
    measured = [(each.kl_mean, each.n_bytes, each) for each in fitting if each.kl_mean is not None]
    if len(measured) == len(fitting):
        kl, _, chosen = min(measured, key=lambda item: item[:2])
        return Choice(
            chosen.quant,
            f"{_named(chosen)} has the lowest mean KL divergence from the unquantized model of any file{fits}: "
            f"{kl:.2g} nats per token. {_loss(chosen)}.",
        )
    chosen = min(fitting, key=lambda each: (-each.score, each.n_bytes))
    return Choice(
        chosen.quant,
        f"{_named(chosen)} has the best score of any file{fits}: {chosen.score:.2f}. {_loss(chosen)}.",
    )


def _named(each: Candidate) -> str:
    return f"{each.quant} ({size(each.n_bytes)})"


def _loss(each: Candidate) -> str:
    words = f"It lost {each.loss:.2f} points" if each.loss > 0 else f"It gained {-each.loss + 0.0:.2f} points"
    if each.loss_low is None or each.loss_high is None:
        return f"{words} (too few tasks for an interval)"
    return f"{words} (95 %: {-each.loss_high + 0.0:+.2f} to {-each.loss_low + 0.0:+.2f})"
