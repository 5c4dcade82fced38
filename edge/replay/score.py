"""`edge score`: score texts that any other engine has written for replay rows."""

from pathlib import Path
from typing import Any

from edge.errors import ReplayError
from edge.replay.provenance import provenance
from edge.replay.result import step_result, write_result
from edge.replay.rows import (
    Key,
    by_step,
    describe,
    read_key,
    read_lines,
    read_rows,
    rows_sha256,
    text_field,
    without_sample,
)
from edge.system.hashes import file_sha256
from edge.system.places import check_place

_KEPT = ("finish_reason", "prompt_tokens", "completion_tokens", "closed_at_budget", "prompt_sha256")


def score(
    predictions: Path | str,
    replay: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    partial: bool = False,
) -> dict[str, Any]:
    """Score predictions against replay rows, write the result JSON to `out` and return it.

    Predictions are JSON Lines: task_id, step_idx, pred_text, and sample_idx where a step has several samples;
    finish_reason and the like are kept. NaN and half surrogate pairs are let through, as other engines write them.
    `model` names who wrote them, by default the file's stem. Every row needs a prediction, or a missing answer
    would flatter the score: with `partial` the rows without one are left out, and `engine.rows_missing` says how
    many. `provenance` holds what is known of the rows; a prediction's `prompt_sha256` is kept. A prediction for no
    row, or a second one, is an error too.

    Raises ReplayError that names file, line and step, and ResultError where `out` cannot be written.
    """
    check_place(out)
    rows = {row.key: row for row in read_rows(replay)}
    steps_of = by_step(rows)
    found: dict[Key, dict[str, Any]] = {}
    for line, fields in read_lines(predictions, strict=False):
        where = f"{predictions}:{line}"
        key = read_key(fields, where)
        if fields.get("sample_idx") is None:
            key = without_sample(key, steps_of)
        if key not in rows:
            raise ReplayError(f"{where}: {describe(key)} is not among the rows of {replay}")
        if key in found:
            raise ReplayError(f"{where}: {describe(key)} is there twice, first in line {found[key]['line']}")
        found[key] = {"line": line, "pred_text": text_field(fields, "pred_text", where)}
        found[key] |= {name: fields[name] for name in _KEPT if name in fields}
    if not found:
        raise ReplayError(f"{predictions}: holds no predictions")
    missing = [key for key in rows if key not in found]
    if missing and not partial:
        others = len(missing) - 1
        more = (
            f" and {others} other row{'s' * (others > 1)} of {replay} have" if others else f" of {replay} has"
        )
        raise ReplayError(f"{predictions}: {describe(missing[0])}{more} no prediction")
    steps = [
        step_result(rows[key], **{name: value for name, value in found[key].items() if name != "line"})
        for key in rows
        if key in found
    ]
    head = {
        "model": model or Path(predictions).stem,
        "model_path": str(predictions),
        "eval_path": str(replay),
        "sampling": {"backend": "predictions"},
        "prompt_template": {"template_status": "unknown", "rank_eligible": False, "row_count": len(steps)},
        "engine": {"rows_missing": len(missing)},
        "provenance": provenance(
            rows_sha256=rows_sha256(row for row in rows.values() if row.key in found),
            rows_file_sha256=file_sha256(replay),
            platform=None,  # where the answers were made is not known
            cpu=None,
        ),
    }
    return write_result(out, head, steps)
