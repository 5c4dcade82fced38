"""The archive of a work folder: packed for the sandbox, copied from the sandbox, read back.

Every archive begins with the base: a list of what was in the folder when it was first packed. An archive of all begins
a session. Those that follow hold all folders, and of the files only those that changed; they list the others (`kept`).
"""

import contextlib
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from edge.errors import SandboxError
from edge.terminal.archive import (
    END,
    HEAD,
    MOST_ENTRIES,
    Entry,
    Kind,
    head_blocks,
    header,
    padding,
    read_entries,
)
from edge.terminal.opened import create_file, open_file, open_folder
from edge.terminal.sealed import Writer, check_seal, sealed

ACCESS_LIST = "system.posix_acl_access"  # the attribute that holds it
_PIECE = 1 << 20
_LOOK = 2048  # bytes at the begin of a file that show a session record
_RECORD = b'"source": "edge agent"'
SESSION_FILE = re.compile(
    r"(.+\.jsonl|.+(?=\.commits\.))\.(?:(?:work|first)\.tar|undo-[1-9][0-9]*\.tar|commits\.bundle)"
)
"""Names of the files that edge keeps beside a session record; the first group is the name of the record.

A record can have any name: then only a bundle has no seal and no begin by which edge knows it.
"""
_LONGEST = 4000  # bytes of a path: programs cannot open a longer one by its name
_OVERHEAD = 4096  # most bytes of an archive for each file besides its content: names, headers, padding


@dataclass(frozen=True)
class Item:
    """What edge compares of the entry at a path."""

    kind: Kind
    executable: bool = False
    content: str = ""
    """SHA-256 of a file, in hexadecimal; the target of a link."""


Base = dict[str, Item]
"""The work folder as it was when it was packed, by path."""


@dataclass
class Head:
    """The begin of an archive: its base, and the files that it does not hold because they are as in the first archive.

    `kept` is None if the archive holds all files.
    """

    base: Base = field(default_factory=dict)
    kept: frozenset[str] | None = None


Entries = Iterator[tuple[Entry, Iterator[bytes]]]
"""The entries of an archive, each with its content."""


def pack(
    folder: Path, to: Path, most: int, hidden: Collection[Path] = (), key: bytes | None = None
) -> tuple[str, ...]:
    """Write a folder to the new file `to` as an archive, which begins with a list of what is in the folder now.

    Returns the paths that are left out: sockets, devices, FIFOs, what cannot be read, and files of sessions: those of
    `hidden`, and each file that begins as a session record or its work folder does. `most`: bytes of the archive.
    `key`: seals it. Raises SandboxError if there are more, or more than 200,000 files.
    """
    try:
        with _temporary(to.with_name(to.name + ".body")) as body:
            packer = _Packer(folder, most, body, _identities(hidden))
            with open_folder(folder) as root:
                body.write(header(Entry("", "folder")))
                packer.add(root, "")
            body.write(END)
            body.seek(0)
            with _private(to) as file, sealed(file, key) as out:
                write_head(Head(packer.base), out)
                while piece := body.read(_PIECE):
                    out.write(piece)
    except OSError as error:  # that of a full disk names no file
        raise SandboxError(
            f"{folder}: cannot be packed for the sandbox: {error.filename or to.parent}: {error.strerror}"
        ) from None
    except RecursionError:
        raise SandboxError(
            f"{folder}: its folders are nested too deep for the sandbox: choose another --workdir"
        ) from None
    return tuple(packer.left_out)


