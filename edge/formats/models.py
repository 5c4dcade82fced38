"""The models that edge finds by name: which GGUFs of a folder are usable, and which one is the default.

The model of a command that names none: the setting `model` (EDGE_MODEL, or the file of settings), else the newest
usable GGUF in ./models, else the newest usable one in the user's store. Whatever their times, the user's own
models win over edge's default model (`edge pull default`), and that one over the embedded one.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import ConfigError, ModelFileError
from edge.formats.adapter import AdapterFile, is_adapter, read_adapter
from edge.formats.default_model import is_default
from edge.formats.gguf import ModelFile, read_model_file
from edge.formats.gguf_names import part_name, part_of, whole_name
from edge.system.config import settings
from edge.system.paths import EMBEDDED_NAME
from edge.system.store import local_files, local_model, store_files


def demonstration_reason(*, measures: bool = False) -> str:
    """Why a command takes the embedded model, and what to do about it. `measures`: as in `default_choice`."""
    advice = (
        "name another one with --model"
        if measures
        else "`edge pull default` fetches one that understands requests"
    )
    return f"the tiny demonstration model; {advice}"


@dataclass(frozen=True)
class FoundModel:
    """A GGUF in a folder of models. `file` is None if it is not usable; then `problem` says why, without its path.

    `n_bytes`: the size of all its parts.
    """

    path: Path
    file: ModelFile | None
    n_bytes: int
    problem: str = ""
    adapter: AdapterFile | None = None
    """Set if it is not a model but a LoRA adapter that can be used."""

    @property
    def usable(self) -> bool:
        return self.file is not None

    @property
    def demonstration(self) -> bool:
        """Whether this is the embedded model, which only shows that everything works."""
        return self.file is not None and self.file.name == EMBEDDED_NAME


def read_usable(path: Path) -> ModelFile:
    """Read the header of a GGUF that must be a complete language model.

    Raises ModelFileError for what `read_model_file` refuses, and for a model that writes no text.
    """
    file = read_model_file(path)
    if not file.causal:
        raise ModelFileError(f"{path}: is an encoder ({file.architecture[:40]}); it writes no text")
    return file


def examine(path: Path) -> FoundModel:
    """Read one file of a folder of models. Raises nothing: the problem is in the result."""
    try:
        file = read_usable(path)
        return FoundModel(path, file, file.n_bytes)
    except ModelFileError as error:
        problem = str(error).removeprefix(f"{path}: ")
        with contextlib.suppress(ModelFileError, OSError):
            if is_adapter(path):
                return FoundModel(path, None, path.stat().st_size, adapter=read_adapter(path))
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    try:
        return FoundModel(path, None, path.stat().st_size, problem)
    except OSError:
        return FoundModel(path, None, 0, problem)


def found_models(files: Iterable[Path]) -> Iterator[FoundModel]:
    """Examine each file, in the given order. A later part of a split model whose first part is there is left out."""
    files = list(files)
    there = set(files)
    for path in files:
        part = part_of(path.name)
        if part and part[0] > 1 and path.with_name(part_name(whole_name(path.name), 1, part[1])) in there:
            continue
        yield examine(path)


def stored_models() -> list[FoundModel]:
    """The usable models in the user's store, the newest first."""
    return [model for model in found_models(store_files()) if model.usable]


def local_models() -> list[FoundModel]:
    """The usable models in ./models, the newest first; none if there is no such folder."""
    return [model for model in found_models(local_files()) if model.usable]


@dataclass(frozen=True)
class Choice:
    """The model of a command that names none, and why.

    `path`: None if there is no model, or if the setting names one that is not on this machine. `named`: the text of the
    setting, None without one. `skipped`: the unusable GGUFs that were newer.
    """

    path: Path | None
    why: str
    named: str | None = None
    demonstration: bool = False
    skipped: tuple[FoundModel, ...] = ()


def default_choice(*, measures: bool = False) -> Choice:
    """The model that commands use by default. `measures`: never the default model, unless a setting names it.

    Raises ConfigError if the settings cannot be read, or if the file of settings has a relative path.
    """
    held = settings()["model"]
    if isinstance(held.value, str):
        # A relative path in the file would name another model in each folder.
        relative = held.source == "variable"
        path = local_model(held.value, relative=relative)
        if path is None and not relative and local_model(held.value) is not None:
            raise ConfigError(f"{held.where}: model is {held.value!r}; give an absolute path, or a name")
        return Choice(path, f"from {held.where}", held.value)
    skipped: list[FoundModel] = []
    spare: Choice | None = None
    own: Choice | None = None
    for files, place in ((local_files(), "./models"), (store_files(), "the model store")):
        for model in found_models(files):
            if not model.usable:
                skipped += [] if model.adapter else [model]
                continue
            if is_default(model.path):
                own = own or Choice(model.path, "edge's default model")
                continue
            why = f"the newest in {place}"
            if not model.demonstration:
                return Choice(model.path, why, skipped=tuple(skipped))
            spare = spare or Choice(model.path, demonstration_reason(measures=measures), None, True)
    if own is not None and not measures:
        return replace(own, skipped=tuple(skipped))
    if spare is None:
        advice = "`edge pull default` fetches one"
        return Choice(
            None, f"no usable GGUF in ./models or in the model store; {advice}", skipped=tuple(skipped)
        )
    return replace(spare, skipped=tuple(skipped))
