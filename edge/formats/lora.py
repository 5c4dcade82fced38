"""A LoRA adapter merged into its base while that is converted: `--lora FOLDER`.

The folder is what the peft package saves: adapter_config.json and adapter_model.safetensors. Nothing is written:
the checkpoint that comes back has the same tensors, but those that the adapter changes compute themselves when
they are read, as peft's `merge_and_unload` does it: W + scale · B·A in float32, then rounded to the base's dtype.

Formats and formulas: peft 0.21, tuners/lora/layer.py (Linear, Embedding, ParamWrapper) and
utils/save_and_load.py.
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
from edge.formats.checkpoint import (
    Checkpoint,
    StoredTensor,
    checkpoint_name,
    read_chat_template,
    read_header,
    read_json,
    read_tokenizer_config,
)
from edge.formats.floats import Floats, narrow, widen

_MAX_RANK = 4096
_BLOCK = 1 << 22  # values computed at a time, so that what is in float32 stays small

# Wrappers that peft, training frameworks and multimodal parents put before a module's name.
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|_orig_mod|module|base_model)\.)+")
# `….lora_A.weight`, in older files `….lora_A.default.weight`; an embedding's two have no `.weight`.
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(?:\.weight)?")
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|base_layer)(?=\.(?:weight|bias)$)")

# What makes an adapter more than W + scale · B·A: the key in adapter_config.json, and its name.
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
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # those that leave the base as it is

# Experts that transformers 5 keeps fused in memory: as stored one by one, and which part of the rows each is.
_ONE_BY_ONE = {
    "gate_up_proj": (("w1", 0, 2), ("w3", 1, 2), ("gate_proj", 0, 2), ("up_proj", 1, 2)),
    "down_proj": (("w2", 0, 1), ("down_proj", 0, 1)),
}


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A base tensor that an adapter changes by scale · B·A; `factors(i)` are the i-th matrix's B and A in float32.

    `rounded`: the change is rounded to the base's dtype before it is added, as peft does for embeddings and fused
    experts.
    """

    base: StoredTensor
    factors: Callable[[int], tuple[Floats, Floats]]
    scale: float
    rounded: bool
    adapter_file: Path

    def read(self) -> npt.NDArray[Any]:
        """As StoredTensor.read, computed in blocks of rows. Raises CheckpointError for values that are not finite."""
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
                f"{self.adapter_file}: merged into {self.name} it gives NaN or Inf; the adapter or its base is broken"
            )
        return result


@dataclass(frozen=True)
class ReplacedTensor(StoredTensor):
    """A base tensor in whose place the adapter brings one of its own, in the base's dtype."""

    other: StoredTensor

    def read(self) -> npt.NDArray[Any]:
        """As StoredTensor.read. Raises CheckpointError for values that are not finite."""
        values = widen(self.other.read(), self.other.dtype)
        result = narrow(values, self.dtype)
        if not (np.isfinite(values).all() and np.isfinite(widen(result, self.dtype)).all()):
            raise CheckpointError(
                f"{self.other.file}: {self.other.name} holds NaN or Inf; the adapter is broken"
            )
        return result


