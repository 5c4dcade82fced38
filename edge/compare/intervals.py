"""Intervals and tests: a bootstrap over tasks, Wilson's interval, McNemar's test.

Pure functions on numbers. docs/compare.md says where they are used. Intervals are at 95 %, tests at the 5 % level.
"""

import functools
import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 20260604  # fixed, so that the same files give the same intervals
FEW_TASKS = 10  # with fewer tasks, intervals and powers are only approximate, although they are widened
_NORMAL = NormalDist()

Samples = NDArray[np.float64]
"""A figure, or a difference of two, in each resample: shape (RESAMPLES,)."""


@functools.lru_cache(maxsize=4)
def draws(tasks: int) -> NDArray[np.float64]:
    """How often each resample draws each task. Shape (RESAMPLES, tasks), read-only."""
    shares = np.full(tasks, 1 / tasks)
    counts = np.random.default_rng(SEED).multinomial(tasks, shares, RESAMPLES).astype(float)
    counts.flags.writeable = False
    return counts


def resampled_means(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Samples:
    """The mean over steps in each resample of whole tasks, from the sum and the number of steps (at least 1) of each
    task. `sums` and `counts` have shape (tasks,)."""
    drawn = draws(len(sums))
    means: Samples = (drawn @ sums) / (drawn @ counts)
    return means


def mean_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The `interval` of the mean over steps, from `resampled_means`. The parameters are those of that function."""
    return _mean_interval(sums.astype(float).tobytes(), counts.astype(float).tobytes())


@functools.lru_cache(maxsize=4096)  # a report asks for the same figure of its reference with each file
def _mean_interval(sums: bytes, counts: bytes) -> tuple[float, float]:
    by_task = np.frombuffer(sums), np.frombuffer(counts)
    return interval(resampled_means(*by_task), len(by_task[0]))


def interval(samples: Samples, tasks: int) -> tuple[float, float]:
    """The expanded percentile interval of a bootstrap over `tasks` tasks, at least 2.

    A bootstrap of n independent values is too narrow for two reasons. Its spread is sqrt((n - 1) / n) of the right
    one, and its tails are those of a normal distribution, not of Student's t with n - 1 degrees of freedom. Percentiles
    further out correct both: 2.5 % becomes 1.6 % at 20 tasks (Hesterberg, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69 (2015), section 5.3). The interval is asymmetric if the data are.
    docs/compare.md shows its coverage.
    """
    tail = _NORMAL.cdf(-t_quantile(0.975, tasks - 1) * math.sqrt(tasks / (tasks - 1)))
    low, high = np.quantile(samples, [tail, 1 - tail])
    # Rounding: sums in another order differ in their last bits, which must not look like a difference.
    return round(float(low), 9) + 0.0, round(float(high), 9) + 0.0


@functools.lru_cache(maxsize=1024)  # a table asks for the same number of tasks again and again
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for `probability` (0.5 to 1) and `freedom` degrees of freedom, at least 1."""
    if freedom > 1000:  # the first Cornish-Fisher term is then exact to 1e-6
        z = _NORMAL.inv_cdf(probability)
        return z + (z**3 + z) / (4 * freedom)
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and .4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, from the numbers of pairs that only one side has right.

    It is twice the smaller tail of a binomial distribution with probability 1/2, at most 1 (McNemar, Psychometrika 12
    (1947); exact as in Agresti, Categorical Data Analysis, section 11.1). The test treats pairs as independent.
    """
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(pairs, k) for k in range(fewer + 1)) / (1 << pairs))


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's binomial interval of a share (0 to 1) observed in `trials` independent trials.

    The interval of Clopper and Pearson always covers at least 95 % and mostly far more, so two sides would look more
    alike than they are. Wilson's interval covers 95 % on average, also with few trials and near 0 and 1 (Brown, Cai,
    DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 16 (2001)). It does not need a whole
    number of successes, which a percentage published to one place does not give.
    """
    z = _NORMAL.inv_cdf(0.975)
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def effective_trials(counts: Iterable[int]) -> float:
    """The number of independent trials that steps are worth if the steps of a task are all alike.

    `counts` has the number of steps of each task. Kish's effective sample size: (sum of counts)^2 / sum of counts^2
    (Kish, Survey Sampling, 1965, section 11.7).
    """
    numbers = list(counts)
    return sum(numbers) ** 2 / sum(number * number for number in numbers)
