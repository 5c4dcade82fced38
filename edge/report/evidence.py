"""The files that a report is made of: results, each with the measurements of the same model file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from edge.compare.labels import contradicted, model_hash, named_types, stated_type
from edge.errors import ResultError
from edge.replay.result import adapter_key, read_result
from edge.replay.stored_result import Provenance, Result, SamplingFields, Step
from edge.report.measurements import CheckedMeasurement, check_measurement

_LONG = 12  # characters of a beginning that is left out although one name does not have it


@dataclass(frozen=True)
class Named:
    """How a page names a result: by the name of its file, and by a short label."""

    name: str
    label: str


@dataclass(frozen=True)
class Run:
    """One result, with the measurements of the same model file."""

    path: str
    label: str
    """A short name that no other run of the report has."""
    name: str
    """The name of its file."""
    result: Result
    measurements: tuple[CheckedMeasurement, ...] = ()

    @property
    def provenance(self) -> Provenance:
        return self.result.get("provenance", {})

    @property
    def sampling(self) -> SamplingFields:
        return self.result.get("sampling", {})

    @property
    def steps(self) -> list[Step]:
        return self.result["per_step"]

    @property
    def measured_here(self) -> bool:
        """Whether the result says that edge made it. Any other result is marked as published."""
        return bool(self.provenance.get("edge")) or self.sampling.get("backend") == "edge"

    @property
    def unquantized(self) -> bool:
        """Whether the result says that its weights are floats of 16 or 32 bits."""
        dtype = self.provenance.get("quantization") or self.sampling.get("dtype")
        return str(dtype).lower() in {"bf16", "bfloat16", "f16", "float16", "f32", "float32"}


def read_runs(paths: Sequence[Path | str], named: Mapping[str, Named] | None = None) -> list[Run]:
    """Read results, in the given order, each with its measurements: those with the same `model_sha256` and adapters.

    `named`: how an earlier page named them, by path. None: by their files.
    Raises ResultError if a file is neither a result nor a measurement, if a file is given twice, and if the model of a
    measurement has no result.
    """
    if not paths:
        raise ResultError("no result to report: give at least one result JSON")
    results: list[tuple[str, Result]] = []
    measurements: list[CheckedMeasurement] = []
    seen: set[Path] = set()
    for path in paths:
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)
        content = _load(path)
        if isinstance(content, dict) and "measurement" in content:
            measurements.append(check_measurement(path, content))
        else:
            results.append((str(path), read_result(path)))
            if results[-1][1].get("shard"):
                raise ResultError(f"{path}: is a shard of a result; put the shards together with edge join")
    if not results:
        raise ResultError(f"{paths[0]}: is a measurement: give the result of the same model too")
    given = [path for path, _ in results]
    own = zip(results, short_labels(given), strict=True)
    names = named or {
        path: Named(Path(path).name, stated_label(label, result)) for (path, result), label in own
    }
    runs = [
        Run(
            path,
            names[path].label,
            names[path].name,
            result,
            tuple(m for m in measurements if _is_about(m, result)),
        )
        for path, result in results
    ]
    owned = {measurement.path for run in runs for measurement in run.measurements}
    for measurement in measurements:
        if measurement.path not in owned:
            raise ResultError(
                f"{measurement.path}: is about the model {measurement.model_sha256[:12]}…, and no result is about that "
                "model with the same adapters: give its result too"
            )
    return runs


def short_labels(paths: Sequence[str]) -> list[str]:
    """Short names of files: without the beginning that all names share; with their folders if two names are equal.

    A long beginning that all names but one share goes too: the reference often has its own name. Types stay.
    """
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        return _from_common_folder(paths)
    if beginning := _beginning(stems):
        return [stem.removeprefix(beginning) for stem in stems]
    for left_out in stems if len(stems) > 2 else []:
        beginning = _beginning([stem for stem in stems if stem != left_out])
        labels = [stem.removeprefix(beginning) for stem in stems]
        if len(beginning) >= _LONG and len(set(labels)) == len(labels):
            return labels
    return stems


def _from_common_folder(paths: Sequence[str]) -> list[str]:
    """The paths from the last folder that has all of them, so that a page does not show where that folder is."""
    absolute = any(Path(path).is_absolute() for path in paths)
    parts = [PurePath(os.path.abspath(path) if absolute else path).parts for path in paths]
    columns = zip(*(each[:-1] for each in parts), strict=False)
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    return ["/".join(each[shared:]) for each in parts]


def _beginning(stems: Sequence[str]) -> str:
    """What all names begin with, up to a mark and without a part of a type; empty if a name would have nothing left."""
    columns = zip(*stems, strict=False)
    same = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    for end in range(same, 0, -1):
        whole = all(len(stem) > end and named_types(stem[end:]) == named_types(stem) for stem in stems)
        if stems[0][end - 1] in "-_. " and whole:
            return stems[0][:end] if len(stems) > 1 else ""
    return ""


def stated_label(label: str, result: Result) -> str:
    """A label from a file's name, with the type of the model file first if the name states another one."""
    return f"{stated_type(result)} (named {label})" if contradicted(label, result) else label


def _is_about(measurement: CheckedMeasurement, result: Result) -> bool:
    """Whether both are about the same model file with the same adapters."""
    return measurement.model_sha256 == model_hash(result) and measurement.adapters == (
        adapter_key(result) or ()
    )


def _load(path: Path | str) -> object:
    """The JSON of a file, or None if it cannot be read: `read_result` then says what is wrong."""
    try:
        content: object = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return content
