"""A figure of some steps by task: the terms of its mean, the differences of the tasks, the interval of one side."""

from collections.abc import Callable, Sequence

import numpy as np

from edge.compare.intervals import mean_interval
from edge.compare.paired import TaskDifferences
from edge.compare.verdict import places
from edge.metrics import TERMS
from edge.replay.stored_result import Step

Steps = Sequence[Step]


def step_term(name: str) -> Callable[[Step], float | None]:
    """The function of a step whose mean is the figure; it returns None for a step that does not count."""
    if name == "score":
        return lambda step: 100 * float(step["command_f1"])
    if name == "next_action_score":
        return lambda step: 70 * float(step["command_f1"]) + 30 * float(step["first_cmd_exact"])
    factor, _, term = TERMS[name]

    def scaled(step: Step) -> float | None:
        value = term(step)
        return None if value is None else factor * float(value)

    return scaled


def task_differences(tasks: Sequence[str], values: Sequence[float], half: float) -> TaskDifferences:
    """The differences `values` of steps by task; `tasks` has the task of each value."""
    numbers = {task: index for index, task in enumerate(dict.fromkeys(tasks))}
    where = [numbers[task] for task in tasks]
    sums, counts = np.bincount(where, weights=values).astype(float), np.bincount(where).astype(float)
    return TaskDifferences(sums, counts, half)


def rounded(name: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval with the decimal places of its figure, and without a negative zero."""
    digits = places(name)
    return None if bounds is None else (round(bounds[0], digits) + 0.0, round(bounds[1], digits) + 0.0)


def side_interval(name: str, steps: Steps) -> tuple[float, float] | None:
    """The bootstrap interval of the figure of one side alone; None if there is only one task."""
    term = step_term(name)
    counted = [(step["task_id"], value) for step in steps if (value := term(step)) is not None]
    by_task = (
        task_differences([task for task, _ in counted], [value for _, value in counted], 0.0)
        if counted
        else None
    )
    if by_task is None or by_task.tasks < 2:
        return None
    return rounded(name, mean_interval(by_task.sums, by_task.counts))
