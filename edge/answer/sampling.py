"""Choose the next token from the logits: greedy, or sampled; the parameters mean what they mean in vLLM."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError

_GREEDY = 1e-5  # vLLM's threshold: a lower temperature is greedy


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.

    Raises EdgeError for a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer has already, as in OpenAI's API; 0 is off."""
    frequency_penalty: float = 0.0
    """The same, times the number of its occurrences."""

    @property
    def greedy(self) -> bool:
        """Whether the best token is always chosen."""
        return self.temperature < _GREEDY

    def __post_init__(self) -> None:
        for name, value, fits, range_ in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < float("inf"),
                "above 0",
            ),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
            ("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
        ):
            if not fits:
                raise EdgeError(f"{name} is {value}; it must be {range_}")


class Sampler:
    """Chooses the tokens of one answer. `prompt` counts for the repetition penalty, as in vLLM."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._random = None if sampling.greedy else np.random.default_rng(sampling.seed)
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else None
        counts = sampling.presence_penalty or sampling.frequency_penalty
        self._written: Counter[int] | None = Counter() if counts else None

    def saw(self, token: int) -> None:
        """A token was written; the penalties count it from now on."""
        if self._seen is not None:
            self._seen.add(token)
        if self._written is not None:
            self._written[token] += 1

    def pick(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token, among the `allowed` ones if given. Both arrays have the shape (n_vocab,)."""
        s = self._sampling
        if self._written:
            logits = logits.copy()
            ids = np.fromiter(self._written, np.int64, len(self._written))
            times = np.fromiter(self._written.values(), np.float32, len(self._written))
            logits[ids] -= times * s.frequency_penalty + s.presence_penalty
        if self._seen is not None:
            logits = logits.copy()
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            chosen = logits[ids]
            with np.errstate(all="ignore"):  # an extreme penalty gives infinities, which are replaced below
                logits[ids] = np.where(
                    chosen > 0, chosen / s.repetition_penalty, chosen * s.repetition_penalty
                )
        if self._random is None and allowed is None and np.isfinite(logits[best := int(logits.argmax())]):
            return best  # almost every token
        if not np.isfinite(logits).all():  # a model that overflows must still answer
            logits = np.nan_to_num(logits, nan=-1e30, posinf=1e30, neginf=-1e30)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        if self._random is None:
            return int(logits.argmax())
        # In vLLM's order: temperature, min_p, top_k, top_p.
        scaled = (logits - logits.max()).astype(np.float64) / s.temperature
        if s.min_p:
            scaled[scaled < np.log(s.min_p)] = -np.inf  # the best one is 0
        if s.top_k and s.top_k < scaled.size:
            scaled[scaled < np.partition(scaled, -s.top_k)[-s.top_k]] = -np.inf
        weights = np.exp(scaled)
        weights /= weights.sum()
        if s.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= s.top_p]] = 0.0
            weights /= weights.sum()
        return int(self._random.choice(weights.size, p=weights))
