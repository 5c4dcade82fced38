"""Build, write and read the result JSON of an evaluation. Its types are in edge/replay/stored_result.py.

The names are those of the published vLLM results, so tools of either side read both. edge adds to each step the whole
answer, its counters and the SHA-256 of its row and prompt. It also adds the top-level `engine` and `provenance`.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edge.errors import ResultError
from edge.metrics import aggregate, bucket, score_step
from edge.replay.rows import Key, Row, describe, row_sha256, step_key
from edge.replay.rules import check_aggregate, check_figures, read_again, scored_again
from edge.replay.stored_result import (
    PREVIEW,
    SHARES,
    Head,
    Making,
    Result,
    SamplingFields,
    Step,
    Summary,
)
from edge.system.outputs import Run
from edge.system.places import write_json
from edge.system.typed_json import check

if TYPE_CHECKING:
    from edge.answer.sampling import Sampling

SCHEMA_VERSION = 1
"""Version of the result's schema. Results without the field are published ones, or of edge 0.2.0 and older."""

_RESULT = "a result of `edge eval` or `edge score`"
_OTHERS = {"measurement": "measure", "comparison": "compare", "ranking": "rank"}
"""Fields that name the kind of a JSON file, and the command that writes it."""
_OBJECTS = ("sampling", "prompt_template", "engine", "provenance", "aggregate")


def step_result(row: Row, pred_text: str, **making: Unpack[Making]) -> Step:
    """One row of `per_step`: the answer to a row, its score, and how it was made, as far as that is known."""
    task_id, sample_idx, step_idx = row.key
    return {
        "task_id": task_id,
        "sample_idx": sample_idx,
        "step_idx": step_idx,
        "source_group": row.source_group,
        **score_step(pred_text, row.ref_raw, row.step_idx),
        "pred_text": pred_text,
        "pred_preview": pred_text[:PREVIEW],
        "row_sha256": row_sha256(row),
        "prompt_sha256": None,
        **making,
    }


def write_result(path: Path | str, head: Head, per_step: Sequence[Step]) -> Result:
    """Write a result and return it. The file is complete or is not written. Raises ResultError.

    `head` holds the top-level fields, times in seconds. This function adds `schema_version`, `timestamp` and
    `aggregate`.
    """
    steps = list(per_step)
    result: Result = {
        "schema_version": SCHEMA_VERSION,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        **head,
        "aggregate": aggregate(steps),
        "per_step": steps,
    }
    write_json(path, result)
    return result


def read_result(path: Path | str) -> Result:
    """Read a result, edge's own or a published one, and check it against its types.

    Defaults for steps: `source_group` "unknown", `bucket` from step_idx. A top-level object or a figure that is null
    counts as missing. A file that has only an aggregate gets an empty `per_step`. Fields that do not follow from the
    answers are computed again, and steps that other rules scored are scored again (edge/replay/rules.py). An aggregate
    of another number of steps is replaced by that of the steps; figures that it lacks are added.
    Raises ResultError for a file that is not a result, a field that is missing or of a wrong type, a duplicate step,
    figures that no result can have, and an aggregate that contradicts the steps.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ResultError(f"{path}: is damaged, or is not {_RESULT}") from None
    if isinstance(value, dict) and "per_step" not in value and isinstance(value.get("aggregate"), dict):
        value["per_step"] = []
    if not isinstance(value, dict) or not isinstance(value.get("per_step"), list) or _other_kind(value):
        raise ResultError(f"{path}: is {_other_kind(value)}not {_RESULT}")
    steps: list[Step] = []
    first: dict[Key, int] = {}
    for index, item in enumerate(value["per_step"]):
        where = f"{path}: per_step[{index}]"
        step = read_step(item, where)
        key = step_key(step)
        if key in first:
            raise ResultError(f"{where}: duplicate of {describe(key)}, which is also per_step[{first[key]}]")
        first[key] = index
        steps.append(step)
    if isinstance(newer := value.get("schema_version"), int) and newer > SCHEMA_VERSION:
        raise ResultError(
            f"{path}: has schema version {newer}; this edge reads up to {SCHEMA_VERSION}: update edge"
        )
    for name in _OBJECTS:
        if value.get(name) is None:
            value.pop(name, None)
    if isinstance(figures := value.get("aggregate"), dict):
        value["aggregate"] = {name: figure for name, figure in figures.items() if figure is not None}
    summary = check(value, Summary, str(path))
    stored = summary.get("aggregate", {})
    check_figures(stored, bool(steps), str(path))
    if not steps:
        return {**summary, "per_step": []}
    read, fields = read_again(steps, str(path))
    again, changed = scored_again(read)
    own = aggregate(again)
    found: Result = {**summary, "aggregate": {**own, **stored}, "per_step": again}
    if fields:
        found["reread"] = fields
    if changed:
        found["rescored"] = changed
    if (stated := stored.get("steps", len(steps))) != len(steps):
        return {**found, "aggregate": own, "stated_steps": stated}
    if not changed and not fields:
        check_aggregate(stored, again, str(path))
        return found
    try:
        check_aggregate(stored, again, str(path))
    except ResultError:
        check_aggregate(stored, steps, str(path))  # the aggregate is usually of the same rules as the steps
    return {**found, "aggregate": own}


def _other_kind(value: object) -> str:
    """`a measurement of edge measure, ` for a file that another command wrote; empty if none is known."""
    fields = value if isinstance(value, dict) else {}
    return next((f"a {name} of edge {command}, " for name, command in _OTHERS.items() if name in fields), "")


def adapter_key(result: Head) -> tuple[tuple[str, float], ...] | str | None:
    """What two results with the same adapters share: files and scales, else the path as another engine wrote it.

    None without an adapter.
    """
    adapters = result.get("provenance", {}).get("adapters")
    if adapters:
        return tuple(sorted((one["sha256"], one["scale"]) for one in adapters))
    return result.get("lora_path") or None


def stored_run(path: Path) -> Run | None:
    """The run that wrote a result; None if the result does not say. Raises ResultError if it is not a result."""
    return read_result(path).get("run")


def run_digest(path: Path | str) -> str:
    """The SHA-256 of the run that a result or a measurement names, else of the file. Raises ResultError.

    A run that is repeated with the same inputs and settings has the same digest, although its times differ.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    run = value.get("run") if isinstance(value, dict) else None
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode() if run else data).hexdigest()


def read_step(value: object, where: str) -> Step:
    """A row of `per_step`, with the defaults of `read_result`, checked. Raises ResultError that begins with `where`."""
    if isinstance(value, dict):
        _fill(value)
    step = check(value, Step, where)
    for name in SHARES:
        if not 0 <= step[name] <= 1:
            raise ResultError(f"{where}: {name} is {step[name]}; it must be a number from 0 to 1")
    return step


def _fill(step: dict[str, Any]) -> None:
    step_idx = step.get("step_idx")
    if step.get("bucket") is None and isinstance(step_idx, int):
        step["bucket"] = bucket(step_idx)
    step["source_group"] = str(step.get("source_group") or "unknown")
    if "pred_task_complete_true" not in step:
        completes = [step.get(name) is True for name in ("pred_task_complete", "ref_task_complete")]
        step["pred_task_complete_true"] = all(completes)


def sampling_fields(sampling: "Sampling") -> SamplingFields:
    """The `sampling` fields of edge's own sampling options."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
    }
