"""The Hugging Face hub: lists what a repository holds, and downloads its files into the hub's own cache.

Every program that uses huggingface_hub shares this cache. edge downloads large files (those with a SHA-256 on the hub)
itself, because huggingface_hub discards a download that was interrupted: edge resumes it, compares the SHA-256, and
then gives the file the place in the cache that huggingface_hub expects. Requests go through huggingface_hub's client,
which honours HTTPS_PROXY, HF_ENDPOINT, HF_TOKEN and the token of `hf auth login`.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import HubError, Interrupted
from edge.formats.gguf import remember, sha256
from edge.formats.hub_errors import check_endpoint, failure, is_final, why
from edge.formats.resume import Wanted, complete
from edge.system.files import whole_file
from edge.system.locks import held_lock
from edge.system.places import check_disk

__all__ = ["HubOptions"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[\w-]", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
# On Windows, `:` begins a stream, the backslash is a separator, and the others are in no name.
_FORBIDDEN = re.compile(r'[<>:"|?*\\]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HubOptions:
    """Which version of a repository, and whether edge may connect.

    `revision`: a branch, tag or commit; None for the main branch. `offline`: use only the hub's local cache.
    """

    revision: str | None = None
    offline: bool = False


NEWEST = HubOptions()


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `sha256`: as the hub reports it; None for small files that are not in LFS."""

    name: str
    n_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """What a repository holds at one commit.

    `absent`: set if the list is that of the local cache, not of the hub: the error for a file that is not there.
    """

    hub_id: str
    commit: str
    revision: str | None
    files: dict[str, HubFile]
    absent: HubError | None = None

    @property
    def folder(self) -> Path:
        """The folder of this commit in the hub's cache. It may not exist yet."""
        return _cache(self.hub_id) / "snapshots" / self.commit

    def missing(self, names: Iterable[str]) -> list[HubFile]:
        """Those of the named files that are not complete in the cache, or that are damaged there."""
        return [
            self.files[name]
            for name in names
            if not (self.folder / name).is_file() or self.damage(name) is not None
        ]

    def damage(self, name: str) -> str | None:
        """What is wrong with the content of a file in the cache; None if it has the SHA-256 of the hub.

        edge reads the file once and remembers its SHA-256.
        """
        path, reported = self.folder / name, self.files[name].sha256
        if reported is None or (found := sha256(path)) == reported:
            return None
        return f"{path.resolve()}: has the SHA-256 {found}, but the hub reports {reported}"

    def unavailable(self, names: Iterable[str]) -> HubError | None:
        """Why edge cannot download those of the named files that `missing` lists; None if it can."""
        if self.absent is None:
            return None
        for file in self.missing(names):
            if (self.folder / file.name).is_file():
                fix = "run the same command with a connection to download it again"
                return HubError(f"{self.damage(file.name)}; {fix}")
        return self.absent

    def to_download(self, names: Iterable[str]) -> int:
        """Bytes that `download` still has to fetch for the named files."""
        return sum(file.n_bytes - _kept(self.hub_id, file) for file in self.missing(names))


def cache_place() -> Path:
    """The hub's cache folder: $HF_HUB_CACHE, else hub/ in $HF_HOME, else ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline(options: HubOptions) -> bool:
    """Whether edge must not connect: by the option, or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return options.offline or constants.HF_HUB_OFFLINE


def open_repository(hub_id: str, options: HubOptions | None = None, *, say: Say | None = None) -> Repository:
    """List a repository: from the hub, or from the cache if edge must not or cannot connect.

    `say` receives a line if the hub cannot be reached and the cache is used instead.
    Raises HubError if there is no such repository or revision, if access is refused, or if it is not in the cache.
    """
    options = options or HubOptions()
    if not HUB_ID.fullmatch(hub_id):
        raise HubError(f"{hub_id}: is not a hub id of the form owner/name")
    if options.revision is not None and (
        not _REVISION.fullmatch(options.revision) or ".." in options.revision
    ):
        raise HubError(f"{hub_id}: {options.revision!r} is not a branch, a tag or a commit; check --revision")
    absent, lost = _not_cached(hub_id, options), ""
    if not is_offline(options):
        check_endpoint()
        try:
            return _listed(hub_id, options.revision)
        except Exception as error:
            absent = failure(hub_id, options.revision, error)
            if is_final(error):
                raise absent from None
            lost = why(error)
    cached = _cached(hub_id, options.revision, absent)
    if cached is None:
        raise absent
    if lost and say is not None:
        say(f"the hub cannot be reached ({lost}); using the cached commit {cached.commit[:12]} of {hub_id}")
    return cached


