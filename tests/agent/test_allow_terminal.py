"""Allowed keystrokes in a real terminal: bash runs what edge read, even if another program has the keyboard.

.venv/bin/pytest tests/agent/test_allow_terminal.py
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.agent.allow import Allowlist, judge, read_allowlist
from edge.agent.rules import Place
from edge.terminal.sandbox import Sandbox
from edge.terminal.shell import SHELL
from edge.terminal.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

PROGRAMS = ("cat", "echo", "head", "grep", "sleep", "dd", "pwd")  # not `touch`
# The list allows every line. If another program reads a part of a line, `touch pwned` runs.
ATTACKS = {
    "a program reads the beginning of the next line": ["head -c 4\ncat touch pwned\n"],
    "the same over two commands": ["head -c 4\n", "cat touch pwned\n"],
    "another program": ["dd bs=1 count=5 status=none\n", "echo touch pwned\n"],
    "from within a pipe": ["cat | head -c 5\n", "echo touch pwned\n"],
    "a quotation's beginning is read": ["head -c 6\n", "echo 'touch pwned #'\n"],
    "typed ahead": ["sleep 1\n", "head -c 4\n", "cat touch pwned\n"],
    "after an empty line": ["\n\nhead -c 4\n\n", "cat touch pwned\n"],
}


@pytest.fixture(scope="module")
def allowlist(tmp_path_factory: pytest.TempPathFactory) -> Allowlist:
    path = tmp_path_factory.mktemp("list") / "allow.toml"
    entries = [f"[[command]]\nprogram = '{name}'\narguments = ['.*']\n" for name in PROGRAMS]
    path.write_text("keys = ['C-c', 'C-d']\n" + "".join(entries))
    return read_allowlist(path)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def test_if_edge_does_not_wait_a_part_of_an_allowed_line_runs(allowlist: Allowlist, tmp_path: Path) -> None:
    """What the tests below would see if edge did not wait for the prompt."""
    (keystrokes,) = ATTACKS["a program reads the beginning of the next line"]
    assert judge(allowlist, keystrokes, Place()).decision == "allow"
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(keystrokes)
        until((tmp_path / "pwned").exists)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_part_of_a_line_runs(allowlist: Allowlist, tmp_path: Path, name: str) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        for keystrokes in ATTACKS[name]:
            assert judge(allowlist, keystrokes, Place()).decision == "allow"
            terminal.send_lines(keystrokes)
        for key in ("C-c", "C-c"):
            terminal.send_lines(key)
        until(lambda: terminal.send_lines("echo at the end\n"))
        until(lambda: terminal.screen().count("at the end") == 2)
        assert list(tmp_path.iterdir()) == []


def test_lines_are_typed_in_turn_each_at_its_prompt(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path, full_waits=False) as terminal:
        assert terminal.send_lines("echo a > 1; sleep 0.2\ncat 1 > 2\n\n\ncat 1 2 > 3\n", 60)
        assert terminal.send_lines("exit\n")
        until(lambda: terminal.ended)
        assert (tmp_path / "3").read_text() == "a\na\n"
        terminal.restart(SHELL)
        until(lambda: terminal.send_lines("echo b > 4\n"))
        until((tmp_path / "4").exists)


def test_keys_end_a_program_and_the_shell_reads_again(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        assert terminal.send_lines("cat\n")
        assert not terminal.send_lines("echo a > 1\n")
        assert terminal.send_lines("C-c")
        assert terminal.send_lines("C-c")
        until(lambda: terminal.send_lines("echo b > 2\n"))
        until((tmp_path / "2").exists)
        assert not (tmp_path / "1").exists()


def test_a_program_that_turns_the_line_editor_on_is_not_taken_for_the_shell(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        assert terminal.send_lines("bash --norc --noprofile -c 'read -n 4 -p other-prompt'\n")
        until(lambda: "other-prompt" in terminal.screen().split("\n")[-1])
        assert terminal.prompt() is None
        assert not terminal.send_lines("cat touch pwned\n")
        assert not (tmp_path / "pwned").exists()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_shell_in_the_sandbox_is_known_too(tmp_path: Path) -> None:
    with (
        Sandbox.prepare(tmp_path) as sandbox,
        Terminal.start(sandbox.argv, cwd=tmp_path, ready=sandbox.wait_ready) as terminal,
    ):
        assert terminal.send_lines("echo a\n")
        assert terminal.send_lines("head -c 4\n")
        assert not terminal.send_lines("cat touch pwned\n")
        assert terminal.send_lines("C-c")
        assert terminal.send_lines("exit\n")  # a new shell starts
        until(lambda: terminal.send_lines("ls; echo at the end\n"))
        until(lambda: terminal.screen().count("at the end") == 2)
        assert "pwned\nat" not in terminal.screen()


# What a displayed file can ask the terminal. tmux replies into the shell's input, before the next line.
ASKS = {
    "its colour, set before to a path's digits": b"\x1b]10;rgb:de/ad/be\x07\x1b]10;?\x07",
    "where the cursor is": b"\x1b[6n",
    "whether it is well": b"\x1b[5n",
    "what it is": b"\x1b[c",
    "its version": b"\x1b[>q",
    "its size": b"\x1b[18t",
    "its version, many times": b"\x1b[>q" * 50,
    "a setting": b"\x1bP$qm\x1b\\",
}
FIRST = next(iter(ASKS))


def asking(folder: Path, name: str) -> None:
    (folder / "README").write_bytes(b"hello\n" + ASKS[name])
    program = folder / "rgb:dede" / "adad" / "bebels"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ntouch pwned\n")
    program.chmod(0o755)


@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("name", ASKS)
def test_a_terminal_reply_is_not_part_of_a_command(tmp_path: Path, name: str, by_line: bool) -> None:
    asking(tmp_path, name)
    with Terminal.start(cwd=tmp_path) as terminal:
        for line in ("cat README\n", "ls\n", "pwd\n"):
            if by_line:
                until(lambda: terminal.send_lines(line))  # noqa: B023
            else:
                until(terminal.prompt)
                terminal.send(line, 0.3)
        until(lambda: f"\n{tmp_path}" in terminal.screen())
        shown = terminal.screen()
    assert "README" in shown.partition("hello")[2] and "not found" not in shown and "error" not in shown
    assert not (tmp_path / "pwned").exists()


def test_without_a_new_line_the_answer_is_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see if edge did not clear the line."""
    monkeypatch.setattr("edge.terminal.typed._EMPTY_LINE", b"")
    asking(tmp_path, FIRST)
    with Terminal.start(cwd=tmp_path) as terminal:
        for line in ("cat README\n", "ls\n"):
            assert terminal.send_lines(line, 0.3)
        until((tmp_path / "pwned").exists)
