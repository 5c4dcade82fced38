"""What a GGUF says about itself: its tensor types, its source, its calibration."""

import math
from dataclasses import dataclass
from typing import Any

from edge.formats.gguf import RECIPE, TensorInfo

# The origin of a file, in the order of display: metadata key and display name.
_ORIGIN = (
    ("general.source.huggingface.repository", "hub id"),
    ("general.source.repo_url", "repository"),
    ("general.source.url", "source"),
    ("edge.source.revision", "revision"),
    ("general.base_model.0.repo_url", "base model"),
    ("edge.lora", "adapter"),
    ("general.license", "licence"),
    ("edge.version", "edge"),
)


_CALIBRATION = (
    ("quantize.imatrix.file", "matrix"),
    ("quantize.imatrix.dataset", "text"),
    ("quantize.imatrix.entries_count", "tensors"),
    ("quantize.imatrix.chunks_count", "chunks"),
)


@dataclass(frozen=True)
class TypeShare:
    """The tensors of one type: their number, parameters and bytes."""

    type: str
    tensors: int
    parameters: int
    n_bytes: int


def origin(metadata: dict[str, Any]) -> dict[str, str]:
    """Where a GGUF comes from, by display name ("hub id", "repository", "revision", …), as far as its metadata says."""
    return _present(metadata, _ORIGIN)


def calibration(metadata: dict[str, Any]) -> dict[str, str]:
    """The importance matrix of a GGUF, as its metadata says: "matrix", "text", "tensors", "chunks"; {} without one."""
    return _present(metadata, _CALIBRATION)


def recipe(metadata: dict[str, Any]) -> list[str]:
    """The lines PATTERN=TYPE that chose the types of a GGUF; [] if it was made without a recipe."""
    text = metadata.get(RECIPE)
    return text.split() if isinstance(text, str) else []


def type_shares(tensors: list[TensorInfo]) -> tuple[TypeShare, ...]:
    """The tensors by type, with the type of the most bytes first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        count, parameters, n_bytes = sums.get(tensor.type, (0, 0, 0))
        sums[tensor.type] = (count + 1, parameters + math.prod(tensor.shape), n_bytes + tensor.n_bytes)
    shares = [TypeShare(name, *numbers) for name, numbers in sums.items()]
    return tuple(sorted(shares, key=lambda share: -share.n_bytes))


def _present(metadata: dict[str, Any], keys: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: str(metadata[key]) for key, name in keys if metadata.get(key) not in (None, "")}
