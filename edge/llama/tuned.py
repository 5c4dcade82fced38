"""The options that `edge tune` found for a model on this machine, as options of loading it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from edge.formats.gguf import model_sha256, part_files
from edge.llama.devices import Device, offload_devices
from edge.llama.loading import Loading
from edge.system.machine import cpu_name, physical_cores
from edge.system.text import counted
from edge.system.tuned import Machine, TunedModel, TunedValues, read_tuned


def this_machine(found: Sequence[Device]) -> Machine:
    """What the measured times depend on. `found`: the devices of llama.cpp."""
    return {
        "cpu": cpu_name(),
        "cores": physical_cores(),
        "devices": [f"{one.name}: {one.description}" for one in offload_devices(found)],
        "llama_cpp": version("llama-cpp-python"),
    }


def model_bytes(path: Path) -> int:
    """The size of a model with all its parts. Raises ModelFileError."""
    return sum(file.stat().st_size for file in part_files(path))


def tuned_for(path: Path, found: Sequence[Device]) -> TunedModel | None:
    """What was measured for this model on this machine; None if nothing was.

    Raises ConfigError for a damaged file, ModelFileError for a model that cannot be read.
    """
    entries = read_tuned()
    size = model_bytes(path) if entries else 0
    entries = [one for one in entries if one["model_bytes"] == size]
    if not entries:
        return None
    machine, digest = this_machine(found), model_sha256(path)
    same = [one for one in entries if one["machine"] == machine and one["model_sha256"] == digest]
    return same[-1] if same else None


def with_tuned(
    path: Path, loading: Loading, *, measures: bool, say: Callable[[str], None] = lambda text: None
) -> Loading:
    """The options with what was measured for what they leave open.

    `measures`: of a command whose figures must not depend on a user's file. It takes only the threads and the layers
    on the GPUs, which decide where a product is computed; batch and answers at the same time change its rounding.
    `say` receives a line about what was taken. Raises as `tuned_for` and `edge.llama.remote.connect`.
    """
    if not read_tuned():
        return loading
    from edge.llama.remote import devices_for  # it imports llama.cpp, and edge doctor must work without

    entry = tuned_for(path, devices_for(loading))
    if entry is None:
        return loading
    values = entry["values"]
    names = ("threads", "gpu_layers") if measures else ("threads", "gpu_layers", "batch", "parallel")
    taken = {
        name: values[name]  # type: ignore[literal-required]
        for name in names
        if getattr(loading, name) is None and values[name] is not None  # type: ignore[literal-required]
    }
    if taken:
        words = described({**_NOTHING, **taken})  # type: ignore[typeddict-item]
        say(f"tuned: {words} (edge tune, {entry['timestamp'][:10]})")
    return replace(loading, **taken)


_NOTHING: TunedValues = {"threads": None, "gpu_layers": None, "batch": None, "parallel": None}


def described(values: TunedValues) -> str:
    """The values in words; what stays as edge chooses it is left out."""
    threads, layers, batch, parallel = (
        values["threads"],
        values["gpu_layers"],
        values["batch"],
        values["parallel"],
    )
    words = [
        "" if threads is None else counted(threads, "thread"),
        "" if layers is None else "all layers on the GPU" if layers < 0 else f"{layers} layers on the GPU",
        "" if batch is None else f"batch {batch}",
        "" if parallel is None else f"{counted(parallel, 'answer')} at a time",
    ]
    return ", ".join(word for word in words if word) or "nothing is faster than edge's own choice"
