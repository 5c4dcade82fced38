"""Gemma 4's text models: E2B and E4B (per-layer embeddings, shared keys and values), 26B-A4B (experts), 31B.

Sliding and full layers have different heads: axes H, K, D belong to sliding layers, G, J, W to full layers.
P is the width of a per-layer embedding, N the sum of P over all layers.

The full layers rotate only some pairs of each head. llama.cpp does this with frequency factors that stop the other
pairs. Unlike Gemma 3, the checkpoint stores the norms unchanged.
"""

import numpy as np

from edge.conversion.families.common import (
    attention_dims,
    expert_dims,
    layer_types,
    norm_epsilon,
    rope,
    size_metadata,
)
from edge.conversion.families.gemma3 import sliding_pattern
from edge.conversion.plan import Config, Dims, Family, Row, TensorPlan, Value, made
from edge.errors import ConversionError

_STOPPED = 1e30  # the factor of llama.cpp's converter for a pair that is not rotated

_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("output_norm.weight", "norm.weight", "E"),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("per_layer_token_embd.weight", "embed_tokens_per_layer.weight", "V N", "embedded"),
    Row("per_layer_model_proj.weight", "per_layer_model_projection.weight", "N E", "embedded"),
    Row("per_layer_proj_norm.weight", "per_layer_projection_norm.weight", "P", "embedded"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E"),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E", "sliding"),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "G E", "full"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H", "sliding"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E G", "full"),
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight", "D", "sliding"),
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight", "W", "full"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E", "sliding own"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "J E", "full own"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E", "sliding own"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "J E", "full own values"),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight", "D", "sliding own"),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight", "W", "full own"),
    # Published checkpoints still have these tensors in layers that share the keys and values of another layer.
    Row(
        "blk.{i}.attn_k.weight",
        "layers.{i}.self_attn.k_proj.weight",
        "K E",
        "sliding shared",
        optional=True,
        idle=True,
    ),
    Row(
        "blk.{i}.attn_k.weight",
        "layers.{i}.self_attn.k_proj.weight",
        "J E",
        "full shared",
        optional=True,
        idle=True,
    ),
    Row(
        "blk.{i}.attn_v.weight",
        "layers.{i}.self_attn.v_proj.weight",
        "K E",
        "sliding shared",
        optional=True,
        idle=True,
    ),
    Row(
        "blk.{i}.attn_v.weight",
        "layers.{i}.self_attn.v_proj.weight",
        "J E",
        "full shared",
        optional=True,
        idle=True,
    ),
    Row(
        "blk.{i}.attn_k_norm.weight",
        "layers.{i}.self_attn.k_norm.weight",
        "D",
        "sliding shared",
        optional=True,
        idle=True,
    ),
    Row(
        "blk.{i}.attn_k_norm.weight",
        "layers.{i}.self_attn.k_norm.weight",
        "W",
        "full shared",
        optional=True,
        idle=True,
    ),
    Row("blk.{i}.post_attention_norm.weight", "layers.{i}.post_attention_layernorm.weight", "E"),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.pre_feedforward_layernorm.weight", "E"),
    Row("blk.{i}.post_ffw_norm.weight", "layers.{i}.post_feedforward_layernorm.weight", "E"),
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E", "single"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E", "single"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F", "single"),
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "2F E", "double"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "2F E", "double"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E 2F", "double"),
    Row("blk.{i}.layer_output_scale.weight", "layers.{i}.layer_scalar", "1", optional=True),
    Row("blk.{i}.inp_gate.weight", "layers.{i}.per_layer_input_gate.weight", "P E", "embedded"),
    Row("blk.{i}.proj.weight", "layers.{i}.per_layer_projection.weight", "E P", "embedded"),
    Row("blk.{i}.post_norm.weight", "layers.{i}.post_per_layer_input_norm.weight", "E", "embedded"),
    Row("blk.{i}.ffn_gate_inp.weight", "layers.{i}.router.proj.weight", "X E", "moe", f32=True),
    Row("blk.{i}.ffn_gate_inp.scale", "layers.{i}.router.scale", "E", "moe"),
    Row("blk.{i}.ffn_gate_up_exps.weight", "layers.{i}.experts.gate_up_proj", "X 2M E", "moe"),
    Row("blk.{i}.ffn_down_exps.weight", "layers.{i}.experts.down_proj", "X E M", "moe"),
    Row("blk.{i}.ffn_down_exps.scale", "layers.{i}.router.per_expert_scale", "X", "moe"),
    Row("blk.{i}.pre_ffw_norm_2.weight", "layers.{i}.pre_feedforward_layernorm_2.weight", "E", "moe"),
    Row("blk.{i}.post_ffw_norm_1.weight", "layers.{i}.post_feedforward_layernorm_1.weight", "E", "moe"),
    Row("blk.{i}.post_ffw_norm_2.weight", "layers.{i}.post_feedforward_layernorm_2.weight", "E", "moe"),
)


