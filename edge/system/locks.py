"""The lock of a file or folder: one process holds it at a time. The system releases it when that process ends."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.errors import EdgeError, ResultError

_PAUSE = 0.2  # seconds between two tries
# Windows locks a range of bytes, which no other process may read then. No journal or record reaches this offset.
_FAR = 0x7FFFFFFE


def try_lock(descriptor: int) -> bool | None:
    """Take the lock of an open file without waiting. Closing the descriptor releases it.

    True: this process holds it now. False: another process (or another descriptor) holds it. None: the file system
    has no locks. Call it once per descriptor.
    """
    if sys.platform == "win32":
        import msvcrt

        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        except OSError:
            return None
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)
    else:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
    return True


def lock_folder(folder: Path) -> int | None:
    """Take the lock of a folder. Returns a descriptor that holds it until it is closed.

    None: another process holds it, or the system cannot lock folders (Windows, some file systems).
    Raises OSError if the folder cannot be opened. A symbolic link is not followed.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        locked = try_lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if locked:
        return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def sole_user(folder: Path, command: str, *, error: type[EdgeError] = ResultError) -> Iterator[None]:
    """Hold the lock of the folder that `command` writes to, which is made if it is missing. Does not wait.

    Raises `error` if another process holds it, or if the folder cannot be made. A system that cannot lock folders
    (Windows, some file systems) does not stop edge.
    """
    descriptor = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sys.platform != "win32":
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise error(f"{folder}: cannot be written: {problem.strerror or problem}") from None
    try:
        if descriptor is not None and try_lock(descriptor) is False:
            raise error(f"{folder}: another {command} is writing it; let it finish, or choose another --out")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def held_lock(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing and stays. Waits while another process holds it.

    `waiting` is called once if edge has to wait. A file system without locks does not stop edge. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if try_lock(descriptor) is not False:
                yield
                return
        finally:
            os.close(descriptor)
        if not told:
            waiting()
            told = True
        time.sleep(_PAUSE)
