"""Start llama.cpp once, load models, decode batches. Its log is quiet: only the first error is kept."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp

from edge.errors import ContextError, EdgeError, ModelFileError
from edge.formats.checksum import check
from edge.llama.aborts import report_aborts
from edge.llama.devices import devices, load_backends
from edge.llama.loading import SPLIT_MODES, Spread
from edge.llama.log import pass_on
from edge.llama.names import check_names
from edge.llama.tryout import needs_no_trial, try_out
from edge.system.machine import address_space_left
from edge.system.signals import STOP_FLAG, signals_later, stop_flag_set

# Bytes beside the buffers: stacks and heaps of threads, the grammar's masks, graphs.
_BESIDE = 160_000_000
_DEBUG, _GGML_LOG_LEVEL_ERROR, _CONTINUES = 1, 4, 5  # enum ggml_log_level
_last_level = [_DEBUG]
_ABORTED = 2  # of llama_decode
_first_error: list[str] = []
# llama.cpp asks before each node of a graph. A C function answers without Python: the flag is an empty string or not.
_stopped = llama_cpp.ggml_abort_callback(
    ("strlen", ctypes.CDLL("msvcrt" if sys.platform == "win32" else None))
)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level != _CONTINUES:  # the rest of a line has the level of its beginning
        _last_level[0] = level
    if _last_level[0] != _DEBUG:
        pass_on(text.decode("utf-8", "replace"))
    if level == _GGML_LOG_LEVEL_ERROR and not _first_error:
        _first_error.append(" ".join(text.decode("utf-8", "replace").split()))


@cache
def start() -> None:
    """Start llama.cpp's backends, once. Call it before any other function of the library."""
    load_backends()
    report_aborts()
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def model_params() -> Any:
    """llama.cpp's defaults for loading a model; on a processor with AMX, weights keep their layout.

    GCC does not fill llama.cpp's tile configuration, and the first product with weights in the layout for AMX stops the
    process (llama.cpp's pull request 26954). The option turns off other layouts too: this is slower, but it runs.
    """
    params = llama_cpp.llama_model_default_params()
    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        params.use_extra_bufts = False
    return params


def spread_out(params: Any, spread: Spread) -> None:
    """Set how llama.cpp spreads the layers over several devices. Call it before the model is loaded with `params`."""
    if spread.split_mode is not None:
        params.split_mode = SPLIT_MODES[spread.split_mode]
    if spread.main_gpu is not None:
        params.main_gpu = spread.main_gpu
    if spread.tensor_split:
        most = int(llama_cpp.llama_max_devices())
        if len(spread.tensor_split) > most:
            raise EdgeError(
                f"--tensor-split: has {len(spread.tensor_split)} shares; llama.cpp takes {most} devices"
            )
        params.tensor_split = (ctypes.c_float * most)(
            *spread.tensor_split
        )  # ctypes keeps a reference in `params`


def can_offload() -> bool:
    """Whether llama.cpp finds a device that takes layers from the CPU.

    `llama_supports_gpu_offload` is also true where only the RPC backend is there, without a server.
    """
    return any("GPU" in device.kind for device in devices())


def load_model(path: Path, params: Any, *, trusted: bool = False) -> Any:
    """llama.cpp's model of a GGUF. Call `edge.formats.gguf.read_model_file` for the file first.

    The file's checksums are checked. A file that edge neither wrote for this user nor tried before must name an
    architecture and a tokenizer that llama.cpp knows, and is tried in a child process. Without these checks if it is
    `trusted`. Raises ModelFileError.
    """
    if not trusted:
        known = needs_no_trial(path)
        check(path, data=not known and not params.vocab_only)
        if not known:
            check_names(path, _refusal)
            try_out(path)
    forget_errors()
    with signals_later() as signals:
        params.progress_callback = llama_cpp.llama_progress_callback(lambda done, _data: not signals)
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load it: {last_error()}")
    return model


def _refusal(path: Path) -> str:
    """The error that llama.cpp logs when it loads the vocabulary of a GGUF that edge wrote."""
    start()
    forget_errors()
    params = model_params()
    params.vocab_only = True
    if model := llama_cpp.llama_model_load_from_file(os.fsencode(path), params):
        llama_cpp.llama_model_free(model)
    return last_error("")


def end_early(params: Any) -> None:
    """Let a context with these parameters end a batch early for Ctrl-C and SIGTERM. On a GPU it has no effect."""
    params.abort_callback = _stopped
    params.abort_callback_data = ctypes.cast(STOP_FLAG, ctypes.c_void_p)


def decode(context: Any, batch: Any) -> int:
    """llama.cpp's status of decoding a batch. Raises KeyboardInterrupt if a signal ended it; see `end_early`.

    The tokens of the batch are then not in the cache; those of a hybrid's sequence may be, so drop it.
    """
    with stop_flag_set():
        status = int(llama_cpp.llama_decode(context, batch))
    if status == _ABORTED:  # for a handler that raises nothing
        raise KeyboardInterrupt
    return status


def check_room(problem: str, needed: int) -> None:
    """Raises ContextError if `ulimit -v` leaves too little memory for `needed` bytes and the rest of a run.

    llama.cpp reports some failed allocations; for others it stops the process.
    """
    left = address_space_left()
    if left is not None and needed + _BESIDE > left:
        raise ContextError(
            f"{problem}: {(needed + _BESIDE) / 1e6:,.0f} MB are needed, and this process may take only "
            f"{left / 1e6:,.0f} MB more (ulimit -v); raise that limit, or use a shorter prompt"
        )


def forget_errors() -> None:
    """Forget the first error. Call it before a function whose failure `last_error` must explain."""
    _first_error.clear()


def last_error(otherwise: str = "llama.cpp gives no reason") -> str:
    """The first error that llama.cpp logged since the last `last_error` or `forget_errors`, as one line.

    The first error is the cause; those after it are consequences.
    """
    text = _first_error[0] if _first_error else otherwise
    forget_errors()
    return text
