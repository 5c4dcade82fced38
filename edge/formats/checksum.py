"""CRC-32 sums of a GGUF's header and of each of its tensors: `edge convert` writes them, loading checks them.

They stand in the metadata, as a text under `edge.crc32`, in hexadecimal digits:

    16  the whole file's size in bytes
     8  the CRC-32 of the header, with this text itself taken as zeros
     8  that of each tensor's data, in the file's order

A CRC-32 finds every flipped bit and every damage within 32 bits, and misses one of four billion others. A file of
another size than it says was written anew by another program, which copied the text: it tells nothing then.
"""

import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import TensorInfo, read_layout, recall, remember
from edge.system.machine import physical_cores

KEY = "edge.crc32"
_DIGITS = 8
_SIZE_DIGITS = 16
_CHUNK = 1 << 22  # bytes read at a time
_MAX_READERS = 8


def blank(n_tensors: int) -> str:
    """The text in a header whose data is still to come."""
    return "0" * (_SIZE_DIGITS + _DIGITS * (1 + n_tensors))


def seal(path: Path, descriptor: int) -> None:
    """Put the checksums of a finished file into the place that its header has for them. Raises OSError."""
    tensors, header_end, (begin, end) = read_layout(path, KEY)
    size = os.fstat(descriptor).st_size
    header = _header_crc(descriptor, header_end, begin, end)
    sums = [header, *_crcs(descriptor, tensors)]
    text = f"{size:0{_SIZE_DIGITS}x}" + "".join(f"{crc:0{_DIGITS}x}" for crc in sums)
    assert len(text) == end - begin
    os.pwrite(descriptor, text.encode(), begin)


def damage(path: Path, *, data: bool = True) -> list[str] | None:
    """What differs from the checksums, one line each; None where a file has none that are its own.

    Without `data` the header alone is read. Raises ModelFileError where the file cannot be read.
    """
    tensors, header_end, (begin, end) = read_layout(path, KEY)
    if begin == end:
        return None
    try:
        with path.open("rb") as stream:
            descriptor = stream.fileno()
            size = os.fstat(descriptor).st_size
            text = os.pread(descriptor, end - begin, begin).decode("ascii", "replace")
            if end - begin != len(blank(len(tensors))) or not re.fullmatch("[0-9a-f]+", text):
                return ["its checksums are no checksums"]
            if text == blank(len(tensors)):  # a conversion looks at its own file before the data is there
                return []
            if int(text[:_SIZE_DIGITS], 16) != size:
                return None
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


def check(path: Path, *, data: bool = True) -> bool:
    """Whether a file has checksums. Raises ModelFileError where it is not as `edge convert` wrote it.

    That the data were right is remembered as SHA-256 sums are, by path, size and modification time, so that a file is
    read in full once. Without `data` the header alone is checked.
    """
    data = data and recall(path, "crc32") is None
    found = damage(path, data=data)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelFileError(f"{path}: damaged: {found[0]} (CRC-32){more}; convert or fetch it again")
    if data and found is not None:
        remember(path, "crc32", "right")
    return found is not None


def _header_crc(descriptor: int, length: int, begin: int, end: int) -> int:
    """Of the first `length` bytes, those from `begin` to `end` as zeros."""
    crc = _crc(descriptor, 0, begin)
    return _crc(descriptor, end, length, zlib.crc32(b"0" * (end - begin), crc))


def _crcs(descriptor: int, tensors: Sequence[TensorInfo]) -> list[int]:
    """Of each tensor, on all cores: reading and adding up both let go of Python's lock."""

    def one(tensor: TensorInfo) -> int:
        return _crc(descriptor, tensor.offset, tensor.offset + tensor.n_bytes)

    with ThreadPoolExecutor(min(physical_cores(), _MAX_READERS)) as pool:
        return list(pool.map(one, tensors))


def _crc(descriptor: int, begin: int, end: int, crc: int = 0) -> int:
    # Read, not mapped: a disk's fault is an error then, and ends no process.
    while begin < end:
        data = os.pread(descriptor, min(_CHUNK, end - begin), begin)
        if not data:
            raise OSError("it became shorter while it was read")
        crc = zlib.crc32(data, crc)
        begin += len(data)
    return crc
