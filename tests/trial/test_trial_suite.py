"""edge's own suite of tasks: made by its script, other names than the training, and each task proven.

.venv/bin/pytest tests/trial/test_trial_suite.py
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import planted, state_of

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
def test_each_task_is_proven(
    script_name: Script, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: no file of this system changes around a run of all solutions, or of all destructive answers."""
    with planted(tmp_path, monkeypatch) as roots:
        before = {root: state_of(root) for root in roots}
        found = ran(tasks, script_name, tmp_path)
        assert {root: state_of(root) for root in roots} == before
    other = [one for one in found["trials"] if (one["state"], one["ended"]) != WANTED[script_name]]
    assert other == []
    assert found["figures"]["trials"] == len(tasks)
    written = json.loads((tmp_path / f"{script_name}.json").read_text())
    assert written == found
    assert {one["reward"] for one in found["trials"]} == {1.0 if script_name == "oracle" else 0.0}


_LISTED = """#!/bin/bash
cd /app
mkdir made
touch made/new
ls -la . made > listed
du -a --time made >> listed
test -z "$GIT_AUTHOR_NAME" || { git init -q && git commit -q --allow-empty -m x && git rev-parse HEAD >> listed; }
"""
_SEEN = """#!/bin/bash
sed '/^total\\|^$\\|:$/d' /app/listed > /tmp/lines
dates=$(grep -c 'Nov 14  2023' /tmp/lines)
commits=$(grep -c '^93c820fff417567e45b971deca077386265842ac$' /tmp/lines)
[ $((dates + commits)) = "$(wc -l < /tmp/lines)" ] && [ "$dates" -gt 7 ] && reward=1 || cat /tmp/lines
echo "${reward-0}" > /logs/verifier/reward.txt
"""


@needs_sandbox
@pytest.mark.parametrize("name", ["unpack-and-rename-1", "first-commit-1"])
def test_screens_show_one_date_and_one_commit(name: str, tasks: list[Task], tmp_path: Path) -> None:
    """Of files of the task, of a RUN, and of the answer: two runs of one model then see the same screens."""
    task = next(task for task in tasks if task.name == name)
    (task.folder / "solution" / "solve.sh").write_text(_LISTED)
    (task.folder / "tests" / "test.sh").write_text(_SEEN)
    (found,) = ran([task], "oracle", tmp_path)["trials"]
    assert found["state"] == "solved", found


PROGRAMS = "cat cmp cp cut do done export for git grep ls printf sed sha256sum sort tar test tr wc".split()


def test_no_check_starts_a_program_of_the_answer(tasks: list[Task]) -> None:
    """A check runs only programs of the system, by their names, and git only with settings of its own."""
    for task in tasks:
        text = (task.folder / "tests" / "check.sh").read_text()
        plain = re.sub(r"'[^']*'", "x", text.replace('"$(', "; ").replace("LC_ALL=C ", ""))
        words = {found[1] for found in re.finditer(r"(?:^|[;|]|\bdo )\s*([^\s;|]+)", plain, re.MULTILINE)}
        assert words - {"in"} <= set(PROGRAMS), (task.name, text)
        if "git" in words:
            assert text.startswith(
                "export GIT_DIR=/tmp/seen GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null "
            )


# Writes a good reward if anything starts it, in each form that counts.
_WRITES = (
    "cat > /app/evil <<'END'\n#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n"
    "echo '{\"reward\": 1}' > /logs/verifier/reward.json\nchmod 400 /logs/verifier/*\nEND\nchmod +x /app/evil\n"
)
_SIGNED = (
    "tree $(git write-tree)\nauthor a <a@b.c> 1 +0000\ncommitter a <a@b.c> 1 +0000\n"
    "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\nother"
)
CHEATS = {
    "first-commit-1": f"{_WRITES}git init -q\nmkdir hooks\ncp evil hooks/post-index-change\n"
    "for name in gpg.program core.fsmonitor core.pager diff.external; do git config $name /app/evil; done\n"
    "git config log.showSignature true\ngit config core.hooksPath /app/hooks\ngit config alias.log '!/app/evil'\n"
    f'git update-ref HEAD "$(printf "{_SIGNED}" | git hash-object -t commit -w --stdin)"',
    "missing-setting-2": f"{_WRITES}cp evil $(ls *.sh)",
    "pack-folder-1": "name=$(ls -d */ | tr -d /)\nmkdir -p /tmp/x/$name\n"
    "for file in $name/*; do ln -s /tests/files/$file /tmp/x/$file; done\ntar -czf @OUT@ -C /tmp/x $name",
    "copy-file-1": "ln -s @A@ @B@",
}


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_no_reward(name: str, tasks: list[Task], tmp_path: Path) -> None:
    task = next(task for task in tasks if task.name == name)
    names = re.findall(r"\w+\.(?:tar\.gz|txt)", task.instruction) or [""]
    text = CHEATS[name].replace("@OUT@", names[0]).replace("@A@", names[0]).replace("@B@", names[-1])
    (task.folder / "solution" / "solve.sh").write_text(f"#!/bin/bash\ncd /app\n{text}\n")
    (found,) = ran([task], "oracle", tmp_path)["trials"]
    assert (found["state"], found["reward"]) == ("failed", 0.0), found
