"""The devices that llama.cpp can compute on, and the installed llama.cpp itself."""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import EdgeError

# `edge doctor --offline` imports this module before it tries numpy, which loading needs.
if TYPE_CHECKING:
    from edge.llama.loading import Spread

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


@cache
def load_backends() -> None:
    """Load llama.cpp's backends, once, if they are separate libraries (GGML_BACKEND_DL).

    They are loaded only from llama.cpp's own folder: its default also searches the current folder. As in llama.cpp's
    own programs, GGML_BACKEND_PATH names one more such library. Call this before you set llama.cpp's log: it resets
    the log to the default.
    """
    try:
        import llama_cpp

        lib = ggml_library()
        count, load, log = lib.ggml_backend_dev_count, lib.ggml_backend_load_all_from_path, lib.ggml_log_set
        load_one = lib.ggml_backend_load
    except (ImportError, OSError, RuntimeError, AttributeError):
        return
    count.restype, load.argtypes, load.restype = ctypes.c_size_t, [ctypes.c_char_p], None
    log.argtypes, log.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    load_one.argtypes, load_one.restype = [ctypes.c_char_p], ctypes.c_void_p
    own = os.environ.get("GGML_BACKEND_PATH")
    if count() == 0 or own:
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        log(ctypes.cast(quiet, ctypes.c_void_p), None)
        if count() == 0:  # this one reads GGML_BACKEND_PATH too
            load(os.fsencode(Path(llama_cpp.__file__).parent / "lib"))
        elif own:
            load_one(os.fsencode(own))
        log(None, None)


def devices() -> list[Device]:
    """The devices of the installed llama.cpp; an empty list if it cannot be loaded."""
    load_backends()
    try:
        lib = ggml_library()
        count, get = lib.ggml_backend_dev_count, lib.ggml_backend_dev_get
        name, description = lib.ggml_backend_dev_name, lib.ggml_backend_dev_description
        kind, space = lib.ggml_backend_dev_type, lib.ggml_backend_dev_memory
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


def offload_devices(found: Sequence[Device], spread: "Spread | None" = None) -> list[Device]:
    """Those of these devices to which llama.cpp gives layers, in its order: RPC servers first.

    Integrated GPUs count only if there are no others. With split mode none, one device gets all layers.
    """
    gpus = [d for d in found if d.kind == "GPU"] or [d for d in found if d.kind == "integrated GPU"]
    gpus.sort(key=lambda device: not device.name.startswith("RPC"))
    if spread is not None and spread.split_mode == "none" and gpus:
        main = spread.main_gpu or 0
        if main >= len(gpus):
            raise EdgeError(f"--main-gpu is {main}; llama.cpp finds {len(gpus)} of them", option="--main-gpu")
        return [gpus[main]]
    return gpus


def usable_memory(gpus: Sequence[Device], spread: "Spread | None" = None) -> int | None:
    """Free bytes on these devices together, as far as the shares of --tensor-split can use them; None if unknown."""
    if not all(gpu.memory_total for gpu in gpus):
        return None
    if spread is None or not spread.tensor_split or len(gpus) < 2:
        return sum(gpu.memory_free for gpu in gpus)
    shares = [*spread.tensor_split, *(0.0 for _ in gpus)][: len(gpus)]
    fullest = (gpu.memory_free / share for gpu, share in zip(gpus, shares, strict=True) if share)
    return int(min(fullest, default=0) * sum(shares))


def ggml_library() -> ctypes.CDLL:
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
        gpu_offload=bool(offload_devices(found)),
        devices=list(found),
    )


def _text(libggml: ctypes.CDLL, name: str) -> str:
    function = getattr(libggml, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace")
