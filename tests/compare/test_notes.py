"""What a comparison says about results of other rules, unfinished ones, errors, cut answers, and a grammar on one side.

pytest tests/compare/test_notes.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from edge.compare import compare
from edge.compare.ranking import rank
from edge.errors import ResultError
from edge.replay.result import read_result, step_result, write_result
from edge.replay.rows import Row

REF = json.dumps({"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls\n"}], "task_complete": False})
WAITS = json.dumps({"analysis": "a", "plan": "p", "commands": [], "task_complete": True})


def result(path: Path, refs: dict[str, str], texts: dict[str, str], **head: Any) -> Path:
    steps = [
        step_result(Row(task, 0, 0, None, "s", "g", [], ref), texts.get(task, ref))
        for task, ref in refs.items()
    ]
    write_result(path, {"model": path.stem, **head}, steps)  # type: ignore[typeddict-item]
    return path


def edited(path: Path, change: Any) -> Path:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


def notes(ours: Path, reference: Path) -> list[str]:
    """The notes without those on prompts, which have no hashes here, and on equal files."""
    return [
        note
        for note in compare([ours], reference).parts[0].notes
        if not note.endswith(
            (" prompt hashes.", "(a server that renders the chat itself sends none).", "compares nothing.")
        )
    ]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    refs = {f"t{i:02}": WAITS if i < 8 else REF for i in range(20)}
    return result(tmp_path / "base.json", refs, {})


def older_rules(value: dict[str, Any]) -> None:
    """As the rules of April 2026 scored: no commands against no commands count 1."""
    for step in value["per_step"]:
        if not step["ref_command_units"] and not step["pred_command_units"]:
            for name in ("first_cmd_exact", "command_precision", "command_recall", "command_f1"):
                step[name] = 1.0
    value["aggregate"] = {"steps": 20, "avg_command_f1": 1.0}


def test_steps_of_other_rules_are_scored_again(base: Path, tmp_path: Path) -> None:
    """Otherwise the same answers would be a loss of 40 points."""
    old = tmp_path / "old.json"
    old.write_bytes(base.read_bytes())
    edited(old, older_rules)
    read = read_result(old)
    assert read["rescored"] == 8 and read["aggregate"]["avg_command_f1"] == 0.6
    part = compare([base], old).parts[0]
    score = next(figure for figure in part.figures if figure.name == "score")
    assert (score.reference, score.ours, score.verdict) == (60.0, 60.0, "no step differs")
    assert any(note.startswith("The reference: 8 steps were scored by other rules.") for note in part.notes)
    assert notes(base, base) == []


def test_an_aggregate_that_contradicts_its_steps_is_refused(base: Path) -> None:
    edited(base, lambda value: value["aggregate"].update(avg_command_f1=0.9))
    with pytest.raises(
        ResultError, match=r"base.json: aggregate.avg_command_f1 is 0.9, but its steps give 0.6: "
    ):
        read_result(base)


@pytest.mark.parametrize(
    ("place", "wrong", "told"),
    [
        ((), {"tasks": 19}, "aggregate.tasks is 19, but its steps give 20"),
        (
            ("by_bucket", "early"),
            {"avg_command_f1": 0.9},
            r"by_bucket\['early'\].avg_command_f1 is 0.9, but .* 0.6",
        ),
        (("by_bucket", "early"), {"steps": 4}, r"by_bucket\['early'\].steps is 4, but its steps give 20"),
        (
            ("by_source_group", "g"),
            {"first_cmd_exact_pct": 5},
            r"\['g'\].first_cmd_exact_pct is 5, but .* 60.0",
        ),
    ],
)
def test_counts_and_groups_of_an_aggregate_are_checked(
    base: Path, place: tuple[str, ...], wrong: dict[str, float], told: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        figures = value["aggregate"]
        for name in place:
            figures = figures[name]
        figures.update(wrong)

    edited(base, change)
    with pytest.raises(ResultError, match=told):
        read_result(base)


def test_an_aggregate_of_other_rules_follows_from_its_steps_too(base: Path) -> None:
    edited(base, older_rules)
    edited(base, lambda value: value["aggregate"].update(avg_command_f1=0.8))
    with pytest.raises(ResultError, match=r"aggregate.avg_command_f1 is 0.8, but its steps give 1.0"):
        read_result(base)


def test_an_aggregate_of_other_steps_is_replaced_and_said(base: Path, tmp_path: Path) -> None:
    """Its figures are of steps that the file does not have: a page must not show them beside those that it has."""
    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())
    edited(other, lambda value: value["aggregate"].update(steps=386, avg_command_f1=0.95))
    assert read_result(other)["aggregate"] == read_result(base)["aggregate"]
    assert notes(other, base) == [
        "Our result states figures of 386 steps, but has 20 steps. edge uses the figures of the steps that it has."
    ]


def test_notes_that_could_be_false(base: Path, tmp_path: Path) -> None:
    """An error beside a scored text, a whole run of a part of the rows, an empty adapter, no status of prompts."""

    def change(value: dict[str, Any]) -> None:
        value["per_step"][9]["error"] = "connection reset"
        value.update(complete=True, total_input_steps=303, lora_path="")
        value["prompt_template"] = {"rank_eligible": False}

    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())
    assert notes(edited(other, change), base) == [
        "Our result has 20 of the 303 steps of its rows.",
        "Our result: 1 answer has an error of a server and a text; edge scored the text.",
        "Our result says that it is not rank-eligible (template_status: not stated).",
    ]
    with pytest.raises(
        ResultError, match="errors: 1 answer has an error of a server; no result can be ranked"
    ):
        rank([other])
    edited(other, lambda value: value["per_step"][9].pop("error"))
    with pytest.raises(
        ResultError, match=r"it says that it is not rank-eligible \(template_status: not stated\)"
    ):
        rank([other])


@pytest.mark.parametrize("kept", ["pred_text", "pred_preview"])
def test_fields_that_do_not_follow_from_the_answers_are_computed_again(
    base: Path, tmp_path: Path, kept: str
) -> None:
    """Otherwise a table says that none of 20 valid answers is valid, and that all steps are late."""

    def change(value: dict[str, Any]) -> None:
        for step in value["per_step"]:
            step.update(valid_json=False, bucket="late")
            if kept == "pred_preview":
                del step["pred_text"]
        value["per_step"][9]["pred_command_units"] = ["rm x"]
        value["per_step"][0]["pred_task_complete_true"] = False
        del value["aggregate"]

    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())
    edited(other, change)
    read = read_result(other)
    assert read["aggregate"] == read_result(base)["aggregate"]
    assert read["per_step"][0]["bucket"] == "early" and read["per_step"][9]["pred_command_units"] == ["ls"]
    assert "rescored" not in read
    assert notes(other, base) == [
        "Our result states fields that do not follow from its answers or the numbers of its steps: bucket in 20 steps, "
        "pred_command_units in 1 step, pred_task_complete_true in 1 step, valid_json in 20 steps. edge uses those that "
        "follow."
    ]
    ranked = rank([other]).entries[0].notes
    assert any(
        note.startswith("computed again, as the file states others: bucket in 20 steps") for note in ranked
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"pred_text": None, "pred_preview": "{", "valid_json": True},
            "valid_json is true, but its pred_preview",
        ),
        (
            {"pred_text": None, "pred_preview": "{" * 1200, "valid_json": False},
            "has_analysis is true, but valid_json is false",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(base: Path, change: dict[str, Any], told: str) -> None:
    """The rest of the answer is unknown, so that edge cannot say which is right."""
    edited(base, lambda value: value["per_step"][9].update(change))
    with pytest.raises(ResultError, match=rf"base.json: per_step\[9\]: {told}"):
        read_result(base)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": -5}, "steps is -5; it must be 0 or more"),
        ({"tasks": 900, "steps": 386}, "tasks is 900, which 386 steps cannot have"),
        ({"valid_json_pct": 130.0}, "valid_json_pct is 130.0; it must be from 0 to 100"),
        ({"avg_command_f1": -0.1}, "avg_command_f1 is -0.1; it must be from 0 to 1"),
        ({"avg_command_f1": float("nan")}, "avg_command_f1 is nan; it must be a number"),
        ({"avg_pred_cmds": -1}, "avg_pred_cmds is -1; it must be 0 or more"),
        (
            {"by_bucket": {"early": {"steps": 3, "avg_command_f1": 52.3}}},
            r"by_bucket\['early'\].avg_command_f1 is 52.3; it must be from 0 to 1",
        ),
    ],
)
def test_figures_that_no_result_has_are_refused(
    base: Path, steps: int, wrong: dict[str, Any], told: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        value["aggregate"].update(wrong)
        if not steps:
            del value["per_step"]

    edited(base, change)
    with pytest.raises(ResultError, match=f"base.json: aggregate.{told}"):
        read_result(base)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({}, "contains neither steps nor figures"),
        ({"steps": 0, "avg_command_f1": 0.52}, "aggregate.steps is 0, but aggregate.avg_command_f1 is 0.52"),
        (
            {"steps": 9, "avg_command_f1": 0.5, "by_bucket": {"early": {"steps": 8}}},
            "aggregate.by_bucket has 8 steps, but aggregate.steps is 9",
        ),
        (
            {"avg_command_f1": 0.523, "first_cmd_exact_pct": 49.5, "next_action_score": 71.46},
            "aggregate.next_action_score is 71.46, but the other figures give 51.46",
        ),
    ],
)
def test_figures_without_steps_that_contradict_each_other_are_refused(
    tmp_path: Path, figures: dict[str, Any], told: str
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"aggregate": figures}))
    with pytest.raises(ResultError, match=told):
        read_result(path)


def test_an_aggregate_of_no_steps_is_said(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())
    edited(other, lambda value: value["aggregate"].update(steps=0))
    assert notes(other, base) == [
        "Our result states figures of 0 steps, but has 20 steps. edge uses the figures of the steps that it has."
    ]
    edited(other, lambda value: value.update(aggregate={"steps": 20}))
    assert read_result(other)["aggregate"] == read_result(base)["aggregate"]


def test_engine_cache_and_batching_are_said(base: Path, tmp_path: Path) -> None:
    """They can change answers, although no setting of the sampling differs."""

    def written(backend: str, **engine: object) -> Any:
        return lambda value: value.update(provenance={"backend": backend}, engine=engine)

    edited(base, written("vllm"))
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    edited(ours, written("edge", kv_type="q8_0", parallel=8))
    assert notes(ours, base) == ["The runs differ: backend is vllm in the reference, edge in ours."]
    edited(base, written("edge", kv_type="f16", parallel=1))
    assert notes(ours, base) == [
        "The runs differ: kv_type is f16 in the reference, q8_0 in ours.",
        "The runs differ: parallel is 1 in the reference, 8 in ours.",
    ]


def test_a_missing_task_complete_is_no_other_answer(base: Path, tmp_path: Path) -> None:
    """Published results write false where a reference answer has no task_complete."""
    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())

    def without(value: dict[str, Any]) -> None:
        for step in value["per_step"]:
            if step["ref_task_complete"] is False:
                step["ref_task_complete"] = None

    assert notes(edited(other, without), base) == []
    edited(
        other, lambda value: value.pop("aggregate") and value["per_step"][0].update(ref_task_complete=False)
    )
    with pytest.raises(ResultError, match="different reference answers"):
        compare([other], base)


def test_what_is_missing_is_said(base: Path, tmp_path: Path) -> None:
    def unfinished(value: dict[str, Any]) -> None:
        value.update(complete=False, total_input_steps=386, eval_path="sets/long.jsonl")
        value["engine"] = {"rows_missing": 29}
        value["per_step"] = value["per_step"][:19]
        for step in value["per_step"][:3]:
            step.update(pred_text="", pred_command_units=[], valid_json=False, error="500")
            step.update(first_cmd_exact=0, command_precision=0, command_recall=0, command_f1=0)
        for step in value["per_step"][3:7]:
            step["finish_reason"] = "length"
        del value["aggregate"]

    other = tmp_path / "other.json"
    other.write_bytes(base.read_bytes())
    said = notes(edited(other, unfinished), base)
    assert "Our result is unfinished: it has 19 of 386 steps." in said
    assert "Our result has no prediction for 29 rows; its figures leave them out." in said
    assert "Our result: 3 answers are error messages of a server; they count as 0." in said
    assert "Our result: 4 of 19 answers were cut at the token limit." in said
    edited(other, lambda value: value.pop("complete"))  # stopped, and the run did not say so
    assert "Our result is unfinished: it has 19 of 386 steps." in notes(other, base)
    assert any(
        note.startswith(
            "The row sets differ: an unnamed set with 20 steps in the reference, long.jsonl with 19 steps"
        )
        for note in said
    )


def test_a_grammar_on_one_side_is_said(base: Path, tmp_path: Path) -> None:
    """Published vLLM results do not say that they had no grammar."""
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    edited(ours, lambda value: value.update(sampling={"constrained": True}))
    said = "Only our result was written with a grammar, as far as the reference says."
    assert any(note.startswith(said) for note in notes(ours, base))
    assert any(note.startswith("Only the reference was written") for note in notes(base, ours))
    edited(base, lambda value: value.update(sampling={"structured": "json"}))
    assert notes(ours, base) == []


def test_shares_that_are_not_rounded_are_no_other_answers(base: Path, tmp_path: Path) -> None:
    """A program that stores 0.666667 for edge's 0.6667 has the same answers."""
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    shares = ("command_precision", "command_recall", "command_f1")
    edited(
        ours, lambda value: [s.update({n: max(0.0, s[n] - 3e-6) for n in shares}) for s in value["per_step"]]
    )
    (part,) = compare([ours], base).parts
    assert (part.better, len(part.worse)) == (0, 0) and not any("other rules" in note for note in part.notes)


