"""Which of several quantizations to take: the best under a size, the smallest under a loss, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.system.text import size


@dataclass(frozen=True)
class Candidate:
    """A quantized file and what it lost against the unquantized one, on the same steps.

    `score` in points (0 to 100); `loss` is the base's score less this one's, `loss_low` and `loss_high` its 95 %
    interval, None where there are too few tasks for one. `kl_mean` in nats a token; None where it was not measured.
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
    """The quantization to take, None where none fits, and the reason in one or two sentences."""

    quant: str | None
    why: str


def choose(
    candidates: Sequence[Candidate], *, budget: int | None = None, max_loss: float | None = None
) -> Choice:
    """Choose by size and loss.

    With a `budget` (bytes) alone: of the files that fit the one with the least mean KL divergence from the base,
    since scores of files that lose little differ by chance; by their score where KL was not measured. With a
    `max_loss` (points of score): the smallest file (that fits) whose loss is surely smaller, which is to say that
    the whole 95 % interval of its loss is; where that can be said of none, the smallest whose measured loss is.
    """
    fitting = [each for each in candidates if budget is None or each.n_bytes <= budget]
    if not fitting:
        smallest = min(candidates, key=lambda each: each.n_bytes)
        return Choice(
            None,
            f"None fits into {size(budget or 0)}: the smallest, {smallest.quant}, has {size(smallest.n_bytes)}.",
        )
    if max_loss is None:
        return _best(fitting, budget)
    sure = [each for each in fitting if each.loss_high is not None and each.loss_high <= max_loss]
    within = f" of those that fit into {size(budget)}" if budget is not None else ""
    if sure:
        chosen = min(sure, key=lambda each: each.n_bytes)
        return Choice(
            chosen.quant,
            f"{chosen.quant} ({size(chosen.n_bytes)}) is the smallest{within} whose loss is surely at most "
            f"{max_loss:g} points: {_loss(chosen)}.",
        )
    perhaps = [each for each in fitting if each.loss <= max_loss]
    if perhaps:
        chosen = min(perhaps, key=lambda each: each.n_bytes)
        return Choice(
            chosen.quant,
            f"{chosen.quant} ({size(chosen.n_bytes)}) is the smallest{within} with a measured loss of at most "
            f"{max_loss:g} points: {_loss(chosen)}. These rows are too few to be sure of it for any file.",
        )
    least = min(fitting, key=lambda each: each.loss)
    return Choice(
        None, f"None{within} loses at most {max_loss:g} points; {least.quant} comes nearest: {_loss(least)}."
    )


def _best(fitting: Sequence[Candidate], budget: int | None) -> Choice:
    under = f" of those that fit into {size(budget)}" if budget is not None else ""
    measured = [(each.kl_mean, each.n_bytes, each) for each in fitting if each.kl_mean is not None]
    if len(measured) == len(fitting):
        kl, _, chosen = min(measured, key=lambda item: item[:2])
        return Choice(
            chosen.quant,
            f"{chosen.quant} ({size(chosen.n_bytes)}) is nearest to the unquantized model{under}: its mean KL "
            f"divergence is {kl:.2g} nats a token; {_loss(chosen)}.",
        )
    chosen = min(fitting, key=lambda each: (-each.score, each.n_bytes))
    return Choice(
        chosen.quant,
        f"{chosen.quant} ({size(chosen.n_bytes)}) has the best score{under}, {chosen.score:.2f}; {_loss(chosen)}.",
    )


def _loss(each: Candidate) -> str:
    words = f"it lost {each.loss:.2f} points" if each.loss > 0 else f"it gained {-each.loss + 0.0:.2f} points"
    if each.loss_low is None or each.loss_high is None:
        return f"{words} (too few tasks for an interval)"
    return f"{words} (95 %: {-each.loss_high + 0.0:+.2f} to {-each.loss_low + 0.0:+.2f})"
