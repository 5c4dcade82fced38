"""The file lock: one process at a time, and the system takes the lock from a process that died."""

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows locks a range of bytes, which nobody else may read then. No journal or record reaches this offset.
_FAR = 0x7FFFFFFE


def try_lock(descriptor: int) -> bool | None:
    """Take the lock of an open file, without waiting. Closing the descriptor releases it.

    True: this process holds it now. False: another process holds it. None: the file system has no locks.
    """
    if sys.platform == "win32":
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def lock_folder(folder: Path) -> int | None:
    """Take the lock of a folder: a descriptor that holds it until it is closed.

    None where another process holds it, and where the system cannot lock folders (Windows, some file systems).
    Raises OSError where the folder cannot be opened; a link is not followed.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None
