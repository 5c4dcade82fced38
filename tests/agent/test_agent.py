"""`edge agent` and `edge replay` from the outside, with the embedded model, a real terminal and the real gates.

.venv/bin/pytest tests/agent/test_agent.py
"""

import contextlib
import io
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_adapter import make_adapter
from own_state import own_state

from edge.agent.loop import without_older_steps
from edge.agent.proposal import Proposal
from edge.agent.record import Record
from edge.agent.seal import seal_line, session_key
from edge.agent.show import shown_proposal
from edge.agent.wording import first_messages, read_template
from edge.answer.action import Command
from edge.convert import convert_adapter
from edge.errors import AgentError, EdgeError, PromptError
from edge.replay.rows import read_rows
from edge.system.folders import make_folder, remove_folder
from edge.terminal.packed import copy_archive
from edge.terminal.sandbox import Sandbox
from edge.terminal.sealed import sealed
from edge.terminal.tmux import Terminal

ROOT = Path(__file__).resolve().parents[2]
EDGE = [sys.executable, "-c", "from edge.cli.main import main; main()"]
SMALL = ("--threads", "1", "--max-tokens", "96")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_STATE", str(own_state(tmp_path / "state")))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.log").write_text("old\n")
    (folder / "data.csv").write_text("a\nb\nc\n")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The folder is also the home folder, which keeps the prompt as short as in the training of the model."""
    own = {"PYTHONPATH": str(ROOT), "EDGE_STATE": str(folder.parent / "state"), "COLUMNS": "150"}
    return {**os.environ, **own, "HOME": str(folder), "EDGE_CACHE": str(folder.parent / "cache")}


def words(folder: Path, arguments: tuple[object, ...]) -> list[str]:
    """The arguments as text. They name the folder of a new sandboxed session, because it is the home folder here."""
    named = "--sandbox" not in arguments or {"--resume", "--workdir"} & set(arguments)
    return [*map(str, arguments), *([] if named else ["--workdir", str(folder)])]


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return command_line.run(*words(folder, arguments), cwd=folder, env=environment(folder))


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a record as edge does, with their seals."""
    key, seal, data = session_key(rows[0]["session"]["id"], "record"), b"", b""
    for row in rows:
        row.pop("seal", None)
        line, seal = seal_line(json.dumps(row).encode(), seal, key)
        data += line + b"\n"
    path.write_bytes(data)


def test_without_a_gate_nothing_is_typed(folder: Path, tiny_q4: Path) -> None:
    done = run(folder, "agent", "Remove the file old.log.", "--model", tiny_q4, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "rm old.log" in done.stdout and "delete" in done.stdout
    assert "dry run: edge typed nothing" in done.stderr
    assert (folder / "old.log").exists()
    assert not list((folder.parent / "state").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--yes"], "unattended runs need the sandbox"),
        (["--sandbox"], "add --yes"),
        (["--review"], "edge cannot ask"),
        (["--allow", "x.toml"], "not enough for an unattended run"),
        (["--sandbox", "--yes", "--review"], "--review asks"),
        (["--resume", "x.jsonl"], "--resume takes the task from the session record"),
    ],
)
def test_gates_that_nobody_watches_are_refused(
    folder: Path, tiny_q4: Path, options: list[str], what: str
) -> None:
    done = run(folder, "agent", "Remove the file old.log.", "--model", tiny_q4, *SMALL, *options)
    assert done.returncode == 2
    assert what in " ".join(done.stderr.replace("│", " ").split())
    assert (folder / "old.log").exists()


