"""A base model's distributions at all positions of a plan, kept in a file until other models have been held against it.

    edge scores 1\\n
    {"identity": {…}, "base": {…}, "n_vocab": …, …}\\n     one line of JSON
    a record a node of the plan, in its order
    edge ends\\n, number of records (uint64), CRC-32 of all before the trailer (uint32)

A record, little-endian and unaligned: the most probable token (uint32), how the rest is kept (uint8: 0 all logits are
here, 1 lumped, 2 in classes), log_norm, log_rest, entropy (float64), the number of targets (uint32), their log
probabilities (float64); then the arrays of divergence.Kept as far as they are there: ids, logits, codes, classes.
Only a finished pass gets its name (edge/system/files.py), so a file is whole or damaged, never half-done.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResultError
from edge.measure.divergence import CLASSES, TOP, Kept

MAGIC = b"edge scores 1\n"
_END = b"edge ends\n"
_HEAD = struct.Struct("<IBdddI")
_TRAILER = struct.Struct("<QI")
_LONGEST_HEAD = 1 << 20

Floats = NDArray[np.float64]


def is_scores(path: Path) -> bool:
    """Whether a file begins as one of these does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class ScoresWriter:
    """Writes to an open descriptor, which stays open. Raises OSError."""

    def __init__(self, descriptor: int, head: Mapping[str, Any]) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20, closefd=False)
        self._crc = self._count = 0
        self._write(MAGIC + json.dumps(dict(head)).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)

    def add(self, kept: Kept, targets: list[float]) -> None:
        """One more node: its distribution, and the log probabilities of what comes next there."""
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
        self._file.write(_END + _TRAILER.pack(self._count, self._crc))
        self._file.flush()


@dataclass(frozen=True)
class Scores:
    """A file of scores; its records are read when they are asked for."""

    path: Path
    head: Mapping[str, Any]
    _begin: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ResultError: no such file, or not one of these."""
        try:
            with path.open("rb") as file:
                first, line = file.read(len(MAGIC)), file.readline(_LONGEST_HEAD)
        except OSError as error:
            raise ResultError(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            head = json.loads(line) if first == MAGIC else None
        except ValueError:
            head = None
        if not isinstance(head, dict) or not {"identity", "base", "n_vocab"} <= head.keys():
            raise ResultError(f"{path}: is no file of a base's scores, or damaged: make it anew")
        return cls(path, head, len(MAGIC) + len(line))

    def records(self) -> Iterator[tuple[Kept, Floats]]:
        """Each node's distribution and its targets' log probabilities.

        Raises ResultError once what was read turns out to be damaged; nothing of it may be used then.
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


def _damaged(path: Path) -> ResultError:
    return ResultError(f"{path}: is damaged: delete it and read the base again")


class _Checked:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.crc = self.taken = 0

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise _damaged(self._path)
        self.crc = zlib.crc32(data, self.crc)
        self.taken += size
        return data


def _record(stream: _Checked, n_vocab: int) -> tuple[Kept, Floats]:
    best, kind, log_norm, log_rest, entropy, count = _HEAD.unpack(stream.take(_HEAD.size))
    if kind > 2 or count > n_vocab + 1:
        raise _damaged(stream._path)
    targets = np.frombuffer(stream.take(8 * count), "<f8")
    ids = np.frombuffer(stream.take(4 * TOP), "<u4") if kind else None
    logits = np.frombuffer(stream.take(4 * (TOP if kind else n_vocab)), "<f4")
    codes = np.frombuffer(stream.take(n_vocab), np.uint8) if kind == 2 else None
    classes = None
    if kind == 2:
        classes = np.frombuffer(stream.take(8 * 4 * CLASSES), "<f8").reshape(CLASSES, 4)
    return Kept(best, log_norm, ids, logits, log_rest, entropy, codes, classes), targets
