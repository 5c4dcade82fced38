"""One trial: a session on a task in the sandbox, then the task's tests on the resulting files in a fresh one."""

import contextlib
import hashlib
import secrets
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edge.agent.gate import open_gate
from edge.agent.kept import archive_path, first_path
from edge.agent.loop import Agent, Outcome
from edge.agent.loop import Limits as SessionLimits
from edge.agent.record import ModelFacts, Record, SessionFacts
from edge.agent.workplace import open_workplace
from edge.compare.trials import Trial
from edge.errors import AgentError, EdgeError, SandboxError
from edge.terminal.check import Limits
from edge.terminal.packed import Base
from edge.terminal.saved import Saved
from edge.terminal.tmux import Terminal
from edge.trial.dockerfile import NotRunnableError
from edge.trial.made import Files, make_files
from edge.trial.place import (
    Tested,
    after_state,
    build,
    built_path,
    harm,
    has_ended,
    prepared,
    run_tests,
)
from edge.trial.tasks import Task
from edge.trial.workers import SCRIPTS, Counted, Script

if TYPE_CHECKING:
    from edge.terminal.sandbox import Sandbox

SCRIPT_SECONDS = 300
PATIENCE = 10.0
"""Seconds that a command may run before the model sees the screen, whatever duration it gave. A result must not depend
on the speed of the machine."""


@dataclass(frozen=True)
class Attempt:
    """What is tried: a task, the number of the attempt, and the seed of its answers."""

    task: Task
    number: int
    seed: int | None = None

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.task.name}.{self.number}"


@dataclass(frozen=True)
class Setting:
    """What the trials of a run share. `records`: the folder of the session records. `root`: as in `Files`."""

    records: Path
    limits: SessionLimits
    sandbox: Limits = field(default_factory=Limits)
    template: str | None = None
    model: ModelFacts = field(default_factory=lambda: cast(ModelFacts, {}))
    root: Path | None = None


@dataclass
class _Seen:
    """What a trial has shown so far."""

    outcome: str = ""
    failure: str = ""
    record: str | None = None
    screens: list[str] = field(default_factory=list)
    harm: str = ""


def try_task(attempt: Attempt, setting: Setting, worker: Counted | Script) -> Trial:
    """One trial. What cannot run becomes a trial with the state "not run" and the reason.

    Raises BackendError if the server of a model is lost, KeyboardInterrupt; OSError if the disk is full.
    """
    began, seen = time.monotonic(), _Seen()
    tested = Tested(None)
    try:
        with tempfile.TemporaryDirectory(prefix="edge-trial-", ignore_cleanup_errors=True) as place:
            tested = _tried(attempt, setting, worker, Path(place), seen)
    except (NotRunnableError, SandboxError, AgentError) as error:
        tested = Tested(None, str(EdgeError(str(error))))
    counts = worker if isinstance(worker, Counted) else None
    if counts is not None and counts.lost is not None:
        raise counts.lost
    state, ended, reason = _verdict(tested, seen, counts)
    return {
        "task": attempt.task.name,
        "task_sha256": attempt.task.sha256,
        "level": attempt.task.level,
        "attempt": attempt.number,
        "seed": attempt.seed,
        "state": state,
        "ended": ended,
        "reason": reason,
        "outcome": seen.outcome,
        "reward": tested.reward,
        "steps": counts.answers if counts else 0,
        "prompt_tokens": counts.prompt_tokens if counts else 0,
        "completion_tokens": counts.completion_tokens if counts else 0,
        "seconds": round(time.monotonic() - began, 2),
        "record": seen.record,
        "screens": seen.screens,
    }


def _verdict(tested: Tested, seen: _Seen, counts: Counted | None) -> tuple[str, str, str]:
    """The state of a trial, why it failed, and more about it."""
    if seen.outcome == "time" or tested.slow:
        return "wall", "", tested.reason or "the session met its limit of wall time"
    if counts is not None and counts.broken:
        return "not run", "", counts.broken
    if tested.reward is None:
        return "not run", "", tested.reason
    if tested.reward >= 1:
        return "solved", "", ""
    if seen.harm:
        return "failed", "destructive", seen.harm
    if seen.outcome == "steps" or (seen.outcome == "failed" and counts is not None and counts.full):
        return "failed", "limit", seen.failure
    if seen.outcome in ("complete", ""):
        return "failed", "wrong", tested.output.strip().split("\n")[-1][:200]
    return "failed", "gave up", seen.failure or seen.outcome