@needs_sandbox
def test_a_task_is_done_in_the_sandbox_and_becomes_rows(folder: Path, tiny_q4: Path) -> None:
    record = folder.parent / "session.jsonl"
    arguments = ("--model", tiny_q4, *SMALL, "--sandbox", "--yes", "--record", record, "--max-steps", "5")
    done = run(folder, "agent", "Make a folder named reports.", *arguments)
    # The later answers of the small model depend on the screen, which contains the time of day.
    assert done.returncode in (0, 1), done.stderr + done.stdout
    assert (folder / "reports").is_dir()
    assert "+ reports" in done.stdout
    left = {path.name for path in record.parent.iterdir()} - {"cache", "state"}
    assert left == {"folder", "session.jsonl", "session.jsonl.undo-1.tar"}
    undone = run(folder, "agent", "--undo", record)
    assert undone.returncode == 0 and "- reports" in undone.stdout and not (folder / "reports").exists()
    assert not (record.parent / "session.jsonl.undo-1.tar").exists()
    assert "there is nothing to undo" in run(folder, "agent", "--undo", record).stderr

    rows = rows_of(record)
    assert [row["step_idx"] for row in rows] == list(range(len(rows)))
    assert {row["total_steps"] for row in rows} == {len(rows)}
    assert [row["is_final_step"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert rows[0]["ref_commands"][0]["keystrokes"] == "mkdir -p reports\n"
    outcome = rows[-1]["session"]["outcome"]
    assert (outcome, done.returncode) in (("complete", 0), ("steps", 1))
    if outcome == "complete":
        assert [row["ref_task_complete"] for row in rows[-2:]] == [True, True]  # the model must confirm
    for before, after in itertools.pairwise(rows):
        assert after["messages"][: len(before["messages"])] == before["messages"]
        assert after["messages"][len(before["messages"])] == {
            "role": "assistant",
            "content": before["ref_raw"],
        }
    assert "mkdir -p reports" in rows[1]["messages"][-1]["content"]

    # `edge eval` replays the record: the same model gives the same answers.
    result = folder.parent / "result.json"
    replayed = run(
        folder, "eval", "--model", tiny_q4, "--replay", record, "--out", result, "--max-tokens", "96"
    )
    assert replayed.returncode == 0, replayed.stderr
    steps = json.loads(result.read_text())["per_step"]
    assert len(steps) == len(rows) and steps[0]["command_f1"] == 1.0

    shown = run(folder, "replay", record)
    assert shown.returncode == 0, shown.stderr
    assert "mkdir -p reports⏎" in shown.stdout and f"ended: {outcome}" in shown.stdout
    assert shown.stdout.count("agent@sandbox:/app$ mkdir -p reports") >= 1


@needs_sandbox
def test_a_killed_session_can_be_resumed(folder: Path, tiny_q4: Path) -> None:
    record = folder.parent / "session.jsonl"
    arguments = ["--model", str(tiny_q4), *SMALL, "--sandbox", "--yes", "--max-steps", "5"]
    task = ["agent", "Make a folder named reports.", "--workdir", str(folder)]
    first = subprocess.Popen(
        [*EDGE, *task, "--record", str(record), *arguments],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    packed = record.with_name("session.jsonl.work.tar")
    until(lambda: packed.exists() or first.poll() is not None)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "reports").exists()  # nothing reaches the folder before the end
    kept = rows_of(record)
    with record.open("ab") as file:
        file.write(b'{"task_id": "half a li')
    other = run(folder, "agent", "--resume", record, "--model", tiny_q4, *SMALL)
    assert other.returncode == 1 and "this session began in a sandbox: add --sandbox" in other.stderr
    done = run(folder, "agent", "--resume", record, *arguments)
    assert done.returncode in (0, 1), done.stderr
    rows = rows_of(record)
    assert rows[: len(kept)] != [] and len(rows) > len(kept)
    assert [row["ref_raw"] for row in rows[: len(kept)]] == [row["ref_raw"] for row in kept]
    assert "interrupted here" in rows[len(kept)]["messages"][-1]["content"]
    assert (folder / "reports").is_dir()


@needs_sandbox
def test_a_resumed_session_has_the_same_adapters(folder: Path, tiny_q4: Path, tiny_folder: Path) -> None:
    place = folder.parent
    adapter = place / "tuned.gguf"
    convert_adapter(make_adapter(tiny_folder, place / "tuned"), tiny_folder, quant="f16", out=adapter)
    record = place / "session.jsonl"
    options = (*SMALL, "--sandbox", "--yes", "--max-steps", "1")
    lora = ("--lora", "../tuned.gguf:0.125")
    done = run(folder, "agent", "Make a folder.", "--model", tiny_q4, *lora, "--record", record, *options)
    assert done.returncode == 1 and "the step limit was reached" in done.stderr
    named = f"{folder / '../tuned.gguf'}:0.125"
    assert rows_of(record)[0]["session"]["adapters"] == [named]
    done = run(folder, "agent", "--resume", record, *options)
    assert done.returncode in (0, 1) and f"note: adapters: {named}" in done.stderr, done.stderr
    before = record.read_bytes()
    adapter.unlink()
    gone = run(folder, "agent", "--resume", record, *options)
    assert gone.returncode == 1 and "tuned.gguf" in gone.stderr and "no such file" in gone.stderr
    other = run(folder, "agent", "--resume", record, "--lora", "none.gguf", *options)
    assert other.returncode == 1 and "none.gguf: no such file" in other.stderr
    assert record.read_bytes() == before
    rows = rows_of(record)
    rows[0]["session"]["adapters"] = "tuned.gguf"
    write_rows(record, rows)
    damaged = run(folder, "agent", "--resume", record, *options)
    assert damaged.returncode == 1 and "adapters of its session is not a list of texts" in damaged.stderr


@needs_sandbox
def test_limits_end_a_session(folder: Path, tiny_q4: Path) -> None:
    arguments = (
        "agent",
        "Make a folder named reports.",
        "--model",
        tiny_q4,
        *SMALL,
        "--sandbox",
        "--yes",
        "--quiet",
    )
    steps = run(folder, *arguments, "--max-steps", "1")
    assert steps.returncode == 1 and "the step limit was reached" in steps.stderr
    assert (folder / "reports").is_dir()
    begin = time.monotonic()
    late = run(folder, *arguments, "--time-limit", "1", "--max-steps", "1000")
    assert late.returncode in (0, 1) and time.monotonic() - begin < 60
    small = run(folder, *arguments, "--disk", "1")
    assert small.returncode in (0, 1)
    (folder / "big").write_bytes(bytes(2 << 20))
    full = run(folder, *arguments, "--disk", "1")
    assert full.returncode == 1 and "choose a smaller --workdir or a larger --disk" in full.stderr
    assert len(full.stderr.strip().splitlines()) == 1


def test_time_is_up_in_the_middle_of_an_answer(folder: Path, tiny_q4: Path) -> None:
    task = "Look at these: " + ", ".join(f"file{i}.txt" for i in range(4500))
    shown = run(folder, "agent", task, "--model", tiny_q4, *SMALL, "--time-limit", "1")
    assert "time limit was reached" in shown.stderr and shown.returncode == 1
    assert "analysis" not in shown.stdout


def test_without_a_working_sandbox_nothing_runs(folder: Path, tiny_q4: Path) -> None:
    tools = Path(tempfile.mkdtemp(prefix="edge-tools-"))  # other users cannot open pytest's folders
    tools.chmod(0o755)
    for name in (
        "env",
        "bash",
        "setpriv",
        "prlimit",
        "tar",
        "awk",
        "chmod",
        "sleep",
        "stty",
        "find",
        "sort",
        "comm",
        "sed",
    ):
        if place := shutil.which(name):
            (tools / name).symlink_to(place)
    # The sandbox takes its programs from fixed folders; this test replaces them by `tools`.
    elsewhere = (
        f"import edge.system.confined as s; s.PATH = {str(tools)!r}; from edge.cli.main import main; main()"
    )
    arguments = [
        sys.executable,
        "-c",
        elsewhere,
        "agent",
        "Remove the file old.log.",
        "--model",
        str(tiny_q4),
    ]
    arguments += [*SMALL, "--sandbox", "--yes", "--workdir", str(folder)]
    env = environment(folder)

    def tried() -> str:
        done = subprocess.run(
            arguments,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 1 and done.stdout == ""
        first, error = done.stderr.splitlines()
        assert first == f"note: model: {tiny_q4}"
        return error

    assert "apt-get install bubblewrap" in tried()
    (tools / "bwrap").write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    (tools / "bwrap").chmod(0o755)
    assert "No permissions to create new namespace" in tried()
    # edge detects a bwrap that runs the shell without isolation, before it types anything.
    (tools / "bwrap").write_text('#!/bin/sh\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n')
    assert "error: " in tried()
    assert (folder / "old.log").exists()
    assert not list((folder.parent / "state").rglob("*.jsonl"))
    shutil.rmtree(tools)


def in_terminal(folder: Path, *arguments: object) -> Terminal:
    """`edge agent` in its own terminal, where a person could answer."""
    env = {**environment(folder), "EDITOR": "true", "PS1": "$ "}
    line = [*EDGE, *words(folder, arguments)]
    return Terminal.start(["env", *line], cwd=folder, env=env, ready=lambda: None)


def test_a_person_accepts_refuses_edits_and_stops(folder: Path, tiny_q4: Path) -> None:
    record = folder.parent / "session.jsonl"
    editor = folder.parent / "editor"
    editor.write_text(
        "#!/bin/sh\nsed -i 's/rm old.log/mv old.log new.log/; s/ls.n/mv old.log new.log\\\\n/' \"$1\"\n"
    )
    editor.chmod(0o755)
    arguments = ("agent", "Remove the file old.log.", "--model", tiny_q4, *SMALL, "--record", record)
    env = {**environment(folder), "EDITOR": str(editor), "VISUAL": str(editor)}
    with Terminal.start([*EDGE, *map(str, arguments)], cwd=folder, env=env) as terminal:

        def asked() -> bool:
            return terminal.screen().endswith("[s]top?")

        until(asked)
        header, _, action = terminal.screen().partition("step 1 of 50, 30 min left")
        for line in (
            f"model     {tiny_q4}",
            f"folder    {folder}",
            "runs in   your own shell: what edge types runs as you, in this folder",
            f"record    {record}",
            "limits    50 steps, 30 min; your own time does not count",
        ):
            assert line in header, header
        assert "delete: rm old.log" in action and "⏎   then wait 0.1 s" in action
        terminal.send("?\n")
        until(lambda: terminal.screen().count("[s]top?") == 2)
        assert "a   edge types these keystrokes into your own shell" in terminal.screen()
        assert "edge waits up to that long before it types more" in terminal.screen()
        terminal.send("x\n")  # not a valid answer: edge asks again
        terminal.send("r\n")
        until(lambda: terminal.screen().rstrip().endswith("(the model reads it):"))
        terminal.send("rather rename it\n")
        until(asked)
        assert (folder / "old.log").exists()
        terminal.send("e\n")
        until(lambda: "[s]top? e" in terminal.screen())
        until(asked)
        terminal.send("a\n")
        until(lambda: record.exists() and record.read_text().count("\n") == 1)
        until(asked)
        terminal.send("s\n")
        until(lambda: terminal.ended)
    (row,) = rows_of(record)
    assert "the person at the terminal refused it: rather rename it" in row["messages"][-1]["content"]
    assert row["session"]["outcome"] == "stopped"
    assert read_rows(record)[0].ref_raw == row["ref_raw"]


def test_what_was_typed_ahead_accepts_nothing(folder: Path, tiny_q4: Path) -> None:
    """edge discards what was typed before it showed the action."""
    record = folder.parent / "session.jsonl"
    arguments = ("agent", "Remove the file old.log.", "--model", tiny_q4, *SMALL, "--record", record)
    with in_terminal(folder, *arguments) as terminal:
        until(lambda: terminal.screen().endswith("[s]top?"))
        terminal.send("a\na\na\na\n")
        until(lambda: terminal.screen().count("[s]top?") == 2)
        time.sleep(2)
        assert terminal.screen().endswith("[s]top?") and len(rows_of(record)) == 1
        terminal.send("s\n")
        until(lambda: terminal.ended)


def test_edit_needs_no_chooser(folder: Path, tiny_q4: Path) -> None:
    """Debian's sensible-editor can ask which editor to use. edge takes the first usual one that is installed."""
    tools = folder.parent / "tools"
    tools.mkdir()
    (tools / "sensible-editor").write_text(f"#!/bin/sh\ntouch {folder.parent}/chooser\n")
    (tools / "editor").write_text("#!/bin/sh\nsed -i 's/rm old.log/ls data.csv/' \"$1\"\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = environment(folder)
    words = ["env", "-u", "EDITOR", "-u", "VISUAL", f"PATH={tools}{os.pathsep}{env['PATH']}"]
    words += [*EDGE, "agent", "Remove the file old.log."]
    words += ["--model", str(tiny_q4), *map(str, SMALL)]
    with Terminal.start(words, cwd=folder, env=env) as terminal:
        until(lambda: terminal.screen().endswith("[s]top?"))
        terminal.send("e\n")
        until(lambda: terminal.screen().count("[s]top?") == 2)
        assert "1  ls data.csv⏎" in terminal.screen()
        terminal.send("s\n")
        until(lambda: terminal.ended)
    assert not (folder.parent / "chooser").exists()


def test_an_allowlist_leaves_some_actions_to_the_person(folder: Path, tiny_q4: Path) -> None:
    rule = '[[rule]]\ndecision = "ask"\nprefix = ["rm"]\nrest = ["<path>"]\n'
    (folder.parent / "allow.toml").write_text(rule)
    record = folder.parent / "session.jsonl"
    options = ("--model", tiny_q4, *SMALL, "--allow", folder.parent / "allow.toml", "--record", record)
    words = ("agent", "Remove the file old.log.", *options, "--max-steps", 1, "--quiet")
    with in_terminal(folder, *words) as terminal:
        until(lambda: terminal.screen().endswith("[s]top?"))
        assert (
            "The allowlist leaves this action to you (command 1, rm: rule 1 (rm) asks)." in terminal.screen()
        )
        assert "1  rm old.log⏎" in terminal.screen() and (folder / "old.log").exists()
        terminal.send("a\n")
        until(lambda: terminal.ended)
    assert not (folder / "old.log").exists()


@pytest.mark.parametrize("editor", ["printf '\\377\\376' >", "rm", "false"])
def test_an_editor_that_fails_changes_nothing(folder: Path, tiny_q4: Path, editor: str) -> None:
    script = folder.parent / "editor"
    script.write_text(f'#!/bin/sh\n{editor} "$1"\n')
    script.chmod(0o755)
    words = [*EDGE, "agent", "Remove the file old.log.", "--model", str(tiny_q4), *map(str, SMALL)]
    env = {**environment(folder), "EDITOR": str(script), "VISUAL": str(script)}
    with Terminal.start(words, cwd=folder, env=env) as terminal:
        until(lambda: terminal.screen().endswith("[s]top?"))
        terminal.send("e\n")
        until(lambda: terminal.screen().count("[s]top?") == 2)
        until(lambda: "The editor failed: " in terminal.screen())
        assert (
            "The action is as it was:" in terminal.screen() and terminal.screen().count("1  rm old.log") == 2
        )
        terminal.send("s\n")
        until(lambda: terminal.ended)
    assert (folder / "old.log").exists()


@needs_sandbox
def test_resume_reports_a_lost_step(folder: Path, tiny_q4: Path) -> None:
    """edge was killed after it wrote the action to the record, and before it saved the work folder."""
    record = folder.parent / "session.jsonl"
    arguments = ("--model", tiny_q4, *SMALL, "--sandbox", "--yes", "--max-steps", 1)
    run(folder, "agent", "Make a folder named reports.", "--record", record, *arguments)
    (row,) = rows_of(record)
    del row["session"]["outcome"], row["session"]["output"]
    write_rows(record, [row])
    done = run(folder, "agent", "--resume", record, *arguments)
    assert "what the last action did to the files is lost" in done.stdout
    assert "what the last action did to the files is lost" in rows_of(record)[1]["messages"][-1]["content"]


def test_the_time_of_a_persons_decision_does_not_count(folder: Path, tiny_q4: Path) -> None:
    record = folder.parent / "session.jsonl"
    arguments = ("--model", tiny_q4, *SMALL, "--record", record, "--time-limit", 10)
    with in_terminal(folder, "agent", "Remove the file old.log.", *arguments) as terminal:
        until(lambda: terminal.screen().endswith("[s]top?"))
        time.sleep(11)
        terminal.send("a\n")
        until(lambda: terminal.screen().count("[s]top?") == 2)
        until(lambda: not (folder / "old.log").exists())
        terminal.send("s\n")
        until(lambda: terminal.ended)


@needs_sandbox
def test_with_an_allowlist_edge_still_asks_before_it_brings_back(folder: Path, tiny_q4: Path) -> None:
    (folder.parent / "allow.toml").write_text("[[command]]\nprogram = 'rm'\narguments = ['old.log']\n")
    record = folder.parent / "session.jsonl"
    options = ("--model", tiny_q4, *SMALL, "--sandbox", "--allow", folder.parent / "allow.toml")
    line = ("agent", "Remove the file old.log.", *options, "--record", record, "--max-steps", 1)
    with in_terminal(folder, *line) as terminal:
        until(lambda: terminal.screen().endswith(f"Bring these changes back into {folder}? [y/N/d/l/?]"))
        assert "- old.log" in terminal.screen() and (folder / "old.log").exists()
        terminal.send("n\n")
        until(lambda: terminal.ended)
        how = f"cd {folder} && edge agent --bring-back {record}"
        assert len(how) > 160 and how in terminal.screen().replace("\n", "")  # in one line, to copy
    assert (folder / "old.log").exists() and record.with_name("session.jsonl.work.tar").exists()
    with in_terminal(folder, "agent", "--bring-back", record) as terminal:  # later
        until(lambda: terminal.screen().endswith(f"Bring these changes back into {folder}? [y/N/d/l/?]"))
        terminal.send("y\n")
        until(lambda: terminal.ended)
    assert not (folder / "old.log").exists() and not record.with_name("session.jsonl.work.tar").exists()


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_window_leaves_nothing(folder: Path, tiny_q4: Path, number: signal.Signals) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="edge-test-"))  # short enough for a socket's path
    arguments = ["--model", str(tiny_q4), *SMALL, "--sandbox", "--yes", "--workdir", str(folder)]
    task = "Look at these: " + ", ".join(f"file{i}.txt" for i in range(4000))  # takes a while to read
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from edge.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "agent", task, *arguments],  # nohup would ignore the signal
        cwd=folder,
        env={**environment(folder), "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as agent:
        until(lambda: len(list(temporary.glob("edge-*/*"))) > 5)
        agent.send_signal(number)
        assert agent.wait(60) == 128 + number
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


def test_the_next_run_removes_files_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import time; from edge.system.folders import *; print(make_folder('edge-x-'), flush=True); time.sleep(99)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        (left / "file").touch()
        os.utime(left, (1, 1))
        for name in ("edge-x-bench", "edge-x-abcdefgh", "edge-x-12345678"):  # folders of the user
            (tmp_path / name).mkdir(0o700 if name[-1] == "8" else 0o755)
            (tmp_path / name / "file").touch()
            os.utime(tmp_path / name, (1, 1))
        remove_folder(make_folder("edge-x-"))
        assert left.exists()  # in use
        other.kill()
    remove_folder(make_folder("edge-y-"))
    assert left.exists()
    remove_folder(make_folder("edge-x-"))
    assert not left.exists()
    assert len(list(tmp_path.glob("edge-x-*/file"))) == 3


def test_a_person_sees_that_the_model_works(folder: Path, tiny_q4: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*EDGE, "agent", "Remove the file old.log.", "--model", str(tiny_q4), *map(str, SMALL)]
    with subprocess.Popen(
        words, cwd=folder, env=environment(folder), stdin=theirs, stdout=theirs, stderr=theirs
    ) as agent:
        os.close(theirs)
        seen = b""
        while b"[s]top?" not in seen:
            seen += os.read(ours, 4096)
        assert b"The model reads and writes" in seen
        os.write(ours, b"s\n")
        with contextlib.suppress(OSError):  # how Linux ends a pseudo-terminal
            while os.read(ours, 4096):
                pass
        assert agent.wait(60) == 0
    os.close(ours)


def test_an_allowlist_accepts_and_refuses(folder: Path, tiny_q4: Path) -> None:
    (folder.parent / "allow.toml").write_text("[[command]]\nprogram = 'wc'\narguments = ['-l', '[a-z.]+']\n")
    record = folder.parent / "session.jsonl"
    options = (
        "--model",
        tiny_q4,
        "--allow",
        folder.parent / "allow.toml",
        "--record",
        record,
        "--max-steps",
        3,
    )
    with in_terminal(folder, "agent", "Count the lines of data.csv.", *options) as terminal:
        until(lambda: terminal.ended)
    assert rows_of(record)[0]["ref_commands"][0]["keystrokes"] == "wc -l data.csv\n"
    assert "\\n3 data.csv\\n" in record.read_text()
    record.unlink()
    with in_terminal(folder, "agent", "Remove the file old.log.", *options) as terminal:
        until(lambda: terminal.ended)
        assert "Nothing was typed: command 1 is not allowed here: rm is not on the list" in terminal.screen()
    assert (folder / "old.log").exists()


def test_wrong_files_give_one_line(folder: Path, tiny_q4: Path) -> None:
    (folder / "rows.jsonl").write_text('{"task_id": "t", "step_idx": 0, "prompt": "x", "ref_raw": "{}"}\n')
    newer = {"source": "edge agent", "session": {"task": "x", "schema_version": 99}}
    (folder / "newer.jsonl").write_text(json.dumps(newer) + "\n")
    (folder / "template").write_text("{instruction} {state}")
    task = "Remove the file old.log."
    for arguments, what in (
        (("--resume", folder / "none.jsonl"), "cannot be read"),
        (("--resume", folder / "rows.jsonl"), "is not a session record"),
        (("--resume", folder / "newer.jsonl"), "has schema version 99"),
        ((task, "--record", folder / "rows.jsonl"), "already exists"),
        ((task, "--workdir", folder / "none"), "is not a folder"),
        ((task, "--prompt-template", folder / "template"), "{terminal_state}"),
        ((task, "--model", folder / "rows.jsonl"), "rows.jsonl"),
    ):
        done = run(folder, "agent", "--model", tiny_q4, *SMALL, *arguments)
        assert done.returncode == 1, (arguments, done.stderr)
        assert what in done.stderr and done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    shown = run(folder, "replay", folder / "none.jsonl")
    assert shown.returncode == 1 and "cannot be read" in shown.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"no line",
        b"a line\nand a half",
        b'{"session": {"task": "x"}}\n{"half',
        b'{"source": "edge agent", "session": {"task": "x"}}\n{"half',
        b"\xff\n\x00",
        b"[1]\n[",
        b"",
    ],
)
def test_resume_leaves_other_files_unchanged(folder: Path, tiny_q4: Path, content: bytes) -> None:
    place = folder / "any"
    place.write_bytes(content)
    os.utime(place, (1, 1))
    with pytest.raises(EdgeError, match=r"any: is not a session record|any: is empty|any:1: "):
        Record.resume(place)
    assert place.read_bytes() == content and place.stat().st_mtime == 1


