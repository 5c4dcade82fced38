"""What differs between model architectures: one table each of tensor names, shapes, transforms,
hyper-parameters.

To add a family, add one `Family` to FAMILIES: its rows say which stored tensor becomes which GGUF tensor, in
which shape, and what is done to it on the way. Names on the GGUF side are llama.cpp's (gguf-py's
constants.py); which tensors are always float32 follows llama.cpp's converter, since its kernels for them
know nothing else.

Axes in a row's shape: V vocabulary, E embedding, F feed-forward, H query heads x head width, K key/value
heads x head width, D head width, X experts, M an expert's feed-forward, L the short convolution's length.
"""

import math
from typing import Any

import numpy as np

from edge.checkpoint import Checkpoint
from edge.errors import ConversionError
from edge.plan import Array, Config, Dims, Family, Plan, Row, TensorPlan, Value, made, match

# LLAMA_MAX_EXPERTS: llama.cpp asserts it, beyond it the process would end.
_MAX_EXPERTS = 1024


def make_plan(checkpoint: Checkpoint) -> Plan:
    """What the GGUF of a checkpoint holds. Raises ConversionError, see `edge.plan.match`; unknown
    architecture.
    """
    config = Config(str(checkpoint.folder / "config.json"), checkpoint.config)
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise ConversionError(f"{config.where}: names no architecture")
    if name not in FAMILIES:
        raise ConversionError(f"{config.where}: {name} is not supported; edge converts {', '.join(FAMILIES)}")
    if config.values.get("quantization_config"):
        raise ConversionError(
            f"{config.where}: the checkpoint is quantized already; convert the original one"
        )
    return match(checkpoint, config, FAMILIES[name])


# --- hyper-parameters that families share ---


