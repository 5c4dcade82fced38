"""How the results of a report were made: a table of hashes, versions, settings and machines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edge.report.evidence import Run
from edge.report.measurements import mapping
from edge.report.words import DASH, size
from edge.system.text import counted

_OWN_ROWS = {"backend", "dtype"}  # fields of `sampling` that other rows of the table show


@dataclass(frozen=True)
class Line:
    """One line of the table: a name, and a value for each result."""

    name: str
    values: tuple[str, ...]
    is_code: bool

    @property
    def same(self) -> bool:
        """Whether all results have the same value."""
        return len(set(self.values)) == 1


def origin(runs: Sequence[Run]) -> list[tuple[str, list[Line]]]:
    """The lines of the table, in groups with headings. A line without any value is left out."""
    groups = (
        ("Model", _MODEL),
        ("Software and machine", _SOFTWARE),
        ("Rows and prompts", _ROWS),
        ("Limits and settings", _from("sampling", runs, without=_OWN_ROWS)),
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
    """The last part of a path, so that no folders are published. A hub id stays whole."""
    if not isinstance(value, str):
        return value
    path = PurePosixPath(value.replace("\\", "/"))
    hub_id = len(path.parts) == 2 and not path.suffix and path.parts[0] not in ("/", ".", "..", "~")
    return value if hub_id else path.name


def _adapters(run: Run) -> object:
    adapters = run.provenance.get("adapters")
    if not adapters:
        return _name_of(run.result.get("lora_path"))
    return "; ".join(
        f"{one['name']}, scale {one['scale']:g}, SHA-256 {one['sha256'][:12]}…" for one in adapters
    )


def _types(run: Run) -> object:
    types = [
        f"{name}: {counted(share['tensors'], 'tensor')}, {size(share['bytes'])}"
        for name, share in (run.provenance.get("tensor_types") or {}).items()
    ]
    return "; ".join(types) or None


_MODEL: list[_Wanted] = [
    ("result file", lambda run: run.name, False),
    ("model", _top("model"), False),
    ("model file", lambda run: _name_of(run.result.get("model_path")), False),
    ("model SHA-256", lambda run: run.provenance.get("model_sha256") or run.result.get("model_sha256"), True),
    ("model bytes", _provenance("model_bytes"), False),
    ("parameters", _provenance("n_params"), False),
    ("quantization", lambda run: run.provenance.get("quantization") or run.sampling.get("dtype"), False),
    ("tensor types", _types, False),
    ("recipe", lambda run: "; ".join(run.provenance.get("recipe") or ()) or None, False),
    ("converted from", lambda run: _name_of(run.provenance.get("source")), False),
    ("source revision", _provenance("source_revision"), True),
    ("importance matrix", _provenance("imatrix"), False),
    ("adapter", _adapters, False),
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
    (
        "prompts rendered by",
        lambda run: run.result.get("prompt_template", {}).get("template_status"),
        False,
    ),
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
    """All values in `field` of any result that are not lists or objects, by their names."""
    names: dict[str, None] = {}
    for run in runs:
        for name, value in mapping(run.result.get(field)).items():
            if not isinstance(value, dict | list) and name not in without:
                names[name] = None

    def getter(name: str) -> Callable[[Run], object]:
        return lambda run: mapping(run.result.get(field)).get(name)

    return [(name.replace("_", " "), getter(name), False) for name in names]


def _text(value: object) -> str:
    """A JSON value as text; a dash for nothing."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        entries: Mapping[str, Any] = value
        return "; ".join(f"{name}: {_text(entry)}" for name, entry in entries.items()) or DASH
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or DASH
    return str(value)
