"""CRC-32 checksums of a GGUF's header and of each tensor: `edge convert` writes them, loading a model checks them.

The metadata key `edge.crc32` holds them as a string of hexadecimal digits:

    16  the size of the whole file in bytes
     8  the CRC-32 of the header, in which this string counts as zeros
     8  the CRC-32 of each tensor's data, in the order of the file

A CRC-32 finds every flipped bit and all damage within 32 bits; of other damage it misses one case in four billion. If
the file has another size, another program rewrote it and copied the string, which then says nothing about the file.
"""

import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import TensorInfo, read_layout, recall, remember
from edge.system.files import read_at, write_at
from edge.system.machine import physical_cores

KEY = "edge.crc32"
_DIGITS = 8
_SIZE_DIGITS = 16
_CHUNK = 1 << 22  # bytes read at a time
_MAX_READERS = 8


def blank(n_tensors: int) -> str:
    """The string for a header whose tensor data is not written yet."""
    return "0" * (_SIZE_DIGITS + _DIGITS * (1 + n_tensors))


def seal(path: Path, descriptor: int) -> None:
    """Write the checksums of a finished file over the `blank` string in its header. Raises OSError."""
    tensors, header_end, (begin, end) = read_layout(path, KEY)
    size = os.fstat(descriptor).st_size
    header = _header_crc(descriptor, header_end, begin, end)
    sums = [header, *_crcs(descriptor, tensors)]
    text = f"{size:0{_SIZE_DIGITS}x}" + "".join(f"{crc:0{_DIGITS}x}" for crc in sums)
    assert len(text) == end - begin
    write_at(descriptor, memoryview(text.encode()), begin)


def damage(path: Path, *, data: bool = True) -> list[str] | None:
    """What differs from the checksums, one line each. None: the file has no checksums, or those of another file.

    Without `data` it reads the header only. Raises ModelFileError if the file cannot be read.
    """
    tensors, header_end, (begin, end) = read_layout(path, KEY)
    if begin == end:
        return None
    try:
        with path.open("rb") as stream:
            descriptor = stream.fileno()
            size = os.fstat(descriptor).st_size
            text = read_at(descriptor, end - begin, begin).decode("ascii", "replace")
            if not re.fullmatch(f"[0-9a-f]{{{_SIZE_DIGITS},}}", text):
                return [f"{KEY} does not hold checksums"]
            if int(text[:_SIZE_DIGITS], 16) != size:  # as in the first part of a model that was split
                return None
            if len(text) != len(blank(len(tensors))):
                return [f"{KEY} does not hold checksums"]
            found = [text[i : i + _DIGITS] for i in range(_SIZE_DIGITS, len(text), _DIGITS)]
            problems = []
            if int(found[0], 16) != _header_crc(descriptor, header_end, begin, end):
                problems.append("its header is not as edge convert wrote it")
            for tensor, wanted, crc in zip(
                tensors if data else (), found[1:], _crcs(descriptor, tensors if data else ()), strict=False
            ):
                if int(wanted, 16) != crc:
                    problems.append(f"{tensor.name} is not as edge convert wrote it")
            return problems
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def check(path: Path, *, data: bool = True) -> None:
    """Raises ModelFileError if a file has checksums and is not as `edge convert` wrote it.

    Right checksums do not show who wrote it: anybody can compute them (see edge/formats/own_files.py). A file is read
    in full once: edge remembers a correct one by path, size, times and inode (see `gguf.signature`). Without `data` it
    checks the header only.
    """
    data = data and recall(path, "crc32") is None
    found = damage(path, data=data)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelFileError(f"{path}: damaged: {found[0]} (CRC-32){more}; convert or fetch it again")
    if data and found is not None:
        remember(path, "crc32", "right")


def _header_crc(descriptor: int, length: int, begin: int, end: int) -> int:
    """The CRC-32 of the first `length` bytes, with the characters from `begin` to `end` as "0"."""
    crc = _crc(descriptor, 0, begin)
    return _crc(descriptor, end, length, zlib.crc32(b"0" * (end - begin), crc))


def _crcs(descriptor: int, tensors: Sequence[TensorInfo]) -> list[int]:
    """The CRC-32 of each tensor's data. It uses all cores: reading and summing both release Python's lock."""

    def one(tensor: TensorInfo) -> int:
        return _crc(descriptor, tensor.offset, tensor.offset + tensor.n_bytes)

    with ThreadPoolExecutor(min(physical_cores(), _MAX_READERS)) as pool:
        return list(pool.map(one, tensors))


def _crc(descriptor: int, begin: int, end: int, crc: int = 0) -> int:
    # Read, not mapped: a disk error then raises OSError and does not kill the process.
    while begin < end:
        data = read_at(descriptor, min(_CHUNK, end - begin), begin)
        if not data:
            raise OSError("it became shorter during reading")

        crc = zlib.crc32(data, crc)
        begin += len(data)
    return crc
