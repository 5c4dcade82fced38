"""`edge score` and the result file: predictions of any engine, scored, written whole, and read back checked.

Run: .venv/bin/python -m pytest tests/replay/test_score.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError, ReplayError, ResultError
from edge.replay.result import read_result, step_result, write_result
from edge.replay.rows import read_rows, step_key
from edge.replay.score import score
from edge.replay.stored_result import whole_text
from edge.system.places import check_place, write_json

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
REF = (
    '{"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls -la\\n", "duration": 1.0}],'
    ' "task_complete": false}'
)


def row(task: str, step: int, sample: int | None = None) -> dict[str, Any]:
    fields = {
        "task_id": task,
        "step_idx": step,
        "messages": [{"role": "user", "content": "x"}],
        "ref_raw": REF,
    }
    return fields if sample is None else fields | {"sample_idx": sample}


def prediction(task: str, step: int, text: str = REF, **more: Any) -> dict[str, Any]:
    return {"task_id": task, "step_idx": step, "pred_text": text, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def replay(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row("t", 0), row("t", 1), row("u", 0)])


def test_score(tmp_path: Path, replay: Path) -> None:
    answers = [
        prediction("u", 0, "ls"),
        prediction("t", 1, REF.replace(" -la", "")),
        prediction("t", 0, finish_reason="stop"),
    ]
    out = tmp_path / "new" / "result.json"
    result = score(write(tmp_path / "mine.jsonl", answers), replay, out)
    assert result == read_result(out)
    assert [step_key(step) for step in result["per_step"]] == [("t", 0, 0), ("t", 0, 1), ("u", 0, 0)]
    assert [step["command_f1"] for step in result["per_step"]] == [1.0, 0.6667, 0.0]
    assert result["aggregate"]["avg_command_f1"] == 0.5556
    assert result["aggregate"]["steps"] == 3 and result["aggregate"]["tasks"] == 2
    assert result["model"] == "mine" and result["eval_path"] == str(replay)
    assert result["engine"] == {"rows_missing": 0} and not result["prompt_template"]["rank_eligible"]
    assert result["per_step"][0]["finish_reason"] == "stop"
    assert result["per_step"][2]["pred_text"] == result["per_step"][2]["pred_preview"] == "ls"
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    assert score(tmp_path / "mine.jsonl", replay, out, model="M", force=True)["model"] == "M"


PROBLEMS: dict[str, tuple[list[Any], str]] = {
    "missing": (
        [prediction("t", 0), prediction("u", 0)],
        r"mine.jsonl: t step 1 of .*rows.jsonl has no prediction",
    ),
    "two missing": ([prediction("u", 0)], r"t step 0 and 1 other row of .* have no prediction"),
    "unknown": ([prediction("t", 0), prediction("v", 0)], r"mine.jsonl:2: v step 0 is not among the rows of"),
    "unknown sample": ([prediction("t", 0, sample_idx=1)], r"mine.jsonl:1: t step 0 sample 1 is not among"),
    "twice": (
        [prediction("t", 0), prediction("t", 0, "x")],
        r"mine.jsonl:2: duplicate prediction for t step 0; the first is in line 1",
    ),
    "no text": ([{"task_id": "t", "step_idx": 0}], r"mine.jsonl:1: pred_text is missing"),
    "text null": ([prediction("t", 0) | {"pred_text": None}], "mine.jsonl:1: pred_text is null"),
    "no step": ([{"task_id": "t", "pred_text": ""}], r"mine.jsonl:1: step_idx is missing"),
    "list": ([[]], r"mine.jsonl:1: not a JSON object"),
    "counter": (
        [prediction("t", 0, prompt_tokens="9")],
        "mine.jsonl:1: prompt_tokens is '9'; it must be a non-neg",
    ),
    "empty": ([], r"mine.jsonl: contains no predictions"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_are_named(tmp_path: Path, replay: Path, name: str) -> None:
    answers, reason = PROBLEMS[name]
    with pytest.raises(ReplayError, match=reason) as caught:
        score(write(tmp_path / "mine.jsonl", answers), replay, tmp_path / "result.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "result.json").exists()


def test_other_engines_json_is_read(tmp_path: Path, replay: Path) -> None:
    lines = [prediction("t", 0, "\ud800", logprob=float("nan")), prediction("t", 1), prediction("u", 0)]
    result = score(write(tmp_path / "p.jsonl", lines), replay, tmp_path / "r.json")
    assert [step["pred_text"] for step in result["per_step"]] == ["\ud800", REF, REF]
    (tmp_path / "p.jsonl").write_bytes(b'{"task_id": "\xff"}\n')
    with pytest.raises(
        ReplayError,
        match=r"p\.jsonl:1: is not UTF-8 text \(byte 14 of the line\) \(see `edge schema prediction`\)$",
    ):
        score(tmp_path / "p.jsonl", replay, tmp_path / "r.json")


def test_partial(tmp_path: Path, replay: Path) -> None:
    answers = write(tmp_path / "mine.jsonl", [prediction("t", 1)])
    result = score(answers, replay, tmp_path / "result.json", partial=True)
    assert result["aggregate"]["steps"] == 1 and result["engine"] == {"rows_missing": 2}
    with pytest.raises(ReplayError, match=r"none\.jsonl: contains no predictions"):
        score(write(tmp_path / "none.jsonl", []), replay, tmp_path / "result.json", partial=True)


def test_a_prediction_without_its_sample(tmp_path: Path) -> None:
    """It means the only sample there is; of several it means sample 0."""
    rows = write(tmp_path / "rows.jsonl", [row("t", 0, 4), row("u", 0, 0), row("u", 0, 1)])
    answers = [prediction("t", 0), prediction("u", 0, "x"), prediction("u", 0, sample_idx=1)]
    result = score(write(tmp_path / "mine.jsonl", answers), rows, tmp_path / "result.json")
    assert [(step_key(s), s["pred_text"]) for s in result["per_step"]] == [
        (("t", 4, 0), REF),
        (("u", 0, 0), "x"),
        (("u", 1, 0), REF),
    ]


def test_half_a_surrogate_pair_is_written_and_read_back(tmp_path: Path, replay: Path) -> None:
    """The model's text may escape half a pair; json decodes it, and UTF-8 cannot hold it."""
    text = REF.replace("ls -la", "echo \\ud800 é")
    answers = [prediction(task, step, text) for task, step in (("t", 0), ("t", 1), ("u", 0))]
    result = score(write(tmp_path / "mine.jsonl", answers), replay, tmp_path / "result.json")
    assert result["per_step"][0]["pred_command_units"] == ["echo \ud800 é"]
    assert read_result(tmp_path / "result.json") == result
    assert "é" in (tmp_path / "result.json").read_text(encoding="utf-8")


