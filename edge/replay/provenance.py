"""Where a result comes from: its `provenance`, by which two results can be told to be of the same thing or not.

Data about the model are read from its file or folder, not asked of the engine. Each field is there in every result;
None where it is unknown.
"""

import math
import platform
import re
from pathlib import Path
from typing import Any

from edge.formats.checkpoint import open_checkpoint
from edge.formats.facts import calibration, origin, type_shares
from edge.formats.gguf import read_metadata, read_model_file, read_tensors, sha256
from edge.llama.devices import inspect_llama
from edge.system.hashes import package_version, text_sha256
from edge.system.machine import cpu_name
from edge.version import __version__

_FIELDS = (
    "edge",
    "backend",
    "backend_version",
    "llama_cpp_python",
    "llama_cpp",
    "model_sha256",
    "model_bytes",
    "n_params",
    "bits_per_weight",
    "tensor_types",
    "quantization",
    "source",
    "source_revision",
    "imatrix",
    "grammar_sha256",
    "prompt_template_sha256",
    "rows_sha256",
    "rows_file_sha256",
    "platform",
    "cpu",
    "threads",
)
_HUB = "https://huggingface.co/"
_SMALL_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja")


def provenance(**known: Any) -> dict[str, Any]:
    """The `provenance` of a result that is made on this machine: all fields, those in `known` filled in.

    `edge`, `platform` and `cpu` are this machine's unless they are given.
    """
    here = {"edge": __version__, "platform": platform.platform(), "cpu": cpu_name()}
    filled = {**here, **known}
    unknown = filled.keys() - set(_FIELDS)
    assert not unknown, unknown
    return {name: filled.get(name) for name in _FIELDS}


def llama_cpp_provenance() -> dict[str, Any]:
    """The llama.cpp that edge itself runs: `llama_cpp_python`, `llama_cpp` (version, commit, what it was built for)."""
    llama = inspect_llama(())
    told = f"ggml {llama.ggml}; {llama.system_info}" if llama.error is None else None
    return {"llama_cpp_python": package_version("llama-cpp-python"), "llama_cpp": told}


def gguf_provenance(path: Path) -> dict[str, Any]:
    """What a GGUF tells of itself: hash, sizes, types, where it was converted from. Raises ModelFileError."""
    model, metadata = read_model_file(path), read_metadata(path)
    told = origin(metadata)
    return {
        "model_sha256": sha256(path),
        "model_bytes": model.n_bytes,
        "n_params": model.n_params,
        "bits_per_weight": round(model.bits_per_weight, 4),
        "tensor_types": {
            share.type: {"tensors": share.tensors, "bytes": share.n_bytes}
            for share in type_shares(read_tensors(path))
        },
        "quantization": model.file_type,
        "source": told.get("hub id") or _hub_id(told.get("repository") or told.get("source")),
        "source_revision": told.get("revision"),
        "imatrix": calibration(metadata) or None,
        "prompt_template_sha256": text_sha256(model.chat_template),
    }


def folder_provenance(folder: Path) -> dict[str, Any]:
    """What a Hugging Face folder tells of itself. Its `model_sha256` is that of one line `NAME SHA256` for each of its
    weight, configuration and template files, by name.

    Raises CheckpointError.
    """
    checkpoint = open_checkpoint(folder)
    weights = {tensor.file for tensor in checkpoint.tensors.values()}
    small = {path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.is_file()}
    names = sorted((path.relative_to(folder).as_posix(), path) for path in weights | small)
    lines = "".join(f"{name} {sha256(path)}\n" for name, path in names)
    types: dict[str, dict[str, int]] = {}
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
    found = re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", full.parent.parent.name)
    return f"{found[1]}/{found[2]}" if found and full.parent.name == "snapshots" else None
