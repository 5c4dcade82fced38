"""Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE: full attention; llama.cpp rotates halves of a head, as transformers does."""

from edge.conversion.families.common import (
    all_layers,
    attention_dims,
    expert_dims,
    full_rope,
    head_metadata,
    layer_types,
    no_window,
    norm_epsilon,
    size_metadata,
)
from edge.conversion.plan import GATE_HALF, KEEP, UP_HALF, Config, Dims, Family, Row, Value
from edge.errors import ConversionError

_KINDS = {"default", "linear", "yarn"}

_OUTER_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("output_norm.weight", "norm.weight", "E"),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E"),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H"),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight", "E"),
)
_DENSE_ROWS = (
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F"),
)
_BIAS_ROWS = (
    Row("blk.{i}.attn_q.bias", "layers.{i}.self_attn.q_proj.bias", "H"),
    Row("blk.{i}.attn_k.bias", "layers.{i}.self_attn.k_proj.bias", "K"),
    Row("blk.{i}.attn_v.bias", "layers.{i}.self_attn.v_proj.bias", "K"),
)
_HEAD_NORM_ROWS = (
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight", "D"),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight", "D"),
)
MOE_ROWS = (
    Row("blk.{i}.ffn_gate_inp.weight", "layers.{i}.mlp.gate.weight", "X E", f32=True),
    Row(
        "blk.{i}.ffn_gate_exps.weight",
        "layers.{i}.mlp.experts.{x}.gate_proj.weight",
        "X M E",
        fused=("gate_up_proj", GATE_HALF),
    ),
    Row(
        "blk.{i}.ffn_up_exps.weight",
        "layers.{i}.mlp.experts.{x}.up_proj.weight",
        "X M E",
        fused=("gate_up_proj", UP_HALF),
    ),
    Row(
        "blk.{i}.ffn_down_exps.weight",
        "layers.{i}.mlp.experts.{x}.down_proj.weight",
        "X E M",
        fused=("down_proj", KEEP),
    ),
)


def _window(config: Config) -> None:
    """Raises ConversionError if use_sliding_window changes the results."""
    if not config.flag("use_sliding_window", default=False):
        return
    count = config.integer("num_hidden_layers")
    full = config.integer("max_window_layers", default=28, least=0)
    default = ["full_attention" if i < full else "sliding_attention" for i in range(count)]
    types = layer_types(config, default, "sliding_attention")
    if "sliding_attention" in types:
        no_window(config, config.integer("sliding_window", default=4096))


def _qwen2_dims(config: Config) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    _window(config)
    dims = attention_dims(config)
    if dims["H"] != dims["E"]:
        raise ConversionError(
            f"{config.where}: heads x head width is {dims['H']}, but hidden_size is {dims['E']}; "
            "llama.cpp's Qwen2 needs equal values"
        )
    return dims | {"F": config.integer("intermediate_size")}


def _qwen2_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [
        *size_metadata(config, dims),
        ("attention.head_count_kv", dims["K"] // dims["D"]),
        ("feed_forward_length", dims["F"]),
        *full_rope(config, 10_000.0, _KINDS)[2],
        norm_epsilon(config),
    ]


def _qwen3_dims(config: Config) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    config.must_be("attention_bias", False, False)
    _window(config)
    return attention_dims(config, head=128) | {"F": config.integer("intermediate_size")}


def _qwen3_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [
        *size_metadata(config, dims),
        *head_metadata(dims),
        ("feed_forward_length", dims["F"]),
        *full_rope(config, 10_000.0, _KINDS)[2],
        norm_epsilon(config),
    ]


def _qwen3moe_dims(config: Config) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    config.must_be("attention_bias", False, False)
    config.must_be("norm_topk_prob", True, False)
    config.must_be("decoder_sparse_step", 1, 1)
    if config.values.get("mlp_only_layers"):
        raise ConversionError(f"{config.where}: mlp_only_layers is not supported by llama.cpp")
    if config.flag("use_sliding_window", default=False):
        no_window(config, config.integer("sliding_window", default=4096))
    return attention_dims(config, kv_heads=4) | expert_dims(config, "num_experts_per_tok")


def _qwen3moe_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    metadata: list[tuple[str, Value]] = [
        *size_metadata(config, dims),
        *head_metadata(dims),
        ("feed_forward_length", config.integer("intermediate_size", default=6144)),
        *full_rope(config, 10_000.0, _KINDS)[2],
        norm_epsilon(config),
        ("expert_count", dims["X"]),
        ("expert_used_count", config.integer("num_experts_per_tok")),
        ("expert_feed_forward_length", dims["M"]),
    ]
    shared = "shared_expert_intermediate_size"  # 0 in some files: no shared expert
    if config.values.get(shared) is not None:
        config.must_be(shared, 0, 0)
        metadata.append(("expert_shared_feed_forward_length", 0))
    return metadata


QWEN2 = Family(
    "qwen2", _OUTER_ROWS + _DENSE_ROWS + _BIAS_ROWS, _qwen2_dims, all_layers, _qwen2_metadata, tied=False
)
QWEN3 = Family(
    "qwen3",
    _OUTER_ROWS + _DENSE_ROWS + _HEAD_NORM_ROWS,
    _qwen3_dims,
    all_layers,
    _qwen3_metadata,
    tied=False,
)
QWEN3MOE = Family(
    "qwen3moe",
    _OUTER_ROWS + MOE_ROWS + _HEAD_NORM_ROWS,
    _qwen3moe_dims,
    all_layers,
    _qwen3moe_metadata,
    tied=False,
)
