"""Read the models that edge knows by name: one TOML file each in models/, with published figures to compare with.

A file has `name`, `description`, `prompt_style`, `default_quant` and `context`. Where they are known, it also has
`hub_id` (the checkpoint), `gguf_id` (published GGUFs), `licence`, `source` (where these facts were read) and
`memory_gb`. `answers = "action"` marks a model that was trained to write actions. Where figures were published, the
file has `reference_source` and the tables `[reference]` (with the names of a result's aggregate) and `[reference_run]`
(how they were measured). edge converts and runs models that have no such file in the same way.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict, get_type_hints

from edge.errors import EdgeError
from edge.metrics import Aggregate
from edge.replay.stored_result import SamplingFields
from edge.system.paths import shipped_models
from edge.system.text import did_you_mean, unknown_key
from edge.system.typed_json import Rule, check


class ReferenceRun(SamplingFields, total=False):
    """How published figures were measured: sampling, engine, and times in seconds. Times are not part of the score."""

    avg_sec_per_step: float
    """Seconds for each step."""
    load_time_sec: float
    """Seconds to load the model."""


class KnownFields(TypedDict):
    """The TOML file of a known model."""

    name: str
    """Name of the model for people."""
    hub_id: NotRequired[str]
    """Repository id on the Hugging Face hub; absent for the embedded model."""
    gguf_id: NotRequired[str]
    """Repository id of its published GGUFs."""
    licence: NotRequired[str]
    """Licence of the weights, as the hub names it."""
    source: NotRequired[str]
    """Where these facts come from."""
    description: str
    """What the model is, in one line."""
    prompt_style: str
    """chat_template: the checkpoint's own; chatml or gemma: the fallback of that name."""
    default_quant: str
    """Quantization type that edge suggests."""
    context: int
    """Context length that memory_gb assumes, in tokens."""
    memory_gb: NotRequired[float]
    """Memory to run it in default_quant, in 10^9 bytes."""
    answers: NotRequired[
        Annotated[
            str, Rule('"action" or "text"', ("action", "text").__contains__, {"enum": ["action", "text"]})
        ]
    ]
    """What the model was trained to write: actions, or text (the default)."""
    reference: NotRequired[Aggregate]
    """Published figures, under the names of a result's aggregate."""
    reference_source: NotRequired[str]
    """Who published the figures."""
    reference_run: NotRequired[ReferenceRun]
    """How the figures were measured."""


@dataclass(frozen=True)
class KnownModel:
    """One known model; `path` is its TOML file."""

    name: str
    hub_id: str
    """Hugging Face repository id; empty for the embedded model, which ships with edge."""
    gguf_id: str
    """Repository of published GGUFs of this model, which `edge pull` prefers; empty if none is known."""
    licence: str
    """The licence that its publisher names; empty if it is not known."""
    source: str
    """Where the facts of this file were read; empty if they come with the published figures."""
    description: str
    prompt_style: str
    """`chat_template`: the checkpoint's own; `chatml` or `gemma`: the fallback of that name."""
    default_quant: str
    context: int
    """Context length to plan for; `memory_gb` assumes it, in tokens, prompt and answer together."""
    memory_gb: float | None
    """Memory to run it in `default_quant` at `context`, in 10^9 bytes: the estimate of `edge doctor`, rounded up.

    None where it was not computed."""
    answers: Literal["action", "text"]
    """What `edge chat` answers with by default: actions of a model trained for terminals, or free text."""
    reference: Aggregate
    """Published figures under the names of a result's aggregate; empty where none were published."""
    reference_source: str
    """Who published the figures; empty where there are none."""
    reference_run: ReferenceRun
    path: Path


def known_models() -> list[KnownModel]:
    """All known models, by name. Raises EdgeError for a TOML file that cannot be read."""
    return sorted(
        (read_known(path) for path in shipped_models().glob("*.toml")), key=lambda model: model.name.lower()
    )


def find_known(name: str) -> KnownModel:
    """The known model called `name`: its name, the stem of its file or its hub id. Case does not matter.

    Raises EdgeError with similar names.
    """
    models = known_models()
    for model in models:
        if name and name.lower() in (model.name.lower(), model.path.stem.lower(), model.hub_id.lower()):
            return model
    meant = did_you_mean(name, [model.path.stem for model in models]) or "`edge models known` lists the names"
    raise EdgeError(f"{name}: no known model has this name; {meant}")


def read_known(path: Path) -> KnownModel:
    """Read one TOML file. Raises EdgeError that names the file and what is wrong in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EdgeError(f"{path}: cannot be read as TOML: {error}") from None
    allowed = get_type_hints(KnownFields)
    if unknown := sorted(data.keys() - allowed.keys()):
        raise EdgeError(f"{path}: {unknown_key(unknown[0], allowed)}")
    fields = check(data, KnownFields, str(path), EdgeError)
    return KnownModel(
        name=fields["name"],
        hub_id=fields.get("hub_id", ""),
        gguf_id=fields.get("gguf_id", ""),
        licence=fields.get("licence", ""),
        source=fields.get("source", ""),
        description=fields["description"],
        prompt_style=fields["prompt_style"],
        default_quant=fields["default_quant"],
        context=fields["context"],
        memory_gb=float(fields["memory_gb"]) if "memory_gb" in fields else None,
        answers="action" if fields.get("answers") == "action" else "text",
        reference=fields.get("reference", {}),
        reference_source=fields.get("reference_source", ""),
        reference_run=fields.get("reference_run", {}),
        path=path,
    )
