"""Simulate how often the 95 % intervals of `edge compare` contain the true value. The seed is fixed.

python benchmarks/coverage.py     takes a minute on one core

Prints the table of docs/compare.md. "Equal steps": each task's mean difference is normal. "Clustered": tasks of 1 to 8
steps. In a share of the tasks the sides differ in all steps, and the steps of a task differ alike. "Plain": percentiles
that are not widened.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import interval, resampled_means
from edge.system.tables import table

RUNS = 4000
LOSS = -0.03
Draw = Callable[[np.random.Generator, int], tuple[NDArray[np.float64], NDArray[np.float64]]]


def equal(rng: np.random.Generator, tasks: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return rng.normal(LOSS, 1, tasks), np.ones(tasks)


def clustered(share: float) -> Draw:
    def draw(rng: np.random.Generator, tasks: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        counts = rng.integers(1, 9, tasks)
        shift = np.where(rng.random(tasks) < share, rng.normal(0, 0.5, tasks), 0.0)
        values = np.repeat(shift, counts)
        values += np.where(values != 0, rng.normal(0, 0.2, len(values)), 0.0) + LOSS
        return np.add.reduceat(values, np.cumsum(counts) - counts), counts.astype(float)

    return draw


def covered(draw: Draw, tasks: int) -> tuple[float, float]:
    """Percent of runs whose interval contains the true value: plain, widened."""
    rng = np.random.default_rng(tasks)
    found = [0, 0]
    for _ in range(RUNS):
        samples = resampled_means(*draw(rng, tasks))
        for i, (low, high) in enumerate([np.quantile(samples, [0.025, 0.975]), interval(samples, tasks)]):
            found[i] += low - 1e-8 <= LOSS <= high + 1e-8
    return 100 * found[0] / RUNS, 100 * found[1] / RUNS


def main() -> None:
    rows = []
    for what, draw, sizes in [
        ("equal steps", equal, (2, 3, 4, 5, 6, 10, 20, 100)),
        ("clustered, all tasks differ", clustered(1.0), (20, 100)),
        ("clustered, a quarter differs", clustered(0.25), (20, 100)),
        ("clustered, a tenth differs", clustered(0.1), (100,)),
    ]:
        for tasks in sizes:
            plain, ours = covered(draw, tasks)
            rows.append((what, str(tasks), f"{plain:.1f}", f"{ours:.1f}"))
    print("\n".join(table(("differences", "tasks", "plain %", "edge %"), rows, right=(1, 2, 3))))


if __name__ == "__main__":
    main()
