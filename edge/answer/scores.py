"""Log probabilities of the tokens of an answer, for clients that ask for them."""

from collections import deque
from dataclasses import dataclass, field

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


@dataclass
class ScoredText:
    """The scores of the tokens of a text, each told with the first character that its token wrote.

    Tokens without a visible character have none: those of a thought, of a header, of a stop text, and the end.
    """

    most: int
    """How many of the most probable tokens each score has."""
    told: list[TokenScore] = field(default_factory=list)
    _waiting: deque[tuple[int, TokenScore]] = field(default_factory=deque)

    def add(self, logits: Logits, token: int, begin: int) -> None:
        """Add a token that writes from character `begin` on."""
        self._waiting.append((begin, score(logits, token, self.most)))

    def show(self, text: str, end: int) -> Scored:
        """The next text, which ends before character `end`, with the scores of its tokens."""
        found = []
        while self._waiting and self._waiting[0][0] < end:
            found.append(self._waiting.popleft()[1])
        self.told += found
        return Scored(text, tuple(found))
