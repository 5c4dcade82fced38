"""`edge trial` from the outside: a model on tasks, the result twice, resume after kill -9, what reads the records.

.venv/bin/pytest tests/trial/test_trial_run.py
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from served import serving
from test_trial_tasks import TOML, make_task

from edge.compare.trials import TrialResult, read_trials
from edge.errors import ReplayError
from edge.trial.suite import write_suite

pytestmark = pytest.mark.skipif(
    not (shutil.which("tmux") and shutil.which("bwrap")), reason="needs tmux and bubblewrap"
)
SMALL = ("--threads", "1", "--max-tokens", "96", "--max-steps", "2")


def trial(*words: object, folder: Path, wanted: int = 0) -> subprocess.CompletedProcess[str]:
    done = command_line.run("trial", *words, cwd=folder)
    assert done.returncode == wanted, (done.stdout, done.stderr)
    return done


def without_times(result: TrialResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "seconds"} for one in result["trials"]]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks: one whose tests are content with anything, one whose tests want a file."""
    folder = tmp_path / "tasks"
    make_task(folder / "easy", {"instruction.md": "List the files.\n"})
    make_task(
        folder / "hard",
        {
            "task.toml": TOML + "may_change = []\n",
            "instruction.md": "Show the file a.txt.\n",
            "tests/test.sh": "#!/bin/bash\n[ -e wanted ]; echo $((1 - $?)) > /logs/verifier/reward.txt\n",
            "solution/solve.sh": "#!/bin/bash\ntouch wanted\n",
        },
    )
    make_task(folder / "not-here", {"tests/test.sh": "pip install pytest\n"})
    return folder


@pytest.mark.slow
def test_a_model_twice_and_what_reads_its_trials(tasks: Path, tiny_q4: Path, tmp_path: Path) -> None:
    words = (tasks, "--model", tiny_q4, *SMALL)
    first = trial(*words, "--out", "one", "--export-solved", "rows.jsonl", folder=tmp_path)
    assert "not runnable here: not-here: tests/test.sh needs a network (pip)" in first.stderr
    trial(*words, "--out", "two", folder=tmp_path)
    name = tiny_q4.stem
    one, two = (read_trials(tmp_path / place / f"{name}.json") for place in ("one", "two"))
    assert without_times(one) == without_times(two)
    assert [(t["task"], t["state"]) for t in one["trials"]] == [("easy", "solved"), ("hard", "failed")]
    assert one["figures"]["solved_share"] is not None and one["figures"]["interval"] == "wilson"
    assert [refused["task"] for refused in one["refused"]] == ["not-here"]
    assert one["provenance"]["model_sha256"] and one["trials"][0]["screens"]
    assert one["trials"][0]["ended"] == "" and one["trials"][1]["ended"] in ("wrong", "limit", "gave up")
    # The same run, so a comparison says whether its screens are the same.
    said = command_line.run("compare", f"one/{name}.json", f"two/{name}.json", cwd=tmp_path).stdout
    assert "every screen of every trial is the same" in " ".join(said.split())
    # A complete result stays; each record is a session that other commands read.
    again = trial(*words, "--out", "one", "--export-solved", "rows.jsonl", folder=tmp_path)
    assert "already complete" in again.stderr
    # Rows of other trials and other files are kept.
    (tmp_path / "own.jsonl").write_text('{"mine": 1}\n')
    for kept in (tmp_path / "rows.jsonl", tmp_path / "own.jsonl"):
        before = kept.read_bytes()
        refused = command_line.run(
            *("trial", *words, "--task", "easy", "--out", "three", "--export-solved", kept.name), cwd=tmp_path
        )
        assert refused.returncode == 1 and f"{kept.name}: " in refused.stderr and "--force" in refused.stderr
        assert kept.read_bytes() == before and not (tmp_path / "three").exists()
    record = tmp_path / "one" / str(one["trials"][0]["record"])
    shown = command_line.run("replay", record, cwd=tmp_path)
    assert shown.returncode == 0 and "agent@sandbox:/app$" in shown.stdout
    assert sorted(path.name for path in (tmp_path / "one" / name).iterdir()) == [
        "easy.1.jsonl",
        "hard.1.jsonl",
    ]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["task_id"] for row in rows} == {f"{name}/easy.1"} and "seal" not in rows[0]
    scored = command_line.run(
        *("eval", "--replay", "rows.jsonl", "--model", tiny_q4, "--threads", "1", "--max-tokens", "96"),
        *("--out", "r.json", "--parallel", "1"),
        cwd=tmp_path,
    )
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "r.json").read_text())["aggregate"]["steps"] == len(rows)
    other = command_line.run("trial", *words, "--out", "one", "--max-steps", "3", cwd=tmp_path)
    assert other.returncode == 1 and "--max-steps was 2, is 3" in other.stderr


