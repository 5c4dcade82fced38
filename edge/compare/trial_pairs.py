"""Two results of `edge trial`, paired by task: what one model solves and the other does not.

docs/trials.md explains the sentences. The interval and the smallest loss are those of paired.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from edge.compare import patterns
from edge.compare.intervals import mcnemar
from edge.compare.paired import (
    LEAST_DIFFERING,
    TaskDifferences,
    detectable_loss,
    most_differing,
    paired_interval,
)
from edge.compare.trial_figures import by_task, figure_cells, read_whole_trials, solved_share
from edge.compare.trials import ENDS, Interval, Trial, TrialFigures, TrialResult
from edge.compare.verdict import p_text
from edge.errors import ResultError
from edge.system.outputs import differences
from edge.system.tables import code, table
from edge.system.text import counted

_SHOWN = 12  # names in a line
# What may differ between two runs that are compared: it is the question, or it does not change what is measured.
_MAY_DIFFER = frozenset(
    "edge llama-cpp-python model_sha256 adapters server served_model agent tasks refused parallel attempts".split()
)


class TrialPairs(TypedDict):
    """The paired difference over some tasks, in points: percent of the paired trials."""

    level: str
    """Level of the tasks; empty for all of them."""
    tasks: int
    """Number of tasks with trials that count on both sides."""
    trials: int
    """Number of paired trials: attempts with the same number."""
    reference: Interval
    """Solved share of the reference in these trials."""
    ours: Interval
    """Solved share of the result in these trials."""
    difference: float
    """Points that ours is above the reference."""
    low: float | None
    """Lower bound of the difference at 95 %; null if fewer than 6 tasks differ."""
    high: float | None
    """Upper bound of the difference."""
    detectable: float | None
    """The true loss that is detected with 80 % probability; null if none is, or fewer than 6 tasks differ."""
    p: float | None
    """p-value of McNemar's exact test; null with several attempts at a task."""
    counts: list[int]
    """Tasks that are solved more often by the reference, and by ours."""
    sentence: str
    """The difference in sentences."""


class TrialComparison(TypedDict):
    """A result of `edge trial` against a reference."""

    result: str
    """The result, as the command named it."""
    reference: str
    """The reference, as the command named it."""
    pairs: list[TrialPairs]
    """The difference over all paired tasks, then for each level."""
    lost: list[str]
    """Tasks that only the reference solves, or solves more often."""
    gained: list[str]
    """Tasks that only ours solves, or solves more often."""
    screens_differ: list[str]
    """For two runs of one model with the same settings: the trials whose screens differ, as TASK.ATTEMPT."""
    same_run: bool
    """Whether both are runs of the same model with the same settings."""
    notes: list[str]
    """What a reader must know."""


def compare_trials(result: Path | str, reference: Path | str) -> TrialComparison:
    """Compare two results of `edge trial`. Raises ResultError if they share no task."""
    ours, theirs = read_whole_trials(result), read_whole_trials(reference)
    notes = _notes(ours, theirs)
    paired = _paired(ours, theirs, notes)
    if not paired:
        raise ResultError(
            f"{result}: has no task in common with {reference} whose trials count on both sides; compare results of "
            "the same tasks"
        )
    names = sorted({group[0][0]["level"] for group in paired.values()} - {""})
    pairs = [_pairs("", paired)]
    for level in names if len(names) > 1 else []:
        pairs.append(_pairs(level, {k: v for k, v in paired.items() if v[0][0]["level"] == level}))
    change = {name: _solved(group) for name, group in paired.items()}
    same = _same_run(ours, theirs)
    return {
        "result": str(result),
        "reference": str(reference),
        "pairs": pairs,
        "lost": [name for name, (a, b) in change.items() if a < b],
        "gained": [name for name, (a, b) in change.items() if a > b],
        "screens_differ": _other_screens(ours, theirs) if same else [],
        "same_run": same,
        "notes": notes,
    }


_Group = list[tuple[Trial, Trial]]


