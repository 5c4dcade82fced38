"""Simulate how often the 95 % intervals of `edge compare` contain the true value, and the power at the detectable loss.

python benchmarks/coverage.py             takes minutes on one core
python benchmarks/coverage.py --runs 200

Prints the tables of docs/compare.md. In a share of the tasks the sides differ, by as much as in a population of losses
(those of benchmarks/evidence, all alike, evenly spread, skewed in many ways), and a share of those gains where the
others lose. A cell is a population, a share, a direction and a number of tasks. Only samples that get an interval
count, and only cells in which at least 2 % of the samples get one.

"Single figure" is the bootstrap of one side alone (`interval`), for normal task means. The seed is fixed.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import interval, resampled_means, t_quantile
from edge.compare.paired import ENOUGH_DIFFERING, TaskDifferences, detectable_loss, paired_interval
from edge.system.tables import table

EVIDENCE = Path(__file__).resolve().parent / "evidence" / "tiny"
TASKS = (5, 10, 20, 30, 50, 100, 200, 300)
SHARES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
GAINS = (0.0, 0.1, 0.25, 0.5)
UNEQUAL = [(100, 0.3, 0.0), (300, 0.1, 0.0), (300, 0.1, 0.25)]
AGAIN, LOWEST = 20, 6  # times as many samples for the lowest cells of each population
WIDEST = 1.15  # of the bootstrap's width, from 21 differing tasks on
DOMINANT = 0.6  # share of the sum of squares, as in edge/compare/paired.py
LEAST_REACH = 1.48  # standard errors to one side: a normal mean is beyond in 7 % of samples
BOOTSTRAPS = 30  # samples of a cell whose width is compared with the bootstrap's, which is slow:
COMPARED = [(100, 0.3, 0.0), (300, 0.1, 0.0), (300, 0.3, 0.0)]  # in these cells


@dataclass(frozen=True)
class Cell:
    """One population, and how its intervals did. `plain`: without pseudo-tasks. `wide`, `wider`: median width from 21
    differing tasks on, by that of the bootstrap and by that of the t interval."""

    population: str
    tasks: int
    share: float
    gains: float
    covered: float
    plain: float
    wide: float | None
    wider: float | None


def sizes_of_evidence(quant: str) -> NDArray[np.float64]:
    """Sizes of the differences of score between tasks of a type and of BF16, where they differ."""
    means = []
    for name in (quant, "bf16"):
        tasks = defaultdict(list)
        for step in json.loads((EVIDENCE / f"tiny-terminal-{name}.json").read_text(encoding="utf-8"))[
            "per_step"
        ]:
            tasks[step["task_id"]].append(100 * step["command_f1"])
        means.append({task: np.mean(values) for task, values in tasks.items()})
    found = np.array([abs(means[0][task] - means[1][task]) for task in means[1]])
    return found[found > 1e-9]


def populations() -> dict[str, NDArray[np.float64]]:
    """Losses of the differing tasks in points; negative ones are gains."""
    rng = np.random.default_rng(1)

    def mixed(small: float, low: float = 2, high: float = 15) -> NDArray[np.float64]:
        return np.where(rng.random(2000) < small, rng.uniform(low, high, 2000), rng.uniform(60, 100, 2000))

    def at_most_100(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(values, 0.001, 100)

    few = mixed(0.85)
    return {
        **{quant: sizes_of_evidence(quant) for quant in ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ3_S")},
        "100 points": np.array([100.0]),
        "10 points": np.array([10.0]),
        "5 to 100 points": rng.uniform(5, 100, 2000),
        "exponential": at_most_100(rng.exponential(20, 2000)),
        "beta (0.3, 2)": at_most_100(100 * rng.beta(0.3, 2, 2000)),
        "beta (0.2, 0.8)": at_most_100(100 * rng.beta(0.2, 0.8, 2000)),
        "Pareto 2": at_most_100(5 * (1 + rng.pareto(2, 2000))),
        "Pareto 1.5": at_most_100(4 * (1 + rng.pareto(1.5, 2000))),
        "lognormal 1": at_most_100(np.exp(rng.normal(np.log(10), 1, 2000))),
        "lognormal 1.2": at_most_100(np.exp(rng.normal(np.log(8), 1.2, 2000))),
        "85 % small": few,
        "90 % small": mixed(0.9),
        "5 or 100 points": np.repeat([5.0, 100.0], [17, 3]),
        # Less is covered here.
        "lognormal 1.5": at_most_100(np.exp(rng.normal(np.log(5), 1.5, 2000))),
        "93 % small": mixed(0.93),
        "10 or 100 points": np.repeat([10.0, 100.0], [9, 1]),
        "small ones both ways": np.where((few < 50) & (rng.random(2000) < 0.5), -few, few),
        "small gains": np.where(few < 50, -few, few),
    }


def sample(
    rng: np.random.Generator, tasks: int, share: float, sizes: NDArray[np.float64], gains: float
) -> TaskDifferences:
    values = np.where(rng.random(tasks) < share, rng.choice(sizes, tasks), 0.0)
    signs = np.where(rng.random(tasks) < gains, 1.0, -1.0)
    return TaskDifferences(values * signs, np.ones(tasks), 50.0)


def true_loss(cell: Cell | tuple[str, int, float, float], sizes: NDArray[np.float64]) -> float:
    share, gains = (cell.share, cell.gains) if isinstance(cell, Cell) else cell[2:]
    return -share * float(sizes.mean()) * (1 - 2 * gains)


def plain_reach(of: TaskDifferences) -> float:
    """Half of the width of Student's t interval without pseudo-tasks."""
    return t_quantile(0.975, of.tasks - 1) * float(of.sums.std(ddof=1)) / of.tasks**0.5


