"""Llama, Mistral, Ministral 3 and Mistral Small 3.

llama.cpp runs Mistral as a Llama without a sliding window. Ministral 3 and Mistral Small 3 have their own architecture
name in llama.cpp. Ministral 3 scales its queries by a factor that grows with the position.
"""

import math

import numpy as np

from edge.conversion.families.common import (
    all_layers,
    attention_dims,
    full_rope,
    head_metadata,
    no_window,
    norm_epsilon,
    rope,
    size_metadata,
    yarn_metadata,
)
from edge.conversion.plan import Array, Change, Config, Dims, Family, Row, TensorPlan, Value, made
from edge.errors import ConversionError

_KINDS = {"default", "linear", "llama3", "yarn"}


def _interleave(array: Array, dims: Dims) -> Array:
    """Reorder the rows of each head: from transformers' order (first half, second half) to pairs, as in llama.cpp."""
    pairs = array.reshape(-1, 2, dims["D"] // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


_INTERLEAVE = Change(_interleave)

_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("output_norm.weight", "norm.weight", "E"),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E"),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E", change=_INTERLEAVE),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E", change=_INTERLEAVE),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H"),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight", "E"),
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F"),
    Row("blk.{i}.attn_q.bias", "layers.{i}.self_attn.q_proj.bias", "H", change=_INTERLEAVE, optional=True),
    Row("blk.{i}.attn_k.bias", "layers.{i}.self_attn.k_proj.bias", "K", change=_INTERLEAVE, optional=True),
    Row("blk.{i}.attn_v.bias", "layers.{i}.self_attn.v_proj.bias", "K", optional=True),
    Row("blk.{i}.attn_output.bias", "layers.{i}.self_attn.o_proj.bias", "E", optional=True),
    Row("blk.{i}.ffn_gate.bias", "layers.{i}.mlp.gate_proj.bias", "F", optional=True),
    Row("blk.{i}.ffn_up.bias", "layers.{i}.mlp.up_proj.bias", "F", optional=True),
    Row("blk.{i}.ffn_down.bias", "layers.{i}.mlp.down_proj.bias", "E", optional=True),
)


def _llama_dims(config: Config, kv_heads: int | None = None) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    return attention_dims(config, kv_heads=kv_heads) | {"F": config.integer("intermediate_size")}


def _mistral_dims(config: Config) -> Dims:
    window = config.values.get("sliding_window", 4096)  # transformers' default; null means no window
    no_window(config, None if window is None else config.integer("sliding_window", default=4096))
    return _llama_dims(config, kv_heads=8)


def _llama3_factors(rope: Config, head: int, context_length: int) -> Array:
    """The frequency factors of Llama 3.1, float32, one for each rotated pair.

    With wave = 2 pi theta^(2i/head) and b = clip((context/wave - low) / (high - low), 0, 1), the factor is
    1 / ((1 - b) / factor + b): long waves are stretched by `factor`, short waves are unchanged.
    """
    factor = rope.number("factor")
    low = rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    context = rope.number("original_max_position_embeddings", default=context_length)
    theta = rope.number("rope_theta", default=10_000.0)
    waves = 2 * math.pi * theta ** (np.arange(0, head, 2, dtype=np.float64) / head)
    blend = np.clip((context / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def _extra(config: Config, dims: Dims) -> list[TensorPlan]:
    kind, parameters, _ = full_rope(config, 10_000.0, _KINDS)
    length = config.integer("max_position_embeddings")
    return (
        [made("rope_freqs.weight", _llama3_factors(parameters, dims["D"], length))]
        if kind == "llama3"
        else []
    )


def _size(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [
        *size_metadata(config, dims),
        *head_metadata(dims),
        ("feed_forward_length", dims["F"]),
        ("vocab_size", dims["V"]),
        ("rope.dimension_count", dims["D"]),
        norm_epsilon(config),
    ]


def _metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [*_size(config, dims), *full_rope(config, 10_000.0, _KINDS)[2]]


def _mistral3_dims(config: Config) -> Dims:
    kind = _mistral3_kind(config)
    if kind not in ("mistral", "ministral3"):
        raise ConversionError(
            f"{config.where}: a text model of type {kind!r} is not supported; only mistral, ministral3"
        )
    if config.values.get("sliding_window") is not None:
        no_window(config, config.integer("sliding_window"))
    return _llama_dims(config, kv_heads=8)


def _mistral3_kind(config: Config) -> object:
    return config.values.get("model_type", "mistral")  # transformers' default for a text_config


def _mistral3_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    if _mistral3_kind(config) == "mistral":
        return _metadata(config, dims)
    kind, parameters = rope(config, 1_000_000.0)
    if kind != "yarn":
        raise ConversionError(f"{config.where}: rope type {kind!r} is not supported; Ministral 3's is 'yarn'")
    parameters.must_be("partial_rotary_factor", 1.0, 1.0)
    parameters.must_be("mscale", 1.0, 1.0)  # built into llama.cpp
    return [
        *_size(config, dims),
        ("rope.freq_base", parameters.number("rope_theta")),
        *yarn_metadata(parameters, config.integer("max_position_embeddings")),
        ("rope.scaling.yarn_log_multiplier", parameters.number("mscale_all_dim")),
        ("attention.temperature_scale", parameters.number("llama_4_scaling_beta")),
    ]


LLAMA = Family("llama", _ROWS, _llama_dims, all_layers, _metadata, tied=False, extra=_extra)
MISTRAL = Family("llama", _ROWS, _mistral_dims, all_layers, _metadata, tied=False, extra=_extra)
# If config.json has no tie_word_embeddings, the stored tensors decide.
MISTRAL3 = Family("mistral3", _ROWS, _mistral3_dims, all_layers, _mistral3_metadata, tied=None)