@pytest.mark.slow
def test_attempts_have_seeds_of_their_own(tasks: Path, tiny_q4: Path, tmp_path: Path) -> None:
    trial(
        *(tasks, "--model", tiny_q4, *SMALL, "--task", "easy", "--attempts", "2", "--temperature", "1"),
        *("--parallel", "2", "--out", "o"),
        folder=tmp_path,
    )
    found = read_trials(tmp_path / "o" / f"{tiny_q4.stem}.json")
    seeds = {one["seed"] for one in found["trials"]}
    assert len(seeds) == 2 and None not in seeds
    assert [passes["k"] for passes in found["figures"]["passes"]] == [2]
    assert found["figures"]["passes"][0]["all"]["value"] == 1.0


@pytest.mark.slow
def test_a_model_behind_a_server(tasks: Path, tiny_q4: Path, tmp_path: Path) -> None:
    with serving(tiny_q4) as url:
        trial(
            *(tasks, "--base-url", f"{url}/v1", "--task", "hard", "--max-tokens", "96", "--max-steps", "2"),
            *("--out", "o"),
            folder=tmp_path,
        )
        lost = f"{url}/v1"
    (path,) = (tmp_path / "o").glob("*.json")
    found = read_trials(path)
    assert found["trials"][0]["state"] == "failed" and found["trials"][0]["completion_tokens"] > 0
    # A server that is gone is an error, and no failed trial.
    words = (tasks, "--base-url", lost, "--out", "p", "--task", "hard")
    done = command_line.run("trial", *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not list((tmp_path / "p").glob("*.json"))


@pytest.mark.slow
def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    """Trials that ended before the kill are kept and not run again; the result is that of an undisturbed run."""
    tasks = tmp_path / "tasks"
    for number in range(6):
        make_task(
            tasks / f"t{number}",
            {"solution/solve.sh": "#!/bin/bash\nsleep 0.5\ntouch b\n", "instruction.md": f"{number}\n"},
        )
    words = ("trial", str(tasks), "--agent", "oracle", "--out", "o")
    command = [sys.executable, "-c", "from edge.cli.main import main; main()", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    kept = tmp_path / "o" / "oracle"
    end = time.monotonic() + 120
    while len(list(kept.glob("*.trial.json"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.read_text() for path in kept.glob("*.trial.json")}
    assert not (tmp_path / "o" / "oracle.json").exists()
    done = command_line.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} trials of 6 were done before" in done.stderr
    result = read_trials(tmp_path / "o" / "oracle.json")
    assert [one["state"] for one in result["trials"]] == ["solved"] * 6
    seconds = {one["task"]: one["seconds"] for one in result["trials"]}
    for text in before.values():
        assert seconds[json.loads(text)["task"]] == json.loads(text)["seconds"]
    assert not list(kept.glob("*.json"))
    whole = command_line.run(*words[:-1], "p", "--parallel", "2", cwd=tmp_path)
    assert whole.returncode == 0
    assert without_times(read_trials(tmp_path / "p" / "oracle.json")) == without_times(result)


WRONG = {
    ("--agent", "oracle", "--model", "x.gguf"): (2, "leave out --model"),
    ("--attempts", "3", "--model", "x.gguf"): (2, "add --temperature"),
    ("--timeout", "3"): (2, "add --base-url"),
    ("--model", "no-such-model.gguf"): (1, "no-such-model.gguf"),
    ("--agent", "oracle", "--task", "esy"): (1, "tasks: has no task esy; did you mean easy?"),
    ("--agent", "oracle", "--shard", "3"): (2, "is not a shard such as 2/3"),
    ("--agent", "oracle", "--shard", "1/3"): (1, "tasks: has 2 tasks, too few for 3 shards"),
    ("--agent", "oracle", "--out", "tasks/easy/task.toml"): (1, "would become a part of the task easy"),
    ("--agent", "oracle", "--out", "tasks/not-here/task.toml"): (1, "is a file, not a folder"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage(words: tuple[str, ...], tasks: Path, tmp_path: Path) -> None:
    code, said = WRONG[words]
    done = command_line.run("trial", "tasks", *words, cwd=tmp_path)
    assert (done.returncode, said in " ".join(done.stderr.split())) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_task_of_the_suite_names_no_temporary_folder(tmp_path: Path) -> None:
    done = command_line.run("trial", "--agent", "nop", "--task", "make-folder", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: suite: has no task make-folder; did you mean make-folder-3?\n"


def test_shards_are_the_whole(tasks: Path, tmp_path: Path) -> None:
    """Joined parts have the trials and the figures of one run, and a part is no result to compare or to report."""
    words = ("tasks", "--agent", "oracle", "--attempts", "2")
    trial(*words, "--out", "whole", folder=tmp_path)
    for part in "12":
        trial(*words, "--shard", f"{part}/2", "--out", f"part{part}", folder=tmp_path)
    parts = [f"part{part}/oracle.json" for part in "21"]
    done = command_line.run("join", *parts, "--out", "joined.json", cwd=tmp_path)
    assert done.returncode == 0 and "3 of 4" not in done.stdout, done.stderr
    whole, joined = read_trials(tmp_path / "whole" / "oracle.json"), read_trials(tmp_path / "joined.json")
    assert without_times(joined) == without_times(whole)
    assert (joined["figures"], joined["by_level"]) == (whole["figures"], whole["by_level"])
    assert joined["run"] == whole["run"] and "shard" not in joined
    for words_, said in (
        (("compare", "joined.json", "--reference", parts[0]), "is a shard of a result"),
        (("join", parts[0], "--out", "x.json"), "shard 1 of 2 not given"),
        (("join", parts[0], parts[0], "--out", "x.json"), "give each shard once"),
        (("join", "joined.json", "--out", "x.json"), "is not a shard"),
        (("join", *parts, "--out", parts[0]), "is an input of this command"),
    ):
        done = command_line.run(*words_, cwd=tmp_path)
        assert done.returncode == 1 and said in done.stderr, (words_, done.stderr)


def test_further_attempts_go_on(tasks: Path, tmp_path: Path) -> None:
    words = ("tasks", "--agent", "oracle", "--out", "o")
    trial(*words, folder=tmp_path)
    first = read_trials(tmp_path / "o" / "oracle.json")["trials"]
    done = trial(*words, "--attempts", "3", folder=tmp_path)
    assert "2 trials of 6 were done before" in done.stderr
    found = read_trials(tmp_path / "o" / "oracle.json")
    assert [(one["task"], one["attempt"]) for one in found["trials"]] == [
        (name, number) for name in ("easy", "hard") for number in (1, 2, 3)
    ]
    assert [one for one in found["trials"] if one["attempt"] == 1] == first
    done = command_line.run("trial", *words, "--attempts", "2", cwd=tmp_path)
    assert done.returncode == 1 and "attempts was 3, is 2" in done.stderr


@pytest.mark.slow
def test_no_output_becomes_a_part_of_a_task(tasks: Path, tmp_path: Path) -> None:
    """Before any trial: the results, and the rows of the solved ones, also with --force and through links."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "linked").symlink_to(tasks / "easy", target_is_directory=True)
    os.link(tasks / "easy" / "instruction.md", tmp_path / "hard.md")
    before = {path: path.read_bytes() for path in tasks.rglob("*") if path.is_file()}
    rows = ("--model", "m.gguf", "--export-solved")
    for words, said in (
        (("--agent", "oracle", "--out", "tasks/easy"), "would become a part of the task easy"),
        (("--agent", "oracle", "--out", "linked/tests"), "would become a part of the task easy"),
        ((*rows, "tasks/easy/instruction.md"), "is a part of the task easy"),
        ((*rows, "linked/tests/test.sh"), "is a part of the task easy"),
        ((*rows, "hard.md"), "is an input of this command"),
        ((*rows, "tasks/hard/new.jsonl"), "would become a part of the task hard"),
        ((*rows, "trials/m.json"), "is given for two outputs"),
        (("--agent", "oracle", "--export-solved", "new.jsonl"), "a script writes no rows"),
    ):
        done = command_line.run("trial", "tasks", *words, "--force", cwd=tmp_path)
        assert done.returncode in (1, 2) and said in " ".join(done.stderr.split()), (words, done.stderr)
        assert {path: path.read_bytes() for path in tasks.rglob("*") if path.is_file()} == before


def test_nothing_can_run(tasks: Path, tmp_path: Path) -> None:
    done = command_line.run("trial", "tasks/not-here", "--agent", "oracle", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: none of 1 task can run here, so no result is written; 1 time: tests/test.sh needs a network (pip)\n"
    )


def refused_set(folder: Path) -> Path:
    """26 tasks that cannot run here, for 14 reasons."""
    for number in range(9):
        make_task(folder / f"pip-{number}", {"tests/test.sh": "pip install pytest\n"})
    for number in range(4):
        make_task(folder / f"gpu-{number}", {"task.toml": "[environment]\ngpus = 1\n"})
    make_task(folder / "two-1", {"environment/Dockerfile": "FROM a\nFROM b\n"})
    make_task(folder / "two-2", {"environment/Dockerfile": "FROM a\nFROM b\n"})
    for letter in "ABCDEFGHIJK":
        make_task(folder / f"own-{letter}", {"environment/Dockerfile": f"FROM a\nOWN{letter} x\n"})
    return folder


def test_all_reasons_are_shown_if_nothing_can_run(tmp_path: Path) -> None:
    refused_set(tmp_path / "set")
    done = command_line.run("trial", "set", "--agent", "oracle", "--out", "o", cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "o").exists()
    lines = done.stderr.splitlines()
    assert lines[:4] == [
        "note: 26 of 26 tasks are not runnable here:",
        "note: 9 times: tests/test.sh needs a network (pip): pip-0, pip-1, pip-2 and 6 more",
        "note: 4 times: it needs a GPU: gpu-0, gpu-1, gpu-2 and 1 more",
        "note: 2 times: its Dockerfile has several stages: two-1, two-2",
    ]
    assert lines[4] == "note: 1 time: its Dockerfile has OWNA, which edge does not read: own-A"
    assert lines[-2:] == [
        "note: 2 times: 2 further reasons",
        "error: none of 26 tasks can run here, so no result is written; 9 times: tests/test.sh needs a network (pip)",
    ]
    quiet = command_line.run("trial", "set", "--agent", "oracle", "--quiet", cwd=tmp_path)
    assert quiet.stderr.splitlines() == lines[-1:]


def test_the_result_names_each_of_many_refused_tasks(tasks: Path, tmp_path: Path) -> None:
    refused_set(tasks)
    done = trial("tasks", "--agent", "nop", "--out", "o", folder=tmp_path)
    assert "note: 27 of 29 tasks are not runnable here:\nnote: 10 times: tests/test.sh needs" in done.stderr
    refused = read_trials(tmp_path / "o" / "nop.json")["refused"]
    assert len(refused) == 27
    assert {"task": "gpu-3", "reason": "it needs a GPU"} in refused


def test_another_process_writes(tasks: Path, tmp_path: Path) -> None:
    import fcntl

    place = tmp_path / "o" / "oracle"
    place.mkdir(parents=True)
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = command_line.run("trial", "tasks", "--agent", "oracle", "--out", "o", cwd=tmp_path)
    os.close(descriptor)
    assert done.returncode == 1 and "another edge trial is writing it" in done.stderr


def test_the_suite_as_folders(tmp_path: Path) -> None:
    done = trial("--write-suite", "suite", folder=tmp_path)
    assert "84 tasks" in done.stderr
    again = command_line.run("trial", "--write-suite", "suite", cwd=tmp_path)
    assert again.returncode == 1 and "is not empty" in again.stderr


def test_half_a_suite_is_not_left(tmp_path: Path) -> None:
    """As if the disk were full: the limit on a file's size stops the write in its middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(ReplayError, match="cannot be written: File too large"):
            write_suite(tmp_path / "suite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "suite").iterdir())
    assert len(write_suite(tmp_path / "suite")) == 84


DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda value: value.pop("trials"), "trials is missing"),
    (lambda value: value["trials"].append(value["trials"][0]), "twice"),
    (lambda value: value["trials"][0].update(state="won"), "the state of easy is won"),
    (lambda value: value.update(trials_version=99), "update edge"),
    (lambda value: value.pop("trials_version"), "is not a result of `edge trial`"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_a_damaged_result(damage: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    trial_ = {
        **{"task": "easy", "task_sha256": "", "level": "", "attempt": 1, "seed": None, "state": "solved"},
        **{"ended": "", "reason": "", "outcome": "", "reward": 1.0, "steps": 0, "prompt_tokens": 0},
        **{"completion_tokens": 0, "seconds": 1.0, "record": None, "screens": []},
    }
    from edge.compare.trial_figures import figures

    value: dict[str, Any] = {
        **{"trials_version": 1, "timestamp": "", "model": "m", "model_path": None, "agent": "model"},
        **{"tasks_path": "t", "attempts": 1, "limits": {"max_steps": 1, "max_tokens": 1, "seconds": 1.0}},
        **{"sampling": {}, "by_level": {}, "refused": [], "provenance": {}, "run": {}},
        "trials": [trial_],
        "figures": figures([trial_]),  # type: ignore[list-item]
    }
    (tmp_path / "a.json").write_text(json.dumps(value))
    damage(value)
    (tmp_path / "b.json").write_text(json.dumps(value))
    done = command_line.run("compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: b.json: ") and said in done.stderr
    assert command_line.run("compare", "a.json", "a.json", cwd=tmp_path).returncode == 0


def test_the_rows_never_replace_the_model(tmp_path: Path) -> None:
    """The line comes before any trial."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    found = trial("--model", model, "--export-solved", model, folder=tmp_path, wanted=1)
    assert "is an input of this command" in found.stderr
    assert model.read_bytes() == b"GGUF"
