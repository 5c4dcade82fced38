"""The devices that llama.cpp can compute on, and the installed llama.cpp itself."""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# enum ggml_backend_dev_type in ggml-backend.h
DEVICE_KINDS = ("CPU", "GPU", "integrated GPU", "accelerator", "meta")


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can compute on. Memory is in bytes, 0 if the driver does not report it."""

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int


def load_backends() -> None:
    """Load llama.cpp's backends, if they are separate libraries (GGML_BACKEND_DL); otherwise do nothing.

    They are loaded only from llama.cpp's own folder: its default also searches the current folder. Call this before
    you set llama.cpp's log: it resets the log to the default.
    """
    try:
        import llama_cpp

        lib = _ggml()
        count, load, log = lib.ggml_backend_dev_count, lib.ggml_backend_load_all_from_path, lib.ggml_log_set
    except (ImportError, OSError, RuntimeError, AttributeError):
        return
    count.restype, load.argtypes, load.restype = ctypes.c_size_t, [ctypes.c_char_p], None
    log.argtypes, log.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    if count() == 0:
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        log(ctypes.cast(quiet, ctypes.c_void_p), None)
        load(os.fsencode(Path(llama_cpp.__file__).parent / "lib"))
        log(None, None)


def devices() -> list[Device]:
    """The devices of the installed llama.cpp; an empty list if it cannot be loaded."""
    load_backends()
    try:
        libggml = _ggml()
        count, get = libggml.ggml_backend_dev_count, libggml.ggml_backend_dev_get
        name, description = libggml.ggml_backend_dev_name, libggml.ggml_backend_dev_description
        kind, space = libggml.ggml_backend_dev_type, libggml.ggml_backend_dev_memory
    except (ImportError, OSError, RuntimeError, AttributeError):
        # AttributeError: on Windows only the exports of this one library are visible
        return []
    count.restype, get.argtypes, get.restype = ctypes.c_size_t, [ctypes.c_size_t], ctypes.c_void_p
    for function in (name, description):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    kind.argtypes, kind.restype = [ctypes.c_void_p], ctypes.c_int
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    space.argtypes, space.restype = [ctypes.c_void_p, size_pointer, size_pointer], None
    found = []
    for index in range(count()):
        device = get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        space(device, ctypes.byref(free), ctypes.byref(total))
        kind_name = DEVICE_KINDS[kind(device)] if 0 <= kind(device) < len(DEVICE_KINDS) else "other"
        texts = [(text(device) or b"").decode(errors="replace") for text in (name, description)]
        found.append(Device(texts[0], texts[1], kind_name, free.value, total.value))
    return found


def _ggml() -> ctypes.CDLL:
    """The ggml that libllama uses.

    A wheel has libggml.so and libggml.so.0 as two files. The first name would load a second ggml, without the backends
    that the other one loaded.
    """
    library: ctypes.CDLL
    if sys.platform == "win32":  # only the exports of one library are visible
        from llama_cpp._ggml import libggml

        library = libggml
    else:
        from llama_cpp import llama_cpp as lib

        library = lib._lib
    return library


@dataclass(frozen=True)
class Llama:
    """The installed llama.cpp. If it cannot be used, `error` says why and the rest is empty."""

    error: str | None
    ggml: str
    system_info: str
    cpu_features: list[str]
    gpu_offload: bool
    devices: list[Device]


def inspect_llama(found: Sequence[Device]) -> Llama:
    """Version and features of the installed llama.cpp, or why it cannot be loaded."""
    try:
        from llama_cpp import llama_cpp as lib
        from llama_cpp._ggml import libggml
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Llama(" ".join(str(error).split()) or type(error).__name__, "", "", [], False, [])
    load_backends()
    info = lib.llama_print_system_info().decode(errors="replace").strip(" |")
    # "CPU : SSE3 = 1 | AVX2 = 1 | … | CUDA : ARCHS = 890 | …"
    features = [part.split(":")[-1].partition("=") for part in info.split("|")]
    return Llama(
        error=None,
        ggml=" ".join(_text(libggml, name) for name in ("ggml_version", "ggml_commit")).strip() or "unknown",
        system_info=info,
        cpu_features=[name.strip() for name, _, value in features if value.strip() == "1"],
        gpu_offload=bool(lib.llama_supports_gpu_offload()),
        devices=list(found),
    )


def _text(libggml: ctypes.CDLL, name: str) -> str:
    function = getattr(libggml, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace")
