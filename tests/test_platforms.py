"""edge on other systems, as far as Linux can show it: what it imports, and what it says where something is missing.

.venv/bin/pytest tests/test_platforms.py

`make test` also checks the types for macOS and Windows (mypy --platform).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.airgap.bundle import bundle
from edge.airgap.unbundle import unbundle
from edge.errors import AgentError, BundleError, SandboxError
from edge.terminal.sandbox import Sandbox
from edge.terminal.tmux import Terminal

ROOT = Path(__file__).resolve().parents[1]
POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")  # Windows has none of these modules
IMPORT_ALL = f"""
import importlib, pkgutil, sys
for name in {POSIX_ONLY!r}:
    sys.modules[name] = None
import edge
for module in pkgutil.walk_packages(edge.__path__, "edge."):
    if module.name != "edge.__main__":
        importlib.import_module(module.name)
        print(module.name)
"""


@pytest.mark.slow
def test_every_module_imports_without_posix_modules() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "edge").rglob("*.py"))
    modules = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert set(run.stdout.split()) == modules - {"edge", "edge.__main__"}


def test_windows_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(AgentError, match=r"needs tmux, which Windows does not have: use WSL"):
        Terminal.start(cwd=tmp_path)
    with pytest.raises(SandboxError, match="needs Linux"):
        Sandbox.prepare(tmp_path)
    with pytest.raises(BundleError, match=r"needs a POSIX shell.*use WSL"):
        bundle([tmp_path / "model.gguf"], tmp_path / "out.tar")
    with pytest.raises(BundleError, match=r"needs a POSIX shell.*use WSL, or --no-install"):
        unbundle(tmp_path / "bundle.tar", tmp_path / "to")
    assert not list(tmp_path.iterdir())


def test_macos_has_no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        Sandbox.prepare(tmp_path)


def test_the_agent_command_says_so_in_one_line(tmp_path: Path) -> None:
    # All that looks at the platform when it is imported comes first.
    code = (
        "import edge.cli.main, edge.agent.session, edge.runner, sys, sysconfig; sysconfig.get_config_vars();"
        "sys.platform = 'win32'; edge.cli.main.main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "agent",
        "a task",
        "--model",
        "none.gguf",
        "--workdir",
        str(tmp_path),
    ]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 1 and not run.stdout
    assert run.stderr == "error: edge agent needs tmux, which Windows does not have: use WSL\n"
