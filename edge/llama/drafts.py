"""Drafts: tokens that probably follow, found in what was read and written before, and whether to decode them ahead.

An answer often repeats its prompt, itself or an earlier answer: names, paths, whole commands. What followed the longest
earlier occurrence of its last tokens is decoded together with the last token. The writer of the answer chooses each
token as it does without a draft. As long as its choice is the next token of the draft, the logits after that choice are
there already. So a draft saves passes of the model, and it never chooses a token.

A pass over several tokens takes longer than a pass over one. How much longer depends on the machine and the model, so
it is measured (`Costs`), and a draft is decoded only if it is expected to save time.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_LEAST = 3  # tokens that must match
_MOST = 32  # tokens of a match that are compared; a longer match predicts no better
_CANDIDATES = 16  # the latest occurrences that are compared
_SEPARATOR = -1  # between texts, so that no match spans two of them
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 15)
"""Lengths of a draft, in tokens, of which the best is taken."""
MEASURED = (4, 8, 16)
"""Tokens of the passes that are measured beside those of one token."""
# A pass over n tokens that takes more than this times n passes over one leaves nothing to gain with more tokens.
_HOPELESS = 0.75
_PASSES = 5  # passes over one token that are timed
_ANSWERS = 8
_GAIN = 1.05  # a smaller expected gain is within the error of the measurement
_WEIGHT = 4.0  # how many drafted tokens the assumed shares below count for
_SHARES = ((16, 0.9), (8, 0.8), (5, 0.7), (_LEAST, 0.5))
"""Length of the match from which on a share of the drafted tokens is assumed to be right, before any is counted."""


class Repeats:
    """The tokens of an answer so far and of the texts before it, searched for what follows."""

    def __init__(self, earlier: Sequence[Sequence[int]] = ()) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self.length = 0
        """Number of tokens of the text itself."""
        for text in earlier:
            self.add(text)
            self._tokens.append(_SEPARATOR)
            self.length = 0

    def add(self, tokens: Sequence[int]) -> None:
        """The next tokens of the text."""
        for token in tokens:
            self._tokens.append(token)
            self.length += 1
            if self.length >= _LEAST:
                self._ends.setdefault(tuple(self._tokens[-_LEAST:]), []).append(len(self._tokens))

    def following(self, most: int) -> tuple[list[int], int]:
        """At most `most` tokens that probably follow, and how many tokens before them match; ([], 0) if none is found.

        The longest match wins, of equal ones the latest.
        """
        if self.length < _LEAST:
            return [], 0
        tokens = self._tokens
        ends = self._ends[tuple(tokens[-_LEAST:])][:-1]  # the last one is the end of the text itself
        best, longest = 0, 0
        for end in reversed(ends[-_CANDIDATES:]):
            length = _LEAST
            while length < min(_MOST, end, self.length) and tokens[end - length - 1] == tokens[-length - 1]:
                length += 1
            if length > longest:
                best, longest = end, length
        found = tokens[best : best + most] if longest else []
        return (found[: found.index(_SEPARATOR)] if _SEPARATOR in found else found), longest


@dataclass(frozen=True)
class Draft:
    """Tokens that were decoded ahead. `first`: index in the batch of the token before them."""

    tokens: Sequence[int]
    match: int
    first: int


@dataclass(frozen=True)
class Costs:
    """Time of a pass over n tokens, divided by that of a pass over one: measured points (n, ratio), n increasing."""

    points: tuple[tuple[int, float], ...]

    def of(self, tokens: int) -> float:
        """The ratio for a number of tokens: between two points on the line, after the last in proportion to it."""
        points = ((1, 1.0), *self.points)
        for (a, cost_a), (b, cost_b) in pairwise(points):
            if tokens <= b:
                return cost_a + (cost_b - cost_a) * (tokens - a) / (b - a)
        last, cost = points[-1]
        return cost * tokens / last


@dataclass
class Drafting:
    """When to draft, and how much. `most`: maximum number of tokens of a draft.

    `costs`: None until they are measured. Without an expected gain, no draft is decoded.
    """

    most: int
    costs: Costs | None = None
    drafted: int = 0
    """Number of drafted tokens that were decoded."""
    accepted: int = 0
    """Number of them that the writer chose."""
    answers: deque[Sequence[int]] = field(default_factory=lambda: deque(maxlen=_ANSWERS))
    """The last answers: drafts come from them too."""
    _seconds: list[float] = field(default_factory=list)
    _right: dict[int, float] = field(default_factory=dict)
    _tried: dict[int, float] = field(default_factory=dict)

    @property
    def times_passes(self) -> bool:
        """Whether passes over one token are still to be timed."""
        return self.costs is None and len(self._seconds) < _PASSES

    def took(self, seconds: float) -> None:
        """The time of a pass over one token."""
        self._seconds.append(seconds)

    def measure(self, most: int, timed: Callable[[int], float]) -> None:
        """Measure `costs`, once enough passes over one token were timed.

        `timed`: decodes a number of tokens, takes them back, and returns the seconds. `most`: its maximum.
        """
        if self.costs is not None or len(self._seconds) < _PASSES or most < MEASURED[0]:
            return
        single, points = sorted(self._seconds)[_PASSES // 2], []
        for count in [count for count in MEASURED if count <= most]:
            points.append((count, timed(count) / single))
            if points[-1][1] > _HOPELESS * count:
                break
        self.costs = Costs(tuple(points))

    def propose(self, repeats: Repeats, most: int) -> tuple[list[int], int]:
        """The draft that saves most time, of at most `most` tokens, and the length of its match; often []."""
        tokens, match = repeats.following(min(most, self.most))
        return tokens[: self.length(match)], match

    def length(self, match: int) -> int:
        """The length of the draft after a match of this length that saves most time; 0 if none does."""
        if self.costs is None or not match:
            return 0
        share = self._share(match)
        best, most = 0, _GAIN
        for length in LENGTHS:
            if length > self.most:
                break
            passes = 1 + sum(
                share**i for i in range(1, length + 1)
            )  # tokens that one pass is expected to give
            if (gain := passes / self.costs.of(length + 1)) > most:
                best, most = length, gain
        return best

    def count(self, match: int, drafted: int, accepted: int) -> None:
        """What became of a draft."""
        self.drafted += drafted
        self.accepted += accepted
        key = _bucket(match)
        # The tokens after the first wrong one say nothing.
        self._right[key] = self._right.get(key, 0.0) + accepted
        self._tried[key] = self._tried.get(key, 0.0) + min(drafted, accepted + 1)

    def _share(self, match: int) -> float:
        key = _bucket(match)
        return (dict(_SHARES)[key] * _WEIGHT + self._right.get(key, 0.0)) / (
            _WEIGHT + self._tried.get(key, 0.0)
        )


def _bucket(match: int) -> int:
    return next(least for least, _ in _SHARES if match >= least or least == _LEAST)
