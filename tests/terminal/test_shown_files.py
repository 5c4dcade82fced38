"""Files that act on the terminal when a program shows them, and settings that change what a typed line means.

.venv/bin/pytest tests/terminal/test_shown_files.py
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.terminal.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def type_line(terminal: Terminal, line: str) -> None:
    """Type the line when the shell is at its prompt, however long that takes."""
    until(lambda: terminal.send_lines(line))


TITLES = {
    "a title as of a later prompt": b"\x1b]2;1.9999\x07",
    "a title and icon name": b"\x1b]0;{pid}.9999\x07",
    "a title of screen's kind": b"\x1bk{pid}.9999\x1b\\",
    "an old title from the stack": b"\x1b[23;2t",
}


@pytest.mark.parametrize("name", TITLES)
def test_a_forged_prompt_is_no_prompt(name: str, tmp_path: Path) -> None:
    """While edge waits for the next prompt, a title comes that looks like one: then edge would type too early."""
    with Terminal.start(cwd=tmp_path) as terminal:
        type_line(terminal, "printf '\\033[22;2t'\n")  # keeps the title of the first prompt
        until(lambda: (terminal.prompt() or "").endswith(".2"))
        first = terminal.prompt()
        assert first is not None
        (tmp_path / "README").write_bytes(TITLES[name].replace(b"{pid}", first.split(".")[0].encode()))
        terminal._prompts.use(first)  # as if edge had just typed there, and bash had not read it yet
        os.system(f"cat {tmp_path}/README > {terminal._tmux('display-message', '-p', '#{pane_tty}').strip()}")
        time.sleep(0.3)
        assert not terminal.send_lines("touch early\n", stop=lambda: True)
        terminal.send("touch later\n")  # and it begins anew, also at a prompt without its name
        until((tmp_path / "later").exists)
        until(lambda: (terminal.prompt() or "").endswith(".3"))
        type_line(terminal, "touch last\n")
        until((tmp_path / "last").exists)
        assert not (tmp_path / "early").exists()


LEFT = {
    "the alternate screen": b"\x1b[?1049h",
    "another character set": b"\x1b(0\x1b)0\x0e",
    "insert mode, no wrap, a scroll region": b"\x1b[4h\x1b[?7l\x1b[3;4r\x1b[?6h",
    "hidden text": b"\x1b[8m\x1b[30;40m",
    "the keys of xterm and kitty": b"\x1b[>4;2m\x1b[>1u\x1b[=31;1u\x1b[?1h\x1b=",
    "pasted text in brackets": b"\x1b[?2004h\x1b[200~",
    "the mouse and the focus": b"\x1b[?1000;1003;1004;1006h",
    "a sequence without its end": b"\x1bP+q544e",
    "a title with a command of tmux": b"\x1b]2;#(touch pwned)#{E:pane_title}\x07",
    "a repeated character and a far cursor": b"x\x1b[99999b\x1b[9999;9999H",
    "questions about colours and the clipboard": b"\x1b]4;1;?\x07\x1b]11;?\x07\x1b]52;c;?\x07",
    "questions about modes and keys": b"\x1b[?2026$p\x1b[?6n\x1b[?u\x1b[=c",
    "the window's size and title": b"\x1b[8;5;20t\x1b[14t\x1b[20t\x1b[21t\x1b]l\x1b\\",
    "a reset": b"\x1bc\x1b[!p\x1b[3J",
}


def test_what_a_shown_file_leaves_on(tmp_path: Path) -> None:
    """The next lines run as they are, and C-c still ends a program."""
    with Terminal.start(cwd=tmp_path) as terminal:
        for number, (name, data) in enumerate(LEFT.items()):
            (tmp_path / "README").write_bytes(b"hello\n" + data)
            type_line(terminal, "cat README\n")
            if not terminal.send_lines(f"echo a > {number}\n"):  # the terminal waits for the sequence's end
                assert terminal.send_lines("C-c"), name
                type_line(terminal, f"echo a > {number}\n")
            until(lambda number=number: (tmp_path / str(number)).exists())  # type: ignore[misc]
            # C-c reaches a program that runs: a shell that only begins it may drop the key.
            type_line(terminal, f"sh -c 'echo > run{number}; exec sleep 600'\n")
            until((tmp_path / f"run{number}").exists)
            until(lambda: terminal.prompt() is None)
            terminal.send_lines("C-c")
            type_line(terminal, f"echo b >> {number}\n")
            until(lambda number=number: (tmp_path / str(number)).read_text() == "a\nb\n")  # type: ignore[misc]
            (tmp_path / f"run{number}").unlink()
        assert {path.name for path in tmp_path.iterdir()} == {"README", *map(str, range(len(LEFT)))}


def test_a_locale_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In it, readline would read the second byte of U+0348 as M-C-h, which deletes a word of the line."""
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    with Terminal.start(cwd=tmp_path) as terminal:
        type_line(terminal, "bind -v > settings\n")
        type_line(terminal, "touch done\n")
        until((tmp_path / "done").exists)
    assert "set convert-meta off" in (tmp_path / "settings").read_text()


def test_names_do_not_mean_programs_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH of the user that begins with a place in the current folder."""
    (tmp_path / "node_modules" / ".bin").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "node_modules" / ".bin"):
        (place / "uptime").write_text("#!/bin/sh\ntouch pwned\n")
        (place / "uptime").chmod(0o755)
    monkeypatch.setenv("PATH", f"node_modules/.bin:./::.:{os.environ['PATH']}:")
    with Terminal.start(cwd=tmp_path) as terminal:
        type_line(terminal, "uptime > told\n")
        type_line(terminal, "echo $PATH > path\n")
        until(lambda: (tmp_path / "path").exists() and (tmp_path / "path").read_text())
        assert all(place.startswith("/") for place in (tmp_path / "path").read_text().strip().split(":"))
    assert not (tmp_path / "pwned").exists()
