"""Lfm2 and Lfm2-MoE: short convolutions and some attention layers. L is the length of the convolution."""

from edge.conversion.families.common import attention_dims, expert_dims, full_rope, size_metadata
from edge.conversion.plan import GATE_HALF, KEEP, SQUEEZE, UP_HALF, Config, Dims, Family, Row, Value
from edge.errors import ConversionError


def _lfm2_dims(config: Config) -> Dims:
    config.must_be("conv_bias", False, False)
    dims = attention_dims(config)
    if dims["H"] != dims["E"]:
        raise ConversionError(
            f"{config.where}: heads x head width is {dims['H']}, but hidden_size is {dims['E']}"
        )
    return dims | {"F": _lfm2_feed_forward(config), "L": config.integer("conv_L_cache", default=3, least=2)}


def _lfm2_feed_forward(config: Config) -> int:
    """The dense width. Lfm2 (not Lfm2-MoE) derives it from intermediate_size as Llama 2 does.

    config.json can turn that off with block_auto_adjust_ff_dim.
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
    return _lfm2_dims(fixed) | expert_dims(config, "num_experts_per_tok")


def _lfm2_layers(config: Config) -> list[set[str]]:
    """For each layer: attention or conv, dense or moe. Raises ConversionError for other layer types."""
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
            f"{config.where}: layer_types must list full_attention or conv for each of {count} layers"
        )
    if len(set(types)) < 2:
        # llama.cpp's memory for hybrid models asserts that both kinds have tensors.
        raise ConversionError(
            f"{config.where}: all {count} layers are {types[0]}; llama.cpp needs both kinds"
        )
    names = config.values.get("architectures")
    moe = isinstance(names, list) and names[0] == "Lfm2MoeForCausalLM"
    n_dense = config.integer("num_dense_layers", default=2, least=0) if moe else count
    biased = "biased" if config.flag("use_expert_bias", default=True) else "unbiased"
    attention = {"full_attention": "attention", "conv": "conv"}
    return [
        {"all", attention[types[i]]} | ({"dense"} if i < n_dense else {"moe", biased}) for i in range(count)
    ]


def _lfm2_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    kv_heads = dims["K"] // dims["D"]
    # In llama.cpp, a layer with 0 key/value heads is a convolution.
    per_layer = [kv_heads if "attention" in kinds else 0 for kinds in _lfm2_layers(config)]
    return [
        *size_metadata(config, dims),
        ("attention.head_count_kv", per_layer),
        ("feed_forward_length", dims["F"]),
        ("vocab_size", dims["V"]),
        *full_rope(config, 1_000_000.0, {"default", "linear"})[2],
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
    Row("blk.{i}.shortconv.conv.weight", "layers.{i}.conv.conv.weight", "E L", "conv", SQUEEZE, f32=True),
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
    Row("blk.{i}.exp_probs_b.bias", "layers.{i}.feed_forward.expert_bias", "X", "unbiased", zeros=True),
    Row(
        "blk.{i}.ffn_gate_exps.weight",
        "layers.{i}.feed_forward.experts.{x}.w1.weight",
        "X M E",
        "moe",
        fused=("gate_up_proj", GATE_HALF),
    ),
    Row(
        "blk.{i}.ffn_up_exps.weight",
        "layers.{i}.feed_forward.experts.{x}.w3.weight",
        "X M E",
        "moe",
        fused=("gate_up_proj", UP_HALF),
    ),
    Row(
        "blk.{i}.ffn_down_exps.weight",
        "layers.{i}.feed_forward.experts.{x}.w2.weight",
        "X E M",
        "moe",
        fused=("down_proj", KEEP),
    ),
)

LFM2 = Family("lfm2", _LFM2_ROWS, _lfm2_dims, _lfm2_layers, _lfm2_metadata, tied=True)
LFM2MOE = Family("lfm2moe", _LFM2_ROWS + _MOE_ROWS, _lfm2moe_dims, _lfm2_layers, _lfm2moe_metadata, tied=True)
