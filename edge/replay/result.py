"""The result JSON of an evaluation: built, written whole or not at all, and read with its figures checked.

The names are those of the published vLLM results, so that either side's tools read both. Ours adds the whole
answer, its counters and the SHA-256 of its row and prompt to each step, the top-level `engine` with the counters of
the run, and `provenance` (edge/replay/provenance.py).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.errors import ResultError
from edge.metrics import aggregate, bucket, score_step
from edge.replay.rows import Key, Row, describe, row_sha256
from edge.system.places import write_json

PREVIEW = 1200  # characters of an answer in `pred_preview`, as published


def step_result(row: Row, pred_text: str, **counters: Any) -> dict[str, Any]:
    """One row of `per_step`: the answer to a row, its score, and what is known of its making.

    `counters`: prompt_sha256 (None where unknown), finish_reason ("stop" or "length"), prompt_tokens,
    completion_tokens, closed_at_budget and more.
    """
    task_id, sample_idx, step_idx = row.key
    return {
        "task_id": task_id,
        "sample_idx": sample_idx,
        "step_idx": step_idx,
        "source_group": row.source_group,
        **score_step(pred_text, row.ref_raw, row.step_idx),
        "pred_text": pred_text,
        "row_sha256": row_sha256(row),
        "prompt_sha256": None,
        **counters,
    }


def write_result(
    path: Path | str, head: Mapping[str, Any], per_step: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write a result, whole or not at all, and return it. Raises ResultError.

    `head`: the published top-level fields (model, sampling, prompt_template, times in seconds, …) and `engine`.
    The aggregate is computed here, and each step (`step_result`) gets its `pred_preview`.
    """
    steps = [{**step, "pred_preview": step["pred_text"][:PREVIEW]} for step in per_step]
    result = {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), **head}
    result |= {"aggregate": aggregate(steps), "per_step": steps}
    write_json(path, result)
    return result


def step_key(step: Mapping[str, Any]) -> Key:
    """(task_id, sample_idx, step_idx) of a `per_step` row that `read_result` has checked; sample 0 where missing."""
    return (step["task_id"], step.get("sample_idx") or 0, step["step_idx"])


def whole_text(step: Mapping[str, Any]) -> str | None:
    """The whole answer of a step, or None where only its beginning was published."""
    text = step.get("pred_text")
    if isinstance(text, str):
        return text
    preview = step.get("pred_preview")
    return preview if isinstance(preview, str) and len(preview) < PREVIEW else None


def read_result(path: Path | str) -> dict[str, Any]:
    """Read a result, ours or a published one, and check what figures are made from.

    Steps that lack them get `source_group` "unknown" and their `bucket`; a file with an aggregate
    alone gets an empty `per_step`. Raises ResultError for a file that is no result, a field that is missing or of a
    wrong type, and a step that is there twice.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: is not JSON in UTF-8: {error}") from None
    if isinstance(result, dict) and "per_step" not in result and isinstance(result.get("aggregate"), dict):
        result["per_step"] = []
    if not isinstance(result, dict) or not isinstance(result.get("per_step"), list):
        raise ResultError(f"{path}: is not a result: it has no per_step list")
    seen: dict[Key, int] = {}
    for index, step in enumerate(result["per_step"]):
        where = f"{path}: per_step[{index}]"
        if not isinstance(step, dict):
            raise ResultError(f"{where} is not an object")
        _check_step(step, where)
        step.setdefault("bucket", bucket(step["step_idx"]))
        step["source_group"] = str(step.get("source_group") or "unknown")
        key = step_key(step)
        if key in seen:
            raise ResultError(f"{where}: {describe(key)} is there twice, first in per_step[{seen[key]}]")
        seen[key] = index
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_units(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(unit, str) for unit in value)


# The fields that figures are made from, and what each must be.
_FIELDS: list[tuple[tuple[str, ...], str, Callable[[object], bool]]] = [
    (("task_id",), "a text", lambda value: isinstance(value, str) and bool(value)),
    (("step_idx",), "a whole number from 0", _is_index),
    (("sample_idx",), "a whole number from 0", lambda value: value is None or _is_index(value)),
    (("valid_json", "has_analysis", "has_plan"), "true or false", lambda value: isinstance(value, bool)),
    (
        ("ref_task_complete", "pred_task_complete"),
        "true, false or null",
        lambda value: value is None or isinstance(value, bool),
    ),
    (("ref_command_units", "pred_command_units"), "a list of texts", _is_units),
    (
        ("first_cmd_exact", "command_precision", "command_recall", "command_f1"),
        "a number from 0 to 1",
        _is_number,
    ),
]


def _check_step(step: dict[str, Any], where: str) -> None:
    for names, what, fits in _FIELDS:
        for name in names:
            if name not in step and name != "sample_idx":
                raise ResultError(f"{where}: {name} is missing")
            if not fits(step.get(name)):
                value = "null" if step[name] is None else repr(str(step[name])[:40])
                raise ResultError(f"{where}: {name} is {value}: it must be {what}")


def mapping(value: object) -> Mapping[str, Any]:
    """The object that a result's field should be; an empty one where it is anything else."""
    return value if isinstance(value, dict) else {}
