"""The solved trials as replay rows: for training, calibration and replay."""

import json
from collections.abc import Sequence
from pathlib import Path

from edge.compare.trials import TrialResult
from edge.errors import ResultError
from edge.replay.rows import read_lines
from edge.system.files import whole_file, write_all
from edge.system.hashes import text_sha256
from edge.system.outputs import Run, check_output, check_replaced

_OPTION = "--export-solved"
_RUN = "trials_run"
"""The field of each row that says which trials it is of."""


def run_of(runs: Sequence[Run]) -> str | None:
    """What rows of these runs of trials say about where they come from: a SHA-256 of all that the trials depend on."""
    return text_sha256(json.dumps(runs, sort_keys=True))


def check_rows(to: Path, run: str | None, inputs: Sequence[Path | str], *, force: bool) -> None:
    """Check that rows of this run may be written to `to`: before the trials, which take long. Raises ResultError."""
    check_output(to, inputs, option=_OPTION)
    check_replaced(to, {_RUN: run}, _stored, kind="rows of trials", force=force, option=_OPTION)


def _stored(path: Path) -> Run | None:
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    if not isinstance(first, dict) or "messages" not in first:
        raise ValueError("no replay row")
    return {_RUN: first[_RUN]} if _RUN in first else None


def export_solved(
    results: Sequence[tuple[Path, TrialResult]],
    to: Path,
    inputs: Sequence[Path | str] = (),
    *,
    force: bool = False,
) -> int:
    """Write the session records of all solved trials as one file of replay rows. Returns the number of rows.

    Each row gets the task_id `RESULT/TASK.ATTEMPT`, so that trials of several models stay apart. Raises ResultError if
    nothing is solved or a record is missing, ReplayError if one is damaged.
    """
    run = run_of([result["run"] for _, result in results])
    lines: list[bytes] = []
    records: list[Path] = []
    for path, result in results:
        for trial in result["trials"]:
            if trial["state"] != "solved" or trial["record"] is None:
                continue
            record = path.parent / trial["record"]
            if not record.is_file():
                raise ResultError(f"{record}: is missing: run the trials again with --force")
            records.append(record)
            for _, row in read_lines(record):
                row["task_id"] = f"{path.stem}/{trial['task']}.{trial['attempt']}"
                row.pop("seal", None)
                row[_RUN] = run
                lines.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    if not lines:
        raise ResultError(f"{to}: no trial of a model was solved, so there are no rows to write")
    check_rows(to, run, [*inputs, *records, *(path for path, _ in results)], force=force)
    try:
        with whole_file(to) as (_, descriptor):
            for line in lines:
                write_all(descriptor, line)
    except OSError as error:
        raise ResultError(f"{to}: cannot be written: {error.strerror}") from None
    return len(lines)
