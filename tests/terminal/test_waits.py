"""A wait that ends early, when what was typed has ended; and all those that must not.

.venv/bin/pytest tests/terminal/test_waits.py
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.terminal.sandbox import Sandbox
from edge.terminal.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="edge sees background jobs in /proc"),
]
LONG = 20.0  # seconds: a loaded machine needs a few for half a second of stillness


@pytest.fixture(scope="module", params=["shell", "sandbox"])
def terminal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("work")
    if request.param == "shell":
        with Terminal.start(cwd=folder, full_waits=False) as terminal:
            yield terminal
        return
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    with (
        Sandbox.prepare(folder) as sandbox,
        Terminal.start(sandbox.argv, cwd=folder, ready=sandbox.wait_ready, full_waits=False) as terminal,
    ):
        yield terminal


@pytest.mark.parametrize(
    ("keystrokes", "shown"),
    [
        ("echo $((6 * 7))\n", "42"),
        ("sleep 1; echo $((6 * 7))\n", "42"),
        ("sleep 0.7\nsleep 0.7\necho $((6 * 7))\n", "42"),
        ("for i in 1 2 3; do echo $((i * 7)); sleep 0.3; done\n", "21"),
        ("cat <<E\n$((6 * 7))\nE\n", "42"),
        ("false\n", "false"),
        ("no-such-program-here\n", "not found"),
        ("sleep 0.2 & wait; echo $((6 * 7))\n", "42"),
        ("(exec -a $'x\\ny z' sleep 1.2); echo $((6 * 7))\n", "42"),
    ],
)
def test_a_wait_ends_with_its_command(terminal: Terminal, keystrokes: str, shown: str) -> None:
    for send in (terminal.send, terminal.send_lines):
        if send == terminal.send_lines and "<<" in keystrokes:
            continue  # no allowlist allows it
        assert send(keystrokes, LONG)
        assert 0.5 <= terminal.waited < LONG - 1
        assert shown in terminal.output()
        assert terminal.prompt() is not None


@pytest.mark.parametrize(
    ("keystrokes", "after"),
    [
        ("", ""),
        ("C-c", ""),
        ("echo a", "C-c"),
        ("\n", ""),
        ("# a comment\n", ""),
        ("echo 'a\n", "C-c"),
        ("sleep 60\n", "C-c"),
        ("cat\n", "C-c"),
        ("read -r line\n", "C-c"),
        ("bash --norc\n", "exit\n"),
        ("sleep 1.5 &\n", "wait\n"),
        ("(sleep 1.5; echo late) &\n", "wait\n"),
        ("sleep 60 & disown\n", "kill $!\n"),
        ("(setsid sleep 2.5 &)\n", "sleep 1\n"),
        ("sleep 60\n\x1a", "kill %1\n"),
    ],
)
def test_a_wait_in_full(terminal: Terminal, keystrokes: str, after: str) -> None:
    terminal.send(keystrokes, 1.5)
    assert terminal.waited >= 1.45
    terminal.output()
    terminal.send(after, 0.5)
    terminal.send("echo $((6 * 7))\n", LONG)
    assert "42" in terminal.output()


def test_a_line_for_a_program_is_waited_for_in_full(terminal: Terminal) -> None:
    terminal.send("cat\n", 0.5)
    terminal.send("echo x\n", 1.5)
    assert terminal.waited >= 1.45
    terminal.send("C-d", 0.5)


def test_the_output_of_a_background_job_is_shown(terminal: Terminal) -> None:
    terminal.send("(sleep 1.5; echo $((6 * 7))) &\n", LONG)
    assert "42" in terminal.output()


def test_full_waits(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send("true\n", 1.5)
        assert terminal.waited >= 1.45


def test_a_short_wait_stays_as_it_is(terminal: Terminal) -> None:
    terminal.send("true\n", 0.3)
    assert 0.25 <= terminal.waited < LONG - 1
