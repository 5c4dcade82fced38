"""The work folder: compared with an archive from the sandbox, and changed as the archive says.

The archive from the sandbox is untrusted. edge never writes through a symbolic link in the user's folder, and never
overwrites or deletes what the user changed during the session.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.errors import SandboxError
from edge.system.files import make_private, whole_file
from edge.system.locks import try_lock
from edge.terminal.links import leads_out, way_to
from edge.terminal.obeyed import acted_on, instructs_agents, replaces_source
from edge.terminal.opened import folder_of, open_file, open_folder
from edge.terminal.packed import SESSION_FILE, Base, Head, Item, open_archive, write_archive
from edge.terminal.place import (
    CHANGED,
    SINCE,
    Write,
    delete_entry,
    item_of,
    remove_leftovers,
    state_of,
    write_entry,
)
from edge.terminal.repository import Repositories, hidden
from edge.terminal.sealed import sealed
from edge.terminal.undo import write_undo

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LEAST_LEFT = 0.1  # a changed file that is shorter than this share of its length counts as lost
_EMPTY = Item("file", content=hashlib.sha256(b"").hexdigest())


@dataclass(frozen=True)
class Changes:
    """What a session changed in the folder, as relative paths. `withheld`: what edge does not bring back, and why."""

    new: list[str]
    changed: list[str]
    deleted: list[str]
    withheld: list[tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.deleted)


@dataclass
class Comparison:
    """The difference between an archive and the folder that it came from. Made by `compare`."""

    changes: Changes
    _folder: Path
    _packed: Path
    _key: bytes | None
    _own: bool
    _base: Base
    _kept: frozenset[str] | None
    _after: Base  # what the archive holds
    _write: dict[str, Item | None]  # the paths to write, with what is there now
    _cut: frozenset[str]  # files that have less than a tenth of their length now

    def before(self, path: str) -> Item | None:
        """What was at a path of the folder when it was packed."""
        return self._base.get(path)

    def after(self, path: str) -> Item | None:
        """What the archive puts at a path."""
        return self._after.get(path)

    def contents(self, paths: Collection[str], most: int) -> Iterator[tuple[str, bytes, bytes]]:
        """For each of these paths, what is in its file in the folder now, and in the archive: the first `most` bytes.

        No bytes where there is no file. Raises SandboxError, OSError.
        """
        left = set(paths)
        with open_folder(self._folder) as root:
            with open_archive(self._packed, self._key) as (entries, _):
                for entry, content in entries:
                    if entry.path in left:
                        left.remove(entry.path)
                        new = b"".join(content)[:most] if entry.kind == "file" else b""
                        yield entry.path, _content(root, entry.path, most), new
            for path in sorted(left):
                yield path, _content(root, path, most), b""

    @property
    def lost(self) -> list[str]:
        """The files and links that `apply` deletes, and the files that it empties, cuts short or replaces by a link."""
        deleted = [path for path in self.changes.deleted if self._base[path].kind != "folder"]
        return deleted + [
            path
            for path in self.changes.changed
            if path in self._cut
            or self._after[path].content == _EMPTY.content != self._base[path].content
            or (self._base[path].kind, self._after[path].kind) == ("file", "link")
        ]

    @property
    def n_files(self) -> int:
        """The number of files and links that were in the folder."""
        return sum(item.kind != "folder" for item in self._base.values())

    def without_losses(self, reason: str) -> "Comparison":
        """The same without the losses, which are withheld for this reason."""
        left = {*self.lost, *self.changes.deleted}
        changes = Changes(
            self.changes.new,
            [path for path in self.changes.changed if path not in left],
            [],
            sorted([*self.changes.withheld, *((path, reason) for path in left)]),
        )
        write = {path: now for path, now in self._write.items() if path not in left}
        return replace(self, changes=changes, _write=write)

    def keep_undo(self, to: Path, key: bytes | None = None) -> None:
        """Write what undoes `apply` to the archive `to`: the folder as it is now, as far as `apply` changes it.

        `compare` with `own` reads it. `key`: seals it. Raises SandboxError, OSError.
        """
        changes = self.changes
        before = {path: self._base[path] for path in (*changes.changed, *changes.deleted)}
        after = {path: self._after[path] for path in (*changes.new, *changes.changed)}
        with open_folder(self._folder) as root, whole_file(to) as (_, descriptor):
            make_private(descriptor)
            with open(descriptor, "wb", closefd=False) as file, sealed(file, key) as out:
                write_undo(root, before, after, out)

    def apply(self) -> Changes:
        """Make the changes in the folder. What cannot be written, or changed since `compare`, is withheld."""
        failed: dict[str, str] = {}
        with (
            open_folder(self._folder) as root,
            open_archive(self._packed, self._key) as (entries, _),
        ):
            if try_lock(root) is False:
                raise SandboxError(
                    f"{self._folder}: another process brings changes back into it: try again when it has ended"
                )
            remove_leftovers(root, {path.rpartition("/")[0] for path in self._write})
            for entry, content in entries:
                if entry.path in self._write:
                    write = Write(self._write[entry.path], self._after[entry.path], self._own)
                    try:
                        write_entry(root, entry, content, write)
                    except (OSError, SandboxError) as error:
                        failed[entry.path] = _why(error)
            for path in sorted(
                self.changes.deleted, reverse=True
            ):  # the content of a folder before the folder
                try:
                    delete_entry(root, path, self._base[path])
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
        with (
            open_archive(self._packed, self._key) as (entries, _),
            whole_file(self._packed) as (_, descriptor),
        ):
            make_private(descriptor)
            with open(descriptor, "wb", closefd=False) as file, sealed(file, self._key) as out:
                write_archive(entries, Head(base, self._kept), out)


def compare(
    folder: Path,
    packed: Path,
    *,
    dot_files: bool = False,
    protected: Collection[Path] = (),
    key: bytes | None = None,
    own: bool = False,
) -> Comparison:
    """Compare an archive with the folder that it was packed from, as both are now.

    `dot_files`: also bring back names that begin with a dot, and git repositories. `protected`: files and folders that
    are never brought back. `key`: of the archive's seal. `own`: no sandbox made the archive, but `keep_undo`, and all
    of it is brought back. Raises SandboxError for a damaged archive, OSError if the folder cannot be opened.
    """
    guarded = {part for path in protected for part in way_to(Path(path))}
    place = Path(os.path.realpath(folder))
    with open_folder(folder) as root, open_archive(packed, key) as (entries, head):
        base = head.base
        comparer = _Comparer(root, place, guarded, dot_files, own)
        for entry, content in entries:
            if entry.path:
                comparer.see(entry.path, item_of(entry, content), base.get(entry.path), entry.size)
            elif not dot_files and not own:  # the folder itself, which is first
                comparer.led_to = _led_to(place, base)
        for path, before in base.items():
            if path in (head.kept or ()):
                comparer.after.setdefault(path, before)
            comparer.see_missing(path, before)
        comparer.look_around(base)
    cut = frozenset(comparer.cut)
    return Comparison(
        comparer.changes(), folder, packed, key, own, base, head.kept, comparer.after, comparer.write, cut
    )


@dataclass
class _Comparer:
    """Sorts each path of an archive into what to write, what to delete and what to withhold."""

    root: int
    place: Path
    guarded: set[Path]
    dot_files: bool
    own: bool
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    withheld: dict[tuple[str, str], int] = field(default_factory=dict)
    """By path and reason: the number of changes."""
    write: dict[str, Item | None] = field(default_factory=dict)
    after: Base = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    led_to: dict[Path, str] = field(default_factory=dict)
    """What a link of the user leads to that programs obey, and the link."""

    def see(self, path: str, item: Item, before: Item | None, size: int) -> None:
        """A path of the archive: what is there in the sandbox, what was there when the folder was packed, its bytes."""
        self.after[path] = item
        if item == before:
            return
        if reason := self._refusal(path):
            self._withhold(*reason)
            return
        if not (self.own or self.dot_files) and (part := replaces_source(path)):
            self._withhold(part, "programs run it instead of its source (--dot-files brings it back)")
            return
        if item.kind == "link" and not self.own and (why := _suspect(path, item.content, self.dot_files)):
            self._withhold(path, why)
            return
        now = _now(self.root, path)
        if now == item:
            return
        if now != before:
            self._withhold(path, SINCE if self.own else CHANGED)
        elif before is not None and "folder" in (before.kind, item.kind):
            self._withhold(path, f"it was a {before.kind} and is now a {item.kind}")
        else:
            self.write[path] = now
            (self.new if before is None else self.changed).append(path)
            if before is not None and item.kind == "file" and size < _LEAST_LEFT * _size(self.root, path):
                self.cut.add(path)

    def see_missing(self, path: str, before: Item) -> None:
        """A path of the packed folder, which the sandbox deleted unless `see` has seen it."""
        if path in self.after or (now := _now(self.root, path)) is None:
            return
        if reason := self._refusal(path):
            self._withhold(*reason)
        elif now == before:
            self.deleted.append(path)
        else:
            self._withhold(path, SINCE if self.own else f"the sandbox deleted it, but {CHANGED}")

    def look_around(self, base: Base) -> None:
        """Withhold what is dangerous only together with what is around it: git repositories, links through links."""
        if self.own:
            return
        repositories = Repositories({*self.after, *base}, self._names)
        for paths in (self.new, self.changed, self.deleted):
            for path in list(paths):
                if not self.dot_files and (part := repositories.part(path)) is not None:
                    self._withhold(part, "git runs what such a file names (--dot-files brings it back)")
                elif paths is not self.deleted and (why := self._link_fault(path)):
                    self._withhold(path, why)
                else:
                    continue
                paths.remove(path)
                self.write.pop(path, None)

    def _link_fault(self, path: str) -> str | None:
        item = self.after[path]
        if item.kind != "link":
            return None
        return leads_out(path, item.content, self._links, dot_files=self.dot_files)

    def _links(self, path: str) -> list[str]:
        """The targets of a link at a path: in the sandbox, and in the user's folder."""
        found = [item.content for item in (self.after.get(path),) if item is not None and item.kind == "link"]
        with contextlib.suppress(OSError), folder_of(self.root, path) as (parent, name):
            found.append(os.readlink(name, dir_fd=parent))
        return found

    def _names(self, path: str) -> list[str]:
        """The names in a folder of the user; none if it is not a folder."""
        with contextlib.suppress(OSError):
            if not path:
                return os.listdir(self.root)
            with folder_of(self.root, path) as (parent, name), open_folder(name, parent) as folder:
                return os.listdir(folder)
        return []

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
        if self.own:
            return None
        parts = path.split("/")
        for end, part in enumerate(parts, 1):
            here = "/".join(parts[:end])
            if hidden(part) and not self.dot_files:
                return here, "its name begins with a dot (--dot-files brings it back)"
            if part.startswith("-"):
                return here, "its name begins with a dash, as options do"
            if part.startswith("~"):
                return here, "its name begins with ~, as the names of home folders do"
            if _CONTROL.search(part):
                return here, "its name contains control characters"
            if instructs_agents(part) and not self.dot_files:
                return here, "other agents read it as instructions (--dot-files brings it back)"
            if SESSION_FILE.fullmatch(part):
                return here, "it has the name of a session's file"
        full = self.place / path
        for one, link in self.led_to.items():
            if full.is_relative_to(one):
                return path, f"{link} leads to it (--dot-files brings it back)"
        if any(full.is_relative_to(one) or one.is_relative_to(full) for one in self.guarded):
            return path, "it belongs to this session: the record, the allowlist, the prompt or the model"
        return None