@dataclass
class _Packer:
    """Writes the entries of a folder to `body`."""

    folder: Path
    most: int
    body: BinaryIO
    hidden: frozenset[tuple[int, int]]
    """Device and inode of files and folders that are left out, whatever their name is."""
    base: Base = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, descriptor: int, path: str) -> None:
        """Add all that is in the open folder `descriptor`, which is at `path` below the work folder."""
        with os.scandir(descriptor) as scan:
            names = sorted(entry.name for entry in scan)
        for name in names:
            state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            full = f"{path}/{name}" if path else name
            ours = (state.st_dev, state.st_ino) in self.hidden or SESSION_FILE.fullmatch(name) is not None
            if ours or len(os.fsencode(full)) > _LONGEST:
                self.left_out.append(full)
                continue
            self.total += _OVERHEAD + (state.st_size if stat.S_ISREG(state.st_mode) else 0)
            if self.total > self.most or len(self.base) >= MOST_ENTRIES:
                raise SandboxError(
                    f"{self.folder}: too large for the sandbox ({self.most:,} bytes, {MOST_ENTRIES:,} files): "
                    "choose a smaller --workdir or a larger --disk"
                )
            try:
                self._add_one(descriptor, name, full, state)
            except PermissionError:
                self.left_out.append(full)

    def _add_one(self, parent: int, name: str, path: str, state: os.stat_result) -> None:
        if stat.S_ISDIR(state.st_mode):
            with open_folder(name, parent) as inner:
                self.base[path] = Item("folder", True)
                mode = rights_of(inner, state)
                self.body.write(header(Entry(path, "folder", mtime=int(state.st_mtime), mode=mode)))
                self.add(inner, path)
        elif stat.S_ISLNK(state.st_mode):
            target = os.readlink(name, dir_fd=parent)
            self.base[path] = Item("link", True, target)
            self.body.write(header(Entry(path, "link", mtime=int(state.st_mtime), target=target)))
        elif stat.S_ISREG(state.st_mode):
            with open_file(name, parent) as file:
                if _of_a_session(file):
                    self.left_out.append(path)
                else:
                    self.base[path] = pack_file(file, path, self.body)
        else:
            self.left_out.append(path)


def _identities(places: Collection[Path]) -> frozenset[tuple[int, int]]:
    found = set()
    for place in places:
        with contextlib.suppress(OSError):
            state = os.stat(place)
            found.add((state.st_dev, state.st_ino))
    return frozenset(found)


def _of_a_session(descriptor: int) -> bool:
    """Whether an open file is a session record, or an archive of a work folder."""
    begin = os.read(descriptor, _LOOK)
    os.lseek(descriptor, 0, os.SEEK_SET)
    row = begin.startswith(b'{"task_id": ') and _RECORD in begin.partition(b"\n")[0]
    return row or begin.startswith(HEAD.encode() + b"\0")


def pack_file(descriptor: int, path: str, body: Writer, *, exact: bool = False) -> Item:
    """Write a file with the size that it has now, even if another program changes it during the read.

    `exact`: with its permissions. Raises OSError.
    """
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise OSError(0, "is not a regular file any more", path)
    executable = bool(state.st_mode & 0o100)
    mode = rights_of(descriptor, state)
    entry = Entry(path, "file", executable, state.st_size, int(state.st_mtime), mode=mode)
    body.write(header(entry, exact=exact))
    digest, left = hashlib.sha256(), state.st_size
    while left:
        piece = os.read(descriptor, min(left, _PIECE)) or bytes(min(left, _PIECE))
        digest.update(piece)
        body.write(piece)
        left -= len(piece)
    body.write(padding(state.st_size))
    return Item("file", executable, digest.hexdigest())


