"""Gemma 3's text model: every sixth layer has full attention, the others a sliding window.

The checkpoint stores each norm as its difference from 1.
"""

from edge.conversion.families.common import (
    attention_dims,
    head_metadata,
    layer_types,
    norm_epsilon,
    rope,
    rope_metadata,
    size_metadata,
)
from edge.conversion.plan import PLUS_ONE, Config, Dims, Family, Row, Value
from edge.errors import ConversionError

_PATTERN = 6  # llama.cpp's default, if the GGUF has no pattern
_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("output_norm.weight", "norm.weight", "E", change=PLUS_ONE),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E", change=PLUS_ONE),
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "H E"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H"),
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight", "D", change=PLUS_ONE),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight", "D", change=PLUS_ONE),
    Row(
        "blk.{i}.post_attention_norm.weight",
        "layers.{i}.post_attention_layernorm.weight",
        "E",
        change=PLUS_ONE,
    ),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.pre_feedforward_layernorm.weight", "E", change=PLUS_ONE),
    Row("blk.{i}.post_ffw_norm.weight", "layers.{i}.post_feedforward_layernorm.weight", "E", change=PLUS_ONE),
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F"),
)


def _dims(config: Config) -> Dims:
    config.must_be("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    config.must_be("attention_bias", False, False)
    config.must_be("attn_logit_softcapping", None, None)
    if config.values.get("use_bidirectional_attention"):
        raise ConversionError(f"{config.where}: use_bidirectional_attention is not supported by llama.cpp")
    dims = attention_dims(config)
    # llama.cpp recognizes the 27B model by its 62 layers. Only there the scale comes from the embedding width.
    large = config.integer("num_hidden_layers") == 62
    scale = dims["E"] // (dims["H"] // dims["D"]) if large else dims["D"]
    config.must_be("query_pre_attn_scalar", scale, None)
    return dims | {"F": config.integer("intermediate_size")}


def _types(config: Config) -> list[str]:
    pattern = config.integer("sliding_window_pattern", "_sliding_window_pattern", default=_PATTERN)
    default = sliding_pattern(config.integer("num_hidden_layers"), pattern)
    return layer_types(config, default, "sliding_attention")


def sliding_pattern(count: int, every: int) -> list[str]:
    """The types of `count` layers: sliding, and full if the number of the layer, from 1, is a multiple of `every`."""
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]


def _layers(config: Config) -> list[set[str]]:
    return [{"all"} for _ in _types(config)]


def _metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    context = config.integer("max_position_embeddings")
    kind, full = rope(config, 1_000_000.0, "full_attention")
    sliding_kind, sliding = rope(config, 10_000.0, "sliding_attention", theta="rope_local_base_freq")
    if sliding_kind != "default":
        raise ConversionError(
            f"{config.where}: rope type {sliding_kind!r} in sliding layers is not supported by llama.cpp"
        )
    for parameters in (full, sliding):
        parameters.must_be("partial_rotary_factor", 1.0, 1.0)
    metadata = [
        *size_metadata(config, dims),
        *head_metadata(dims),
        ("feed_forward_length", dims["F"]),
        *rope_metadata(kind, full, context, {"default", "linear"}),
        ("rope.freq_base_swa", sliding.number("rope_theta")),
        norm_epsilon(config),
    ]
    if config.values.get("final_logit_softcapping"):
        metadata.append(("final_logit_softcapping", config.number("final_logit_softcapping")))
    types = _types(config)
    if "sliding_attention" in types:
        metadata.append(("attention.sliding_window", config.integer("sliding_window")))
        if types != sliding_pattern(len(types), _PATTERN):
            metadata.append(
                ("attention.sliding_window_pattern", [kind == "sliding_attention" for kind in types])
            )
    return metadata


# The text_config of multimodal models contains little more than the sizes that differ from these.
_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA3 = Family("gemma3", _ROWS, _dims, _layers, _metadata, tied=True, defaults=_DEFAULTS)
