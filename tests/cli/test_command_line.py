"""The tests' server of commands: a command ends and writes there as in a new process.

pytest tests/cli/test_command_line.py
"""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

from edge.cli.main import app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the server of commands runs on Linux only"),
]
SHORT = ("--threads", "1", "--max-tokens", "16", "--quiet")


def new(*words: object, cwd: Path, program: str, input: str = "", **own: str) -> tuple[int, str, str]:
    """What a command writes that has its own start of Python."""
    start = ["-c", "from edge.cli.main import main; main()"] if program == "edge" else ["-m", "edge"]
    done = subprocess.run(
        [sys.executable, *start, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(command_line.ROOT), **own},
        input=input,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", [one.name or one.callback.__name__ for one in app.registered_commands])
def test_a_new_process_of_each_command(name: str, tmp_path: Path) -> None:
    program = "python -m edge"
    done = command_line.run(name, "--help", cwd=tmp_path, program=program)
    assert new(name, "--help", cwd=tmp_path, program=program) == (0, done.stdout, "")
    assert done.stdout.startswith(f"Usage: python -m edge {name}") and done.stderr == ""


@pytest.mark.parametrize("program", ["edge", "python -m edge"])
def test_a_command_ends_as_in_a_new_process(program: str, tiny_q4: Path, tmp_path: Path) -> None:
    (tmp_path / "é.jsonl").write_text('{"task_id": "日本"}\n', encoding="utf-8")
    calls: tuple[tuple[object, ...], ...] = (
        ("--version",),
        ("nope",),
        ("run", "--nope"),
        ("inspect", "missing.gguf"),
        ("inspect", tiny_q4),
        ("rows", "check", "é.jsonl"),
        ("run", "List the files.", "--model", tiny_q4, *SHORT),
    )
    for words in calls:
        served = command_line.run(*words, cwd=tmp_path, program=program)
        assert (served.returncode, served.stdout, served.stderr) == new(*words, cwd=tmp_path, program=program)


def test_streams_folder_and_environment(tiny_q4: Path, tmp_path: Path) -> None:
    own = {"EDGE_MODEL": str(tiny_q4), "COLUMNS": "80"}
    environment = {**os.environ, **own}
    task = "List the files. é"
    served = command_line.run("run", "-", *SHORT, cwd=tmp_path, input=task, env=environment)
    expected = new("run", "-", *SHORT, cwd=tmp_path, program="edge", input=task, **own)
    assert expected[0] == 0 and expected[1].startswith("{")
    assert (served.returncode, served.stdout, served.stderr) == expected
    shown = command_line.run("config", env=environment)
    assert str(tiny_q4) in shown.stdout and "variable EDGE_MODEL" in shown.stdout
    # Python reads this one at its start.
    ascii_only = {**environment, "PYTHONIOENCODING": "ascii"}
    (tmp_path / "é.toml").write_text("", encoding="utf-8")
    done = command_line.run("config", env={**ascii_only, "EDGE_CONFIG": str(tmp_path / "é.toml")})
    assert done.returncode == 0 and "\\u00e9.toml" in done.stdout


def test_signals_and_a_terminal(tiny_q4: Path, tmp_path: Path) -> None:
    for number, status in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        with command_line.start(
            *("serve", "--model", tiny_q4, "--port", "0", "--threads", "1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as served:
            assert served.stderr is not None
            assert any("http://127.0.0.1:" in line for line in served.stderr)
            assert served.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                served.wait(0.1)
            served.send_signal(number)
            served.stderr.read()
            assert served.wait(60) in (status, 0)
    parent, child = pty.openpty()
    on_terminal = command_line.start("chat", "--model", tiny_q4, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(parent, b"/exit\n")
    seen = b""
    try:
        while data := os.read(parent, 4096):
            seen += data
    except OSError:  # the other end is closed
        pass
    os.close(parent)
    assert on_terminal.wait(60) == 0, seen