def _suspect(path: str, target: str, dot_files: bool) -> str | None:
    """Why a link is not brought back, as far as its own text shows; None if it seems to stay in the folder.

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
    if not dot_files and any(map(hidden, names[up:])):
        return "it is a link to a name that begins with a dot"
    return None


def _led_to(place: Path, base: Base) -> dict[Path, str]:
    """What in the folder is also there under a name that is not brought back, through a link of the user.

    Such as a script to which .git/hooks/pre-commit leads, or the page to which CLAUDE.md leads.
    """
    found: dict[Path, str] = {}
    for path, item in base.items():
        withheld = any(hidden(part) or instructs_agents(part) for part in path.split("/"))
        if (
            item.kind == "link" and withheld and (acted_on(path) or acted_on(f"{path}/x"))
        ):  # a file, or a folder
            found |= dict.fromkeys(way_to(place / path) - {place / path}, path)
    return {end: link for end, link in found.items() if end != place and end.is_relative_to(place)}


def _content(root: int, path: str, most: int) -> bytes:
    """The first bytes of a file of the user's folder; none if there is no file that can be read."""
    try:
        with folder_of(root, path) as (parent, name), open_file(name, parent) as file:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return b""
            with open(file, "rb", closefd=False) as data:
                return data.read(most)
    except OSError:
        return b""


def _size(root: int, path: str) -> int:
    """The bytes of a file of the user's folder; 0 if there is none."""
    with contextlib.suppress(OSError), folder_of(root, path) as (parent, name):
        state = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return state.st_size if stat.S_ISREG(state.st_mode) else 0
    return 0


def _now(root: int, path: str) -> Item | None:
    """What is at a path of the user's folder; None for nothing, a special item for what cannot be read."""
    try:
        with folder_of(root, path) as (parent, name):
            return state_of(parent, name)
    except FileNotFoundError:
        return None
    except OSError:
        return Item("special")


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