def check_access(repository: Repository, name: str) -> None:
    """Ask the hub for the header of a file, so that a gated repository is reported before a long download.

    Raises HubError if the hub refuses it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if repository.absent is not None:
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository.hub_id, name, revision=repository.commit))
    except Exception as error:
        raise failure(repository.hub_id, repository.revision, error) from None


def check_cache_disk(needed: int) -> None:
    """Raises HubError if the disk of the hub's cache has less than `needed` bytes free."""
    check_disk(cache_place(), needed, "free some, or set HF_HOME to a folder on another disk", error=HubError)


def download(
    repository: Repository, names: Iterable[str], *, say: Say | None = None, progress: Progress | None = None
) -> Path:
    """Download the named files, as far as the cache does not have them. Returns the folder of the commit.

    A download that was interrupted resumes. Another process that downloads the same file is waited for; `say` receives
    a line about that. `progress` receives the bytes done and all bytes. Raises HubError if the disk is too full, the
    hub cannot be reached or refuses a file, or a file does not have the SHA-256 that the hub reports.
    """
    from huggingface_hub import constants

    names = list(names)
    missing = repository.missing(names)
    if not missing:
        if repository.absent is None:
            _remember_revision(repository)
        return repository.folder
    if (unavailable := repository.unavailable(names)) is not None:
        raise unavailable
    check_cache_disk(repository.to_download(names))
    total, done = sum(file.n_bytes for file in missing), 0
    for file in missing:

        def report(n_bytes: int, before: int = done) -> None:
            if progress is not None:
                progress(before + n_bytes, total)

        try:
            ours = file.sha256 is not None and file.n_bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE
            _remove_damaged(repository, file)
            if ours:
                _fetch(repository, file, say or (lambda text: None), report)
            _place(repository, file, checked=ours)
        except HubError:
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume the download") from None
        except Exception as error:
            raise failure(f"{repository.hub_id}/{file.name}", repository.revision, error) from None
        done += file.n_bytes
    _remember_revision(repository)
    return repository.folder


# --- the list of files ---


def _cache(hub_id: str) -> Path:
    return cache_place() / f"models--{hub_id.replace('/', '--')}"


def _listed(hub_id: str, revision: str | None) -> Repository:
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    files = {}
    for entry in info.siblings or ():
        digest = None if entry.lfs is None else entry.lfs.sha256
        n_bytes = entry.size if entry.lfs is None else entry.lfs.size
        if digest is not None and not _SHA256.fullmatch(digest):
            raise HubError(f"{hub_id}: the hub reports {digest[:80]!r} as the SHA-256 of {entry.rfilename}")
        if is_safe(entry.rfilename):
            files[entry.rfilename] = HubFile(entry.rfilename, n_bytes or 0, digest)
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise HubError(f"{hub_id}: the hub reports no commit; check HF_ENDPOINT and the proxy")
    return Repository(hub_id, info.sha, revision, files)


def is_safe(name: str) -> bool:
    """Whether a file name of the hub stays in the folder of its repository on every system, and can be shown.

    False for names that Windows reserves or changes, and for a part that begins with `.` or `-`.
    """
    return name.isprintable() and not any(
        part == ""
        or part[0] in ".-"
        or part[-1] in ". "
        or _FORBIDDEN.search(part)
        or _DEVICES.fullmatch(part)
        for part in name.split("/")
    )


def _cached(hub_id: str, revision: str | None, absent: HubError) -> Repository | None:
    """The repository as the local cache has it; None if it does not have it."""
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (_cache(hub_id) / "refs" / commit).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    folder = _cache(hub_id) / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, blob = path.relative_to(folder).as_posix(), path.resolve().name
        if is_safe(name):
            files[name] = HubFile(name, path.stat().st_size, blob if _SHA256.fullmatch(blob) else None)
    return Repository(hub_id, commit, revision, files, absent)


