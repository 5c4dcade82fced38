"""Qwen3.5, dense and MoE: gated delta nets, with full attention in every fourth layer by default.

Further axes: Q keys of the delta net (heads x width), U its values, T its value heads, L length of the convolution,
S feed-forward of the shared expert.

A checkpoint groups the value heads of the delta net by key head. llama.cpp repeats the list of key heads instead. The
GGUF therefore has the first value head of each group, then the second of each group, and so on. A_log becomes
-exp(A_log). The checkpoint stores all norms except that of the delta net as their difference from 1.

A GGUF has multi-token prediction (MTP) layers last, as in llama.cpp's converter, if the checkpoint has them. edge does
not use them.
"""

import re
from dataclasses import replace

import numpy as np

from edge.conversion.families.common import (
    attention_dims,
    expert_dims,
    head_metadata,
    layer_types,
    norm_epsilon,
    rope,
    rope_metadata,
    size_metadata,
)
from edge.conversion.families.qwen import MOE_ROWS
from edge.conversion.plan import IDLE, PLUS_ONE, Array, Change, Config, Dims, Family, Row, Stored, Value
from edge.errors import ConversionError

_SECTIONS = [11, 11, 10]  # transformers' default of mrope_section


def _tiled(array: Array, dims: Dims, width: int) -> Array:
    """Reorder value heads of `width` rows: from groups by key head to one head of each group in turn."""
    groups = dims["key_heads"]
    return array.reshape(groups, -1, width, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _tiled_values(array: Array, dims: Dims) -> Array:
    """Queries and keys unchanged, then the values, reordered."""
    keys = 2 * dims["Q"]
    return np.concatenate([array[:keys], _tiled(array[keys:], dims, dims["head"])])


def _decay(array: Array) -> Array:
    """-exp(A_log) in float64, rounded to the nearest float32: numpy's float32 exponential is less exact."""
    with np.errstate(over="ignore"):  # write_weights reports infinity
        values: Array = (-np.exp(array.astype(np.float64))).astype(np.float32)
    return values


def _tiled_columns(array: Array, dims: Dims) -> Array:
    """The same reordering for columns."""
    heads = array.reshape(len(array), dims["key_heads"], -1, dims["head"])
    return heads.swapaxes(1, 2).reshape(array.shape)


_QKV = Change(_tiled_values)
_CONV = Change(
    lambda array, dims: _tiled_values(array[:, 0], dims), lambda shape, dims: (shape[0], 1, shape[1])
)
_HEADS = Change(lambda array, dims: _tiled(array, dims, dims["head"]))
_SCALARS = Change(lambda array, dims: _tiled(array, dims, 1))
_DECAY = Change(lambda array, dims: _tiled(_decay(array), dims, 1), wide=True)
_COLUMNS = Change(_tiled_columns, columns=True)

_ROWS = (
    Row("token_embd.weight", "embed_tokens.weight", "V E"),
    Row("output_norm.weight", "norm.weight", "E", change=PLUS_ONE),
    Row("output.weight", "lm_head.weight", "V E"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight", "E", change=PLUS_ONE),
    Row(
        "blk.{i}.post_attention_norm.weight",
        "layers.{i}.post_attention_layernorm.weight",
        "E",
        change=PLUS_ONE,
    ),
    # For each head its queries, then their gates
    Row("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight", "2H E", "full_attention"),
    Row("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight", "K E", "full_attention"),
    Row("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight", "K E", "full_attention"),
    Row("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight", "E H", "full_attention"),
    Row(
        "blk.{i}.attn_q_norm.weight",
        "layers.{i}.self_attn.q_norm.weight",
        "D",
        "full_attention",
        PLUS_ONE,
    ),
    Row(
        "blk.{i}.attn_k_norm.weight",
        "layers.{i}.self_attn.k_norm.weight",
        "D",
        "full_attention",
        PLUS_ONE,
    ),
    Row(
        "blk.{i}.attn_qkv.weight",
        "layers.{i}.linear_attn.in_proj_qkv.weight",
        "QKV E",
        "linear_attention",
        _QKV,
    ),
    Row(
        "blk.{i}.attn_gate.weight",
        "layers.{i}.linear_attn.in_proj_z.weight",
        "U E",
        "linear_attention",
        _HEADS,
    ),
    Row(
        "blk.{i}.ssm_conv1d.weight",
        "layers.{i}.linear_attn.conv1d.weight",
        "QKV L",
        "linear_attention",
        _CONV,
        f32=True,
    ),
    Row("blk.{i}.ssm_dt.bias", "layers.{i}.linear_attn.dt_bias", "T", "linear_attention", _SCALARS),
    Row("blk.{i}.ssm_a", "layers.{i}.linear_attn.A_log", "T", "linear_attention", _DECAY),
    Row(
        "blk.{i}.ssm_beta.weight",
        "layers.{i}.linear_attn.in_proj_b.weight",
        "T E",
        "linear_attention",
        _SCALARS,
    ),
    Row(
        "blk.{i}.ssm_alpha.weight",
        "layers.{i}.linear_attn.in_proj_a.weight",
        "T E",
        "linear_attention",
        _SCALARS,
    ),
    Row("blk.{i}.ssm_norm.weight", "layers.{i}.linear_attn.norm.weight", "head", "linear_attention"),
    Row(
        "blk.{i}.ssm_out.weight",
        "layers.{i}.linear_attn.out_proj.weight",
        "E U",
        "linear_attention",
        _COLUMNS,
    ),
    Row("blk.{i}.nextn.eh_proj.weight", "layers.{i}.mtp.fc.weight", "E 2E", "mtp"),
    Row("blk.{i}.nextn.enorm.weight", "layers.{i}.mtp.pre_fc_norm_embedding.weight", "E", "mtp", PLUS_ONE),
    Row("blk.{i}.nextn.hnorm.weight", "layers.{i}.mtp.pre_fc_norm_hidden.weight", "E", "mtp", PLUS_ONE),
    Row("blk.{i}.nextn.shared_head_norm.weight", "layers.{i}.mtp.norm.weight", "E", "mtp", PLUS_ONE),
)
_DENSE_ROWS = (
    Row("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight", "F E"),
    Row("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight", "F E"),
    Row("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight", "E F"),
)
_SHARED_ROWS = (
    Row("blk.{i}.ffn_gate_inp_shexp.weight", "layers.{i}.mlp.shared_expert_gate.weight", "1 E", f32=True),
    Row("blk.{i}.ffn_gate_shexp.weight", "layers.{i}.mlp.shared_expert.gate_proj.weight", "S E"),
    Row("blk.{i}.ffn_up_shexp.weight", "layers.{i}.mlp.shared_expert.up_proj.weight", "S E"),
    Row("blk.{i}.ffn_down_shexp.weight", "layers.{i}.mlp.shared_expert.down_proj.weight", "E S"),
)


_MTP = (
    "mtp.fc.weight",
    "mtp.norm.weight",
    "mtp.pre_fc_norm_embedding.weight",
    "mtp.pre_fc_norm_hidden.weight",
)


def _adapt(config: Config, stored: Stored) -> tuple[Config, Stored, list[str]]:
    """Rename the MTP tensors to those of a layer after the last layer. Leaves them out if they are not complete.

    Sets mtp_num_hidden_layers to the number of MTP layers in the checkpoint, which can be 0 although config.json has
    another number. Raises ConversionError for more than one.
    """
    lacking = [name for name in _MTP if name not in stored]
    rest = {name: tensor for name, tensor in stored.items() if not name.startswith("mtp.")}
    if lacking and len(rest) < len(stored):
        note = f"the MTP layer of the checkpoint lacks {lacking[0]}: left out, as edge does not run it"
        return replace(config, values=config.values | {"mtp_num_hidden_layers": 0}), rest, [note]
    count = config.integer("num_hidden_layers")
    renamed: Stored = {}
    n_mtp = 0
    for name, tensor in stored.items():
        layer = re.match(r"mtp\.layers\.(\d+)\.", name)
        if layer:
            n_mtp = max(n_mtp, int(layer[1]) + 1)
            name = f"layers.{count + int(layer[1])}.{name[layer.end() :]}"
        elif name.startswith("mtp."):
            name = f"layers.{count}.{name}"
        renamed[name] = tensor
    configured = config.integer("mtp_num_hidden_layers", default=n_mtp, least=0)
    notes = []
    if n_mtp > 1:
        raise ConversionError(f"{config.where}: {n_mtp} MTP layers; llama.cpp's converter supports one")
    if n_mtp:
        notes.append("edge converts the MTP layer, as llama.cpp's converter does, but does not run it")
    elif configured:
        notes.append(f"config.json has {configured} MTP layers, but the checkpoint has none")
    return replace(config, values=config.values | {"mtp_num_hidden_layers": n_mtp}), renamed, notes


def _dims(config: Config) -> Dims:
    config.must_be("hidden_act", "silu", "silu")
    config.must_be("attention_bias", False, False)
    config.must_be("attn_output_gate", True, True)
    dims = attention_dims(config)
    key_heads = config.integer("linear_num_key_heads")
    value_heads = config.integer("linear_num_value_heads")
    head = config.integer("linear_key_head_dim")
    config.must_be("linear_value_head_dim", head, None)
    if value_heads % key_heads:
        raise ConversionError(
            f"{config.where}: {value_heads} value heads cannot share {key_heads} key heads evenly"
        )
    keys, values = key_heads * head, value_heads * head
    return dims | {
        "key_heads": key_heads,
        "head": head,
        "Q": keys,
        "U": values,
        "QKV": 2 * keys + values,
        "T": value_heads,
        "L": config.integer("linear_conv_kernel_dim", least=2),
    }


def _dense_dims(config: Config) -> Dims:
    return _dims(config) | {"F": config.integer("intermediate_size")}


def _moe_dims(config: Config) -> Dims:
    config.must_be("norm_topk_prob", True, True)
    shared = config.integer("shared_expert_intermediate_size")
    return _dims(config) | expert_dims(config, "num_experts_per_tok") | {"S": shared}


def _interval(config: Config) -> int:
    return config.integer("full_attention_interval", default=4)


def _layers(config: Config) -> list[set[str]]:
    count, interval = config.integer("num_hidden_layers"), _interval(config)
    default = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    types = layer_types(config, default, "linear_attention")
    if len(set(types)) < 2:
        # llama.cpp's memory for hybrid models asserts that both kinds have tensors.
        raise ConversionError(
            f"{config.where}: all {count} layers are {types[0]}; llama.cpp needs both kinds"
        )
    mtp = config.integer("mtp_num_hidden_layers", default=0, least=0)
    return [{"all", kind} for kind in types] + [{"all", "full_attention", "mtp", IDLE}] * mtp


def _metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    layers = _layers(config)
    mtp = sum("mtp" in kinds for kinds in layers)
    kind, parameters = rope(config, 10_000.0)
    rotated = int(dims["D"] * parameters.number("partial_rotary_factor", default=0.25))
    metadata = [
        *size_metadata(config, dims, len(layers)),
        *head_metadata(dims),
        *rope_metadata(
            kind, parameters, config.integer("max_position_embeddings"), {"default", "linear", "yarn"}
        ),
        ("rope.dimension_sections", _sections(parameters, rotated // 2, dims["D"])),
        ("rope.dimension_count", rotated),
        norm_epsilon(config),
        ("ssm.conv_kernel", dims["L"]),
        ("ssm.state_size", dims["head"]),
        ("ssm.group_count", dims["key_heads"]),
        ("ssm.time_step_rank", dims["T"]),
        ("ssm.inner_size", dims["U"]),
        ("attention.recurrent_layers", ["linear_attention" in kinds for kinds in layers]),
        ("full_attention_interval", _interval(config)),
    ]
    return metadata + ([("nextn_predict_layers", mtp)] if mtp else [])


def _sections(parameters: Config, pairs: int, width: int) -> list[int]:
    """rope.dimension_sections: how many of the rotated pairs follow time, height and width, which alternate.

    For text all three are the position of the token. llama.cpp does not rotate a pair outside the sections, and
    asserts that they fit into the head. Raises ConversionError if the sections do not fit or miss a pair.
    """
    sections = parameters.values.get("mrope_section", _SECTIONS)
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(type(n) is int and n >= 0 for n in sections)
        or not 0 < sum(sections) <= width
    ):
        raise ConversionError(
            f"{parameters.where}: mrope_section {sections!r} is not three counts that fit into a head of {width}"
        )
    if any(pair >= 3 * sections[pair % 3] for pair in range(min(pairs, sum(sections)))):
        raise ConversionError(
            f"{parameters.where}: mrope_section {sections} does not cover {pairs} rotated pairs in turn"
        )
    return [*sections, 0]


def _dense_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    return [*_metadata(config, dims), ("feed_forward_length", dims["F"])]


def _moe_metadata(config: Config, dims: Dims) -> list[tuple[str, Value]]:
    dense = config.integer("intermediate_size", default=0, least=0)  # some files have it, without effect
    return [
        *_metadata(config, dims),
        *([("feed_forward_length", dense)] if dense else []),
        ("expert_count", dims["X"]),
        ("expert_used_count", config.integer("num_experts_per_tok")),
        ("expert_feed_forward_length", dims["M"]),
        ("expert_shared_feed_forward_length", dims["S"]),
    ]


_DEFAULTS = {
    "vocab_size": 248_320,
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
QWEN35 = Family(
    "qwen35",
    _ROWS + _DENSE_ROWS,
    _dense_dims,
    _layers,
    _dense_metadata,
    tied=False,
    defaults=_DEFAULTS | {"num_key_value_heads": 4},
    adapt=_adapt,
)
QWEN35MOE = Family(
    "qwen35moe",
    _ROWS + MOE_ROWS + _SHARED_ROWS,
    _moe_dims,
    _layers,
    _moe_metadata,
    tied=False,
    defaults=_DEFAULTS | {"num_key_value_heads": 2, "shared_expert_intermediate_size": 512},
    adapt=_adapt,
)
