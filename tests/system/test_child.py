"""A module of edge run as a child process.

.venv/bin/pytest tests/system/test_child.py
"""

import subprocess
from pathlib import Path

import pytest

from edge.system.child import run_module, signal_name
from edge.version import __version__


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `childmodule`, to be filled, in the user's PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "childmodule.py"


def test_arguments_and_streams(module: Path) -> None:
    module.write_text(
        "import sys, edge.version\n"
        "print(sys.argv[1:], edge.version.__version__, sys.stdin.read())\n"
        "print('fault', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    done = run_module("childmodule", "a b", "--c", stdin="ä\udcff")
    assert done.stdout == f"['a b', '--c'] {__version__} ä\udcff\n"
    assert (done.returncode, done.stderr) == (3, "fault\n") and signal_name(done.returncode) is None


def test_the_current_folder_is_not_searched(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.write_text("import json\nprint('right')\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "json.py").write_text("print('wrong')\n")
    monkeypatch.chdir(other)
    assert run_module("childmodule").stdout == "right\n"


def test_a_signal_has_a_name(module: Path) -> None:
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    assert signal_name(run_module("childmodule").returncode) == "SIGTERM"


def test_a_timeout(module: Path) -> None:
    module.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_module("childmodule", timeout=0.5)