def _not_cached(hub_id: str, options: HubOptions) -> HubError:
    where = hub_id if options.revision is None else f"{hub_id} (revision {options.revision})"
    return HubError(
        f"{where} is not complete in the local Hugging Face cache; run once without --offline and HF_HUB_OFFLINE"
    )


# --- one file ---


def _partial(hub_id: str, file: HubFile) -> Path:
    return _cache(hub_id) / "blobs" / f"{file.sha256}.edge.incomplete"


def _kept(hub_id: str, file: HubFile) -> int:
    """Bytes of a file that an interrupted download left, or all of them if another name has the same content."""
    if file.sha256 is None:
        return 0
    blob = _cache(hub_id) / "blobs" / file.sha256
    if blob.is_file() and sha256(blob) == file.sha256:
        return file.n_bytes
    try:
        return min(_partial(hub_id, file).stat().st_size, file.n_bytes)
    except OSError:
        return 0


def _fetch(repository: Repository, file: HubFile, say: Say, progress: Callable[[int], object]) -> None:
    """Download one file with a known SHA-256 to its place among the blobs of the cache."""
    assert file.sha256 is not None
    blob, partial = _cache(repository.hub_id) / "blobs" / file.sha256, _partial(repository.hub_id, file)
    lock = cache_place() / ".locks" / _cache(repository.hub_id).name / f"{file.sha256}.edge.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{file.name}: another process is downloading this file; waiting for it"
    with held_lock(lock, lambda: say(waiting)):
        if blob.is_file():
            if sha256(blob) == file.sha256:
                return
            blob.unlink()  # damaged since it was downloaded
        wanted = Wanted(f"{repository.hub_id}/{file.name}", file.n_bytes, file.sha256, "the hub reports")
        complete(partial, wanted, lambda begin: _pieces(repository, file.name, begin), progress, HubError)
        os.replace(partial, blob)
        remember(blob, "sha256", file.sha256)


def _pieces(repository: Repository, name: str, begin: int) -> Iterator[tuple[bytes, int]]:
    """The bytes of a file from `begin` on, in pieces, each with the byte where the answer of the server begins."""
    from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

    headers = {"Accept-Encoding": "identity"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:  # the client does not send it to another server that the hub redirects to
        headers["Authorization"] = f"Bearer {token}"
    if begin:
        headers["Range"] = f"bytes={begin}-"
    url = hf_hub_url(repository.hub_id, name, revision=repository.commit)
    with get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        first = begin if response.status_code == 206 else 0
        for chunk in response.iter_bytes():  # as they come: a lost connection loses none of them
            yield chunk, first


def _place(repository: Repository, file: HubFile, *, checked: bool) -> None:
    """Let huggingface_hub put a file into the folder of the commit: a link to its blob, or a download.

    It downloads small files, and the largest: those that the hub does not send over HTTP in one piece. `checked`: its
    blob is there, and has the SHA-256 of the hub.
    """
    from huggingface_hub import hf_hub_download

    with _without_bars():
        placed = hf_hub_download(repository.hub_id, file.name, revision=repository.commit)
    found = Path(placed).resolve()
    if file.sha256 is not None and not (checked and found.name == file.sha256):
        digest = sha256(found)
        if digest != file.sha256:
            _remove_damaged(repository, file)
            raise HubError(
                f"{found}: has the SHA-256 {digest}, but the hub reports {file.sha256}; the file was removed, "
                "try again"
            )


def _remove_damaged(repository: Repository, file: HubFile) -> None:
    """Remove a file from the cache if its content is damaged, so that nothing takes it for the complete file."""
    path = repository.folder / file.name
    if path.is_file() and repository.damage(file.name) is not None:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)


def _remember_revision(repository: Repository) -> None:
    """Write the commit of a branch or tag to the cache, so that it is found without a connection."""
    revision = repository.revision or "main"
    if _COMMIT.fullmatch(revision):
        return
    place = _cache(repository.hub_id) / "refs" / revision
    with contextlib.suppress(OSError), whole_file(place) as (_, descriptor):
        os.write(descriptor, repository.commit.encode())


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of huggingface_hub: edge shows its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
