"""The JSON of `edge trial`: the trials of one model, their figures, and where they come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from edge.errors import ResultError
from edge.replay.shards import ShardFields
from edge.replay.stored_result import Provenance
from edge.system.typed_json import Index, Name, Rule, check

VERSION = 1
Share = Annotated[float, Rule("from 0 to 1", lambda value: 0 <= value <= 1, {"minimum": 0, "maximum": 1})]
State = Literal["solved", "failed", "not run", "wall"]
STATES: tuple[State, ...] = ("solved", "failed", "not run", "wall")
ENDS = ("wrong", "gave up", "limit", "destructive")
"""Why a trial failed."""


class Trial(TypedDict):
    """One attempt at one task."""

    task: Name
    """Name of the task: that of its folder."""
    task_sha256: str
    """SHA-256 of the names and contents of the task's files."""
    level: str
    """Level of the task; empty if it has none."""
    attempt: Index
    """Number of the attempt, from 1."""
    seed: int | None
    """Seed of its sampling; null for none."""
    state: str
    """solved, failed, not run (it says nothing about the model) or wall (a limit of wall time ended it)."""
    ended: str
    """Why it failed: wrong, gave up, limit or destructive; empty unless it failed."""
    reason: str
    """More about the end, in one line."""
    outcome: str
    """How the session ended; empty if there was none."""
    reward: float | None
    """What the task's tests wrote; null if they did not run."""
    steps: Index
    """Answers of the model."""
    prompt_tokens: Index
    """Tokens of all prompts of the session."""
    completion_tokens: Index
    """Tokens of all answers."""
    seconds: float
    """Seconds of the whole trial."""
    record: str | None
    """The session record, relative to the result; null if there is none."""
    screens: list[str]
    """The beginning of the SHA-256 of each text that the model was shown."""


class Interval(TypedDict):
    """A figure with its 95 % interval."""

    value: Share
    """The figure."""
    low: Share
    """Lower bound."""
    high: Share
    """Upper bound."""


class PassFigures(TypedDict):
    """Figures of k attempts at a task."""

    k: Index
    """Number of attempts."""
    any: Interval
    """pass@k: the probability that at least one of k attempts solves a task."""
    all: Interval
    """pass^k: the probability that all of k attempts solve it."""


class TrialFigures(TypedDict):
    """The figures of some trials. Trials that did not run or met a limit of wall time are only counted."""

    tasks: Index
    """Number of tasks with a trial that counts."""
    trials: Index
    """Number of trials that count: solved and failed ones."""
    solved: Index
    """Number of solved trials."""
    not_run: Index
    """Trials that could not run."""
    wall: Index
    """Trials that a limit of wall time ended."""
    solved_share: Interval | None
    """Share of the trials that are solved; null without trials that count."""
    interval: str
    """wilson (one attempt a task) or tasks (whole tasks resampled)."""
    passes: list[PassFigures]
    """pass@k and pass^k, for each k from 2 to the number of attempts that every task has."""
    steps_per_solved: float | None
    """Mean steps of a solved trial."""
    tokens_per_solved: float | None
    """Mean tokens that the model wrote in a solved trial."""
    tokens_for_each_solved: float | None
    """Tokens that the model wrote in all trials that count, for each solved one."""
    ended: dict[str, int]
    """Number of failed trials by why they failed."""


class RefusedTask(TypedDict):
    """A task that cannot run here."""

    task: Name
    """Name of the task."""
    reason: str
    """Why, in one line."""


class TrialLimits(TypedDict):
    """What ends a trial."""

    max_steps: Index
    """Maximum number of answers."""
    max_tokens: Index
    """Maximum number of tokens of an answer."""
    seconds: float
    """Limit of wall time for a session; a trial that reaches it does not count."""


class TrialResult(TypedDict):
    """The result of `edge trial` for one model."""

    trials_version: int
    """Version of this format. No other JSON of edge has this field."""
    timestamp: str
    """When it was written (UTC, ISO 8601)."""
    model: str
    """Name of the model for people."""
    model_path: str | None
    """The model as the command named it; null for a script."""
    agent: str
    """model, oracle, nop or destructive."""
    tasks_path: str
    """The folder of the tasks."""
    attempts: Index
    """Attempts at each task."""
    limits: TrialLimits
    """What ends a trial."""
    sampling: Mapping[str, object]
    """Settings of the answers."""
    figures: TrialFigures
    """The figures over all trials."""
    by_level: dict[str, TrialFigures]
    """The figures of each level of tasks."""
    refused: list[RefusedTask]
    """The tasks that cannot run here."""
    trials: list[Trial]
    """One entry for each attempt."""
    provenance: Provenance
    """Where the result comes from."""
    shard: NotRequired[ShardFields]
    """Which part of the trials it has (`--shard`), which are its rows; absent in a whole result."""
    run: dict[str, object]
    """All that the trials depend on; without --force, edge does not replace a file of another run."""


def is_trials(path: Path | str) -> bool:
    """Whether a file is a result of `edge trial`: JSON with its version. False for a file that cannot be read."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "trials_version" in value


def read_trials(path: Path | str) -> TrialResult:
    """Read a result of `edge trial`. Raises ResultError with one line that names the file and what is wrong."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ResultError(f"{path}: is not JSON") from None
    if not isinstance(value, dict) or "trials_version" not in value:
        raise ResultError(f"{path}: is not a result of `edge trial`; results of one kind compare")
    result = check(value, TrialResult, f"{path}", ResultError)
    if result["trials_version"] > VERSION:
        raise ResultError(
            f"{path}: has version {result['trials_version']} of the format; this edge reads up to {VERSION}: "
            "update edge"
        )
    seen = set()
    for trial in result["trials"]:
        check_trial(trial, f"{path}")
        key = trial["task"], trial["attempt"]
        if key in seen:
            raise ResultError(f"{path}: has attempt {key[1]} of {key[0]} twice")
        seen.add(key)
    return result


def check_trial(value: object, where: str) -> Trial:
    """One trial as edge wrote it. Raises ResultError that begins with `where`."""
    trial = check(value, Trial, where, ResultError)
    if trial["state"] not in STATES or (trial["state"] == "failed") != (trial["ended"] in ENDS):
        raise ResultError(f"{where}: the state of {trial['task']} is {trial['state']}, {trial['ended']}")
    return trial
