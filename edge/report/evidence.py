"""What a report is made of: results and measurements, told apart by content, each measurement with its result."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from edge.errors import ResultError
from edge.replay.result import read_result
from edge.replay.stored_result import Provenance, Result, SamplingFields, Step, Summary

MEASUREMENT = 1  # the format version that is read here

_BAND = ("kl_mean", "kl_median", "kl_p90", "kl_p99")


@dataclass(frozen=True)
class Band:
    """How far some of a measurement's tokens are from the base: by position in the answer, or by field."""

    name: str
    tokens: int
    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    top1_agreement_pct: float | None


@dataclass(frozen=True)
class Measurement:
    """A measurement JSON, its figures checked: negative log-likelihoods and KL divergences in nats a token."""

    path: str
    kind: str
    """`rows`: reference answers given their prompts; `text`: plain text in chunks."""
    model_sha256: str
    base: str
    aggregate: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    by_position: tuple[Band, ...]
    by_field: tuple[Band, ...]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One result as it was read, with what was measured of the same model file."""

    path: str
    label: str
    """Short and unlike that of any other run of the report."""
    result: Result
    measurements: tuple[Measurement, ...] = ()

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
        """Whether edge says that it made the result; any other is marked as published."""
        return bool(self.provenance.get("edge")) or self.sampling.get("backend") == "edge"

    @property
    def unquantized(self) -> bool:
        """Whether its weights are floats of 16 or 32 bits, as far as the result tells."""
        told = self.provenance.get("quantization") or self.sampling.get("dtype")
        return str(told).lower() in {"bf16", "bfloat16", "f16", "float16", "f32", "float32"}


@dataclass
class _Files:
    results: list[tuple[str, Result]] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Results in the order given, each with its measurements: those of the same `model_sha256`.

    Raises ResultError: a file that is neither, one given twice, a measurement of a model without a result.
    """
    if not paths:
        raise ResultError("no result to report: give at least one result JSON")
    files = _Files()
    seen: set[Path] = set()
    for path in paths:
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)
        content = _load(path)
        if isinstance(content, dict) and "measurement" in content:
            files.measurements.append(_measurement(path, content))
        else:
            files.results.append((str(path), read_result(path)))
    if not files.results:
        raise ResultError(f"{paths[0]}: is a measurement: give the result of the same model too")
    labels = short_labels([path for path, _ in files.results])
    runs = [
        Run(path, label, result, tuple(m for m in files.measurements if m.model_sha256 == _sha256(result)))
        for (path, result), label in zip(files.results, labels, strict=True)
    ]
    owned = {measurement.path for run in runs for measurement in run.measurements}
    for measurement in files.measurements:
        if measurement.path not in owned:
            raise ResultError(
                f"{measurement.path}: was measured with the model {measurement.model_sha256[:12]}…, and no result "
                "is of that model: give its result too"
            )
    return runs


def short_labels(paths: Sequence[str]) -> list[str]:
    """What tells files apart: their names without what all of them begin with; whole paths where names are equal."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        return list(paths)
    if len(stems) > 1:
        columns = zip(*stems, strict=False)
        same = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        prefix = stems[0][: max(stems[0].rfind(mark, 0, same) for mark in "-_. ") + 1]
        if all(len(stem) > len(prefix) for stem in stems):
            return [stem[len(prefix) :] for stem in stems]
    return stems


def number(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def _sha256(result: Summary) -> str | None:
    return result.get("provenance", {}).get("model_sha256") or result.get("model_sha256")


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _load(path: Path | str) -> object:
    """The JSON of a file, or None where it has none: `read_result` then says what is wrong."""
    try:
        content: object = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return content


def _measurement(path: Path | str, data: dict[str, Any]) -> Measurement:
    if data["measurement"] != MEASUREMENT:
        raise ResultError(
            f"{path}: is a measurement of format {str(data['measurement'])[:20]}; this edge reads {MEASUREMENT}"
        )
    for name in ("model_sha256", "kind"):
        if not isinstance(data.get(name), str):
            raise ResultError(f"{path}: {name} is missing or no text")
    if not isinstance(data.get("aggregate"), dict):
        raise ResultError(f"{path}: aggregate is missing or no object")
    aggregate = data["aggregate"]
    figures = {name: value for name, told in aggregate.items() if (value := number(told)) is not None}
    for name in ("tokens", "nll"):
        if name not in figures:
            raise ResultError(f"{path}: aggregate.{name} is missing or no number")
    intervals = {}
    for name, bounds in mapping(aggregate.get("intervals") or data.get("intervals")).items():
        pair = [number(bound) for bound in bounds] if isinstance(bounds, list) else []
        if len(pair) != 2 or pair[0] is None or pair[1] is None:
            raise ResultError(f"{path}: the interval of {name[:40]} is not two numbers")
        intervals[name] = (pair[0], pair[1])
    return Measurement(
        str(path),
        data["kind"],
        data["model_sha256"],
        str(data.get("base") or ""),
        figures,
        intervals,
        _bands(path, data, "by_position"),
        _bands(path, data, "by_field"),
        data,
    )


def _bands(path: Path | str, data: Mapping[str, Any], name: str) -> tuple[Band, ...]:
    """Those bands that tell of KL; empty where nothing was compared with a base."""
    listed = data.get(name) or []
    if isinstance(listed, dict):
        listed = [{"field": key, **mapping(value)} for key, value in listed.items()]
    bands = []
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        entry = mapping(entry)
        if not any(key in entry for key in _BAND):
            continue
        values = [number(entry.get(key)) for key in _BAND]
        tokens = number(entry.get("tokens"))
        if None in values or tokens is None:
            raise ResultError(f"{path}: {name}[{index}] lacks one of tokens, {', '.join(_BAND)}")
        mean, median, p90, p99 = (max(0.0, value or 0.0) for value in values)
        label = entry.get("field") or _span(entry)
        bands.append(
            Band(str(label), int(tokens), mean, median, p90, p99, number(entry.get("top1_agreement_pct")))
        )
    return tuple(bands)


def _span(entry: Mapping[str, Any]) -> str:
    low, high = number(entry.get("from")), number(entry.get("to"))
    if low is None:
        return "?"
    if high is None:
        return f"{low:g}+"
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
