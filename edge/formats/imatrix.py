"""Reads and writes importance matrices (imatrix files): how much each column of each weight matrix matters.

The format is the GGUF that llama.cpp uses. For each weight matrix the file has `<tensor>.in_sum2`: for each column, the
sum over tokens of the squared inputs of the matrix; and `<tensor>.counts`: the number of tokens. Stacked experts have a
row of values and a count for each expert. `imatrix.datasets`, `.chunk_count` and `.chunk_size` say what the matrix was
computed from. Sources: llama.cpp's tools/imatrix/imatrix.cpp (writing), common/imatrix-loader.cpp (reading) and
tools/quantize/quantize.cpp (use).
"""

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelFileError
from edge.formats.gguf import TensorInfo, read_array, read_kinds, read_metadata, read_tensors
from edge.system.files import whole_file

DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_U32, _STRING, _ARRAY = 4, 8, 9  # enum gguf_type
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_MAX_NAME = 64  # GGML_MAX_NAME
_OVERRIDE = 127  # bytes of the longest string in a llama_model_kv_override


@dataclass(frozen=True)
class Sums:
    """The sums of one tensor.

    `in_sum2`: float32 of shape (n, columns); `counts`: int64 of shape (n,). n is the number of stacked experts, else 1.
    A tensor of several matrices that are not experts has all their columns in one row.
    """

    in_sum2: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. `datasets`: the names of the files that it was computed from, the latest last."""

    entries: Mapping[str, Sums]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The mean squares by tensor name: flat float32 of n * columns, as llama-quantize gives llama_model_quantize.

        All columns of an expert without tokens are 1.
        """
        result = {}
        for name, entry in self.entries.items():
            counts = entry.counts.astype(np.float32)[:, None]
            seen = counts > 0
            means = np.divide(entry.in_sum2, counts, out=np.ones_like(entry.in_sum2), where=seen)
            result[name] = means.reshape(-1)
        return result

    def metadata(self, file: str) -> list[tuple[str, str | int]]:
        """The metadata that llama-quantize writes into a model quantized with this matrix, in its order.

        `file`: the name of the matrix file as the user gave it. Numbers have GGUF's type UINT32.
        """
        entries: list[tuple[str, str | int]] = [("quantize.imatrix.file", _cut(file))]
        if self.datasets:
            entries.append(("quantize.imatrix.dataset", _cut(self.datasets[0])))
        entries.append(("quantize.imatrix.entries_count", len(self.entries)))
        if self.chunk_count > 0:
            entries.append(("quantize.imatrix.chunks_count", self.chunk_count))
        return entries


def read_imatrix(path: str | Path) -> Imatrix:
    """Read and check an importance matrix that edge or llama-imatrix wrote.

    Raises ModelFileError if the file is missing or damaged, another kind of GGUF or the older .dat format, if it lacks
    one of the three entries that llama-quantize needs, or if a value is not a sum of squares.
    """
    path = Path(path)
    _refuse_dat(path)
    metadata = read_metadata(path)
    tensors = {tensor.name: tensor for tensor in read_tensors(path)}
    kind = metadata.get("general.type", "imatrix")
    numbers = metadata.get(CHUNK_COUNT), metadata.get(CHUNK_SIZE)
    if kind != "imatrix" or not any(name.endswith(_SUMS) for name in tensors):
        raise ModelFileError(f"{path}: is a GGUF, but not an importance matrix; make one with `edge imatrix`")
    datasets = _datasets(path)
    if datasets is None or any(type(number) is not int or number < 0 for number in numbers):
        missing = ", ".join(
            name
            for name, there in ((DATASETS, datasets), (CHUNK_COUNT, numbers[0]), (CHUNK_SIZE, numbers[1]))
            if there is None
        )
        raise _damaged(path, f"{missing} is missing" if missing else "its chunk numbers are not integers")
    entries = {}
    names = {name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)}
    names |= {name.removesuffix(_COUNTS) for name in tensors if name.endswith(_COUNTS)}
    for name in sorted(names):
        pair = tensors.get(name + _SUMS), tensors.get(name + _COUNTS)
        if pair[0] is None or pair[1] is None:
            raise _damaged(path, f"{name} has {'counts' if pair[1] else 'sums'} only")
        entries[name] = _entry(path, name, pair[0], pair[1])
    return Imatrix(entries, datasets, int(numbers[0] or 0), int(numbers[1] or 0))


