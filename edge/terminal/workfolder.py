"""The work folder: compared with an archive from the sandbox, and changed as the archive says.

The archive from the sandbox is untrusted. edge never writes through a symbolic link in the user's folder, and never
overwrites or deletes what the user changed during the session.
"""

import contextlib
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import SandboxError
from edge.system.files import make_private, whole_file
from edge.system.text import printable
from edge.terminal.archive import Entry
from edge.terminal.opened import NEEDS_POSIX, create_file, folder_of, open_file, open_folder
from edge.terminal.packed import Base, Item, open_archive, write_archive

_PIECE = 1 << 20
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CHANGED = "it changed in your folder during the session"
# Other agents read these files as instructions without being asked to.
_INSTRUCTIONS = {"agents.md", "agent.md", "claude.md", "gemini.md", "copilot-instructions.md"}


@dataclass(frozen=True)
class Changes:
    """What a session changed in the folder, as relative paths. `withheld`: what edge does not bring back, and why."""

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
            ["Changes in the work folder:" if lines else "The work folder is unchanged.", *lines]
        )


@dataclass
class Comparison:
    """The difference between an archive and the folder that it came from. Made by `compare`."""

    changes: Changes
    _folder: Path
    _packed: Path
    _base: Base
    _after: Base  # what the archive holds
    _write: dict[str, Item | None]  # the paths to write, with what is there now

    def apply(self) -> Changes:
        """Make the changes in the folder. What cannot be written, or changed since `compare`, is withheld."""
        failed: dict[str, str] = {}
        with (
            open_folder(self._folder) as root,
            open_archive(self._packed) as (entries, _),
        ):
            for entry, content in entries:
                if entry.path in self._write:
                    try:
                        _write_entry(root, entry, content, self._write[entry.path])
                    except (OSError, SandboxError) as error:
                        failed[entry.path] = _why(error)
            for path in sorted(
                self.changes.deleted, reverse=True
            ):  # the content of a folder before the folder
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
        """Rewrite the archive so that what `apply` brought back (`done`) no longer counts as a change."""
        base = {path: item for path, item in self._base.items() if path not in done.deleted}
        base |= {path: self._after[path] for path in (*done.new, *done.changed)}
        with open_archive(self._packed) as (entries, _), whole_file(self._packed) as (_, descriptor):
            make_private(descriptor)
            with open(descriptor, "wb", closefd=False) as file:
                write_archive(entries, base, file)


def compare(
    folder: Path, packed: Path, *, dot_files: bool = False, protected: Collection[Path] = ()
) -> Comparison:
    """Compare an archive with the folder that it was packed from, as both are now.

    `dot_files`: also bring back names that begin with a dot. `protected`: files and folders that are never brought
    back. Raises SandboxError for a damaged archive, OSError if the folder cannot be opened.
    """
    guarded = {Path(os.path.realpath(path)) for path in protected}
    place = Path(os.path.realpath(folder))
    with open_folder(folder) as root, open_archive(packed) as (entries, base):
        comparer = _Comparer(root, place, guarded, dot_files)
        for entry, content in entries:
            if entry.path:
                comparer.see(entry.path, _item(entry, content), base.get(entry.path))
        for path, before in base.items():
            comparer.see_missing(path, before)
    return Comparison(comparer.changes(), folder, packed, base, comparer.after, comparer.write)


