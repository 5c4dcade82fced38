"""All trials of one model: which ones, in which order, the ones that are done already, the result.

Each finished trial is a small JSON file in the folder of the session records until the result is written. The file gets
its name when it is whole, so after a kill -9 the same command does only what is missing.
"""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from edge.agent.loop import Limits as SessionLimits
from edge.compare.trial_figures import figures, levels
from edge.compare.trials import VERSION, Trial, TrialResult, check_trial, read_trials
from edge.errors import BackendError, EdgeError, Interrupted, ResultError
from edge.replay.provenance import provenance
from edge.replay.shards import Shard, ShardFields
from edge.system.locks import sole_user
from edge.system.outputs import Run, check_replaced, differences, named_run
from edge.system.places import write_json
from edge.system.text import counted
from edge.terminal.check import Limits
from edge.trial.attempt import Attempt, Setting, try_task
from edge.trial.engines import Engine, LocalModel, ScriptedModel, Workers
from edge.trial.outputs import check_apart
from edge.trial.root import Root
from edge.trial.tasks import Refused, Task

_RUN = "run.json"


@dataclass(frozen=True)
class Plan:
    """What is tried, and how. `seed`: base of the seeds of all trials. `shown`: the tasks' folder, as it was named."""

    tasks: Sequence[Task]
    refused: Sequence[Refused]
    shown: str
    attempts: int = 1
    seed: int = 0
    limits: SessionLimits = field(default_factory=SessionLimits)
    max_tokens: int = 1024
    sandbox: Limits = field(default_factory=Limits)
    parallel: int = 1
    template: str | None = None
    root: Root | None = None
    shard: Shard | None = None
    inputs: Sequence[Path | str | None] = ()
    """Other files that the trials read. No output replaces one of them."""

    def chosen(self, sampled: bool) -> list[Attempt]:
        """The attempts of the shard, those of a task one after another. `sampled`: each has its own seed.

        Raises EdgeError if there are fewer tasks than shards.
        """
        return [
            Attempt(task, number, self._seed(task, number) if sampled else None)
            for task, number in self._of_shard()[0]
        ]

    def shard_fields(self) -> ShardFields | None:
        """The field `shard` of the result; None for a whole one."""
        return None if self.shard is None else self.shard.fields(*self._of_shard()[1:])

    def _of_shard(self) -> tuple[list[tuple[Task, int]], list[int], int]:
        """Task and number of each attempt of the shard, their places among all attempts, and how many these are."""
        every = [(task, number) for task in self.tasks for number in range(1, self.attempts + 1)]
        names = [task.name for task, _ in every]
        places = list(range(len(every))) if self.shard is None else self.shard.places(names, self.shown)
        return [every[place] for place in places], places, len(every)

    def _seed(self, task: Task, number: int) -> int:
        return random.Random(f"{self.seed} {task.name} {number}").randrange(1 << 31)

    def identity(self, engine: Engine) -> dict[str, object]:
        """All that the trials depend on."""
        return {
            **engine.identity(),
            "tasks": {task.name: task.sha256 for task in self.tasks},
            "refused": {one.name: one.reason for one in self.refused},
            "attempts": self.attempts,
            "seed": self.seed,
            "max_steps": self.limits.steps,
            "max_tokens": self.max_tokens,
            "seconds": self.limits.seconds,
            "memory": self.sandbox.memory,
            "disk": self.sandbox.disk,
            "template": self.template,
            "parallel": self.parallel,
            **({} if self.root is None else {"root": self.root.sha256}),
            **({} if self.shard is None else {"shard": str(self.shard)}),
        }


