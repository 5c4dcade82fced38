"""The sandbox of a trial: the files of a task in it, and later the task's tests on the resulting files in a fresh one.

Both are the sandbox of `edge agent`: no network, no file of this system, limits. The folder /tests exists only in the
second one. What leaves the first one is the work folder alone: its home folder and /tmp are not kept.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import SandboxError
from edge.system.confined import PATH
from edge.system.folders import make_open_folder, remove_folder
from edge.terminal.check import BESIDE, HOME, WORK, Limits
from edge.terminal.memory import THIS_MACHINE
from edge.terminal.packed import Base
from edge.terminal.saved import saved_base
from edge.terminal.tmux import Terminal
from edge.trial.dockerfile import NotRunnableError
from edge.trial.lacking import missing_program, names
from edge.trial.made import BUILD, Files
from edge.trial.tasks import Task

if TYPE_CHECKING:
    from edge.terminal.sandbox import Beside, Sandbox

BUILD_SECONDS = 300  # for all RUN together
LINK_SECONDS = 60
_PATIENCE = 10.0  # seconds until the last process of a sandbox has ended
_LOGS = "/logs/verifier"
_OUT = f"{_LOGS}/test-stdout.txt"
# Removes links of the work folder that lead to the tests, to their results, or to what a test reads or writes: a test
# that compares a file with an expected one would find that the two agree.
_LINKS = rf"""#!/bin/bash
PATH={PATH}
find {WORK} -type l -print0 | while IFS= read -r -d '' link; do
  for target in "$(readlink -- "$link")" "$(readlink -m -- "$link")"; do
    case $target in
      /dev/null | /dev/zero | /dev/*random) ;;
      / | /home | {HOME} | {BESIDE} | {BESIDE}/* | /tests | /tests/* | /logs | /logs/* | \
      /proc | /proc/* | /dev | /dev/*)
        chmod u+rwx "${{link%/*}}"
        rm -f -- "$link"
        ;;
    esac
  done
done
"""
_SHOWN = 2000  # characters of the tests' output that a result keeps


@dataclass(frozen=True)
class Tested:
    """What the tests said. `reward`: None if there is none that Harbor would accept; `reason` then says why.

    `slow`: they did not end in time. `lacking`: a program that they need is not here.
    """

    reward: float | None
    reason: str = ""
    slow: bool = False
    lacking: bool = False
    output: str = ""


def _beside(
    task: Task,
    root: Path | None,
    files: Path | None,
    links: Mapping[str, str],
    more: Mapping[str, str],
    start: str = "",
) -> "Beside":
    from edge.terminal.sandbox import Beside

    start = start or task.environment.workdir
    if task.environment.root != WORK:
        links = {**links, task.environment.root: WORK}
    return Beside(files, links, start, {**task.environment.variables, **more}, exact=True, root=root)


@contextlib.contextmanager
def prepared(task: Task, files: Files, limits: Limits, solution: str | None = None) -> Iterator["Sandbox"]:
    """The sandbox of a trial, which a terminal starts. `solution`: a script of solution/ that it gets too."""
    from edge.terminal.sandbox import Sandbox

    links: dict[str, str] = {}
    if solution is not None:
        shutil.copytree(task.folder / "solution", files.beside / "solution", symlinks=True)
        (files.beside / "solution" / f"{solution}.sh").chmod(0o755)
        links["/solution"] = "solution"
    more = task.solution_variables if solution is not None else {}
    given = files.beside if links or task.environment.built else None
    with Sandbox.prepare(
        files.work, limits, files.saved, beside=_beside(task, files.root, given, links, more)
    ) as sandbox:
        yield sandbox


def build(task: Task, sandbox: "Sandbox", files: Files) -> Base:
    """Obey RUN in the running sandbox, and save the work folder. Returns what is in it.

    Raises NotRunnableError if a command fails, SandboxError.
    """
    if task.environment.built:
        status = sandbox.run(BUILD, BUILD_SECONDS, "/tmp/build.txt")
        if status:
            said = _text(sandbox.show("/tmp/build.txt")).strip().splitlines()
            raise NotRunnableError(f"RUN fails in the sandbox: {said[-1] if said else f'status {status}'}")
    sandbox.save(files.saved.work)
    shutil.copyfile(files.saved.work, built_path(files))
    return saved_base(files.saved.work, files.saved.key)


def built_path(files: Files) -> Path:
    """The archive of the work folder as `build` left it."""
    return files.work.with_name("built.tar")


def run_tests(task: Task, files: Files, limits: Limits) -> Tested:
    """Run the tests of a task on the saved work folder, in a fresh sandbox.

    They start in the work folder itself if the folder of WORKDIR is gone. Nothing in the sandbox can change /tests, and
    what they started is ended before the reward is read. Raises SandboxError, AgentError, OSError.
    """
    from edge.terminal.sandbox import Sandbox

    inside = task.environment.inside(task.environment.workdir) or "."
    there = inside == "." or ((item := after_state(files).get(inside)) is not None and item.kind == "folder")
    start = task.environment.workdir if there else WORK
    with _test_files(task) as folder:
        beside = _beside(task, files.root, folder / "beside", {"/logs": "logs"}, task.test_variables, start)
        beside = replace(beside, fixed=folder / "tests", fixed_at="/tests")
        with (
            Sandbox.prepare(files.work, limits, files.saved, beside=beside) as sandbox,
            Terminal.start(sandbox.argv, cwd=files.work, ready=sandbox.wait_ready),
        ):
            if sandbox.run(f"{BESIDE}/links", LINK_SECONDS, "/dev/null"):
                raise SandboxError("the links of the work folder cannot be checked before the tests")
            try:
                return _tested(task, sandbox, files.root)
            except SandboxError:
                trouble = (sandbox.trouble() or "") if has_ended(sandbox) else THIS_MACHINE
                if trouble.startswith(THIS_MACHINE):
                    raise
                return Tested(None, f"the sandbox ended during the tests: {trouble}")


@contextlib.contextmanager
def _test_files(task: Task) -> Iterator[Path]:
    """A folder with a copy of the tests that every user can read, and with what the sandbox of the tests gets too."""
    folder = make_open_folder("edge-tests-")
    try:
        tests = folder / "tests"
        shutil.copytree(task.folder / "tests", tests, symlinks=True)
        for place, _, names in os.walk(tests):
            Path(place).chmod(0o755)
            for path in (Path(place, name) for name in names):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o444)
        (tests / "test.sh").chmod(0o755)
        (folder / "beside" / "logs" / "verifier").mkdir(parents=True)
        (folder / "beside" / "links").write_text(_LINKS, encoding="utf-8")
        (folder / "beside" / "links").chmod(0o755)
        yield folder
    finally:
        remove_folder(folder)


def _tested(task: Task, sandbox: "Sandbox", root: Path | None) -> Tested:
    """Run the tests, end what they have started, and read the reward. Raises SandboxError."""
    began = time.monotonic()
    status = sandbox.run("/tests/test.sh", task.test_seconds, _OUT)
    late = time.monotonic() - began >= task.test_seconds
    ended = sandbox.end_others()
    output = _text(sandbox.show(_OUT))[-_SHOWN:]
    if late and status in (124, 137):  # tests can end with such a status themselves
        return Tested(None, f"the tests did not end in {task.test_seconds} s", slow=True, output=output)
    if not ended:
        return Tested(None, "programs that the tests started do not end", output=output)
    if 128 < status < 160:
        return Tested(None, f"the signal {status - 128} ended the tests", output=output)
    in_json, in_text = sandbox.show(f"{_LOGS}/reward.json"), sandbox.show(f"{_LOGS}/reward.txt")
    if names(task.folder / "tests", "reward.txt") and not names(task.folder / "tests", "reward.json"):
        in_json = None  # no test wrote it
    reward, reason = read_reward(in_json, in_text)
    if (reward is None or reward < 1) and (missing := missing_program(task, output, root)):
        return Tested(None, f"the tests need {missing}, which is not here", lacking=True, output=output)
    return Tested(reward, reason, output=output)


def read_reward(in_json: bytes | None, in_text: bytes | None) -> tuple[float | None, str]:
    """The reward in reward.json, or else in reward.txt, by Harbor's rules (version 0.25); or None and why.

    reward.json has numbers by name: their `reward`, or the only one. Numbers must be finite.
    """
    try:
        if in_json is not None:
            if not in_json.strip():
                return None, "the tests wrote an empty reward.json"
            values = json.loads(in_json)
            named = values if isinstance(values, dict) else {"reward": values}
            numbers = {name: float(value) for name, value in named.items() if isinstance(value, int | float)}
            if len(numbers) < len(named) or not all(map(math.isfinite, numbers.values())):
                return None, "the tests wrote a reward.json with other values than finite numbers"
            if "reward" not in numbers and len(numbers) != 1:
                return None, "the tests wrote a reward.json without reward"
            return numbers.get("reward", next(iter(numbers.values()))), ""
        if in_text is None:
            return None, "the tests wrote no reward"
        reward = float(in_text.decode())
        return (reward, "") if math.isfinite(reward) else (None, "the tests wrote no finite reward")
    except (ValueError, OverflowError, RecursionError):
        return None, "the tests wrote a reward that is not a number"


def harm(before: Base, after: Base, may_change: tuple[str, ...]) -> str:
    """What was there before, may not change, and is gone or different; empty if nothing is."""
    for path, item in before.items():
        if after.get(path) == item or any(fnmatchcase(path, glob) for glob in may_change):
            continue
        return f"{'changed' if path in after else 'removed'} {path}"
    return ""


def after_state(files: Files) -> Base:
    """What is in the work folder as it was saved last. Raises SandboxError."""
    return saved_base(files.saved.work, files.saved.key)


def has_ended(sandbox: "Sandbox") -> bool:
    """Whether all processes of a sandbox have ended. Its pipes close a moment before the last process ends."""
    end = time.monotonic() + _PATIENCE
    while sandbox.trouble() is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def check_sandbox(root: Path | None = None) -> None:
    """Start a sandbox and end it. Raises SandboxError or AgentError if this system cannot run trials."""
    from edge.terminal.sandbox import Beside, Sandbox

    with (
        tempfile.TemporaryDirectory(prefix="edge-trial-", ignore_cleanup_errors=True) as place,
        Sandbox.prepare(Path(place), beside=Beside(root=root)) as sandbox,
        Terminal.start(sandbox.argv, cwd=place, ready=sandbox.wait_ready),
    ):
        pass
