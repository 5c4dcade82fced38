"""The solved trials as replay rows: for training, calibration and replay."""

import json
from collections.abc import Sequence
from pathlib import Path

from edge.compare.trials import TrialResult
from edge.errors import ResultError
from edge.replay.rows import read_lines
from edge.system.files import whole_file, write_all
from edge.system.outputs import check_output


def export_solved(results: Sequence[tuple[Path, TrialResult]], to: Path) -> int:
    """Write the session records of all solved trials as one file of replay rows. Returns the number of rows.

    Each row gets the task_id `RESULT/TASK.ATTEMPT`, so that trials of several models stay apart. Raises ResultError if
    nothing is solved or a record is missing, ReplayError if one is damaged.
    """
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
                lines.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    if not lines:
        raise ResultError(f"{to}: no trial of a model was solved, so there are no rows to write")
    check_output(to, [*records, *(path for path, _ in results)], option="--export-solved")
    try:
        with whole_file(to) as (_, descriptor):
            for line in lines:
                write_all(descriptor, line)
    except OSError as error:
        raise ResultError(f"{to}: cannot be written: {error.strerror}") from None
    return len(lines)
