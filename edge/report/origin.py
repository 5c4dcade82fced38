"""How each result of a report was made: one table of hashes, versions, settings and machine, a column for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge.report.evidence import Run, mapping
from edge.report.words import DASH, size

_TOLD_ELSEWHERE = {"backend", "dtype"}  # of `sampling`: they have rows of their own


@dataclass(frozen=True)
class Line:
    """One thing told of every result: a value for each, or a single one where all are the same."""

    name: str
    values: tuple[str, ...]
    is_code: bool

    @property
    def same(self) -> bool:
        return len(set(self.values)) == 1


def origin(runs: Sequence[Run]) -> list[tuple[str, list[Line]]]:
    """The table in groups; what no result tells is left out."""
    groups = (
        ("Model", _MODEL),
        ("Software and machine", _SOFTWARE),
        ("Rows and prompts", _ROWS),
        ("Limits and settings", _from("sampling", runs, without=_TOLD_ELSEWHERE)),
        ("Run", [*_RUN, *_from("engine", runs, without={"peak_memory_bytes"})]),
    )
    table = []
    for heading, wanted in groups:
        lines = []
        for name, get, is_code in wanted:
            values = tuple(_text(get(run)) for run in runs)
            if any(value != DASH for value in values):
                lines.append(Line(name, values, is_code))
        if lines:
            table.append((heading, lines))
    return table


_Wanted = tuple[str, Callable[[Run], object], bool]


def _provenance(name: str) -> Callable[[Run], object]:
    return lambda run: run.provenance.get(name)


def _top(name: str) -> Callable[[Run], object]:
    return lambda run: run.result.get(name)


def _name_of(value: object) -> object:
    """A path's last part: where somebody keeps files is not to be published. A hub id stays."""
    if not isinstance(value, str):
        return value
    path = PurePosixPath(value.replace("\\", "/"))
    hub_id = len(path.parts) == 2 and not path.suffix and path.parts[0] not in ("/", ".", "..", "~")
    return value if hub_id else path.name


def _types(run: Run) -> object:
    told = []
    for name, share in (run.provenance.get("tensor_types") or {}).items():
        told.append(f"{name}: {share['tensors']} tensors, {size(share['bytes'])}")
    return "; ".join(told) or None


_MODEL: list[_Wanted] = [
    ("result file", lambda run: Path(run.path).name, False),
    ("model", _top("model"), False),
    ("model file", lambda run: _name_of(run.result.get("model_path")), False),
    ("model SHA-256", lambda run: run.provenance.get("model_sha256") or run.result.get("model_sha256"), True),
    ("model bytes", _provenance("model_bytes"), False),
    ("parameters", _provenance("n_params"), False),
    ("quantization", lambda run: run.provenance.get("quantization") or run.sampling.get("dtype"), False),
    ("tensor types", _types, False),
    ("converted from", lambda run: _name_of(run.provenance.get("source")), False),
    ("source revision", _provenance("source_revision"), True),
    ("importance matrix", _provenance("imatrix"), False),
    ("adapter", lambda run: _name_of(run.result.get("lora_path")), False),
]
_SOFTWARE: list[_Wanted] = [
    ("edge", _provenance("edge"), False),
    ("backend", lambda run: run.provenance.get("backend") or run.sampling.get("backend"), False),
    ("backend version", _provenance("backend_version"), False),
    ("llama.cpp", _provenance("llama_cpp"), False),
    ("llama-cpp-python", _provenance("llama_cpp_python"), False),
    ("platform", _provenance("platform"), False),
    ("CPU", _provenance("cpu"), False),
    ("GPU", _top("gpu"), False),
    ("threads", _provenance("threads"), False),
]
_ROWS: list[_Wanted] = [
    ("rows file", lambda run: _name_of(run.result.get("eval_path")), False),
    ("rows SHA-256", _provenance("rows_sha256"), True),
    ("rows file SHA-256", _provenance("rows_file_sha256"), True),
    ("prompt template SHA-256", _provenance("prompt_template_sha256"), True),
    ("prompts made by", lambda run: run.result.get("prompt_template", {}).get("template_status"), False),
    (
        "longest prompt, tokens",
        lambda run: run.result.get("prompt_template", {}).get("prompt_tokens_max"),
        False,
    ),
    ("grammar SHA-256", _provenance("grammar_sha256"), True),
]
_RUN: list[_Wanted] = [
    ("finished", lambda run: str(run.result.get("timestamp") or "").replace("T", " "), False),
    ("loading, s", _top("load_time_sec"), False),
    ("answering, s", _top("gen_time_sec"), False),
]


def _from(field: str, runs: Iterable[Run], without: set[str]) -> list[_Wanted]:
    """Every plain value that any result has in `field`, under its own name."""
    names: dict[str, None] = {}
    for run in runs:
        for name, value in mapping(run.result.get(field)).items():
            if not isinstance(value, dict | list) and name not in without:
                names[name] = None

    def getter(name: str) -> Callable[[Run], object]:
        return lambda run: mapping(run.result.get(field)).get(name)

    return [(name.replace("_", " "), getter(name), False) for name in names]


def _text(value: object) -> str:
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        told: Mapping[str, Any] = value
        return "; ".join(f"{name}: {_text(entry)}" for name, entry in told.items()) or DASH
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or DASH
    return str(value)
