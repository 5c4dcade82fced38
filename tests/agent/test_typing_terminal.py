"""What edge types is what runs: keys, long lines, tabs and vi mode, in a real tmux and a real bash.

.venv/bin/pytest tests/agent/test_typing_terminal.py
"""

import base64
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.agent.workplace import STILL_RUNS, open_workplace
from edge.answer.action import Command
from edge.terminal.tmux import Terminal

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

KEYS = ("C-z", "C-\\", "C-l", "Escape", "C-x", "C-v", "C-r", "M-1", "Left", "Up", "Tab", "C-]")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def asking(folder: Path) -> None:
    """A README that asks for a colour, and a program with the name of tmux's answer."""
    (folder / "README").write_bytes(b"hello\n\x1b]10;rgb:de/ad/be\x07\x1b]10;?\x07")
    program = folder / "rgb:dede" / "adad" / "bebels"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ntouch pwned\n")
    program.chmod(0o755)
    bare = program.with_name("bebe")
    shutil.copy(program, bare)


@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_does_not_join_the_reply_to_the_line(tmp_path: Path, key: str, by_line: bool) -> None:
    asking(tmp_path)
    with Terminal.start(cwd=tmp_path) as terminal:
        send = terminal.send_lines if by_line else terminal.send
        send("cat README\n", 0.3)
        until(terminal.prompt)
        send(key, 0.3)
        send("ls\n", 0.3)
        until(terminal.prompt)
        send("echo over > over\n")
        until((tmp_path / "over").exists)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "keys", [["Enter"], ["C-j"], ["C-m"], ["C-o"], ["Home", "Enter"], ["C-c", "M-1", "C-m"]]
)
def test_keys_do_not_run_the_reply(tmp_path: Path, keys: list[str]) -> None:
    asking(tmp_path)
    with Terminal.start(cwd=tmp_path) as terminal:
        for send in (terminal.send, terminal.send_lines):
            send("cat README\n", 0.3)
            until(terminal.prompt)
            for key in keys:
                send(key, 0.3)
        terminal.send("echo over > over\n")
        until((tmp_path / "over").exists)
    assert not (tmp_path / "pwned").exists()


