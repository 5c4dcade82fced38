"""Test the table of each family: the logits of a small model, omitted and repaired tensors, and refusals.

    pytest tests/conversion/test_families.py

scripts/compare_families.py compares the bits with llama.cpp's own converter; docs/families.md has its results.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from allocate import ALLOCATE
from conftest import random_folder
from gguf import GGUFReader
from logits import assert_same_logits, same_logits

from edge.conversion.families import FAMILIES, make_plan
from edge.conversion.inspect import inspect
from edge.convert import TensorTypes, convert
from edge.errors import ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.formats.imatrix import read_imatrix
from edge.llama.memory import buffers, read_shape

pytestmark = pytest.mark.slow

Change = Callable[[dict[str, Any]], object]


def family(name: str) -> Path:
    """A small checkpoint of a family in tests/helpers/make_random.py."""
    import make_random

    return random_folder(name, make_random.FAMILIES[name])


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """Copies a checkpoint folder, changes its config.json and renames its tensors."""

    def change(folder: Path, change: Change = lambda config: None, rename: Any = None) -> Path:
        target = Path(shutil.copytree(folder, tmp_path / "changed"))
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        change(config)
        (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if rename is not None:
            rename_tensors(target / "model.safetensors", rename)
        return target

    return change


def rename_tensors(
    path: Path, rename: Callable[[str], str], extra: dict[str, list[int]] | None = None
) -> None:
    """Rename the tensors without a change of their data, and append the tensors in `extra` (bfloat16 zeros)."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = {name if name == "__metadata__" else rename(name): entry for name, entry in header.items()}
    end = len(data) - 8 - length
    more = 0
    for name, shape in (extra or {}).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end + more, end + more + size]}
        more += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + bytes(more))


def contents(path: Path) -> dict[str, tuple[Any, ...]]:
    return {
        tensor.name: (tensor.tensor_type, tuple(tensor.shape), tensor.data.tobytes())
        for tensor in GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items() if "." in key}


# --- logits ---


@pytest.mark.parametrize(
    "name",
    [
        "qwen2",
        "qwen3",
        "qwen3moe",
        "qwen35",
        "qwen35moe",
        "gemma3",
        "gemma4-e2b",
        "gemma4-31b",
        "gemma4-26b-a4b",
        "mistral",
        "ministral3",
    ],
)
def test_same_logits_as_transformers(name: str, tmp_path: Path, one_thread: None) -> None:
    assert_same_logits(family(name), tmp_path)


