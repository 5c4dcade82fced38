"""`edge eval` on the shipped episodes and on recorded sessions.

pytest tests/replay/test_evaluate.py
"""

import json
from pathlib import Path

import pytest

from edge.answer.answering import Answering
from edge.errors import ContextError, ReplayError
from edge.llama.loading import Loading
from edge.metrics import aggregate, score_step
from edge.replay.rows import read_rows
from edge.replay.run import evaluate
from edge.replay.score import score
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("eval") / "bf16.json"
    evaluate(tiny_bf16, embedded_rows(), out, answering=Answering(max_tokens=256, constrained=False))
    return json.loads(out.read_text())


def test_the_embedded_model_reaches_its_figures(result: dict) -> None:
    """What the model card promises, unconstrained and in bf16."""
    figures = result["aggregate"]
    assert figures["tasks"] == 100
    assert figures["valid_json_pct"] >= 97
    assert 100 * figures["avg_command_f1"] >= 70
    assert set(figures["by_source_group"]) == {"seen-wording", "unseen-wording"}


def test_the_result_is_scored_by_the_published_rules(result: dict, tmp_path: Path) -> None:
    rows = {(row.task_id, row.step_idx): row for row in read_rows(embedded_rows())}
    steps = result["per_step"]
    assert len(steps) == len(rows)
    for step in steps:
        row = rows[step["task_id"], step["step_idx"]]
        expected = score_step(step["pred_text"], row.ref_raw, row.step_idx)
        assert {name: step[name] for name in expected} == expected
        assert step["pred_preview"] == step["pred_text"][:1200]
    assert aggregate(steps) == result["aggregate"]
    predictions = tmp_path / "predictions.jsonl"
    keys = ("task_id", "sample_idx", "step_idx", "pred_text")
    predictions.write_text("".join(json.dumps({k: step[k] for k in keys}) + "\n" for step in steps))
    assert score(predictions, embedded_rows(), tmp_path / "scored.json")["aggregate"] == result["aggregate"]


def test_the_engine_counts_what_it_read(result: dict) -> None:
    engine = result["engine"]
    assert engine["prompt_tokens"] == sum(step["prompt_tokens"] for step in result["per_step"])
    assert engine["completion_tokens"] == sum(step["completion_tokens"] for step in result["per_step"])
    assert engine["prompt_tokens_distinct"] == engine["prompt_tokens_decoded"] < engine["prompt_tokens"]
    assert engine["forced_tokens"] == 0


def test_constrained_answers_are_all_valid(tiny_q4: Path, tmp_path: Path) -> None:
    for budget in (7, 40, 256):
        done = evaluate(
            tiny_q4,
            embedded_rows(),
            tmp_path / "out.json",
            limit=20,
            answering=Answering(max_tokens=budget),
            force=True,
        )
        assert done["aggregate"]["valid_json_pct"] == 100.0
        assert done["aggregate"]["steps"] == 20
        assert json.loads((tmp_path / "out.json").read_text())["aggregate"] == done["aggregate"]


def test_rows_that_are_too_long_are_named_or_left_out(tiny_q4: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in embedded_rows().read_text(encoding="utf-8").splitlines()[:3]]
    rows[1]["messages"][-1]["content"] = "word " * 2000
    replay = tmp_path / "rows.jsonl"
    replay.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.json"
    with pytest.raises(ContextError, match=rows[1]["task_id"]):
        evaluate(tiny_q4, replay, out, answering=Answering(max_tokens=32), loading=Loading(context=1024))
    assert not out.exists()
    done = evaluate(
        tiny_q4,
        replay,
        out,
        skip_too_long=True,
        answering=Answering(max_tokens=32),
        loading=Loading(context=1024),
    )
    assert done["aggregate"]["steps"] == 2 and done["sampling"]["skipped_too_long"] == 1


def test_rows_of_another_result(tiny_q4: Path, result: dict, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**result, "per_step": result["per_step"][3:8]}))
    done = evaluate(
        tiny_q4, embedded_rows(), tmp_path / "o.json", rows_of=other, answering=Answering(max_tokens=8)
    )
    assert [s["task_id"] for s in done["per_step"]] == [s["task_id"] for s in result["per_step"][3:8]]
    extra = dict(result["per_step"][0], task_id="unknown")
    other.write_text(json.dumps({**result, "per_step": [extra]}))
    with pytest.raises(ReplayError, match="0 of the 1"):
        evaluate(
            tiny_q4, embedded_rows(), tmp_path / "o.json", rows_of=other, answering=Answering(max_tokens=8)
        )