def _paired(ours: TrialResult, theirs: TrialResult, notes: list[str]) -> dict[str, _Group]:
    """The pairs of trials that count, by task: the same attempt at the same task."""
    first, second = by_task(ours["trials"]), by_task(theirs["trials"])
    other = [name for name in first if name in second and _sha(first[name]) != _sha(second[name])]
    if other:
        notes.append(patterns.TASKS_CHANGED(tasks=counted(len(other), "task"), names=_names(other)))
    found: dict[str, _Group] = {}
    for name in first:
        if name not in second or name in other:
            continue
        known = {trial["attempt"]: trial for trial in second[name]}
        group = [(trial, known[trial["attempt"]]) for trial in first[name] if trial["attempt"] in known]
        if group:
            found[name] = group
    only = len(first) + len(second) - 2 * len(found) - 2 * len(other)
    if only:
        notes.append(patterns.ONE_SIDE_ONLY(tasks=counted(only, "task")))
    return found


def _sha(trials: Sequence[Trial]) -> str:
    return trials[0]["task_sha256"]


def _solved(group: _Group) -> tuple[int, int]:
    return sum(a["state"] == "solved" for a, _ in group), sum(b["state"] == "solved" for _, b in group)


def _pairs(level: str, paired: Mapping[str, _Group]) -> TrialPairs:
    counts = [_solved(group) for group in paired.values()]
    sums = np.array([100.0 * (a - b) for a, b in counts])
    by = TaskDifferences(sums, np.array([float(len(group)) for group in paired.values()]), 50.0)
    bounds = paired_interval(by) if len(paired) > 1 else None
    worse, better = sum(a < b for a, b in counts), sum(a > b for a, b in counts)
    once = all(len(group) == 1 for group in paired.values())
    p = mcnemar(worse, better) if once else None
    found = bounds is not None and not bounds[0] <= 0 <= bounds[1]
    detectable = None if bounds is None or found else detectable_loss(by)
    shares = [
        solved_share({name: [pair[side] for pair in group] for name, group in paired.items()})
        for side in (0, 1)
    ]
    assert shares[0] is not None and shares[1] is not None
    reference = 100 * shares[1]["value"]
    if bounds is not None:  # no model solves less than nothing, or more than all
        bounds = max(bounds[0], -reference), min(bounds[1], 100 - reference)
    return {
        "level": level,
        "tasks": len(paired),
        "trials": sum(len(group) for group in paired.values()),
        "reference": shares[1],
        "ours": shares[0],
        "difference": round(by.mean, 6),
        "low": None if bounds is None else bounds[0],
        "high": None if bounds is None else bounds[1],
        "detectable": detectable,
        "p": p,
        "counts": [worse, better],
        "sentence": _sentence(by, bounds, detectable, p, reference),
    }


def _sentence(
    by: TaskDifferences,
    bounds: tuple[float, float] | None,
    detectable: float | None,
    p: float | None,
    reference: float,
) -> str:
    if bounds is None:
        if not by.differing:
            return patterns.NO_TASK_DIFFERS(most=_at_most(by))
        return patterns.TRIALS_FEW(
            differing=by.differing,
            tasks=counted(by.tasks, "task"),
            verb="differs" if by.differing == 1 else "differ",
            least=LEAST_DIFFERING,
            most=_at_most(by),
        )
    found = not bounds[0] <= 0 <= bounds[1]
    if found:
        low, high = (f"{size:.1f}" for size in sorted(abs(bound) for bound in bounds))
        word = "gain" if bounds[0] > 0 else "loss"
        text = patterns.TRIALS_FOUND(word=word, points=f"{abs(by.mean):.1f}", low=low, high=high)
    elif reference <= 0:
        text = patterns.NOTHING_TO_LOSE()
    elif detectable is None or detectable > reference:
        text = patterns.TRIALS_TOO_FEW()
    else:
        text = patterns.TRIALS_NOT_FOUND(points=f"{detectable:.1f}")
    if p is not None and (p < 0.05) != found:
        text += f" {patterns.TRIALS_MCNEMAR(what='a' if p < 0.05 else 'no', p=p_text(p))}"
    return text


