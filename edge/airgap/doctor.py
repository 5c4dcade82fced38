"""Report versions, llama.cpp's devices, the machine, and whether a model fits: `edge doctor`.

This also works if llama.cpp cannot be imported.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge.errors import ContextError
from edge.formats.gguf import read_model_file
from edge.formats.models import default_choice
from edge.llama.devices import Device, Llama, devices, inspect_llama
from edge.llama.loading import Loading, with_own_adapter
from edge.llama.memory import CELLS_STEP, OWN_BYTES, buffers, read_shape, with_adapters
from edge.llama.placement import DEFAULT_CONTEXT, Placement, place
from edge.llama.tuned import described, this_machine, tuned_for
from edge.system.machine import Memory, cpu_name, free_disk, memory, physical_cores
from edge.system.store import store_folder
from edge.system.text import counted, size
from edge.system.tuned import read_tuned
from edge.version import __version__

PACKAGES = (
    "llama-cpp-python",
    "gguf",
    "llguidance",
    "tokenizers",
    "transformers",
    "huggingface_hub",
    "numpy",
)


@dataclass(frozen=True)
class Fit:
    """What a model needs for a context length, in bytes (edge.llama.memory.Buffers), and how edge would run it here.

    `weights` is the size of the file, and of the default model's adapter: edge maps it into memory, and it is slow
    unless all of it stays there. If the model does not fit, `placement` is None and `advice` says what fits; the other
    figures are then those of one answer at a time with flash attention. `fits` is None if the system does not report
    its free memory.
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
    output: int
    flash_attention: bool
    available: int | None
    fits: bool | None
    largest_context: int | None
    """The longest context that fits into the available memory, in steps of 256 tokens; 0 if none fits."""
    placement: Placement | None
    advice: str | None
    process: int = OWN_BYTES
    """What Python, edge and its libraries take beside the model, about the same for each."""

    @property
    def total(self) -> int:
        """All bytes of the model together."""
        return self.weights + self.kv_cache + self.state + self.compute + self.output


@dataclass(frozen=True)
class Report:
    """The report of `edge doctor`. Sizes are in bytes; a value that the system does not report is None."""

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
    default_model: str | None
    """The model of a command that names none; None if there is no GGUF yet."""
    default_why: str
    tuned: str
    """What edge tune measured here: for the model if there is one, else for how many models."""
    fit: Fit | None

    def to_json(self) -> str:
        """The report as a JSON object, indented."""
        data = asdict(self)
        if self.fit is not None:
            data["fit"]["total"] = self.fit.total
        return json.dumps(data, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self) -> str:
        """The report as text of several lines."""
        lines = [f"edge {self.edge}, Python {self.python}, {self.system}"]
        lines.append(
            "packages    "
            + ", ".join(f"{name} {number or 'missing'}" for name, number in self.packages.items())
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
                else "GPU         none: llama.cpp finds no GPU, or has no GPU backend (built with CMAKE_ARGS)"
            )
        lines.append(f"CPU         {self.cpu}, {counted(self.physical_cores, 'physical core')}")
        lines.append(f"memory      {_gb(self.memory_available)} available of {_gb(self.memory_total)}")
        lines.append(f"disk        {_gb(self.disk_free)} free in {self.model_folder}")
        lines.append(f"default     {self.default_model or 'no model yet'} ({self.default_why})")
        lines.append(f"tuned       {self.tuned}")
        if self.fit is not None:
            lines += ["", *_fit_lines(self.fit)]
        return "\n".join(lines)


def doctor(model: Path | None = None, context: int | None = None, *, rpc: Sequence[str] = ()) -> Report:
    """Examine this machine, and `model` (a GGUF) if there is one.

    `context` is in tokens, prompt and answer together; the default is 8,192, or the model's maximum if that is smaller.
    `rpc`: RPC servers whose devices count too. Raises ModelFileError if `model` is missing or damaged, ContextError for
    a context longer than its maximum, EdgeError for an RPC server that cannot be used.
    """
    if rpc:
        from edge.llama.remote import connect  # it imports llama.cpp

        connect(rpc)
    main_memory = memory()
    machine_devices = devices()
    folder, choice = store_folder().absolute(), default_choice()
    llama = inspect_llama(machine_devices)
    return Report(
        edge=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        llama=llama,
        cpu=cpu_name(),
        physical_cores=physical_cores(),
        memory_total=main_memory.total,
        memory_available=main_memory.available,
        model_folder=str(folder),
        disk_free=free_disk(folder),
        default_model=(choice.named or None) if choice.path is None else str(choice.path),
        default_why=choice.why,
        tuned=_tuned(model, machine_devices),
        fit=None if model is None else fit(model, main_memory, machine_devices, context=context),
    )


