"""llama.cpp's library, started once and kept quiet: its log goes to a short memory instead of the terminal."""

import ctypes
from collections import deque
from functools import cache

import llama_cpp

_GGML_LOG_LEVEL_ERROR = 4  # enum ggml_log_level
_errors: deque[str] = deque(maxlen=20)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level == _GGML_LOG_LEVEL_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


@cache
def start() -> None:
    """Start llama.cpp's backends, once; call it before anything else of the library."""
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def last_error(otherwise: str = "llama.cpp gives no reason") -> str:
    """What llama.cpp logged as its newest error, as one line, and forget it."""
    text = " ".join(_errors[-1].split()) if _errors else otherwise
    _errors.clear()
    return text
