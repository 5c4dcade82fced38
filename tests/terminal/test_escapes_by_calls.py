"""Attempts to get out of the sandbox by system calls and special files, all in one process of one sandbox.

.venv/bin/pytest tests/terminal/test_escapes_by_calls.py
"""

import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape_calls import BEGIN, CALLS, END
from escapes import POSSIBLE, UNPRIVILEGED, World, has, sandboxed, victim

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not POSSIBLE or not has("python3"), reason="bubblewrap, tmux or python3 is not installed"
    ),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


def script(world: World, pid: int) -> str:
    """The attempts as one program."""
    text = BEGIN
    for number, one in enumerate(CALLS):
        text += f"def attempt_{number}():\n{textwrap.indent(one.body.strip(), '    ')}\n"
    for name, value in (world.names | {"victim": pid}).items():
        text = text.replace("{" + name + "}", str(value))
    return text + END


def settings() -> dict[str, str]:
    """What a sandbox may set for its own namespaces only."""
    return {
        name: Path("/proc/sys", name).read_text()
        for name in ("fs/mqueue/msg_default", "kernel/msgmax", "kernel/shmmax", "kernel/pid_max")
        if Path("/proc/sys", name).exists()
    }


def succeeded(shown: str) -> list[str]:
    words = shown.rpartition("done:")[2].partition("end")[0].split()
    return [CALLS[int(word)].name for word in words]


def test_they_fail_in_the_sandbox(world: World, tmp_path: Path) -> None:
    other = victim()
    try:
        world.restore()
        (tmp_path / "attempts.py").write_text(script(world, other.pid))
        before = os.stat("/usr/bin/env"), settings()
        with sandboxed(world, workdir=tmp_path) as shell:
            shown = shell.run("python3 attempts.py\n")
            assert "done: end" in shown, (succeeded(shown), shown)
            assert shell.sandbox is not None and shell.sandbox.trouble() is None
        assert world.touched() == [] and (os.stat("/usr/bin/env"), settings()) == before
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_they_succeed_without_a_sandbox(world: World, tmp_path: Path) -> None:
    """Those that an ordinary user can do on all systems of the tests."""
    other = victim()
    try:
        place = world.folder / "cwd" / "attempts.py"
        place.write_text(script(world, other.pid))
        run = subprocess.run(
            [*UNPRIVILEGED, "/usr/bin/python3", str(place)],
            cwd=place.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = succeeded(run.stdout)
        assert run.returncode == 0, run.stderr
        assert {one.name for one in CALLS if one.open} <= {*found}
    finally:
        other.kill()
        other.wait()
        world.restore()
