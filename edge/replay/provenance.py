"""Record where a result comes from: its `provenance`. Two results can then be checked for the same model and rows.

Model data are read from the file or folder of the model, not from the engine. Every result has every field; a field
is None where it is unknown.
"""

import math
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from edge.formats.adapter import read_adapter
from edge.formats.checkpoint import open_checkpoint
from edge.formats.facts import calibration, origin, recipe, type_shares
from edge.formats.gguf import model_sha256, read_metadata, read_model_file, read_tensors, sha256
from edge.llama.devices import inspect_llama
from edge.llama.loading import Adapter
from edge.replay.stored_result import AdapterFacts, Provenance, TensorShare
from edge.system.hashes import package_version, text_sha256
from edge.system.machine import cpu_name
from edge.version import __version__

_UNKNOWN: Provenance = {
    "edge": None,
    "backend": None,
    "backend_version": None,
    "llama_cpp_python": None,
    "llama_cpp": None,
    "model_sha256": None,
    "adapters": None,
    "model_bytes": None,
    "n_params": None,
    "bits_per_weight": None,
    "tensor_types": None,
    "quantization": None,
    "source": None,
    "source_revision": None,
    "imatrix": None,
    "recipe": None,
    "grammar_sha256": None,
    "prompt_template_sha256": None,
    "rows_sha256": None,
    "rows_file_sha256": None,
    "platform": None,
    "cpu": None,
    "threads": None,
    "shards": None,
}
_HUB = "https://huggingface.co/"
_SMALL_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja")


def provenance(known: Provenance) -> Provenance:
    """The `provenance` of a result made on this machine: all fields, with `known` filled in.

    `edge`, `platform` and `cpu` describe this machine unless `known` has them.
    """
    here: Provenance = {"edge": __version__, "platform": platform.platform(), "cpu": cpu_name()}
    return {**_UNKNOWN, **here, **known}


def llama_cpp_provenance() -> Provenance:
    """The llama.cpp that edge runs: `llama_cpp_python`, and `llama_cpp` (version, commit, build options)."""
    llama = inspect_llama(())
    described = f"ggml {llama.ggml}; {llama.system_info}" if llama.error is None else None
    return {"llama_cpp_python": package_version("llama-cpp-python"), "llama_cpp": described}


def gguf_provenance(path: Path) -> Provenance:
    """The provenance that a GGUF contains: hash, sizes, types, and its source. Raises ModelFileError."""
    model, metadata = read_model_file(path), read_metadata(path)
    stated = origin(metadata)
    return {
        "model_sha256": model_sha256(path),
        "model_bytes": model.n_bytes,
        "n_params": model.n_params,
        "bits_per_weight": round(model.bits_per_weight, 4),
        "tensor_types": {
            share.type: {"tensors": share.tensors, "bytes": share.n_bytes}
            for share in type_shares(read_tensors(path))
        },
        "quantization": model.file_type,
        "recipe": recipe(metadata) or None,
        "source": stated.get("hub id") or _hub_id(stated.get("repository") or stated.get("source")),
        "source_revision": stated.get("revision"),
        "imatrix": calibration(metadata) or None,
        "prompt_template_sha256": text_sha256(model.chat_template),
    }


def adapter_provenance(adapters: Sequence[Adapter]) -> list[AdapterFacts] | None:
    """The LoRA adapters of a run; None without one. Raises ModelFileError."""
    found: list[AdapterFacts] = []
    for adapter in adapters:
        base = read_adapter(adapter.path).base
        found.append(
            {
                "name": adapter.path.name,
                "sha256": sha256(adapter.path),
                "scale": adapter.scale,
                "base": base[0] if base else None,
            }
        )
    return found or None


def adapter_identity(adapters: Sequence[Adapter]) -> dict[str, dict[str, object]] | None:
    """What another run with the same answers has in common: the files and scales, in any order; None without one."""
    known = sorted((sha256(adapter.path), adapter.scale) for adapter in adapters)
    return {str(i): {"sha256": digest, "scale": scale} for i, (digest, scale) in enumerate(known, 1)} or None


def folder_provenance(folder: Path) -> Provenance:
    """The provenance that a Hugging Face folder contains.

    `model_sha256` is the hash of a text with one line `NAME SHA256` for each weight, configuration and template file,
    sorted by name. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(folder)
    weights = {tensor.file for tensor in checkpoint.tensors.values()}
    small = {path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.is_file()}
    names = sorted((path.relative_to(folder).as_posix(), path) for path in weights | small)
    lines = "".join(f"{name} {sha256(path)}\n" for name, path in names)
    types: dict[str, TensorShare] = {}
    for tensor in checkpoint.tensors.values():
        share = types.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
        share["tensors"] += 1
        share["bytes"] += tensor.n_bytes
    n_params = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    n_bytes = sum(share["bytes"] for share in types.values())
    return {
        "model_sha256": text_sha256(lines),
        "model_bytes": sum(path.stat().st_size for path in weights),
        "n_params": n_params,
        "bits_per_weight": round(8 * n_bytes / n_params, 4) if n_params else None,
        "tensor_types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        "source": checkpoint.hub_id or _cached_hub_id(folder) or str(folder),
        "source_revision": checkpoint.revision,
        "prompt_template_sha256": text_sha256(checkpoint.chat_template),
    }


def _hub_id(url: str | None) -> str | None:
    return None if url is None else url.removeprefix(_HUB).strip("/")


def _cached_hub_id(folder: Path) -> str | None:
    """The hub id of a folder in the Hugging Face cache: models--ORGANISATION--NAME/snapshots/COMMIT."""
    full = folder.resolve()
    names = re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", full.parent.parent.name)
    return f"{names[1]}/{names[2]}" if names and full.parent.name == "snapshots" else None