def _dims(config: Config) -> Dims:
    config.must_be("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    config.must_be("attention_bias", False, False)
    if config.values.get("use_bidirectional_attention") not in (None, "vision"):
        raise ConversionError(
            f"{config.where}: use_bidirectional_attention "
            f"{config.values['use_bidirectional_attention']!r} is not supported by llama.cpp"
        )
    dims = attention_dims(config)
    heads = dims["H"] // dims["D"]
    width, full_kv_heads = _full_heads(config)
    kv_heads = full_kv_heads or dims["K"] // dims["D"]
    if heads % kv_heads or width % 2:
        raise ConversionError(
            f"{config.where}: {heads} heads of {width} cannot share {kv_heads} key/value heads in full layers"
        )
    layer = config.integer("hidden_size_per_layer_input", default=0, least=0)
    if layer:
        config.must_be("vocab_size_per_layer_input", dims["V"], None)
    experts = expert_dims(config, "top_k_experts") if _moe(config) else {}
    return (
        dims
        | experts
        | {
            "F": config.integer("intermediate_size"),
            "G": heads * width,
            "J": kv_heads * width,
            "W": width,
            "P": layer,
            "N": layer * config.integer("num_hidden_layers"),
        }
    )


def _moe(config: Config) -> bool:
    return config.flag("enable_moe_block", default=False)


def _full_heads(config: Config) -> tuple[int, int | None]:
    """The head width of full layers, and their number of key/value heads (None: the same as in sliding layers).

    Published checkpoints have separate keys for them; transformers 5 writes an entry for each full layer.
    """
    layers = config.values.get("per_layer_config")
    if isinstance(layers, dict) and layers:
        full = {str(i) for i, kind in enumerate(_types(config)) if kind == "full_attention"}
        entries = list(layers.values())
        if set(map(str, layers)) != full or any(entry != entries[0] for entry in entries):
            raise ConversionError(f"{config.where}: per_layer_config is not one setting for all full layers")
        config = Config(config.where, entries[0] if isinstance(entries[0], dict) else {})
        kv_heads = config.integer("num_key_value_heads", default=0, least=0)
        return config.integer("head_dim", default=512), kv_heads or None
    kv_heads = config.integer("num_global_key_value_heads", default=0, least=0)
    gated = config.flag("attention_k_eq_v", default=False)
    return config.integer("global_head_dim", default=512), kv_heads if gated and kv_heads else None


def _types(config: Config) -> list[str]:
    count = config.integer("num_hidden_layers")
    default = [*sliding_pattern(count, 6)[:-1], "full_attention"]
    types = layer_types(config, default, "sliding_attention")
    if types[-1] != "full_attention":
        raise ConversionError(
            f"{config.where}: the last layer is {types[-1]}; in Gemma 4 it must be full_attention"
        )
    return types


def _own(config: Config) -> int:
    """The number of layers that have their own keys and values.

    The other layers share those of a layer before them. Raises ConversionError if llama.cpp would use another layer
    than transformers: llama.cpp uses the last two layers of this number, which must be a sliding and a full layer.
    """
    types = _types(config)
    own = len(types) - config.integer("num_kv_shared_layers", default=0, least=0)
    if own < 2 or (own < len(types) and types[own - 2 : own] != ["sliding_attention", "full_attention"]):
        raise ConversionError(
            f"{config.where}: llama.cpp needs two layers with their own keys and values, and directly before layers "
            "that share them a sliding and a full layer"
        )
    return own


def _layers(config: Config) -> list[set[str]]:
    own = _own(config)
    wide = config.flag("use_double_wide_mlp", default=False)
    same = config.flag("attention_k_eq_v", default=False)
    embedded = {"embedded"} if config.values["hidden_size_per_layer_input"] else set()
    moe = {"moe"} if _moe(config) else set()
    layers = []
    for i, name in enumerate(_types(config)):
        kind = name.removesuffix("_attention")
        kinds = {"all", kind, f"{kind} {'own' if i < own else 'shared'}"} | embedded | moe
        if kind == "full" and i < own and not same:
            kinds.add("full own values")
        layers.append(kinds | {"double" if wide and i >= own else "single"})
    return layers


def _rope(config: Config) -> tuple[Config, Config]:
    """The parameters of full and of sliding layers. Raises ConversionError for kinds that llama.cpp does not run."""
    kind, full = rope(config, 1_000_000.0, "full_attention")
    sliding_kind, sliding = rope(config, 10_000.0, "sliding_attention", theta="rope_local_base_freq")
    wanted = ("default" if config.values.get("rope_parameters") is None else "proportional", "default")
    if (kind, sliding_kind) != wanted:
        raise ConversionError(
            f"{config.where}: rope types {kind!r} in full and {sliding_kind!r} in sliding layers are not supported by "
            "llama.cpp, only 'proportional' and 'default'"
        )
    full.must_be("factor", 1.0, 1.0)
    sliding.must_be("partial_rotary_factor", 1.0, 1.0)
    return full, sliding


def _extra(config: Config, dims: Dims) -> list[TensorPlan]:
    full, _ = _rope(config)
    rotated = int(dims["W"] * full.number("partial_rotary_factor", default=0.25) / 2)
    factors = np.full(dims["W"] // 2, _STOPPED, np.float32)
    factors[:rotated] = 1
    return [made("rope_freqs.weight", factors)]


def _metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    full, sliding = _rope(config)
    types = _types(config)
    own = _own(config)
    slides = [kind == "sliding_attention" for kind in types]
    widths = [dims["F"]] * own + [2 * dims["F"]] * (len(types) - own)
    wide = config.flag("use_double_wide_mlp", default=False)
    kv_heads, full_kv_heads = dims["K"] // dims["D"], _full_heads(config)[1]
    per_layer = [kv_heads if slide else full_kv_heads for slide in slides] if full_kv_heads else kv_heads
    metadata: list[tuple[str, Value]] = [
        *size_metadata(config, dims),
        ("attention.head_count_kv", per_layer),
        ("feed_forward_length", widths if wide else dims["F"]),
        ("rope.freq_base", full.number("rope_theta")),
        ("rope.freq_base_swa", sliding.number("rope_theta")),
        ("rope.dimension_count", dims["W"]),
        ("rope.dimension_count_swa", dims["D"]),
        norm_epsilon(config),
        ("attention.key_length", dims["W"]),
        ("attention.value_length", dims["W"]),
        ("attention.key_length_swa", dims["D"]),
        ("attention.value_length_swa", dims["D"]),
        ("attention.sliding_window", config.integer("sliding_window")),
        ("attention.sliding_window_pattern", slides),
        ("attention.shared_kv_layers", len(types) - own),
        ("embedding_length_per_layer_input", dims["P"]),
    ]
    if config.values.get("final_logit_softcapping"):
        metadata.append(("final_logit_softcapping", config.number("final_logit_softcapping")))
    if _moe(config):
        metadata += [
            ("expert_count", dims["X"]),
            ("expert_used_count", config.integer("top_k_experts")),
            ("expert_feed_forward_length", dims["M"]),
        ]
    return metadata


_DEFAULTS = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
}
GEMMA4 = Family("gemma4", _ROWS, _dims, _layers, _metadata, tied=True, extra=_extra, defaults=_DEFAULTS)
