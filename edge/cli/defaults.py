"""The model of a command: the one that is named, or the default one (docs/models.md)."""

from collections.abc import Callable
from pathlib import Path

import typer

from edge.errors import ConfigError, ModelFileError
from edge.system.paths import EMBEDDED_NAME, embedded_checkpoint
from edge.system.store import store_folder

_QUANT = "Q4_K_M"
Note = Callable[[str], None]


def chosen_model(model: Path | None, note: Note, *, announce: bool = False) -> Path:
    """The model of a command: the named one, else the default one.

    `note` receives a line about a choice that edge made; with `announce` also about a named model.
    Raises ModelFileError if there is none, ConfigError if the settings cannot be read.
    """
    if model is None:
        return default_model(note)
    path = named_model(str(model), note)
    if announce:
        note(f"model: {path}")
    return path


def named_model(text: str, note: Note) -> Path:
    """The file of a model: an existing path, or a name in ./models or the store; tiny-terminal is the embedded one.

    Any other text is returned as a path: the error for it is that of the reader.
    """
    from edge.formats.models import local_model

    path = local_model(text)
    if path is None and text == EMBEDDED_NAME:
        path = demonstration(note)
    return path or Path(text)


def default_model(note: Note) -> Path:
    """The model of a command that names none; see edge.formats.models. If there is none, the embedded one.

    `note` receives a line about the choice. Raises as `chosen_model`.
    """
    path, why, _ = _default(note)
    path = path or demonstration(note)
    note(f"model: {path}" + (f" ({why})" if why else ""))
    return path


def agent_model(note: Note, *, person: bool) -> Path:
    """The model of `edge agent` if no option names one. Never the embedded model without a question.

    `person`: somebody can answer the question. Raises ModelFileError if there is no model or nobody agrees.
    """
    path, _, embedded = _default(note)
    if path is not None and not embedded:
        return path
    advice = (
        "name one with --model, set EDGE_MODEL, or convert one with `edge convert` "
        f"(--model {EMBEDDED_NAME} takes the demonstration model)"
    )
    if not person:
        raise ModelFileError(f"edge agent has no model: {advice}")
    question = f"The only model here is {EMBEDDED_NAME}, a tiny demonstration model. Use it?"
    if not typer.confirm(question, err=True):
        raise ModelFileError(f"no model was chosen: {advice}")
    return path or demonstration(note)


def demonstration(note: Note) -> Path:
    """The embedded model as a GGUF in the store. edge converts it the first time, and says so before.

    Raises ModelFileError if this installation has no embedded checkpoint, ConversionError if the store cannot be
    written.
    """
    from edge.formats.models import stored_models

    for model in stored_models():
        if model.demonstration and model.file is not None and model.file.file_type == _QUANT:
            return model.path
    checkpoint = embedded_checkpoint()
    if not checkpoint.is_dir():
        raise ModelFileError(f"{checkpoint}: the embedded model is missing; name a GGUF with --model FILE")
    out = store_folder() / f"{EMBEDDED_NAME}-{_QUANT}.gguf"
    note(f"converting the embedded demonstration model {EMBEDDED_NAME} to {out}")
    from edge.convert import convert  # a heavy import, which only this case needs

    return convert(checkpoint, quant=_QUANT, out=out).path


def _default(note: Note) -> tuple[Path | None, str, bool]:
    """The default model, why, and whether it is the embedded one, unasked; None if there is no model.

    A setting is an explicit choice, the embedded model included. `note` receives a line for each unusable file.
    """
    from edge.formats.models import default_choice

    choice = default_choice()
    for model in choice.skipped:
        note(f"{model.path}: not usable: {model.problem}")
    if choice.named is not None and choice.path is None:
        if choice.named != EMBEDDED_NAME:
            raise ConfigError(
                f"model is {choice.named!r} ({choice.why}), and there is no such file and no such name in the model "
                "store; `edge models` lists the names"
            )
        return demonstration(note), choice.why, False
    return choice.path, choice.why if choice.path else "", choice.demonstration
