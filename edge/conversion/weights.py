"""Read, check, quantize and write the tensors of a GGUF, in blocks of rows on all cores.

Some threads read and write while others quantize. Only a few blocks are in memory at the same time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.conversion.plan import Array, TensorPlan
from edge.errors import CheckpointError, ConversionError
from edge.formats.checkpoint import StoredTensor
from edge.formats.floats import narrow, widen
from edge.llama import ggml
from edge.system.files import write_at
from edge.system.progress import Progress

FLOATS = {name: ggml.types()[name.lower()] for name in ("F32", "F16", "BF16")}
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # NaN and Inf have all of these bits
_BLOCK = 1 << 20  # values quantized at a time: about 0.1 s and a few megabytes


@dataclass(frozen=True)
class Output:
    """A tensor to write: `type` is its ggml number, `offset` and `n_bytes` are in bytes.

    `kind`: the float type that the values are rounded to before they are quantized, because llama.cpp quantizes a
    file of that type. `importance`: the column weights, of shape (matrices, columns), one row for each expert.
    """

    tensor: TensorPlan
    kind: str
    type: int
    offset: int
    n_bytes: int
    importance: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Block:
    """Some rows of one matrix, of shape (n, columns). `dtype` is their stored type, `offset` their place in bytes."""

    output: Output
    rows: Array
    dtype: str
    part: StoredTensor | None
    offset: int
    importance: npt.NDArray[np.float32] | None


def write_weights(descriptor: int, outputs: Sequence[Output], threads: int, progress: Progress) -> None:
    """Write the data of all tensors. `progress` receives the number of bytes written and their total.

    Raises CheckpointError for NaN or Inf, ConversionError for values out of the range of a type, and OSError.
    """
    running: deque[Future[int]] = deque()
    done, total = 0, sum(output.n_bytes for output in outputs)
    pool = ThreadPoolExecutor(threads)
    try:
        for output in outputs:
            for block in _blocks(output):
                while len(running) > 2 * threads:
                    done += running.popleft().result()
                    progress(done, total)
                running.append(pool.submit(_write, descriptor, block))
        while running:
            done += running.popleft().result()
            progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _blocks(output: Output) -> Iterator[_Block]:
    tensor = output.tensor
    columns = tensor.shape[-1]
    row_bytes = ggml.row_bytes(output.type, columns)
    offset, matrix = output.offset, 0
    for part in tensor.parts or (None,):
        values, dtype = _changed(tensor, part)
        for index in np.ndindex(values.shape[:-2]):
            rows = values[index].reshape(-1, columns)
            importance = None if output.importance is None else output.importance[matrix]
            matrix += 1
            step = max(1, _BLOCK // columns)
            for first in range(0, len(rows), step):
                block = rows[first : first + step]
                yield _Block(output, block, dtype, part, offset, importance)
                offset += len(block) * row_bytes


def _changed(tensor: TensorPlan, part: StoredTensor | None) -> tuple[Array, str]:
    """A part's values in the shape of the file, and their dtype. They stay memory-mapped if no change moves them."""
    if part is None:
        return tensor.change(np.empty(0, np.float32)), "F32"
    if not tensor.wide or part.dtype == "F32":
        return tensor.change(part.read()), part.dtype
    with np.errstate(over="ignore"):  # _cast reports overflow
        return tensor.change(widen(part.read(), part.dtype)), "F32"


def _write(descriptor: int, block: _Block) -> int:
    kind, number = block.output.kind, block.output.type
    values = _cast(np.ascontiguousarray(block.rows), block.dtype, kind, block.part)
    if number != FLOATS[kind]:
        try:
            values = ggml.quantize(number, widen(values, kind), block.importance)
        except ValueError as error:
            raise ConversionError(f"{_where(block)}: {error}; choose another type for it") from None
    write_at(descriptor, values.reshape(-1).view(np.uint8).data, block.offset)
    return values.nbytes


def _cast(values: Array, dtype: str, kind: str, part: StoredTensor | None) -> Array:
    """Cast values to the float type `kind`. Raises CheckpointError for NaN or Inf, ConversionError for overflow."""
    bits: Array = values.view(np.uint32 if dtype == "F32" else np.uint16)
    if (np.bitwise_and(bits, _EXPONENT[dtype]) == _EXPONENT[dtype]).any():
        where = "the computed values" if part is None else f"{part.file}: {part.name}"
        raise CheckpointError(f"{where} holds NaN or Inf; the checkpoint is damaged")
    if dtype == kind:
        return values
    result = narrow(widen(values, dtype), kind)
    if not np.isfinite(widen(result, kind)).all():
        where = "" if part is None else f"{part.file}: {part.name} "
        others = (
            "float16's range; convert to BF16 or F32" if kind == "F16" else "bfloat16's range; convert to F32"
        )
        raise ConversionError(f"{where}exceeds {others} instead")
    return result


def _where(block: _Block) -> str:
    return block.output.tensor.name if block.part is None else f"{block.part.file}: {block.part.name}"