def test_a_line_in_parts_is_one_line(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        for part in ("echo a", "b > ", "out", "Enter"):
            terminal.send(part)
        until(lambda: text_of(tmp_path / "out"))
        assert text_of(tmp_path / "out") == "ab\n"


WAITS = "until [ -e go ]; do sleep 0.1; done\n"  # a program that runs until the test makes this file


def test_a_long_line_is_not_cut_while_a_program_runs(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "precious").write_text("x")
    line = "rm -rf" + "".join(f" keep/t{number:04}.tmp" for number in range(300)) + " keep/cache/old.tmp\n"
    assert len(line) > 4096
    for parts in ([line], [line[:3000], line[3000:]]):
        with Terminal.start(cwd=tmp_path) as terminal:
            terminal.send(WAITS, 0.5)
            typed = [terminal.send(part) for part in parts]
            assert not all(typed)
            (tmp_path / "go").touch()
            until(terminal.prompt)
            assert terminal.send("echo over > over\n")
            until((tmp_path / "over").exists)
            (tmp_path / "over").unlink()
            (tmp_path / "go").unlink()
        assert (keep / "precious").exists()


def test_a_key_between_the_parts_of_a_long_line_does_not_hide_its_length(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    begin = "rm -rf" + " keep/t.tmp" * 370
    assert len(begin) < 4095 - 8
    end = " " * (4095 - len(begin) - 1 - len(" keep")) + " keep/old.tmp\n"
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(WAITS, 0.5)
        until(lambda: terminal.prompt() is None)
        assert terminal.send(begin) and terminal.send("Space")
        assert not terminal.send(end, stop=lambda: True)
        (tmp_path / "go").touch()
        until(terminal.prompt)
        terminal.send("echo over > over\n")
        until((tmp_path / "over").exists)
    assert (tmp_path / "keep").exists()


def test_a_long_paste_arrives_whole(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(24_000)
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[begin : begin + 8000] for begin in range(0, len(text), 8000))
    with Terminal.start(cwd=tmp_path) as terminal:
        assert terminal.send(f"base64 -d > out <<'EOF'\n{lines}\nEOF\necho over > over\n", 30)
        until((tmp_path / "over").exists)
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("before", ["", "set -o vi\n"])
def test_tabs_in_text_are_tabs(tmp_path: Path, before: str) -> None:
    (tmp_path / "only-file").write_text("x")
    text = "all:\n\techo a\n\t\techo\tb\n"
    with Terminal.start(cwd=tmp_path) as terminal:
        if before:
            terminal.send(before, 0.3)
        assert terminal.send(f"cat > Makefile <<'EOF'\n{text}EOF\necho over > over\n", 20)
        until((tmp_path / "over").exists)
    assert (tmp_path / "Makefile").read_text() == text


def test_an_exclamation_mark_puts_in_no_earlier_line(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        for line in ("set -o histexpand\n", "touch first; set -H\n", 'echo "wow!!" > out\n'):
            until(terminal.prompt)
            terminal.send(line, 0.3)
        until(lambda: text_of(tmp_path / "out"))
    assert text_of(tmp_path / "out") == "wow!!\n"


def test_a_line_does_not_begin_a_paste_that_swallows_the_next_ones(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        for line in ("echo one\x1b[200~\n", "touch two\n", "touch three\n"):
            until(terminal.prompt)
            terminal.send(line, 0.3)
        until(lambda: (tmp_path / "two").exists() and (tmp_path / "three").exists(), 20)


KEYS_IN_VI = [[], ["Escape"], ["Escape", "d"], ["Escape", "Left"]]
# docs/safety.md says what can still happen where a command keeps the shell in vi mode.
IN_VI = [("set -o vi", keys) for keys in [*KEYS_IN_VI, ["Escape", "C-c"]]] + [
    (kept, keys)
    for kept in ("bind 'set editing-mode vi'", "unset PROMPT_COMMAND; set -o vi")
    for keys in KEYS_IN_VI
]


@pytest.mark.parametrize(("vi", "keys"), IN_VI)
def test_vi_mode_loses_no_characters(tmp_path: Path, vi: str, keys: list[str]) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(f"{vi}\n", 0.3)
        until(terminal.prompt)
        for number in range(2):
            terminal.send("some words", 0.2)
            for key in keys:
                terminal.send(key, 0.7)
            assert terminal.send_lines(f"echo aiA{number} > out{number}\n")
            until(lambda: text_of(tmp_path / f"out{number}"))  # noqa: B023
            assert text_of(tmp_path / f"out{number}") == f"aiA{number}\n"


def test_the_shell_leaves_vi_mode_and_keeps_its_state(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        for line in (
            "set -o vi; set -x",
            "false | true",
            "echo ${PIPESTATUS[@]} > pipe; false",
            "echo $? $_ > last",
        ):
            assert terminal.send_lines(f"{line}\n")
        assert terminal.send_lines("shopt -o vi > mode\n")
        until(lambda: text_of(tmp_path / "mode"))
        until(terminal.prompt)
        assert "+ set" not in terminal.screen() and "+ case" not in terminal.screen()
    assert text_of(tmp_path / "mode").split() == ["vi", "off"]
    assert (text_of(tmp_path / "pipe"), text_of(tmp_path / "last")) == ("1 0\n", "1 false\n")


LOCKED = """
import fcntl, os, sys, termios, time
from pathlib import Path
from edge.terminal.tmux import Terminal
folder, user = Path(sys.argv[1]), int(sys.argv[2])
if os.geteuid() == 0:  # whom the lock does not stop
    os.chown(folder, user, user)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
os.chdir(folder)
with Terminal.start(cwd=folder) as terminal:
    while terminal.prompt() is None:
        time.sleep(0.02)
    terminal.send("tty > name; mv name tty\\n")
    while not Path("tty").exists():
        time.sleep(0.02)
    tty = Path("tty").read_text().strip()
    descriptor = os.open(tty, os.O_RDONLY | os.O_NOCTTY)
    fcntl.ioctl(descriptor, termios.TIOCEXCL)
    os.close(descriptor)
    try:
        os.open(tty, os.O_RDONLY | os.O_NOCTTY)
    except OSError as error:
        print(error.strerror)
    print(terminal.send_lines("echo over > over\\n", 30, stop=Path("over").exists))
"""


def test_a_locked_terminal_does_not_blind_edge() -> None:
    """A program in the terminal forbids others to open it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder, "HOME": folder}
        words = [sys.executable, "-c", LOCKED, folder, "64999"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
        assert done.stdout == "Device or resource busy\nTrue\n", done.stderr
        assert (Path(folder) / "over").exists()


def test_output_before_the_end_of_a_shell_is_shown(tmp_path: Path) -> None:
    said: list[str] = []
    with open_workplace(tmp_path, None, line_by_line=False, say=said.append) as workplace:
        assert workplace.type([Command("set -e; echo precious; false\n", 10.0)], lambda: False)
        output = workplace.output()
    assert "\nprecious\n" in output and "Pane is dead" not in output
    assert workplace.notes == said == ["Note: the shell has ended. This is a new shell."]


def test_a_program_that_ends_with_the_session_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    with open_workplace(tmp_path, None, line_by_line=False, say=said.append) as workplace:
        assert not workplace.settle(0.0) and said == []
        workplace.type([Command("sleep 600\n", 1.0), Command("", 0.0)], lambda: False)
        workplace.save(tmp_path / "unused")
        assert workplace.settle(0.0) and said == [STILL_RUNS]
        workplace.type([Command("C-c", 0.5)], lambda: False)

        def had_run() -> bool:
            workplace.save(tmp_path / "unused")
            return not workplace.settle(60.0)

        until(had_run)
    assert said == [STILL_RUNS]


def test_no_program_waits_at_a_pager_or_an_editor(tmp_path: Path) -> None:
    commands = "git init -q .; git -c user.name=a -c user.email=a commit -q --allow-empty -m first; "
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(commands + "seq 999 > n; git add n; git -p log; git diff --cached; echo over > over\n")
        until((tmp_path / "over").exists)
        until(terminal.prompt)
        names = ("PAGER", "GIT_PAGER", "MANPAGER", "SYSTEMD_PAGER", "GIT_EDITOR", "DEBIAN_FRONTEND")
        terminal.send("echo " + " ".join(f"${name}" for name in names) + f" > set; # {os.getpid()}\n")
        until(lambda: text_of(tmp_path / "set"))
    assert (tmp_path / "set").read_text() == "cat cat cat cat true noninteractive\n"


@pytest.mark.parametrize("at_prompt", [False, True])
def test_stty_makes_no_letter_a_key(tmp_path: Path, at_prompt: bool) -> None:
    """An earlier line, or a program that it ran, says that x ends a line's program, z clears the line, and so on."""
    keys = "intr x quit q susp s start b stop p erase y kill z werase w lnext v eof u"
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(f"stty {keys}; set -u\n", 0.3)
        for number in range(3):
            until(terminal.prompt)
            line = f"echo bpqsuvwxyz {number} > out{number}\n"
            assert terminal.send_lines(line) if at_prompt else terminal.send(line, 0.3)
            until(lambda: text_of(tmp_path / f"out{number}"))  # noqa: B023
            assert text_of(tmp_path / f"out{number}") == f"bpqsuvwxyz {number}\n"


MADE_KEYS = {
    "without the shell's own hook": "unset PROMPT_COMMAND; stty kill z erase b werase w lnext v",
    "the first letter ends the shell": "stty eof e",
    "the first byte ends the shell": "stty eof 0xc3",
    "capital letters become small ones": "stty iuclc istrip",
}


@pytest.mark.parametrize("name", MADE_KEYS)
def test_a_line_keeps_its_letters(tmp_path: Path, name: str) -> None:
    """What another line did to the terminal changes no letter of an accepted line, and does not end the shell."""
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(f'{MADE_KEYS[name]}; function é() {{ echo "$@"; }}\n', 0.3)
        for number, line in enumerate(("echo bvwzAé", "é bvwzAé", "\te\tbvwzAé; echo bvwzAé")):
            until(terminal.prompt)
            assert terminal.send(f"{line} > out{number}\n", 0.3)
            until(lambda: text_of(tmp_path / f"out{number}"))  # noqa: B023
            assert text_of(tmp_path / f"out{number}") == "bvwzAé\n"
