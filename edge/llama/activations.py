"""The sums of squares of each weight's input while a model reads; an importance matrix consists of them.

llama.cpp calls back at each node of its graph (llama_context_params.cb_eval). At a product with a weight, the other
factor is squared and summed over the tokens, column by column; for stacked experts, to the expert that each token
was routed to. The same products count as in llama.cpp's tools/imatrix/imatrix.cpp, with one exception: that tool
ignores dense products of fewer than 16 tokens. Here every token counts once, in each weight that it meets.
"""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, ModelFileError
from edge.llama import library
from edge.llama.devices import ggml_library
from edge.llama.reader import Reader

_F32, _I32 = 0, 26  # enum ggml_type
_LAST_NODE = b"result_norm"  # the input of the output matrix, in the graph of every model


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h; `layout` checks that the installed library has the same."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # values along each dimension, the row first
        ("nb", ctypes.c_size_t * 4),  # bytes from one to the next
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class InitParams(ctypes.Structure):
    """struct ggml_init_params of ggml.h."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@dataclass(frozen=True)
class _Ggml:
    """The functions of ggml that this module uses, and its numbers for the two products."""

    mul_mat: int
    mul_mat_id: int
    is_host: Callable[[int], bool]
    get: Callable[[int, int, int, int], None]
    n_bytes: Callable[[int], int]


def ggml_function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of the installed ggml, by its name in C. Raises EdgeError if it has none."""
    try:
        # A separate function object: argument types set on the library's own would change it for all callers.
        return ctypes.CFUNCTYPE(result, *arguments)((name, ggml_library()))
    except (ImportError, AttributeError, OSError, RuntimeError):
        raise EdgeError(
            f"the installed llama-cpp-python has no {name}, so edge cannot look into its graph; "
            "install version 0.3.36"
        ) from None


@cache
def layout() -> _Ggml:
    """The library's functions, after a check with two products that `Tensor` has the right layout.

    Raises EdgeError if the installed version has another struct ggml_tensor.
    """
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    init = ggml_function("ggml_init", pointer, InitParams)
    free = ggml_function("ggml_free", None, pointer)
    new = ggml_function("ggml_new_tensor_3d", pointer, pointer, ctypes.c_int, number, number, number)
    name = ggml_function("ggml_set_name", pointer, pointer, ctypes.c_char_p)
    data = ggml_function("ggml_get_data", pointer, pointer)
    multiply = ggml_function("ggml_mul_mat", pointer, pointer, pointer, pointer)
    multiply_id = ggml_function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    op_name = ggml_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    overhead = ggml_function("ggml_tensor_overhead", size)
    context = init(InitParams(1 << 16, None, False))
    if not context:
        raise EdgeError("llama.cpp cannot allocate a few tensors: there is no memory left")
    try:
        weight = new(context, _F32, 4, 6, 2)
        inputs = new(context, _F32, 4, 1, 5)
        ids = new(context, _I32, 2, 5, 1)
        dense = multiply(context, weight, new(context, _F32, 4, 5, 2))
        routed = multiply_id(context, weight, inputs, ids)
        name(weight, b"blk.0.ffn_up_exps.weight")
        found, product, other = (Tensor.from_address(at) for at in (weight, dense, routed))
        strides = [4, 16, 96, 192]
        fits = (
            found.type == _F32
            and list(found.ne) == [4, 6, 2, 1]
            and list(found.nb) == strides
            and found.name == b"blk.0.ffn_up_exps.weight"
            and found.data == data(weight)
            and Tensor.from_address(ids).type == _I32
            and product.src[0] == other.src[0] == weight
            and list(other.src[:4]) == [weight, inputs, ids, None]
            and list(product.ne) == [6, 5, 2, 1]
            and 0 <= overhead() - ctypes.sizeof(Tensor) <= 64
            and 0 <= product.op < 512
            and 0 <= other.op < 512
        )
        ops = (product.op, other.op) if fits else (0, 0)
    finally:
        free(context)
    if not fits or [op_name(op) for op in ops] != [b"MUL_MAT", b"MUL_MAT_ID"]:
        raise EdgeError(
            "the installed llama-cpp-python has another struct ggml_tensor than this version of edge expects, so edge "
            "cannot compute an importance matrix with it; install version 0.3.36"
        )
    return _Ggml(
        mul_mat=ops[0],
        mul_mat_id=ops[1],
        is_host=ggml_function("ggml_backend_buffer_is_host", ctypes.c_bool, pointer),
        get=ggml_function("ggml_backend_tensor_get", None, pointer, pointer, size, size),
        n_bytes=ggml_function("ggml_nbytes", size, pointer),
    )


