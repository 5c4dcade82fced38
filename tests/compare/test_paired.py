"""Intervals of paired differences: they contain the truth where few tasks differ, and the detectable loss is detected.

pytest tests/compare/test_paired.py     benchmarks/coverage.py simulates more populations
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.compare.paired import (
    LEAST_DIFFERING,
    POWER,
    TaskDifferences,
    detectable_loss,
    most_differing,
    paired_interval,
)

# Sizes of the differences of tasks: of Q4_K_M and Q2_K in benchmarks/evidence, all alike, and mostly small.
SIZES = {
    "Q4_K_M": [5.7, 42.9, 71.4],
    "Q2_K": [25.0, 25.0, 16.7, 15.0, 8.9, 4.8, 12.5, 15.0, 17.9, 25.0, 33.3, 71.4],
    "alike": [100.0],
    "mostly small": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 80.0, 100.0],
}


def sample(
    rng: np.random.Generator, tasks: int, share: float, sizes: list[float], gains: float
) -> TaskDifferences:
    values = np.where(rng.random(tasks) < share, rng.choice(sizes, tasks), 0.0)
    return TaskDifferences(values * np.where(rng.random(tasks) < gains, 1, -1), np.ones(tasks), 50.0)


@pytest.mark.slow
@pytest.mark.parametrize("population", SIZES)
@pytest.mark.parametrize("gains", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("tasks", "share"), [(30, 0.3), (100, 0.05), (100, 0.1), (300, 0.02), (300, 0.3)])
def test_intervals_contain_the_truth(population: str, gains: float, tasks: int, share: float) -> None:
    """In at least 93 % of the samples that get an interval; 92 is asserted, for 600 samples have their own noise."""
    rng = np.random.default_rng(7)
    sizes = SIZES[population]
    truth = -share * float(np.mean(sizes)) * (1 - 2 * gains)
    found = [paired_interval(sample(rng, tasks, share, sizes, gains)) for _ in range(600)]
    covered = [bounds[0] <= truth <= bounds[1] for bounds in found if bounds]
    assert len(covered) >= 100
    assert np.mean(covered) >= 0.92


# Few losses are far larger than the others. In each of these cells, less than 93 % were covered before the interval
# leaned to a side, and with pseudo-tasks of 1.5 times the largest difference.
_DRAWN = np.random.default_rng(2)
SKEWED = {
    "5 or 100": ([5.0] * 17 + [100.0] * 3, 300, 0.05),
    "one of nine large": ([3.0, 5.0, 6.0, 8.0, 9.0, 10.0, 12.0, 14.0, 90.0], 200, 0.15),
    "lognormal": (list(np.minimum(100, 6 * np.exp(1.4 * _DRAWN.normal(size=2000)))), 300, 0.1),
    "Pareto": (list(np.minimum(100, 4 * (1 + _DRAWN.pareto(1.5, 2000)))), 300, 0.1),
}


@pytest.mark.parametrize("population", SKEWED)
def test_rare_large_losses_are_covered(population: str) -> None:
    sizes, tasks, share = SKEWED[population]
    rng = np.random.default_rng(5)
    truth = -share * float(np.mean(sizes))
    found = [paired_interval(sample(rng, tasks, share, sizes, 0.0)) for _ in range(4000)]
    covered = [bounds[0] <= truth <= bounds[1] for bounds in found if bounds]
    assert np.mean(covered) >= 0.93


# In each of these cells less than 93 % were covered before a sample with one dominant difference got a wider interval.
DOMINATED = {
    "10 or 100": ([10.0] * 9 + [100.0], 300, 0.1),
    "10 or 90": ([10.0] * 10 + [90.0], 200, 0.15),
}


@pytest.mark.parametrize("population", DOMINATED)
def test_a_sample_with_one_dominant_difference_is_covered(population: str) -> None:
    sizes, tasks, share = DOMINATED[population]
    rng = np.random.default_rng(5)
    truth = -share * float(np.mean(sizes)) * 0.8
    found = [paired_interval(sample(rng, tasks, share, sizes, 0.1)) for _ in range(4000)]
    covered = [bounds[0] <= truth <= bounds[1] for bounds in found if bounds]
    assert np.mean(covered) >= 0.93


def width(values: list[float]) -> float:
    """The width of the interval of 200 tasks, by that of Student's t interval."""
    of = np.array(values + [0.0] * (200 - len(values)))
    bounds = paired_interval(TaskDifferences(of, np.ones(200), 50.0))
    assert bounds is not None
    return (bounds[1] - bounds[0]) / (2 * 1.972 * float(of.std(ddof=1)) / math.sqrt(200))


def test_only_one_dominant_difference_makes_the_interval_twice_as_wide() -> None:
    assert width([-5.0] * 24 + [-90.0]) == pytest.approx(2.0, abs=0.01)
    assert width([-5.0] * 24 + [-90.0, -90.0]) <= 1.13
    assert width([-20.0] * 24 + [-90.0]) <= 1.13
    # All lose about the same: what is left of each difference is not its size.
    assert width([-10.0] * 199 + [-10.5]) <= 1.13


def lean(values: list[float]) -> float:
    """How much farther from the mean the upper bound is than the lower one, by the interval's width."""
    of = TaskDifferences(np.array(values + [0.0] * (200 - len(values))), np.ones(200), 50.0)
    bounds = paired_interval(of)
    assert bounds is not None
    return (bounds[0] + bounds[1] - 2 * of.mean) / (bounds[1] - bounds[0])


