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
    path = named_model(model.as_posix(), note)
    if announce:
        note(f"model: {path}")
    return path


def named_model(text: str, note: Note) -> Path:
    """The file of a model: an existing path, a name in ./models or the store, a known name, or a hub id.

    A model that is only on the hub is pulled into the store: after a line on stderr, and above 1 GB after a question.
    tiny-terminal is the embedded model. Raises ModelFileError, with similar names, if there is no such model.
    """
    from edge.formats.models import local_model

    path = local_model(text)
    if path is not None:
        return path
    if text == EMBEDDED_NAME:
        return demonstration(note)
    from edge.cli.pull import pulled_model
    from edge.names import resolve

    found = resolve(text)
    return found if isinstance(found, Path) else pulled_model(found)


def checkpoint_source(
    text: str, *, revision: str | None = None, offline: bool = False, yes: bool | None = None
) -> tuple[str, str | None, str | None]:
    """A SOURCE of a checkpoint, its quantization type and its revision, the last two as far as the name says them.

    A folder is returned as it is. A known name or a hub id is downloaded into the hub's cache first, after a line on
    stderr, and above 1 GB after a question. Raises ModelFileError for an unknown name, HubError for a failed download.
    """
    from edge.cli.common import progress_line
    from edge.cli.pull import ask_first
    from edge.formats.hub import HubOptions
    from edge.names import resolve
    from edge.pull import fetch_source

    found = resolve(text, source=True)
    if isinstance(found, Path):
        return str(found), None, revision
    revision = revision or found.revision
    source = fetch_source(found, HubOptions(revision, offline), ask_first(yes), progress_line)
    return source, found.quant or (found.known.default_quant if found.known else None), revision


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
        try:
            return named_model(choice.named, note), choice.why, False
        except ModelFileError as error:
            raise ConfigError(f"model is {choice.named!r} ({choice.why}): {error}") from None
    return choice.path, choice.why if choice.path else "", choice.demonstration
