"""Rotary embeddings where config.json says them twice or in an older form: transformers' own frequencies are the judge.

pytest tests/conversion/test_rope.py
"""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from transformers import AutoConfig

from edge.conversion.families import FAMILIES
from edge.conversion.plan import Config, text_values
from edge.errors import ConversionError

SMALL = {"vocab_size": 1024, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"max_position_embeddings": 2048, "intermediate_size": 512, "num_hidden_layers": 2}
# Per family: its class of models, its settings, the module of transformers and its rotary embedding.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", {}, "llama.modeling_llama.Llama"),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}, "qwen3.modeling_qwen3.Qwen3"),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64, "num_hidden_layers": 7},
        "gemma3.modeling_gemma3.Gemma3",
    ),
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 8.0}
Frequencies = tuple[npt.NDArray[np.float64], float]


def config_of(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    architecture, settings, _ = KINDS[family]
    return {"architectures": [architecture], "model_type": family, **SMALL, **settings, **changes}


def of_transformers(family: str, config: dict[str, Any], folder: Path) -> dict[str, Frequencies]:
    """The frequency of each rotated pair and the factor of the attention, by type of layer."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    read = AutoConfig.from_pretrained(folder)
    module, _, start = f"transformers.models.{KINDS[family][2]}".rpartition(".")
    rotary = getattr(importlib.import_module(module), f"{start}RotaryEmbedding")(read)
    if family != "gemma3_text":
        return {"all": (rotary.inv_freq.double().numpy(), float(rotary.attention_scaling))}
    return {
        kind: (
            getattr(rotary, f"{kind}_inv_freq").double().numpy(),
            getattr(rotary, f"{kind}_attention_scaling"),
        )
        for kind in ("full_attention", "sliding_attention")
    }


def of_edge(config: dict[str, Any]) -> dict[str, Frequencies]:
    """The same as llama.cpp computes it from what edge writes (ggml's rope_yarn, with its defaults)."""
    family = FAMILIES[config["architectures"][0]]
    read = Config("config.json", {**family.defaults, **text_values(config)})
    dims = family.dims(read)
    written: dict[str, Any] = dict(family.metadata(read, dims))
    width = written.get("rope.dimension_count", dims["D"])
    pairs = np.arange(width // 2)
    base, kind = written["rope.freq_base"], written.get("rope.scaling.type")
    factor, attention = written.get("rope.scaling.factor", 1.0), 1.0
    full = base ** (-2.0 * pairs / width)
    if kind == "yarn":
        original = written["rope.scaling.original_context_length"]
        ends = [width * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1)]
        low, high = max(0, math.floor(ends[0])), min(width - 1, math.ceil(ends[1]))
        kept = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
        full, attention = full / factor * (1 - kept) + full * kept, 1 + 0.1 * math.log(factor)
    elif kind == "linear":
        full = full / factor
    for tensor in family.extra(read, dims):
        full = full / tensor.change(np.empty(0, np.float32))
    if "rope.freq_base_swa" not in written:
        return {"all": (full, attention)}
    sliding = written["rope.freq_base_swa"] ** (-2.0 * pairs / width)
    return {"full_attention": (full, attention), "sliding_attention": (sliding, 1.0)}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # The original context beside the values counts, not the one in them.
        ("qwen3", {"rope_parameters": YARN, "original_max_position_embeddings": 1024}),
        ("qwen3", {"rope_scaling": YARN, "rope_theta": 1e6, "original_max_position_embeddings": 2048}),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
        ),
        (
            "llama",
            {
                "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 1024},
                "original_max_position_embeddings": 512,
            },
        ),
        ("llama", {"rope_scaling": LLAMA3}),
        ("qwen3", {"rope_scaling": LINEAR, "original_max_position_embeddings": 512}),
        # One of the two has no effect alone.
        ("qwen3", {"rope_parameters": YARN | {"mscale_all_dim": 0}}),
        ("qwen3", {"rope_parameters": YARN | {"mscale": 0.7}}),
        ("gemma3_text", {"rope_scaling": LINEAR, "rope_theta": 1e6, "rope_local_base_freq": 2e4}),
        ("gemma3_text", {"rope_parameters": {"full_attention": LINEAR}, "rope_local_base_freq": 2e4}),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ],
)
def test_frequencies_are_those_of_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(family, changes)
    theirs, ours = of_transformers(family, config, tmp_path), of_edge(config)
    assert theirs.keys() == ours.keys()
    for kind, (frequencies, attention) in theirs.items():
        np.testing.assert_allclose(ours[kind][0], frequencies, rtol=1e-4)
        assert ours[kind][1] == pytest.approx(attention)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"rope_parameters": LINEAR},
            "rope_parameters has one set of values, which transformers ignores here",
        ),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_parameters has one set of values"),
        ({"rope_scaling": {"full_attention": LINEAR}}, "rope_scaling has values for each type of layer"),
        (
            {"rope_scaling": {"sliding_attention": {"rope_theta": 5e4}}},
            "rope_scaling has values for each type",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "no rope_type, so transformers does not scale"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
    ],
)
def test_what_transformers_ignores_is_refused(changes: dict[str, Any], problem: str) -> None:
    """Who wrote these values wanted them, and transformers runs the model without them."""
    with pytest.raises(ConversionError, match=problem):
        of_edge(config_of("gemma3_text", changes))


def test_a_parents_own_values_are_not_those_of_its_text_model(tmp_path: Path) -> None:
    """The usual edit for long contexts, in the wrong place: transformers reads text_config only."""
    text = config_of("gemma3_text", {})
    parent = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
    }
    edited = {**parent, "rope_scaling": LINEAR, "rope_theta": 5e5, "max_position_embeddings": 99}
    assert of_edge(edited)["full_attention"][0] == pytest.approx(of_edge(parent)["full_attention"][0])
    (tmp_path / "config.json").write_text(json.dumps(edited), encoding="utf-8")
    read = AutoConfig.from_pretrained(tmp_path).text_config
    assert read.rope_parameters["full_attention"] == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert read.max_position_embeddings == text_values(edited)["max_position_embeddings"] == 2048
