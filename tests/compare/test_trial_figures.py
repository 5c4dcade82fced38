"""The figures of trials, against counting by hand: shares, pass@k, pass^k, pairs, and what is left out.

.venv/bin/pytest tests/compare/test_trial_figures.py
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edge.compare.intervals import mcnemar, wilson
from edge.compare.paired import TaskDifferences, detectable_loss, paired_interval
from edge.compare.trial_figures import figures, levels, pass_all, pass_at
from edge.compare.trial_pairs import compare_trials, trials_markdown
from edge.compare.trials import Trial
from edge.errors import ResultError


def trial(task: str, attempt: int, state: str, **more: Any) -> Trial:
    ended = {"failed": "wrong"}.get(state, "")
    fields: dict[str, Any] = {
        **{"task": task, "task_sha256": "a", "level": "", "attempt": attempt, "seed": None, "state": state},
        **{"ended": ended, "reason": "", "outcome": "", "reward": 1.0, "steps": 2, "prompt_tokens": 9},
        **{"completion_tokens": 10, "seconds": 1.0, "record": None, "screens": ["x"], **more},
    }
    return fields  # type: ignore[return-value]


def write(path: Path, trials: list[Trial], **run: object) -> Path:
    value: dict[str, Any] = {
        **{"trials_version": 1, "timestamp": "", "model": "m", "model_path": None, "agent": "model"},
        **{"tasks_path": "t", "attempts": 1, "limits": {"max_steps": 1, "max_tokens": 1, "seconds": 1.0}},
        **{"sampling": {}, "by_level": levels(trials), "refused": [], "provenance": {}, "run": run},
        **{"trials": trials, "figures": figures(trials)},
    }
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
def test_passes_by_counting_all_choices(attempts: int) -> None:
    """The formulas give the share of all choices of k attempts with one, and with only, solved ones."""
    for solved, k in itertools.product(range(attempts + 1), range(1, attempts + 1)):
        chosen = list(itertools.combinations([True] * solved + [False] * (attempts - solved), k))
        assert pass_at(solved, attempts, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
        assert pass_all(solved, attempts, k) == pytest.approx(sum(map(all, chosen)) / len(chosen))


def test_what_did_not_run_is_not_counted() -> None:
    """Trials that could not run, and those that met a limit of wall time, are neither solved nor failed."""
    trials = [trial(f"t{i}", 1, state) for i, state in enumerate(["solved"] * 3 + ["failed"] * 7)]
    alone = figures(trials)
    more = figures([*trials, trial("x", 1, "not run"), trial("y", 1, "wall"), trial("z", 1, "wall")])
    assert alone["solved_share"] == more["solved_share"]
    assert (more["solved"], more["trials"], more["tasks"], more["not_run"], more["wall"]) == (3, 10, 10, 1, 2)
    assert more["ended"] == {"wrong": 7}
    low, high = wilson(0.3, 10)
    assert more["solved_share"] == {"value": 0.3, "low": round(low, 6), "high": round(high, 6)}
    assert more["interval"] == "wilson" and more["passes"] == []
    assert figures([trial("x", 1, "not run")])["solved_share"] is None


def test_attempts_at_one_task_are_no_independent_trials() -> None:
    """Five attempts that all end alike say no more about other tasks than one: the interval is about as wide."""
    once = [trial(f"t{i}", 1, "solved" if i % 2 else "failed") for i in range(20)]
    five = [trial(f"t{i}", n, "solved" if i % 2 else "failed") for i in range(20) for n in range(1, 6)]
    one, many = figures(once), figures(five)
    assert one["solved_share"] is not None and many["solved_share"] is not None
    assert many["interval"] == "tasks" and many["solved_share"]["value"] == 0.5
    width = many["solved_share"]["high"] - many["solved_share"]["low"]
    assert width > 0.9 * (one["solved_share"]["high"] - one["solved_share"]["low"])
    assert [(p["k"], p["any"]["value"], p["all"]["value"]) for p in many["passes"]] == [
        (k, 0.5, 0.5) for k in (2, 3, 4, 5)
    ]


def test_cost_of_a_solved_trial() -> None:
    found = figures(
        [
            trial("a", 1, "solved", steps=2, completion_tokens=100),
            trial("b", 1, "solved", steps=4, completion_tokens=50),
            trial("c", 1, "failed", steps=9, completion_tokens=450),
        ]
    )
    assert (found["steps_per_solved"], found["tokens_per_solved"]) == (3.0, 75.0)
    assert found["tokens_for_each_solved"] == 300.0


def test_pairs_are_those_of_compare(tmp_path: Path) -> None:
    """The interval, the smallest loss and McNemar's test are those of the replay's comparison."""
    states = [(i % 3 != 0, i % 4 != 0) for i in range(48)]
    word = {True: "solved", False: "failed"}
    ours = write(tmp_path / "a.json", [trial(f"t{i}", 1, word[a]) for i, (a, _) in enumerate(states)])
    theirs = write(tmp_path / "b.json", [trial(f"t{i}", 1, word[b]) for i, (_, b) in enumerate(states)])
    import numpy as np

    by = TaskDifferences(np.array([100.0 * (a - b) for a, b in states]), np.ones(48), 50.0)
    found = compare_trials(ours, theirs)
    (pair,) = found["pairs"]
    worse, better = sum(b > a for a, b in states), sum(a > b for a, b in states)
    assert (pair["low"], pair["high"]) == paired_interval(by)
    assert pair["detectable"] == detectable_loss(by)
    assert pair["p"] == mcnemar(worse, better) and pair["counts"] == [worse, better]
    assert "would have detected a loss of more than" in pair["sentence"]
    assert len(found["lost"]) == worse and len(found["gained"]) == better


def test_what_cannot_be_paired(tmp_path: Path) -> None:
    ours = [
        trial("a", 1, "solved"),
        trial("b", 1, "failed"),
        trial("c", 1, "not run"),
        trial("d", 1, "solved"),
    ]
    other = [trial("a", 1, "failed"), trial("b", 1, "failed", task_sha256="b"), trial("c", 1, "solved")]
    first, second = (
        write(tmp_path / "a.json", ours, max_steps=3),
        write(tmp_path / "b.json", other, max_steps=4),
    )
    found = compare_trials(first, second)
    assert found["pairs"][0]["tasks"] == 1 and found["lost"] == [] and found["gained"] == ["a"]
    text = " ".join(found["notes"])
    assert "1 task left out, because the files differ: b." in text
    assert "--max-steps was 4, is 3" in text and "1 trial that could not run" in text
    assert not found["same_run"]
    assert "1 of 1 task differs: too few for an interval" in trials_markdown([found])
    alone = write(tmp_path / "c.json", [trial("x", 1, "solved")])
    with pytest.raises(ResultError, match="has no task in common"):
        compare_trials(first, alone)


def test_two_runs_of_one_model_list_other_screens(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [trial("a", 1, "solved"), trial("b", 1, "failed")], model_sha256="m")
    second = write(
        tmp_path / "b.json",
        [trial("a", 1, "solved"), trial("b", 1, "failed", screens=["y"])],
        model_sha256="m",
    )
    found = compare_trials(first, second)
    assert found["same_run"] and found["screens_differ"] == ["b.1"]
    assert "screens differ in 1 trial: b.1" in trials_markdown([found])
    assert compare_trials(first, first)["screens_differ"] == []