def cells(runs: int) -> Iterator[Cell]:
    for name, sizes in populations().items():
        rng = np.random.default_rng(7)
        for key in itertools.product((name,), TASKS, SHARES, GAINS):
            if found := one_cell(rng, key, sizes, runs):
                yield found


def one_cell(
    rng: np.random.Generator, key: tuple[str, int, float, float], sizes: NDArray[np.float64], runs: int
) -> Cell | None:
    _, tasks, share, gains = key
    truth = true_loss(key, sizes)
    covered, plain, widths, by_t = [], [], [], []
    for _ in range(runs):
        of = sample(rng, tasks, share, sizes, gains)
        if (bounds := paired_interval(of)) is None:
            continue
        covered.append(bounds[0] <= truth <= bounds[1])
        plain.append(abs(of.mean - truth) <= plain_reach(of))
        if of.differing < ENOUGH_DIFFERING:
            continue
        by_t.append((bounds[1] - bounds[0]) / 2 / plain_reach(of))
        if key[1:] in COMPARED and len(widths) < BOOTSTRAPS:
            low, high = interval(resampled_means(of.sums, of.counts), tasks)
            widths.append((bounds[1] - bounds[0]) / (high - low))
    if len(covered) < max(20, runs // 50):
        return None
    wide = float(np.median(widths)) if len(widths) == BOOTSTRAPS else None
    wider = float(np.median(by_t)) if len(by_t) >= BOOTSTRAPS else None
    return Cell(*key, 100 * float(np.mean(covered)), 100 * float(np.mean(plain)), wide, wider)


def again(cell: Cell, runs: int) -> tuple[float, float]:
    """The coverage in a cell with new samples, because the lowest of many cells is too low by chance; and a bound.

    From 21 differing tasks on, the median interval may be 1.15 times as wide as without pseudo-tasks. Where the means
    of samples are normal, it must reach 1.48 standard errors to each side, or it covers less than 93 % there. So it
    reaches at most what is left to the other side. A sample in which one task has most of the sum of squares may have
    any interval: no simulated population has such a task in most of its samples. The bound is the share of samples that
    are as near to the truth, or have such a task.
    """
    sizes, rng = populations()[cell.population], np.random.default_rng(11)
    truth = true_loss(cell, sizes)
    covered, possible = [], []
    for _ in range(AGAIN * runs):
        of = sample(rng, cell.tasks, cell.share, sizes, cell.gains)
        if bounds := paired_interval(of):
            covered.append(bounds[0] <= truth <= bounds[1])
            few, reach = of.differing < ENOUGH_DIFFERING, plain_reach(of)
            left = 2 * WIDEST * reach - LEAST_REACH * reach / t_quantile(0.975, cell.tasks - 1)
            squares = np.square(of.sums)
            free = few or squares.max() > DOMINANT * squares.sum()
            possible.append(free or abs(of.mean - truth) <= left)
    return 100 * float(np.mean(covered)), 100 * float(np.mean(possible))


def coverage(runs: int) -> str:
    """One line a population: the number of cells, the lowest coverage with and without pseudo-tasks, the widths."""
    rows = []
    found = list(cells(runs))
    for name in populations():
        own = [cell for cell in found if cell.population == name]
        lowest = sorted(own, key=lambda cell: cell.covered)[:LOWEST]
        (covered, possible), worst = min(
            ((again(cell, runs), cell) for cell in lowest), key=lambda found: found[0]
        )
        rows.append(
            (
                name,
                str(len(own)),
                f"{min(cell.plain for cell in own):.1f}",
                f"{lowest[0].covered:.1f}",
                f"{covered:.1f}",
                f"{possible:.1f}",
                f"{worst.tasks} tasks, {100 * worst.share:.0f} % differ, {100 * worst.gains:.0f} % turned",
                f"{max(cell.wide for cell in own if cell.wide):.2f}",
                f"{max(cell.wider for cell in own if cell.wider):.2f}",
            )
        )
    header = (
        "differences",
        "cells",
        "t interval, lowest %",
        "edge, lowest %",
        "again %",
        "possible %",
        "where",
        "width",
        "by t",
    )
    return "\n".join(table(header, rows, right=(1, 2, 3, 4, 5, 7, 8)))


def power(runs: int) -> str:
    """How often a true loss of the detectable size is found, for samples of a few sizes."""
    rows = []
    sizes = sizes_of_evidence("Q2_K")
    for tasks, differing in ((40, 8), (100, 6), (100, 12), (100, 30), (300, 12), (300, 60)):
        rng = np.random.default_rng(tasks + differing)
        values = np.zeros(tasks)
        values[:differing] = rng.choice(sizes, differing) * np.where(rng.random(differing) < 0.25, 1, -1)
        size = detectable_loss(TaskDifferences(values, np.ones(tasks), 50.0))
        if size is None:
            rows.append((str(tasks), str(differing), "none", "–"))
            continue
        seen = np.abs(values[:differing])
        share = size / (float(seen.mean()) * 0.5)
        found = [paired_interval(sample(rng, tasks, share, seen, 0.25)) for _ in range(10 * runs)]
        rate = 100 * np.mean([bounds is not None and bounds[1] < 0 for bounds in found])
        rows.append((str(tasks), str(differing), f"{size:.2f}", f"{rate:.1f}"))
    return "\n".join(table(("tasks", "differing", "detectable loss", "found %"), rows, right=range(4)))


def unequal(runs: int) -> str:
    """Coverage where tasks have 1 to 8 steps that are all alike: such tasks are worth fewer equal ones."""
    rows = []
    for name in ("Q4_K_M", "Q2_K", "5 to 100 points", "lognormal 1", "90 % small"):
        sizes, found = populations()[name], []
        for tasks, share, gains in UNEQUAL:
            rng, covered = np.random.default_rng(4), []
            for _ in range(10 * runs):
                of = sample(rng, tasks, share, sizes, gains)
                steps = rng.integers(1, 9, tasks).astype(float)
                if bounds := paired_interval(TaskDifferences(of.sums * steps, steps, 50.0)):
                    truth = -share * float(sizes.mean()) * (1 - 2 * gains)
                    covered.append(bounds[0] <= truth <= bounds[1])
            found.append(f"{100 * np.mean(covered):.1f}")
        rows.append((name, *found))
    header = [f"{tasks} tasks, {100 * share:.0f} %, {100 * gains:.0f} %" for tasks, share, gains in UNEQUAL]
    return "\n".join(table(("tasks of 1 to 8 steps", *header), rows, right=range(1, 4)))


def single(runs: int) -> str:
    rows = []
    for tasks in (2, 3, 4, 5, 6, 10, 20, 100):
        rng = np.random.default_rng(tasks)
        counts = [0, 0]
        for _ in range(runs):
            samples = resampled_means(rng.normal(-0.03, 1, tasks), np.ones(tasks))
            for i, (low, high) in enumerate([np.quantile(samples, [0.025, 0.975]), interval(samples, tasks)]):
                counts[i] += low - 1e-8 <= -0.03 <= high + 1e-8
        rows.append((str(tasks), *(f"{100 * count / runs:.1f}" for count in counts)))
    return "\n".join(table(("tasks", "plain %", "edge %"), rows, right=range(3)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="number of samples of each cell")
    runs = parser.parse_args().runs
    print(coverage(runs), unequal(runs), power(runs), single(runs), sep="\n\n")


if __name__ == "__main__":
    main()