def test_write_result_leaves_the_old_file_when_it_fails(tmp_path: Path, replay: Path) -> None:
    step = step_result(read_rows(replay)[0], REF)
    out = tmp_path / "result.json"
    write_result(out, {"model": "old"}, [step])
    with pytest.raises(TypeError):
        write_result(out, {"model": object()}, [step])
    assert read_result(out)["model"] == "old"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ResultError, match="is a folder: give the name of a file in it"):
        write_result(folder, {"model": "new"}, [step])
    with pytest.raises(ResultError, match="cannot be written"):
        write_result(out / "inside", {"model": "new"}, [step])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "result.json", "rows.jsonl"]


def test_whole_text() -> None:
    assert whole_text({"pred_preview": "x" * 1199}) == "x" * 1199
    assert whole_text({"pred_preview": "x" * 1200}) is None
    assert whole_text({"pred_preview": "x" * 1200, "pred_text": "x" * 1300}) == "x" * 1300
    assert whole_text({}) is None


CHANGES: dict[str, tuple[Any, str]] = {
    "task": ({"task_id": 3}, "task_id is 3; it must be a non-empty string"),
    "step": ({"step_idx": "x"}, "step_idx is 'x'; it must be a non-negative whole number"),
    "sample": ({"sample_idx": -1}, "sample_idx is -1; it must be a non-negative whole number or null"),
    "flag": ({"valid_json": 1}, "valid_json is 1; it must be true or false"),
    "complete": (
        {"pred_task_complete": "yes"},
        "pred_task_complete is 'yes'; it must be true, false or null",
    ),
    "units": ({"pred_command_units": [1]}, "pred_command_units is a list; it must be a list of strings"),
    "NaN": ({"command_f1": float("nan")}, "command_f1 is nan; it must be a number"),
    "percent": ({"command_recall": 54.3}, "command_recall is 54.3; it must be a number from 0 to 1"),
    "hash": ({"row_sha256": 1}, "row_sha256 is 1; it must be a string or null"),
    "text": ({"pred_text": ["x"]}, "pred_text is a list; it must be a string or null"),
    "counter": (
        {"prompt_tokens": "9"},
        "prompt_tokens is '9'; it must be a non-negative whole number or null",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_steps_are_named(tmp_path: Path, replay: Path, name: str) -> None:
    changes, reason = CHANGES[name]
    steps = [step_result(row, REF) for row in read_rows(replay)]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"per_step": [steps[0], steps[1] | changes]}), encoding="utf-8")
    with pytest.raises(ResultError, match=reason) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path}: per_step[1]: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"per_step": [], "sampling": "greedy"}', "sampling is 'greedy'; it must be an object"),
        (
            b'{"per_step": [], "sampling": {"temperature": "hot"}}',
            "sampling.temperature is 'hot'; it must be a number",
        ),
        (b'{"per_step": [], "model": 3}', "model is 3; it must be a string or null"),
        (
            b'{"per_step": [], "engine": {"parallel": 1.5}}',
            "engine.parallel is 1.5; it must be a whole number or null",
        ),
        (
            b'{"aggregate": {"avg_command_f1": "0.5"}}',
            "aggregate.avg_command_f1 is '0.5'; it must be a number",
        ),
        (
            b'{"aggregate": {"by_bucket": {"early": {"avg_command_f1": true}}}}',
            r"aggregate.by_bucket\['early'\].avg_command_f1 is true; it must be a number",
        ),
        (
            b'{"per_step": [], "provenance": {"tensor_types": {"F32": 3}}}',
            r"provenance.tensor_types\['F32'\] is 3; it must be an object",
        ),
        (b"", "result.json: is damaged, or is not a result of `edge eval` or `edge score`$"),
        (b"{", "is damaged, or is not a result"),
        (b"\xff\xfe{}", "is damaged, or is not a result"),
        (b"[" * 100_000, "is damaged, or is not a result"),
        (b"[]", "result.json: is not a result of `edge eval` or `edge score`$"),
        (b"{}", "is not a result"),
        (b'{"per_step": {}}', "is not a result"),
        (b'{"measurement": 1}', "is a measurement of edge measure, not a result"),
        (b'{"comparison": 1}', "is a comparison of edge compare, not a result"),
        (b'{"per_step": [1]}', r"per_step\[0\] is not an object"),
        (b'{"per_step": [{}]}', r"per_step\[0\]: task_id is missing"),
        (b'{"per_step": [{"task_id": "t"}]}', r"per_step\[0\]: step_idx is missing"),
    ],
)
def test_no_result(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "result.json").write_bytes(data)
    with pytest.raises(ResultError, match=reason) as caught:
        read_result(tmp_path / "result.json")
    assert "\n" not in str(caught.value)