def run_trials(
    engine: Engine,
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[Path, TrialResult]:
    """Run all trials of one model, and write OUT/NAME.json and the session records in OUT/NAME.

    What an earlier run of the same command, maybe with fewer attempts, finished is not done again. Returns the path of
    the result, and the result. Raises ResultError, ModelFileError, BackendError, SandboxError if no sandbox can start,
    and Interrupted.
    """
    tell = say or (lambda text: None)
    result_path, folder = out / f"{engine.name}.json", out / engine.name
    run = stored_form(plan.identity(engine))
    model = engine.path if isinstance(engine, LocalModel) else None
    check_apart(result_path, plan.tasks, [model, *plan.inputs])
    check_replaced(result_path, run, lambda path: _stored_run(path, run), kind="a result", force=force)
    if not force and not (folder / _RUN).exists() and _is_of(result_path, run):
        tell(f"{result_path}: is already complete, no trial is run again; --force runs them again")
        return result_path, read_trials(result_path)
    with _journal(folder, run, force=force) as done:
        if not force and _is_of(result_path, run, fewer=True):
            done.update({(one["task"], one["attempt"]): one for one in read_trials(result_path)["trials"]})
        todo = [
            one
            for one in plan.chosen(sampled=not isinstance(engine, ScriptedModel))
            if (one.task.name, one.number) not in done
        ]
        if done:
            tell(f"{counted(len(done), 'trial')} of {len(done) + len(todo)} were done before")
        try:
            if todo:
                _try_all(engine, plan, folder, todo, done, tell)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted after {_kept(done, folder)}") from None
        except BackendError as error:
            raise BackendError(f"{error}; {_kept(done, folder)}") from None
        trials = [done[one.task.name, one.number] for one in plan.chosen(sampled=False)]
        result = _result(engine, plan, run, trials)
        write_json(result_path, result)
        for path in folder.glob("*.trial.json"):
            path.unlink()
        (folder / _RUN).unlink()
    return result_path, result


def stored_form(run: Run) -> dict[str, Any]:
    """A run as JSON gives it back."""
    return cast(dict[str, Any], json.loads(json.dumps(run)))


def _kept(done: dict[tuple[str, int], Trial], folder: Path) -> str:
    return f"{counted(len(done), 'trial')}, which are kept in {folder}; run the same command again to resume"


def _try_all(
    engine: Engine,
    plan: Plan,
    folder: Path,
    todo: Sequence[Attempt],
    done: dict[tuple[str, int], Trial],
    tell: Callable[[str], None],
) -> None:
    """Try what is missing, and keep each trial when it ends."""
    total = len(done) + len(todo)
    root = None if plan.root is None else plan.root.folder
    setting = Setting(folder, plan.limits, plan.sandbox, plan.template, engine.facts(), root)

    def keep(attempt: Attempt, trial: Trial) -> None:
        trial["record"] = None if trial["record"] is None else f"{folder.name}/{trial['record']}"
        write_json(folder / f"{attempt.name}.trial.json", trial)
        done[attempt.task.name, attempt.number] = trial
        ended = f"{trial['state']}{', ' * bool(trial['ended'])}{trial['ended']}"
        why = f": {trial['reason']}" if trial["reason"] else ""
        tell(f"{len(done)}/{total} {attempt.name}: {ended}{why} ({trial['seconds']:.1f} s)")

    with engine.open(tell) as workers:
        if plan.parallel == 1:
            for attempt in todo:
                keep(attempt, try_task(attempt, setting, workers(attempt.seed)))
        else:
            _in_parallel(todo, setting, workers, plan.parallel, keep)


def _in_parallel(
    todo: Sequence[Attempt],
    setting: Setting,
    workers: Workers,
    parallel: int,
    keep: Callable[[Attempt, Trial], None],
) -> None:
    """Several trials at a time. After an error no further one begins."""
    waiting = iter(todo)
    with ThreadPoolExecutor(parallel) as pool:
        running: dict[Future[Trial], Attempt] = {}

        def begin(count: int) -> None:
            for attempt in islice(waiting, count):
                running[pool.submit(try_task, attempt, setting, workers(attempt.seed))] = attempt

        begin(parallel)
        try:
            while running:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    keep(running.pop(future), future.result())
                begin(len(ended))
        finally:
            for future in running:
                future.cancel()


def _stored_run(path: Path, run: Run) -> Run | None:
    """The run of a result. Further attempts continue it, so fewer attempts make no other run. Raises ValueError."""
    before = named_run(path, "trials_version")
    return None if before is None else _continued(before, run)


def _continued(before: Run, run: Run) -> Run:
    attempts, now = before.get("attempts"), run["attempts"]
    fewer = isinstance(attempts, int) and isinstance(now, int) and attempts < now
    return {**before, "attempts": now} if fewer else before


def _is_of(path: Path, run: Run, *, fewer: bool = False) -> bool:
    """Whether a result is there and of exactly this run; `fewer`: of this run with fewer attempts."""
    with contextlib.suppress(EdgeError, OSError):
        before = read_trials(path)["run"]
        return bool(differences(before, run)) == fewer and not differences(_continued(before, run), run)
    return False


@contextlib.contextmanager
def _journal(folder: Path, run: Run, *, force: bool) -> Iterator[dict[tuple[str, int], Trial]]:
    """The finished trials of this run in its folder, which no other process may use. Raises ResultError."""
    with sole_user(folder, "edge trial"):
        yield _begin(folder, run, force=force)


def _begin(folder: Path, run: Run, *, force: bool) -> dict[tuple[str, int], Trial]:
    place = folder / _RUN
    before = _read(place)
    if place.exists() and not force:
        changes = differences(_continued(before, run) if isinstance(before, dict) else {}, run)
        if changes:
            raise ResultError(
                f"{folder}: holds trials of another run ({changes}); repeat the earlier command to continue it, choose "
                "another --out, or start again with --force"
            )
    elif before is not None or force:
        for path in folder.glob("*.trial.json"):
            path.unlink()
    write_json(place, run)
    done: dict[tuple[str, int], Trial] = {}
    for path in sorted(folder.glob("*.trial.json")):
        trial = check_trial(_read(path), f"{path}")
        done[trial["task"], trial["attempt"]] = trial
    return done


def _read(path: Path) -> object:
    """The JSON value in a file; None if there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _result(engine: Engine, plan: Plan, run: Run, trials: list[Trial]) -> TrialResult:
    shard = plan.shard_fields()
    return {
        "trials_version": VERSION,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": engine.label,
        "model_path": engine.given,
        "agent": engine.script if isinstance(engine, ScriptedModel) else "model",
        "tasks_path": plan.shown,
        "attempts": plan.attempts,
        "limits": {
            "max_steps": plan.limits.steps,
            "max_tokens": plan.max_tokens,
            "seconds": plan.limits.seconds,
        },
        "sampling": {**engine.sampling, "seed": plan.seed},
        "figures": figures(trials),
        "by_level": levels(trials),
        "refused": [{"task": one.name, "reason": one.reason} for one in plan.refused],
        "trials": trials,
        "provenance": provenance(engine.provenance()),
        **({} if shard is None else {"shard": shard}),  # type: ignore[typeddict-item]
        "run": dict(run),
    }
