"""Overwrites weights of a loaded model in memory, to measure what a quantized type costs without a file of it.

llama.h has no function for it. llama.cpp calls back at each node of its graph (llama_context_params.cb_eval), and a
node names the weights that it uses. `ggml_backend_tensor_set` then writes to them, on the CPU or a GPU. The model must
own its memory: a mapped file is read-only. Types stay those of the file.
"""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError
from edge.llama import library
from edge.llama.activations import Tensor, ggml_function, layout

_WEIGHTS = 1  # enum ggml_backend_buffer_usage


class Weights:
    """The weights that the graph of a model uses, by the name of the tensor.

    `model`: llama.cpp's, loaded without mmap. Raises EdgeError if the installed library has another struct ggml_tensor,
    or cannot compute the graph.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self.path = path
        self._n_bytes = layout().n_bytes
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._set = ggml_function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
        self._places: dict[str, set[int]] = {}
        self._find(model)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def write(self, name: str, data: NDArray[np.uint8], offset: int = 0) -> None:
        """Overwrite bytes of a weight. `data`: contiguous, in the type of the file.

        Raises EdgeError for a name that the graph does not use, and for bytes behind its end.
        """
        for address in self._places.get(name) or self._unknown(name):
            if offset < 0 or offset + data.nbytes > self._n_bytes(address):
                raise EdgeError(f"{self.path}: {name} has {self._n_bytes(address):,} bytes in memory")
            self._set(address, data.ctypes.data, offset, data.nbytes)

    def _unknown(self, name: str) -> set[int]:
        raise EdgeError(f"{self.path}: llama.cpp does not use {name} when it answers")

    def _find(self, model: Any) -> None:
        """Read one token, and note the weights of each node."""
        usage = ggml_function("ggml_backend_buffer_get_usage", ctypes.c_int, ctypes.c_void_p)

        def note(address: int, ask: bool, _data: object) -> bool:
            for place in Tensor.from_address(address).src if ask else ():
                if place:
                    source = Tensor.from_address(place)
                    if source.buffer and not source.view_src and usage(source.buffer) == _WEIGHTS:
                        self._places.setdefault(source.name.decode("utf-8", "replace"), set()).add(place)
            return not ask

        callback = llama_cpp.ggml_backend_sched_eval_callback(note)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 256
        params.n_batch = params.n_ubatch = params.n_seq_max = 1
        params.cb_eval = callback
        library.forget_errors()
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            raise EdgeError(f"{self.path}: llama.cpp cannot make a cache: {library.last_error()}")
        batch = llama_cpp.llama_batch_init(1, 0, 1)
        try:
            batch.n_tokens = batch.n_seq_id[0] = batch.logits[0] = 1
            batch.token[0] = batch.pos[0] = batch.seq_id[0][0] = 0
            if library.decode(context, batch):
                raise EdgeError(f"{self.path}: llama.cpp cannot read a token: {library.last_error()}")
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)
