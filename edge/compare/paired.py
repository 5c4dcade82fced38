"""The 95 % interval of a paired difference, also where few tasks differ, and the smallest loss that it detects.

Pure functions on the differences of tasks. docs/compare.md explains them; benchmarks/coverage.py simulates them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import SEED, t_quantile

POWER = 0.8
# With fewer differing tasks there is no interval: their sizes and directions say too little about other tasks.
LEAST_DIFFERING = 6
# From here on the pseudo-tasks widen the interval by at most 12 %, and it leans to the side of the larger differences.
ENOUGH_DIFFERING = 21
_WIDENED = (
    0.13  # square of the largest pseudo-task, as a share of the sum of squares: sqrt(1 + 2 * 0.13) = 1.12
)
# If one task has more than this share of the sum of squares, one case says how often such a difference occurs. The
# exact 95 % interval of a count of 1 ends at 5.6, and 1 + 2 standard errors is 3. There it may be twice as wide.
_DOMINANT = 0.6
_WIDENED_BY_ONE = 1.5
_BEYOND = 1.7  # a pseudo-task differs by this times the largest difference seen, or times half of the range
_OTHER_WAY = 0.25  # share of the differing tasks that a detectable loss assumes to be gains
_SIMULATED = 2000
_SHARES = np.geomspace(0.005, 1.0, 48)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TaskDifferences:
    """The difference of a figure between two sides, by task.

    `sums`: sum over the steps of each task, shape (tasks,). `counts`: number of steps of each task, at least 1, shape
    (tasks,). `half`: half of the largest possible difference of a step (50 for percentages and scores).
    """

    sums: Values
    counts: Values
    half: float

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.sums)

    @property
    def differing(self) -> int:
        """Number of tasks whose mean differs. Differences that only rounding makes do not count."""
        return int(np.count_nonzero(self._shares.round(9)))

    @property
    def mean(self) -> float:
        """The mean difference over all steps."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def _shares(self) -> Values:
        """What each task adds to the mean, times the number of tasks."""
        shares: Values = self.sums / self.counts.mean()
        return shares


def paired_interval(differences: TaskDifferences) -> tuple[float, float] | None:
    """The 95 % interval of the mean difference; None if fewer than 6 tasks differ.

    It is Student's t interval over tasks, with two pseudo-tasks: one that is much better, one that is much worse. A
    sample with few differing tasks often lacks the rare, large differences of its population. Its spread is then too
    small. From 21 differing tasks on, the pseudo-tasks make the interval at most 1.12 times as wide, or twice if one
    difference is far larger than all others. There it also leans to the side of the differences: if all lose, the
    missing large ones are losses too. benchmarks/coverage.py prints how often such intervals contain the true value,
    with and without pseudo-tasks. If all tasks differ by the same, the interval reaches the mean that is left if the
    largest share of tasks that the sample can lack (97.5 % confidence) does not differ. The mean is a ratio of two
    sums; its error is that of the residuals (Cochran, Sampling Techniques, 3rd edition, section 6.3).
    """
    if differences.differing < LEAST_DIFFERING:
        return None
    shares = differences._shares
    residuals = shares - differences.mean * differences.counts / differences.counts.mean()
    seen = _Seen(
        *(
            np.array([value])
            for value in (
                differences.differing,
                np.square(residuals).sum(),
                np.abs(shares).max(),
                np.square(shares).max() / np.square(shares).sum(),
                _one_sided(shares.sum(), np.abs(shares).sum()),
                _one_sided((shares * np.abs(shares)).sum(), np.square(shares).sum()),
            )
        )
    )
    lean, reach = (float(of[0]) for of in _lean_and_reach(differences.tasks, seen, differences.half))
    if seen.squares[0] < 1e-12 * np.square(shares).sum():  # all differ by the same: no spread says how far
        reach = max(reach, abs(differences.mean) * (1 - 0.025 ** (1 / differences.tasks)))
    middle = differences.mean + lean
    return round(middle - reach, 9) + 0.0, round(middle + reach, 9) + 0.0


