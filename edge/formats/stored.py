"""The files of a checkpoint on disk: reads and checks JSON and safetensors headers, and maps weights into memory.

The safetensors format: 8 bytes with the length of the header (little-endian), a JSON header with dtype, shape and byte
range of each tensor, then the data without gaps (https://huggingface.co/docs/safetensors). edge parses it itself,
because the numpy mode of the safetensors package has no bfloat16 and its errors do not name the tensor.

Time and memory are bounded whatever a file contains: edge opens only regular files, and only weights may be larger
than the limits below.
"""

import errno
import json
import math
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.floats import widen

_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2}
_QUANTIZED = re.compile("F4|F6_E2M3|F6_E3M2|[IU]4")  # smaller than a byte: edge does not know their sizes
_ITEM_BYTES |= {"U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_BYTES |= {"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1}
_READABLE: dict[str, npt.DTypeLike] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

# Bytes. The largest known tokenizer.json has 33 MB; the header of 100,000 tensors has 15 MB.
_MAX_JSON = _MAX_HEADER = 1 << 26
_MAX_NAME = 512  # characters of a tensor's name
_MAX_DIMENSIONS = 8
_PIECE = 1 << 22  # values compared at once

# Other kinds of file under the name of a safetensors file: the first bytes, and the fault.
_LFS = "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
_DISGUISES = (
    (b"version https://git-lfs", _LFS),
    (b"PK\x03\x04", "is a PyTorch pickle, not a safetensors file; save it with save_pretrained"),
    (b"\x80\x02", "is a Python pickle, not a safetensors file; save it with save_pretrained"),
    (b"GGUF", "is a GGUF, not a safetensors file; convert the checkpoint that it was made from"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, on disk. `dtype`: its name in safetensors; `offset`: in bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    def read(self) -> npt.NDArray[Any]:
        """The values in their shape, mapped from the file: float16, float32, or the bits of bfloat16 as uint16.

        Raises CheckpointError for any other dtype, or if the file has changed since its header was read.
        """
        self.check_dtype()
        if self.n_bytes == 0:
            return np.empty(self.shape, _READABLE[self.dtype])
        try:
            return np.memmap(self.file, _READABLE[self.dtype], "r", self.offset, self.shape)
        except (OSError, ValueError) as error:  # its header fitted the file before
            raise CheckpointError(f"{self.file}: {self.name} cannot be read: {error}") from None

    def check_dtype(self) -> None:
        """Raise CheckpointError unless the dtype is BF16, F16 or F32."""
        if self.dtype not in _READABLE:
            raise _unreadable(self.file, self.name, self.dtype)


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same shape and numbers: the same bits, or equal floats of two dtypes."""
    if one.shape != other.shape:
        return False
    if one.n_bytes == 0:
        return True
    floats = {one.dtype, other.dtype} <= _READABLE.keys()
    if one.dtype == other.dtype:  # then the bits count, also those of NaN
        read = [each.read() if floats else _bits(each) for each in (one, other)]
        flat = [values.reshape(-1).view(np.uint8) for values in read]
        return all(np.array_equal(a, b) for a, b in zip(*map(_pieces, flat), strict=True))
    if not floats:
        return False
    flat = [each.read().reshape(-1) for each in (one, other)]
    return all(
        np.array_equal(widen(a, one.dtype), widen(b, other.dtype))
        for a, b in zip(*map(_pieces, flat), strict=True)
    )


def _bits(tensor: StoredTensor) -> npt.NDArray[Any]:
    return np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.n_bytes,))


def _pieces(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [values[first : first + _PIECE] for first in range(0, len(values), _PIECE)]


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} for a missing file with `missing_ok`.

    Raises CheckpointError if the file is missing, not a regular file or too large, if it is not a JSON object, or if
    a key occurs twice.
    """
    try:
        value = _parse(read_small(path, _MAX_JSON).decode("utf-8-sig"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise CheckpointError(f"{path}: no such file; fetch the checkpoint again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {_fault(error)}; fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object; fetch it again")
    return value


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    Raises FileNotFoundError, and CheckpointError if it is too large, not a regular file, or a Git LFS pointer.
    """
    try:
        size = _size(path)
        if size > limit:
            raise CheckpointError(
                f"{path}: holds {size:,} bytes; edge reads at most {limit:,} here; fetch it again"
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
    """The size of a regular file in bytes.

    Raises OSError; CheckpointError for a bad link, and for a FIFO or a device, whose read may block or never end.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link to a missing file; fetch it again") from None
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
    """Parse JSON. Raises ValueError if a key occurs twice in an object: programs disagree on which value counts."""
    return json.loads(text, object_pairs_hook=_unique)


def _fault(error: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text, from what its parser raised."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    text = str(error)
    return "a number has too many digits" if text.startswith("Exceeds the limit") else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return values


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name. Together they cover all of its data, without gaps or overlaps.

    Raises CheckpointError if the file is missing or truncated, or if its header is damaged or does not fit the file.
    """
    header, start, size = _read_json_header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, "its __metadata__ is not a map of strings")
    tensors = {name: _stored_tensor(file, size, start, name, entry) for name, entry in header.items()}
    _check_layout(file, tensors.values(), start, size)
    return tensors


def _read_json_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header of a safetensors file, the byte where its data begins, and the size of the file."""
    try:
        size = _size(file)
        with file.open("rb") as stream:
            first = stream.read(8)
            length = int.from_bytes(first, "little")
            if size < 8 or length > size - 8:
                beginning = first + stream.read(32)
                problems = [problem for magic, problem in _DISGUISES if beginning.startswith(magic)]
                problems.append(f"truncated, or not a safetensors file ({size:,} bytes); fetch it again")
                raise CheckpointError(f"{file}: {problems[0]}")
            if length > _MAX_HEADER:
                raise CheckpointError(
                    f"{file}: has a header of {length:,} bytes; edge reads at most {_MAX_HEADER:,}; fetch it again"
                )
            header = _parse(stream.read(length).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; fetch the checkpoint again") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        twice = f" ({error})" if "occurs twice" in str(error) else ""
        raise _damaged(file, f"its header is not valid JSON{twice}") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    return header, 8 + length, size


def _check_layout(file: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """Raise CheckpointError unless every byte of the data belongs to exactly one tensor, as the format demands."""
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        if tensor.offset != at:
            how = "overlaps another tensor" if tensor.offset < at else "leaves a gap before it"
            raise _damaged(file, f"{tensor.name} {how} ({abs(tensor.offset - at):,} bytes)")
        at += tensor.n_bytes
    if at != size:
        raise _damaged(file, f"has {size - at:,} bytes after the last tensor")


def _stored_tensor(file: Path, size: int, start: int, name: str, entry: object) -> StoredTensor:
    """One entry of a safetensors header. `start`: the byte where the data begins."""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise _damaged(file, f"{name[:40]!a} is not a tensor name")
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape, span = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise _damaged(file, f"the header's entry for {name} is malformed")
    if dtype not in _ITEM_BYTES:
        raise _unreadable(file, name, dtype[:40])
    begin, end = span
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _damaged(file, f"{name} has {end - begin:,} bytes, which does not fit {dtype} {shape}")
    if start + end > size:
        raise CheckpointError(
            f"{file}: truncated: {name} ends at byte {start + end:,}, the file at {size:,}; fetch it again"
        )
    return StoredTensor(name, dtype, tuple(shape), file, start + begin, end - begin)


def _counts(value: object) -> list[int] | None:
    """The value if it is a short list of counts below 2^62, else None."""
    if isinstance(value, list) and len(value) <= _MAX_DIMENSIONS:
        return value if all(type(n) is int and 0 <= n < 1 << 62 for n in value) else None
    return None


def _damaged(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{file}: {problem}; the file is damaged, fetch it again")


def _unreadable(file: Path, name: str, dtype: str) -> CheckpointError:
    if _QUANTIZED.fullmatch(dtype):
        return CheckpointError(
            f"{file}: {name} is stored as {dtype}: the checkpoint is already quantized; convert the original "
            "checkpoint: its model card or its author names it"
        )
    return CheckpointError(
        f"{file}: {name} is stored as {dtype}; edge reads BF16, F16 and F32: save the checkpoint in one of them"
    )
