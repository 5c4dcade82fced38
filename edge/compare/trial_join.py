"""Put the shards of `edge trial` together: the same checks as for a replay, and the figures of all trials."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from edge.compare.trial_figures import figures, levels, read_checked_trials
from edge.compare.trials import Trial, TrialResult
from edge.replay.join import check_parts, in_order, joined_provenance, part_of
from edge.system.outputs import check_output, check_replaced, named_run
from edge.system.places import write_json


def join_trials(shards: Sequence[Path], out: Path, *, force: bool = False) -> TrialResult:
    """Put the shards of one `edge trial` together, write the whole result to `out` and return it.

    The session records stay where they are; the result names them relative to itself. Raises ResultError for a file
    that is not a shard, shards that are missing, given twice, or of different runs.
    """
    check_output(out, shards)
    found = [read_checked_trials(path) for path in shards]
    parts = [
        part_of(path, result, [trial["task"] for trial in result["trials"]])
        for path, result in zip(shards, found, strict=True)
    ]
    check_parts(parts)
    run = {name: value for name, value in found[0]["run"].items() if name != "shard"}
    check_replaced(out, run, lambda path: named_run(path, "trials_version"), kind="a result", force=force)
    trials: list[Trial] = in_order(
        parts,
        [
            [_moved(trial, path.parent, out.parent) for trial in result["trials"]]
            for path, result in zip(shards, found, strict=True)
        ],
    )
    whole: TrialResult = {
        **found[0],
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "figures": figures(trials),
        "by_level": levels(trials),
        "trials": trials,
        "provenance": joined_provenance(parts),
        "run": run,
    }
    del whole["shard"]
    write_json(out, whole)
    return whole


def _moved(trial: Trial, from_: Path, to: Path) -> Trial:
    record = trial["record"]
    return {**trial, "record": None if record is None else os.path.relpath(from_ / record, to)}
