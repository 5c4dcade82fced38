"""Casts between the float types of a checkpoint without torch. numpy has no bfloat16: its bits are uint16 here."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def widen(values: npt.NDArray[Any], dtype: str) -> Floats:
    """Values of a dtype (BF16, F16 or F32) as float32, without loss. A bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        bits: npt.NDArray[np.uint32] = np.left_shift(values, 16, dtype=np.uint32)
        return bits.view(np.float32)
    return values.astype(np.float32, copy=False)


def narrow(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """float32 values in a dtype, rounded to nearest, ties to even. Large values become infinite; NaN is undefined."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded: npt.NDArray[Any] = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return rounded
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if dtype == "F16" else np.float32, copy=False)
