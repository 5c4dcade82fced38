"""Hyper-parameters that families share: attention sizes, rotary positions, experts, sliding windows."""

from edge.conversion.plan import Config, Dims, Value
from edge.errors import ConversionError

_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS: above it an assertion of llama.cpp stops the process


def attention_dims(config: Config, *, kv_heads: int | None = None, head: int | None = None) -> Dims:
    """The axes V, E, H, K and D. Raises ConversionError if the numbers of heads and their widths do not fit.

    `kv_heads` and `head` (a width): transformers' defaults of this family, if they are fixed numbers.
    """
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=kv_heads or heads)
    if heads % kv_heads:
        raise ConversionError(f"{config.where}: {heads} heads cannot share {kv_heads} key/value heads evenly")
    if head is None and config.values.get("head_dim") is None and width % heads:
        raise ConversionError(f"{config.where}: hidden_size {width} is not a multiple of {heads} heads")
    head = config.integer("head_dim", default=head or width // heads)
    if head % 2:
        raise ConversionError(f"{config.where}: head width {head} is odd; rotary positions need pairs")
    return {"V": config.integer("vocab_size"), "E": width, "H": heads * head, "K": kv_heads * head, "D": head}


def expert_dims(config: Config, used: str) -> Dims:
    """The axes X and M. `used`: the key with the number of experts per token. Raises ConversionError if too many."""
    experts = config.integer("num_experts", "num_local_experts")
    if not config.integer(used) <= experts <= _MAX_EXPERTS:
        raise ConversionError(
            f"{config.where}: {config.integer(used)} of {experts} experts per token; "
            f"llama.cpp takes at most {_MAX_EXPERTS} experts, and per token at most all of them"
        )
    return {"X": experts, "M": config.integer("moe_intermediate_size")}


def all_layers(config: Config) -> list[set[str]]:
    """The layers of a model that has one kind of layer."""
    return [{"all"}] * config.integer("num_hidden_layers")


def layer_types(config: Config, default: list[str], other: str) -> list[str]:
    """The value of layer_types. Raises ConversionError if a layer is not full_attention or `other`."""
    types = config.values.get("layer_types")
    if types is None:
        return default
    if (
        not isinstance(types, list)
        or len(types) != len(default)
        or not all(kind in ("full_attention", other) for kind in types)
    ):
        raise ConversionError(
            f"{config.where}: layer_types must list full_attention or {other} for each of {len(default)} layers"
        )
    return types


def size_metadata(config: Config, dims: Dims, layers: int | None = None) -> list[tuple[str, Value]]:
    """The size metadata of every architecture, without key/value heads. `layers` replaces num_hidden_layers."""
    return [
        ("block_count", layers or config.integer("num_hidden_layers")),
        ("context_length", config.integer("max_position_embeddings")),
        ("embedding_length", dims["E"]),
        ("attention.head_count", dims["H"] // dims["D"]),
    ]


def head_metadata(dims: Dims) -> list[tuple[str, Value]]:
    """The metadata of key/value heads and head widths."""
    return [
        ("attention.head_count_kv", dims["K"] // dims["D"]),
        ("attention.key_length", dims["D"]),
        ("attention.value_length", dims["D"]),
    ]


def norm_epsilon(config: Config) -> tuple[str, Value]:
    """The epsilon of the RMS norms, from rms_norm_eps."""
    return ("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", default=1e-6))


def no_window(config: Config, window: int | None) -> None:
    """Raises ConversionError if a sliding window is smaller than the context.

    llama.cpp runs this architecture with full attention only, so such a model would compute other results.
    """
    context = config.integer("max_position_embeddings")
    if window is not None and window < context:
        raise ConversionError(
            f"{config.where}: llama.cpp has no sliding window for this architecture, and the window of {window} is "
            f"smaller than max_position_embeddings {context}; set max_position_embeddings to {window} to convert it"
        )


def rope(
    config: Config, default_theta: float, layer_type: str | None = None, theta: str = "rope_theta"
) -> tuple[str, Config]:
    """The kind and the parameters of the rotary embedding, including rope_theta, of all layers or of one type.

    transformers 5 stores them in rope_parameters, transformers 4 in rope_theta (or the key `theta`) and rope_scaling.
    If config.json has both, rope_scaling counts, as in transformers 5 (modeling_rope_utils.py).

    Raises ConversionError if the two disagree about the scaling or about rope_theta, or if they have one set of values
    where transformers reads one for each type of layer, or the other way round.
    """
    base = config.number(theta, default=default_theta)
    parameters = _rope_values(config, "rope_parameters", layer_type)
    scaling = _rope_values(config, "rope_scaling", layer_type)
    given: dict[str, object] = {"rope_theta": base} | parameters | scaling
    if parameters and scaling:
        flat = layer_type is None
        _check_scaling(config, parameters, scaling, base if flat else given["rope_theta"], flat)
    if config.values.get("partial_rotary_factor") is not None:
        given.setdefault("partial_rotary_factor", config.values["partial_rotary_factor"])
    kind = str(given.get("rope_type", "default"))
    original = config.values.get("original_max_position_embeddings")
    if layer_type is None and kind in ("llama3", "yarn", "longrope") and original is not None:
        given["original_max_position_embeddings"] = original  # it counts, not the one beside the factor
    if layer_type == "full_attention":
        _check_layers(config, given)
    return kind, Config(config.where, given)


def _rope_values(config: Config, key: str, layer_type: str | None) -> dict[str, object]:
    """The values of rope_parameters or rope_scaling that are set, with `type`, the older name of `rope_type`."""
    value = config.values.get(key)
    if isinstance(value, dict) and layer_type is not None:
        # rope_scaling is the older key: a single set, for the full layers. rope_parameters has one for each type.
        older = key == "rope_scaling" and layer_type == "full_attention" and not _by_layer(value)
        value = value.get(layer_type) if key == "rope_parameters" else value if older else None
    if not isinstance(value, dict):
        return {}
    found = {name: entry for name, entry in value.items() if entry is not None}
    if "type" in found:
        found.setdefault("rope_type", found["type"])
    return found


def _by_layer(value: object) -> bool:
    """Whether rope_parameters or rope_scaling has one set of values for each type of layer."""
    return isinstance(value, dict) and not value.keys().isdisjoint(("full_attention", "sliding_attention"))


def _check_layers(config: Config, given: dict[str, object]) -> None:
    """Raises ConversionError if config.json has values of a form in which transformers ignores them (Gemma 3, 4)."""
    remedy = "put the wanted values into rope_parameters, under full_attention and sliding_attention"
    if _by_layer(config.values.get("rope_scaling")):
        raise ConversionError(
            f"{config.where}: rope_scaling has values for each type of layer, which transformers ignores; {remedy}, "
            "and remove rope_scaling"
        )
    older = config.values.get("rope_scaling")
    if isinstance(older, dict) and "rope_type" not in older and older.get("type", "default") != "default":
        raise ConversionError(
            f"{config.where}: rope_scaling has type {older['type']!r} and no rope_type, so transformers does not "
            "scale; name it rope_type, or remove rope_scaling"
        )
    flat = config.values.get("rope_parameters")
    if not isinstance(flat, dict) or _by_layer(flat):
        return
    kind = flat.get("rope_type", flat.get("type")) or "default"
    if kind != "default" or flat.get("rope_theta") not in (None, given["rope_theta"]):
        raise ConversionError(
            f"{config.where}: rope_parameters has one set of values, which transformers ignores here; {remedy}"
        )


def _check_scaling(
    config: Config, parameters: dict[str, object], scaling: dict[str, object], base: object, flat: bool
) -> None:
    """Raises ConversionError if rope_scaling contradicts rope_parameters.

    `base`: what rope_theta is without rope_parameters. `flat`: one set of values for all layers.
    """
    remedy = "put the wanted values into rope_parameters and remove rope_scaling"
    keys = parameters.keys() - {"rope_theta", "type"}
    if parameters.get("rope_type", "default") != "default":
        keys |= scaling.keys() - {"rope_theta", "type"}
    elif flat:
        keys -= {"rope_type"}
    else:  # transformers adds rope_scaling to what a layer type has
        keys = (keys & scaling.keys()) - {"rope_type"}
    for key in sorted(keys):
        wanted = scaling.get(key, config.values.get(key))
        if parameters.get(key) != wanted:
            raise ConversionError(
                f"{config.where}: {key} is {parameters.get(key)!r} in rope_parameters and {wanted!r} in "
                f"rope_scaling; {remedy}"
            )
    theta = scaling.get("rope_theta", base)
    if parameters.get("rope_theta", theta) != theta:
        raise ConversionError(
            f"{config.where}: rope_theta is {parameters['rope_theta']!r} in rope_parameters, but rope_scaling beside "
            f"it makes transformers use {theta!r}; {remedy}"
        )


def rope_metadata(kind: str, parameters: Config, context: int, kinds: set[str]) -> list[tuple[str, Value]]:
    """The rope.* metadata. `kinds`: the kinds that llama.cpp runs for this architecture.

    Raises ConversionError for another kind, and for YaRN parameters that differ from those built into llama.cpp.
    """
    if kind not in kinds:
        raise ConversionError(
            f"{parameters.where}: rope type {kind!r} is not supported; only {sorted(kinds)}"
        )
    metadata: list[tuple[str, Value]] = [("rope.freq_base", parameters.number("rope_theta"))]
    if kind == "linear":
        metadata += [
            ("rope.scaling.type", kind),
            ("rope.scaling.factor", parameters.number("factor")),
        ]
    if kind == "yarn":
        parameters.must_be("beta_fast", 32, 32)
        parameters.must_be("beta_slow", 1, 1)
        if parameters.values.get("mscale") and parameters.values.get(
            "mscale_all_dim"
        ):  # one alone has no effect
            parameters.must_be("mscale", None, None)
        metadata += yarn_metadata(parameters, context)
    return metadata


def yarn_metadata(parameters: Config, context: int) -> list[tuple[str, Value]]:
    """The rope.scaling.* metadata of YaRN. Raises ConversionError for parameters that llama.cpp does not read."""
    parameters.must_be("truncate", True, True)
    for key in ("attention_factor", "attn_factor", "extrapolation_factor"):
        parameters.must_be(key, None, None)
    original = parameters.integer("original_max_position_embeddings", default=context)
    betas = [key for key in ("beta_fast", "beta_slow") if key in parameters.values]
    return [
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.factor", parameters.number("factor")),
        ("rope.scaling.original_context_length", original),
        *((f"rope.scaling.yarn_{key}", parameters.number(key)) for key in betas),
    ]


def full_rope(
    config: Config, default_theta: float, kinds: set[str]
) -> tuple[str, Config, list[tuple[str, Value]]]:
    """`rope` and `rope_metadata` of a model that rotates whole heads, in the same way in every layer."""
    kind, parameters = rope(config, default_theta)
    parameters.must_be("partial_rotary_factor", 1.0, 1.0)
    context = config.integer("max_position_embeddings")
    return kind, parameters, rope_metadata(kind, parameters, context, kinds)
