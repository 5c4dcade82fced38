"""What types cost: the divergence of a model in memory in which some weights went through a quantized type.

The unquantized model is loaded once. The values of a tensor are quantized, dequantized and written over it; then the
model reads the calibration rows again. llama.cpp computes with the model's own type, so the rounding of activations
that quantized products add is not in these figures. The measurement of the finished file has it.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edge.formats.floats import narrow, widen
from edge.formats.gguf import ModelFile, TensorInfo, read_model_file, read_tensors
from edge.formats.imatrix import read_imatrix
from edge.llama import ggml
from edge.llama.patching import Weights
from edge.measure.base_file import BaseFile
from edge.measure.divergence import entropy
from edge.measure.passes import Settings, divergences, opened_reader
from edge.measure.positions import Plan

_BLOCK = 1 << 20  # values quantized at a time
_SAMPLE = 1 << 14  # values of a tensor whose error is computed
UNCERTAIN = 0.8
"""The share of the base's uncertainty that a measurement reads."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Errors:
    """The error of a tensor in a type: `weighted`, the sum of squares times the columns' weights; `relative`, the sum
    of squares of the values' errors over that of the values, and the largest of it among `rare` experts."""

    weighted: float
    relative: float
    rare: float


class Values:
    """The values of an unquantized GGUF, and the weights of its columns. The file is mapped, not read."""

    def __init__(self, base: Path, imatrix: Path, few: int) -> None:
        self.tensors = {tensor.name: tensor for tensor in read_tensors(base)}
        matrix = read_imatrix(imatrix)
        self.weights = matrix.weights()
        self._few = {name: sums.counts < few for name, sums in matrix.entries.items() if len(sums.counts) > 1}
        self._data = np.memmap(base, np.uint8, "r")

    def rare(self, name: str) -> bool:
        """Whether some experts of a tensor worked on too few tokens of the calibration."""
        return name in self._few and bool(self._few[name].any())

    def blocks(self, name: str) -> Iterator[tuple[int, NDArray[np.generic], Floats | None]]:
        """The number of the first row, rows of shape (n, columns) as they are stored, and the columns' weights."""
        for matrix, rows, weights in self._matrices(name):
            step = max(1, _BLOCK // rows.shape[1])
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                yield matrix * len(rows) + first, part, weights

    def errors(self, name: str, number: int) -> Errors:
        """The error of a tensor in a type, from evenly spaced rows of each of its matrices."""
        weighted = squares = of_values = rare = 0.0
        n_matrices = len(list(self._matrices(name)))
        for matrix, rows, weights in self._matrices(name):
            wanted = max(4, _SAMPLE // n_matrices // rows.shape[1])
            some = self.wide(name, rows[:: max(1, len(rows) // wanted)])
            change = (through(number, some, weights) - some).astype(np.float64) ** 2
            by_column = change.sum(axis=0) * len(rows) / len(some)
            weighted += float(by_column.sum() if weights is None else by_column @ weights)
            own = float((some.astype(np.float64) ** 2).sum())
            squares, of_values = squares + float(change.sum()), of_values + own
            if name in self._few and self._few[name][matrix]:
                rare = max(rare, float(change.sum()) / max(own, 1e-30))
        return Errors(weighted, squares / max(of_values, 1e-30), rare)

    def _matrices(self, name: str) -> Iterator[tuple[int, NDArray[np.generic], Floats | None]]:
        tensor = self.tensors[name]
        kind = {"F32": np.float32, "F16": np.float16}.get(tensor.type, np.uint16)
        flat = self._data[tensor.offset : tensor.offset + tensor.n_bytes].view(kind)
        columns, rows = tensor.shape[0], tensor.shape[1]
        matrices = flat.reshape(-1, rows, columns)
        weights = self.weights.get(name)
        fits = weights is not None and weights.size == len(matrices) * columns
        by_matrix = weights.reshape(-1, columns) if weights is not None and fits else None
        for i, matrix in enumerate(matrices):
            yield i, matrix, None if by_matrix is None else by_matrix[i]

    def wide(self, name: str, rows: NDArray[np.generic]) -> Floats:
        """Stored rows of a tensor as float32."""
        return np.ascontiguousarray(widen(np.ascontiguousarray(rows), self.tensors[name].type))


def through(number: int, rows: Floats, weights: Floats | None) -> Floats:
    """Rows of shape (n, columns), quantized to a type and dequantized. Raises ValueError as ggml.quantize."""
    return ggml.dequantize(number, ggml.quantize(number, rows, weights), rows.shape[1])


class Probe:
    """The unquantized model in memory. Use it as a context manager, in one thread.

    `plan`: what it reads; `scores`: the distributions of the same model on it. `places`: the rows that `divergence`
    reads, None for all.
    """

    def __init__(
        self,
        file: ModelFile,
        values: Values,
        plan: Plan,
        scores: Path,
        settings: Settings,
        places: Sequence[int] | None = None,
    ) -> None:
        self.values = values
        self._plan, self._scores = plan, BaseFile.read(scores)
        self._part = plan if places is None else plan.part(places)
        self._threads = settings.threads
        self.passes = 0
        self._now: dict[str, int] = {}  # the type that each changed tensor went through
        self._writing, self._closed = threading.Lock(), False
        self._reader = opened_reader(file, plan, settings, mmap=False)
        try:
            self._weights = Weights(file.path, self._reader.model)
        except BaseException:
            self._reader.close()
            raise

    def divergence(self, types: Mapping[str, int]) -> list[float]:
        """What each row that it reads adds to the mean divergence over all positions, in nats.

        The named tensors go through these ggml types.
        """
        return self._parts(types, self._part)

    def whole(self, types: Mapping[str, int]) -> float:
        """The mean divergence in nats over all positions of all rows."""
        return sum(self._parts(types, self._plan))

    def _parts(self, types: Mapping[str, int], plan: Plan) -> list[float]:
        for name in self._now.keys() | types.keys():
            number = types.get(name)
            if number != self._now.get(name) and name in self._weights:
                self._write(self.values.tensors[name], number)
        self._now = dict(types)
        self.passes += 1
        by_node = divergences(self._reader, plan, self._scores)
        positions = sum(len(row.nodes) for row in self._plan.rows)
        return [float(by_node[row.nodes].sum()) / positions for row in plan.rows]

    def _write(self, tensor: TensorInfo, number: int | None) -> None:
        row_bytes = ggml.row_bytes(ggml.types()[tensor.type.lower()], tensor.shape[0])

        def work(block: tuple[int, NDArray[np.generic], Floats | None]) -> None:
            first, stored, weights = block
            rows = self.values.wide(tensor.name, stored)
            if number is not None:
                rows = through(number, rows, weights)
            data = rows if tensor.type == "F32" else narrow(rows, tensor.type)
            flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            with self._writing:
                if not self._closed:
                    self._weights.write(tensor.name, flat, first * row_bytes)

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(work, self.values.blocks(tensor.name)):
                pass

    def close(self) -> None:
        """Free the model. After Ctrl-C a thread can still have a block: it then writes nothing."""
        with self._writing:
            self._closed = True
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def uncertain_rows(plan: Plan, scores: Path) -> list[int]:
    """The rows to measure on: the fewest tokens with most of the base's uncertainty (`UNCERTAIN`).

    Where the base is sure of the next token, a small change of its logits changes its distribution very little. So
    nearly all divergence is where it is uncertain, and its own entropy tells where that is, before any measurement.
    """
    by_node = np.array([entropy(kept) for kept, _ in BaseFile.read(scores).records()])
    sums = np.array([by_node[row.nodes].sum() for row in plan.rows])
    tokens = np.array([(row.prompt_tokens or 0) + len(row.nodes) for row in plan.rows])
    best_first = np.argsort(-sums / tokens, kind="stable")
    count = int(np.searchsorted(np.cumsum(sums[best_first]), UNCERTAIN * sums.sum())) + 1
    return sorted(best_first[:count].tolist())


def file_divergences(path: Path, plan: Plan, scores: Path, settings: Settings) -> dict[str, list[float]]:
    """The divergences of a GGUF from the base whose distributions `scores` has, by task.

    For each task their sum in nats, and the number of positions.
    """
    with opened_reader(read_model_file(path), plan, settings) as reader:
        by_node = divergences(reader, plan, BaseFile.read(scores))
    found: dict[str, list[float]] = {}
    for row in plan.rows:
        task = found.setdefault(row.key[0], [0.0, 0])
        task[0] += float(by_node[row.nodes].sum())
        task[1] += len(row.nodes)
    return found