def detectable_loss(differences: TaskDifferences) -> float | None:
    """The smallest true loss that `paired_interval` finds with 80 % probability; None if no loss is found that often,
    or if fewer than 6 tasks differ.

    Simulated, with a fixed seed: a share of the tasks differs, by as much as the differing tasks of the sample, and one
    of four of them the other way. The share grows until 80 % of the intervals are on the side of the loss.
    """
    if differences.differing < LEAST_DIFFERING:
        return None
    rng = np.random.default_rng(SEED)
    tasks = differences.tasks
    runs = max(200, min(_SIMULATED, 1_000_000 // tasks))
    seen = np.abs(differences._shares)
    seen = seen[seen > 1e-9]
    # Task j of a run differs if fewer than j uniform numbers are below the share: the tasks before it differ too.
    sizes = rng.choice(seen, (runs, tasks))
    values = np.where(rng.random((runs, tasks)) < _OTHER_WAY, sizes, -sizes)
    order = np.sort(rng.random((runs, tasks)), axis=1)
    sums, squares = values.cumsum(axis=1), np.square(values).cumsum(axis=1)
    all_sums = (
        sums,
        squares,
        np.maximum.accumulate(sizes, axis=1),
        sizes.cumsum(axis=1),
        (values * sizes).cumsum(axis=1),
    )
    powers = []
    for share in _SHARES:
        count = (order < share).sum(axis=1)
        last = np.maximum(count - 1, 0)[:, None]
        total, square, most, size, signed = (np.take_along_axis(of, last, 1)[:, 0] for of in all_sums)
        mean = total / tasks
        sample = _Seen(
            count,
            square - tasks * np.square(mean),
            most,
            np.square(most) / np.maximum(square, 1e-300),
            _one_sided(total, size),
            _one_sided(signed, square),
        )
        lean, reach = _lean_and_reach(tasks, sample, differences.half)
        powers.append(float(((count >= LEAST_DIFFERING) & (mean + lean + reach < 0)).mean()))
    enough = next((i for i in range(len(powers)) if min(powers[i:]) >= POWER), None)
    if enough is None:
        return None
    share = float(_SHARES[enough])
    if enough and powers[enough] > powers[enough - 1]:
        before = float(_SHARES[enough - 1])
        share -= (share - before) * (powers[enough] - POWER) / (powers[enough] - powers[enough - 1])
    return share * float(seen.mean()) * (1 - 2 * _OTHER_WAY)


def most_differing(differing: int, tasks: int) -> float:
    """The upper 95 % confidence bound of the share of tasks that differ, if `differing` of `tasks` do.

    Clopper and Pearson's, one-sided: with a larger share, so few would differ with less than 5 % probability. If none
    differs, it is 1 - 0.05^(1 / tasks), about 3 / tasks.
    """
    if differing >= tasks:
        return 1.0
    low, high = differing / tasks, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(differing, tasks, middle) > 0.05 else (low, middle)
    return high


def _at_most(differing: int, tasks: int, share: float) -> float:
    """The probability that at most `differing` of `tasks` independent tasks differ."""
    if share in (0.0, 1.0):
        return 1.0 - share
    return sum(
        math.exp(
            math.lgamma(tasks + 1)
            - math.lgamma(k + 1)
            - math.lgamma(tasks - k + 1)
            + k * math.log(share)
            + (tasks - k) * math.log1p(-share)
        )
        for k in range(differing + 1)
    )


@dataclass(frozen=True)
class _Seen:
    """What the interval needs of each of several samples.

    `differing`: number of tasks. `squares`: sum of the squared residuals. `largest`: the largest difference of a task.
    `dominance`: its square, as a share of the sum of the squared differences.
    `by_size`, `by_square`: how one-sided the differences are, -1 (all lose) to 1 (all gain).
    """

    differing: NDArray[np.int64]
    squares: Values
    largest: Values
    dominance: Values
    by_size: Values
    by_square: Values


def _one_sided(signed: Values, unsigned: Values) -> Values:
    """A sum with signs, as a share of the sum without signs, which is 0 only if nothing differs."""
    return signed / np.maximum(unsigned, 1e-300)


def _lean_and_reach(tasks: int, seen: _Seen, half: float) -> tuple[Values, Values]:
    """How far the middle of the interval is from the mean, and half of its width, for samples of `tasks` tasks.

    It leans only where the small and the large differences have one direction (`by_size` and `by_square`), less if
    more tasks differ.
    """
    enough = seen.differing >= ENOUGH_DIFFERING
    pseudo = np.square(_BEYOND * np.maximum(half, seen.largest))
    widened = np.where(seen.dominance > _DOMINANT, _WIDENED_BY_ONE, _WIDENED)
    pseudo = np.where(enough, np.minimum(pseudo, widened * seen.squares), pseudo)
    reach: Values = t_quantile(0.975, tasks - 1) * np.sqrt((seen.squares + 2 * pseudo) / (tasks - 1) / tasks)
    alike = seen.by_size * seen.by_square > 0
    one_sided = np.sign(seen.by_size) * np.minimum(np.abs(seen.by_size), np.abs(seen.by_square))
    lean: Values = np.where(enough & alike, one_sided / np.sqrt(np.maximum(seen.differing, 1)), 0.0) * reach
    return lean, reach