@pytest.mark.parametrize("share", [0.97, 0.98, 0.99])
def test_tasks_that_nearly_all_lose_the_same_are_covered(share: float) -> None:
    """A sample in which all lose the same has no spread, but other tasks may not lose."""
    rng = np.random.default_rng(3)
    found = [paired_interval(sample(rng, 100, share, [50.0], 0.0)) for _ in range(400)]
    covered = [bounds[0] <= -50 * share <= bounds[1] for bounds in found if bounds]
    assert len(covered) == 400 and sum(covered) >= 0.93 * len(covered)
    alone = paired_interval(TaskDifferences(np.full(100, -50.0), np.ones(100), 50.0))
    assert alone == pytest.approx((-51.811, -48.189), abs=0.001)


def test_the_interval_leans_to_the_side_of_the_differences() -> None:
    """From 21 differing tasks on, by 1 / sqrt(number of them), if small and large differences have one direction."""
    assert lean([-10.0] * 25) == pytest.approx(-0.2)
    assert lean([10.0] * 100) == pytest.approx(0.1)
    assert lean([-10.0] * 20) == pytest.approx(0, abs=1e-9)
    assert lean([-10.0, 10.0] * 20) == 0
    assert lean([-10.0] * 75 + [10.0] * 25) == pytest.approx(-0.05)
    # Most tasks gain and few lose far more: the direction is not known.
    assert lean([20.0] * 36 + [-90.0] * 5) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("differing", [21, 40, 100])
def test_from_21_differing_tasks_on_pseudo_tasks_add_little(differing: int) -> None:
    rng = np.random.default_rng(3)
    values = np.zeros(200)
    values[:differing] = rng.uniform(-5, 100, differing)
    bounds = paired_interval(TaskDifferences(values, np.ones(200), 50.0))
    assert bounds is not None
    plain = 2 * 1.972 * values.std(ddof=1) / math.sqrt(200)  # t(0.975) at 199 degrees of freedom
    assert 1 <= (bounds[1] - bounds[0]) / plain <= 1.15


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "differing"), [(100, 7), (100, 12), (300, 40)])
def test_a_loss_of_the_detectable_size_is_detected_four_times_in_five(tasks: int, differing: int) -> None:
    """Where one of four differing tasks goes the other way; a loss of a third of it far less often."""
    rng = np.random.default_rng(tasks + differing)
    sizes = SIZES["Q2_K"] * 25
    values = np.zeros(tasks)
    values[:differing] = rng.choice(sizes, differing) * np.where(rng.random(differing) < 0.25, 1, -1)
    size = detectable_loss(TaskDifferences(values, np.ones(tasks), 50.0))
    assert size is not None
    seen = list(np.abs(values[:differing]))

    def detected(loss: float) -> float:
        share = loss / (float(np.mean(seen)) * 0.5)
        found = [paired_interval(sample(rng, tasks, share, seen, 0.25)) for _ in range(400)]
        return float(np.mean([bounds is not None and bounds[1] < 0 for bounds in found]))

    assert detected(size) == pytest.approx(POWER, abs=0.06)
    assert detected(size / 3) < 0.5


def test_too_few_differing_tasks_give_no_interval() -> None:
    for differing in range(LEAST_DIFFERING + 1):
        values = np.zeros(50)
        values[:differing] = -30
        of = TaskDifferences(values, np.ones(50), 50.0)
        assert (paired_interval(of) is None) == (differing < LEAST_DIFFERING)
        assert differing >= LEAST_DIFFERING or detectable_loss(of) is None
    assert TaskDifferences(np.full(9, 1e-12), np.ones(9), 50.0).differing == 0  # rounding


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 9)), min_size=6, max_size=40))
def test_signs_and_order(tasks: list[tuple[float, int]]) -> None:
    """The sides swapped, the bounds swap their signs; the mean over steps is inside; the order does not count."""
    counts: NDArray[np.float64] = np.array([count for _, count in tasks], dtype=float)
    sums = np.array([mean * count for mean, count in tasks])
    of = TaskDifferences(sums, counts, 50.0)
    bounds = paired_interval(of)
    if bounds is None:
        assert of.differing < LEAST_DIFFERING
        return
    assert bounds[0] <= of.mean <= bounds[1]
    turned = paired_interval(TaskDifferences(-sums, counts, 50.0))
    assert turned == pytest.approx((-bounds[1], -bounds[0]))
    assert paired_interval(TaskDifferences(sums[::-1], counts[::-1], 50.0)) == pytest.approx(bounds)


@pytest.mark.parametrize("tasks", [1, 3, 10, 60])
def test_most_differing_is_the_share_with_one_chance_in_twenty(tasks: int) -> None:
    for differing in range(tasks):
        share = most_differing(differing, tasks)
        exact = Fraction(share)
        chance = sum(
            math.comb(tasks, k) * exact**k * (1 - exact) ** (tasks - k) for k in range(differing + 1)
        )
        assert float(chance) == pytest.approx(0.05, rel=1e-6)
    assert most_differing(tasks, tasks) == 1
    assert most_differing(0, tasks) == pytest.approx(1 - 0.05 ** (1 / tasks))
