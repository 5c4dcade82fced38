"""The trials of a report: results of `edge trial`, each with the result of the same model file.

Their reader is in edge/compare, because `edge compare` reads them too, and a report may not import the agent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge.compare.labels import model_hash
from edge.compare.trial_figures import read_whole_trials
from edge.compare.trial_pairs import TrialComparison, compare_trials
from edge.compare.trials import TrialResult
from edge.errors import ResultError
from edge.replay.result import adapter_key
from edge.report.contents import Entry, Tried
from edge.report.evidence import Named

_Model = tuple[object, object]


def with_trials(
    entries: Sequence[Entry], paths: Sequence[str], named: Mapping[str, Named] | None
) -> tuple[tuple[Entry, ...], tuple[Tried, ...]]:
    """Read results of `edge trial`. Returns the entries with their trials, and all trials in the order of the page.

    `named`: how an earlier page named the files, by path. Raises ResultError if a file cannot be read, and if a file is
    given twice or two are about one model.
    """
    found = [_read(path, entries, named) for path in paths]
    _check_once(found)
    base = next((one for one in found if one.is_reference), None)
    if base is not None:
        found = [one if one is base else _against(one, base) for one in found]
    by_label = {one.label: one for one in found if one.is_matched}
    kept = tuple(replace(entry, tried=by_label.get(entry.label)) for entry in entries)
    matched = [entry.tried for entry in kept if entry.tried]
    return kept, (*matched, *(one for one in found if not one.is_matched))


def _read(path: str, entries: Sequence[Entry], named: Mapping[str, Named] | None) -> Tried:
    result = read_whole_trials(path)
    model = _model(result)
    # The table of files has one run of each file. Trials belong to that one.
    ranked = sorted(entries, key=lambda entry: bool(entry.other))
    own = next((e for e in ranked if e.run and model[0] and model == _run_model(e)), None)
    name = named[path].name if named else Path(path).name
    stem = named[path].label if named else Path(path).stem
    reference = own is not None and own.is_reference
    return Tried(path, name, own.label if own else stem, own is not None, reference, reference, result, None)


def _model(result: TrialResult) -> _Model:
    """What the trials and a result of the same file with the same adapters share."""
    adapters = result["provenance"].get("adapters") or ()
    return result["provenance"].get("model_sha256"), tuple(
        sorted((one["sha256"], one["scale"]) for one in adapters)
    )


def _run_model(entry: Entry) -> _Model:
    assert entry.run is not None
    return model_hash(entry.run.result), adapter_key(entry.run.result) or ()


def _check_once(found: Sequence[Tried]) -> None:
    """Raises ResultError for a file that is given twice, and for two files about one model."""
    places: dict[Path, Tried] = {}
    labels: dict[str, Tried] = {}
    for one in found:
        if places.setdefault(Path(one.path).resolve(), one) is not one:
            raise ResultError(f"{one.path}: is given twice")
        if one.is_matched and (other := labels.setdefault(one.label, one)) is not one:
            raise ResultError(
                f"{one.path}: has trials of the same model as {other.path}: give one of them, or run the trials "
                "together with --attempts"
            )


def _against(one: Tried, base: Tried) -> Tried:
    """Trials with their difference from those of the reference."""
    if not one.is_matched:
        return one
    return replace(one, same_tasks=_tasks(one.result) == _tasks(base.result), comparison=_compared(one, base))


def _compared(one: Tried, base: Tried) -> TrialComparison | None:
    try:
        return compare_trials(one.path, base.path)
    except ResultError:  # both were read before: they share no task that counts on both sides
        return None


def _tasks(result: TrialResult) -> set[tuple[str, str]]:
    """The tasks that were tried, each with the SHA-256 of its files."""
    return {(trial["task"], trial["task_sha256"]) for trial in result["trials"]}