def test_other_places(tmp_path: Path, replay: Path) -> None:
    step = step_result(read_rows(replay)[0], REF)
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"per_step": [step, step]}), encoding="utf-8")
    with pytest.raises(
        ResultError, match=r"per_step\[1\]: duplicate of t step 0, which is also per_step\[0\]"
    ):
        read_result(path)
    path.write_text('{"aggregate": {"avg_command_f1": 0.5}}', encoding="utf-8")
    assert read_result(path)["per_step"] == []
    path.write_text(
        '{"per_step": [], "engine": null, "aggregate": {"has_plan_pct": 1, "valid_json_pct": null}}',
        encoding="utf-8",
    )
    assert read_result(path) == {"per_step": [], "aggregate": {"has_plan_pct": 1}}
    with pytest.raises(ResultError, match="No such file"):
        read_result(tmp_path / "none.json")
    for name in ("bucket", "source_group", "sample_idx"):
        step.pop(name)
    path.write_text(json.dumps({"per_step": [step]}), encoding="utf-8")
    [read] = read_result(path)["per_step"]
    assert (read["bucket"], read["source_group"], step_key(read)) == ("early", "unknown", ("t", 0, 0))
    assert issubclass(ResultError, EdgeError)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("", "the name of the file to write is empty"),
        (".", "is a folder"),
        ("/", "is a folder"),
        ("{tmp}", "is a folder"),
        ("{tmp}/file/r.json", "file is a file, not a folder"),
        ("{tmp}/file/deep/r.json", "file is a file, not a folder"),
        ("{tmp}/loop", "cannot be written: Too many levels"),
        ("{tmp}/" + "x" * 300, "cannot be written: File name too long"),
        ("/proc/edge/r.json", "cannot be written: "),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, replay: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    path = place.format(tmp=tmp_path)
    predictions = write(tmp_path / "p.jsonl", [prediction("t", 0)])
    before = sorted(tmp_path.iterdir())
    # The place is refused before the predictions, which lack two rows.
    for work in (
        check_place,
        lambda path: write_json(path, {}),
        lambda path: score(predictions, replay, path),
    ):
        with pytest.raises(ResultError, match=reason) as caught:
            work(path)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ResultError, match=r"closed.r\.json: cannot be written: Permission denied"):
        check_place(tmp_path / "closed" / "r.json")


