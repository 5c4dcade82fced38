"""State folders for tests. edge knows in them the models that tests share, so that no test waits for their trial."""

import os
import shutil
from pathlib import Path

import pytest

from edge.system.keys import derived_key

_SHARED = Path(os.environ["EDGE_STATE"])  # where tests/conftest.py marks those models


def own_state(folder: Path) -> Path:
    """A state folder with the key of this run and the marks of its models."""
    if (folder / "session.key").exists():
        return folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_STATE", str(_SHARED))
        derived_key("")  # makes the key
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_SHARED / "session.key", folder)
    (_SHARED / "model-files").mkdir(exist_ok=True)
    (folder / "model-files").symlink_to(_SHARED / "model-files")
    return folder
