"""Weights that edge cannot convert as they are: quantized checkpoints, a LoRA that is not merged, MLX's adapters.

Names as the programs write them: mlx_lm (`quantization`, `.scales`, `.biases`), bitsandbytes (`.SCB`, `.absmax`),
GPTQ and AWQ (`.qweight`), compressed-tensors (`.weight_packed`), FP8 (`.weight_scale_inv`), gpt-oss (`_blocks`),
ModelOpt (`_quantizer._amax`), torchao (`:_data`), quanto (`.weight._data`), ExLlama (`.trellis`), VPTQ (`.centroids`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.formats.hub import HUB_ID
from edge.formats.stored import StoredTensor, read_json, read_small

_MAX_CARD = 1 << 20  # bytes of a model card
_MLX_ADAPTERS = (
    "adapters.safetensors",
    "[0-9]*_adapters.safetensors",
    "adapters.npz",
)  # also those of a step

# The end of a tensor's name, and who writes it. The first match counts.
_ENDS = (
    (r"\.(?:SCB|weight_format)", "bitsandbytes in 8 bits"),
    (r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)", "bitsandbytes"),
    (r"\.(?:qweight|qzeros|g_idx)", "GPTQ or AWQ"),
    (r"\.(?:weight_packed|weight_shape|weight_zero_point)", "compressed-tensors"),
    (r"\.(?:codes|codebooks)", "AQLM"),
    (
        r"\.(?:weight|input|output|[wqkv])_(?:global_)?scales?(?:_inv|_2)?|\.\w*_quantizer\._?amax",
        "8 or 4 bits with scales",
    ),
    (r"\.weight\._(?:data|scale|shift)", "quanto"),
    (r":_data|\.\w*_qdata|\.qdata", "torchao"),
    (r"\.(?:trellis|suh|svh|q_weight|q_groups)", "ExLlama"),
    (r"\.(?:Qidxs|centroids\.weight|res_centroids\.weight)", "QuIP or VPTQ"),
    (r"\.(?:W_q|W_q\.meta)", "HQQ"),
    (r"\.\w+_proj_blocks", "MXFP4"),
    (r"\.(?:scales|biases)", "MLX"),
)
_LORA = re.compile(r"\.(?:lora_(?:embedding_)?[AB]|lora_magnitude_vector|base_layer|modules_to_save)(?:\.|$)")
# dtypes of quantized matrices
_SMALL = {
    "U8",
    "I8",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F8_E8M0",
    "I16",
    "U16",
    "I32",
    "U32",
}


def check_not_quantized(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError if the weights of a checkpoint are quantized, by its config.json or its tensors.

    So it does if they hold a LoRA that was not merged: then they are not those of the model that was trained.
    """
    unmerged = next((name for name in tensors if _LORA.search(name)), None)
    if unmerged is not None:
        raise CheckpointError(
            f"{folder}: its weights hold a LoRA that is not merged ({unmerged}); call merge_and_unload of peft before "
            "save_pretrained, or save the adapter alone and convert its base with --lora"
        )
    how = _by_config(config) or _by_tensors(tensors)
    if how is None:
        return
    original = _original(folder)
    named = f"its model card names {original}" if original else "its model card or its author names it"
    raise CheckpointError(
        f"{folder}: the checkpoint is already quantized ({how}); convert the original checkpoint: {named}"
    )


def check_not_mlx(folder: Path) -> None:
    """Raise CheckpointError if a folder holds an adapter that mlx_lm trained."""
    config = read_json(folder / "adapter_config.json", missing_ok=True)
    own = "peft_type" not in config and not {"fine_tune_type", "lora_parameters", "lora_layers"}.isdisjoint(
        config
    )
    files = any(next(folder.glob(name), None) is not None for name in _MLX_ADAPTERS)
    if own or (files and "peft_type" not in config):
        raise CheckpointError(mlx_line(folder))


def mlx_line(place: Path) -> str:
    """What to do with an adapter that mlx_lm trained."""
    return (
        f"{place}: is an adapter of MLX (mlx_lm), not of peft; merge it into its unquantized base with "
        "`mlx_lm.fuse --adapter-path` and convert the result"
    )


def _by_config(config: Mapping[str, Any]) -> str | None:
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            given = values.get(key)
            if given:
                method = given.get("quant_method") if isinstance(given, dict) else None
                if isinstance(method, str):
                    return f"{key} in config.json: {method[:40]}"
                return f"{key} in config.json" + (", as MLX writes it" if key == "quantization" else "")
    return None


def _by_tensors(tensors: Mapping[str, StoredTensor]) -> str | None:
    for end, how in _ENDS:
        found = next((name for name in tensors if re.search(end + "$", name)), None)
        if found is not None:
            return f"{how}: it stores {found}"
    for tensor in tensors.values():
        if tensor.dtype in _SMALL and len(tensor.shape) > 1:
            return f"{tensor.name} is stored as {tensor.dtype}"
    return None


def _original(folder: Path) -> str | None:
    """The hub id of the base in the head of the model card; None without one."""
    try:
        card = read_small(folder / "README.md", _MAX_CARD).decode("utf-8", "replace")
    except (OSError, CheckpointError):
        return None
    head = card.split("\n---", 1)[0] if card.startswith("---") else ""
    match = re.search(
        r"^base_model:[ \t]*(?:\n[ \t]*- )?[\"']?([\w./-]{1,200})[\"']?[ \t]*$", head, re.MULTILINE
    )
    return match[1] if match and HUB_ID.fullmatch(match[1]) else None
