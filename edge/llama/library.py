"""llama.cpp's library, started once and kept quiet: of its log one error is remembered, nothing is printed."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp

from edge.errors import ContextError, ModelFileError
from edge.formats.checksum import check
from edge.llama.devices import load_backends
from edge.llama.tryout import try_out
from edge.system.machine import address_space_left
from edge.system.signals import signals_later

# Beside the buffers: stacks and heaps of threads, the grammar's masks, graphs.
_BESIDE = 160_000_000
_GGML_LOG_LEVEL_ERROR = 4  # enum ggml_log_level
_first_error: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level == _GGML_LOG_LEVEL_ERROR and not _first_error:
        _first_error.append(" ".join(text.decode("utf-8", "replace").split()))


@cache
def start() -> None:
    """Start llama.cpp's backends, once; call it before anything else of the library."""
    load_backends()
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def model_params() -> Any:
    """llama.cpp's defaults for loading a model, but for AMX: with that no weights are laid out anew.

    GCC leaves llama.cpp's tile configuration unfilled, and the first product with weights laid out for AMX ends the
    process (llama.cpp's pull request 26954). Other layouts for the processor go with it: slower, but it runs.
    """
    params = llama_cpp.llama_model_default_params()
    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        params.use_extra_bufts = False
    return params


def can_offload() -> bool:
    """Whether this llama.cpp was built with a backend that takes layers from the CPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def load_model(path: Path, params: Any, *, trusted: bool = False) -> Any:
    """llama.cpp's model of a GGUF that `read_model_file` has seen; checked by its checksums, else by a trial,
    unless it is `trusted`.

    Raises ModelFileError.
    """
    if not trusted and not check(path, data=not params.vocab_only):
        try_out(path)
    forget_errors()
    with signals_later():
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load it: {last_error()}")
    return model


def check_room(problem: str, needed: int) -> None:
    """Raises ContextError where `ulimit -v` leaves less than `needed` bytes and what a run takes beside its buffers.

    llama.cpp tells of some allocations that fail and ends the process over others.
    """
    left = address_space_left()
    if left is not None and needed + _BESIDE > left:
        raise ContextError(
            f"{problem}: {(needed + _BESIDE) / 1e6:,.0f} MB are needed and this process may take {left / 1e6:,.0f} MB "
            "more (ulimit -v); raise that limit, or take a shorter prompt"
        )


def forget_errors() -> None:
    """Call it before a call whose failure `last_error` is to explain."""
    _first_error.clear()


def last_error(otherwise: str = "llama.cpp gives no reason") -> str:
    """The first error that llama.cpp logged since it was last asked or told to forget, as one line.

    The first is the cause; those after it only say what failed in turn.
    """
    text = _first_error[0] if _first_error else otherwise
    forget_errors()
    return text
