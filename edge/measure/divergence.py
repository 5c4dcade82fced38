"""The Kullback-Leibler divergence of a model from its base, computed from the stored part of the base's distribution.

Pure functions on logits. p is the base's distribution, q the model's, logarithms are natural, and

    KL(p || q) = sum over tokens i of p_i (log p_i - log q_i)   in nats, at least 0.

The comparison has all of q. Of p, `keep` stores only this:

1. The `top` most probable tokens with their logits in float32, exactly as llama.cpp gives them, and the logarithm of
   the sum of all exp(logit) in float64. The terms of these tokens are exact.
2. If the mass r of the rest R (all other tokens) is at most LUMPED: r, and the entropy term h, the sum of p_i log p_i
   over R. Let Q be the mass of R in q. By the log-sum inequality, the terms of R sum up to at least r log(r / Q). They
   sum up to at most h - r log(min over R of q_i), because no q_i is less than that minimum. The lower bound is the
   value; the distance between the bounds is the largest possible error.
3. If the rest has more mass: each of its tokens goes into one of 255 classes by its logit. A class is CLASS_WIDTH nats
   wide; the last class takes everything below. A token's class takes one byte. Of a class c with n tokens are kept:
   its mass r_c, the mean g_c of its log p_i, and their maximum and minimum, log a and log b. Let
   y_i = log p_i - log q_i. The terms of the class are the sum of p_i y_i. Their value is r_c times the mean of y, which
   is r_c (g_c - mean of log q_i). With m = r_c / n, the error is the sum of (p_i - m) y_i. The p_i - m sum up to 0, so
   a constant can be subtracted from y_i: the error is the sum of (p_i - m) (y_i - mean y). It is at most w times the
   sum of |y_i - mean y|, with w = max(a - m, m - b). And |y_i - mean y| <= |log q_i - mean log q| + |log p_i - g_c|,
   where the last term is at most log a - log b. So the error is at most
   w (sum of |log q_i - mean log q| + n (log a - log b)), and all of these numbers are known.

If a vocabulary has at most `top` tokens, or all its logits take less space than this, all logits are kept and the
result is exact. In each case, a model compared with itself gives exactly 0.
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
class KeptDistribution:
    """What is kept of a base's distribution over the vocabulary.

    `best`: the token with the largest logit, the first one if several are equal. `log_norm`: the logarithm of the sum
    of exp(logit). `ids` (uint32, shape (k,)) and `logits` (float32, shape (k,)): the top tokens, most probable first;
    if `ids` is None, `logits` holds all tokens in the order of the vocabulary. `log_rest` and `entropy`: log r and h in
    the module's docstring. `codes` (uint8, shape (n_vocab,)): the class of each token, counted from 1; 0 for the top
    tokens. `classes` (float64, shape (CLASSES, 4)): r_c, g_c, log a and log b of each class.
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
    """The logarithm of the sum of exp(logit), computed in float64."""
    return _log_sum(logits.astype(np.float64))


def log_probability(logits: NDArray[np.float32], log_norm: float, tokens: tuple[int, ...]) -> float:
    """The logarithm of the probability that the next token is one of `tokens`."""
    chosen = logits[list(tokens)].astype(np.float64)
    return float(chosen[0] if len(tokens) == 1 else np.logaddexp.reduce(chosen)) - log_norm


def keep(logits: NDArray[np.float32], top: int = TOP) -> KeptDistribution:
    """What to keep of the distribution with these logits (float32, shape (n_vocab,)): `top` tokens, and the rest."""
    size = len(logits)
    best, log_norm = int(logits.argmax()), log_normalizer(logits)
    if size <= top or 4 * size <= 8 * top + size + 32 * CLASSES:
        return KeptDistribution(best, log_norm, None, logits.copy())
    ids = np.argpartition(logits, size - top)[size - top :]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    kept = logits[ids]
    others = _others(size, ids)
    logs = logits[others].astype(np.float64) - log_norm
    masses = np.exp(logs)
    log_rest = _log_sum(logs)
    if log_rest <= np.log(LUMPED):
        return KeptDistribution(
            best, log_norm, ids.astype(np.uint32), kept, log_rest, float((masses * logs).sum())
        )
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
    return KeptDistribution(best, log_norm, ids.astype(np.uint32), kept, log_rest, 0.0, codes, classes)


def entropy(kept: KeptDistribution) -> float:
    """The entropy of a kept distribution in nats. Tokens of one class count with the mean of their logarithms."""
    logs = kept.logits.astype(np.float64) - kept.log_norm
    found = float((np.exp(logs) * logs).sum()) + kept.entropy
    if kept.classes is not None:
        found += float((kept.classes[:, 0] * kept.classes[:, 1]).sum())
    return max(0.0, -found)


def divergence(kept: KeptDistribution, logits: NDArray[np.float32], log_norm: float) -> tuple[float, float]:
    """KL(kept || the distribution with `logits`), and the largest possible error of that value, both in nats.

    `log_norm` must be `log_normalizer(logits)`.
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
    """The logarithm of the sum of exp(value)."""
    most = float(values.max())
    return most + float(np.log(np.exp(values - most).sum()))


def _others(size: int, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """A mask of all tokens that are not in `ids`."""
    others = np.ones(size, bool)
    others[ids] = False
    return others


def _by_class(
    codes: NDArray[np.uint8], classes: Floats, logits: NDArray[np.float32], log_norm: float
) -> tuple[float, float]:
    """The sum of the terms of all classes, and its largest possible error."""
    masses, means, most, least = classes.T
    numbers = codes.astype(np.intp)
    logs = logits.astype(np.float64) - log_norm
    counts = np.bincount(numbers, minlength=CLASSES + 1)[1:]
    some = np.maximum(counts, 1)
    # The top tokens are left out, so that the sums add the same numbers in the same order as in `keep`.
    inside = numbers > 0
    numbers, logs = numbers[inside] - 1, logs[inside]
    ours = np.bincount(numbers, logs, CLASSES) / some
    spread = np.bincount(numbers, np.abs(logs - ours[numbers]), CLASSES)
    mean = masses / some
    width = np.maximum(np.exp(most) - mean, mean - np.exp(least))
    errors = np.where(counts > 0, width * (spread + counts * (most - least)), 0.0)
    return float((masses * (means - ours)).sum()), float(np.maximum(errors, 0.0).sum())
