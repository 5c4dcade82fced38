"""Score answers that another engine wrote for replay rows (`edge score`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edge.errors import ReplayError
from edge.replay.prepare import chosen_rows
from edge.replay.provenance import provenance
from edge.replay.result import step_result, stored_run, write_result
from edge.replay.rows import (
    Key,
    Row,
    by_step,
    describe,
    read_lines,
    rows_sha256,
    see,
    step_key,
    without_sample,
)
from edge.replay.stored_result import Head, Prediction, Reported, Result
from edge.system.hashes import file_sha256
from edge.system.outputs import check_output, check_replaced
from edge.system.text import counted
from edge.system.typed_json import problems


@dataclass(frozen=True)
class _Prediction:
    line: int
    text: str
    reported: Reported


def score(
    predictions: Path | str,
    replay: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    partial: bool = False,
    force: bool = False,
) -> Result:
    """Score predictions against replay rows, write the result JSON to `out` and return it.

    Predictions are JSON Lines with task_id, step_idx and pred_text, and with sample_idx where a step has several
    samples. finish_reason, prompt_tokens, completion_tokens, closed_at_budget and prompt_sha256 are kept. NaN and half
    surrogate pairs are accepted, because other engines write them. `model` is the name of the model, by default the
    stem of the file.

    Every row needs a prediction, because the score of a part can be higher than the score of all rows. With `partial`,
    rows without a prediction are left out, and `engine.rows_missing` is their number. A prediction for an unknown row
    and a second prediction for a row are errors. A result of another run at `out` is replaced only with `force`.
    Raises ReplayError with file, line and step, and ResultError if `out` cannot be written.
    """
    check_output(out, [predictions, replay])
    rows = {row.key: row for row in chosen_rows(replay, None, None)}
    answers = _read_predictions(predictions, replay, rows)
    missing = [key for key in rows if key not in answers]
    if missing and not partial:
        others = len(missing) - 1
        more = f" and {counted(others, 'other row')} of {replay} have" if others else f" of {replay} has"
        raise ReplayError(f"{predictions}: {describe(missing[0])}{more} no prediction")
    answered = [(row, answers[key]) for key, row in rows.items() if key in answers]
    run = {
        "backend": "predictions",
        "predictions_sha256": file_sha256(predictions),
        "rows_sha256": rows_sha256(row for row, _ in answered),
        "model": model or Path(predictions).stem,
    }
    check_replaced(out, run, stored_run, kind="a result", force=force)
    return write_result(
        out,
        _head(predictions, replay, run, len(answered), len(missing)),
        [step_result(row, prediction.text, **prediction.reported) for row, prediction in answered],
    )


def _head(
    predictions: Path | str, replay: Path | str, run: Mapping[str, str | None], answered: int, missing: int
) -> Head:
    """The top-level fields of the result; `answered` and `missing` count rows."""
    return {
        "run": run,
        "model": run["model"],
        "model_path": str(predictions),
        "eval_path": str(replay),
        "sampling": {"backend": "predictions"},
        "prompt_template": {
            "template_status": "unknown",
            "rank_eligible": False,
            "row_count": answered,
        },
        "engine": {"rows_missing": missing},
        "provenance": provenance(
            {
                "rows_sha256": run["rows_sha256"],
                "rows_file_sha256": file_sha256(replay),
                "platform": None,  # the machine that wrote the answers is unknown
                "cpu": None,
            }
        ),
    }


def _read_predictions(
    path: Path | str, replay: Path | str, rows: Mapping[Key, Row]
) -> dict[Key, _Prediction]:
    """The predictions by the key of their row. Raises ReplayError."""
    steps = by_step(rows)
    answers: dict[Key, _Prediction] = {}
    for line, value in read_lines(path, schema="prediction", strict=False):
        where = f"{path}:{line}"
        if (problem := next(problems(value, Prediction), None)) is not None:
            raise ReplayError(f"{where}: {problem} ({see('prediction')})")
        fields = cast(Prediction, value)
        key = step_key(fields)
        if fields.get("sample_idx") is None:
            key = without_sample(key, steps)
        if key not in rows:
            raise ReplayError(f"{where}: {describe(key)} is not among the rows of {replay}")
        if key in answers:
            raise ReplayError(
                f"{where}: duplicate prediction for {describe(key)}; the first is in line {answers[key].line}"
            )
        kept = {name: value[name] for name in Reported.__annotations__ if name in value}
        answers[key] = _Prediction(line, fields["pred_text"], cast(Reported, kept))
    if not answers:
        raise ReplayError(f"{path}: contains no predictions ({see('prediction')})")
    return answers
