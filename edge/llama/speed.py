"""How fast this machine multiplies with weights of each type: one token's product, as when an answer is written."""

import ctypes
import time
from collections.abc import Iterable

import llama_cpp
import numpy as np

from edge.errors import EdgeError
from edge.llama import ggml
from edge.llama.activations import InitParams, ggml_function
from edge.llama.devices import load_backends

_COLUMNS, _ROWS = (
    2048,
    8192,
)  # of the matrix: 17 million weights, more than a processor's cache keeps for one product
_RUNS = 5  # the best counts
_CPU = 0  # enum ggml_backend_dev_type


def weights_per_second(numbers: Iterable[int], threads: int) -> dict[int, float]:
    """The weights a second of a product with one column, by ggml's number of the type. On the processor.

    The data is random. llama.cpp can be faster: it stores some types in another order when it loads a model.
    Raises EdgeError if the installed library cannot compute a graph.
    """
    load_backends()
    pointer = ctypes.c_void_p
    backend = ggml_function("ggml_backend_init_by_type", pointer, ctypes.c_int, ctypes.c_char_p)(_CPU, None)
    if not backend:
        raise EdgeError("llama.cpp has no processor to compute with: reinstall llama-cpp-python")
    try:
        ggml_function("ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int)(backend, threads)
        return {number: _timed(number, backend) for number in numbers}
    finally:
        ggml_function("ggml_backend_free", None, pointer)(backend)


def _timed(number: int, backend: int) -> float:
    pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    new = ggml_function("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, count, count)
    put = ggml_function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
    compute = ggml_function("ggml_backend_graph_compute", ctypes.c_int, pointer, pointer)
    memory = InitParams(1 << 20, None, True)
    context = ggml_function("ggml_init", pointer, InitParams)(memory)
    buffer = None
    try:
        weights = new(context, number, _COLUMNS, _ROWS)
        column = new(context, llama_cpp.GGML_TYPE_F32, _COLUMNS, 1)
        product = ggml_function("ggml_mul_mat", pointer, pointer, pointer, pointer)(context, weights, column)
        graph = ggml_function("ggml_new_graph", pointer, pointer)(context)
        ggml_function("ggml_build_forward_expand", None, pointer, pointer)(graph, product)
        buffer = ggml_function("ggml_backend_alloc_ctx_tensors", pointer, pointer, pointer)(context, backend)
        if not buffer:
            raise EdgeError("there is too little memory to time a product: free 100 MB of it")
        random = np.random.default_rng(0)
        data = np.frombuffer(random.bytes(_ROWS * ggml.row_bytes(number, _COLUMNS)), np.uint8)
        put(weights, data.ctypes.data, 0, data.nbytes)
        values = random.standard_normal(_COLUMNS).astype(np.float32)
        put(column, values.ctypes.data, 0, values.nbytes)
        best = np.inf
        for _ in range(1 + _RUNS):
            began = time.perf_counter()
            if compute(backend, graph):
                raise EdgeError(f"llama.cpp cannot multiply with {ggml.type_name(number)} on this machine")
            best = min(best, time.perf_counter() - began)
        return float(_COLUMNS * _ROWS / best)
    finally:
        if buffer:
            ggml_function("ggml_backend_buffer_free", None, pointer)(buffer)
        ggml_function("ggml_free", None, pointer)(context)
