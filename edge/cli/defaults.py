"""The model of a command: the one that is named, or the default one (docs/models.md)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge.errors import ConfigError, ModelFileError
from edge.system.paths import EMBEDDED_NAME, embedded_checkpoint
from edge.system.store import store_folder

if TYPE_CHECKING:
    from edge.formats.models import Choice

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
    choice = _default(note)
    path = choice.path or demonstration(note)
    note(_line(path, choice))
    return path


def agent_model(note: Note, *, person: bool) -> Path:
    """The model of `edge agent` if no option names one. Never the embedded model without a question.

    `person`: somebody can answer the question. A setting is an explicit choice, that of the embedded model too.
    Raises ModelFileError if there is no model or the person does not agree.
    """
    choice = _default(note)
    if choice.path is None or (choice.demonstration and choice.named is None):
        advice = (
            "name one with --model, set EDGE_MODEL, or convert one with `edge convert` "
            f"(--model {EMBEDDED_NAME} takes the demonstration model)"
        )
        if not person:
            raise ModelFileError(f"edge agent has no model: {advice}")
        question = f"The only model here is {EMBEDDED_NAME}, a tiny demonstration model. Use it?"
        if not typer.confirm(question, err=True):
            raise ModelFileError(f"no model was chosen: {advice}")
    path = choice.path or demonstration(note)
    note(_line(path, choice))
    return path


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


def _default(note: Note) -> "Choice":
    """The default model. Raises ConfigError if the setting names a model that is not on this machine."""
    from edge.formats.models import default_choice

    choice = default_choice()
    if choice.path is None and choice.named == EMBEDDED_NAME:
        return replace(choice, path=demonstration(note))
    if choice.path is None and choice.named is not None:
        raise ConfigError(
            f"model is {choice.named!r} ({choice.why}): no such file, and no such name in the model store; "
            "`edge models` lists the names"
        )
    return choice


def _line(path: Path, choice: "Choice") -> str:
    """The line about a model that edge chose, with the number of newer files that it could not choose."""
    if choice.path is None:
        return f"model: {path} (the demonstration model; there is no other)"
    newer = len(choice.skipped)
    more = (
        f"; {newer} newer {'file is' if newer == 1 else 'files are'} not usable, see edge models"
        if newer
        else ""
    )
    return f"model: {path} ({choice.why}{more})"