def rights_of(descriptor: int, state: os.stat_result) -> int:
    """The permissions of an open file or folder, without those of an access list (ACL), which archives do not hold."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.getxattr(descriptor, ACCESS_LIST)
            return state.st_mode & 0o707  # the bits of the group are the most that the list gives to anybody
    return state.st_mode & 0o777


def read_base(packed: Path, key: bytes | None = None) -> Base:
    """The folder as it was when it was first packed. Raises SandboxError if the archive is damaged."""
    with open_archive(packed, key) as (entries, head):
        next(entries)
        return head.base


def copy_archive(
    read: Callable[[int], bytes],
    base: Base,
    file: Writer,
    most: int,
    kept: frozenset[str] | None = None,
    *,
    exact: bool = False,
) -> None:
    """Copy the archive that a sandbox sends to `file`, with `base` first and every header written by edge.

    `most`: bytes of content. `kept`: what it does not hold; see `Head`. `exact`: with the permissions of files and
    folders. Raises SandboxError if the archive is damaged or too large.
    """
    write_archive(read_entries(read, most), Head(base, kept), file, exact=exact)


def write_archive(entries: Entries, head: Head, file: Writer, *, exact: bool = False) -> None:
    """Write `head` and the entries to `file`. Hard links and devices become links to nowhere."""
    write_head(head, file)
    _write_entries(entries, file, exact=exact)
    file.write(END)


def _write_entries(entries: Entries, file: Writer, *, exact: bool = True) -> None:
    for entry, content in entries:
        if entry.kind in ("file", "folder", "link"):
            file.write(header(entry, exact=exact))
            for piece in content:
                file.write(piece)
            file.write(padding(entry.size))
        else:  # kept as a link to nowhere, so that `compare` can report it
            file.write(header(Entry(entry.path, "link", target=f"/{entry.kind}")))


def write_nothing(to: Path) -> None:
    """Write an archive of an empty folder to the new file `to`. Raises OSError."""
    with _private(to) as file:
        file.write(header(Entry("", "folder")) + END)


def restore(first: Path, saved: Path, key: bytes | None, to: Path, again: Path) -> tuple[Base, Base]:
    """Write what a sandbox needs to continue from `saved`, whose unchanged files are in `first`.

    The new files: `to`, an archive of all; `again`, an archive of what is not as in `first`. Returns the base of
    `saved` and that of `first`. `key`: of the seals. Raises SandboxError, OSError.
    """
    with open_archive(saved, key) as (entries, head), _private(again) as file:
        _write_entries(entries, file)
        file.write(END)
    with open_archive(first, key) as (entries, begin), _private(to) as file:
        next(entries)  # the work folder itself
        write_head(head, file)
        _write_entries(((e, c) for e, c in entries if head.kept is None or e.path in head.kept), file)
        with open_archive(again) as (more, _):
            _write_entries(more, file)
        file.write(END)
    return head.base, begin.base


def write_head(head: Head, file: Writer) -> None:
    """Write the begin of an archive. Raises SandboxError if it is too large."""
    items = {path: [item.kind, item.executable, item.content] for path, item in head.base.items()}
    kept = {} if head.kept is None else {"kept": sorted(head.kept)}
    file.write(head_blocks({"base": items, **kept}))


@contextlib.contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    with open(create_file(path, 0o600), "w+b") as file:
        yield file


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    with _private(path) as file:
        path.unlink()
        yield file


@contextlib.contextmanager
def open_archive(packed: Path, key: bytes | None = None) -> Iterator[tuple[Entries, Head]]:
    """The entries of an archive on disk, and its head, which is empty until the first entry is read.

    `key`: check the seal of the file. Raises SandboxError.
    """
    head = Head()
    try:
        with packed.open("rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise SandboxError("is not a regular file")
            if key is not None:
                check_seal(file, key)
            yield read_entries(file.read, state.st_size, lambda value: _read_head(value, head)), head
    except SandboxError as error:
        raise SandboxError(f"{packed}: {error}") from None
    except OSError as error:
        raise SandboxError(f"{packed}: {error.strerror or error}") from None


def _read_head(value: Any, head: Head) -> None:
    try:
        if (kept := value.get("kept")) is not None:
            head.kept = frozenset(map(str, kept))
        for path, (kind, executable, content) in value["base"].items():
            parts = path.split("/")
            known = kind in ("file", "folder", "link") and isinstance(executable, bool)
            if not known or not isinstance(content, str) or any(part in ("", ".", "..") for part in parts):
                raise ValueError
            head.base[path] = Item(kind, executable, content)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SandboxError("its list of files is damaged: remove it and start a new session") from None