@dataclass
class _Comparer:
    """Sorts each path of an archive into what to write, what to delete and what to withhold."""

    root: int
    place: Path
    guarded: set[Path]
    dot_files: bool
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    withheld: dict[tuple[str, str], int] = field(default_factory=dict)
    """Path and reason; how many changes it stands for."""
    write: dict[str, Item | None] = field(default_factory=dict)
    after: Base = field(default_factory=dict)

    def see(self, path: str, item: Item, before: Item | None) -> None:
        """A path of the archive: what is there in the sandbox, and what was there when the folder was packed."""
        self.after[path] = item
        if item == before:
            return
        if reason := self._refusal(path):
            self._withhold(*reason)
            return
        if item.kind == "link" and (why := _leads_out(path, item.content, self.dot_files)):
            self._withhold(path, why)
            return
        now = _now(self.root, path)
        if now == item:
            return
        if now != before:
            self._withhold(path, _CHANGED)
        elif before is not None and "folder" in (before.kind, item.kind):
            self._withhold(path, f"it was a {before.kind} and is now a {item.kind}")
        else:
            self.write[path] = now
            (self.new if before is None else self.changed).append(path)

    def see_missing(self, path: str, before: Item) -> None:
        """A path of the packed folder, which the sandbox deleted unless `see` has seen it."""
        if path in self.after or (now := _now(self.root, path)) is None:
            return
        if reason := self._refusal(path):
            self._withhold(*reason)
        elif now == before:
            self.deleted.append(path)
        else:
            self._withhold(path, "the sandbox deleted it, but it changed in your folder during the session")

    def changes(self) -> Changes:
        """All that was seen. A folder that still contains something withheld is not deleted."""
        kept = {
            "/".join(path.split("/")[:end])
            for path, _ in self.withheld
            for end in range(1, path.count("/") + 1)
        }
        reasons = [
            (path, reason if count == 1 else f"{reason} ({count:,} changes)")
            for (path, reason), count in self.withheld.items()
        ]
        deleted = sorted(path for path in self.deleted if path not in kept)
        return Changes(sorted(self.new), sorted(self.changed), deleted, sorted(reasons))

    def _withhold(self, path: str, reason: str) -> None:
        self.withheld[path, reason] = self.withheld.get((path, reason), 0) + 1

    def _refusal(self, path: str) -> tuple[str, str] | None:
        """The part of the path that may not change, and why."""
        parts = path.split("/")
        for end, part in enumerate(parts, 1):
            here = "/".join(parts[:end])
            if part.startswith(".") and not self.dot_files:
                return here, "its name begins with a dot (--dot-files brings it back)"
            if part.startswith("-"):
                return here, "its name begins with a dash, as options do"
            if _CONTROL.search(part):
                return here, "its name contains control characters"
            if part.casefold() in _INSTRUCTIONS and not self.dot_files:
                return here, "other agents read it as instructions (--dot-files brings it back)"
        full = self.place / path
        if any(full.is_relative_to(one) or one.is_relative_to(full) for one in self.guarded):
            return path, "it belongs to this session: the record, the allowlist, the prompt or the model"
        return None


def _leads_out(path: str, target: str, dot_files: bool) -> str | None:
    """Why a link is not brought back; None if it leads to a place in the folder.

    ".." is allowed only at the beginning of the target: after another name it may follow a link.
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
        return "it is a link whose target contains control characters"
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


def _now(root: int, path: str) -> Item | None:
    """What is at a path of the user's folder; None for nothing, a special item for what cannot be read."""
    try:
        with folder_of(root, path) as (parent, name):
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
    with open_file(name, parent) as file:
        while piece := os.read(file, _PIECE):
            digest.update(piece)
    return Item("file", bool(state.st_mode & 0o100), digest.hexdigest())


def _write_entry(root: int, entry: Entry, content: Iterator[bytes], expected: Item | None) -> None:
    with folder_of(root, entry.path) as (parent, name):
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
                raise SandboxError(_CHANGED)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise


def _write_file(parent: int, name: str, temporary: str, entry: Entry, content: Iterator[bytes]) -> None:
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    with open(create_file(temporary, 0o777 if entry.executable else 0o666, parent), "wb") as file:
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
    """If edge runs as root, give a new file to the owner of the work folder."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    if os.geteuid() == 0:
        owner = os.fstat(root)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _delete(root: int, path: str, base: Base) -> None:
    with folder_of(root, path) as (parent, name):
        now = _state(parent, name)
        if now is None:
            return
        if now != base[path]:
            raise SandboxError(_CHANGED)
        if now.kind == "folder":
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
