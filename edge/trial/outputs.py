"""Checks of where trials write: never over one of their inputs, and never into a task."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.errors import ResultError
from edge.system.outputs import check_output
from edge.trial.tasks import Task


def check_apart(
    path: Path, tasks: Sequence[Task], inputs: Iterable[Path | str | None], *, option: str = "--out"
) -> None:
    """Check that the file `path` may be written: it is none of `inputs`, and not in the folder of a task.

    Raises ResultError.
    """
    place = Path(os.path.realpath(path))
    for task in tasks:
        if place.is_relative_to(task.folder):
            how = "is" if place.exists() else "would become"
            raise ResultError(
                f"{path}: {how} a part of the task {task.name}; choose another place with {option}"
            )
    check_output(path, [*inputs, *(task.folder for task in tasks)], option=option)  # hard links too