def write_imatrix(path: str | Path, imatrix: Imatrix) -> None:
    """Write the file, complete or not at all, with the same bytes as llama-imatrix.

    Raises ModelFileError if it cannot be written, or if llama.cpp could not read it again.
    """
    names = sorted(imatrix.entries)
    infos, blocks, offset = [], [], 0
    for name in names:
        entry = imatrix.entries[name]
        rows, columns = entry.in_sum2.shape
        for suffix, shape, values in (
            (_SUMS, (columns, rows), entry.in_sum2),
            (_COUNTS, (1, rows), entry.counts),
        ):
            full = (name + suffix).encode()
            if len(full) >= _MAX_NAME or not rows * columns or not np.isfinite(values).all():
                raise ModelFileError(
                    f"{path}: {name} cannot be written: its name is too long, or its values are empty or not finite"
                )
            data = values.astype("<f4").tobytes()
            dimensions = shape if rows > 1 else shape[:1]
            infos.append(
                _text(full) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, 0, offset)
            )
            blocks.append(data + bytes(-len(data) % _ALIGNMENT))
            offset += len(blocks[-1])
    datasets = [name.encode("utf-8", "surrogateescape") for name in imatrix.datasets]
    header = b"".join(
        [
            b"GGUF" + struct.pack("<IQQ", 3, 2 * len(names), 4),
            _text(b"general.type") + struct.pack("<I", _STRING) + _text(b"imatrix"),
            _text(DATASETS.encode()) + struct.pack("<IIQ", _ARRAY, _STRING, len(datasets)),
            *map(_text, datasets),
            _text(CHUNK_COUNT.encode()) + struct.pack("<II", _U32, imatrix.chunk_count),
            _text(CHUNK_SIZE.encode()) + struct.pack("<II", _U32, imatrix.chunk_size),
            *infos,
        ]
    )
    with replacing(path) as file:
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        file.writelines(blocks)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` at the end of the `with`, unless the block raises.

    If `path` is a link, the file that it points to is replaced. Raises ModelFileError if it cannot be written.
    """
    try:
        with (
            whole_file(Path(os.path.realpath(path))) as (_, descriptor),
            open(descriptor, "wb", closefd=False) as file,
        ):
            yield file
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from None


def _refuse_dat(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(12)
    except OSError:
        return  # read_metadata reports the error
    # The older format begins with the number of entries, the length of the first name, and that name.
    if begin[:4] != b"GGUF" and begin[8:] in (b"blk.", b"outp", b"toke"):
        raise ModelFileError(
            f"{path}: is an importance matrix in the older .dat format; "
            f"make a GGUF of it with `llama-imatrix --in-file {path} -o NEW.gguf`"
        )


def _datasets(path: Path) -> tuple[str, ...] | None:
    """The names of the datasets; None without the entry, () if it is not a list of texts: llama.cpp ignores that."""
    kind = read_kinds(path).get(DATASETS)
    if kind is None:
        return None
    items = read_array(path, DATASETS) if kind == _ARRAY else []
    return tuple(item.decode("utf-8", "replace") for item in items if isinstance(item, bytes))


def _entry(path: Path, name: str, sums: TensorInfo, counts: TensorInfo) -> Sums:
    if sums.type != "F32" or counts.type != "F32":
        raise _damaged(path, f"{name} has the types {sums.type} and {counts.type}, not F32")
    values, numbers = (_values(path, tensor) for tensor in (sums, counts))
    if not len(numbers) or not len(values) or len(values) % len(numbers):
        raise _damaged(path, f"{name} has {len(values)} sums for {len(numbers)} counts")
    if not np.isfinite(numbers).all() or (numbers < 0).any() or not np.isfinite(values).all():
        raise _damaged(path, f"{name} holds a value that is not finite, or a negative count")
    if (values < 0).any():
        raise _damaged(path, f"{name} holds a negative sum of squares")
    whole = np.floor(numbers.astype(np.float64) + 0.5).astype(np.int64)  # std::lround
    return Sums(values.reshape(len(numbers), -1), whole)


def _values(path: Path, tensor: TensorInfo) -> NDArray[np.float32]:
    try:
        return np.fromfile(path, "<f4", tensor.n_bytes // 4, offset=tensor.offset).astype(np.float32)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def _damaged(path: Path, problem: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: is a damaged importance matrix: {problem}; make it again with `edge imatrix`"
    )


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _cut(text: str) -> str:
    """The text, cut to what an override of llama.cpp holds, at the end of a character."""
    data = text.encode("utf-8", "surrogateescape")
    return data[:_OVERRIDE].decode("utf-8", "ignore" if len(data) > _OVERRIDE else "surrogateescape")
