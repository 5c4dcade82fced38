"""The figures of trials: solved share, pass@k and pass^k with intervals, steps and tokens, why trials failed.

docs/trials.md explains the figures.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge.compare.intervals import interval, resampled_means, wilson
from edge.compare.stated import wrong_figure
from edge.compare.trials import (
    ENDS,
    Interval,
    PassFigures,
    Trial,
    TrialFigures,
    TrialResult,
    read_trials,
)
from edge.errors import ResultError

_CLOSE = 1e-3  # a bootstrap can round otherwise on another machine


def by_task(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials that count, by task: solved and failed ones."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial["state"] in ("solved", "failed"):
            found.setdefault(trial["task"], []).append(trial)
    return found


def figures(trials: Sequence[Trial]) -> TrialFigures:
    """The figures of some trials."""
    tasks = by_task(trials)
    counted = [trial for group in tasks.values() for trial in group]
    solved = [trial for trial in counted if trial["state"] == "solved"]
    states = Counter(trial["state"] for trial in trials)
    once = all(len(group) == 1 for group in tasks.values())
    written = sum(trial["completion_tokens"] for trial in counted)
    return {
        "tasks": len(tasks),
        "trials": len(counted),
        "solved": len(solved),
        "not_run": states["not run"],
        "wall": states["wall"],
        "solved_share": solved_share(tasks),
        "interval": "wilson" if once else "tasks",
        "passes": _passes(tasks),
        "steps_per_solved": _mean([trial["steps"] for trial in solved]),
        "tokens_per_solved": _mean([trial["completion_tokens"] for trial in solved]),
        "tokens_for_each_solved": round(written / len(solved), 1) if solved else None,
        "ended": dict(Counter(trial["ended"] for trial in counted if trial["state"] == "failed")),
    }


def levels(trials: Sequence[Trial]) -> dict[str, TrialFigures]:
    """The figures of each level of tasks, in the order of their names; empty if no task has a level."""
    names = sorted({trial["level"] for trial in trials if trial["level"]})
    return {name: figures([trial for trial in trials if trial["level"] == name]) for name in names}


def read_checked_trials(path: Path | str) -> TrialResult:
    """As `read_trials`. Raises ResultError too for figures that the trials do not give."""
    result = read_trials(path)
    right = {"figures": figures(result["trials"]), "by_level": levels(result["trials"])}
    stated = {"figures": result["figures"], "by_level": result["by_level"]}
    if wrong := wrong_figure(stated, right, "trials", relative=_CLOSE, absolute=_CLOSE):
        raise ResultError(f"{path}: {wrong}: the file was changed")
    return result


def read_whole_trials(path: Path | str) -> TrialResult:
    """As `read_checked_trials`. Raises ResultError for a shard too: its figures are those of a part of the tasks."""
    result = read_checked_trials(path)
    if result.get("shard"):
        raise ResultError(f"{path}: is a shard of a result; put the shards together with edge join")
    return result


def figure_cells(found: TrialFigures) -> dict[str, str]:
    """The figures as texts for tables, by the names of their columns. `share` has its 95 % interval."""
    steps, tokens = found["steps_per_solved"], found["tokens_per_solved"]
    return {
        "solved": f"{found['solved']} of {found['trials']}",
        "share": share_text(found["solved_share"]),
        "tasks": str(found["tasks"]),
        "steps": "" if steps is None else f"{steps:.1f}",
        "tokens": "" if tokens is None else f"{tokens:.0f}",
        **{name: str(found["ended"].get(name, 0)) for name in ENDS},
        "not run": str(found["not_run"]),
        "wall": str(found["wall"]),
    }


def share_text(found: Interval | None) -> str:
    """A share and its interval in percent; empty without one."""
    if found is None:
        return ""
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def solved_share(tasks: Mapping[str, Sequence[Trial]]) -> Interval | None:
    """The share of solved trials. Wilson's interval if each task has one trial, else whole tasks are resampled."""
    if not tasks:
        return None
    solved = np.array([sum(t["state"] == "solved" for t in group) for group in tasks.values()], dtype=float)
    counts = np.array([len(group) for group in tasks.values()], dtype=float)
    return _with_interval(solved, counts)


def pass_at(solved: int, attempts: int, k: int) -> float:
    """The probability that at least one of `k` attempts, drawn from `attempts` with `solved` solved ones, is solved.

    The unbiased estimate of pass@k (Chen and others, "Evaluating Large Language Models Trained on Code", 2021).
    """
    return 1.0 - math.comb(attempts - solved, k) / math.comb(attempts, k)


def pass_all(solved: int, attempts: int, k: int) -> float:
    """The probability that all of `k` attempts are solved: pass^k (Yao and others, "tau-bench", 2024)."""
    return math.comb(solved, k) / math.comb(attempts, k)


def _passes(tasks: Mapping[str, Sequence[Trial]]) -> list[PassFigures]:
    attempts = min((len(group) for group in tasks.values()), default=0)
    found: list[PassFigures] = []
    pairs = [(sum(t["state"] == "solved" for t in group), len(group)) for group in tasks.values()]
    ones = np.ones(len(pairs))
    for k in range(2, attempts + 1):
        some = np.array([pass_at(solved, count, k) for solved, count in pairs])
        every = np.array([pass_all(solved, count, k) for solved, count in pairs])
        found.append({"k": k, "any": _with_interval(some, ones), "all": _with_interval(every, ones)})
    return found


def _with_interval(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """A mean over trials with its interval; `sums` and `counts` by task.

    If all tasks are alike, resampling shows no spread: then it is Wilson's interval of as many trials as tasks.
    """
    value = float(sums.sum() / counts.sum())
    shares = sums / counts
    if (counts.max() == 1 and np.isin(sums, (0.0, 1.0)).all()) or len(sums) < 2 or np.ptp(shares) < 1e-12:
        low, high = wilson(value, len(sums))
    else:
        low, high = interval(resampled_means(sums, counts), len(sums))
    return {
        "value": round(value, 6),
        "low": round(max(0.0, min(low, value)), 6),
        "high": round(min(1.0, max(high, value)), 6),
    }


def _mean(values: Sequence[int]) -> float | None:
    return round(sum(values) / len(values), 2) if values else None
