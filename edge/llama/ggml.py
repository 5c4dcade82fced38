"""ggml's number types and its quantization of rows, from the library that llama-cpp-python ships.

The functions are those of ggml.h (ggml_quantize_chunk, ggml_validate_row_data, …), so types and bits are those of the
installed llama.cpp. ctypes releases the GIL while they run.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._ctypes_extensions import load_shared_library

from edge.errors import EdgeError

Floats = npt.NDArray[np.float32]

# Integers and the types of intermediate values: ggml_quantize_chunk does not support them.
_INTERNAL = ("q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64")
_LARGEST_SQUARE = 1e30


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h, up to the function that this module calls."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    ]


@cache
def _library() -> ctypes.CDLL:
    lib: ctypes.CDLL = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_size.restype = ctypes.c_size_t
    lib.ggml_is_quantized.restype = ctypes.c_bool
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    for name in ("type_name", "blck_size", "type_size", "is_quantized", "quantize_requires_imatrix"):
        getattr(lib, f"ggml_{name}").argtypes = [ctypes.c_int]
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return lib


@cache
def types() -> dict[str, int]:
    """The types that the weights of a GGUF may have: names in lower case, such as q4_k, and ggml's numbers."""
    found: dict[str, int] = {}
    for number in range(llama_cpp.GGML_TYPE_COUNT):
        name = (_library().ggml_type_name(number) or b" ").decode()
        removed = " " in name or not _library().ggml_blck_size(number)
        if not removed and name not in _INTERNAL:
            found[name.lower()] = number
    return found


@cache
def type_name(number: int) -> str:
    """ggml's name of a type, such as q4_K."""
    return str(_library().ggml_type_name(number).decode())


def is_quantized(number: int) -> bool:
    """Whether a type has blocks with scales."""
    return bool(_library().ggml_is_quantized(number))


def requires_imatrix(number: int) -> bool:
    """Whether ggml quantizes to this type only with an importance matrix; without one it stops the process."""
    return bool(_library().ggml_quantize_requires_imatrix(number))


def row_bytes(number: int, columns: int) -> int:
    """Bytes of a row. `columns` must be a multiple of the block size of the type."""
    size, block = _library().ggml_type_size(number), _library().ggml_blck_size(number)
    return int(size * columns // block)


def quantize(number: int, rows: Floats, importance: Floats | None = None) -> npt.NDArray[np.uint8]:
    """Quantize rows of shape (n, columns), C-contiguous, to a type: bytes of shape (n, row_bytes).

    `importance`: a weight for each column, of shape (columns,). Raises ValueError if the values are too large for the
    type, so that the result has values that are not finite.
    """
    n, columns = rows.shape
    # The search of an IQ type stops the process if its sums of weighted squares exceed float32.
    if type_name(number).startswith("iq"):
        largest = max(float(rows.max(initial=0)), -float(rows.min(initial=0)))
        if largest**2 * max(1.0, 1.0 if importance is None else float(importance.max())) > _LARGEST_SQUARE:
            raise ValueError(f"values too large for {type_name(number)}")
    data = np.empty((n, row_bytes(number, columns)), np.uint8)
    weights: Any = None if importance is None else importance.ctypes.data
    _library().ggml_quantize_chunk(number, rows.ctypes.data, data.ctypes.data, 0, n, columns, weights)
    if not is_valid(number, data):
        raise ValueError(f"values too large for {type_name(number)}")
    return data


def block_size(number: int) -> int:
    """Values in a block of a type. The columns of a row must be a multiple of it."""
    return int(_library().ggml_blck_size(number))


@cache
def _to_float(number: int) -> Any:
    """ggml's function that makes floats of a type's blocks. Raises EdgeError if the struct has another layout."""
    traits, lib = _library().ggml_get_type_traits(number).contents, _library()
    fits = (
        traits.type_name == lib.ggml_type_name(number)
        and traits.block_size == lib.ggml_blck_size(number)
        and traits.type_size == lib.ggml_type_size(number)
        and traits.is_quantized == lib.ggml_is_quantized(number)
        and traits.to_float
    )
    if not fits:
        raise EdgeError(
            f"the installed llama-cpp-python does not tell how {type_name(number)} becomes floats; install 0.3.36"
        )
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return kind(traits.to_float)


def dequantize(number: int, data: npt.NDArray[np.uint8], columns: int) -> Floats:
    """The values of quantized rows: float32 of shape (n, columns) from contiguous bytes of shape (n, row_bytes).

    Raises EdgeError if the installed llama.cpp is one that edge does not know.
    """
    values = np.empty((len(data), columns), np.float32)
    _to_float(number)(data.ctypes.data, values.ctypes.data, values.size)
    return values


def is_valid(number: int, data: npt.NDArray[np.uint8]) -> bool:
    """Whether all values of quantized rows are finite, as far as ggml checks the type."""
    return bool(_library().ggml_validate_row_data(number, data.ctypes.data, data.nbytes))
