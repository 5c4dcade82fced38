"""LoRA adapters as GGUFs: reads and checks one before llama.cpp does, because a bad one can stop the process.

The format is that of llama.cpp's convert_lora_to_gguf.py: general.type "adapter", general.architecture,
adapter.type "lora", adapter.lora.alpha, and for each changed weight W of the base the tensors `W.lora_a` and
`W.lora_b`, A and B of the change scale · alpha / rank · B·A. Sources: llama.cpp's src/llama-adapter.cpp (reading) and
src/llama-graph.cpp (use).
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import TensorInfo, read_kinds, read_metadata, read_tensors

A, B = ".lora_a", ".lora_b"
ALPHA = "adapter.lora.alpha"
FLOAT_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""The tensor types of llama.cpp's converter."""

_F32, _STRING = 6, 8  # value types of the format
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
# Weights that llama.cpp does not multiply through its adapters: it would ignore a change without a word.
_NOT_APPLIED = re.compile(
    r"(?:\.conv|conv1d|_norm|_norm_[12]|per_layer_model_proj|per_layer_token_embd|rope_freqs|pos_embd)\.weight$"
)


@dataclass(frozen=True)
class Pair:
    """The two factors of the change of one weight of the base, `name`."""

    name: str
    a: TensorInfo
    b: TensorInfo

    @property
    def embedding(self) -> bool:
        """Whether it changes the token embeddings: A then has a row for each token."""
        return self.name == _EMBEDDING

    @property
    def rank(self) -> int:
        return self.b.shape[0]

    @property
    def fits(self) -> tuple[int, ...]:
        """The shape of the weight that it changes, in ggml's order: row length first."""
        if self.embedding:
            return self.b.shape[1], self.a.shape[1]
        return (self.a.shape[0], self.b.shape[1], *self.b.shape[2:])


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter says about itself.

    `alpha`: 0 if the scale alone is the factor of B·A. `ignored`: norms that other programs write, which llama.cpp does
    not use. `base`: names of the model that it was trained on, as far as it has them.
    """

    path: Path
    architecture: str
    name: str
    alpha: float
    pairs: tuple[Pair, ...]
    ignored: tuple[str, ...]
    base: tuple[str, ...]
    n_bytes: int

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors that llama.cpp loads."""
        return tuple(tensor for pair in self.pairs for tensor in (pair.a, pair.b))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks, ascending."""
        return tuple(sorted({pair.rank for pair in self.pairs}))


def is_applied(name: str) -> bool:
    """Whether llama.cpp applies adapters to the weight of this name in the models that have it."""
    return _NOT_APPLIED.search(name) is None


def is_adapter(path: Path) -> bool:
    """Whether a file is a GGUF that calls itself an adapter. Raises ModelFileError if its header is damaged."""
    return read_metadata(path).get("general.type") == "adapter"


def read_adapter(path: Path) -> AdapterFile:
    """Read and check the header of an adapter, without its base.

    Raises ModelFileError if the file is missing, truncated, damaged, not a LoRA adapter, or if llama.cpp would refuse
    it or stop the process.
    """
    if path.is_dir():
        raise ModelFileError(
            f"{path}: is a folder; make an adapter file of it with `edge convert {path} --base SOURCE`"
        )
    metadata, kinds = read_metadata(path), read_kinds(path)
    kind = metadata.get("general.type")
    if kind != "adapter":
        if kind == "model" or "tokenizer.ggml.tokens" in kinds:
            raise ModelFileError(f"{path}: is a model, not an adapter; give it with --model")
        raise ModelFileError(
            f"{path}: is not an adapter (general.type is {str(kind)[:40]!r}); give a LoRA adapter"
        )
    for key in ("general.architecture", "adapter.type"):
        if kinds.get(key) != _STRING:
            raise _damaged(path, f"{key} is {'not a text' if key in kinds else 'missing'}")
    if metadata["adapter.type"] != "lora":
        raise ModelFileError(
            f"{path}: is an adapter of the type {metadata['adapter.type'][:40]!r}; llama.cpp runs lora only"
        )
    alpha = metadata.get(ALPHA, 0.0)
    if kinds.get(ALPHA, _F32) != _F32 or not math.isfinite(alpha):
        raise _damaged(path, f"{ALPHA} is not a finite number of 32 bits")
    if "adapter.alora.invocation_tokens" in kinds:
        raise ModelFileError(
            f"{path}: is an activated LoRA, which works only after certain tokens; edge runs plain LoRA only"
        )
    pairs, ignored = _pairs(path, read_tensors(path))
    return AdapterFile(
        path=path,
        architecture=metadata["general.architecture"],
        name=str(metadata.get("general.name") or path.stem),
        alpha=alpha,
        pairs=pairs,
        ignored=ignored,
        base=_names(metadata, "general.base_model.0.name", "general.base_model.0.repo_url"),
        n_bytes=path.stat().st_size,
    )


def check_base(adapter: AdapterFile, base: Path) -> list[str]:
    """Check that an adapter fits the GGUF of a base. Returns what the user must know, one line each.

    Raises ModelFileError if its architecture or a shape differs, or if it changes a weight that the base does not have
    or that llama.cpp does not change.
    """
    path, metadata = adapter.path, read_metadata(base)
    architecture = metadata.get("general.architecture")
    if adapter.architecture != architecture:
        raise ModelFileError(
            f"{path}: is an adapter for the architecture {adapter.architecture[:40]}, and {base} is "
            f"{str(architecture)[:40]}; give its own base with --model"
        )
    weights = {tensor.name: tensor for tensor in read_tensors(base)}
    for pair in adapter.pairs:
        _check_weight(path, base, pair, weights)
    notes = []
    if adapter.ignored:
        notes.append(
            f"{path}: llama.cpp does not use {len(adapter.ignored)} norms in it ({adapter.ignored[0]}); the answers "
            "are not those of the merged model"
        )
    known = _names(
        metadata,
        "general.name",
        "general.source.repo_url",
        "general.source.url",
        "general.source.huggingface.repository",
        "general.base_model.0.name",
        "general.base_model.0.repo_url",
    )
    trained_on = {*map(_plain, adapter.base)}
    # The name of a published file is often a better one than that in its metadata: NAME-Q4_K_M.gguf.
    by_file = any(_plain(base.stem).startswith(name) for name in trained_on if name)
    if trained_on and known and not by_file and trained_on.isdisjoint(map(_plain, known)):
        notes.append(
            f"{path}: was trained on {adapter.base[0]}, and {base} is {known[0]}; with another base the answers can be "
            "worthless"
        )
    return notes


def _check_weight(path: Path, base: Path, pair: Pair, weights: dict[str, TensorInfo]) -> None:
    weight = weights.get(pair.name)
    if weight is None:
        raise ModelFileError(
            f"{path}: changes {pair.name}, which {base} does not have; give its own base with --model"
        )
    if weight.shape != pair.fits:
        raise ModelFileError(
            f"{path}: {pair.name} has the shape {list(pair.fits)} in it and {list(weight.shape)} in {base}; give its "
            "own base with --model"
        )
    if pair.embedding and _OUTPUT not in weights:
        # llama.cpp multiplies with it as with any other weight, and stops the process.
        raise ModelFileError(
            f"{path}: changes the token embeddings, which {base} also uses as its output; llama.cpp cannot run that: "
            "merge the adapter with `edge convert BASE --lora FOLDER`"
        )
    if len(weight.shape) < 2 or not is_applied(pair.name) or weight.type == "NVFP4":
        raise ModelFileError(
            f"{path}: changes {pair.name}, and llama.cpp does not apply adapters to it; merge the adapter with "
            "`edge convert BASE --lora FOLDER`"
        )


def _pairs(path: Path, tensors: Sequence[TensorInfo]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    ignored = []
    for tensor in tensors:
        name, half = tensor.name[: -len(A)], tensor.name[-len(A) :]
        if half in (A, B) and name and A not in name and B not in name:
            halves.setdefault(name, {})[half] = tensor
        elif tensor.name.endswith("_norm.weight"):
            ignored.append(tensor.name)
        else:
            raise _damaged(path, f"{tensor.name[:80]!r} is neither a {A} nor a {B}")
    if not halves:
        raise _damaged(path, "it has no tensors")
    for name, pair in halves.items():
        if len(pair) < 2:
            (half,) = pair
            raise _damaged(path, f"{name} has no {B if half == A else A}")
    found = tuple(Pair(name, pair[A], pair[B]) for name, pair in halves.items())
    for one in found:
        _check_pair(path, one)
    return found, tuple(ignored)


def _check_pair(path: Path, pair: Pair) -> None:
    a, b = pair.a, pair.b
    for tensor in (a, b):
        if tensor.type not in FLOAT_TYPES:
            raise ModelFileError(
                f"{path}: {tensor.name} has the type {tensor.type}; edge runs adapters in {', '.join(FLOAT_TYPES)}: "
                "convert it again"
            )
        if not 2 <= len(tensor.shape) <= 3 or 0 in tensor.shape:
            raise _damaged(path, f"{tensor.name} has the shape {list(tensor.shape)}, not that of a matrix")
    rank = a.shape[0] if pair.embedding else a.shape[1]
    if rank != b.shape[0]:
        raise _damaged(path, f"{a.name} has rank {rank:,}, {b.name} has rank {b.shape[0]:,}")
    if a.shape[2:] != b.shape[2:] or (pair.embedding and len(a.shape) > 2):
        raise _damaged(
            path, f"{a.name} {list(a.shape)} and {b.name} {list(b.shape)} have different numbers of matrices"
        )


def _names(metadata: dict[str, object], *keys: str) -> tuple[str, ...]:
    return tuple(str(metadata[key]) for key in keys if metadata.get(key))


def _plain(name: str) -> str:
    """The last part of a name, an address or a path, without case and punctuation."""
    last = re.split(r"[/\\]", os.fspath(name).rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]", "", last.lower())


def _damaged(path: Path, problem: str) -> ModelFileError:
    return ModelFileError(f"{path}: is a damaged adapter: {problem}; convert or fetch it again")
