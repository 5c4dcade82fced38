"""What a GGUF says about itself: its tensor types, its source, its calibration."""

from dataclasses import dataclass
from typing import Any

from edge.formats.gguf import (
    TensorInfo,
)

# Where a file comes from and what was done to it, in the order of its showing: key, what it is called.
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
    """The tensors of one type: how many, their parameters, their bytes."""

    type: str
    tensors: int
    parameters: int
    n_bytes: int


def origin(metadata: dict[str, Any]) -> dict[str, str]:
    """Where a GGUF comes from, by its metadata: "hub id", "repository", "revision" and the like, as far as told."""
    return _found(metadata, _ORIGIN)


def calibration(metadata: dict[str, Any]) -> dict[str, str]:
    """What a GGUF's metadata tell of its importance matrix: "matrix", "text", "tensors", "chunks"; {} without one."""
    return _found(metadata, _CALIBRATION)


def type_shares(tensors: list[TensorInfo]) -> tuple[TypeShare, ...]:
    """The tensors by type, the largest type first."""
    found: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        count, parameters, n_bytes = found.get(tensor.type, (0, 0, 0))
        values = 1
        for length in tensor.shape:
            values *= length
        found[tensor.type] = (count + 1, parameters + values, n_bytes + tensor.n_bytes)
    shares = [TypeShare(name, *numbers) for name, numbers in found.items()]
    return tuple(sorted(shares, key=lambda share: -share.n_bytes))


def _found(metadata: dict[str, Any], keys: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: str(metadata[key]) for key, name in keys if metadata.get(key) not in (None, "")}
