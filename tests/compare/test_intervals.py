"""Intervals and tests against published values, exact fractions and simulations with a fixed seed.

pytest tests/compare/test_intervals.py
"""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.compare.intervals import (
    draws,
    effective_trials,
    interval,
    mcnemar,
    resampled_means,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize("only_first", range(7))
@pytest.mark.parametrize("only_second", range(7))
def test_mcnemar_counts_every_outcome(only_first: int, only_second: int) -> None:
    """Every pair falls to either side alike: the share of all outcomes that are as uneven, or more."""
    pairs = only_first + only_second
    seen = abs(only_first - only_second)
    outcomes = [abs(pairs - 2 * sum(sides)) for sides in product((0, 1), repeat=pairs)]
    extreme = Fraction(sum(uneven >= seen for uneven in outcomes), len(outcomes))
    assert mcnemar(only_first, only_second) == float(extreme)


def test_mcnemar_published() -> None:
    """The first as a published calculator prints it (stat-tools.xyz/mcnemar, b 12, c 5), the second by hand."""
    assert mcnemar(12, 5) == pytest.approx(0.1435, abs=5e-5)
    assert mcnemar(2, 9) == 2 * (1 + 11 + 55) / 2**11
    assert mcnemar(0, 5) == 0.0625 and mcnemar(0, 6) == 0.03125  # the fewest pairs that reach the 5 % level
    assert mcnemar(0, 0) == mcnemar(4, 4) == mcnemar(3, 4) == 1.0
    assert mcnemar(0, 5000) == 0.0  # no overflow


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_has_no_sides(a: int, b: int) -> None:
    assert mcnemar(a, b) == mcnemar(b, a) and 0 < mcnemar(a, b) <= 1


@pytest.mark.parametrize(
    ("right", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_published(right: int, trials: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3; the last by its closed form, n / (n + z²)."""
    found = wilson(right / trials, trials)
    assert found == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    mirrored = wilson(1 - right / trials, trials)
    assert mirrored == (pytest.approx(1 - found[1]), pytest.approx(1 - found[0]))


# Any textbook's table: degrees of freedom, t(0.8), t(0.975).
T_TABLE = [
    (1, 1.376, 12.706),
    (2, 1.061, 4.303),
    (3, 0.978, 3.182),
    (4, 0.941, 2.776),
    (5, 0.920, 2.571),
    (10, 0.879, 2.228),
    (19, 0.861, 2.093),
    (30, 0.854, 2.042),
    (60, 0.848, 2.000),
    (100, 0.845, 1.984),
    (1000, 0.842, 1.962),
    (10**6, 0.842, 1.960),
]


@pytest.mark.parametrize(("freedom", "at_80", "at_975"), T_TABLE)
def test_students_t(freedom: int, at_80: float, at_975: float) -> None:
    assert t_quantile(0.8, freedom) == pytest.approx(at_80, abs=5.1e-4)
    assert t_quantile(0.975, freedom) == pytest.approx(at_975, abs=5.1e-4)


def test_students_t_where_its_formula_changes() -> None:
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(0.475 * math.pi))  # Cauchy's distribution
    assert t_quantile(0.975, 2) == pytest.approx(0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)), rel=1e-9)
    below, above = t_quantile(0.975, 1000), t_quantile(0.975, 1001)
    assert 0 < below - above < 6e-6
    values = [t_quantile(0.975, freedom) for freedom in range(1, 60)]
    assert values == sorted(values, reverse=True)


def clustered(
    rng: np.random.Generator, tasks: int, loss: float, share: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Differences of F1, those of a task alike. Each task's sum, its number of steps, and all values.

    In `share` of the tasks the sides differ, by up to about 1, in all of its 1 to 8 steps and mostly the same way.
    """
    counts = rng.integers(1, 9, tasks).astype(float)
    shift = np.where(rng.random(tasks) < share, rng.normal(0, 0.5, tasks), 0.0)
    values = np.repeat(shift, counts.astype(int))
    values += np.where(values != 0, rng.normal(0, 0.2, len(values)), 0.0) - loss
    sums = np.add.reduceat(values, np.concatenate([[0], np.cumsum(counts.astype(int))[:-1]]))
    return sums, counts, values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "share", "least"), [(20, 1.0, 0.93), (100, 1.0, 0.935), (20, 0.25, 0.90), (100, 0.25, 0.915)]
)
def test_intervals_cover_the_truth(tasks: int, share: float, least: float) -> None:
    """In nearly 95 % of samples of clustered steps, a little less often where few tasks differ.

    An interval that takes steps as independent covers it far less often.
    """
    rng = np.random.default_rng(11)
    loss, covered, naive, simulated = 0.03, 0, 0, 1000
    for _ in range(simulated):
        sums, counts, values = clustered(rng, tasks, loss, share)
        low, high = interval(resampled_means(sums, counts), tasks)
        assert low - 1e-8 <= sums.sum() / counts.sum() <= high + 1e-8
        covered += low <= -loss <= high
        reach = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        naive += abs(values.mean() + loss) <= reach
    assert least <= covered / simulated <= 0.98
    assert naive / simulated < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [5, 20])
def test_few_tasks_are_widened_enough(tasks: int) -> None:
    """Normal task means: plain percentiles cover 85 % with 5 tasks and 92.5 % with 20, ours 93 and 95 %."""
    rng = np.random.default_rng(5)
    covered = plain = 0
    simulated = 2000
    for _ in range(simulated):
        samples = resampled_means(rng.normal(0, 1, tasks), np.ones(tasks))
        low, high = interval(samples, tasks)
        covered += low <= 0 <= high
        low, high = np.quantile(samples, [0.025, 0.975])
        plain += low <= 0 <= high
    assert (0.91 if tasks == 5 else 0.94) <= covered / simulated <= 0.965
    assert plain < covered - 0.01 * simulated


def test_where_nothing_varies() -> None:
    counts = np.array([1.0, 4.0, 2.0])
    samples = resampled_means(0.1 * counts, counts)
    assert interval(samples, 3) == (0.1, 0.1)
    none = resampled_means(0 * counts, counts)
    assert interval(none, 3) == (0, 0) and math.copysign(1, interval(none, 3)[0]) == 1


def test_steps_weigh_alike_and_tasks_are_drawn_whole() -> None:
    """Of two tasks there are three draws: the mean of one, of the other, or of all their steps."""
    samples = resampled_means(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert set(samples) == {0.0, 0.25, 1.0}
    assert np.mean(samples == 0.25) == pytest.approx(0.5, abs=0.02)
    assert interval(samples, 2) == (0, 1)
    assert (draws(7).sum(axis=1) == 7).all()


def test_effective_trials() -> None:
    """Tasks of equal size count one each; a task with most of the steps makes the others count less."""
    assert effective_trials([3, 3, 3, 3]) == 4
    assert effective_trials([1]) == 1
    assert effective_trials([10, 1, 1]) == pytest.approx(144 / 102)
