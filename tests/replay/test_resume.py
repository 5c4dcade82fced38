"""`edge eval` that is killed, interrupted and started again: nothing that was done is lost or done twice.

pytest tests/replay/test_resume.py
"""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import command_line
import pytest

from edge.replay.journal import Journal
from edge.replay.rows import step_key
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

ROWS = 80
ARGUMENTS = {"--limit": ROWS, "--max-tokens": 48, "--parallel": 1, "--threads": 1}
OF_ONE_RUN = {"timestamp", "load_time_sec", "gen_time_sec", "avg_sec_per_step", "engine"}


class Whole(NamedTuple):
    """An evaluation that nothing disturbed."""

    result: dict[str, Any]
    began: float  # seconds to the first finished step
    each: float  # seconds for each further one


class Interrupted(NamedTuple):
    """What Ctrl-C left of it."""

    code: int
    said: str
    left: list[str]
    journal: bytes


def start(model: Path, out: Path, **changed: object) -> command_line.Started:
    options = ARGUMENTS | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return command_line.start(
        *("eval", "--quiet", "--model", model, "--replay", embedded_rows(), "--out", out),
        *(item for option in options.items() for item in option),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(model: Path, out: Path, **changed: object) -> tuple[int, str]:
    """The exit code of a run that goes to its end, and what it said."""
    with start(model, out, **changed) as process:
        said = process.communicate(timeout=300)[1]
    return process.returncode, said


def journal_of(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


def whole_lines(out: Path) -> bytes:
    try:
        data = journal_of(out).read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def steps_in(lines: bytes) -> int:
    return max(0, lines.count(b"\n") - 1)


def wait_for(process: command_line.Started, out: Path, steps: int, seconds: float = 300.0) -> None:
    """Until so many steps are in the journal; for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while steps_in(whole_lines(out)) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def steady(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in OF_ONE_RUN}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "result.json"
    times = []
    with start(tiny_q4, out) as process:
        launched = time.monotonic()
        for steps in (1, ROWS // 2):
            wait_for(process, out, steps)
            times.append(time.monotonic() - launched)
        assert process.poll() is None, process.communicate()
        assert process.wait(timeout=300) == 0
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    return Whole(read(out), times[0], (times[1] - times[0]) / (ROWS // 2 - 1))


@pytest.fixture(scope="module")
def interrupted(tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    out = tmp_path_factory.mktemp("interrupted") / "result.json"
    with start(tiny_q4, out) as process:
        wait_for(process, out, 5)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    left = sorted(path.name for path in out.parent.iterdir())
    return Interrupted(process.returncode, said, left, whole_lines(out))


def test_kill_9_at_twenty_moments(tiny_q4: Path, whole: Whole, tmp_path: Path) -> None:
    """Random moments all over a run's length, each in a run that goes on with what the one before has left.

    A moment is a part of the time before a run's first step, or some more steps than there were and a part of the
    next one: never a time since the start, which a machine that changes its pace would turn into another moment.
    """
    out = tmp_path / "result.json"
    rng = random.Random(20)
    lines = b""
    grew = 0
    more_steps = [0] * 8 + [rng.randint(1, 3) for _ in range(12)]
    rng.shuffle(more_steps)
    for more in more_steps:
        part, done = rng.random(), steps_in(lines)
        with start(tiny_q4, out) as process:
            wait_for(process, out, done + more)
            wait_for(process, out, done + more + 1, part * (whole.each if more else whole.began))
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.communicate()
        now = whole_lines(out)
        if steps_in(lines):  # without a step the journal is begun anew
            assert now.startswith(lines)
        assert steps_in(now) >= done + more
        grew += len(now) > len(lines) > 0
        lines = now
        assert not out.exists()
    assert grew >= 11
    steps = [json.loads(line)["step"] for line in lines.splitlines()[1:]]
    done_keys = set(map(step_key, steps))
    assert sum(more_steps) <= len(steps) == len(done_keys) < ROWS

    assert finish(tiny_q4, out)[0] == 0
    result = read(out)
    assert steady(result) == steady(whole.result)
    fresh = [step for step in result["per_step"] if step_key(step) not in done_keys]
    assert result["engine"]["completion_tokens"] == sum(step["completion_tokens"] for step in fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_ctrl_c_says_how_far_it_came_and_how_to_go_on(interrupted: Interrupted) -> None:
    steps = steps_in(interrupted.journal)
    assert interrupted.code == 130
    assert 5 <= steps < ROWS
    assert f"interrupted after {steps} of {ROWS} steps" in interrupted.said
    assert "same command" in interrupted.said and "Traceback" not in interrupted.said
    assert interrupted.left == ["result.json.journal"]


def test_a_torn_line_is_dropped_and_the_rest_goes_on(
    tiny_q4: Path, whole: Whole, interrupted: Interrupted, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    journal_of(out).write_bytes(interrupted.journal[:-9])
    assert finish(tiny_q4, out)[0] == 0
    assert steady(read(out)) == steady(whole.result)
    kept = {step_key(json.loads(line)["step"]) for line in interrupted.journal.splitlines()[1:-1]}
    fresh = [step for step in read(out)["per_step"] if step_key(step) not in kept]
    assert read(out)["engine"]["completion_tokens"] == sum(step["completion_tokens"] for step in fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_killed_after_the_last_step(
    tiny_q4: Path, whole: Whole, interrupted: Interrupted, tmp_path: Path
) -> None:
    """Nothing is left to answer: the result alone is to be written."""
    out = tmp_path / "result.json"
    journal_of(out).write_bytes(interrupted.journal)
    identity = json.loads(interrupted.journal.splitlines()[0])["run"]
    with Journal.open(journal_of(out), identity) as journal:
        for step in whole.result["per_step"]:
            if step_key(step) not in journal.done:
                journal.append(step)
    assert finish(tiny_q4, out)[0] == 0
    assert steady(read(out)) == steady(whole.result)
    assert read(out)["engine"]["completion_tokens"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "changed", [{"max_tokens": 32}, {"limit": 30}, {"temperature": 0.5}, {"model": None}]
)
def test_other_arguments_rows_or_model_are_refused(
    changed: dict[str, Any], tiny_q4: Path, tiny_bf16: Path, interrupted: Interrupted, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    journal_of(out).write_bytes(interrupted.journal)
    model = tiny_q4
    if "model" in changed:  # another file under the same name
        changed, model = {}, tmp_path / "model" / tiny_q4.name
        model.parent.mkdir()
        shutil.copy(tiny_bf16, model)
    code, said = finish(model, out, **changed)
    assert code == 1
    assert len(said.splitlines()) == 1 and said.startswith("error: "), said
    assert "result.json.journal: holds " in said and " of another evaluation (" in said
    for name, value in changed.items():
        if name != "limit":  # known by its rows
            assert f"--{name.replace('_', '-')} was " in said and f"is {value}" in said
    assert journal_of(out).read_bytes() == interrupted.journal and not out.exists()
