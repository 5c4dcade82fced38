"""Models that edge knows by name: one TOML file each in models/, with the published figures to compare with.

A file holds `name`, `hub_id`, `description`, `prompt_style`, `default_quant`, `context`, `memory_gb` and,
where figures were published, `reference_source` with the tables `[reference]` (keys as in a result's
aggregate) and `[reference_run]` (how they were measured). Nothing of this is needed to convert or run a
model: an unknown one works just as well.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.system.paths import shipped_models

_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "hub_id": str,
    "description": str,
    "prompt_style": str,
    "default_quant": str,
    "context": int,
    "memory_gb": (int, float),
    "reference": dict,
    "reference_source": str,
    "reference_run": dict,
}


@dataclass(frozen=True)
class KnownModel:
    """One known model; `path` is its TOML file."""

    name: str
    hub_id: str
    """Hugging Face repository id; empty for the embedded model, which ships with edge."""
    description: str
    prompt_style: str
    """`chat_template`: the checkpoint's own, `chatml` or `gemma`: the fallback of that name."""
    default_quant: str
    context: int
    """Tokens of context that `memory_gb` counts, prompt and answer together."""
    memory_gb: float
    """To run it in `default_quant` at `context`, in 10^9 bytes: `edge doctor`'s estimate, rounded up."""
    reference: dict[str, float]
    """Published figures under the names of a result's aggregate; empty where none were published."""
    reference_source: str
    """Who published the figures; empty where there are none."""
    reference_run: dict[str, Any]
    """How they were measured (engine, dtype, sampling) and its timings. Not part of the score."""
    path: Path


def known_models() -> list[KnownModel]:
    """All known models, by name. Raises EdgeError for a TOML file that cannot be read."""
    return sorted(
        (read_known(path) for path in shipped_models().glob("*.toml")), key=lambda model: model.name.lower()
    )


def find_known(name: str) -> KnownModel:
    """The known model called `name`: its name, its file's stem or its hub id, in upper or lower case.

    Raises EdgeError that lists the known names.
    """
    models = known_models()
    for model in models:
        if name and name.lower() in (model.name.lower(), model.path.stem.lower(), model.hub_id.lower()):
            return model
    names = ", ".join(model.path.stem for model in models)
    raise EdgeError(f"{name}: no known model of this name; known: {names}")


def read_known(path: Path) -> KnownModel:
    """Read one TOML file. Raises EdgeError that names the file and what is wrong in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EdgeError(f"{path}: cannot be read as TOML: {error}") from None
    values: dict[str, Any] = {
        "hub_id": "",
        "reference": {},
        "reference_source": "",
        "reference_run": {},
    } | data
    unknown = sorted(data.keys() - _KINDS.keys())
    if unknown:
        raise EdgeError(f"{path}: unknown key {unknown[0]!r}; allowed: {', '.join(_KINDS)}")
    for key, kind in _KINDS.items():
        if key not in values:
            raise EdgeError(f"{path}: {key!r} is missing")
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise EdgeError(f"{path}: {key!r} is of a wrong type")
    for key, value in values["reference"].items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise EdgeError(f"{path}: the reference figure {key!r} is no number")
    return KnownModel(**{**values, "memory_gb": float(values["memory_gb"]), "path": path})