def merge_lora(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with a LoRA adapter merged into its tensors when they are read.

    A chat template beside the adapter takes the place of the base's: it is the one that was trained with. `adapter`
    and `notes` of the result say what was done. Raises CheckpointError: no adapter, of another method than
    LoRA, a tensor of it that finds no place in the base or does not fit there.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give one that holds adapter_config.json")
    where = folder / "adapter_config.json"
    if not os.path.lexists(where):
        raise CheckpointError(f"{folder}: no adapter_config.json; this is no adapter that peft saved")
    config = read_json(where)
    _check_method(where, config)
    file = folder / "adapter_model.safetensors"
    if not os.path.lexists(file):
        pickled = os.path.lexists(folder / "adapter_model.bin")
        why = "is pickled, which can run code; save it as safetensors" if pickled else "is missing"
        raise CheckpointError(f"{file}: {why}")
    factors, whole = _sorted_tensors(file)
    tensors = dict(checkpoint.tensors)
    bases = {bare_name(name): name for name in tensors}
    if _tied(checkpoint.config) and "embed_tokens.weight" in whole:
        whole.pop("lm_head.weight", None)  # peft saves both, one the other's copy
    for name, other in whole.items():
        if name.startswith("lm_head.") and _tied(checkpoint.config):
            raise CheckpointError(f"{file}: it changes lm_head, which the base shares with its embeddings")
        base = _base(file, bases, tensors, name, other.name)
        if other.shape != base.shape:
            raise CheckpointError(
                f"{file}: {other.name} is {list(other.shape)}, but the base's is {list(base.shape)}; "
                "is it another base model?"
            )
        _check_floats(other)
        tensors[base.name] = ReplacedTensor(*_fields(base), other)
    for module, pair in factors.items():
        if module == "lm_head" and _tied(checkpoint.config):
            raise CheckpointError(f"{file}: it changes lm_head, which the base shares with its embeddings")
        for merged in _merge(file, config, module, pair, bases, tensors):
            tensors[merged.name] = merged
    if not factors and not whole:
        raise CheckpointError(f"{file}: holds no tensors; there is nothing to merge")
    n_modules = len(factors.keys() | {name.removesuffix(".weight") for name in whole})
    template, notes = _template(checkpoint, folder)
    return replace(
        checkpoint,
        tensors=tensors,
        chat_template=template,
        adapter="+".join(filter(None, (checkpoint.adapter, checkpoint_name(folder)))),
        notes=(
            *checkpoint.notes,
            f"the adapter {checkpoint_name(folder)} is merged into {n_modules} module{'s' * (n_modules != 1)}",
            *notes,
        ),
    )


def bare_name(name: str) -> str:
    """A tensor's name without the wrappers before it."""
    return _WRAPPERS.sub("", name)


# --- the adapter's configuration ---


def _check_method(where: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for anything but plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: is of peft_type {str(kind)[:40]!r}; edge merges LORA only")
    for key, name in _OTHER_METHODS.items():
        if config.get(key):
            raise CheckpointError(
                f"{where}: {key} is set; edge does not merge {name}, peft's merge_and_unload does"
            )
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"{where}: bias is {str(config['bias'])[:40]!r}; edge merges adapters without biases only"
        )
    init = config.get("init_lora_weights", True)
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        raise CheckpointError(
            f"{where}: init_lora_weights {str(init)[:40]!r} changes the base too; "
            "convert the adapter to plain LoRA when saving it (path_initial_model_for_weight_conversion)"
        )


def _scale(where: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """What B·A is multiplied with in a module, whose rank must be as configured."""
    configured = _pattern_value(where, config, "rank_pattern", module, config.get("r"))
    if configured != rank:
        raise CheckpointError(f"{where}: {module} has rank {rank}, but r is {str(configured)[:40]} there")
    alpha = _pattern_value(where, config, "alpha_pattern", module, config.get("lora_alpha"))
    if rank > _MAX_RANK:
        raise CheckpointError(f"{where}: a rank of {rank:,}; edge merges ranks up to {_MAX_RANK:,}")
    if type(alpha) not in (int, float) or not abs(alpha) < 1e9:
        raise CheckpointError(f"{where}: lora_alpha is {str(alpha)[:40]!r} for {module}, not a number")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern_value(where: Path, config: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """rank_pattern's or alpha_pattern's value for a module: that of the first pattern that matches its name's end."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: {key} is no map of patterns")
    for pattern, value in patterns.items():
        if (
            len(pattern) > 200 or len(re.findall(r"[*+?{]", pattern)) > 3
        ):  # a hostile one would match for ever
            raise CheckpointError(
                f"{where}: {key} holds {pattern[:80]!r}; edge takes at most three repeats in a pattern"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{where}: {key} holds {pattern[:80]!r}, no regular expression: {error}"
            ) from None
    return default


# --- its tensors ---


def _sorted_tensors(
    file: Path,
) -> tuple[dict[str, tuple[StoredTensor, StoredTensor]], dict[str, StoredTensor]]:
    """The A and B of each module, and the whole tensors, by their names in the base, wrappers left out."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in read_header(file).items():
        found = _FACTOR.fullmatch(name)
        if found is None and "lora_" in name:
            raise CheckpointError(f"{file}: {name} is no part of plain LoRA; edge does not merge it")
        if found is None:
            bare = bare_name(_SAVED.sub("", name))
            if bare in whole:
                raise CheckpointError(f"{file}: {name} and {whole[bare].name} are the same tensor twice")
            whole[bare] = tensor
            continue
        module, _, half = found.groups()
        _check_floats(tensor)
        pair = halves.setdefault(bare_name(module), {})
        if half in pair:
            raise CheckpointError(
                f"{file}: {name} and {pair[half].name} are two adapters in one file; give one"
            )
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise CheckpointError(f"{file}: {name} is {list(tensor.shape)}, no matrix")
        pair[half] = tensor
    for pair in halves.values():
        if len(pair) < 2:
            (half,) = pair
            raise CheckpointError(f"{file}: {pair[half].name} has no lora_{'BA'['AB'.index(half)]} beside it")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}, whole


def _merge(
    file: Path,
    config: dict[str, Any],
    module: str,
    pair: tuple[StoredTensor, StoredTensor],
    bases: dict[str, str],
    tensors: dict[str, StoredTensor],
) -> list[MergedTensor]:
    """What becomes of the base's tensors that a module's pair of factors changes."""
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
            f"{list(base.shape)}; is it another base model?"
        )
    scale = _scale(where, config, _full_name(a), rank)

    def factors(_: int) -> tuple[Floats, Floats]:
        first, second = widen(a.read(), a.dtype), widen(b.read(), b.dtype)
        return (first.T, second.T) if flipped else (second, first)

    return [MergedTensor(*_fields(base), base, factors, scale, embedding, file)]


def _full_name(a: StoredTensor) -> str:
    """The name of a factor's module in the model that peft trained, as patterns in its configuration see it."""
    found = _FACTOR.fullmatch(a.name)
    module = found[1] if found else a.name
    return re.sub(r"(?:\.base_layer)+$", "", module.removeprefix("base_model.model."))


def _merge_experts(
    file: Path,
    config: dict[str, Any],
    owner: str,
    pair: tuple[StoredTensor, StoredTensor],
    bases: dict[str, str],
    tensors: dict[str, StoredTensor],
) -> list[MergedTensor]:
    """Factors of fused experts (peft's `target_parameters`), for a base that stores them fused or one by one.

    With X experts and rank r, A is [X · r, in], expert by expert, B is [out, r · X], the expert changing fastest.
    Two parameters of a module have names that do not tell which is which; their shapes do.
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
        "is it another base model?"
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
    """The base's tensor of a bare name."""
    if wanted not in bases:
        raise CheckpointError(f"{file}: {name} finds no {wanted} in the base; is it another base model?")
    base = tensors[bases[wanted]]
    _check_floats(base)
    return base


def _fields(tensor: StoredTensor) -> tuple[str, str, tuple[int, ...], Path, int, int]:
    return tensor.name, tensor.dtype, tensor.shape, tensor.file, tensor.offset, tensor.n_bytes


def _check_floats(tensor: StoredTensor) -> None:
    if tensor.dtype not in ("BF16", "F16", "F32"):
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}; edge reads BF16, F16 and F32"
        )


def _tied(config: dict[str, Any]) -> bool:
    """Whether config.json says that the output matrix is the embeddings'."""
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in ("tie_embedding", "tie_word_embeddings"):
            if isinstance(values.get(key), bool):
                return bool(values[key])
    return False


def _template(checkpoint: Checkpoint, folder: Path) -> tuple[str | None, list[str]]:
    """The chat template to use, and what to say of the tokenizer files beside the adapter."""
    notes = []
    if os.path.lexists(folder / "tokenizer.json") and (
        read_json(folder / "tokenizer.json").get("model") != checkpoint.tokenizer.get("model")
    ):
        notes.append(
            f"{folder / 'tokenizer.json'} has another vocabulary than the base's; the base's was taken"
        )
    template = read_chat_template(folder, read_tokenizer_config(folder))
    if template is None or template == checkpoint.chat_template:
        return checkpoint.chat_template, notes
    return template, [*notes, f"the chat template is the adapter's ({folder}), not the base's"]


# --- numbers ---
