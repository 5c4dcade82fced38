"""Exact sizes of quantized files, before they are written: header, metadata, padding and data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edge.errors import ConversionError
from edge.formats.gguf import TensorInfo, read_layout
from edge.llama import ggml
from edge.llama.types import FTYPES, choose_each

_ALIGNMENT = 32  # of the data of each tensor


def padded(n_bytes: int) -> int:
    """Bytes with the padding of a GGUF."""
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def entry_bytes(key: str, value: str | int) -> int:
    """Bytes of a metadata entry: key, type, and a string or a UINT32."""
    own = 8 + len(value.encode("utf-8")) if isinstance(value, str) else 4
    return 8 + len(key.encode("utf-8")) + 4 + own


@dataclass(frozen=True)
class Sizes:
    """The sizes of files that are made from an unquantized GGUF."""

    tensors: tuple[TensorInfo, ...]
    header: int
    """Bytes of its header, without padding."""
    n_params: int
    matrix: tuple[tuple[str, str | int], ...]
    """What a file records of its importance matrix."""

    @classmethod
    def of(cls, base: Path, matrix: Iterable[tuple[str, str | int]]) -> "Sizes":
        """From the header of an unquantized GGUF. Raises ModelFileError."""
        tensors, header, _ = read_layout(base, "")
        return cls(tuple(tensors), header, sum(prod(each.shape) for each in tensors), tuple(matrix))

    def data(self, types: Mapping[str, int]) -> int:
        """Bytes of all tensors, with these ggml types by name; the others keep theirs."""
        return sum(
            padded(tensor_bytes(each, types[each.name]) if each.name in types else each.n_bytes)
            for each in self.tensors
        )

    def before(self, further: Iterable[tuple[str, str | int]] = ()) -> int:
        """Bytes before the data, with the matrix and `further` metadata."""
        return padded(self.header + sum(entry_bytes(*entry) for entry in (*self.matrix, *further)))


def tensor_bytes(tensor: TensorInfo, number: int) -> int:
    """Bytes of a tensor in a ggml type."""
    return prod(tensor.shape[1:]) * ggml.row_bytes(number, tensor.shape[0])


def standard_types(base: Path, quants: Sequence[str]) -> dict[str, dict[str, int]]:
    """The ggml type of each tensor that llama.cpp changes, in files of the types `quants`, made with a matrix."""
    chosen = {
        quant: each.types
        for quant, each in zip(quants, choose_each(base, [FTYPES[quant] for quant in quants]), strict=True)
    }
    own = {tensor.name: tensor.type.lower() for tensor in read_layout(base, "")[0]}
    if any(types.keys() != own.keys() for types in chosen.values()):
        raise ConversionError(
            "the installed llama-cpp-python does not report which types it chooses; install 0.3.36"
        )
    return {
        quant: {name: ggml.types()[kind] for name, kind in types.items() if kind != own[name]}
        for quant, types in chosen.items()
    }
