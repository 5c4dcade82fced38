"""Temporary folders for this user alone; those of processes that were killed go when the next one is made."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_YOUNG = 60.0  # seconds in which another process may not have locked its new folder yet
_locks: dict[Path, int] = {}


def make_folder(prefix: str) -> Path:
    """A new folder of mode 0700 whose name begins so, locked by this process; `remove_folder` ends both."""
    _sweep(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    descriptor = _lock(folder)
    if descriptor is not None:
        _locks[folder] = descriptor
    return folder


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _locks.pop(folder, None)) is not None:
        os.close(descriptor)


def _sweep(prefix: str) -> None:
    with contextlib.suppress(OSError):
        for place in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                state = place.lstat()
                if state.st_uid != os.geteuid() or time.time() - state.st_mtime < _YOUNG:
                    continue
                if (descriptor := _lock(place)) is not None:
                    try:
                        shutil.rmtree(place, ignore_errors=True)
                    finally:
                        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed; None where another process has it."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