@dataclass
class Activation:
    """The sums of one weight: `sums` float64 (n, columns), `counts` int64 (n,). n is the number of experts, or 1."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


class Stopped(Exception):
    """The caller stopped the reading; the last batch is not complete."""


class _Collector:
    """The callback. It keeps exceptions in `failed`, because llama.cpp would lose them."""

    def __init__(self, process_output: bool, stopped: Callable[[], bool]) -> None:
        self._ggml = layout()
        self._output = process_output
        self._stopped = stopped
        self.counts = True
        self.pending: dict[str, Activation] = {}
        self.failed: BaseException | None = None
        self._last: tuple[tuple[int, ...], Activation] | None = None

    def begin(self, counts: bool) -> None:
        """Prepare for a batch. `counts`: whether its tokens count."""
        self.counts, self.failed, self._last = counts, None, None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:
        """llama.cpp calls first with `ask`: is this node needed? Then it calls again when the node is computed.

        If the second call returns False, llama.cpp stops computing this part of the graph.
        """
        try:
            if self.failed is None and self._stopped():
                self.failed = Stopped()
            if self.failed is not None:
                return ask
            node = Tensor.from_address(address)
            if node.op == self._ggml.mul_mat_id or node.op == self._ggml.mul_mat:
                return self._takes(node) if ask else self._add(node)
            # To compute unused logits would take a fifth of the time.
            return bool(ask and not self._output and node.name == _LAST_NODE)
        except BaseException as error:
            self.failed = error
            return ask

    def _takes(self, node: Tensor) -> bool:
        if node.op == self._ggml.mul_mat_id:
            return True
        name = _weight_name(node)
        if not name.startswith("blk.") and not (self._output and name == "output.weight"):
            return False
        return bool(Tensor.from_address(node.src[1]).type == _F32)

    def _add(self, node: Tensor) -> bool:
        if not self.counts:
            return True
        name = _weight_name(node)
        # Queries, keys and values have the same input, as have gate and up of an expert: it is summed once.
        key = (node.op, node.src[1], node.src[2] or 0, *Tensor.from_address(node.src[0]).ne[2:4])
        if self._last is None or self._last[0] != key:
            self._last = key, self._routed(node) if node.op == self._ggml.mul_mat_id else self._dense(node)
        new = self._last[1]
        old = self.pending.get(name)
        if old is None:
            self.pending[name] = Activation(new.sums.copy(), new.counts.copy())
        elif old.sums.shape != new.sums.shape or old.counts.shape != new.counts.shape:
            raise EdgeError(f"{name} is used in two products of different shapes")
        else:
            old.sums += new.sums
            old.counts += new.counts
        return True

    def _dense(self, node: Tensor) -> Activation:
        weight = Tensor.from_address(node.src[0])
        inputs = self._values(node.src[1], np.float32)  # (ne3, ne2, tokens, columns)
        deep, high = int(weight.ne[3]), int(weight.ne[2])
        sums = np.zeros((deep * high, inputs.shape[3]))
        for i3, volume in enumerate(inputs):
            for i2, rows in enumerate(volume):
                sums[(i3 % deep) * high + i2 % high] += _squares(rows)
        counted = int(np.prod(inputs.shape[:3])) // len(sums)
        return Activation(sums.reshape(1, -1), np.array([counted]))

    def _routed(self, node: Tensor) -> Activation:
        weight = Tensor.from_address(node.src[0])
        inputs = self._values(node.src[1], np.float32)[0]  # (tokens, 1 or active experts, columns)
        ids = self._values(node.src[2], np.int32)[0, 0]  # (tokens, active experts)
        experts = int(weight.ne[2])
        if len(ids) != len(inputs) or (ids < 0).any() or (ids >= experts).any():
            raise EdgeError(
                f"{_weight_name(node)}: llama.cpp routed a token to an expert that does not exist"
            )
        sums = np.zeros((experts, inputs.shape[2]))
        for expert in np.unique(ids):
            tokens, places = np.nonzero(ids == expert)
            sums[expert] = _squares(inputs[tokens, places % inputs.shape[1]])
        return Activation(sums, np.bincount(ids.reshape(-1), minlength=experts))

    def _values(self, address: int, kind: type[np.generic]) -> NDArray[Any]:
        """The values of a tensor with all four dimensions, the row last; valid while the callback runs."""
        tensor = Tensor.from_address(address)
        size = self._ggml.n_bytes(address)
        if tensor.type != (_F32 if kind is np.float32 else _I32) or not tensor.buffer or not tensor.data:
            raise EdgeError(f"llama.cpp passes a tensor of type {tensor.type}, which edge cannot read")
        if self._ggml.is_host(tensor.buffer):
            memory: Any = (ctypes.c_char * size).from_address(tensor.data)
        else:
            memory = ctypes.create_string_buffer(size)
            self._ggml.get(address, ctypes.addressof(memory), 0, size)
        return np.ndarray(tuple(tensor.ne)[::-1], kind, memory, strides=tuple(tensor.nb)[::-1])


def _weight_name(node: Tensor) -> str:
    """The name of the weight, without what the scheduler adds: `CUDA0#blk.0.attn_k.weight#0`."""
    name = str(Tensor.from_address(node.src[0]).name, "utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of squares of each column, in float64."""
    result: NDArray[np.float64] = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
    return result


