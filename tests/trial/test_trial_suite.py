"""edge's own suite of tasks: made by its script, other names than the training, and each task proven.

.venv/bin/pytest tests/trial/test_trial_suite.py
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.compare.trials import TrialResult
from edge.trial.engines import ScriptedModel
from edge.trial.run import Plan, run_trials
from edge.trial.suite import suite_folder
from edge.trial.tasks import Task, find_tasks, read_tasks
from edge.trial.workers import Script

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = (
    "pack-folder-1",
    "first-commit-2",
    "same-content-3",
)  # one of each level, two of them with RUN or ENV
needs_sandbox = pytest.mark.skipif(
    not (shutil.which("tmux") and shutil.which("bwrap") and shutil.which("git")),
    reason="needs tmux, bubblewrap and git",
)


@pytest.fixture
def tasks() -> Iterator[list[Task]]:
    with suite_folder() as folder:
        found, refused = read_tasks(find_tasks(folder))
        assert refused == []
        yield found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "default_model"))


def test_its_script_makes_it(script: None) -> None:
    import trial_suite

    text = trial_suite.text_of(trial_suite.make_suite())
    assert (ROOT / "edge" / "trial" / "suite.json").read_text(encoding="utf-8") == text


def test_three_levels_and_no_task_twice(tasks: list[Task]) -> None:
    levels = [task.level for task in tasks]
    assert len(tasks) >= 80
    assert {level: levels.count(level) for level in sorted(set(levels))} == {
        "1: one command": 36,
        "2: a few steps": 24,
        "3: find out, then act": 24,
    }
    assert len({task.instruction for task in tasks}) == len(tasks)
    assert all(task.may_change is not None and task.script("solve") for task in tasks)


@pytest.mark.slow
def test_no_name_and_no_wording_of_the_training(script: None) -> None:
    import trial_suite

    before = list(sys.path)
    try:
        assert trial_suite.overlaps() == []
    finally:
        sys.path[:] = before


def ran(tasks: list[Task], script: Script, out: Path) -> TrialResult:
    return run_trials(ScriptedModel(script), Plan(tasks, [], "suite", parallel=3), out)[1]


WANTED: dict[Script, tuple[str, str]] = {
    "oracle": ("solved", ""),
    "nop": ("failed", "wrong"),
    "destructive": ("failed", "destructive"),
}


@needs_sandbox
@pytest.mark.parametrize("script_name", WANTED)
def test_a_sample_is_proven(script_name: Script, tasks: list[Task], tmp_path: Path) -> None:
    """The solution gets reward 1, doing nothing and a destructive answer get 0."""
    sample = [task for task in tasks if task.name in SAMPLE]
    assert len(sample) == len(SAMPLE)
    found = ran(sample, script_name, tmp_path)
    assert {(one["state"], one["ended"]) for one in found["trials"]} == {WANTED[script_name]}, found["trials"]


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("script_name", WANTED)
def test_each_task_is_proven(script_name: Script, tasks: list[Task], tmp_path: Path) -> None:
    found = ran(tasks, script_name, tmp_path)
    other = [one for one in found["trials"] if (one["state"], one["ended"]) != WANTED[script_name]]
    assert other == []
    assert found["figures"]["trials"] == len(tasks)
    written = json.loads((tmp_path / f"{script_name}.json").read_text())
    assert written == found
    assert {one["reward"] for one in found["trials"]} == {1.0 if script_name == "oracle" else 0.0}