def _attention_dims(config: Config) -> Dims:
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ConversionError(f"{config.where}: {heads} heads cannot share {kv_heads} key/value heads evenly")
    if config.values.get("head_dim") is None and width % heads:
        raise ConversionError(f"{config.where}: hidden_size {width} is no multiple of {heads} heads")
    head = config.integer("head_dim", default=width // heads)
    if head % 2:
        raise ConversionError(f"{config.where}: head width {head} is odd; rotary positions need pairs")
    return {"V": config.integer("vocab_size"), "E": width, "H": heads * head, "K": kv_heads * head, "D": head}


def _attention_metadata(config: Config, dims: Dims, kv_heads: int | list[int]) -> list[tuple[str, Value]]:
    return [
        ("block_count", config.integer("num_hidden_layers")),
        ("context_length", config.integer("max_position_embeddings")),
        ("embedding_length", dims["E"]),
        ("feed_forward_length", dims["F"]),
        ("attention.head_count", dims["H"] // dims["D"]),
        ("attention.head_count_kv", kv_heads),
        ("vocab_size", dims["V"]),
    ]


def _rope(config: Config, default_theta: float) -> tuple[str, Config]:
    """The rotary embedding's kind and parameters, rope_theta among them.

    transformers 5 keeps all of it in rope_parameters, transformers 4 in rope_theta and rope_scaling.
    """
    config.must_be("partial_rotary_factor", 1.0, 1.0)
    given: dict[str, Any] = {"rope_theta": config.number("rope_theta", default=default_theta)}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.values.get(key)
        if isinstance(value, dict):
            given |= {key: entry for key, entry in value.items() if entry is not None}
    return str(given.get("rope_type", given.get("type", "default"))), Config(config.where, given)


def _rope_metadata(config: Config, default_theta: float, kinds: set[str]) -> list[tuple[str, Value]]:
    kind, rope = _rope(config, default_theta)
    if kind not in kinds:
        raise ConversionError(f"{config.where}: rope type {kind!r} is not supported; only {sorted(kinds)}")
    metadata: list[tuple[str, Value]] = [("rope.freq_base", rope.number("rope_theta", default=default_theta))]
    if kind == "linear":
        metadata += [("rope.scaling.type", kind), ("rope.scaling.factor", rope.number("factor", default=1.0))]
    return metadata


def _llama3_factors(rope: Config, head: int) -> Array:
    """Llama 3.1's frequency scaling: long waves are stretched by `factor`, short ones kept, those between
    blended.
    """
    factor = rope.number("factor", default=8.0)
    low = rope.number("low_freq_factor", default=1.0)
    high = rope.number("high_freq_factor", default=4.0)
    context = rope.number("original_max_position_embeddings", default=8192)
    theta = rope.number("rope_theta", default=10_000.0)
    waves = 2 * math.pi * theta ** (np.arange(0, head, 2, dtype=np.float64) / head)
    blend = np.clip((context / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


# --- llama ---


def _llama_dims(config: Config) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    return _attention_dims(config) | {"F": config.integer("intermediate_size")}


def _llama_extra(config: Config, dims: Dims) -> list[TensorPlan]:
    kind, rope = _rope(config, 10_000.0)
    return [made("rope_freqs.weight", _llama3_factors(rope, dims["D"]))] if kind == "llama3" else []


def _llama_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [
        *_attention_metadata(config, dims, dims["K"] // dims["D"]),
        *_rope_metadata(config, 10_000.0, {"default", "linear", "llama3"}),
        ("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", default=1e-6)),
        ("attention.key_length", dims["D"]),
        ("attention.value_length", dims["D"]),
        ("rope.dimension_count", dims["D"]),
    ]


_LLAMA = Family(
    architecture="llama",
    rows=(
        Row("token_embd.weight", "embed_tokens.weight", "V E"),
        Row("output_norm.weight", "norm.weight", "E"),
        Row("output.weight", "lm_head.weight", "V E"),
        Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E"),
        Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E", change="interleave"),
        Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E", change="interleave"),
        Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E"),
        Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H"),
        Row("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight", "E"),
        Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E"),
        Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E"),
        Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F"),
        Row(
            "blk.{i}.attn_q.bias", "layers.{i}.self_attn.q_proj.bias", "H", change="interleave", optional=True
        ),
        Row(
            "blk.{i}.attn_k.bias", "layers.{i}.self_attn.k_proj.bias", "K", change="interleave", optional=True
        ),
        Row("blk.{i}.attn_v.bias", "layers.{i}.self_attn.v_proj.bias", "K", optional=True),
        Row("blk.{i}.attn_output.bias", "layers.{i}.self_attn.o_proj.bias", "E", optional=True),
        Row("blk.{i}.ffn_gate.bias", "layers.{i}.mlp.gate_proj.bias", "F", optional=True),
        Row("blk.{i}.ffn_up.bias", "layers.{i}.mlp.up_proj.bias", "F", optional=True),
        Row("blk.{i}.ffn_down.bias", "layers.{i}.mlp.down_proj.bias", "E", optional=True),
    ),
    dims=_llama_dims,
    layers=lambda config: [{"all"}] * config.integer("num_hidden_layers"),
    metadata=_llama_metadata,
    extra=_llama_extra,
    tied=False,
)


# --- lfm2 and lfm2moe: short convolutions with some attention layers between ---


def _lfm2_dims(config: Config) -> Dims:
    config.must_be("conv_bias", False, False)
    dims = _attention_dims(config)
    if dims["H"] != dims["E"]:
        raise ConversionError(
            f"{config.where}: heads x head width is {dims['H']}, but hidden_size is {dims['E']}"
        )
    return dims | {"F": _lfm2_feed_forward(config), "L": config.integer("conv_L_cache", default=3, least=2)}


def _lfm2_feed_forward(config: Config) -> int:
    """The dense width. Lfm2 (not Lfm2Moe) derives it from intermediate_size in Llama 2's way, unless told
    not to.
    """
    width = config.integer("block_ff_dim", "intermediate_size")
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    if "block_ffn_dim_multiplier" in config.values and config.values["block_ffn_dim_multiplier"] is None:
        return width
    width = int(config.number("block_ffn_dim_multiplier", default=1.0) * width)
    multiple = config.integer("block_multiple_of", default=256)
    return multiple * -(-width // multiple)


def _lfm2moe_dims(config: Config) -> Dims:
    config.must_be("norm_topk_prob", True, True)
    config.must_be("routed_scaling_factor", 1.0, 1.0)
    fixed = Config(config.where, {**config.values, "block_auto_adjust_ff_dim": False, "block_ff_dim": None})
    experts = config.integer("num_experts")
    if not config.integer("num_experts_per_tok") <= experts <= _MAX_EXPERTS:
        raise ConversionError(
            f"{config.where}: {config.integer('num_experts_per_tok')} of {experts} experts a token; "
            f"llama.cpp takes at most {_MAX_EXPERTS}, and no more a token than there are"
        )
    return _lfm2_dims(fixed) | {"X": experts, "M": config.integer("moe_intermediate_size")}


def _lfm2_layers(config: Config) -> list[set[str]]:
    """Each layer's kinds: attention or conv, dense or moe."""
    count = config.integer("num_hidden_layers")
    types = config.values.get("layer_types")
    if types is None:
        indices = config.values.get("full_attn_idxs")
        indices = indices if isinstance(indices, list) else list(range(count))
        types = ["full_attention" if i in indices else "conv" for i in range(count)]
    if (
        not isinstance(types, list)
        or len(types) != count
        or not all(kind in ("full_attention", "conv") for kind in types)
    ):
        raise ConversionError(
            f"{config.where}: layer_types does not name full_attention or conv for {count} layers"
        )
    if len(set(types)) < 2:
        # Its memory for hybrids asserts that both kinds have tensors.
        raise ConversionError(
            f"{config.where}: all {count} layers are {types[0]}; llama.cpp needs both kinds"
        )
    moe = config.values["architectures"][0] == "Lfm2MoeForCausalLM"
    n_dense = config.integer("num_dense_layers", default=2, least=0) if moe else count
    biased = "biased" if config.flag("use_expert_bias", default=True) else "unbiased"
    attention = {"full_attention": "attention", "conv": "conv"}
    return [
        {"all", attention[types[i]]} | ({"dense"} if i < n_dense else {"moe", biased}) for i in range(count)
    ]


def _lfm2_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    kv_heads = dims["K"] // dims["D"]
    # llama.cpp tells the convolutions by their having no key/value heads.
    per_layer = [kv_heads if "attention" in kinds else 0 for kinds in _lfm2_layers(config)]
    return [
        *_attention_metadata(config, dims, per_layer),
        *_rope_metadata(config, 1_000_000.0, {"default", "linear"}),
        ("attention.layer_norm_rms_epsilon", config.number("norm_eps", default=1e-5)),
        ("shortconv.l_cache", dims["L"]),
    ]


def _lfm2moe_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [
        *_lfm2_metadata(config, dims),
        ("expert_count", dims["X"]),
        ("expert_used_count", config.integer("num_experts_per_tok")),
        ("expert_feed_forward_length", dims["M"]),
        ("leading_dense_block_count", config.integer("num_dense_layers", default=2, least=0)),
        ("expert_gating_func", 2),  # sigmoid
    ]


def _no_extra(config: Config, dims: Dims) -> list[TensorPlan]:
    return []


_LFM2_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("token_embd_norm.weight", "embedding_norm.weight", "E"),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.operator_norm.weight", "E"),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E", "attention"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E", "attention"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E", "attention"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.out_proj.weight", "E H", "attention"),
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_layernorm.weight", "D", "attention"),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_layernorm.weight", "D", "attention"),
    Row("blk.{i}.shortconv.conv.weight", "layers.{i}.conv.conv.weight", "E L", "conv", "squeeze", f32=True),
    Row("blk.{i}.shortconv.in_proj.weight", "layers.{i}.conv.in_proj.weight", "3E E", "conv"),
    Row("blk.{i}.shortconv.out_proj.weight", "layers.{i}.conv.out_proj.weight", "E E", "conv"),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.ffn_norm.weight", "E"),
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.feed_forward.w1.weight", "F E", "dense"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.feed_forward.w3.weight", "F E", "dense"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.feed_forward.w2.weight", "E F", "dense"),
)
_MOE_ROWS = (
    Row("blk.{i}.ffn_gate_inp.weight", "layers.{i}.feed_forward.gate.weight", "X E", "moe", f32=True),
    Row("blk.{i}.exp_probs_b.bias", "layers.{i}.feed_forward.expert_bias", "X", "biased"),
    Row("blk.{i}.exp_probs_b.bias", "layers.{i}.feed_forward.expert_bias", "X", "unbiased", "zeros"),
    Row("blk.{i}.ffn_gate_exps.weight", "layers.{i}.feed_forward.experts.{x}.w1.weight", "X M E", "moe"),
    Row("blk.{i}.ffn_up_exps.weight", "layers.{i}.feed_forward.experts.{x}.w3.weight", "X M E", "moe"),
    Row("blk.{i}.ffn_down_exps.weight", "layers.{i}.feed_forward.experts.{x}.w2.weight", "X E M", "moe"),
)

FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "Lfm2ForCausalLM": Family(
        "lfm2", _LFM2_ROWS, _lfm2_dims, _lfm2_layers, _lfm2_metadata, _no_extra, tied=True
    ),
    "Lfm2MoeForCausalLM": Family(
        "lfm2moe",
        _LFM2_ROWS + _MOE_ROWS,
        _lfm2moe_dims,
        _lfm2_layers,
        _lfm2moe_metadata,
        _no_extra,
        tied=True,
    ),
}