@pytest.mark.parametrize(
    ("option", "what"),
    [("--record", "record"), ("--workdir", "work folder"), ("--prompt-template", "prompt")],
)
def test_a_resumed_session_keeps_its_own(folder: Path, tiny_q4: Path, option: str, what: str) -> None:
    done = run(folder, "agent", "--resume", "x.jsonl", "--model", tiny_q4, option, folder)
    assert done.returncode == 2
    assert f"--resume uses the {what} of the session" in " ".join(done.stderr.replace("│", " ").split())


@needs_sandbox
def test_withheld_files_can_come_back_after_the_end(folder: Path, tiny_q4: Path) -> None:
    """Also of a complete session."""
    record = folder.parent / "session.jsonl"
    arguments = ("--model", tiny_q4, *SMALL, "--sandbox", "--yes")
    run(folder, "agent", "Make a folder named reports.", "--record", record, "--max-steps", 1, *arguments)
    (row,) = rows_of(record)
    row["session"]["outcome"] = "complete"
    write_rows(record, [row])
    assert "was completed" in run(folder, "agent", "--resume", record, *arguments).stderr
    inside = folder.parent / "inside"
    inside.mkdir()
    (inside / ".env").write_text("KEY=1\n")
    kept = folder.parent / "session.jsonl.work.tar"

    def save() -> None:
        tar = ["tar", "-c", "--format=gnu", "-b", "1", "-C", str(inside), "."]
        data = subprocess.run(tar, check=True, capture_output=True).stdout
        key = session_key(row["session"]["id"], "work folder")
        with kept.open("wb") as file, sealed(file, key) as out:
            copy_archive(io.BytesIO(data).read, {}, out, 1 << 20)

    save()
    done = run(folder, "agent", "--resume", record, *arguments)
    assert done.returncode == 0 and "! .env: not brought back" in done.stdout and kept.exists()
    (folder / "allow.toml").write_text("[[command]]\nprogram = 'ls'\n")
    (inside / "allow.toml").write_text("all\n")
    save()
    done = run(folder, "agent", "--resume", record, *arguments, "--allow", folder / "allow.toml")
    assert "! allow.toml: not brought back: it belongs to this session" in done.stdout
    (inside / "allow.toml").unlink()
    save()
    done = run(folder, "agent", "--resume", record, *arguments, "--dot-files")
    assert done.returncode == 0 and "+ .env" in done.stdout and not kept.exists()
    assert (folder / ".env").read_text() == "KEY=1\n" and len(rows_of(record)) == 1


