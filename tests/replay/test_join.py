"""Hand-made shards: `edge join` checks what it can, and refuses in one line that names the file.

pytest tests/replay/test_join.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.compare.trial_figures import figures, levels, read_whole_trials
from edge.compare.trial_join import join_trials
from edge.errors import ResultError
from edge.replay.join import join
from edge.replay.result import read_result, step_result, write_result
from edge.replay.rows import Row
from edge.replay.shards import Shard
from edge.system.hashes import text_sha256

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "trials" / "default.json"
REF = json.dumps({"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls\n"}], "task_complete": False})
TASKS = [f"t{task}" for task in range(6) for _ in range(2)]
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 64, "constrained": True, "think": None}


def shard(path: Path, index: int) -> Path:
    """Shard `index` of 3, of 12 rows of 6 tasks."""
    hashes = [str(text_sha256(f"prompt {place}")) for place in range(len(TASKS))]
    part = Shard(index, 3)
    places = part.places(TASKS, "rows")
    steps = [
        step_result(
            Row(TASKS[place], 0, place % 2, None, "s", "g", [], REF),
            REF if place % 5 else "no",
            prompt_sha256=hashes[place],
            completion_tokens=9,
        )
        for place in places
    ]
    run = {
        "model_sha256": "a" * 64,
        "adapters": None,
        "grammar_sha256": "b" * 64,
        **SAMPLING,
        "kv_type": "f16",
        "shard": str(part),
        "rows_sha256": "c" * 64,
        "prompts_sha256": text_sha256("\n".join(hashes)),
    }
    head: dict[str, Any] = {
        "model_sha256": "a" * 64,
        "run": run,
        "shard": part.fields(places, len(TASKS)),
        "sampling": {**SAMPLING, "dtype": "Q4_K_M", "backend": "edge"},
        "prompt_template": {
            "template_status": "chat_template",
            "rank_eligible": True,
            "row_count": len(TASKS),
        },
        "engine": {"steps_done_before": 0, "completion_tokens": 9 * len(steps), "kv_type": "f16"},
        "provenance": {
            "edge": "0.2.0",
            "backend": "edge",
            "model_sha256": "a" * 64,
            "rows_sha256": "c" * 64,
            "grammar_sha256": "b" * 64,
        },
    }
    write_result(path, head, steps)  # type: ignore[arg-type]
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [shard(tmp_path / f"s{index}.json", index) for index in (1, 2, 3)]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_shards_are_joined(shards: list[Path], tmp_path: Path) -> None:
    whole = join(shards[::-1], tmp_path / "whole.json")
    assert [step["task_id"] for step in whole["per_step"]] == TASKS
    assert whole["aggregate"]["avg_command_f1"] == 0.75
    assert read_result(tmp_path / "whole.json")["aggregate"] == whole["aggregate"]


def swapped_rows(value: dict[str, Any]) -> None:
    steps = value["per_step"]
    steps[0], steps[1] = steps[1], steps[0]


def other_task(value: dict[str, Any]) -> None:
    value["per_step"][0]["task_id"] = "t9"
    del value["aggregate"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["run"].update(shard="1/3"), "says that it is shard 2/3, and that its run was 1/3"),
        (lambda v: v["run"].pop("shard"), "says that it is shard 2/3, and that its run was None"),
        (lambda v: v["provenance"].update(model_sha256="d" * 64), "names more than one model file"),
        (lambda v: v.update(model_sha256="d" * 64), "names more than one model file"),
        (lambda v: v["provenance"].update(rows_sha256="d" * 64), "names more than one set of rows"),
        (lambda v: v["provenance"].update(grammar_sha256="d" * 64), "names more than one grammar"),
        (lambda v: v["shard"].update(count=9999), "its field shard is damaged"),
        (lambda v: v["shard"].update(places=[[0]]), "must be a list of whole numbers"),
        (lambda v: v["shard"].update(rows=3), "its field shard is damaged"),
        (lambda v: v["sampling"].update(max_tokens=65), "says that max_tokens was 64, and that it was 65"),
        (lambda v: v["engine"].update(kv_type="q8_0"), "says that kv_type was f16, and that it was q8_0"),
        (
            lambda v: v["provenance"].update(
                adapters=[{"name": "x", "sha256": "e", "scale": 1, "base": None}]
            ),
            "names other adapters than its run",
        ),
        (lambda v: v["prompt_template"].update(row_count=4), "describes the prompts of 4 rows"),
        (
            lambda v: v["prompt_template"].update(template_status="mixed"),
            "prompt_template.template_status was",
        ),
        (lambda v: v["sampling"].update(dtype="Q8_0"), "sampling.dtype was Q4_K_M, is Q8_0"),
        (lambda v: v["engine"].update(completion_tokens=1000), "counts more work than its steps have"),
        (lambda v: v["engine"].update(steps_done_before=5), "counts more work than its steps have"),
        (lambda v: v["per_step"][0].update(valid_json=False), "figures that do not follow from its answers"),
        (lambda v: v["per_step"][0].update(bucket="late"), "figures that do not follow from its answers"),
        (lambda v: v["aggregate"].update(steps=12), "figures that do not follow from its answers"),
        (lambda v: v["aggregate"].update(avg_command_f1=0.1), "aggregate.avg_command_f1 is 0.1"),
        (lambda v: v.update(complete=False), "is unfinished"),
        (swapped_rows, "the prompts of their steps are not those of the run"),
        (other_task, "not the rows that --shard gives, from row "),
    ],
)
def test_a_shard_that_contradicts_itself_or_the_others_is_refused(
    shards: list[Path], tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(shards[1], change)
    with pytest.raises(ResultError) as caught:
        join(shards, tmp_path / "whole.json")
    said = str(caught.value)
    assert told in said and str(shards[1]) in said and "\n" not in said
    assert not (tmp_path / "whole.json").exists()


def test_rows_that_no_shard_option_gives_are_refused(shards: list[Path], tmp_path: Path) -> None:
    """Complete, without gaps, and of one run, but cut by hand: a task is in two shards."""
    one, two = (json.loads(path.read_text()) for path in shards[:2])
    for value, other in ((one, two), (two, one)):
        value["given"] = value["shard"]["places"][0], value["per_step"][0]
        value["places"], value["steps"] = value["shard"]["places"][1:], value["per_step"][1:]
        other["extra"] = value["given"]
    for path, value in zip(shards, (one, two), strict=False):
        place, step = value.pop("extra")
        pairs = sorted([*zip(value.pop("places"), value.pop("steps"), strict=True), (place, step)], key=str)
        pairs.sort(key=lambda pair: pair[0])
        value["shard"]["places"] = [pair[0] for pair in pairs]
        value["per_step"] = [pair[1] for pair in pairs]
        del value["aggregate"], value["given"]
        path.write_text(json.dumps(value))
    with pytest.raises(
        ResultError, match=r"s1.json, \S+s2.json: not the rows that --shard gives, from row 1 \(t0\) on"
    ):
        join(shards, tmp_path / "whole.json")


def test_figures_of_trials_follow_from_the_trials(tmp_path: Path) -> None:
    """Also those of a shard: edge join would replace them without a word."""
    path = tmp_path / "trials.json"
    for change, told in (
        (lambda v: v["figures"].update(solved=84), r"figures.solved is 84, but its trials give 25"),
        (
            lambda v: v["figures"]["solved_share"].update(value=0.31),
            r"solved_share.value is 0.31, but its trials give 0.29",
        ),
        (lambda v: v["by_level"].clear(), r"by_level\.1: one command is not what its trials give"),
    ):
        path.write_bytes(EVIDENCE.read_bytes())
        assert read_whole_trials(path)["figures"]["solved"] == 25
        edit(path, change)
        with pytest.raises(ResultError, match=told):
            read_whole_trials(path)


def test_trials_whose_rows_are_of_another_shard_are_refused(tmp_path: Path) -> None:
    whole = json.loads(EVIDENCE.read_text())
    names = [trial["task"] for trial in whole["trials"]]
    paths = []
    for index in (1, 2):
        part = Shard(index, 2)
        places = part.places(names, "tasks")
        trials = [whole["trials"][place] for place in places]
        value = {**whole, "trials": trials, "figures": figures(trials), "by_level": levels(trials)}
        value["shard"] = part.fields(places, len(names))
        value["run"] = {**whole["run"], "shard": str(part)}
        paths.append(tmp_path / f"part{index}.json")
        paths[-1].write_text(json.dumps(value))
    assert join_trials(paths, tmp_path / "joined.json")["figures"] == whole["figures"]
    for path, index in zip(paths, (2, 1), strict=True):
        value = json.loads(path.read_text())
        value["shard"]["index"], value["run"]["shard"] = index, f"{index}/2"
        path.write_text(json.dumps(value))
    with pytest.raises(
        ResultError, match=r"part1.json, \S+part2.json: not the rows that --shard gives, from row 1 "
    ):
        join_trials(paths, tmp_path / "again.json")
