"""One path of a user's folder: what is there, written as an archive says, or deleted. No link is followed."""

import contextlib
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edge.errors import SandboxError
from edge.terminal.archive import Entry
from edge.terminal.opened import NEEDS_POSIX, create_file, folder_of, open_file, open_folder
from edge.terminal.packed import ACCESS_LIST, Item

CHANGED = "it changed in your folder during the session"
SINCE = "it changed in your folder since the session"
_REPLACED = "it is not what edge showed: the archive changed meanwhile"
_TEMPORARY = re.compile(r"\.edge-[0-9a-f]{16}\.tmp")
_PIECE = 1 << 20


@dataclass(frozen=True)
class Write:
    """What to write: only what a person saw (`shown`), over what was there then (`expected`)."""

    expected: Item | None
    shown: Item
    exact: bool
    """Give a file or folder that was not there the permissions that its entry has."""


def item_of(entry: Entry, content: Iterator[bytes]) -> Item:
    """What an entry of an archive puts at its path."""
    if entry.kind == "file":
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)
        return Item("file", entry.executable, digest.hexdigest())
    return Item(entry.kind, True, entry.target)


def state_of(parent: int, name: str) -> Item | None:
    """What is at a name in an open folder; None for nothing. Raises OSError."""
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


def write_entry(root: int, entry: Entry, content: Iterator[bytes], write: Write) -> None:
    """Write an entry below the open folder `root`. Raises SandboxError, OSError; nothing has changed then."""
    if entry.kind != write.shown.kind or entry.target != (
        write.shown.content if entry.kind == "link" else ""
    ):
        raise SandboxError(_REPLACED)
    with folder_of(root, entry.path) as (parent, name):
        if entry.kind == "folder":
            _make_folder(parent, name, entry, exact=write.exact)
            _own(root, parent, name)
            return
        temporary = f".edge-{secrets.token_hex(8)}.tmp"  # `remove_leftovers` knows the form
        try:
            if entry.kind == "link":
                os.symlink(entry.target, temporary, dir_fd=parent)
            else:
                _write_file(parent, (name, temporary), entry, content, write)
            if write.expected is None:
                _own(root, parent, temporary)
            if state_of(parent, name) != write.expected:
                raise SandboxError(CHANGED)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise


def _usual_mode(entry: Entry) -> int:
    """The permissions of a new file or folder before the umask: not for those to whom the entry gives nothing."""
    most = 0o777 if entry.kind == "folder" or entry.executable else 0o666
    return most & (entry.mode | (entry.mode & 0o044) >> 1 | 0o700)


def _make_folder(parent: int, name: str, entry: Entry, *, exact: bool) -> None:
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    os.mkdir(name, _usual_mode(entry), dir_fd=parent)
    with open_folder(name, parent) as made:
        inherited = (exact or not entry.mode & 0o004) and _drop_access_list(made)
        if exact:
            os.fchmod(made, entry.mode | 0o700)  # edge writes what was in it
        elif inherited:
            os.fchmod(made, 0o700)


def _write_file(
    parent: int, names: tuple[str, str], entry: Entry, content: Iterator[bytes], write: Write
) -> None:
    """Write a file under its second name, with the owner and mode of what has its first name."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    name, temporary = names
    digest = hashlib.sha256()
    with open(create_file(temporary, _usual_mode(entry), parent), "wb") as file:
        # What was there had no such list, and a private file stays private in a folder whose default list names others.
        inherited = False
        if write.exact or write.expected is not None or not entry.mode & 0o004:
            inherited = _drop_access_list(file.fileno())
        if write.exact and (write.expected is None or write.expected.kind != "file"):
            os.fchmod(file.fileno(), entry.mode)
        elif inherited and not entry.mode & 0o004:
            os.fchmod(file.fileno(), entry.mode & 0o100 | 0o600)
        for piece in content:
            digest.update(piece)
            file.write(piece)
        if (entry.executable, digest.hexdigest()) != (write.shown.executable, write.shown.content):
            raise SandboxError(_REPLACED)
        with contextlib.suppress(FileNotFoundError):  # a changed file keeps its owner and mode
            old = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISREG(old.st_mode):
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                mode = old.st_mode & 0o777
                if entry.executable != bool(mode & 0o100):
                    mode = mode | (mode & 0o444) >> 2 if entry.executable else mode & 0o666
                if not _copy_attributes(parent, name, file.fileno()):
                    mode &= (
                        ~0o070
                    )  # without the access list, these bits would be the rights of the whole group
                os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.utime(temporary, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _drop_access_list(descriptor: int) -> bool:
    """Remove the access list (ACL) that a new file or folder has from its folder; whether it had one.

    The bits of the group in the mode are then what the list gave to anybody: set the mode after it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it has none, or the file system knows none
            os.getxattr(descriptor, ACCESS_LIST)
            os.removexattr(descriptor, ACCESS_LIST)
            return True
    return False


def _copy_attributes(parent: int, name: str, to: int) -> bool:
    """Copy the extended attributes of a user's file to an open file; False if its access list cannot be copied."""
    if sys.platform != "linux":
        return True
    with contextlib.suppress(OSError), open_file(name, parent) as old:
        for attribute in os.listxattr(old):
            if attribute.startswith("security."):  # rights of the old program
                continue
            try:
                os.setxattr(to, attribute, os.getxattr(old, attribute))
            except OSError:
                if attribute == ACCESS_LIST:
                    return False
    return True


def _own(root: int, parent: int, name: str) -> None:
    """If edge runs as root, give a new file to the owner of the work folder."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    if os.geteuid() == 0:
        owner = os.fstat(root)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def remove_leftovers(root: int, folders: Collection[str]) -> None:
    """Remove what a killed process left in these folders, as paths below the open folder `root`.

    Only one process may change `root` meanwhile.
    """
    for folder in folders:
        with contextlib.suppress(OSError), folder_of(root, f"{folder}/." if folder else ".") as (parent, _):
            for name in os.listdir(parent):
                if _TEMPORARY.fullmatch(name):
                    os.unlink(name, dir_fd=parent)


def delete_entry(root: int, path: str, expected: Item) -> None:
    """Delete what is at a path below the open folder `root`, if it is as expected. Raises SandboxError, OSError."""
    with folder_of(root, path) as (parent, name):
        now = state_of(parent, name)
        if now is None:
            return
        if now != expected:
            raise SandboxError(CHANGED)
        if now.kind == "folder":
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
