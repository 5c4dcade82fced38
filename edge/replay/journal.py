"""Keep the finished steps of an evaluation on disk while it runs.

JSON Lines beside the output. The first line holds the identity of the run, each other line holds one step:

    {"crc32":"1c291ca3","run":{"max_tokens":128, …}}
    {"crc32":"8a136fd3","step":{"task_id":"t","sample_idx":0,"step_idx":0, …}}

`crc32` is the CRC-32 of the bytes of the value after it, exactly as they are in the line. It protects against
accidents: a CRC-32 detects every error within 32 bits. The text is UTF-8, with half surrogate pairs as three bytes
each (Python's "surrogatepass"). Escapes would join two halves side by side into one character.
"""

import contextlib
import io
import json
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge.errors import ResultError
from edge.replay.result import read_step
from edge.replay.rows import Key, json_bytes, step_key
from edge.replay.stored_result import Step
from edge.system.locks import try_lock
from edge.system.outputs import Run, differences
from edge.system.places import place_of
from edge.system.text import counted

_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})","(run|step)":(.+)\}')
_BEGIN = b'{"crc32":"'
_SYNC = 1.0  # seconds between two forced writes to the disk


def journal_path(out: Path | str) -> Path | None:
    """Path of the journal: beside the result file, with links followed. None for a device or a FIFO.

    `out` must have passed `check_place`.
    """
    place, through = place_of(out)
    return None if through else place.with_name(place.name + ".journal")


@dataclass
class Journal:
    """Finished steps, in memory and on disk. `Journal.open` makes it, the end of its `with` block closes it."""

    path: Path | None
    done: dict[Key, Step]
    """The steps by key, in the order of their completion."""
    _file: io.FileIO | None = None
    _size: int = 0
    _synced: float = 0.0  # when, by time.monotonic()
    _unsynced: bool = False

    @classmethod
    def open(cls, path: Path | None, identity: Run) -> Self:
        """Continue the journal at `path`, or start one. Without a path the steps are in memory only.

        Bytes after the last whole line come from an interrupted write and are cut off. A journal without a whole step
        starts again. Raises ResultError if another process writes the journal, the file is not a journal, a line
        before the last is damaged, the steps have another identity, or the place cannot be written.
        """
        if path is None:
            return cls(None, {})
        with _one_line(path), contextlib.ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_locked(path))
            file.seek(0)
            before, done, size = _read(path, file.readall())
            if done:
                _compare(path, before, identity, len(done))
            else:
                size = 0
            file.truncate(size)
            journal = cls(path, done, file, size, time.monotonic())
            if not done:
                try:
                    journal._write(_line("run", dict(identity)))
                except OSError:
                    path.unlink()
                    raise
            stack.pop_all()  # the journal closes the file from here on
        return journal

    def append(self, step: Step) -> None:
        """Keep a finished step. Raises ResultError where the disk is full.

        When this returns, the operating system has the line, so the end of the process cannot lose it. A power failure
        loses at most the steps of one second: the file is forced to the disk once a second. That takes milliseconds (4
        on the ext4 disk that was measured, and 0.01 for writing the line).
        """
        if self.path is not None and self._file is not None:
            with _one_line(
                self.path,
                f"make room and run the same command again; the journal keeps {counted(len(self.done), 'step')}",
            ):
                self._write(_line("step", step))
        self.done[step_key(step)] = step  # before the sync: Ctrl-C in it must not hide a step that is kept
        if self._file is not None and time.monotonic() - self._synced >= _SYNC:
            self._sync()

    def close(self) -> None:
        """Stop writing and release the lock. The file stays, unless it holds no step."""
        if self._file is not None and not self._file.closed:
            if self.done:
                if self._unsynced:
                    self._sync()
                self._file.close()
            else:
                self.remove()

    def remove(self) -> None:
        """Delete the file. Call this when the result holds its steps. Raises ResultError."""
        if self.path is None or self._file is None or self._file.closed:
            return
        with _one_line(self.path), self._file:
            if sys.platform == "win32":  # Windows cannot delete an open file
                self._file.close()
            # On other systems, delete it before the lock ends, so that no process can continue it.
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        """Write a whole line. If the disk is full, the file keeps its old content and OSError is raised."""
        assert self._file is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]  # after a short write, the next call raises the cause
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(line)
        self._unsynced = True

    def _sync(self) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # some file systems do not support it
            os.fsync(self._file.fileno())
        self._synced, self._unsynced = time.monotonic(), False


@contextlib.contextmanager
def _one_line(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an OSError into a ResultError of one line."""
    try:
        yield
    except OSError as error:
        why = f"{path}: cannot be written: {error.strerror or error}"
        raise ResultError(f"{why}; {advice}" if advice else why) from None


def _locked(path: Path) -> io.FileIO:
    """The open file, locked for this process. The lock ends with the process in every case."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO can block without end
                raise ResultError(f"{path}: is not a regular file; move it away, or choose another --out")
        file = path.open("a+b", buffering=0)
        if try_lock(file.fileno()) is False:
            file.close()
            raise ResultError(
                f"{path}: another edge eval is writing it; let it finish, or choose another --out"
            )
        with contextlib.suppress(
            FileNotFoundError
        ):  # its owner may have deleted it before this process got the lock
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _read(path: Path, data: bytes) -> tuple[Run, dict[Key, Step], int]:
    """The identity, the steps, and the end of the last whole line. Damaged lines at the very end are left out."""
    if not data.startswith(_BEGIN[: len(data)]):
        raise ResultError(f"{path}: is not a journal of edge eval; move it away, or choose another --out")
    lines = data.split(b"\n")[:-1]  # what follows the last line break is an interrupted write
    identity = _value(lines[0], b"run") if lines else None
    steps = [_step(line) for line in lines[1:]]
    while steps and steps[-1] is None:
        steps.pop()
    if identity is None and steps:
        raise ResultError(f"{path}:1: is damaged; delete the file to start again")
    done: dict[Key, Step] = {}
    for number, step in enumerate(steps, 2):
        if step is None:
            raise ResultError(
                f"{path}:{number}: is damaged; delete that line to answer its step again, or the file to start again"
            )
        done.setdefault(step_key(step), step)
    whole = lines[: 0 if identity is None else 1 + len(steps)]
    return identity or {}, done, sum(len(line) + 1 for line in whole)


def _value(line: bytes, kind: bytes) -> dict[str, object] | None:
    """The object that a line holds, or None for a damaged line."""
    match = _LINE.fullmatch(line)
    if not match or match[2] != kind or int(match[1], 16) != zlib.crc32(match[3]):
        return None
    try:
        value = json.loads(match[3].decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):  # made by hand, with a right checksum
        return None
    return value if isinstance(value, dict) else None


def _step(line: bytes) -> Step | None:
    try:
        return read_step(_value(line, b"step"), "")
    except ResultError:
        return None


def _line(kind: str, value: object) -> bytes:
    data = json_bytes(value)
    return b'{"crc32":"%08x","%b":%b}\n' % (zlib.crc32(data), kind.encode(), data)


def _compare(path: Path, before: Run, now: Run, steps: int) -> None:
    if changes := differences(before, now):
        raise ResultError(
            f"{path}: holds {counted(steps, 'step')} of another evaluation ({changes}); "
            "repeat the earlier command to continue it, choose another --out, or delete the journal"
        )
