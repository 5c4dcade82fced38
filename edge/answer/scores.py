"""Log probabilities of the tokens of an answer, for clients that ask for them."""

from dataclasses import dataclass

import numpy as np

from edge.llama.jobs import Logits


@dataclass(frozen=True)
class TokenScore:
    """A written token with its log probability, and the most probable tokens in its place, by their ids.

    Natural logarithms of the model's own distribution, before temperature and penalties.
    """

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Scored:
    """The next text of an answer, with the scores of its tokens; emitted instead of a text if scores are requested."""

    text: str
    scores: tuple[TokenScore, ...]


def score(logits: Logits, token: int, best: int) -> TokenScore:
    """The score of a token among these logits, with the `best` most probable ones."""
    values = np.nan_to_num(logits.astype(np.float64), nan=-1e30, posinf=1e30, neginf=-1e30)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    ids = np.argsort(-values, kind="stable")[:best].tolist() if best else []
    return TokenScore(token, float(values[token]), tuple((one, float(values[one])) for one in ids))