class CountingReader(Reader):
    """A reader that sums the squares of what goes into the weights of its model.

    It calls `stopped` during the work; when that returns True, `read` raises Stopped. `process_output`: the output
    matrix counts too. The other arguments are those of Reader. Raises ModelFileError, ContextError, EdgeError.
    """

    def __init__(
        self, path: Path, *, process_output: bool, stopped: Callable[[], bool], **reading: Any
    ) -> None:
        library.start()
        self._collector = _Collector(process_output, stopped)
        callback = llama_cpp.ggml_backend_sched_eval_callback(self._collector)
        super().__init__(path, callback=callback, **reading)

    def read(self, tokens: Sequence[int], position: int, sequence: int, *, counts: bool = True) -> None:
        """Read at most one batch of tokens, which follow `position` others in `sequence`.

        `counts`: whether they are added to the sums. Raises Stopped, and EdgeError if llama.cpp fails.
        """
        collector = self._collector
        collector.begin(counts)
        try:  # logits of all tokens, because the last layer drops tokens without logits
            self.decode(tokens, position, sequence, [True] * len(tokens))
        except EdgeError:
            if collector.failed is None:
                raise
        if collector.failed is not None:
            raise collector.failed

    def take(self) -> dict[str, Activation]:
        """The sums since the last call. Raises ModelFileError for values that are not finite."""
        taken, self._collector.pending = self._collector.pending, {}
        for name, activation in taken.items():
            if not np.isfinite(activation.sums).all():
                raise ModelFileError(
                    f"{self.path}: the input of {name} is not finite: the model is damaged; convert it again"
                )
        return taken


@contextlib.contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Inside the `with`, Ctrl-C raises nothing; the yielded function says whether it was pressed.

    llama.cpp's callback could lose an exception. The caller raises KeyboardInterrupt itself. Outside the main thread
    this does nothing, because Python raises no KeyboardInterrupt there.
    """
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(before)
    if ours:
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
