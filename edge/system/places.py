"""Output files: a check that they can be written before the work, a complete file after it. Also reads text files."""

import errno
import json
import os
import stat
import tempfile
from pathlib import Path

from edge.errors import EdgeError, ReplayError, ResultError
from edge.system.files import whole_file, write_at
from edge.system.machine import free_disk
from edge.system.text import size

# A path below these is a stream of this process, even where that is a file: edge never replaces it.
_STREAMS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


def check_place(
    path: Path | str, *, named: str = "", error: type[EdgeError] = ResultError, streams: bool = True
) -> None:
    """Check that a file can be written at `path`, before the work starts. Leaves nothing behind.

    `named`: the folder of `path`, if the user named only that: the error line then names it. `streams`: a device or a
    FIFO is allowed. Raises `error` for an empty name, a folder, a parent that is a file, and a place where nothing can
    be written.
    """
    if not str(path):
        raise error("the name of the file to write is empty")
    try:
        place, through = place_of(path)
        if place.is_dir():
            raise error(f"{path}: is a folder: give the name of a file in it, such as {Path(path) / 'NAME'}")
        if through:
            if not streams:
                raise error(f"{path}: is not a regular file: choose another place with --out")
            if not os.access(place, os.W_OK):
                raise error(f"{path}: cannot be written: {os.strerror(errno.EACCES)}")
            return
        folder = next(parent for parent in place.parents if parent.exists())
        if not folder.is_dir():
            raise error(f"{path}: cannot be written: {folder} is a file, not a folder")
        try:
            with tempfile.TemporaryFile(
                dir=folder
            ):  # permissions alone do not show /proc or a read-only mount
                pass
        except FileNotFoundError:  # what /proc says
            raise error(
                f"{named or path}: cannot be written: {folder} takes no new files; choose another place"
            ) from None
    except (OSError, ValueError) as problem:
        raise error(f"{named or path}: cannot be written: {_why(problem)}") from None


def check_disk(folder: Path, needed: int, advice: str, *, error: type[EdgeError]) -> None:
    """Raises `error` if the disk of `folder`, which need not exist, has less than `needed` bytes free."""
    free = free_disk(folder)
    if needed > free:
        raise error(f"{folder}: {size(free)} free on this disk, {size(needed)} needed; {advice}")


def write_json(path: Path | str, value: object) -> None:
    """Write a value as JSON in UTF-8: the complete file, or none. Raises ResultError if `path` cannot be written.

    If `path` is a link, the file that it points to is replaced. A device or a FIFO is written to directly.
    """
    check_place(path)
    text = json.dumps(value, ensure_ascii=False, indent=1)
    # A model's JSON may hold half of a surrogate pair, which UTF-8 cannot encode; its escape is valid JSON.
    data = text.encode("utf-8", "backslashreplace") + b"\n"
    place, through = place_of(path)
    try:
        if through:
            with place.open("ab") as file:  # the file that stdout is redirected to may have content already
                file.write(data)
            return
        with whole_file(place) as (_, descriptor):
            write_at(descriptor, memoryview(data), 0)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be written: {_why(error)}") from None


def place_of(path: Path | str) -> tuple[Path, bool]:
    """The place to write, with links followed, and whether to write to it directly: a device, a FIFO, /dev/stdout."""
    given = Path(path)
    if given.parent in _STREAMS:
        return given, given.exists()
    try:
        mode = given.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return Path(os.path.realpath(given)), False
    return given, True


def _why(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_text(path: Path | str) -> str:
    """The text of a file in UTF-8, such as a terminal's screen. Raises ReplayError if it cannot be read."""

    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ReplayError(f"{path}: is not UTF-8 text (byte {error.start})") from None