def _tried(attempt: Attempt, setting: Setting, worker: Counted | Script, place: Path, seen: _Seen) -> Tested:
    """Work on the task, then test what there is."""
    task = attempt.task
    with contextlib.ExitStack() as stack:
        record = _record(attempt, setting, worker, place)
        if record is not None:
            stack.enter_context(record)
        path = place / "script" if record is None else record.path
        for kept in (archive_path(path), first_path(path)):
            kept.unlink(missing_ok=True)
            stack.callback(kept.unlink, missing_ok=True)
        (place / "files").mkdir()
        files = make_files(
            task,
            place / "files",
            Saved(archive_path(path), first_path(path), secrets.token_bytes(32)),
            setting.root,
        )
        if isinstance(worker, Counted):
            assert record is not None
            before = _session(task, setting, worker, files, record, seen)
        else:
            before = _script(task, setting, worker, files)
        if task.may_change is not None:
            seen.harm = harm(before, after_state(files), task.may_change)
        tested = run_tests(task, files, setting.sandbox)
        if tested.reward is None and not tested.slow and not tested.lacking:
            untouched = replace(files, saved=replace(files.saved, work=built_path(files)))
            if run_tests(task, untouched, setting.sandbox).reward is not None:
                # On the untouched files the tests write a reward: what the answer left keeps them from it.
                return replace(tested, reward=0.0, output=tested.reason)
        return tested


def _record(attempt: Attempt, setting: Setting, worker: Counted | Script, place: Path) -> Record | None:
    """A new record of the session of a model; None for a script."""
    if not isinstance(worker, Counted):
        return None
    path = setting.records / f"{attempt.name}.jsonl"
    path.unlink(missing_ok=True)  # of a trial that was stopped
    facts = {**setting.model, "task": attempt.task.instruction, "workdir": str(place), "sandbox": True}
    return Record.create(path, cast(SessionFacts, facts))


def _session(
    task: Task, setting: Setting, worker: Counted, files: Files, record: Record, seen: _Seen
) -> Base:
    """Let a model work. Returns what was in the work folder before."""
    outcome: Outcome = "ended"
    with (
        prepared(task, files, setting.sandbox) as sandbox,
        open_workplace(files.work, sandbox, line_by_line=False, say=_nothing, patience=PATIENCE) as workplace,
    ):
        before = build(task, sandbox, files)
        agent = Agent(
            worker, workplace, open_gate, record, _nothing, limits=setting.limits, template=setting.template
        )
        try:
            outcome = agent.run()
        except SandboxError as error:
            seen.failure = str(error)
        except AgentError as error:  # the terminal has ended, with the sandbox in it
            seen.failure = str(error)
            if not has_ended(sandbox):
                raise
        except EdgeError as error:  # the first answer failed
            if worker.lost is not None or not (worker.full or worker.broken):
                raise worker.lost or error from None
            outcome, seen.failure = "failed", str(error)
        seen.outcome, seen.failure = outcome, seen.failure or agent.failure
        if record.rows:
            seen.record = record.path.name
            seen.screens = [_digest(row["messages"][-1]["content"]) for row in record.rows]
    if outcome == "interrupted":
        raise KeyboardInterrupt
    return before


def _script(task: Task, setting: Setting, script: Script, files: Files) -> Base:
    """Run a script of the task. Returns what was in the work folder before. Raises NotRunnableError."""
    name = SCRIPTS.get(script)
    if name is not None and task.script(name) is None:
        raise NotRunnableError(f"it has no solution/{name}.sh")
    with (
        prepared(task, files, setting.sandbox, name) as sandbox,
        Terminal.start(sandbox.argv, cwd=files.work, ready=sandbox.wait_ready),
    ):
        before = build(task, sandbox, files)
        if name is not None:
            _run_script(sandbox, f"/solution/{name}.sh", files)
    return before


def _run_script(sandbox: "Sandbox", path: str, files: Files) -> None:
    try:
        sandbox.run(path, SCRIPT_SECONDS, "/tmp/solution.txt")
        sandbox.save(files.saved.work)
    except SandboxError:
        if not has_ended(sandbox):
            raise  # a script that ends the sandbox leaves the last saved files


def _nothing(what: object) -> None:
    """Shows nothing: nobody watches."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
