"""Read measurement JSONs (edge.measure.schema) and check every figure that a report shows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.compare.stated import wrong_figure
from edge.errors import ResultError
from edge.measure.schema import FORMAT

_BAND = ("kl_mean", "kl_median", "kl_p90", "kl_p99")


@dataclass(frozen=True)
class Band:
    """How far some tokens are from the base, by their position in the answer or by their field. In nats per token."""

    name: str
    tokens: int
    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    top1_agreement_pct: float | None


@dataclass(frozen=True)
class CheckedMeasurement:
    """A measurement JSON with checked figures. Negative log-likelihoods and KL divergences are in nats per token."""

    path: str
    kind: str
    """`rows`: reference answers after their prompts; `text`: plain text in chunks."""
    model_sha256: str
    base: str
    """The name of the base, or ""."""
    base_sha256: str | None
    adapters: tuple[tuple[str, float], ...]
    """SHA-256 and scale of the LoRA adapters of the model, sorted."""
    aggregate: Mapping[str, float]
    """The finite numbers of the aggregate, by their names there."""
    intervals: Mapping[str, tuple[float, float]]
    by_position: tuple[Band, ...]
    by_field: tuple[Band, ...]


def check_measurement(path: Path | str, data: Mapping[str, object]) -> CheckedMeasurement:
    """Check the JSON of a measurement. Raises ResultError if a figure is missing or has the wrong type."""
    if data["measurement"] != FORMAT:
        raise ResultError(
            f"{path}: is a measurement of format {str(data['measurement'])[:20]}; this edge reads format {FORMAT}"
        )
    if data.get("shard"):
        raise ResultError(f"{path}: is a shard of a measurement; put the shards together with edge join")
    model_sha256, kind = _text(path, data, "model_sha256"), _text(path, data, "kind")
    aggregate = data.get("aggregate")
    if not isinstance(aggregate, dict):
        raise ResultError(f"{path}: aggregate is missing or is not an object")
    figures = {name: value for name, stored in aggregate.items() if (value := number(stored)) is not None}
    for name in ("tokens", "nll"):
        if name not in figures:
            raise ResultError(f"{path}: aggregate.{name} is missing or is not a number")
    _check_figures(path, figures)
    _check_steps(path, figures, data.get("per_step"))
    intervals = {}
    for name, bounds in mapping(aggregate.get("intervals") or data.get("intervals")).items():
        pair = [number(bound) for bound in bounds] if isinstance(bounds, list) else []
        if len(pair) != 2 or pair[0] is None or pair[1] is None:
            raise ResultError(f"{path}: the interval of {name[:40]} is not two numbers")
        intervals[name] = (pair[0], pair[1])
    base_sha256 = data.get("base_sha256")
    return CheckedMeasurement(
        path=str(path),
        kind=kind,
        model_sha256=model_sha256,
        base=str(data.get("base") or ""),
        base_sha256=base_sha256 if isinstance(base_sha256, str) else None,
        adapters=_adapters(data),
        aggregate=figures,
        intervals=intervals,
        by_position=_bands(path, data, "by_position"),
        by_field=_bands(path, data, "by_field"),
    )


def _check_figures(path: Path | str, figures: Mapping[str, float]) -> None:
    """Raises ResultError for a figure that no measurement can have."""
    for name, value in figures.items():
        percent = name.endswith("_pct")
        if (percent and not 0 <= value <= 100) or (name == "tokens" and value < 1):
            must = "from 0 to 100" if percent else "1 or more"
            raise ResultError(f"{path}: aggregate.{name} is {value:g}; it must be {must}")
        if name.startswith("kl_") and value < -1e-6:  # rounding gives about -1e-9
            raise ResultError(f"{path}: aggregate.{name} is {value:g}; a divergence is not negative")


def _check_steps(path: Path | str, figures: Mapping[str, float], steps: object) -> None:
    """Check the means of the aggregate against its rows, where each row has them. Raises ResultError."""
    rows = [mapping(step) for step in steps] if isinstance(steps, list) else []
    tokens = [number(row.get("tokens")) or 0.0 for row in rows]
    if not sum(tokens):
        return
    right = {}
    for name in ("tokens", "nll", "kl_mean", "top1_agreement_pct"):
        values = [number(row.get(name)) for row in rows]
        if name not in figures or None in values:
            continue
        weighted = sum((value or 0.0) * count for value, count in zip(values, tokens, strict=True))
        right[name] = sum(tokens) if name == "tokens" else weighted / sum(tokens)
    stated = {name: figures[name] for name in right}
    wrong = wrong_figure(stated, right, "rows", relative=1e-4, absolute=1e-9, name="aggregate")
    if wrong is not None:
        raise ResultError(f"{path}: {wrong}: the file was changed")


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def _adapters(data: Mapping[str, object]) -> tuple[tuple[str, float], ...]:
    listed = mapping(data.get("provenance")).get("adapters")
    found = [mapping(one) for one in listed] if isinstance(listed, list) else []
    return tuple(sorted((str(one.get("sha256")), number(one.get("scale")) or 0.0) for one in found))


def _text(path: Path | str, data: Mapping[str, object], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ResultError(f"{path}: {name} is missing or is not text")
    return value


def _bands(path: Path | str, data: Mapping[str, object], name: str) -> tuple[Band, ...]:
    """The bands that have divergences; empty where the model was not compared with a base."""
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


def _span(entry: Mapping[str, object]) -> str:
    """`from` and `to` of a band as text: `4–7`, `4`, `4+`."""
    low, high = number(entry.get("from")), number(entry.get("to"))
    if low is None:
        return "?"
    if high is None:
        return f"{low:g}+"
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
