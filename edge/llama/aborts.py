"""What llama.cpp says when it stops the process, as one line: a device that is gone, or a check that failed."""

import ctypes
from functools import cache

from edge.llama.devices import ggml_library
from edge.llama.log import aborted, reports_aborts

_abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


@cache
def report_aborts() -> None:
    """Let llama.cpp pass its last words on, once, if somebody asked for them with `edge.llama.log.at_abort`.

    Otherwise llama.cpp prints them itself, with a backtrace. It calls back in the thread that failed: for a device
    over RPC that is another one than the thread that waits for a batch, so no exception can leave `llama_decode`.
    """
    try:
        set_callback = ggml_library().ggml_set_abort_callback
    except (ImportError, OSError, RuntimeError, AttributeError):
        return
    if reports_aborts():
        set_callback.argtypes, set_callback.restype = [_abort_callback], ctypes.c_void_p
        set_callback(_last_words)


@_abort_callback  # type: ignore[untyped-decorator]
def _last_words(text: bytes) -> None:
    line = " ".join(text.decode("utf-8", "replace").split()).rpartition("/")[2]
    advice = ""
    if "rpc" in line.lower():
        advice = (
            "; an RPC server ended, lost its connection, or is of another version: start it, then try again"
        )
    aborted(f"llama.cpp stopped: {line}{advice}")
