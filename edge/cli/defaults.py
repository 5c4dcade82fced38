"""The model of a command: the one that is named, or the default one (docs/models.md)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.common import agreed
from edge.errors import ConfigError, HubError, ModelFileError, UnknownRepositoryError
from edge.system.paths import DEFAULT_NAME, DEFAULT_QUANT, EMBEDDED_NAME
from edge.system.store import local_model

if TYPE_CHECKING:
    from edge.formats.hub import HubOptions
    from edge.formats.models import Choice

Note = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A checkpoint: a folder or a hub id, the type in its name, and the options that find what was downloaded."""

    text: str
    quant: str | None
    hub: "HubOptions"


def chosen_model(
    model: str | Path | None,
    note: Note,
    *,
    announce: bool = False,
    offline: bool = False,
    yes: bool | None = None,
    check: Callable[[], object] | None = None,
    measures: bool = False,
) -> Path:
    """The model of a command: the named one, else the default one.

    `model`: the text as the user wrote it. `note` receives a line about a choice that edge made; with `announce` also
    about a named model. `offline`: do not connect. `yes`: the option --yes, None for a command without it.
    `check`: called before a download, to check the other options. `measures`: as in `default_model`.
    Raises ModelFileError if there is none, ConfigError if the settings cannot be read.
    """
    if model is None:
        return default_model(note, measures=measures)
    path = named_model(str(model), note, offline=offline, yes=yes, check=check)
    if announce:
        note(f"model: {path}")
    return path


def named_model(
    text: str,
    note: Note,
    *,
    offline: bool = False,
    yes: bool | None = None,
    check: Callable[[], object] | None = None,
) -> Path:
    """The file of a model: an existing path, a name in ./models or the store, a known name, or a hub id.

    A model that is only on the hub is pulled into the store: after a line on stderr, and above 1 GB after a question.
    tiny-terminal is the embedded model. Raises ModelFileError, with similar names, if there is no such model.
    """
    path = local_model(text)
    if path is not None:
        return path
    if text == EMBEDDED_NAME:
        return demonstration(note)
    if text.lower() == DEFAULT_NAME:
        raise ModelFileError(
            f"{text}: the default model is not in the model store; run first: edge pull default"
        )
    from edge.cli.pull import pulled_model
    from edge.names import resolve

    found = resolve(text)
    return found if isinstance(found, Path) else pulled_model(found, offline=offline, yes=yes, check=check)


def checkpoint_source(
    text: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    yes: bool | None = None,
    check: Callable[[str | None], object] | None = None,
    quiet: bool = False,
) -> Source:
    """A SOURCE of a checkpoint. A folder is returned as it is.

    A known name or a hub id is downloaded into the hub's cache first, after a line on stderr, and above 1 GB after a
    question. `check` is called before, with the quantization type in the name. Raises ModelFileError for an unknown
    name, HubError for a failed download. `quiet`: show no progress of a download.
    """
    from edge.cli.common import progress_line
    from edge.cli.pull import ask_first
    from edge.formats.hub import HubOptions
    from edge.names import resolve
    from edge.pull import fetch_source

    found = resolve(text, source=True)
    if isinstance(found, Path):
        return Source(str(found), None, HubOptions(revision, offline))
    quant = found.quant or (found.known.default_quant if found.known else None)
    if check is not None:
        check(quant)
    options = HubOptions(revision or found.revision, offline)
    try:
        source, fixed = fetch_source(
            found, options, ask_first(yes, quiet=quiet), None if quiet else progress_line
        )
    except UnknownRepositoryError:
        raise
    except HubError as error:
        also = f"; there is no folder {text} here either" if found.hub_id == text else ""
        raise HubError(f"{error}{also}") from None
    return Source(source, quant, fixed)


def default_model(note: Note, *, measures: bool = False) -> Path:
    """The model of a command that names none; see edge.formats.models. If there is none, the embedded one.

    `measures`: the command measures, so its choice must not depend on whether the
    default model was pulled. `note` receives a line about the choice. Raises as `chosen_model`.
    """
    choice = _default(note, measures=measures)
    path = choice.path or demonstration(note)
    note(_line(path, choice, measures=measures))
    return path


def agent_model(note: Note, *, person: bool) -> Path:
    """The model of `edge agent` if no option names one. Never the embedded model without a question.

    `person`: somebody can answer the question. A setting is an explicit choice, that of the embedded model too.
    Raises ModelFileError if there is no model or the person does not agree.
    """
    choice = _default(note)
    if choice.path is None or (choice.demonstration and choice.named is None):
        advice = (
            "name one with --model, or get one with `edge pull default` "
            f"(--model {EMBEDDED_NAME} takes the demonstration model)"
        )
        if not person:
            raise ModelFileError(f"edge agent has no model: {advice}")
        question = f"The only model here is {EMBEDDED_NAME}, a tiny demonstration model. Use it?"
        if not agreed(question):
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
        if model.demonstration and model.file is not None and model.file.file_type == DEFAULT_QUANT:
            return model.path
    from edge.pull import pull  # a heavy import, which only this case needs

    return pull(f"{EMBEDDED_NAME}:{DEFAULT_QUANT}", say=note).path


def _default(note: Note, *, measures: bool = False) -> "Choice":
    """The default model. Raises ConfigError if the setting names a model that is not on this machine."""
    from edge.formats.models import default_choice

    choice = default_choice(measures=measures)
    if choice.path is not None or choice.named is None:
        return choice
    try:
        return replace(choice, path=named_model(choice.named, note))
    except ModelFileError as error:
        raise ConfigError(f"model is {choice.named!r} ({choice.why}): {error}") from None


def _line(path: Path, choice: "Choice", *, measures: bool = False) -> str:
    """The line about a model that edge chose, with the number of newer files that it could not choose."""
    if choice.path is None:
        from edge.formats.models import demonstration_reason

        return f"model: {path} ({demonstration_reason(measures=measures)})"
    newer = len(choice.skipped)
    what = "file is" if newer == 1 else "files are"
    more = f"; {newer} newer {what} not usable, see edge models" if newer else ""
    return f"model: {path} ({choice.why}{more})"
