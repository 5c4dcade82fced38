"""The finished steps of an evaluation, kept safe on disk while it runs.

JSON Lines beside the output. The first line says what the steps are of, each other one holds a step:

    {"crc32":"1c291ca3","run":{"max_tokens":128, …}}
    {"crc32":"8a136fd3","step":{"task_id":"t","sample_idx":0,"step_idx":0, …}}

`crc32` is that of the bytes of the value after it, as they stand in the line. It guards against accidents, and a
CRC-32 finds each one that lies within 32 bits. UTF-8, with half surrogate pairs as three bytes each (Python's
"surrogatepass"): escapes would join two halves side by side, as the scorer makes them, into one character.
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge.errors import ReplayError, ResultError
from edge.replay.result import step_key
from edge.replay.rows import Key, json_bytes, read_key
from edge.system.locks import try_lock
from edge.system.places import place_of

_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})","(run|step)":(.+)\}')
_BEGIN = b'{"crc32":"'
_SYNC = 1.0  # seconds


def journal_path(out: Path | str) -> Path | None:
    """Where the journal of a result belongs: beside the file, links followed; nowhere for a device or a FIFO.

    `out` has passed `check_place`.
    """
    place, through = place_of(out)
    return None if through else place.with_name(place.name + ".journal")


@dataclass
class Journal:
    """Finished steps, in memory and on disk; made by `Journal.open`, closed at the end of its `with`."""

    path: Path | None
    done: dict[Key, dict[str, Any]]
    """The steps by key, in the order in which they were finished."""
    _file: io.FileIO | None = None
    _size: int = 0
    _synced: float = 0.0  # when, by time.monotonic()
    _unsynced: bool = False

    @classmethod
    def open(cls, path: Path | None, identity: Mapping[str, Any]) -> Self:
        """Go on with the journal at `path`, or begin one; without a path the steps are kept in memory alone.

        `identity`: all that the steps depend on, as JSON values; its names are what errors call them by.
        What stands after the last whole line was being written when the process ended, and is cut off. A journal
        without a whole step is begun anew. Raises ResultError: another process is at it, the file is no journal,
        a line before the last is damaged, the steps are of another identity, the place cannot be written.
        """
        if path is None:
            return cls(None, {})
        with _told(path), contextlib.ExitStack() as stack:
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
            stack.pop_all()  # from here on, the journal closes it
        return journal

    def append(self, step: Mapping[str, Any]) -> None:
        """Keep a finished step: a row of `per_step`, of JSON values. Raises ResultError where the disk is full.

        The line is with the operating system when this returns: whatever ends the process, it stays. Against a power
        failure it is also forced to the disk, though at most once a second, since each time takes milliseconds (4
        on the ext4 disk this was measured on, against 0.01 for the line): that costs the steps of a second at most.
        """
        if self.path is not None and self._file is not None:
            with _told(self.path, f"make room and run the same again; {len(self.done)} steps are kept"):
                self._write(_line("step", dict(step)))
            if time.monotonic() - self._synced >= _SYNC:
                self._sync()
        self.done[step_key(step)] = dict(step)

    def close(self) -> None:
        """Stop writing and let others at it. The file stays, unless it holds no step."""
        if self._file is not None and not self._file.closed:
            if self.done:
                if self._unsynced:
                    self._sync()
                self._file.close()
            else:
                self.remove()

    def remove(self) -> None:
        """Delete the file, once the result holds its steps. Raises ResultError."""
        if self.path is None or self._file is None or self._file.closed:
            return
        with _told(self.path), self._file:
            if sys.platform == "win32":  # deletes no open file
                self._file.close()
            self.path.unlink(missing_ok=True)  # elsewhere before the lock ends: nobody may go on with it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        """One call writes the whole line, unless the disk is full; then the file is as it was."""
        assert self._file is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]  # the second call tells why the first fell short
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(line)
        self._unsynced = True

    def _sync(self) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(self._file.fileno())
        self._synced, self._unsynced = time.monotonic(), False


@contextlib.contextmanager
def _told(path: Path, advice: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{path}: cannot be written: {error.strerror or error}"
        raise ResultError(f"{why}; {advice}" if advice else why) from None


def _locked(path: Path) -> io.FileIO:
    """The file, opened for this process alone; the lock ends with the process, however that ends."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):  # to open a FIFO may wait for ever
                raise ResultError(f"{path}: is not a regular file: move it away, or choose another --out")
        file = path.open("a+b", buffering=0)
        if try_lock(file.fileno()) is False:
            file.close()
            raise ResultError(
                f"{path}: another edge eval is writing it: let it finish, or choose another --out"
            )
        with contextlib.suppress(FileNotFoundError):  # its owner may have deleted it before the lock was ours
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _read(path: Path, data: bytes) -> tuple[dict[str, Any], dict[Key, dict[str, Any]], int]:
    """The identity, the steps, and where the last whole line ends. Bad lines at the very end are left out."""
    if not data.startswith(_BEGIN[: len(data)]):
        raise ResultError(f"{path}: is not a journal of edge eval: move it away, or choose another --out")
    lines = data.split(b"\n")[:-1]  # what follows the last line's end is torn
    values = [_value(line, b"step" if i else b"run") for i, line in enumerate(lines)]
    while values and values[-1] is None:
        values.pop()
    done: dict[Key, dict[str, Any]] = {}
    for number, value in enumerate(values, 1):
        if value is None:
            one = f"delete {'that line, and its step is answered again, or ' if number > 1 else ''}the file"
            raise ResultError(f"{path}:{number}: is damaged: {one} to begin anew")
        if number > 1:
            done.setdefault(step_key(value), value)
    run = values[0] if values else None
    return run or {}, done, sum(len(line) + 1 for line in lines[: len(values)])


def _value(line: bytes, kind: bytes) -> dict[str, Any] | None:
    """The object that a line holds, or None for one that is damaged."""
    match = _LINE.fullmatch(line)
    if not match or match[2] != kind or int(match[1], 16) != zlib.crc32(match[3]):
        return None
    try:
        value = json.loads(match[3].decode("utf-8", "surrogatepass"))
        if kind == b"step":
            read_key(value, "")
    except (ValueError, RecursionError, AttributeError, ReplayError):  # made by hand, checksum and all
        return None
    return value if isinstance(value, dict) else None


def _line(kind: str, value: dict[str, Any]) -> bytes:
    data = json_bytes(value)
    return b'{"crc32":"%08x","%b":%b}\n' % (zlib.crc32(data), kind.encode(), data)


def _compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], steps: int) -> None:
    if changes := differences(before, now):
        raise ResultError(
            f"{path}: holds {steps} step{'s' * (steps > 1)} of another evaluation ({changes}): "
            "run it as before to go on, choose another --out, or delete the journal"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, for people; empty where nothing does."""
    old, new = dict(_flat(before)), dict(_flat(json.loads(json_bytes(now).decode("utf-8", "surrogatepass"))))
    different = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    changes = [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in different[:4]]
    if len(different) > 4:
        changes.append(f"{len(different) - 4} more differ")
    return "; ".join(changes)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: object) -> str:
    """A value for people: a checksum by its beginning."""
    if value is None:
        return "unset"
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"{text[:12]}…"
    return text if re.fullmatch(r"[\w.,+-]+", text) else json.dumps(text)
