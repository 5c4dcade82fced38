"""A checkpoint's files on disk: JSON and safetensors headers, read and checked; weights, mapped when asked for.

The safetensors format: 8 bytes little-endian header length, a JSON header that gives each tensor's dtype,
shape and byte range, then the data, without gaps (https://huggingface.co/docs/safetensors). We parse it
ourselves, since its numpy mode knows no bfloat16 and its errors do not name the tensor.

Whatever a file holds, reading it takes bounded time and memory: only regular files are opened, and none but
weights beyond the sizes below.
"""

import errno
import json
import math
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError

_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2}
_ITEM_BYTES |= {"U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
_READABLE: dict[str, npt.DTypeLike] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

# Bytes. The largest tokenizer.json known has 33 MB, a header of 100,000 tensors 15 MB, a chat template 30 kB.
_MAX_JSON = _MAX_HEADER = 1 << 26
_MAX_NAME = 512  # characters of a tensor's name
_MAX_DIMENSIONS = 8

# What lies under the name of another kind of file: how it begins, and what to say of it.
_LFS = "is a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
_DISGUISES = (
    (b"version https://git-lfs", _LFS),
    (b"PK\x03\x04", "is a PyTorch pickle, no safetensors file; save it with save_pretrained"),
    (b"\x80\x02", "is a Python pickle, no safetensors file; save it with save_pretrained"),
    (b"GGUF", "is a GGUF, no safetensors file; convert the checkpoint that it was made from"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, still on disk: `dtype` is safetensors' name, `offset` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    def read(self) -> npt.NDArray[Any]:
        """Its values, mapped from the file, in its shape: float16, float32, or uint16 with a bfloat16's bits.

        Raises CheckpointError if it is of another dtype.
        """
        if self.dtype not in _READABLE:
            raise CheckpointError(
                f"{self.file}: {self.name} is stored as {self.dtype}; edge reads BF16, F16 and F32"
            )
        if self.n_bytes == 0:
            return np.empty(self.shape, _READABLE[self.dtype])
        try:
            return np.memmap(self.file, _READABLE[self.dtype], "r", self.offset, self.shape)
        except (OSError, ValueError) as error:  # it was whole when its header was read
            raise CheckpointError(f"{self.file}: {self.name} cannot be read: {error}") from None


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file, {} if it is missing and may be.

    Raises CheckpointError: not a JSON object, no regular file, too large, a key that occurs twice.
    """
    try:
        value = _parse(read_small(path, _MAX_JSON).decode("utf-8-sig"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise CheckpointError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def read_small(path: Path, limit: int) -> bytes:
    """A small file's bytes. Raises FileNotFoundError, and CheckpointError for a file that is not to be opened."""
    try:
        size = _size(path)
        if size > limit:
            raise CheckpointError(
                f"{path}: holds {size:,} bytes; edge reads at most {limit:,} of such a file"
            )
        with path.open("rb") as stream:
            data = stream.read(limit)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if data.startswith(_DISGUISES[0][0]):
        raise CheckpointError(f"{path}: {_LFS}")
    return data


def _size(path: Path) -> int:
    """A regular file's size. Raises OSError; CheckpointError for a FIFO or a device, which may wait or never end."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link to a file that is not there; fetch it again") from None
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(
                f"{path}: is a link that leads back to itself; fetch the file again"
            ) from None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is not a regular file; fetch it again")
    return status.st_size


def _parse(text: str) -> Any:
    """JSON in which no object names a key twice: programs disagree on which of the two then counts."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return found


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; together they are all of its data, without gaps or overlaps.

    Raises CheckpointError: missing, truncated, a damaged header, a range that does not fit.
    """
    try:
        size = _size(file)
        with file.open("rb") as stream:
            first = stream.read(8)
            length = int.from_bytes(first, "little")
            if size < 8 or length > size - 8:
                beginning = first + stream.read(32)
                found = [problem for magic, problem in _DISGUISES if beginning.startswith(magic)]
                problem = f"truncated or no safetensors file ({size:,} bytes); fetch it again"
                raise CheckpointError(f"{file}: {(found or [problem])[0]}")
            if length > _MAX_HEADER:
                raise CheckpointError(
                    f"{file}: a header of {length:,} bytes; edge reads at most {_MAX_HEADER:,}"
                )
            header = _parse(stream.read(length).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; a shard is missing, fetch it again") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        twice = f" ({error})" if "occurs twice" in str(error) else ""
        raise CheckpointError(
            f"{file}: its header is no JSON{twice}; the file is damaged, fetch it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is no JSON object; the file is damaged, fetch it again")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"{file}: its __metadata__ is no map of texts; the file is damaged, fetch it again"
        )
    start = 8 + length
    tensors = {name: _stored_tensor(file, size, start, name, entry) for name, entry in header.items()}
    _check_layout(file, tensors.values(), start, size)
    return tensors


def _check_layout(file: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """Every byte of the data belongs to one tensor, as the format has it."""
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        if tensor.offset != at:
            how = "overlaps another tensor" if tensor.offset < at else "leaves a gap before it"
            raise CheckpointError(
                f"{file}: {tensor.name} {how} ({abs(tensor.offset - at):,} bytes); the file is damaged, fetch it again"
            )
        at += tensor.n_bytes
    if at != size:
        raise CheckpointError(
            f"{file}: {size - at:,} bytes after the last tensor; the file is damaged, fetch it again"
        )


def _stored_tensor(file: Path, size: int, start: int, name: str, entry: object) -> StoredTensor:
    """One entry of a safetensors header; `start` is where the data begins, in bytes."""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{file}: {name[:40]!a} is no name of a tensor; the file is damaged, fetch it again"
        )
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape, span = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise CheckpointError(f"{file}: the header's entry for {name} is malformed; fetch the file again")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{file}: {name} is stored as {dtype[:40]}; edge reads BF16, F16 and F32")
    begin, end = span
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"{file}: {name} holds {end - begin:,} bytes, which does not fit {dtype} {shape}"
        )
    if start + end > size:
        raise CheckpointError(
            f"{file}: truncated: {name} ends at byte {start + end:,} of {size:,}; fetch the file again"
        )
    return StoredTensor(name, dtype, tuple(shape), file, start + begin, end - begin)


def _counts(value: object) -> list[int] | None:
    """The value if it is a short list of sane counts, else None."""
    if isinstance(value, list) and len(value) <= _MAX_DIMENSIONS:
        return value if all(type(n) is int and 0 <= n < 1 << 62 for n in value) else None
    return None
