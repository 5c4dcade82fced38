"""The header of a GGUF: a reader that trusts no length and no count in the file.

The GGUF format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): the magic, a version, the counts of tensors
and metadata entries, the metadata, one entry for each tensor, then the tensors' data, aligned. This module does not
call llama.cpp, and not the reader of the gguf package, which loops without end at a count that no file can hold.
"""

import contextlib
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from edge.errors import ModelFileError
from edge.system.store import model_name, store_files

# Scalar value types of the format: number -> struct code. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 64  # GGML_MAX_NAME
_KEPT_ITEMS = 4096  # longest array of numbers that is kept; of others, only the place
# Block length and bytes of each tensor type; Q2_0 is newer than the gguf package on PyPI.
_BLOCKS: dict[int, tuple[int, int]] = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} | {
    42: (64, 18)
}
_TYPE_NAMES: dict[int, str] = {int(kind): kind.name for kind in GGMLQuantizationType} | {42: "Q2_0"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF. `shape`: in ggml's order, row length first; `offset`: in bytes in the file.

    `part`: the number of the file, from 1, if the model is split.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int
    part: int = 1


@dataclass(frozen=True)
class Header:
    """What the header of one file holds."""

    metadata: dict[str, Any]  # scalars, strings, short lists of numbers
    arrays: dict[str, tuple[int, int, int]]  # every array: item type, count, first byte of its items
    texts: dict[str, tuple[int, int]]  # every string: its first byte and the byte after it
    kinds: dict[str, int]  # the value type of every entry
    tensors: list[TensorInfo]
    end: int  # the byte after the header
    alignment: int


class Reader:
    """Reads the fields of a header in order. It compares every length with the rest of the file before using it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def fail(self, problem: str) -> ModelFileError:
        """The error for a problem of the file, to raise."""
        return ModelFileError(f"{self.path}: {problem}; convert or fetch it again")

    def skip(self, n_bytes: int) -> int:
        """Move past n_bytes and return the first of them."""
        begin = self.at
        if n_bytes > len(self.data) - begin:
            raise self.fail(f"truncated or damaged at byte {begin:,}")
        self.at = begin + n_bytes
        return begin

    def scalar(self, code: str) -> Any:
        """The next number, little-endian. `code`: its format in the struct module. Raises ModelFileError."""
        size = struct.calcsize(f"<{code}")
        return struct.unpack_from(f"<{code}", self.data, self.skip(size))[0]

    def string(self) -> str:
        """The next string: 8 bytes of length, then UTF-8. Raises ModelFileError."""
        length = self.scalar("Q")
        begin = self.skip(length)
        return self.data[begin : begin + length].decode("utf-8", "replace")

    def array(self) -> tuple[tuple[int, int, int], list[Any] | None]:
        """The next array: its type, length and first byte, and its items; no items for strings and long arrays."""
        kind, count = self.scalar("I"), self.scalar("Q")
        begin = self.at
        if kind == STRING:
            if count > len(self.data) // 8:
                raise self.fail(f"truncated or damaged: an array of {count:,} strings cannot fit")
            unpack = struct.Struct("<Q").unpack_from
            at, end = begin, len(self.data)
            for _ in range(count):  # a fast loop: there may be hundreds of thousands of tokens
                if at > end - 8:
                    break
                at += 8 + unpack(self.data, at)[0]
            self.skip(at - begin)
            return (kind, count, begin), None
        if kind not in SCALARS:
            raise self.fail(f"damaged: an array of the unknown type {kind}")
        self.skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
        items = None
        if count <= _KEPT_ITEMS:
            items = list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, begin))
        return (kind, count, begin), items

    def strings(self, count: int, begin: int) -> list[bytes]:
        """The items of an array of strings that `array` has read."""
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, begin
        items = []
        for _ in range(count):
            end = at + 8 + unpack(data, at)[0]
            items.append(data[at + 8 : end])
            at = end
        return items


_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}


def regular_status(path: Path) -> os.stat_result:
    """The status of a regular file. edge does not open a FIFO or a device, because that may block."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelFileError(f"{path}: is a broken link: {os.readlink(path)} does not exist") from None
        raise ModelFileError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise ModelFileError(f"{str(path)!r}: cannot be read: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError(f"{path}: is a folder, not a GGUF; {_instead(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path}: is not a regular file; give the path of a GGUF")
    return status


def _instead(folder: Path) -> str:
    """What to name instead of a folder, by what is in it."""
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        return f"name a file in it, such as {folder / files[0]}"
    if "adapter_config.json" in names:
        return f"it is a LoRA adapter: make a GGUF with `edge convert {folder} --base SOURCE`, then give it with --lora"
    made = [name for name in map(model_name, store_files()) if name.startswith(f"{folder.resolve().name}-")]
    if made or any(name == "config.json" or name.endswith(".safetensors") for name in names):
        stored = f", or use one in the model store: {', '.join(made)}" if made else ""
        return f"make a GGUF with `edge convert {folder}`{stored}"
    return "it has no GGUF and no checkpoint; `edge models` lists the models here"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """A reader of the file, which is mapped into memory."""
    regular_status(path)
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelFileError(f"{path}: is empty; convert or fetch it again") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    with data:
        yield Reader(path, data)


def _other_format(reader: Reader) -> ModelFileError:
    begin = reader.data[:12]
    if begin[8:] in (b"blk.", b"outp", b"toke"):  # the number of entries, the length of a name, and the name
        what = "is an importance matrix in the older .dat format, not a GGUF"
        advice = "make a GGUF of it with `llama-imatrix --in-file FILE -o NEW.gguf`"
    elif begin[:4] == b"algg":
        what = "is a LoRA adapter in a format from before GGUF"
        advice = "convert the adapter's folder with `edge convert`"
    elif begin[:4] in (b"lmgg", b"fmgg", b"tjgg"):
        what, advice = (
            "is a model in a format from before GGUF",
            "fetch a GGUF of it, or convert its checkpoint",
        )
    elif begin[8:10] == b'{"':
        what = "is a safetensors file, not a GGUF"
        advice = f"convert its folder with `edge convert {reader.path.absolute().parent}`"
    elif begin == b"version http":
        what, advice = "is not a GGUF file but a Git LFS pointer to it", "fetch the file with `git lfs pull`"
    elif begin.lstrip()[:2] in (b'{"', b"[{", b"{\n", b"[\n", b"{}", b"[]"):
        what, advice = (
            "is not a GGUF file but JSON",
            "give a GGUF; if the file was downloaded, fetch it again: a login may be needed",
        )
    elif begin.lstrip()[:2].lower() in (b"<!", b"<h"):
        what, advice = (
            "is not a GGUF file but the answer of a web server",
            "fetch it again; a login may be needed",
        )
    elif packed := next((name for start, name in _PACKED.items() if begin.startswith(start)), None):
        what, advice = f"is a compressed file ({packed}), not a GGUF", "unpack it, and give the GGUF in it"
    else:
        return reader.fail("is not a GGUF file")
    return ModelFileError(f"{reader.path}: {what}; {advice}")


def read_header(reader: Reader) -> Header:
    """Read a header and check it against the size of the file. Raises ModelFileError."""
    if reader.data[:4] != b"GGUF":
        raise _other_format(reader)
    reader.at = 4
    version = reader.scalar("I")
    if version not in (2, 3):
        hint = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise reader.fail(f"is a GGUF of version {version}{hint}; edge reads versions 2 and 3")
    n_tensors, n_entries = reader.scalar("Q"), reader.scalar("Q")
    metadata: dict[str, Any] = {}
    arrays: dict[str, tuple[int, int, int]] = {}
    texts: dict[str, tuple[int, int]] = {}
    kinds: dict[str, int] = {}
    for _ in range(n_entries):  # too large a count soon reaches the end of the file
        key, kind = reader.string(), reader.scalar("I")
        if key in kinds:
            raise reader.fail(f"damaged: the key {key[:80]!r} occurs twice")
        kinds[key] = kind
        if kind == _ARRAY:
            arrays[key], items = reader.array()
            if items is not None:
                metadata[key] = items
        elif kind == STRING:
            begin = reader.at + 8
            metadata[key] = reader.string()
            texts[key] = begin, reader.at
        elif kind in SCALARS:
            metadata[key] = reader.scalar(SCALARS[kind])
        else:
            raise reader.fail(f"damaged: {key[:80]!r} has the unknown type {kind}")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise reader.fail(f"damaged: general.alignment is {str(alignment)[:40]!r}, not a power of two")
    tensors = list(_read_tensors(reader, n_tensors, alignment))
    return Header(metadata, arrays, texts, kinds, tensors, reader.at, alignment)


def _read_tensors(reader: Reader, count: int, alignment: int) -> Iterator[TensorInfo]:
    """The entries of the tensors, checked against the file. ggml demands that they are in order, without gaps."""
    entries: list[tuple[str, tuple[int, ...], int, int, int]] = []
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        name = reader.string()
        n_dimensions = reader.scalar("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise reader.fail(f"damaged: the tensor {name[:80]!r} has {n_dimensions} dimensions")
        if len(name.encode()) >= _MAX_NAME or name in names:
            raise reader.fail(f"damaged: the tensor name {name[:80]!r} is too long or occurs twice")
        names.add(name)
        shape = tuple(reader.scalar("Q") for _ in range(n_dimensions))
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        block, block_bytes = _BLOCKS.get(kind, (0, 0))
        row = shape[0] if shape else 1
        if not block or row % block or math.prod(shape) >= 1 << 62:
            raise reader.fail(f"damaged: {name!r} has the shape {list(shape)} and the type {kind}")
        n_bytes = math.prod(shape) // block * block_bytes
        if offset != expected:
            raise reader.fail(f"damaged: {name!r} is at byte {offset:,} of the data, not at {expected:,}")
        expected += -(-n_bytes // alignment) * alignment
        entries.append((name, shape, kind, offset, n_bytes))
    begin = -(-reader.at // alignment) * alignment
    for name, shape, kind, offset, n_bytes in entries:
        end = begin + offset + n_bytes
        if end > len(reader.data):
            raise reader.fail(f"truncated: {name} ends at byte {end:,}, the file at {len(reader.data):,}")
        yield TensorInfo(name, shape, _TYPE_NAMES[kind], begin + offset, n_bytes)