def test_links_stay_and_devices_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.json").write_text("old")
    for name, target in (("link", "kept/old.json"), ("dangling", "kept/new.json")):
        (tmp_path / name).symlink_to(target)
        check_place(tmp_path / name)
        write_json(tmp_path / name, {"a": 1})
        assert (tmp_path / name).is_symlink() and json.loads((tmp_path / target).read_text()) == {"a": 1}
    check_place("/dev/null")
    write_json("/dev/null", {})
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    check_place(tmp_path / "fifo")
    write_json(tmp_path / "fifo", [1])
    assert json.loads(os.read(reader, 100)) == [1] and (tmp_path / "fifo").is_fifo()
    os.close(reader)
    code = "from edge.replay.result import write_json; print('first', flush=True); write_json('/dev/stdout', [1])"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=ROOT, check=True)
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert piped.stdout == (tmp_path / "out").read_bytes() == b"first\n[\n 1\n]\n"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "link", "dangling", "fifo", "out"}


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not beside this checkout")
def test_a_real_vllm_result_has_the_shape_of_ours(tmp_path: Path) -> None:
    published = read_result(DATA / "smollm2_vllm_bf16.json")
    rows = {row.key: row for row in read_rows(DATA / "replay_terminal_dev.jsonl")}
    assert len(published["per_step"]) == 36
    texts = {step_key(step): text for step in published["per_step"] if (text := whole_text(step)) is not None}
    answers = [prediction(key[0], key[2], text) for key, text in texts.items()]
    ours = score(
        write(tmp_path / "p.jsonl", answers),
        DATA / "replay_terminal_dev.jsonl",
        tmp_path / "r.json",
        partial=True,
    )
    assert len(ours["per_step"]) == len(texts) == 33 and set(texts) < set(rows)
    by_key = {step_key(step): step for step in published["per_step"]}
    for step in ours["per_step"]:
        assert by_key[step_key(step)].items() <= step.items()
    assert published["aggregate"].keys() <= ours["aggregate"].keys()
