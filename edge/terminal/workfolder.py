"""The work folder: packed for a sandbox, and what changed there brought back with care.

What comes back is untrusted. Nothing in the person's folder is written through a symbolic link, and nothing that the
person changed meanwhile is overwritten or deleted.
"""

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge.errors import SandboxError
from edge.system.files import whole_file
from edge.system.text import printable
from edge.terminal.archive import END, MOST_ENTRIES, Entry, Kind, head_blocks, header, padding, read_entries

_PIECE = 1 << 20
_OVERHEAD = 4096  # bytes of an archive for each file, at most: names, headers, padding
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Read unasked by other agents, as instructions.
_INSTRUCTIONS = {"agents.md", "agent.md", "claude.md", "gemini.md", "copilot-instructions.md"}


@dataclass(frozen=True)
class Item:
    """What lies at a path, as far as edge compares it."""

    kind: Kind
    executable: bool = False
    content: str = ""
    """SHA-256 of a file, in hexadecimal; the target of a link."""


Base = dict[str, Item]
"""The work folder when it was packed, by path."""


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
        lines = [f"  {mark} {printable(path)}" for mark, paths in marks for path in paths]
        lines += [f"  ! {printable(path)}: not brought back: {why}" for path, why in self.withheld]
        if len(lines) > 200:
            lines = [*lines[:200], f"  … {len(lines) - 200:,} more"]
        return "\n".join(
            ["Changes in the work folder:" if lines else "The work folder is as it was.", *lines]
        )


