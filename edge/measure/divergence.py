"""What is kept of a distribution over a vocabulary, and another one's Kullback-Leibler divergence from it.

Pure functions on logits. With p the base's distribution, q the model's, and natural logarithms,

    KL(p || q) = sum over tokens i of p_i (log p_i - log q_i)   in nats, at least 0.

q is there in full when it is compared; of p the following is kept (`keep`), and nothing else is needed:

1. The `top` most probable tokens, their logits in float32, exactly as llama.cpp gave them, and the logarithm of the sum
   of all exp(logit) in float64. Their terms of the sum are exact.
2. Where the others, the rest R, hold a mass of at most LUMPED: that mass r and the entropy term h, the sum of
   p_i log p_i over R. With Q the mass of R in q, the rest's terms sum up to at least r log(r / Q), by the log-sum
   inequality, and to at most h - r log(min over R of q_i), since each q_i is at least the least of them. The first is
   taken as the value; what lies between the two bounds its error.
3. Where the rest holds more: each of its tokens is put into one of 255 classes by its logit, CLASS_WIDTH nats wide, one
   byte a token; the last class takes all that is lower. Of a class c of n tokens are kept its mass r_c, the mean g_c
   of its log p_i, and the greatest and least of them, log a and log b. Its terms, the sum of p_i y_i with
   y_i = log p_i - log q_i, are taken to be r_c times the mean of y, which is r_c (g_c - mean of log q_i). The error is
   the sum of (p_i - m) y_i, m = r_c / n. Since the p_i - m sum up to 0, any constant may be taken from y_i: it
   is the sum of (p_i - m) (y_i - mean y), at most w times the sum of |y_i - mean y| with w = max(a - m, m - b). And
   |y_i - mean y| <= |log q_i - mean log q| + |log p_i - g_c|, where the last is at most log a - log b. So the error is
   at most w (sum of |log q_i - mean log q| + n (log a - log b)), all of it known.

A vocabulary of at most `top` tokens, or one so small that all its logits take less room, is kept whole: all is exact.
A model held against itself comes out as exactly 0 in each of these ways.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP = 256
LUMPED = 1e-6
CLASS_WIDTH = 1 / 16  # nats
CLASSES = 255

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kept:
    """What is kept of a distribution.

    `best`: the token with the greatest logit, the first of equals. `log_norm`: log of the sum of exp(logit). `ids`
    (uint32, (k,)) and `logits` (float32, (k,)) of the top tokens, the most probable first; without `ids` those of all
    tokens, in their order. `log_rest`, `entropy`: log r and h of the module's docstring. `codes` (uint8, (n_vocab,)):
    the class of each token, from 1; 0 for the top ones. `classes` (float64, (CLASSES, 4)): of each class r_c, g_c,
    log a, log b.
    """

    best: int
    log_norm: float
    ids: NDArray[np.uint32] | None
    logits: NDArray[np.float32]
    log_rest: float = -np.inf
    entropy: float = 0.0
    codes: NDArray[np.uint8] | None = None
    classes: Floats | None = None


def log_normalizer(logits: NDArray[np.float32]) -> float:
    """The logarithm of the sum of exp(logit), in float64."""
    return _log_sum(logits.astype(np.float64))


def log_probability(logits: NDArray[np.float32], log_norm: float, tokens: tuple[int, ...]) -> float:
    """That the next token is one of these."""
    chosen = logits[list(tokens)].astype(np.float64)
    return float(chosen[0] if len(tokens) == 1 else np.logaddexp.reduce(chosen)) - log_norm


def keep(logits: NDArray[np.float32], top: int = TOP) -> Kept:
    """What is kept of the distribution with these logits, float32 of shape (n_vocab,)."""
    size = len(logits)
    best, log_norm = int(logits.argmax()), log_normalizer(logits)
    if size <= top or 4 * size <= 8 * top + size + 32 * CLASSES:
        return Kept(best, log_norm, None, logits.copy())
    ids = np.argpartition(logits, size - top)[size - top :]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    kept = logits[ids]
    others = _others(size, ids)
    logs = logits[others].astype(np.float64) - log_norm
    masses = np.exp(logs)
    log_rest = _log_sum(logs)
    if log_rest <= np.log(LUMPED):
        return Kept(best, log_norm, ids.astype(np.uint32), kept, log_rest, float((masses * logs).sum()))
    below = float(kept[-1]) - log_norm - logs
    numbers = np.minimum(below / CLASS_WIDTH, CLASSES - 1).astype(np.intp)
    codes = np.zeros(size, np.uint8)
    codes[others] = numbers + 1
    counts = np.bincount(numbers, minlength=CLASSES)
    classes = np.zeros((CLASSES, 4))
    classes[:, 0] = np.bincount(numbers, masses, CLASSES)
    classes[:, 1] = np.bincount(numbers, logs, CLASSES) / np.maximum(counts, 1)
    classes[:, 2], classes[:, 3] = -np.inf, np.inf
    np.maximum.at(classes[:, 2], numbers, logs)
    np.minimum.at(classes[:, 3], numbers, logs)
    classes[counts == 0] = 0
    return Kept(best, log_norm, ids.astype(np.uint32), kept, log_rest, 0.0, codes, classes)


def divergence(kept: Kept, logits: NDArray[np.float32], log_norm: float) -> tuple[float, float]:
    """KL(kept || the distribution with these logits) in nats, and the most that it can be off by.

    `log_norm` is `log_normalizer(logits)`.
    """
    ours = logits if kept.ids is None else logits[kept.ids]
    logs = kept.logits.astype(np.float64) - kept.log_norm
    value = float((np.exp(logs) * (logs - (ours.astype(np.float64) - log_norm))).sum())
    error = 0.0
    if kept.codes is not None and kept.classes is not None:
        more, error = _by_class(kept.codes, kept.classes, logits, log_norm)
        value += more
    elif kept.ids is not None:
        others = logits[_others(len(logits), kept.ids)].astype(np.float64) - log_norm
        rest = float(np.exp(kept.log_rest))
        lower = rest * (kept.log_rest - _log_sum(others))
        error = max(0.0, kept.entropy - rest * float(others.min()) - lower)
        value += lower
    return max(0.0, value), error


def _log_sum(values: Floats) -> float:
    """log of the sum of exp(value)."""
    most = float(values.max())
    return most + float(np.log(np.exp(values - most).sum()))


def _others(size: int, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    others = np.ones(size, bool)
    others[ids] = False
    return others


def _by_class(
    codes: NDArray[np.uint8], classes: Floats, logits: NDArray[np.float32], log_norm: float
) -> tuple[float, float]:
    """The terms of the classes, and the most that they can be off by."""
    masses, means, most, least = classes.T
    numbers = codes.astype(np.intp)
    logs = logits.astype(np.float64) - log_norm
    counts = np.bincount(numbers, minlength=CLASSES + 1)[1:]
    some = np.maximum(counts, 1)
    # Without the top ones, so that the sums run over the same numbers as in `keep`.
    inside = numbers > 0
    numbers, logs = numbers[inside] - 1, logs[inside]
    ours = np.bincount(numbers, logs, CLASSES) / some
    spread = np.bincount(numbers, np.abs(logs - ours[numbers]), CLASSES)
    mean = masses / some
    width = np.maximum(np.exp(most) - mean, mean - np.exp(least))
    errors = np.where(counts > 0, width * (spread + counts * (most - least)), 0.0)
    return float((masses * (means - ours)).sum()), float(np.maximum(errors, 0.0).sum())