def test_adapters_of_other_engines_are_said(base: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    edited(ours, lambda value: value.update(lora_path="/home/me/adapters/terminal"))
    assert notes(ours, base) == [
        "Only our result names adapters: terminal. The reference does not say whether it had any."
    ]
    edited(base, lambda value: value.update(lora_path=None))
    assert notes(ours, base) == ["The runs have different adapters: none in the reference, terminal in ours."]


def test_a_setting_that_one_side_does_not_name_is_said(base: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    edited(ours, lambda value: value.update(sampling={"temperature": 0.7, "seed": 3, "top_p": 1.0}))
    assert notes(ours, base) == [
        "The runs may differ: temperature is 0.7 in our result, and the reference does not name it.",
        "The runs may differ: seed is 3 in our result, and the reference does not name it.",
    ]
    assert notes(base, ours)[0] == (
        "The runs may differ: temperature is 0.7 in the reference, and our result does not name it."
    )


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        (None, "gen_time_sec", -5.0),
        (None, "total_input_steps", -1),
        ("provenance", "model_bytes", -5),
        ("provenance", "bits_per_weight", -0.5),
        ("engine", "peak_memory_bytes", -5),
        ("engine", "rows_missing", -1),
        ("sampling", "max_tokens", -5),
    ],
)
def test_a_number_below_zero_is_refused(base: Path, field: str | None, name: str, value: float) -> None:
    changes = {name: value}
    edited(base, lambda stored: stored.update(changes if field is None else {field: changes}))
    with pytest.raises(ResultError, match=rf"{name} is {value}; it must be a non-negative"):
        compare([base], base)


def test_prompts_from_several_templates(base: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    ours.write_bytes(base.read_bytes())
    mixed = {"template_status": "mixed", "rank_eligible": False}
    edited(ours, lambda value: value.update(prompt_template=mixed))
    assert "Our result is not rank-eligible: its prompts come from several templates." in notes(ours, base)
    (left_out,) = rank([base, ours]).left_out
    assert left_out.why == "prompts: not all of them are from the model's own chat template (mixed)"