def pack(folder: Path, to: Path, most: int) -> tuple[str, ...]:
    """Write the folder to the new file `to`, as an archive that begins with what lies there now.

    Returns the paths that are left out: sockets, devices, FIFOs, what cannot be read. `most`: bytes of content.
    Raises SandboxError: more than that, or more than 200,000 files.
    """
    base: Base = {}
    left_out: list[str] = []
    total = 0
    with contextlib.ExitStack() as stack:
        body = stack.enter_context(_temporary(to.with_name(to.name + ".body")))

        def add(descriptor: int, path: str) -> None:
            nonlocal total
            with os.scandir(descriptor) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for one in entries:
                name = f"{path}/{one.name}" if path else one.name
                state = os.stat(one.name, dir_fd=descriptor, follow_symlinks=False)
                total += _OVERHEAD + (state.st_size if stat.S_ISREG(state.st_mode) else 0)
                if total > most or len(base) >= MOST_ENTRIES:
                    raise SandboxError(
                        f"{folder}: holds more than the sandbox takes ({most:,} bytes, {MOST_ENTRIES:,} files): "
                        "choose a smaller --workdir or a larger --disk"
                    )
                try:
                    if stat.S_ISDIR(state.st_mode):
                        with _opened(one.name, _FOLDER, descriptor) as inner:
                            base[name] = Item("folder", True)
                            body.write(header(Entry(name, "folder", mtime=int(state.st_mtime))))
                            add(inner, name)
                    elif stat.S_ISLNK(state.st_mode):
                        target = os.readlink(one.name, dir_fd=descriptor)
                        base[name] = Item("link", True, target)
                        body.write(header(Entry(name, "link", mtime=int(state.st_mtime), target=target)))
                    elif stat.S_ISREG(state.st_mode):
                        with _opened(one.name, _FILE, descriptor) as file:
                            base[name] = _pack_file(file, name, body)
                    else:
                        left_out.append(name)
                except PermissionError:
                    left_out.append(name)

        try:
            with _opened(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root:
                body.write(header(Entry("", "folder")))
                add(root, "")
        except OSError as error:
            raise SandboxError(
                f"{folder}: cannot be packed for the sandbox: {error.filename}: {error.strerror}"
            ) from None
        except RecursionError:
            raise SandboxError(f"{folder}: holds folders too deep to be packed: choose another") from None
        body.write(END)
        body.seek(0)
        with _private(to) as file:
            file.write(head_blocks({path: [i.kind, i.executable, i.content] for path, i in base.items()}))
            while piece := body.read(_PIECE):
                file.write(piece)
    return tuple(left_out)


def _pack_file(descriptor: int, path: str, body: BinaryIO) -> Item:
    """A file of the size that it has now, whatever is written to it meanwhile."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise OSError(0, "changes its kind while it is read", path)
    executable = bool(state.st_mode & 0o100)
    body.write(header(Entry(path, "file", executable, state.st_size, int(state.st_mtime))))
    digest, left = hashlib.sha256(), state.st_size
    while left:
        piece = os.read(descriptor, min(left, _PIECE)) or bytes(min(left, _PIECE))
        digest.update(piece)
        body.write(piece)
        left -= len(piece)
    body.write(padding(state.st_size))
    return Item("file", executable, digest.hexdigest())


def read_base(packed: Path) -> Base:
    """The folder as it was when it was first packed. Raises SandboxError."""
    with _archive(packed) as (entries, base):
        next(entries)
        return base


def copy_archive(read: Callable[[int], bytes], base: Base, file: BinaryIO, most: int) -> None:
    """Write what a sandbox sends as an archive to `file`, each header anew. Raises SandboxError."""
    _write_archive(read_entries(read, most), base, file)


def _write_archive(entries: Iterator[tuple[Entry, Iterator[bytes]]], base: Base, file: BinaryIO) -> None:
    file.write(head_blocks({path: [i.kind, i.executable, i.content] for path, i in base.items()}))
    for entry, content in entries:
        if entry.kind in ("file", "folder", "link"):
            file.write(header(entry))
            for piece in content:
                file.write(piece)
            file.write(padding(entry.size))
        else:  # kept to be told of, as a link that leads nowhere
            file.write(header(Entry(entry.path, "link", target=f"/{entry.kind}")))
    file.write(END)


@dataclass
class Comparison:
    """An archive held against the folder that it came from; made by `compare`."""

    changes: Changes
    _folder: Path
    _packed: Path
    _base: Base
    _after: Base  # what the archive holds
    _write: dict[str, Item | None]  # the paths to be written, with what lies there now

    def apply(self) -> Changes:
        """Bring the changes into the folder. What cannot be written, or changed since, is withheld."""
        failed: dict[str, str] = {}
        with (
            _opened(str(self._folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root,
            _archive(self._packed) as (entries, _),
        ):
            for entry, content in entries:
                if entry.path in self._write:
                    try:
                        _write_entry(root, entry, content, self._write[entry.path])
                    except (OSError, SandboxError) as error:
                        failed[entry.path] = _why(error)
            for path in sorted(self.changes.deleted, reverse=True):  # what lies in a folder before the folder
                try:
                    _delete(root, path, self._base)
                except (OSError, SandboxError) as error:
                    failed[path] = _why(error)

        def done(paths: list[str]) -> list[str]:
            return [path for path in paths if path not in failed]

        return Changes(
            done(self.changes.new),
            done(self.changes.changed),
            done(self.changes.deleted),
            self.changes.withheld + list(failed.items()),
        )

    def keep_rest(self, done: Changes) -> None:
        """What `apply` brought back is no change of the archive any more; the rest of it still is."""
        base = {path: item for path, item in self._base.items() if path not in done.deleted}
        base |= {path: self._after[path] for path in (*done.new, *done.changed)}
        with _archive(self._packed) as (entries, _), whole_file(self._packed) as (_, descriptor):
            os.fchmod(descriptor, 0o600)
            with open(descriptor, "wb", closefd=False) as file:
                _write_archive(entries, base, file)


def compare(
    folder: Path, packed: Path, *, dot_files: bool = False, protected: Collection[Path] = ()
) -> Comparison:
    """Hold an archive against the folder that it was packed from, as both are now.

    `dot_files`: whether names that begin with a dot are brought back too. `protected`: files and folders that never
    are. Raises SandboxError for a damaged archive.
    """
    guarded = {Path(os.path.realpath(path)) for path in protected}
    place = Path(os.path.realpath(folder))
    new: list[str] = []
    changed: list[str] = []
    deleted: list[str] = []
    withheld: dict[tuple[str, str], int] = {}
    write: dict[str, Item | None] = {}
    after: Base = {}

    def keep(path: str, reason: str) -> None:
        withheld[path, reason] = withheld.get((path, reason), 0) + 1

    def refused(path: str) -> tuple[str, str] | None:
        """The part of the path that may not be changed, and why."""
        parts = path.split("/")
        for end, part in enumerate(parts, 1):
            here = "/".join(parts[:end])
            if part.startswith(".") and not dot_files:
                return here, "its name begins with a dot (--dot-files brings such files back)"
            if part.startswith("-"):
                return here, "its name begins with a dash, as options do"
            if _CONTROL.search(part):
                return here, "its name holds control characters"
            if part.casefold() in _INSTRUCTIONS and not dot_files:
                return here, "other agents read it as instructions (--dot-files brings such files back)"
        if any((place / path).is_relative_to(one) or one.is_relative_to(place / path) for one in guarded):
            return path, "it belongs to this session: a record, a list of what is allowed"
        return None

    with (
        _opened(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root,
        _archive(packed) as (entries, base),
    ):
        for entry, content in entries:
            if not entry.path:
                continue
            item = _item(entry, content)
            path, before = entry.path, base.get(entry.path)
            after[path] = item
            if item == before:
                continue
            if reason := refused(path):
                keep(*reason)
                continue
            if item.kind == "link" and (why := _leads_out(path, item.content, dot_files)):
                keep(path, why)
                continue
            now = _now(root, path)
            if now == item:
                continue
            if now != before:
                keep(path, "it changed in your folder meanwhile")
            elif before is not None and "folder" in (before.kind, item.kind):
                keep(path, f"it was a {before.kind} and is a {item.kind}")
            else:
                write[path] = now
                (new if before is None else changed).append(path)
        for path, before in base.items():
            if path in after or (now := _now(root, path)) is None:
                continue
            if reason := refused(path):
                keep(*reason)
            elif now == before:
                deleted.append(path)
            else:
                keep(path, "it is deleted in the sandbox, but changed in your folder meanwhile")
    kept = {  # gone in the sandbox, but they still hold something that is not
        "/".join(path.split("/")[:end]) for path, _ in withheld for end in range(1, path.count("/") + 1)
    }
    told = [
        (path, reason if count == 1 else f"{reason} ({count:,} changes)")
        for (path, reason), count in withheld.items()
    ]
    deleted = sorted(path for path in deleted if path not in kept)
    changes = Changes(sorted(new), sorted(changed), deleted, sorted(told))
    return Comparison(changes, folder, packed, base, after, write)


def _leads_out(path: str, target: str, dot_files: bool) -> str | None:
    """Why a link is not brought back; None where it leads to a place in the folder.

    ".." only at the beginning, where the folders above are real ones: after another name it may follow a link.
    """
    if target in ("/hard link", "/special"):
        return f"it is a {target[1:]}" if target == "/hard link" else "it is a device, a FIFO or a socket"
    parts = target.split("/")
    names = [part for part in parts if part not in (".", "")]
    up = 0
    while up < len(names) and names[up] == "..":
        up += 1
    if target.startswith("/") or up > path.count("/") or ".." in names[up:] or not target:
        return "it is a link that may leave the folder"
    if _CONTROL.search(target):
        return "it is a link with control characters"
    if not dot_files and any(name.startswith(".") for name in names[up:]):
        return "it is a link to a name that begins with a dot"
    return None


def _item(entry: Entry, content: Iterator[bytes]) -> Item:
    if entry.kind == "file":
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)
        return Item("file", entry.executable, digest.hexdigest())
    return Item(entry.kind, True, entry.target)


@contextlib.contextmanager
def _parent(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The folder of a path, open, reached through real folders alone, and the last name. Raises OSError."""
    *folders, name = path.split("/")
    with contextlib.ExitStack() as stack:
        here = root
        for folder in folders:
            here = stack.enter_context(_opened(folder, _FOLDER, here))
        yield here, name


def _now(root: int, path: str) -> Item | None:
    """What lies at a path of the person's folder; None for nothing, a special item for what cannot be told."""
    try:
        with _parent(root, path) as (parent, name):
            return _state(parent, name)
    except FileNotFoundError:
        return None
    except OSError:
        return Item("special")


def _state(parent: int, name: str) -> Item | None:
    try:
        state = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(state.st_mode):
        return Item("folder", True)
    if stat.S_ISLNK(state.st_mode):
        return Item("link", True, os.readlink(name, dir_fd=parent))
    if not stat.S_ISREG(state.st_mode):
        return Item("special")
    digest = hashlib.sha256()
    with _opened(name, _FILE, parent) as file:
        while piece := os.read(file, _PIECE):
            digest.update(piece)
    return Item("file", bool(state.st_mode & 0o100), digest.hexdigest())


def _write_entry(root: int, entry: Entry, content: Iterator[bytes], expected: Item | None) -> None:
    with _parent(root, entry.path) as (parent, name):
        if entry.kind == "folder":
            os.mkdir(name, dir_fd=parent)
            _own(root, parent, name)
            return
        temporary = f".edge-{secrets.token_hex(8)}.tmp"
        try:
            if entry.kind == "link":
                os.symlink(entry.target, temporary, dir_fd=parent)
            else:
                _write_file(parent, name, temporary, entry, content)
            if expected is None:
                _own(root, parent, temporary)
            if _state(parent, name) != expected:
                raise SandboxError("it changed in your folder meanwhile")
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise


def _write_file(parent: int, name: str, temporary: str, entry: Entry, content: Iterator[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o777 if entry.executable else 0o666, dir_fd=parent), "wb") as file:
        for piece in content:
            file.write(piece)
        with contextlib.suppress(FileNotFoundError):  # a changed file keeps its owner and mode
            old = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISREG(old.st_mode):
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                mode = old.st_mode & 0o777
                if entry.executable != bool(mode & 0o100):
                    mode = mode | (mode & 0o444) >> 2 if entry.executable else mode & 0o666
                os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.utime(temporary, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _own(root: int, parent: int, name: str) -> None:
    """Where edge is root, what is new belongs to whom the work folder belongs to."""
    if os.geteuid() == 0:
        owner = os.fstat(root)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _delete(root: int, path: str, base: Base) -> None:
    with _parent(root, path) as (parent, name):
        now = _state(parent, name)
        if now is None:
            return
        if now != base[path]:
            raise SandboxError("it changed in your folder meanwhile")
        if now.kind == "folder":
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _opened(path: str, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w+b") as file:
        yield file


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    with _private(path) as file:
        path.unlink()
        yield file


@contextlib.contextmanager
def _archive(packed: Path) -> Iterator[tuple[Iterator[tuple[Entry, Iterator[bytes]]], Base]]:
    """The entries of an archive on disk, and its base: empty until the first entry is taken."""
    base: Base = {}
    try:
        with packed.open("rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise SandboxError("it is no regular file")
            yield read_entries(file.read, state.st_size, lambda value: _read_base(value, base)), base
    except SandboxError as error:
        raise SandboxError(f"{packed}: {error}") from None
    except OSError as error:
        raise SandboxError(f"{packed}: {error.strerror or error}") from None


def _read_base(value: Any, base: Base) -> None:
    try:
        for path, (kind, executable, content) in value.items():
            parts = path.split("/")
            known = kind in ("file", "folder", "link") and isinstance(executable, bool)
            if not known or not isinstance(content, str) or any(part in ("", ".", "..") for part in parts):
                raise ValueError
            base[path] = Item(kind, executable, content)
    except (AttributeError, TypeError, ValueError):
        raise SandboxError("its list of files is damaged") from None
