"""The terminal: a real tmux, real bash.

.venv/bin/pytest tests/terminal/test_tmux.py
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.errors import AgentError
from edge.terminal.shell import SHELL
from edge.terminal.tmux import Terminal, is_key_name, limit_output

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal.start(cwd=tmp_path) as terminal:
        yield terminal


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.02)


def test_text_is_typed_as_it_is(terminal: Terminal, tmp_path: Path) -> None:
    text = 'a;b \\; #{pane_id} $(x) `y` %1 wörld 🙂 C-c Enter ~ "quoted" -- -t;'
    terminal.send("cat > out\n")
    terminal.send(text)  # tmux would read the semicolon at its end as the end of a command
    terminal.send("\n")
    terminal.send("C-d")
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == text + "\n")


@pytest.mark.parametrize("name", ["#(touch pwned)", "#{pane_id}", "#[fg=red]", "##{x", "a;", "%H"])
def test_a_format_of_tmux_in_the_name_of_the_folder_is_only_a_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with Terminal.start(cwd=folder) as terminal:
        terminal.send("pwd -P > place; echo > done\n")
        until(lambda: (folder / "done").exists())
    assert (folder / "place").read_text() == f"{folder.resolve()}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["done", "place"]


@pytest.mark.parametrize("name", ["#(cd .. && touch pwned)", "#{pane_id}", "##{x"])
def test_a_format_of_tmux_in_the_name_is_only_a_name_for_a_new_shell_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # tmux runs such a command where edge runs
    with Terminal.start(cwd=folder) as terminal:
        terminal.send("exit\n")
        until(lambda: terminal.ended)
        terminal.restart(SHELL)
        terminal.send("pwd -P > place; echo > done\n")
        until(lambda: (folder / "done").exists(), 10)
    assert (folder / "place").read_text() == f"{folder.resolve()}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "elsewhere"])


def test_what_looks_like_a_command_of_tmux_reaches_the_pane_only(terminal: Terminal, tmp_path: Path) -> None:
    terminal.send("cat > out\n")
    terminal.send("C-b")  # tmux's usual prefix
    terminal.send(":;")
    terminal.send("run-shell 'touch pwned';\n")
    terminal.send("kill-server\n")
    terminal.send("C-d")
    until(lambda: (tmp_path / "out").exists() and "kill-server" in (tmp_path / "out").read_text())
    assert (tmp_path / "out").read_bytes() == b"\x02:;run-shell 'touch pwned';\nkill-server\n"
    assert not (tmp_path / "pwned").exists()


def test_key_names_are_keys_as_a_whole_only(terminal: Terminal, tmp_path: Path) -> None:
    assert all(map(is_key_name, ("C-c", "C-d", "M-x", "C-M-a", "Enter", "Up", "F12", "Escape", "^C", "S-Up")))
    assert not any(map(is_key_name, ("", "C-", "ls", "C-c\n", "C-cC-c", "up", "F13", "x", "Enter ", "C-é")))
    terminal.send("sleep 1000\n")
    until(lambda: "sleep" in terminal.screen())
    terminal.send("C-c")
    terminal.send("echo C-c over > out\n")
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == "C-c over\n")


def test_output_is_what_is_new(terminal: Terminal, tmp_path: Path) -> None:
    terminal.send("seq 3\n")
    until(lambda: terminal.screen().endswith("3\n" + prompt(tmp_path)))
    assert terminal.output() == f"New Terminal Output:\n{prompt(tmp_path)} seq 3\n1\n2\n3\n{prompt(tmp_path)}"
    assert terminal.output().startswith("Current Terminal Screen:\n")  # nothing is new
    terminal.send("seq 200\n")
    until(lambda: terminal.screen().endswith("200\n" + prompt(tmp_path)))
    new = terminal.output()
    assert new.split("\n")[2:-1] == [str(i) for i in range(1, 201)]  # more than fits on the screen
    terminal.send("clear\n")
    until(lambda: "\n200\n" not in terminal.screen())  # a folder's name may have a 200 in it
    assert "\n200\n" not in terminal.output()


def prompt(folder: Path) -> str:
    user = subprocess.run(
        ["bash", "-c", r"p='\u@\h'; echo ${p@P}"], capture_output=True, text=True
    ).stdout.strip()
    home = os.environ.get("HOME", "")
    place = str(folder)
    return f"{user}:{'~' + place[len(home) :] if home and place.startswith(home + '/') else place}" + (
        "#" if os.geteuid() == 0 else "$"
    )


def test_output_is_bounded_however_much_there_is(terminal: Terminal) -> None:
    terminal.send("seq 100000; echo the end\n")
    until(lambda: "\nthe end" in terminal.screen())
    new = terminal.output(4000)
    assert len(new.encode()) < 4200
    assert "the end" in new and "of output left out" in new


def test_a_program_that_fills_the_screen_is_shown_as_a_screen(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"line {i}\n" for i in range(500)))
    terminal.send("less text\n")
    until(lambda: "line 30" in terminal.screen())
    shown = terminal.output()
    assert shown.startswith("Current Terminal Screen:\n") and "line 400" not in shown
    terminal.send("q")
    until(lambda: terminal.screen().endswith(prompt(tmp_path)))


def test_limit_output_keeps_both_ends_and_whole_characters() -> None:
    assert limit_output("short", 100) == "short"
    text = "ä" * 5000
    cut = limit_output(text, 101)
    assert cut.startswith("ä" * 25 + "\n[…") and cut.endswith("…]\n" + "ä" * 25)
    left_out = int(re.findall(r"[\d,]+", cut)[0].replace(",", ""))
    assert left_out == len(text.encode()) - 2 * 25 * 2


def test_waiting_ends_with_the_program_and_when_told(terminal: Terminal, tmp_path: Path) -> None:
    begin = time.monotonic()
    terminal.send("", 60, stop=lambda: True)
    terminal.send("exit\n", 60)
    assert time.monotonic() - begin < 30
    assert terminal.ended
    terminal.restart(SHELL)
    assert not terminal.ended
    terminal.send("echo again > out\n")
    until(lambda: (tmp_path / "out").exists())


def test_hooks_of_the_persons_own_shell_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook").write_text(f"touch {tmp_path}/hooked\n")
    for name in ("BASH_ENV", "ENV"):
        monkeypatch.setenv(name, str(tmp_path / "hook"))
    monkeypatch.setenv("PROMPT_COMMAND", f". {tmp_path}/hook")
    monkeypatch.setenv("BASH_FUNC_ls%%", f"() {{ . {tmp_path}/hook; }}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text(f". {tmp_path}/hook\n")
    (tmp_path / ".tmux.conf").write_text(f"run-shell '. {tmp_path}/hook'\n")
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send("ls; bash -c true; echo 'over!!'\n")
        until(lambda: "\nover!!" in terminal.screen())
    assert not (tmp_path / "hooked").exists()


def test_what_goes_on_after_the_end_is_told(tmp_path: Path) -> None:
    with Terminal.start(cwd=tmp_path) as terminal:
        terminal.send(
            "nohup sleep 987 > /dev/null & disown; "
            "until grep -q ^sleep /proc/$!/cmdline; do sleep 0.1; done; echo began\n"
        )
        try:
            until(lambda: "\nbegan" in terminal.screen())
        except AssertionError:
            raise AssertionError(terminal.screen()) from None
        left = terminal.close()
    assert [line.split(" ", 1)[1] for line in left] == ["sleep 987"]
    os.kill(int(left[0].split()[0]), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_edge_leaves_no_terminal_behind(tmp_path: Path) -> None:
    code = f"""
import sys, time
from edge.terminal.tmux import Terminal
terminal = Terminal.start(cwd={str(tmp_path)!r})
terminal.send("echo $$ > pid; sleep 1000\\n")
print(terminal.folder, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as edge:
        assert edge.stdout is not None
        folder = Path(edge.stdout.readline().strip())
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        shell = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{shell}").exists()
        edge.kill()
    until(lambda: not Path(f"/proc/{shell}").exists())
    shutil.rmtree(folder)


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match="is not a folder"):
        Terminal.start(cwd=tmp_path / "none")
    with pytest.raises(AgentError, match="has ended"), Terminal.start(cwd=tmp_path) as terminal:
        terminal.close()
        terminal.send("ls\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AgentError, match="needs tmux, which is not installed"):
        Terminal.start(cwd=tmp_path)
