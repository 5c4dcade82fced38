"""What `edge doctor` tells: versions, llama.cpp's devices, the machine, and whether a model would fit.

Data first: `doctor` collects a Report, whose `to_text` and `to_json` show it. It answers also where llama.cpp
cannot be imported, which is when it is needed most.
"""

import ctypes
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge import __version__
from edge.errors import ContextError, ModelFileError
from edge.machine import cpu_name, free_disk, memory, physical_cores
from edge.modelfile import read_metadata, read_model_file
from edge.paths import model_folder

PACKAGES = (
    "llama-cpp-python",
    "gguf",
    "llguidance",
    "tokenizers",
    "transformers",
    "huggingface_hub",
    "numpy",
)
DEFAULT_CONTEXT = 8192
BATCH = 512
"""Prompt tokens that llama.cpp computes at once (n_ubatch): its buffers grow with it."""
SEQUENCES = 2

# enum ggml_backend_dev_type in ggml-backend.h
DEVICE_KINDS = ("CPU", "GPU", "integrated GPU", "accelerator", "meta")


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can compute on; memory in bytes, 0 where the driver does not tell."""

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int


@dataclass(frozen=True)
class Llama:
    """The installed llama.cpp. `error` says why it cannot be used; the rest is then empty."""

    error: str | None
    ggml: str
    system_info: str
    cpu_features: list[str]
    gpu_offload: bool
    devices: list[Device]


@dataclass(frozen=True)
class Fit:
    """What a model needs at a context, in bytes, and whether this machine has it (None: it does not tell).

    - weights: the file's size; it is memory-mapped, but slow unless all of it stays in memory
    - kv_cache: context × attention layers' key and value heads × head widths × 2 bytes (f16). Layers without
      attention (a hybrid's convolutions) have no keys and values
    - state: what a hybrid's convolutions remember instead: sequences × layers × width × (kernel - 1) × 4
      bytes
    - compute: 512 tokens at once × 4 bytes × (the widest of the vocabulary, the experts' activations and,
      without flash attention, (heads + 1) × context; plus 6 × width for the hidden states). llama.cpp reuses
      one buffer for all layers; against what it allocated for SmolLM2-135M this came out 0 to 5 % too high.

    Like the runner, it counts two sequences (the prompt and the answer, which share one KV cache), and flash
    attention only where a GPU computes.
    """

    model: str
    file_type: str
    context: int
    context_max: int
    attention_layers: int
    layers: int
    weights: int
    kv_cache: int
    state: int
    compute: int
    flash_attention: bool
    available: int | None
    fits: bool | None
    largest_context: int | None
    """The longest context that fits into the available memory, in steps of 256 tokens; 0: none does."""

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.state + self.compute


@dataclass(frozen=True)
class Report:
    """All that `edge doctor` knows. Sizes in bytes."""

    edge: str
    python: str
    system: str
    packages: dict[str, str | None]
    llama: Llama
    cpu: str
    physical_cores: int
    memory_total: int | None
    memory_available: int | None
    model_folder: str
    disk_free: int
    fit: Fit | None

    def to_json(self) -> str:
        data = asdict(self)
        if self.fit is not None:
            data["fit"]["total"] = self.fit.total
        return json.dumps(data, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self) -> str:
        lines = [f"edge {self.edge}, Python {self.python}, {self.system}"]
        lines.append(
            "packages    " + ", ".join(f"{name} {got or 'missing'}" for name, got in self.packages.items())
        )
        if self.llama.error is not None:
            lines.append(f"llama.cpp   cannot be used: {self.llama.error}")
            lines.append("            Try: pip install --force-reinstall --no-cache-dir llama-cpp-python")
        else:
            lines.append(f"llama.cpp   ggml {self.llama.ggml}")
            lines += [f"device      {_device_line(device)}" for device in self.llama.devices]
            lines.append(f"CPU uses    {' '.join(self.llama.cpu_features)}")
            lines.append(
                "GPU         layers are offloaded"
                if self.llama.gpu_offload
                else "GPU         none: this llama.cpp was built without a GPU backend (see the README)"
            )
        lines.append(f"CPU         {self.cpu}, {_count(self.physical_cores, 'physical core')}")
        lines.append(f"memory      {_gb(self.memory_available)} available of {_gb(self.memory_total)}")
        lines.append(f"disk        {_gb(self.disk_free)} free in {self.model_folder}")
        if self.fit is not None:
            lines += ["", *_fit_lines(self.fit, self.llama.devices)]
        return "\n".join(lines)


def doctor(model: Path | None = None, context: int | None = None) -> Report:
    """Look at this machine, and at `model` (a GGUF) if one is given.

    `context`: tokens, prompt and answer together; default 8,192 or the model's own maximum if that is
    smaller. Raises ModelFileError if `model` is missing or damaged, ContextError for a context beyond its maximum.
    """
    main = memory()
    folder = model_folder().absolute()
    llama = inspect_llama()
    return Report(
        edge=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        llama=llama,
        cpu=cpu_name(),
        physical_cores=physical_cores(),
        memory_total=main.total,
        memory_available=main.available,
        model_folder=str(folder),
        disk_free=free_disk(folder),
        fit=None
        if model is None
        else fit(model, context=context, available=main.available, flash_attention=llama.gpu_offload),
    )


def inspect_llama() -> Llama:
    """What the installed llama.cpp is and can do, or why it cannot be loaded."""
    try:
        from llama_cpp import llama_cpp as lib
        from llama_cpp._ggml import libggml
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Llama(" ".join(str(error).split()) or type(error).__name__, "", "", [], False, [])
    info = lib.llama_print_system_info().decode(errors="replace").strip(" |")
    # "CPU : SSE3 = 1 | AVX2 = 1 | … | CUDA : ARCHS = 890 | …"
    features = [part.split(":")[-1].partition("=") for part in info.split("|")]
    return Llama(
        error=None,
        ggml=" ".join(_text(libggml, name) for name in ("ggml_version", "ggml_commit")).strip() or "unknown",
        system_info=info,
        cpu_features=[name.strip() for name, _, value in features if value.strip() == "1"],
        gpu_offload=bool(lib.llama_supports_gpu_offload()),
        devices=_devices(libggml),
    )


def fit(
    model: Path, *, context: int | None = None, available: int | None = None, flash_attention: bool = False
) -> Fit:
    """Whether the GGUF `model` fits into `available` bytes.

    Raises ModelFileError if it cannot be read, ContextError for a context that it does not have.
    """
    file = read_model_file(model)
    if context is not None and context > file.context_length > 0:
        raise ContextError(f"{model}: has a context of at most {file.context_length} tokens, not {context}")
    metadata = read_metadata(model)
    chosen = context or min(DEFAULT_CONTEXT, file.context_length)

    def needed(tokens: int) -> int:
        return int(file.n_bytes + sum(buffers(metadata, tokens, file.n_vocab, flash_attention)))

    kv_cache, state, compute = buffers(metadata, chosen, file.n_vocab, flash_attention)
    heads_kv = _per_layer(metadata, "attention.head_count_kv")
    largest = None
    if available is not None:
        # Memory grows with the context, so halve the range between what fits (low) and what does not (high).
        low, high = 0, file.context_length // 256 + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if needed(middle * 256) <= available else (low, middle)
        largest = low * 256
    return Fit(
        model=str(model),
        file_type=file.file_type,
        context=chosen,
        context_max=file.context_length,
        attention_layers=sum(count > 0 for count in heads_kv),
        layers=len(heads_kv),
        weights=file.n_bytes,
        kv_cache=kv_cache,
        state=state,
        compute=compute,
        flash_attention=flash_attention,
        available=available,
        fits=None if available is None else needed(chosen) <= available,
        largest_context=largest,
    )


def buffers(
    metadata: Mapping[str, Any], context: int, n_vocab: int, flash_attention: bool
) -> tuple[int, int, int]:
    """Bytes of KV cache, state and compute buffers; the formulas are in Fit.

    `metadata` holds a GGUF's keys, e.g. `llama.block_count`; `attention.head_count_kv` is one number or one a
    layer.
    """
    width = int(_get(metadata, "embedding_length"))
    heads = max(_per_layer(metadata, "attention.head_count"))
    heads_kv = _per_layer(metadata, "attention.head_count_kv")
    head_width = width // max(heads, 1)
    key, value = (int(_get(metadata, f"attention.{name}_length", head_width)) for name in ("key", "value"))
    kv_cache = context * sum(heads_kv) * (key + value) * 2
    kernel = int(_get(metadata, "shortconv.l_cache", 0))
    state = sum(count == 0 for count in heads_kv) * width * max(kernel - 1, 0) * 4 * SEQUENCES
    experts_width = (
        int(_get(metadata, "expert_used_count", 0)) * 3 * int(_get(metadata, "expert_feed_forward_length", 0))
    )
    batch = min(BATCH, context)
    scores = 0 if flash_attention else (heads + 1) * context
    compute = batch * 4 * (max(n_vocab, experts_width, scores) + 6 * width)
    return kv_cache, state, compute


def _get(metadata: Mapping[str, Any], name: str, default: int | None = None) -> Any:
    value = metadata.get(f"{metadata['general.architecture']}.{name}", default)
    if value is None:
        raise ModelFileError(f"the GGUF's metadata lack {name}, without which its memory cannot be estimated")
    return value


def _per_layer(metadata: Mapping[str, Any], name: str) -> list[int]:
    layers = int(_get(metadata, "block_count"))
    value = _get(
        metadata, name, int(_get(metadata, "attention.head_count", 0)) if name.endswith("_kv") else None
    )
    return [int(value)] * layers if isinstance(value, int) else [int(count) for count in value]


def _devices(libggml: ctypes.CDLL) -> list[Device]:
    try:
        count, get = libggml.ggml_backend_dev_count, libggml.ggml_backend_dev_get
        name, description = libggml.ggml_backend_dev_name, libggml.ggml_backend_dev_description
        kind, space = libggml.ggml_backend_dev_type, libggml.ggml_backend_dev_memory
    except AttributeError:  # Windows finds only what this one library exports itself
        return []
    count.restype, get.argtypes, get.restype = ctypes.c_size_t, [ctypes.c_size_t], ctypes.c_void_p
    for function in (name, description):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    kind.argtypes, kind.restype = [ctypes.c_void_p], ctypes.c_int
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    space.argtypes, space.restype = [ctypes.c_void_p, size_pointer, size_pointer], None
    devices = []
    for index in range(count()):
        device = get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        space(device, ctypes.byref(free), ctypes.byref(total))
        kind_name = DEVICE_KINDS[kind(device)] if 0 <= kind(device) < len(DEVICE_KINDS) else "other"
        texts = [(text(device) or b"").decode(errors="replace") for text in (name, description)]
        devices.append(Device(texts[0], texts[1], kind_name, free.value, total.value))
    return devices


def _text(libggml: ctypes.CDLL, name: str) -> str:
    function = getattr(libggml, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_line(device: Device) -> str:
    own = device.kind != "CPU" and device.memory_total  # a CPU's is the machine's, told below
    space = f", {_gb(device.memory_free)} free of {_gb(device.memory_total)}" if own else ""
    return f"{device.name}: {device.description} ({device.kind}){space}"


def _fit_lines(fit: Fit, devices: list[Device]) -> list[str]:
    layers = _count(fit.layers, "layer")
    with_attention = (
        layers if fit.attention_layers == fit.layers else f"{fit.attention_layers} of {layers} with attention"
    )
    lines = [
        f"model       {fit.model} ({fit.file_type}), context {fit.context:,} of at most {fit.context_max:,}",
        f"  weights   {_gb(fit.weights)}",
        f"  KV cache  {_gb(fit.kv_cache)} ({with_attention})",
        *([f"  state     {_gb(fit.state)}"] if fit.state else []),
        f"  compute   {_gb(fit.compute)} ({'with' if fit.flash_attention else 'without'} flash attention)",
        f"  total     {_gb(fit.total)}",
    ]
    if fit.fits is None:
        lines.append("  fits?     unknown: this system does not tell its free memory")
    elif not fit.fits:
        lines.append(f"  fits?     NO: {_gb(fit.available)} available. Take a smaller --quant or --ctx")
    else:
        lines.append(f"  fits?     yes: {_gb(fit.available)} available")
    if fit.largest_context is not None:
        lines.append(f"  largest context that fits: {fit.largest_context:,}")
    for device in devices:
        if device.kind == "GPU" and device.memory_total:
            verdict = (
                "yes"
                if fit.total <= device.memory_free
                else "not all of it: offload fewer layers with --gpu-layers"
            )
            lines.append(f"  on {device.name}: {verdict}; {_gb(device.memory_free)} free")
    return lines


def _gb(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
