"""Temporary folders that only this user can open. The next one that is made removes those of killed processes."""

import atexit
import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

from edge.system.locks import lock_folder
from edge.system.signals import signals_later

_YOUNG = 60.0  # seconds in which another process may not have locked its new folder yet
_MARK = ".edge-scratch"
_locks: dict[Path, int | None] = {}  # by existing folder: the descriptor that holds its lock


def make_folder(prefix: str) -> Path:
    """Make a folder of mode 0700 whose name begins with `prefix`, locked by this process.

    `remove_folder` removes it and releases the lock. Raises OSError.
    """
    _sweep(prefix)
    with signals_later():
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        _locks[folder] = None
        (folder / _MARK).write_text("edge made this folder, and removes it\n")
        _locks[folder] = lock_folder(folder)
    return folder


def make_open_folder(prefix: str) -> Path:
    """As `make_folder`, but another user whom root's processes become can enter it. Raises OSError."""
    folder = make_folder(prefix)
    if sys.platform != "win32" and os.geteuid() == 0:
        folder.chmod(0o711)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that `make_folder` made. What cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _locks.pop(folder, None)) is not None:
        os.close(descriptor)


@atexit.register
def _remove_all() -> None:
    """Remove the folders that a signal kept `remove_folder` from."""
    for folder in list(_locks):
        remove_folder(folder)


def _sweep(prefix: str) -> None:
    """Remove the folders that killed processes left. Windows has no lock for folders: there they stay."""
    with contextlib.suppress(OSError):
        for place in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                if not _made_by_edge(place, prefix):
                    continue
                if (descriptor := lock_folder(place)) is not None:
                    try:
                        shutil.rmtree(place, ignore_errors=True)
                    finally:
                        os.close(descriptor)


def _made_by_edge(place: Path, prefix: str) -> bool:
    """Whether `make_folder` made it for this user, and not another program under a similar name."""
    if sys.platform == "win32":
        return False
    state, mark = place.lstat(), (place / _MARK).lstat()
    return (
        re.fullmatch(r"[a-z0-9_]{8}", place.name.removeprefix(prefix)) is not None
        and stat.S_ISDIR(state.st_mode)
        and stat.S_IMODE(state.st_mode) == 0o700
        and state.st_uid == mark.st_uid == os.geteuid()
        and stat.S_ISREG(mark.st_mode)
        and time.time() - state.st_mtime >= _YOUNG
    )
