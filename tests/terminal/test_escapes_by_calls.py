"""Attempts to get out of the sandbox by system calls and special files, all in one process of one sandbox.

.venv/bin/pytest tests/terminal/test_escapes_by_calls.py
"""

import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape_calls import BEGIN, END
from escape_calls import CALLS as FIRST_CALLS
from escape_later_calls import LATER_CALLS
from escapes import POSSIBLE, UNPRIVILEGED, World, has, run_as_ordinary_user, sandboxed, victim

CALLS = (*FIRST_CALLS, *LATER_CALLS)
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


RUN = """
import tempfile, time
from pathlib import Path
from edge.terminal.sandbox import Limits, Sandbox
from edge.terminal.tmux import Terminal
with tempfile.TemporaryDirectory() as place:
    (Path(place) / "attempts.py").write_text(ATTEMPTS)
    with Sandbox.prepare(Path(place), Limits(disk=4 << 20, temporary=1 << 20, reserve=1)) as sandbox:
        with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready) as terminal:
            terminal.send("python3 attempts.py > shown\\nclear; cat shown\\n")
            end = time.monotonic() + 60
            while " end" not in terminal.screen() and time.monotonic() < end:
                time.sleep(0.05)
            print(terminal.screen())
"""


def test_they_fail_for_an_ordinary_user(world: World) -> None:
    """Its sandbox has the same user outside, who owns the terminal and the pipes to edge."""
    other = victim()
    try:
        world.restore()
        run = run_as_ordinary_user(f"ATTEMPTS = {script(world, other.pid)!r}\n{RUN}")
        assert not run.stderr, run.stderr
        assert "done: end" in run.stdout, (succeeded(run.stdout), run.stdout)
        assert world.touched() == [] and other.poll() is None
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