def _at_most(by: TaskDifferences) -> str:
    share = 100 * most_differing(by.differing, by.tasks)
    return patterns.AT_MOST(share=f"{share:.{0 if share >= 9.95 else 1}f}")


def _same_run(ours: TrialResult, theirs: TrialResult) -> bool:
    programs = ("edge", "llama-cpp-python")
    first, second = (
        {k: v for k, v in run.items() if k not in programs} for run in (ours["run"], theirs["run"])
    )
    return not differences(first, second)


def _other_screens(ours: TrialResult, theirs: TrialResult) -> list[str]:
    known = {(trial["task"], trial["attempt"]): trial["screens"] for trial in theirs["trials"]}
    return [
        f"{trial['task']}.{trial['attempt']}"
        for trial in ours["trials"]
        if known.get((trial["task"], trial["attempt"]), trial["screens"]) != trial["screens"]
    ]


def _notes(ours: TrialResult, theirs: TrialResult) -> list[str]:
    notes = []
    runs = [{k: v for k, v in run.items() if k not in _MAY_DIFFER} for run in (theirs["run"], ours["run"])]
    if changes := differences(*runs):
        notes.append(patterns.OTHER_SETTINGS(changes=changes))
    for name, result in (("ours", ours), ("the reference", theirs)):
        found = result["figures"]
        if found["not_run"] or found["wall"] or result["refused"]:
            notes.append(
                patterns.NOT_COUNTED(
                    side=name,
                    refused=counted(len(result["refused"]), "task"),
                    not_run=counted(found["not_run"], "trial"),
                    wall=found["wall"],
                )
            )
    return notes


def _names(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])


# --- Markdown ---


def trials_markdown(comparisons: Sequence[TrialComparison]) -> str:
    """The comparisons for people: a table of the solved shares, then what differs."""
    results = {one["reference"]: read_whole_trials(one["reference"]) for one in comparisons}
    results |= {one["result"]: read_whole_trials(one["result"]) for one in comparisons}
    text = ["## Solved tasks", "", *figures_table({path: one["figures"] for path, one in results.items()})]
    for one in comparisons:
        text += ["", f"## {one['result']} against {one['reference']}", ""]
        rows = [
            [
                pair["level"] or "all",
                str(pair["tasks"]),
                _percent(pair["reference"]),
                _percent(pair["ours"]),
                f"{pair['difference']:+.1f}",
                "" if pair["low"] is None else f"{pair['low']:+.1f} to {pair['high']:+.1f}",
                f"{pair['counts'][0]}, {pair['counts'][1]}",
                "" if pair["p"] is None else p_text(pair["p"]),
            ]
            for pair in one["pairs"]
        ]
        header = ["level", "tasks", "reference", "ours", "points", "95 % interval", "lost, gained", "McNemar"]
        text += [
            *table(header, rows),
            "",
            *(f"- {p['level'] or 'all'}: {p['sentence']}" for p in one["pairs"]),
        ]
        for what, names in (("lost", one["lost"]), ("gained", one["gained"])):
            text += [
                f"- {what}: {', '.join(map(code, names[:_SHOWN]))}{' …' * (len(names) > _SHOWN)}"
            ] * bool(names)
        if one["same_run"]:
            text.append(f"- {_same(one)}")
        text += [f"- {note}" for note in one["notes"]]
    return "\n".join(text)


def figures_table(found: Mapping[str, TrialFigures]) -> list[str]:
    """The figures of several results as lines of a Markdown table."""
    names = ["solved", "tasks", "steps", "tokens", *ENDS, "not run", "wall"]
    rows = []
    for path, one in found.items():
        cells = figure_cells(one)
        rows.append([Path(path).stem, cells["share"], *(cells[name] for name in names)])
    return list(table(["result", "solved share (95 % interval)", *names], rows))


def _same(one: TrialComparison) -> str:
    if not one["screens_differ"]:
        return patterns.SAME_SCREENS()
    names = one["screens_differ"]
    return patterns.OTHER_SCREENS(trials=counted(len(names), "trial"), names=_names(names))


def _percent(share: Interval) -> str:
    return f"{100 * share['value']:.1f} %"
