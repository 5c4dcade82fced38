"""A file that gets its name only when it is whole: written under a temporary name, locked, then renamed."""

import contextlib
import glob
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from edge.system.locks import try_lock


@contextlib.contextmanager
def whole_file(place: Path) -> Iterator[tuple[Path, int]]:
    """A temporary file beside `place`, its path and an open descriptor; renamed to `place` if nothing is raised.

    What was at `place` stays until then. Raises OSError.
    """
    with temporary_file(place) as (temporary, descriptor):
        yield temporary, descriptor
        os.fsync(descriptor)  # a crash of the machine must not leave an empty file under the name
        if sys.platform == "win32":  # nothing that is open can be renamed there
            os.close(descriptor)
        os.replace(temporary, place)


@contextlib.contextmanager
def temporary_file(place: Path) -> Iterator[tuple[Path, int]]:
    """A temporary file beside `place`, its path and an open descriptor; removed at the end, unless it was renamed.

    A process that was killed leaves its temporary file; the next call for the same place removes it: a lock, which
    the system takes from a dead process, tells whether it is in use. Raises OSError.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(place)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        descriptor = None
        try:  # from here on, whenever it is interrupted, the file is removed
            descriptor = os.open(temporary, flags, 0o666)
            if (sys.platform != "win32" and try_lock(descriptor) is False) or not temporary.exists():
                continue  # between these lines another process took it for a leftover
            yield temporary, descriptor
            return
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):  # closed already, where nothing open can be renamed
                    os.close(descriptor)
            temporary.unlink(missing_ok=True)


def allocate(descriptor: int, n_bytes: int) -> None:
    """Reserve the disk space of a file, so that a full disk shows before the work. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at a place of a file; any thread may, at any time. Raises OSError."""
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _remove_leftovers(place: Path) -> None:
    name = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.tmp")
    for path in place.parent.glob(f".{glob.escape(place.name)}.*.tmp"):
        if name.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # which refuses to remove a file that a process has open
                path.unlink()
                continue
            descriptor = os.open(
                path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
            try:
                if try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)
