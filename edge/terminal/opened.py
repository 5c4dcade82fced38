"""Files and folders opened so that no symbolic link is followed. For POSIX systems: the sandbox needs one."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edge.errors import SandboxError

NEEDS_POSIX = "edge can bring changes back to a work folder on Linux and macOS only: use WSL on Windows"


@contextlib.contextmanager
def open_folder(name: Path | str, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a folder. With `parent` the folder `name` in that open folder, not a link. Raises OSError."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if parent is not None:
        flags |= os.O_NOFOLLOW
    yield from _opened(os.open(name, flags, dir_fd=parent))


@contextlib.contextmanager
def open_file(name: str, parent: int) -> Iterator[int]:
    """A descriptor to read the file `name` in an open folder. A link fails; a FIFO does not block. Raises OSError."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    yield from _opened(os.open(name, flags, dir_fd=parent))


def create_file(name: Path | str, mode: int, parent: int | None = None) -> int:
    """A descriptor to read and write a new file; with `parent` in that open folder. Raises OSError if it exists."""
    if sys.platform == "win32":
        raise SandboxError(NEEDS_POSIX)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=parent)


@contextlib.contextmanager
def folder_of(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The folder of a relative path below the open folder `root`, as a descriptor, and the last name of the path.

    Raises OSError if one of its folders is missing or a link.
    """
    *folders, name = path.split("/")
    with contextlib.ExitStack() as stack:
        here = root
        for folder in folders:
            here = stack.enter_context(open_folder(folder, here))
        yield here, name


def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
