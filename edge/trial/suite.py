"""edge's own suite of tasks, as folders in Harbor's format. scripts/trial_suite.py makes suite.json."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge.errors import ReplayError

_SUITE = Path(__file__).with_name("suite.json")
NAME = "suite"
"""What a command shows as the place of these tasks."""


def write_suite(folder: Path) -> list[Path]:
    """Write the tasks of the suite into a new or empty folder. Returns their folders. Raises ReplayError."""
    tasks: dict[str, dict[str, str]] = json.loads(_SUITE.read_text(encoding="utf-8"))["tasks"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ReplayError(f"{folder}: is not empty: name a new folder")
        try:
            for name, files in tasks.items():
                _write_task(folder / name, files)
        except BaseException:  # an incomplete suite is not left
            for name in tasks:
                shutil.rmtree(folder / name, ignore_errors=True)
            raise
    except OSError as error:
        raise ReplayError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return [folder / name for name in tasks]


def _write_task(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", newline="\n")
        if path.endswith(("test.sh", "solve.sh", "destructive.sh")):
            place.chmod(0o755)


@contextlib.contextmanager
def suite_folder() -> Iterator[Path]:
    """The tasks of the suite in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="edge-suite-", ignore_cleanup_errors=True) as place:
        write_suite(Path(place))
        os.chmod(place, 0o700)
        yield Path(place)