def _tuned(model: Path | None, found: Sequence[Device]) -> str:
    """What edge tune measured on this machine, in words. Raises ConfigError for a damaged file."""
    if model is None:
        machine = this_machine(found) if read_tuned() else None
        return counted(sum(one["machine"] == machine for one in read_tuned()), "model") + " (edge tune)"
    entry = tuned_for(model, found)
    if entry is None:
        return "nothing measured for this model on this machine (edge tune)"
    suggested = f"; suggested: {' '.join(entry['suggested'])}" if entry["suggested"] else ""
    return f"{described(entry['values'])}{suggested} (edge tune, {entry['timestamp'][:10]})"


def fit(
    model: Path, memory: Memory, machine_devices: Sequence[Device] = (), *, context: int | None = None
) -> Fit:
    """Whether and how the GGUF `model` fits into this memory and these devices (`machine_devices`).

    `context` as in `doctor`. Raises ModelFileError if edge cannot read the file, ContextError for a context longer than
    its maximum.
    """
    file = read_model_file(model)
    if context is not None and context > file.context_length > 0:
        raise ContextError(
            f"{model}: has a context length of {file.context_length} tokens, less than {context}"
        )
    loading = with_own_adapter(model, Loading())
    base = read_shape(file)  # `place` adds the adapters
    shape = with_adapters(base, [adapter.path for adapter in loading.adapters])
    chosen = context or min(DEFAULT_CONTEXT, file.context_length or DEFAULT_CONTEXT)

    def plan(tokens: int) -> Placement:
        return place(
            base, None, 0, memory=memory, devices=machine_devices, loading=replace(loading, context=tokens)
        )

    placement, advice = None, None
    try:
        placement = plan(chosen)
    except ContextError as error:
        advice = str(error).removeprefix(f"{model}: ")
    need = buffers(
        shape,
        chosen,
        sequences=placement.sequences if placement else 2,
        flash_attention=placement is None or placement.flash_attention,
    )
    known = memory.available is not None
    return Fit(
        model=str(model),
        file_type=file.file_type,
        context=chosen,
        context_max=file.context_length,
        attention_layers=sum(values > 0 for values in shape.kv_values),
        layers=len(shape.kv_values),
        weights=shape.weights,
        kv_cache=need.kv_cache,
        state=need.state,
        compute=need.compute,
        output=need.output,
        flash_attention=placement is None or placement.flash_attention,
        available=memory.available,
        fits=placement is not None if known else None,
        largest_context=_largest(plan, file.context_length, chosen) if known else None,
        placement=placement,
        advice=advice,
    )


def _largest(plan: Callable[[int], Placement], maximum: int, chosen: int) -> int:
    """The longest context that fits, in steps of CELLS_STEP tokens. `maximum` is the model's, 0 if unknown."""
    # Memory grows with the context: halve the range between what fits (low) and what does not (high).
    low, high = 0, max(maximum, chosen) // CELLS_STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan(min(middle * CELLS_STEP, maximum or middle * CELLS_STEP))
            low = middle
        except ContextError:
            high = middle
    return low * CELLS_STEP


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_line(device: Device) -> str:
    own = (
        device.kind != "CPU" and device.memory_total
    )  # the memory of a CPU is main memory, which has its own line
    space = f", {_gb(device.memory_free)} free of {_gb(device.memory_total)}" if own else ""
    return f"{device.name}: {device.description} ({device.kind}){space}"


def _fit_lines(fit: Fit) -> list[str]:
    layers = counted(fit.layers, "layer")
    with_attention = (
        layers if fit.attention_layers == fit.layers else f"{fit.attention_layers} of {layers} with attention"
    )
    lines = [
        f"model       {fit.model} ({fit.file_type}), context {fit.context:,} of at most {fit.context_max:,} tokens",
        f"  weights   {_gb(fit.weights)}",
        f"  KV cache  {_gb(fit.kv_cache)} ({with_attention})",
        *([f"  state     {_gb(fit.state)}"] if fit.state else []),
        f"  compute   {_gb(fit.compute)} ({'with' if fit.flash_attention else 'without'} flash attention)",
        f"  output    {_gb(fit.output)}",
        f"  total     {_gb(fit.total)}, and about {_gb(fit.process)} for Python and edge",
    ]
    if fit.advice is not None:
        lines.append(f"  fits?     NO: {fit.advice}")
    elif fit.fits is None:
        lines.append("  fits?     unknown: this system does not report its free memory")
    else:
        lines.append(f"  fits?     yes: {_gb(fit.available)} available")
    if fit.largest_context is not None:
        lines.append(f"  largest context that fits: {fit.largest_context:,} tokens")
    if fit.placement is not None:
        placed = str(fit.placement).removeprefix("placement: ")
        lines.append(f"  for edge eval, which writes several answers at the same time: {placed}")
    return lines


def _gb(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else size(n_bytes)