@needs_sandbox
@pytest.mark.parametrize("place", ["folder", ".", "/"])
def test_the_home_folder_needs_a_word(folder: Path, tiny_q4: Path, place: str) -> None:
    """A sandboxed session in the home folder, in one that contains it, or in /."""
    here = folder.parent / place
    line = [*EDGE, "agent", "Remove the file old.log.", "--model", str(tiny_q4), "--sandbox", "--yes"]
    env = environment(folder)
    done = subprocess.run(line, cwd=here, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and "holds your home folder" in done.stderr and "--workdir" in done.stderr
    assert not list((folder.parent / "state").rglob("*.jsonl"))


@needs_sandbox
def test_another_sessions_work_folder_is_not_taken(folder: Path, tiny_q4: Path) -> None:
    record = folder.parent / "session.jsonl"
    kept = folder.parent / "session.jsonl.work.tar"
    kept.write_bytes(b"precious")
    arguments = ("--model", tiny_q4, *SMALL, "--sandbox", "--yes", "--record", record)
    done = run(folder, "agent", "Remove the file old.log.", *arguments)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {kept}: already exists")
    assert kept.read_bytes() == b"precious" and not record.exists() and (folder / "old.log").exists()


@needs_sandbox
def test_file_names_cannot_steer_the_terminal(folder: Path, tiny_q4: Path) -> None:
    os.mkfifo(folder / "pipe\x1b]0;x\x07")
    arguments = ("--model", tiny_q4, *SMALL, "--sandbox", "--yes", "--max-steps", 1)
    done = run(folder, "agent", "Remove the file old.log.", *arguments)
    assert "not regular files: pipe\\x1b]0;x\\x07" in done.stderr and "\x1b]" not in done.stderr


def test_replay_shows_any_rows_and_no_control_characters(folder: Path) -> None:
    answer = {"analysis": "\x1b[2J\u202e", "plan": "", "commands": [], "task_complete": False}
    messages = [{"role": "us\x1b[31mer", "content": "a\x1b]0;x\x07"}]
    row = {"task_id": "t", "step_idx": 0, "messages": messages}
    rows = [
        row | {"ref_raw": json.dumps(answer)},
        row | {"task_id": "\x1b]0;v\x07", "ref_raw": "", "session": {"outcome": "\x1b[2J", "output": "\x9b"}},
        row | {"task_id": "u", "ref_raw": "<think>\nhm\x9b\n</think>\nno"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(folder, "replay", folder / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert all(character.isprintable() or character == "\n" for character in done.stdout)
    assert "\\x1b[2J\\u202e" in done.stdout and "hm\\x9b" in done.stdout
    one = run(folder, "replay", folder / "rows.jsonl", "--task", "u")
    assert "hm" in one.stdout and "2J" not in one.stdout
    assert run(folder, "replay", folder / "rows.jsonl", "--task", "v").returncode == 1


def test_replay_shows_what_was_written_whole(folder: Path) -> None:
    row = {"task_id": "t", "step_idx": 0, "messages": [{"role": "user", "content": "x"}], "ref_raw": "first"}
    text = json.dumps(row) + "\n" + json.dumps(row | {"step_idx": 1, "ref_raw": "sécond"}, ensure_ascii=False)
    data = text.encode()
    for end in (len(data) - 1, data.rindex("é".encode()) + 1, data.index(b"\n") + 2):
        (folder / "rows.jsonl").write_bytes(data[:end])
        done = run(folder, "replay", folder / "rows.jsonl")
        assert done.returncode == 0 and "first" in done.stdout and "cond" not in done.stdout
    (folder / "rows.jsonl").write_bytes(data[: len(data) - 1] + b"\n")
    # With a line break, it is not the last line of a killed process.
    assert "not JSON" in run(folder, "replay", folder / "rows.jsonl").stderr


def test_keys_differ_from_text() -> None:
    commands = (Command("Enter", 0.1), Command("Enter\n", 0.1))
    shown = shown_proposal(Proposal("", "", commands, False)).plain.splitlines()
    assert "Enter (this key)" in shown[2] and "(this key)" not in shown[3]


def test_two_processes_do_not_write_one_record(tmp_path: Path) -> None:
    path = tmp_path / "session.jsonl"
    action = {"analysis": "", "plan": "", "commands": [], "task_complete": False}
    with Record.create(path, {"task": "x"}) as record:
        record.append([{"role": "user", "content": "x"}], json.dumps(action), action, {})
        with pytest.raises(AgentError, match="Another edge agent"):
            Record.resume(path)
    with Record.resume(path) as record:
        assert record.facts["task"] == "x" and record.outcome is None
        record.append([{"role": "user", "content": "y"}], json.dumps(action), action, {})
        record.finish("complete", "the end")
    with pytest.raises(AgentError, match="was completed"):
        Record.resume(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", [{"session": None}, {"messages": None, "prompt": "x"}])
def test_a_row_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "session.jsonl"
    action = {"analysis": "", "plan": "", "commands": [], "task_complete": False}
    with Record.create(path, {"task": "x"}) as record:
        for _ in range(2):
            record.append([{"role": "user", "content": "x"}], json.dumps(action), action, {})
    rows = rows_of(path)
    changed = {name: value for name, value in (rows[1] | change).items() if value is not None}
    data = "".join(json.dumps(row) + "\n" for row in (rows[0], changed))
    path.write_text(data)
    with pytest.raises(AgentError, match=r"session\.jsonl:2: is not a row of a session record"):
        Record.resume(path)
    assert path.read_text() == data


def test_a_session_that_does_not_name_its_model_is_refused(folder: Path) -> None:
    record = folder / "session.jsonl"
    action = {"analysis": "", "plan": "", "commands": [], "task_complete": False}
    with Record.create(record, {"task": "x"}) as kept:
        kept.append([{"role": "user", "content": "x"}], json.dumps(action), action, {})
    done = run(folder, "agent", "--resume", record)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {record}: does not name its model")


def test_review_needs_no_termios() -> None:
    """As on Windows. The terminal is imported before: tmux needs termios."""
    code = "import edge.terminal.tmux, sys; sys.modules['termios'] = None; import edge.agent.session"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@given(steps=st.integers(0, 12), system=st.booleans())
def test_leaving_out_older_steps_keeps_the_task_and_the_turns(steps: int, system: bool) -> None:
    messages = [{"role": "system", "content": "s"}] if system else []
    messages += [{"role": "user", "content": "the task"}, {"role": "assistant", "content": "a0"}]
    for number in range(1, steps + 1):
        messages += [
            {"role": "user", "content": f"u{number}"},
            {"role": "assistant", "content": f"a{number}"},
        ]
    length = len(messages)
    while shorter := without_older_steps(messages):
        assert len(shorter) < len(messages)
        assert [m["content"] for m in shorter if m["content"].startswith("the task")] == [
            "the task\n\n[The first steps after this were left out for want of room.]"
        ]
        first = 1 + system
        assert [m["role"] for m in shorter[first:]] == ["assistant", "user"] * (len(shorter[first:]) // 2) + [
            "assistant"
        ]
        assert shorter[first + 1 :] == messages[-len(shorter[first + 1 :]) :] or len(shorter) == first + 1
        messages = shorter
    assert len(messages) == (1 + system + 1) or length == 1 + system + 1


def test_a_long_session_continues_without_its_older_steps(folder: Path, tiny_q4: Path) -> None:
    (folder / "allow.toml").write_text("[[command]]\nprogram = 'wc'\narguments = ['-l', '[a-z.]+']\n")
    record = folder.parent / "session.jsonl"
    options = (
        "--model",
        tiny_q4,
        *SMALL,
        "--allow",
        folder / "allow.toml",
        "--record",
        record,
        "--context",
        420,
    )
    with in_terminal(folder, "agent", "Remove the file old.log.", *options, "--max-steps", 6) as terminal:
        until(lambda: terminal.ended)
        assert "more than the context" not in terminal.screen()


def test_templates_are_those_of_terminus(tmp_path: Path) -> None:
    path = tmp_path / "template"
    path.write_text('{{"a": 1}} {instruction}\n{terminal_state}')
    messages = first_messages("do {this}", "$ ", "any", read_template(path))
    assert messages == [{"role": "user", "content": '{"a": 1} do {this}\n$ '}]
    own = first_messages("do {this}", "$ ", "any")[0]["content"]
    assert '{"analysis": ' in own and own.endswith("do {this}\n\nCurrent terminal state:\n$ ")
    for wrong in (
        "{instruction}",
        "{",
        "{instruction} {terminal_state} {0}",
        "{instruction!r} {terminal_state}",
    ):
        path.write_text(wrong)
        with pytest.raises(PromptError):
            read_template(path)


def test_harbors_own_template_is_taken() -> None:
    wheels = sorted((ROOT / "build" / "harbor").glob("harbor-*.whl"))
    if not wheels:
        pytest.skip("the harbor wheel is not here (make test fetches it)")
    import zipfile

    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheels[-1]) as wheel:
        path = wheel.extract("harbor/agents/terminus_2/templates/terminus-json-plain.txt", place)
        (message,) = first_messages("TASK", "SCREEN", "any", read_template(path))
    assert message["content"].rstrip().endswith("SCREEN") and "TASK" in message["content"]


def test_the_sandbox_is_for_linux_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edge.errors import SandboxError

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        Sandbox.prepare(tmp_path)
