"""The base-scores file: a base model's distributions at all nodes of a plan, for comparison with other models.

    edge scores 1\\n
    {"identity": {…}, "base": {…}, "n_vocab": …, …}\\n     one line of JSON
    one record for each node of the plan, in the plan's order
    edge ends\\n, number of records (uint64), CRC-32 of everything before the trailer (uint32)

A record is little-endian and unaligned: the most probable token (uint32), how the rest is kept (uint8: 0 all logits
are here, 1 put together, 2 in classes), log_norm, log_rest, entropy (float64), the number of targets (uint32), and
their log probabilities (float64). Then follow the arrays of divergence.KeptDistribution that exist: ids, logits,
codes, classes. A file gets its name only when it is complete (edge/system/files.py). So a file is complete or damaged.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, TypedDict, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResultError
from edge.measure.divergence import CLASSES, TOP, KeptDistribution

MAGIC = b"edge scores 1\n"
_END = b"edge ends\n"
_HEAD = struct.Struct("<IBdddI")
_TRAILER = struct.Struct("<QI")
_LONGEST_HEAD = 1 << 20

Floats = NDArray[np.float64]


def is_base_file(path: Path) -> bool:
    """Whether a file starts with the magic bytes of a base-scores file."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class BaseModel(TypedDict):
    """The base that the distributions belong to."""

    name: str
    path: str
    sha256: str


# What a measurement must have in common with the file. The names and values depend on the kind of text that was read.
Identity = Mapping[str, str | int | None]


class BaseFileHead(TypedDict):
    """The JSON line of a base-scores file."""

    identity: Identity
    base: BaseModel
    n_vocab: int
    nodes: int


class BaseFileWriter:
    """Writes a base-scores file to an open descriptor and does not close it. Raises OSError."""

    def __init__(self, descriptor: int, head: Mapping[str, object]) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20, closefd=False)
        self._crc = self._count = 0
        self._write(MAGIC + json.dumps(dict(head)).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)

    def add(self, kept: KeptDistribution, targets: list[float]) -> None:
        """Write the next node: its distribution, and the log probability of each of its targets."""
        kind = 0 if kept.ids is None else 1 if kept.codes is None else 2
        head = _HEAD.pack(kept.best, kind, kept.log_norm, kept.log_rest, kept.entropy, len(targets))
        parts = [head, np.array(targets, "<f8").tobytes()]
        if kept.ids is not None:
            parts.append(kept.ids.astype("<u4").tobytes())
        parts.append(kept.logits.astype("<f4").tobytes())
        if kept.codes is not None and kept.classes is not None:
            parts += [kept.codes.tobytes(), kept.classes.astype("<f8").tobytes()]
        self._write(b"".join(parts))
        self._count += 1

    def finish(self) -> None:
        """Write the trailer. Without it the file counts as damaged."""
        self._file.write(_END + _TRAILER.pack(self._count, self._crc))
        self._file.flush()


@dataclass(frozen=True)
class BaseFile:
    """A base-scores file: its head, and its records, which are read one by one."""

    path: Path
    head: BaseFileHead
    _begin: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the head. Raises ResultError if the file cannot be read or is not a base-scores file."""
        try:
            with path.open("rb") as file:
                first, line = file.read(len(MAGIC)), file.readline(_LONGEST_HEAD)
        except OSError as error:
            raise ResultError(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            head = json.loads(line) if first == MAGIC else None
        except ValueError:
            head = None
        if not _is_head(head):
            raise ResultError(f"{path}: is not a base-scores file, or is damaged: make it again")
        return cls(path, head, len(MAGIC) + len(line))

    def records(self) -> Iterator[tuple[KeptDistribution, Floats]]:
        """Each node's distribution and the log probabilities of its targets.

        The checksum is checked after the last record. Raises ResultError if the file is damaged: then no record of it
        may be used.
        """
        n_vocab, count = int(self.head["n_vocab"]), 0
        try:
            with self.path.open("rb") as file:
                stream = _Checked(file, self.path)
                stream.take(self._begin)
                left = self.path.stat().st_size - self._begin - len(_END) - _TRAILER.size
                while left > 0:
                    before = stream.taken
                    yield _record(stream, n_vocab)
                    count += 1
                    left -= stream.taken - before
                crc = stream.crc
                if left or stream.take(len(_END)) != _END:
                    raise _damaged(self.path)
                if _TRAILER.unpack(stream.take(_TRAILER.size)) != (count, crc):
                    raise _damaged(self.path)
        except OSError as error:
            raise ResultError(f"{self.path}: cannot be read: {error.strerror or error}") from None


def _is_head(value: object) -> TypeGuard[BaseFileHead]:
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict):
        return False
    base, n_vocab = value.get("base"), value.get("n_vocab")
    named = isinstance(base, dict) and all(
        isinstance(base.get(name), str) for name in BaseModel.__required_keys__
    )
    return named and isinstance(n_vocab, int)


def _damaged(path: Path) -> ResultError:
    return ResultError(f"{path}: is damaged: delete it and read the base again")


class _Checked:
    """Reads a file in pieces, with the CRC-32 and the number of the bytes taken so far."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path = file, path
        self.crc = self.taken = 0

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise _damaged(self.path)
        self.crc = zlib.crc32(data, self.crc)
        self.taken += size
        return data


def _record(stream: _Checked, n_vocab: int) -> tuple[KeptDistribution, Floats]:
    best, kind, log_norm, log_rest, entropy, count = _HEAD.unpack(stream.take(_HEAD.size))
    if kind > 2 or count > n_vocab + 1:
        raise _damaged(stream.path)
    targets = np.frombuffer(stream.take(8 * count), "<f8")
    ids = np.frombuffer(stream.take(4 * TOP), "<u4") if kind else None
    logits = np.frombuffer(stream.take(4 * (TOP if kind else n_vocab)), "<f4")
    codes = np.frombuffer(stream.take(n_vocab), np.uint8) if kind == 2 else None
    classes = None
    if kind == 2:
        classes = np.frombuffer(stream.take(8 * 4 * CLASSES), "<f8").reshape(CLASSES, 4)
    return KeptDistribution(best, log_norm, ids, logits, log_rest, entropy, codes, classes), targets
