"""Test that a float32 GGUF in llama.cpp gives the logits of transformers in float32.

    pytest tests/conversion/test_logits.py

On 200 tokens of real text the largest difference is under 0.5 % of the logits' range and the best token is the same at
99.5 % of the positions. A wrong permutation, rope base, norm epsilon, router or layer order misses both by far.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logits import N_TOKENS, assert_same_logits, llama_cpp_logits, real_text, transformers_logits

from edge.convert import convert

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "fixture",
    [
        "smollm2_folder",
        "tiny_folder",
        "random_lfm2moe_folder",
        "random_lfm2moe_fused_folder",
        "random_lfm2_folder",
        "random_llama_folder",
    ],
)
def test_same_logits_as_transformers(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, one_thread: None
) -> None:
    assert_same_logits(request.getfixturevalue(fixture), tmp_path)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Any]:
    """Copies a checkpoint folder and changes its config.json."""

    def change(folder: Path, **changes: Any) -> Path:
        target = tmp_path / "changed"
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (target / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        return target

    yield change


SCALED = {"rope_theta": 20_000.0, "factor": 4.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "changes",
    [
        # transformers 5 and 4 store the rotary base in different keys; 3000 is the default of neither
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}},
        {"rope_parameters": None, "rope_theta": 3000.0},
        {"rope_parameters": {"rope_type": "linear", **SCALED}},
        {"rope_parameters": None, "rope_theta": 20_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", **SCALED, **LLAMA3}},
        {"rms_norm_eps": 0.05},
    ],
    ids=["theta-5", "theta-4", "linear-5", "linear-4", "llama3", "eps"],
)
def test_llama_hyper_parameters(
    changes: dict[str, Any], random_llama_folder: Path, copy: Any, tmp_path: Path, one_thread: None
) -> None:
    assert_same_logits(copy(random_llama_folder, **changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_theta": 3000.0},
        {"norm_eps": 0.05},
        {"num_experts_per_tok": 3},
        {"use_expert_bias": False},
    ],
    ids=["theta-4", "eps", "three-experts", "no-expert-bias"],
)
def test_lfm2moe_hyper_parameters(
    changes: dict[str, Any], random_lfm2moe_folder: Path, copy: Any, tmp_path: Path, one_thread: None
) -> None:
    assert_same_logits(copy(random_lfm2moe_folder, **changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": None},  # full_attn_idxs alone gives the types of the layers
        {"block_auto_adjust_ff_dim": False, "intermediate_size": 512},
        {"intermediate_size": None, "block_ff_dim": 768},
    ],
    ids=["full_attn_idxs", "no-adjustment", "block_ff_dim"],
)
def test_lfm2_hyper_parameters(
    changes: dict[str, Any], random_lfm2_folder: Path, copy: Any, tmp_path: Path, one_thread: None
) -> None:
    assert_same_logits(copy(random_lfm2_folder, **changes), tmp_path)


def test_a_wrong_rope_base_is_noticed(
    random_llama_folder: Path, copy: Any, tmp_path: Path, one_thread: None
) -> None:
    """The test can fail: the logits differ if the GGUF has another rotary base than transformers."""
    from tokenizers import Tokenizer

    changed = copy(random_llama_folder, rope_parameters={"rope_type": "default", "rope_theta": 9000.0})
    gguf = convert(changed, quant="F32", out=tmp_path / "f32.gguf", threads=1).path
    ids = Tokenizer.from_file(str(changed / "tokenizer.json")).encode(real_text()).ids[:N_TOKENS]
    wanted, got = transformers_logits(random_llama_folder, ids), llama_cpp_logits(gguf, ids)
    assert np.abs(wanted - got).max() > 0.005 * float(wanted.max() - wanted.min())