YARN = {"rope_type": "yarn", "rope_theta": 20_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# A person's edit of a folder that transformers 5 saved: it counts, as in transformers.
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
SCALING = {name: value for name, value in YARN.items() if name != "rope_theta"}
NESTED = {"full_attention": {**PLAIN, "rope_theta": 5e5}, "sliding_attention": PLAIN}
OLD_GEMMA = {"rope_theta": 500_000.0, "rope_local_base_freq": 5_000.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3", {"rope_parameters": YARN}),
        ("qwen3moe", {"num_experts_per_tok": 3}),
        (
            "qwen35",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0, "partial_rotary_factor": 0.5}},
        ),
        (
            "gemma3",
            {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, **OLD_GEMMA},
        ),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 5, "full_attention"]}),
        ("mistral", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": PLAIN, "rope_theta": 1e4, "rope_scaling": SCALING}),
        ("mistral", {"rope_parameters": YARN, "rope_theta": 1e4, "rope_scaling": YARN}),
        (
            "gemma3",
            {"rope_parameters": NESTED, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
    ids=[
        "qwen3-yarn",
        "three-experts",
        "half-rotated",
        "gemma3-v4",
        "gemma3-pattern",
        "mistral-yarn",
        "qwen3-scaling-beside-parameters",
        "mistral-scaling-twice",
        "gemma3-scaling-beside-parameters",
    ],
)
def test_hyper_parameters(
    name: str, changes: dict[str, Any], copy: Callable[..., Path], tmp_path: Path, one_thread: None
) -> None:
    def change(config: dict[str, Any]) -> None:
        config.update(changes)
        for key in [key for key, value in config.items() if value is None and key in changes]:
            del config[key]

    assert_same_logits(copy(family(name), change), tmp_path)


def test_the_delta_nets_heads_are_told_apart(
    copy: Callable[..., Path], tmp_path: Path, one_thread: None
) -> None:
    """The test can fail: with 3 groups of 2 value heads instead of 2 groups of 3, the logits differ."""
    other = copy(family("qwen35"), lambda c: c.update(linear_num_key_heads=2, linear_num_value_heads=6))
    path = convert(other, quant="F32", out=tmp_path / "x.gguf", threads=1).path
    data = bytearray(path.read_bytes())
    key = b"qwen35.full_attention_interval"
    assert key in data
    tensors = contents(path)
    beta = tensors["blk.0.ssm_beta.weight"][2]
    at = data.index(beta)
    rows = np.frombuffer(beta, np.float32).reshape(6, -1)
    data[at : at + len(beta)] = rows[[0, 2, 4, 1, 3, 5]].tobytes()
    path.write_bytes(data)
    difference, _ = same_logits(family("qwen35"), path)
    assert difference > 0.005


# --- what a checkpoint may look like ---


@pytest.mark.parametrize(
    ("one", "other"), [("qwen3moe", "qwen3moe-fused"), ("qwen35moe", "qwen35moe-unfused")]
)
def test_experts_fused_or_one_by_one(one: str, other: str, tmp_path: Path, one_thread: None) -> None:
    a = convert(family(one), quant="BF16", out=tmp_path / "a.gguf").path
    b = convert(family(other), quant="BF16", out=tmp_path / "b.gguf").path
    assert contents(a) == contents(b)


@pytest.mark.parametrize(
    ("name", "parent", "towers"),
    [
        ("qwen35", "qwen35-parent", "visual (2 tensors)"),
        ("gemma3", "gemma3-parent", "multi_modal_projector, vision_tower (2 tensors)"),
        ("gemma4-e2b", "gemma4-parent", "audio_tower, embed_audio, embed_vision, vision_tower (4 tensors)"),
    ],
)
def test_a_multimodal_parent_gives_its_text_model(
    name: str, parent: str, towers: str, tmp_path: Path, one_thread: None
) -> None:
    alone = convert(family(name), quant="BF16", out=tmp_path / "a.gguf")
    whole = convert(family(parent), quant="BF16", out=tmp_path / "b.gguf")
    assert contents(alone.path) == contents(whole.path)
    a, b = metadata(alone.path), metadata(whole.path)
    assert {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {"edge.crc32"} == {
        "general.name"  # and the checksum of the header
    }
    note = f"{towers} omitted: the GGUF contains only the text model"
    assert whole.warnings == (note, *alone.warnings)


@pytest.mark.parametrize("name", ["gemma3-parent", "gemma4-parent", "qwen35-parent"])
def test_defaults_are_transformers_own(name: str, copy: Callable[..., Path], one_thread: None) -> None:
    """Published multimodal models omit keys with default values: our defaults are those of transformers."""
    from transformers import AutoConfig

    folder = copy(family(name))
    defaults = FAMILIES[json.loads((folder / "config.json").read_text())["architectures"][0]].defaults
    theirs = type(AutoConfig.from_pretrained(folder).text_config)().to_dict()
    assert defaults == {key: theirs[key] for key in defaults}


def test_doubled_prefixes_are_repaired(copy: Callable[..., Path], tmp_path: Path, one_thread: None) -> None:
    folder = copy(
        family("qwen35"),
        rename=lambda name: name.replace("model.", "model.language_model.language_model.", 1),
    )
    alone = convert(family("qwen35"), quant="BF16", out=tmp_path / "a.gguf")
    doubled = convert(folder, quant="BF16", out=tmp_path / "b.gguf")
    assert contents(alone.path) == contents(doubled.path)
    count = sum(name.startswith("model.") for name in load_names(folder))
    note = f"the doubled prefix model.language_model.language_model. was removed from {count} tensor names"
    assert doubled.warnings == (note, *alone.warnings)


def load_names(folder: Path) -> list[str]:
    return list(open_checkpoint(folder).tensors)


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe"])
def test_mtp_layers_are_kept(name: str, copy: Callable[..., Path], tmp_path: Path, one_thread: None) -> None:
    """As in llama.cpp's converter. The logits are still those of transformers, which has no such layer."""
    folder = family(f"{name}-mtp")
    done = convert(folder, quant="F32", out=tmp_path / "mtp.gguf", threads=1)
    fields = metadata(done.path)
    architecture = fields["general.architecture"]
    assert fields[f"{architecture}.block_count"] == 5
    assert fields[f"{architecture}.nextn_predict_layers"] == 1
    assert fields[f"{architecture}.attention.recurrent_layers"] == [True, True, True, False, False]
    assert {n for n in contents(done.path) if n.startswith("blk.4.nextn.")} == {
        f"blk.4.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    }
    assert "edge converts the MTP layer, as llama.cpp's converter does, but does not run it" in done.warnings
    difference, agreement = same_logits(folder, done.path)
    assert difference < 0.005 and agreement >= 0.995
    without = copy(family(name), lambda config: config.update(mtp_num_hidden_layers=1))
    done = convert(without, quant="BF16", out=tmp_path / "without.gguf")
    assert "nextn_predict_layers" not in " ".join(metadata(done.path))
    assert "config.json has 1 MTP layers, but the checkpoint has none" in done.warnings


def test_a_part_of_an_mtp_layer_is_left_out(copy: Callable[..., Path], one_thread: None) -> None:
    """A merge tool can drop some of its tensors. transformers reads none of them."""
    cut = copy(family("qwen35-mtp"), rename=lambda name: name.replace("mtp.fc.", "mtp.layers.0.x."))
    plan = make_plan(open_checkpoint(cut))
    assert plan.notes == (
        "the MTP layer of the checkpoint lacks mtp.fc.weight: left out, as edge does not run it",
    )
    assert not any("blk.4." in tensor.name for tensor in plan.tensors)


SHARED = {  # as published checkpoints have them, and transformers does not save them again
    f"model.layers.{layer}.self_attn.{part}_proj.weight": [width, 256]
    for layer, width in ((5, 32), (6, 64))
    for part in "kv"
}


@pytest.mark.parametrize(
    ("name", "extra", "quant"),
    [
        ("qwen35-mtp", {}, "IQ2_XXS"),
        ("qwen35-mtp", {}, "Q2_K_S"),
        ("qwen35moe-mtp", {}, "IQ1_S"),
        ("gemma4-e2b", SHARED, "IQ1_S"),
        ("gemma4-e2b", SHARED, "IQ3_XXS"),
    ],
)
def test_what_llama_cpp_does_not_run_needs_no_matrix(
    name: str,
    extra: dict[str, list[int]],
    quant: str,
    copy: Callable[..., Path],
    tmp_path: Path,
    one_thread: None,
) -> None:
    """An MTP layer, and keys and values that no layer reads: edge's own matrix has no weights for them."""
    folder = copy(family(name))
    rename_tensors(folder / "model.safetensors", lambda name: name, extra)
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "list the files " * 9}]
    rows.write_text(json.dumps({"task_id": "a", "step_idx": 0, "messages": messages, "ref_raw": "{}"}))
    done = convert(folder, quant=quant, calibrate=rows, out=tmp_path / "x.gguf", threads=1)
    kinds = {name: kind.name for name, (kind, _, _) in contents(done.path).items()}
    (note,) = [line for line in done.warnings if "edge does not run them" in line]
    example = note.rpartition("such as ")[2].removesuffix(")")
    assert kinds[example] == "Q4_K"
    assert not any("has no entry for" in line for line in done.warnings)
    matrix = tmp_path / "x.gguf.imatrix"
    assert example not in read_imatrix(matrix).entries
    assert inspect(done.path, source=folder, imatrix=matrix).ok
    # What llama.cpp runs keeps its type, and a type that the user names is not changed in silence.
    low = {"IQ1_S": "IQ1_S", "IQ2_XXS": "IQ2_XXS", "IQ3_XXS": "IQ3_XXS", "Q2_K_S": "Q2_K"}[quant]
    assert low in {kind for name, kind in kinds.items() if name.startswith("blk.0.")}
    named = TensorTypes(patterns=[(example.replace(".", r"\."), "iq2_xxs")])
    with pytest.raises(ConversionError, match=f"{example} in iq2_xxs needs an importance matrix"):
        convert(folder, quant=quant, imatrix=matrix, out=tmp_path / "y.gguf", tensor_types=named)


def test_norms_are_offset_in_float32(tmp_path: Path, one_thread: None) -> None:
    """1 + a bfloat16 is exact in float32, the type in the file, but not in bfloat16."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(family("gemma3") / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    path = convert(family("gemma3"), quant="BF16", out=tmp_path / "x.gguf").path
    written = np.frombuffer(contents(path)["blk.0.attn_norm.weight"][2], np.float32)
    exact = stored.to(torch.float64).numpy() + 1
    assert np.array_equal(written, exact.astype(np.float32))
    assert not np.array_equal(written, (stored + 1).to(torch.float32).numpy())


@pytest.mark.parametrize("name", ["qwen35-mtp", "gemma3", "gemma4-31b"])
def test_estimates_agree_with_what_llama_cpp_allocates(name: str, tmp_path: Path, one_thread: None) -> None:
    """Cache and state agree to the two digits of the log: delta nets have no keys, an MTP layer is not loaded."""
    path = convert(family(name), quant="BF16", out=tmp_path / "x.gguf").path
    run = subprocess.run(
        [sys.executable, "-c", ALLOCATE, str(path), "1024,2,512,1,0,1"],
        capture_output=True,
        text=True,
        check=True,
    )
    kv_cache, state, compute, output = (float(number) * 2**20 for number in run.stdout.split())
    need = buffers(read_shape(path), 1024)
    for estimate, allocated in ((need.kv_cache, kv_cache), (need.state, state), (need.output, output)):
        assert estimate == pytest.approx(allocated, abs=2**20 / 100)
    assert need.compute == pytest.approx(compute, abs=1e6)


# --- what llama.cpp would run wrongly, or would stop the process ---

WINDOW = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "layer_types": None}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        (
            "qwen2",
            WINDOW,
            "llama.cpp has no sliding window for this architecture, and the window of 64 is smaller",
        ),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported by llama.cpp, only 'silu'"),
        ("qwen2", {"head_dim": 32}, "heads x head width is 128, but hidden_size is 256"),
        ("qwen2", {"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads evenly"),
        ("qwen3", WINDOW, "no sliding window"),
        ("qwen3", {"attention_bias": True}, "attention_bias True is not supported"),
        ("qwen3", {"rope_parameters": PARTIAL}, "partial_rotary_factor 0.5 is not supported"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("qwen3", {"rope_parameters": YARN | {"attention_factor": 2.0}}, "attention_factor 2.0 is not"),
        ("qwen3", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast 16 is not supported"),
        ("qwen3", {"rope_parameters": YARN | {"truncate": False}}, "truncate False is not"),
        ("qwen3", {"rope_parameters": YARN | {"factor": None}}, "has no factor"),
        (
            "qwen3",
            {"rope_parameters": {**PLAIN, "rope_theta": 1e6}, "rope_scaling": SCALING},
            "rope_theta is 1000000.0 in rope_parameters, but rope_scaling beside it makes transformers use",
        ),
        (
            "qwen3",
            {"rope_parameters": YARN, "rope_theta": 1e4, "rope_scaling": SCALING | {"factor": 2.0}},
            " in rope_parameters and 2.0 in rope_scaling",
        ),
        (
            "qwen3",
            {"rope_parameters": YARN, "rope_theta": 1e4, "rope_scaling": {"rope_type": "default"}},
            "in rope_scaling; put the wanted values into rope_parameters",
        ),
        (
            "qwen35",
            {
                "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5},
                "rope_theta": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "partial_rotary_factor is 0.5 in rope_parameters and",
        ),
        ("qwen3", {"num_hidden_layers": 513}, "513 layers; llama.cpp takes at most 512"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob False is not supported"),
        ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2 is not supported"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers is not supported"),
        ("qwen3moe", WINDOW, "no sliding window"),
        ("qwen3moe", {"num_experts": 1025}, "2 of 1025 experts per token; llama.cpp takes at most 1024"),
        ("qwen3moe", {"num_experts_per_tok": 5}, "5 of 4 experts per token"),
        ("qwen35", {"linear_value_head_dim": 64}, "linear_value_head_dim 64 is not supported"),
        ("qwen35", {"linear_num_value_heads": 5}, "5 value heads cannot share 2 key heads evenly"),
        ("qwen35", {"attn_output_gate": False}, "attn_output_gate False is not supported"),
        ("qwen35", {"layer_types": ["linear_attention"] * 4}, "all 4 layers are linear_attention"),
        (
            "qwen35",
            {"layer_types": ["sliding_attention"] * 4},
            "must list full_attention or linear_attention",
        ),
        (
            "qwen35",
            {"rope_parameters": {"mrope_section": [40, 40, 40]}},
            "not three counts that fit into a head of 64",
        ),
        (
            "qwen35",
            {"rope_parameters": {"mrope_section": [8, 1, 1]}},
            "does not cover 8 rotated pairs in turn",
        ),
        ("qwen35moe", {"num_experts_per_tok": 5}, "5 of 4 experts per token"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
        (
            "gemma3",
            {"query_pre_attn_scalar": 128},
            "query_pre_attn_scalar 128 is not supported by llama.cpp, only 64",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope type 'linear' in sliding layers",
        ),
        (
            "gemma4-e2b",
            {"num_kv_shared_layers": 3},
            "before layers that share them a sliding and a full layer",
        ),
        ("gemma4-e2b", {"num_kv_shared_layers": 6}, "two layers with their own keys and values"),
        (
            "gemma4-e2b",
            {"vocab_size_per_layer_input": 512},
            "vocab_size_per_layer_input 512 is not supported",
        ),
        (
            "gemma4-e2b",
            {"use_bidirectional_attention": "all"},
            "use_bidirectional_attention 'all' is not supported",
        ),
        (
            "gemma4-e2b",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope types 'default' in full",
        ),
        ("gemma4-e2b", {"layer_types": ["sliding_attention"] * 7}, "the last layer is sliding_attention"),
        ("gemma4-e2b", {"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config is not one setting"),
        ("gemma4-26b-a4b", {"top_k_experts": 5}, "5 of 4 experts per token"),
        (
            "mistral",
            {"sliding_window": 64},
            "64 is smaller than max_position_embeddings 2048; set max_position_embeddings to 64",
        ),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("ministral3", {"model_type": "mistral4"}, "a text model of type 'mistral4' is not supported"),
        ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "Ministral 3's is 'yarn'"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_in_one_line(
    name: str, changes: dict[str, Any], problem: str, copy: Callable[..., Path], one_thread: None
) -> None:
    folder = copy(family(name), lambda config: config.update(changes))
    with pytest.raises(ConversionError) as caught:
        make_plan(open_checkpoint(folder))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen2", "qwen3moe", "qwen35", "gemma3", "gemma4-26b-a4b"])
def test_a_missing_or_foreign_tensor_is_named(name: str, copy: Callable[..., Path], one_thread: None) -> None:
    def spoil(tensor: str) -> str:
        return "model.layers.0.odd.weight" if tensor == "model.layers.0.input_layernorm.weight" else tensor

    folder = copy(family(name), rename=spoil)
    with pytest.raises(ConversionError, match=r"lacks layers\.0\.input_layernorm\.weight"):
        make_plan(open_checkpoint(folder))
    rename_tensors(
        folder / "model.safetensors", lambda t: t.replace("odd", "input_layernorm"), {"layers.0.odd": [4]}
    )
    with pytest.raises(ConversionError, match=r"layers\.0\.odd is not a tensor of a \w+ model"):
        make_plan(open_checkpoint(folder))


def test_every_family_has_a_model_here() -> None:
    import make_random

    tables = {FAMILIES[name].architecture for name in FAMILIES}
    assert tables - {"lfm2", "lfm2moe", "llama"} == {
        name.partition("-")[0].replace("ministral3", "mistral3")
        for name in make_random.FAMILIES
        if not name.startswith("mistral")
    }
