"""A work folder packed for the sandbox, and what became of it brought back with care.

The tar that comes out of a sandbox was written by whatever ran there: it is read as hostile. Only regular files,
folders and links that stay inside are taken; nothing is written through a link of the folder's; what the person changed
meanwhile is left alone; names that begin with a dot are withheld unless asked for, since other programs obey such
files (.git/hooks, .envrc, .bashrc).
"""

import contextlib
import hashlib
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edge.errors import SandboxError

_CHUNK = 1 << 20
MOST_FILES = 200_000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO put in a file's place must not be waited for


@dataclass(frozen=True)
class Entry:
    """One name in the folder: its kind (file, folder, link), and what tells whether it changed.

    `content`: a file's SHA-256 in hexadecimal, or a link's target.
    """

    kind: str
    content: str
    executable: bool = False


Manifest = dict[str, Entry]
"""By path, relative with slashes."""


@dataclass(frozen=True)
class Changes:
    """What a session did to the folder, as relative paths; `withheld` with the reason why it is not brought back."""

    new: list[str]
    changed: list[str]
    deleted: list[str]
    withheld: list[tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.deleted)

    def __str__(self) -> str:
        marks = (("+", self.new), ("~", self.changed), ("-", self.deleted))
        lines = [f"  {mark} {_printable(path)}" for mark, paths in marks for path in paths]
        lines += [f"  ! {_printable(path)}: not brought back: {why}" for path, why in self.withheld]
        if len(lines) > 200:
            lines = [*lines[:200], f"  … {len(lines) - 200:,} more"]
        return "\n".join(
            ["Changes in the work folder:" if lines else "The work folder is as it was.", *lines]
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def pack(folder: Path, out: IO[bytes], most: int) -> Manifest:
    """Write the folder as a tar, links as links; what is neither file, folder nor link is left out.

    Raises SandboxError above `most` bytes or MOST_FILES names, OSError.
    """
    manifest: Manifest = {}
    total = 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, info in _walk(folder):
            if len(manifest) >= MOST_FILES:
                raise SandboxError(
                    f"{folder}: holds more than {MOST_FILES:,} files: choose a smaller --workdir"
                )
            member = tarfile.TarInfo(path)
            member.mtime = info.st_mtime
            member.mode = stat.S_IMODE(info.st_mode) & 0o777
            if stat.S_ISLNK(info.st_mode):
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(folder / path)
                manifest[path] = Entry("link", member.linkname)
                tar.addfile(member)
            elif stat.S_ISDIR(info.st_mode):
                member.type, member.mode = tarfile.DIRTYPE, member.mode | 0o700
                manifest[path] = Entry("folder", "")
                tar.addfile(member)
            elif stat.S_ISREG(info.st_mode):
                member.size = info.st_size
                member.mode |= 0o600
                total += info.st_size + 4096
                if total > most:
                    raise SandboxError(
                        f"{folder}: holds more than the {most >> 20} MiB that the sandbox has for it: choose a "
                        "smaller --workdir or a larger --disk"
                    )
                with os.fdopen(os.open(folder / path, _READ), "rb") as file:
                    reader = _Hashing(file, member.size)
                    tar.addfile(member, reader)  # type: ignore[arg-type]
                manifest[path] = Entry("file", reader.digest.hexdigest(), bool(member.mode & 0o100))
    return manifest


class _Hashing:
    """A file of exactly so many bytes, hashed as it is read; what it lacks (it was cut meanwhile) is zeros."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size).ljust(size, b"\0")
        self._left -= size
        self.digest.update(data)
        return data


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every name below the folder in a fixed order, folders before what is in them, links not followed."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        with os.scandir(folder / place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            info = entry.stat(follow_symlinks=False)
            yield path, info
            if stat.S_ISDIR(info.st_mode):
                waiting.append(path)


def manifest_of(folder: Path, paths: Iterator[str] | list[str] | None = None) -> Manifest:
    """What is in the folder now, or only of the `paths` that are there."""
    manifest: Manifest = {}
    chosen = None if paths is None else set(paths)
    for path, info in _walk(folder):
        if chosen is not None and path not in chosen:
            continue
        if entry := _entry(folder, path, info):
            manifest[path] = entry
    return manifest


def _entry(folder: Path, path: str, info: os.stat_result) -> Entry | None:
    if stat.S_ISLNK(info.st_mode):
        return Entry("link", os.readlink(folder / path))
    if stat.S_ISDIR(info.st_mode):
        return Entry("folder", "")
    if not stat.S_ISREG(info.st_mode):
        return None
    digest = hashlib.sha256()
    with os.fdopen(os.open(folder / path, _READ), "rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return Entry("file", digest.hexdigest(), bool(info.st_mode & 0o100))


def read_packed(packed: Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """What a tar from a sandbox holds, and the names in it that are not taken, with the reason.

    Raises SandboxError where it is no whole tar.
    """
    manifest: Manifest = {}
    refused: list[tuple[str, str]] = []
    try:
        with packed.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count > 2 * MOST_FILES:
                    raise SandboxError(f"{packed}: holds more than {2 * MOST_FILES:,} names")
                path = _clean(member.name)
                if path == ".":
                    continue
                if path is None or path in manifest:
                    refused.append((member.name, "no plain path inside the folder, or there twice"))
                elif member.isdir():
                    manifest[path] = Entry("folder", "")
                elif member.issym():
                    if _inside(path, member.linkname):
                        manifest[path] = Entry("link", member.linkname)
                    else:
                        refused.append((path, f"a link that leaves the folder, to {member.linkname}"))
                elif member.isreg() and not member.issparse():
                    data = tar.extractfile(member)
                    digest = hashlib.sha256()
                    while data is not None and (chunk := data.read(_CHUNK)):
                        digest.update(chunk)
                    manifest[path] = Entry("file", digest.hexdigest(), bool(member.mode & 0o100))
                else:
                    refused.append((path, "neither a file, a folder nor a link"))
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise SandboxError(f"{packed}: cannot be read as the sandbox's folder: {error}") from None
    for path in list(manifest):  # below what is no folder
        parents = [str(parent) for parent in PurePosixPath(path).parents][:-1]
        if any(manifest.get(parent, Entry("folder", "")).kind != "folder" for parent in parents):
            refused.append((path, "stands below what is no folder"))
            del manifest[path]
    leaving = {path for path, _ in refused}
    while through := [path for path, entry in manifest.items() if _passes(path, entry, leaving)]:
        for path in through:
            refused.append(
                (path, f"a link through one that leaves the folder, to {manifest.pop(path).content}")
            )
        leaving.update(through)
    return manifest, refused


def _clean(name: str) -> str | None:
    """A tar member's name as a relative path; None for one that leaves the folder."""
    if "\0" in name or name.startswith("/"):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts) or "."


