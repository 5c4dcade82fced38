"""Merges a LoRA adapter into its base model during conversion: `--lora FOLDER`.

The folder is one that the peft package saves, with adapter_config.json and adapter_model.safetensors. edge writes
nothing: the new checkpoint has the same tensors, but each tensor that the adapter changes is computed when it is read.
The formula is that of peft's `merge_and_unload`: W + scale · B·A in float32, then rounded to the dtype of the base.

Formats and formulas: peft 0.21, tuners/lora/layer.py (Linear, Embedding, ParamWrapper) and utils/save_and_load.py.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.adapter_tokenizer import with_tokenizer
from edge.formats.checkpoint import (
    Checkpoint,
    StoredTensor,
    checkpoint_name,
    read_header,
    read_json,
)
from edge.formats.floats import Floats, narrow, widen
from edge.formats.foreign import check_not_mlx, mlx_line
from edge.formats.model_card import read_card, with_adapter
from edge.formats.resized import fit_rows, resized_config, resized_note
from edge.formats.stored import same_values
from edge.formats.tied import EMBEDDINGS, OUTPUT, bare_name, tied_factors, untie
from edge.system.text import counted

_MAX_RANK = 4096
_BLOCK = 1 << 22  # values computed at a time, to keep the float32 memory small

# `….lora_A.weight`, in older files `….lora_A.default.weight`; the factors of an embedding have no `.weight`.
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(?:\.weight)?")
_ORIGINAL = re.compile(r"\.original_module\.(?:weight|bias)$")  # the base's, beside the trained one
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|base_layer)(?=\.(?:weight|bias)$)")

# Methods other than W + scale · B·A: the key in adapter_config.json, and the name of the method.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trainable tokens",
    "arrow_config": "Arrow routing",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
}
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # values that do not change the base

# Experts that transformers 5 keeps fused in memory: the names of their separate tensors, the index of each part of the
# rows, and the number of parts.
_ONE_BY_ONE = {
    "gate_up_proj": (("w1", 0, 2), ("w3", 1, 2), ("gate_proj", 0, 2), ("up_proj", 1, 2)),
    "down_proj": (("w2", 0, 1), ("down_proj", 0, 1)),
}


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A base tensor that an adapter changes by scale · B·A.

    `factors(i)`: B and A of the i-th matrix, in float32. `rounded`: the change is rounded to the base's dtype before it
    is added, as in peft for embeddings and fused experts.
    """

    base: StoredTensor
    factors: Callable[[int], tuple[Floats, Floats]]
    scale: float
    rounded: bool
    adapter_file: Path

    def read(self) -> npt.NDArray[Any]:
        """Like StoredTensor.read, computed in blocks of rows. Raises CheckpointError if a value is not finite."""
        values = self.base.read()
        merged = np.empty(self.shape, values.dtype)
        step = max(1, _BLOCK // self.shape[-1])
        for i, index in enumerate(np.ndindex(self.shape[:-2])):
            left, right = self.factors(i)
            for first in range(0, self.shape[-2], step):
                rows = slice(first, first + step)
                with np.errstate(over="ignore", invalid="ignore"):
                    change = (left[rows] @ right) * np.float32(self.scale)
                    if self.rounded:
                        change = widen(narrow(change, self.dtype), self.dtype)
                    merged[index][rows] = self._rounded(widen(values[index][rows], self.dtype) + change)
        return merged

    def _rounded(self, values: Floats) -> npt.NDArray[Any]:
        result = narrow(values, self.dtype)
        if not (np.isfinite(values).all() and np.isfinite(widen(result, self.dtype)).all()):
            raise CheckpointError(
                f"{self.adapter_file}: merged into {self.name} it gives NaN or Inf; use another adapter or base model"
            )
        return result


@dataclass(frozen=True)
class ReplacedTensor(StoredTensor):
    """A base tensor that the adapter replaces with its own, in the base's dtype."""

    other: StoredTensor

    def read(self) -> npt.NDArray[Any]:
        """Like StoredTensor.read. Raises CheckpointError if a value is not finite."""
        values = widen(self.other.read(), self.other.dtype)
        result = narrow(values, self.dtype)
        if not (np.isfinite(values).all() and np.isfinite(widen(result, self.dtype)).all()):
            raise CheckpointError(
                f"{self.other.file}: {self.other.name} holds NaN or Inf; use another adapter"
            )
        return result


def check_adapter(folder: Path) -> None:
    """Check, without its base, that a folder holds an adapter that `merge_lora` can read. Raises CheckpointError."""
    _open_adapter(folder)


def merge_lora(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint whose tensors have a LoRA adapter merged into them when they are read.

    The tokenizer and the chat template beside the adapter replace those of the base, because the adapter was trained
    with them (edge/formats/adapter_tokenizer.py). So do the facts of its model card. `adapter` and `notes` of the
    result say what edge did.

    Raises CheckpointError if there is no adapter, if its method is not LoRA, or if a tensor of it is not in the base or
    does not fit there.
    """
    config, file = _open_adapter(folder)
    factors, whole = _sorted_tensors(file)
    if not factors and not whole:
        raise CheckpointError(f"{file}: has no tensors, so edge cannot merge it; save the adapter again")
    tensors = dict(checkpoint.tensors)
    bases = {bare_name(name): name for name in tensors}
    n_modules = len(factors.keys() | {name.removesuffix(".weight") for name in whole})
    shared = tied_factors(config, factors)
    names = [_full_name(factors[module][0]) for module in ("embed_tokens", "lm_head") if shared]
    where = file.with_name("adapter_config.json")
    one_scale = len({_scale(where, config, name, None) for name in names}) <= 1
    untied = untie(config, bases, tensors, factors, whole, one_scale=one_scale)
    old = checkpoint.tensors[bases[EMBEDDINGS]].shape[0] if EMBEDDINGS in bases else 0
    rows = fit_rows(file, bases, tensors, factors, whole)
    for name, other in whole.items():
        tensors |= _replaced(file, bases, tensors, name, other)
    for module, pair in factors.items():
        own = shared and module == "lm_head"
        tensors |= {one.name: one for one in _merge(file, config, module, pair, bases, tensors, own_rank=own)}
    named, notes = with_tokenizer(checkpoint, folder)
    if untied:
        notes.append(
            f"{checkpoint.folder / 'config.json'} ties the output matrix to the embeddings, but the adapter trains "
            "them separately: edge writes both; other programs may use the embeddings for both"
        )
    if rows is not None:
        notes.append(resized_note(folder, rows, old))
    return replace(
        named,
        tensors=tensors,
        tied=False if untied else checkpoint.tied,
        card=with_adapter(checkpoint.card, read_card(folder)),
        config=checkpoint.config if rows is None else resized_config(checkpoint.config, rows),
        adapter="+".join(filter(None, (checkpoint.adapter, checkpoint_name(folder)))),
        notes=(
            *checkpoint.notes,
            f"the adapter {checkpoint_name(folder)} is merged into {counted(n_modules, 'module')}",
            *notes,
        ),
    )


# --- the adapter's configuration ---


def _open_adapter(folder: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of an adapter and the file with its weights."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder with adapter_config.json")
    check_not_mlx(folder)
    where = folder / "adapter_config.json"
    if not os.path.lexists(where):
        raise CheckpointError(f"{folder}: no adapter_config.json; give a folder that peft saved")
    config = read_json(where)
    _check_method(where, config)
    file = folder / "adapter_model.safetensors"
    if not os.path.lexists(file):
        pickled = os.path.lexists(folder / "adapter_model.bin")
        why = "is pickled, which can run code; save it as safetensors" if pickled else "is missing; fetch it"
        raise CheckpointError(f"{file}: {why}")
    return config, file


def _check_method(where: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for anything but plain LoRA."""
    elsewhere = "merge it with peft's merge_and_unload and convert the result"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {str(kind)[:40]!r}; edge merges LORA only: {elsewhere}")
    for key, name in _OTHER_METHODS.items():
        if config.get(key):
            raise CheckpointError(f"{where}: {key} is set; edge does not merge {name}: {elsewhere}")
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"{where}: bias is {str(config['bias'])[:40]!r}; edge merges adapters without biases only: {elsewhere}"
        )
    init = config.get("init_lora_weights", True)
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        raise CheckpointError(
            f"{where}: init_lora_weights {str(init)[:40]!r} changes the base too; "
            "save the adapter as plain LoRA (path_initial_model_for_weight_conversion)"
        )


def _scale(where: Path, config: dict[str, Any], module: str, rank: int | None) -> float:
    """The factor of B·A in a module. Raises CheckpointError if `rank` is not the configured rank.

    `rank`: None for factors that are tied to those of another module: the configured rank counts for the factor only.
    """
    configured = _pattern_value(where, config, "rank_pattern", module, config.get("r"))
    if rank is None and type(configured) is int and configured > 0:
        rank = configured
    if rank is None or configured != rank:
        raise CheckpointError(
            f"{where}: {module} has rank {rank}, but r is {str(configured)[:40]} there; fetch the adapter again"
        )
    alpha = _pattern_value(where, config, "alpha_pattern", module, config.get("lora_alpha"))
    if rank > _MAX_RANK:
        raise CheckpointError(f"{where}: {module} has rank {rank:,}; edge merges ranks up to {_MAX_RANK:,}")
    if type(alpha) not in (int, float) or not abs(alpha) < 1e9:
        raise CheckpointError(
            f"{where}: lora_alpha is {str(alpha)[:40]!r} for {module}, not a number; fetch the adapter again"
        )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern_value(where: Path, config: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of rank_pattern or alpha_pattern for a module: the first pattern that matches the end of its name."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: {key} is not a map of patterns; fetch the adapter again")
    for pattern, value in patterns.items():
        # A hostile pattern could match forever.
        if len(pattern) > 200 or len(re.findall(r"[*+?{]", pattern)) > 3:
            raise CheckpointError(
                f"{where}: {key} holds {pattern[:80]!r}; edge allows at most three repeats in a pattern"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{where}: {key} holds {pattern[:80]!r}, which is not a regular expression: {error}"
            ) from None
    return default


# --- its tensors ---


def _sorted_tensors(
    file: Path,
) -> tuple[dict[str, tuple[StoredTensor, StoredTensor]], dict[str, StoredTensor]]:
    """A and B of each module, and the replaced tensors, by their bare names in the base."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in read_header(file).items():
        if _ORIGINAL.search(name):
            continue
        match = _FACTOR.fullmatch(name)
        if name.endswith((".lora_a", ".lora_b")):
            raise CheckpointError(mlx_line(file))
        if match is None and "lora_" in name:
            raise CheckpointError(
                f"{file}: {name} is not part of plain LoRA; merge it with peft and convert the result"
            )
        if match is None:
            bare = bare_name(_SAVED.sub("", name))
            if bare in whole and not same_values(whole[bare], tensor):  # peft stores resized embeddings twice
                raise CheckpointError(
                    f"{file}: {name} and {whole[bare].name} are the same tensor; remove one of them"
                )
            whole[bare] = tensor
            continue
        module, _, half = match.groups()
        tensor.check_dtype()
        pair = halves.setdefault(bare_name(module), {})
        if half in pair:
            raise CheckpointError(
                f"{file}: {name} and {pair[half].name} are two adapters in one file; save them separately"
            )
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise CheckpointError(
                f"{file}: {name} has the shape {list(tensor.shape)}, not that of a matrix; fetch it again"
            )
        pair[half] = tensor
    for pair in halves.values():
        if len(pair) < 2:
            (half,) = pair
            raise CheckpointError(
                f"{file}: {pair[half].name} has no lora_{'BA'['AB'.index(half)]} beside it; fetch it again"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}, whole


def _replaced(
    file: Path, bases: dict[str, str], tensors: dict[str, StoredTensor], name: str, other: StoredTensor
) -> dict[str, StoredTensor]:
    """The base tensor with a bare name, replaced by one of the adapter."""
    base = _base(file, bases, tensors, name, other.name)
    if name in (EMBEDDINGS, OUTPUT) and len(other.shape) == 2 and other.shape[1:] == base.shape[1:]:
        base = replace(base, shape=other.shape)  # fit_rows has checked the rows
    if other.shape != base.shape:
        raise CheckpointError(
            f"{file}: {other.name} is {list(other.shape)}, but the base's is {list(base.shape)}; "
            "is the adapter for another base model?"
        )
    other.check_dtype()
    return {base.name: ReplacedTensor(*_fields(base), other)}


def _merge(
    file: Path,
    config: dict[str, Any],
    module: str,
    pair: tuple[StoredTensor, StoredTensor],
    bases: dict[str, str],
    tensors: dict[str, StoredTensor],
    *,
    own_rank: bool = False,
) -> list[MergedTensor]:
    """The base tensors that the two factors of a module change, merged. `own_rank`: they are another module's."""
    where = file.with_name("adapter_config.json")
    owner = re.sub(r"(?:\.base_layer)+$", "", module)
    if owner.endswith(".experts") and config.get("target_parameters"):
        return _merge_experts(file, config, owner, pair, bases, tensors)
    a, b = pair
    base = _base(file, bases, tensors, f"{module}.weight", a.name)
    embedding = "lora_embedding_" in a.name
    flipped = embedding or bool(config.get("fan_in_fan_out"))
    rank = a.shape[0]
    wanted = (a.shape[1], b.shape[0]) if flipped else (b.shape[0], a.shape[1])
    if b.shape[1] != rank or base.shape != wanted:
        raise CheckpointError(
            f"{file}: {a.name} {list(a.shape)} and {b.name} {list(b.shape)} do not fit the base's "
            f"{list(base.shape)}; is the adapter for another base model?"
        )
    scale = _scale(where, config, _full_name(a), None if own_rank else rank)

    def factors(_: int) -> tuple[Floats, Floats]:
        first, second = widen(a.read(), a.dtype), widen(b.read(), b.dtype)
        return (first.T, second.T) if flipped else (second, first)

    return [MergedTensor(*_fields(base), base, factors, scale, embedding, file)]


def _full_name(a: StoredTensor) -> str:
    """The name of a factor's module in the model that peft trained. Patterns in the configuration match it."""
    match = _FACTOR.fullmatch(a.name)
    module = match[1] if match else a.name
    return re.sub(r"(?:\.base_layer)+$", "", module.removeprefix("base_model.model."))


def _merge_experts(
    file: Path,
    config: dict[str, Any],
    owner: str,
    pair: tuple[StoredTensor, StoredTensor],
    bases: dict[str, str],
    tensors: dict[str, StoredTensor],
) -> list[MergedTensor]:
    """The experts that factors of peft's `target_parameters` change, for a base that stores them fused or separately.

    With X experts and rank r, A is [X · r, in], one expert after another, and B is [out, r · X], with the expert as the
    fastest index. The names do not say which of a module's two parameters they belong to; the shapes do.
    """
    where = file.with_name("adapter_config.json")
    a, b = pair
    rank = a.shape[0]
    for parameter, parts in _ONE_BY_ONE.items():
        fused = bases.get(f"{owner}.{parameter}")
        ones = [part for part in parts if f"{owner}.0.{part[0]}.weight" in bases]
        if fused is not None:
            shape = tensors[fused].shape
        elif ones:
            n_experts = next(x for x in count() if f"{owner}.{x}.{ones[0][0]}.weight" not in bases)
            rows, columns = tensors[bases[f"{owner}.0.{ones[0][0]}.weight"]].shape
            shape = (n_experts, rows * ones[0][2], columns)
        else:
            continue
        if len(shape) != 3 or rank % shape[0] or (b.shape[0], a.shape[1]) != shape[1:] or b.shape[1] != rank:
            continue
        scale = _scale(where, config, f"{_full_name(a)}.{parameter}", rank // shape[0])
        if fused is not None:
            base = tensors[fused]
            return [MergedTensor(*_fields(base), base, _expert_factors(a, b, shape[0]), scale, True, file)]
        merged = []
        for name, part, of in ones:
            for x in range(shape[0]):
                base = _base(file, bases, tensors, f"{owner}.{x}.{name}.weight", a.name)
                if base.shape != (shape[1] // of, shape[2]):
                    raise CheckpointError(
                        f"{file}: {a.name} does not fit {base.name}, which is {list(base.shape)}"
                    )
                half = slice(part * shape[1] // of, (part + 1) * shape[1] // of)
                factors = _expert_factors(a, b, shape[0], x, half)
                merged.append(MergedTensor(*_fields(base), base, factors, scale, True, file))
        return merged
    raise CheckpointError(
        f"{file}: {a.name} {list(a.shape)} and {b.name} {list(b.shape)} fit no experts of the base; "
        "is the adapter for another base model?"
    )


def _expert_factors(
    a: StoredTensor, b: StoredTensor, n_experts: int, expert: int = 0, rows: slice = slice(None)
) -> Callable[[int], tuple[Floats, Floats]]:
    def factors(i: int) -> tuple[Floats, Floats]:
        right = a.read().reshape(n_experts, -1, a.shape[1])[expert + i]
        left = b.read().reshape(b.shape[0], -1, n_experts)[rows, :, expert + i]
        return widen(left, b.dtype), widen(right, a.dtype)

    return factors


def _base(
    file: Path, bases: dict[str, str], tensors: dict[str, StoredTensor], wanted: str, name: str
) -> StoredTensor:
    """The base tensor with the bare name `wanted`, for the adapter's tensor `name`."""
    if wanted not in bases:
        raise CheckpointError(
            f"{file}: {name} needs {wanted} in the base, which has none; is the adapter for another base model?"
        )
    base = tensors[bases[wanted]]
    base.check_dtype()
    return base


def _fields(tensor: StoredTensor) -> tuple[str, str, tuple[int, ...], Path, int, int]:
    return tensor.name, tensor.dtype, tensor.shape, tensor.file, tensor.offset, tensor.n_bytes
