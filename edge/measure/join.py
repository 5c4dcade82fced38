"""Put the shards of a measurement together: the same checks as for a replay, and the figures of all rows."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np

from edge.compare.stated import wrong_figure
from edge.errors import ResultError
from edge.measure.figures import joint_figures, positions_of
from edge.measure.positions import MeasuredRow
from edge.measure.schema import FORMAT, Measurement, RowFigures
from edge.replay.join import check_parts, in_order, joined_provenance, part_of
from edge.system.outputs import check_output, check_replaced, named_run
from edge.system.places import write_json
from edge.system.typed_json import check


def is_measurement(path: Path) -> bool:
    """Whether a file is a measurement; False also if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "measurement" in value


def join_measurements(shards: Sequence[Path | str], out: Path | str, *, force: bool = False) -> Measurement:
    """Put the shards of one `edge measure` together, write the whole measurement to `out` and return it.

    Its figures are byte for byte those of a run without shards on the same kind of machine. Times and decoded tokens
    are sums over the machines. Raises ResultError for a file that is not a shard, and for shards that are missing,
    repeated or of different runs.
    """
    check_output(out, shards)
    found = [_read(path) for path in shards]
    parts = [
        part_of(path, one, [step["task_id"] for step in one["per_step"]])
        for path, one in zip(shards, found, strict=True)
    ]
    check_parts(parts)
    run = {name: value for name, value in parts[0].run.items() if name != "shard"}
    check_replaced(out, run, lambda path: named_run(path, "measurement"), kind="a measurement", force=force)
    steps: list[RowFigures] = in_order(parts, [one["per_step"] for one in found])
    left_out = ("shard", "aggregate", "intervals", "by_position", "by_field", "per_step")
    whole = cast(Measurement, {name: value for name, value in found[0].items() if name not in left_out})
    whole["timestamp"] = datetime.now(UTC).isoformat(timespec="seconds")
    whole["run"] = run
    whole["provenance"] = joined_provenance(parts)
    decoded = sum(one["method"]["tokens_decoded"] for one in found)
    whole["method"] = {**found[0]["method"], "tokens_decoded": decoded}
    whole["load_time_sec"] = round(sum(one["load_time_sec"] for one in found), 3)
    whole["measure_time_sec"] = round(sum(one["measure_time_sec"] for one in found), 3)
    for part, one in zip(parts, found, strict=True):
        _check_figures(part.path, one)
    rows = [_row(step) for step in steps]
    values = [positions_of(step["positions"]) for step in steps]
    whole = cast(Measurement, {**whole, **joint_figures(rows, values, whole["method"]["chunk"])})
    write_json(out, whole)
    return whole


def _check_figures(path: str, shard: Measurement) -> None:
    """Raise ResultError if the figures of a shard are not those of its positions."""
    steps = shard["per_step"]
    own = joint_figures(
        [_row(step) for step in steps],
        [positions_of(step["positions"]) for step in steps],
        shard["method"]["chunk"],
    )
    right = {"aggregate": own["aggregate"], "per_step": own["per_step"]}
    # A step of a shard also has its positions.
    stated = {
        "aggregate": _of_names(shard["aggregate"], own["aggregate"]),
        "per_step": [_of_names(step, one) for step, one in zip(steps, own["per_step"], strict=True)],
    }
    if wrong := wrong_figure(stated, right, "positions", relative=1e-6, absolute=1e-9):
        raise ResultError(f"{path}: {wrong}: the file was changed")


def _of_names(stated: Mapping[str, object], right: Mapping[str, object]) -> dict[str, object]:
    """The stated figures that have a right one."""
    return {name: stated.get(name) for name in right}


def _row(step: RowFigures) -> MeasuredRow:
    values = step["positions"]
    places = np.arange(len(values["nll"]))
    fields, command = values.get("fields"), values.get("command")
    return MeasuredRow(
        (step["task_id"], step["sample_idx"], step["step_idx"]),
        step["source_group"],
        step["bucket"],
        places,
        places,
        None if fields is None else tuple(fields),
        None if command is None else range(*command),
        step.get("row_sha256"),
        step.get("prompt_sha256"),
        step["prompt_tokens"],
    )


def _read(path: Path | str) -> Measurement:
    """A measurement, checked against its types. Raises ResultError."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ResultError(f"{path}: is damaged, or is not a measurement of edge measure") from None
    if not isinstance(value, dict) or "measurement" not in value:
        raise ResultError(f"{path}: is not a measurement of edge measure; give shards of one kind")
    if value["measurement"] != FORMAT:
        raise ResultError(
            f"{path}: is a measurement of format {str(value['measurement'])[:20]}; this edge reads format {FORMAT}"
        )
    found = check(value, Measurement, str(path))
    if found.get("shard") and (bad := next((s for s in found["per_step"] if not _complete(s)), None)):
        raise ResultError(f"{path}: {bad['task_id']} lacks its positions; make the shard again")
    return found


def _complete(step: RowFigures) -> bool:
    values = step.get("positions")
    if values is None:
        return False
    lists = [
        values[name] for name in ("nll", "base_nll", "kl", "kl_error", "same_top", "fields") if name in values
    ]
    command = values.get("command")
    return (
        len({len(one) for one in lists}) == 1
        and bool(values["nll"])
        and ("kl" in values) == all(name in values for name in ("base_nll", "kl_error", "same_top"))
        and (command is None or (len(command) == 2 and 0 <= command[0] <= command[1] <= len(values["nll"])))
    )