def _inside(path: str, target: str) -> bool:
    """Whether a link at `path` with this target stays in the folder, if the links that it passes do.

    ".." may stand only at the beginning, where it means the parents of `path` itself, which are folders.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return up <= path.count("/") and ".." not in parts[up:]


def _passes(path: str, entry: Entry, leaving: set[str]) -> bool:
    """Whether a link's way goes through one of these names."""
    if entry.kind != "link":
        return False
    place = path.split("/")[:-1]
    for part in entry.content.split("/"):
        if part == "..":
            place.pop()
        elif part not in ("", "."):
            place.append(part)
            if "/".join(place) in leaving:
                return True
    return False


def changes(folder: Path, before: Manifest, packed: Path, *, dot_files: bool = False) -> Changes:
    """What the sandbox's tar changes in the folder, which was `before` when it was packed. Raises SandboxError."""
    after, refused = read_packed(packed)
    now = manifest_of(folder, [*before, *after])
    new: list[str] = []
    changed: list[str] = []
    deleted: list[str] = []
    withheld_names = {path for path, _ in refused}
    # A link of the person's own that leaves the folder is none of the sandbox's doing.
    withheld = [(path, why) for path, why in refused if path not in before]
    for path in sorted(before.keys() | after.keys()):
        old, made = before.get(path), after.get(path)
        if made == old or path in withheld_names:
            continue
        if not dot_files and any(part.startswith(".") for part in path.split("/")):
            withheld.append((path, "its name begins with a dot (--dot-files brings such files back)"))
        elif now.get(path) == made:
            continue
        elif now.get(path) != old:
            withheld.append((path, "it was changed here meanwhile"))
        elif made is None:
            deleted.append(path)
        else:
            (new if old is None else changed).append(path)
    return Changes(new, changed, deleted, _grouped(withheld))


def _grouped(withheld: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without what lies below a folder that is withheld for the same reason."""
    reasons = dict(withheld)
    return [
        (path, why)
        for path, why in withheld
        if not any(reasons.get(str(parent)) == why for parent in PurePosixPath(path).parents)
    ]


def bring_back(folder: Path, before: Manifest, packed: Path, *, dot_files: bool = False) -> Changes:
    """Make these changes in the folder, each file whole or not at all. Raises SandboxError, OSError."""
    found = changes(folder, before, packed, dot_files=dot_files)
    after, _ = read_packed(packed)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    owner = os.fstat(root)
    try:
        for path in sorted(found.deleted, reverse=True):
            _remove(root, path, before[path])
        for path in found.changed:  # of another kind: a file where a folder was
            if before[path].kind != after[path].kind:
                _remove(root, path, before[path])
        wanted = set(found.new) | set(found.changed)
        for path in sorted(wanted):
            if after[path].kind == "folder":
                with _parent(root, path, make=True) as (parent, name), contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=parent)
                    _give(parent, name, owner)
        with packed.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = _clean(member.name) or ""
                if path in wanted and after[path].kind == "file" and member.isreg():
                    wanted.discard(path)
                    data = tar.extractfile(member)
                    assert data is not None
                    _write(root, path, data, 0o755 if after[path].executable else 0o644, owner)
        for path in sorted(wanted):
            if after[path].kind == "link":
                _link(root, path, after[path].content, owner)
    finally:
        os.close(root)
    return found


@contextlib.contextmanager
def _parent(root: int, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """The folder that holds `path`, opened step by step and never through a link, and the last name."""
    *parts, name = path.split("/")
    here = os.dup(root)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        yield here, name
    finally:
        os.close(here)


def _write(root: int, path: str, data: IO[bytes], mode: int, owner: os.stat_result) -> None:
    with _parent(root, path, make=True) as (parent, name):
        temporary = f".edge-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                while chunk := data.read(_CHUNK):
                    file.write(chunk)
                file.flush()
                if os.geteuid() == 0:
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.fchmod(descriptor, mode)
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise


def _link(root: int, path: str, target: str, owner: os.stat_result) -> None:
    with _parent(root, path, make=True) as (parent, name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        os.symlink(target, name, dir_fd=parent)
        _give(parent, name, owner)


def _give(parent: int, name: str, owner: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _remove(root: int, path: str, entry: Entry) -> None:
    """Delete a file, a link, or a folder that is empty now; a folder that holds more stays."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _parent(root, path) as (parent, name):
        if entry.kind != "folder":
            os.unlink(name, dir_fd=parent)
        else:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
