"""The suite never reads or writes the folders of whoever runs it.

.venv/bin/pytest tests/test_user_folders.py
"""

import os
import subprocess
import sys
from pathlib import Path

from conftest import HOME, ROOT, USER_HOME

from edge.system.config import config_file
from edge.system.paths import cache_folder, state_folder
from edge.system.store import store_folder


def test_edge_uses_folders_of_the_tests_alone() -> None:
    assert HOME != USER_HOME
    for folder in (Path.home(), cache_folder(), state_folder(), store_folder(), config_file()):
        assert folder == HOME or HOME in folder.parents


def test_children_do_too(tmp_path: Path) -> None:
    code = "from edge.system.paths import *; print(cache_folder(), state_folder(), Path.home(), sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    folders = run.stdout.split()
    assert len(folders) == 3
    assert all(folder.startswith(str(HOME)) for folder in folders)
