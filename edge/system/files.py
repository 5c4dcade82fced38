"""Files that get their name only when they are complete; reads and writes at an offset.

A file is written under a temporary name beside its place, locked, and renamed at the end.
"""

import contextlib
import glob
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from edge.system.locks import try_lock

if sys.platform == "win32":
    BINARY = os.O_BINARY
    NO_LINK = 0
else:
    BINARY = 0
    NO_LINK = os.O_NOFOLLOW
"""Flags for os.open on every system: no translation of line ends; fail at a symbolic link where the system can."""

_position = threading.Lock()  # on Windows, held from the move of a file's position to the read or write


@contextlib.contextmanager
def whole_file(place: Path) -> Iterator[tuple[Path, int]]:
    """A temporary file beside `place`: its path and an open descriptor. It is renamed to `place` on success.

    If the block raises, the file that was at `place` before stays. Raises OSError.
    """
    with temporary_file(place) as (temporary, descriptor):
        yield temporary, descriptor
        os.fsync(descriptor)  # a crash of the machine must not leave an empty file under the name
        if sys.platform == "win32":  # Windows does not rename an open file
            os.close(descriptor)
        os.replace(temporary, place)


@contextlib.contextmanager
def temporary_file(place: Path) -> Iterator[tuple[Path, int]]:
    """A temporary file beside `place`: its path and an open descriptor. It is removed at the end, unless renamed.

    A killed process leaves its temporary file behind. The next call for the same place removes it: the system
    releases the lock of a dead process, so a file without a lock is not in use. Raises OSError.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place.parent, place.name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY
    while True:
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        descriptor = None
        try:  # from here on an interrupt removes the file
            descriptor = os.open(temporary, flags, 0o666)
            if (sys.platform != "win32" and try_lock(descriptor) is False) or not temporary.exists():
                continue  # another process removed it as a leftover before it was locked
            yield temporary, descriptor
            return
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):  # whole_file has closed it on Windows
                    os.close(descriptor)
            temporary.unlink(missing_ok=True)


def replace_link(place: Path, target: Path) -> None:
    """Make `place` a symbolic link to `target`, whole or not at all; it replaces what is there.

    Removes links that a killed process left. Raises OSError, and NotImplementedError on a system without links.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place.parent, place.name)
    while True:
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            os.symlink(os.path.abspath(target), temporary)
            os.replace(temporary, place)
            return
        except FileNotFoundError:
            if not place.parent.is_dir():
                raise
            # else another process removed it as a leftover
        finally:
            temporary.unlink(missing_ok=True)


def link_target(place: Path) -> Path:
    """Where a symbolic link points to, without the prefix that Windows gives. Raises OSError."""
    return Path(os.readlink(place).removeprefix("\\\\?\\"))


def allocate(descriptor: int, n_bytes: int) -> None:
    """Reserve the disk space of a file, so that a full disk shows before the work. Raises OSError."""
    if sys.platform != "win32" and sys.platform != "darwin":
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def read_at(descriptor: int, n_bytes: int, offset: int) -> bytes:
    """Up to `n_bytes` from byte `offset` of a file, fewer only at its end. Threads may call it in parallel.

    On Windows it moves the position of the file. Raises OSError.
    """
    parts = []
    while n_bytes:
        if sys.platform == "win32":
            with _position:
                os.lseek(descriptor, offset, os.SEEK_SET)
                part = os.read(descriptor, n_bytes)
        else:
            part = os.pread(descriptor, n_bytes, offset)
        if not part:
            break
        parts.append(part)
        n_bytes, offset = n_bytes - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset` of a file. Threads may call it in parallel.

    On Windows it moves the position of the file. Raises OSError.
    """
    while data:
        if sys.platform == "win32":
            with _position:
                os.lseek(descriptor, offset, os.SEEK_SET)
                done = os.write(descriptor, data)
        else:
            done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` at the file's position: os.write can write less. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def make_private(descriptor: int) -> None:
    """Let only this user read and write an open file. Windows has no modes: the folder decides there."""
    if sys.platform != "win32":
        os.fchmod(descriptor, 0o600)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed processes left in a folder: those for the place `name`, or all."""
    pattern = re.compile(rf"\.{re.escape(name) if name else '.+'}\.[0-9a-f]{{8}}\.tmp")
    for path in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        if pattern.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(OSError):
            if path.is_symlink():  # a link has no lock; `replace_link` makes it again
                path.unlink()
                continue
            if sys.platform == "win32":  # Windows does not remove a file that a process has open
                path.unlink()
                continue
            descriptor = os.open(path, os.O_RDWR | NO_LINK | os.O_NONBLOCK)
            try:
                if try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)
