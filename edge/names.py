"""What the name of a model means. Does not connect.

A name is, in this order: a local path, a model in ./models or in the store, a known model (models/*.toml), or a
repository on the hub: `org/repo`, `org/repo:Q4_K_M`, `org/repo/file.gguf`, also as copied from a browser.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from edge.errors import ModelFileError
from edge.formats.gguf_names import is_type
from edge.formats.hub import HUB_ID, is_safe
from edge.replay.known import KnownModel, known_models
from edge.system.paths import DEFAULT_NAME, DEFAULT_QUANT
from edge.system.store import local_files, model_name, named_file, store_files
from edge.system.text import did_you_mean

__all__ = ["Reference", "resolve"]

# What people copy from a browser or from other programs.
_HUB = re.compile(r"^(?:(?:https?:/{1,2})?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf:/{1,2})", re.IGNORECASE)
_REFERENCE = re.compile(
    rf"(?P<hub_id>{HUB_ID.pattern})(?:/(?P<file>[^:]+\.gguf)|:(?P<quant>[\w.-]+))?", re.ASCII
)
_BROWSED = re.compile(
    r"^(?:resolve|blob|raw|tree)/(?P<revision>refs/(?:pr|heads|tags|convert)/[^/]+|[^/]+)(?:/|$)",
    re.IGNORECASE,
)
_QUANT = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A model that is not a file here: on the hub, or, with an empty `hub_id`, one that comes with edge.

    `quant`: the wanted type; None if the name has none. `file`: one GGUF of the repository.
    """

    text: str
    hub_id: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None
    known: KnownModel | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is edge's default model, whose base is in a package."""
        return self.known is not None and self.known.path.stem == DEFAULT_NAME

    @property
    def wanted(self) -> str:
        """The type to use: that of the name, else that of the known model, else Q4_K_M."""
        return self.quant or (self.known.default_quant if self.known else DEFAULT_QUANT)


def resolve(text: str, *, source: bool = False, remote: bool = False) -> Path | Reference:
    """What a name means. Does not connect.

    `source`: a checkpoint is wanted, so models in the store do not count. `remote`: a model to pull is wanted, so a
    known name wins over a model of that name in the store.
    Raises ModelFileError, with similar names, if it is not a path, a name or a hub id, or if its type is none.
    """
    if not text:
        raise ModelFileError(
            "the name of the model is empty; give a file, a name that `edge models` lists, or owner/name"
        )
    path, known = Path(os.path.expanduser(text)), _known(text)
    if os.path.lexists(path):
        return path
    if known is not None and (source or remote):
        return _checked(known)
    stored = None if source else named_file(text)
    if stored is not None:
        return stored
    if known is not None:
        return _checked(known)
    plain = _HUB.sub("", text, count=1)
    if plain == text and _looks_like_path(text):
        hub = f"; for the hub write hf.co/{text}" if _REFERENCE.fullmatch(text) else ""
        raise ModelFileError(f"{text}: no such {'folder' if source else 'file'}{similar(text) or hub}")
    hub_id, quant, file, revision = _hub_parts(plain, address=plain != text)
    if hub_id is None:
        here = "folder" if source else "file, not the name of a model here"
        listed = "`edge models known` lists" if source else "`edge models` and `edge models known` list"
        raise ModelFileError(
            f"{text}: no such {here}, and not a hub id (owner/name){similar(text) or ';'} {listed} the names"
        )
    if file is not None and not is_safe(file):
        raise ModelFileError(f"{text}: {file} is not the name of a file in a repository")
    return _checked(Reference(text, hub_id, quant, file, revision, _known_repository(hub_id)))


def check_type(text: str, quant: str) -> None:
    """Raise ModelFileError if `quant`, which the user named with the model `text`, cannot be a quantization type."""
    if not is_type(quant):
        raise ModelFileError(
            f"{text}: {quant} is not a quantization type; give one such as Q4_K_M, Q8_0 or BF16, or omit it"
        )


def _checked(reference: Reference) -> Reference:
    if reference.quant is not None:
        check_type(reference.text, reference.quant)
    return reference


def _hub_parts(plain: str, *, address: bool) -> tuple[str | None, str | None, str | None, str | None]:
    """The repository, type, file and revision in a hub id; four times None if it is not one.

    `address`: it may have what a browser adds to the address of a page.
    """
    if address:
        plain = re.split(r"[?#]", plain, maxsplit=1)[0]
    parts = plain.rstrip("/").split("/", 2)
    browsed = _BROWSED.match(parts[2]) if len(parts) == 3 else None
    if browsed is not None:
        parts = [*parts[:2], *filter(None, [parts[2][browsed.end() :]])]
    rest = "/".join(parts)
    match = _REFERENCE.fullmatch(unquote(rest) if address else rest)
    if match is None:
        return None, None, None, None
    revision = unquote(browsed["revision"]) if browsed is not None else None
    return match["hub_id"], match["quant"], match["file"], revision


def _known(text: str) -> Reference | None:
    """A known model by its name or the name of its TOML file, also as NAME:QUANT. Case does not matter."""
    name, _, quant = text.partition(":")
    if quant and not _QUANT.fullmatch(quant):
        return None
    for model in known_models():
        if name.lower() in (model.name.lower(), model.path.stem.lower()):
            return Reference(text, model.hub_id, quant or None, known=model)
    return None


def _known_repository(hub_id: str) -> KnownModel | None:
    """The known model of a repository, without its other repository: the user has chosen this one."""
    for model in known_models():
        if hub_id.lower() in (model.hub_id.lower(), model.gguf_id.lower()):
            return replace(model, hub_id=hub_id, gguf_id="")
    return None


def _looks_like_path(text: str) -> bool:
    """Whether a text that is not an existing path was meant as one, so that no typing error asks the hub."""
    first, *rest = text.split("/")
    if text.startswith((".", "~", "/")) or "\\" in text or os.path.isabs(text):
        return True
    if not rest or (len(rest) == 1 and text.endswith(".gguf")):
        return text.endswith(".gguf")
    return os.path.isdir(first)


def similar(text: str) -> str:
    """`; did you mean A or B?`, from known names, ./models and the store; empty if none is similar."""
    names = [model_name(path) for path in (*local_files(), *store_files())]
    for model in known_models():
        names += filter(None, (model.path.stem, model.hub_id, model.gguf_id))
    wanted = text.rsplit("/", 1)[-1] if _looks_like_path(text) else text
    meant = did_you_mean(wanted.removesuffix(".gguf"), names)
    return f"; {meant}" if meant else ""
