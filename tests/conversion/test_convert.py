"""Test `edge convert`: all types, all forms of checkpoints, all refusals.

    pytest tests/conversion/test_convert.py

test_logits.py tests that the converted weights compute what transformers computes.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge.convert import Converted, convert
from edge.errors import CheckpointError, ConversionError, EdgeError
from edge.formats.gguf import read_metadata, read_model_file, sha256
from edge.llama.types import NEEDS_IMATRIX, QUANT_TYPES

pytestmark = pytest.mark.slow

FLOATS = ["F32", "F16", "BF16"]


@pytest.fixture
def folder(random_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of a small checkpoint that a test can change."""
    return Path(shutil.copytree(random_llama_folder, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor of a GGUF."""
    return {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...}), encoding="utf-8"
    )


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object], out: Path | None = None) -> None:
    """Load the torch tensors of a checkpoint, change them, save them again."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, (out or folder) / "model.safetensors", {"format": "pt"})


# --- types ---


def shown(quant: str) -> str:
    """The name of a type in results and file names."""
    return quant.lower() if quant in FLOATS else quant


@pytest.mark.parametrize("quant", [quant for quant in QUANT_TYPES if quant not in NEEDS_IMATRIX])
def test_every_type(quant: str, random_small_moe_folder: Path, out: Path) -> None:
    """edge writes a file of each type, names and measures it, and llama.cpp computes with it."""
    import llama_cpp

    done = convert(random_small_moe_folder, quant=quant.lower(), out=out, threads=1)
    assert done.path == out / f"lfm2moe-small-{shown(quant)}.gguf"
    assert list(out.iterdir()) == [done.path]
    model = read_model_file(done.path)
    assert (model.file_type, done.quant, model.architecture) == (quant, shown(quant), "lfm2moe")
    assert done.n_bytes == done.path.stat().st_size
    assert done.sha256 == sha256(done.path)
    assert done.bits_per_weight == model.bits_per_weight
    # The widths are multiples of 256, so that no type falls back.
    assert not done.warnings
    digit = 32 if quant == "F32" else 16 if quant in FLOATS else int(next(c for c in quant if c.isdigit()))
    # In a model this small, Q6_K for the output matrix adds many bits per weight.
    assert digit <= done.bits_per_weight < digit + 3.5
    llm = llama_cpp.Llama(str(done.path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    try:
        llm.eval([1, 300, 301, 302])
        assert np.isfinite(llm.scores[:4]).all()
        assert llm.scores[3].std() > 0
    finally:
        llm.close()


def test_types_are_those_of_the_installed_library() -> None:
    import llama_cpp

    offered = {name.split("_", 2)[2] for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_")}
    names = {name.removeprefix("MOSTLY_").removeprefix("ALL_") for name in offered}
    assert set(QUANT_TYPES) == names - {"GUESSED", "NVFP4"}
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "IQ3_S", "TQ2_0"} <= set(QUANT_TYPES)
    assert (
        {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
        <= set(NEEDS_IMATRIX)
        < set(QUANT_TYPES)
    )


@pytest.mark.parametrize("quant", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"])
def test_types_that_need_an_importance_matrix_are_refused(
    quant: str, random_small_moe_folder: Path, out: Path
) -> None:
    with pytest.raises(ConversionError, match=f"^{quant} needs an importance matrix"):
        convert(random_small_moe_folder, quant=quant, out=out)
    assert not list(out.iterdir())


def test_unknown_type_names_the_known(random_small_moe_folder: Path, out: Path) -> None:
    with pytest.raises(ConversionError, match=r"Q5_K_X is .* llama\.cpp.* F32, F16, Q4_0"):
        convert(random_small_moe_folder, quant="Q5_K_X", out=out)


def test_smollm2_falls_back_where_its_width_does_not_fit(smollm2_folder: Path, out: Path) -> None:
    done = convert(smollm2_folder, quant="Q4_K_M", out=out, threads=1)
    assert done.warnings == (
        "180 of 272 tensors use another type, because their rows cannot be divided into Q4_K_M blocks",
    )


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_values_of_each_dtype_in_each_type(stored: str, out: Path, one_thread: None) -> None:
    """The bits are those of a torch cast, and for Q8_0 those that the gguf package quantizes from the checkpoint."""
    import make_random
    import torch
    from safetensors.torch import load_file

    folder = out / "model"
    make_random.llama(folder, dtype=getattr(torch, stored), num_hidden_layers=1, vocab_size=1024)
    weights = load_file(folder / "model.safetensors")
    for quant, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        got = tensors(convert(folder, quant=quant, out=out / f"{quant}.gguf").path)
        matrix = weights["model.layers.0.mlp.up_proj.weight"].to(dtype).contiguous()
        assert got["blk.0.ffn_up.weight"] == (quant, [256, 512], matrix.view(torch.uint8).numpy().tobytes())
        norm = weights["model.norm.weight"].float().numpy()
        assert got["output_norm.weight"] == ("F32", [256], norm.tobytes())
    got = tensors(convert(folder, quant="Q8_0", out=out / "x.gguf", threads=1).path)
    values = weights["model.layers.0.mlp.up_proj.weight"].float().numpy()
    wanted = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    assert got["blk.0.ffn_up.weight"][2] == wanted.tobytes()


# --- ways to store a checkpoint ---


def test_fused_experts_are_the_same_model(
    random_lfm2moe_folder: Path, random_lfm2moe_fused_folder: Path, out: Path
) -> None:
    one = convert(random_lfm2moe_folder, quant="BF16", out=out / "1.gguf")
    two = convert(random_lfm2moe_fused_folder, quant="BF16", out=out / "2.gguf")
    assert tensors(one.path) == tensors(two.path)
    assert any("gate_up_proj" in name for name in json_header(random_lfm2moe_fused_folder))
    assert any("experts.3.w2" in name for name in json_header(random_lfm2moe_folder))


def json_header(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        return list(file.keys())


def test_metadata_of_a_mixture(random_lfm2moe_folder: Path, out: Path) -> None:
    """The keys and values are those that llama.cpp's own converter writes for this config.json."""
    path = convert(random_lfm2moe_folder, quant="BF16", out=out).path
    metadata = read_metadata(path)
    assert {key: value for key, value in metadata.items() if key.startswith("lfm2moe.")} == {
        "lfm2moe.block_count": 6,
        "lfm2moe.context_length": 2048,
        "lfm2moe.embedding_length": 256,
        "lfm2moe.feed_forward_length": 512,
        "lfm2moe.attention.head_count": 4,
        "lfm2moe.attention.head_count_kv": [0, 0, 2, 0, 2, 0],
        "lfm2moe.vocab_size": 1024,
        "lfm2moe.rope.freq_base": 1_000_000.0,
        "lfm2moe.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "lfm2moe.shortconv.l_cache": 3,
        "lfm2moe.expert_count": 4,
        "lfm2moe.expert_used_count": 2,
        "lfm2moe.expert_feed_forward_length": 256,
        "lfm2moe.leading_dense_block_count": 2,
        "lfm2moe.expert_gating_func": 2,
    }
    assert metadata["general.size_label"] == "4x3.3M"
    assert metadata["general.file_type"] == 32
    assert metadata["tokenizer.ggml.pre"] == "lfm2"
    assert "{% generation %}" in metadata["tokenizer.chat_template"]
    types = {name: kind for name, (kind, _, _) in tensors(path).items()}
    assert "output.weight" not in types  # tied
    assert [
        kind for name, kind in types.items() if "norm" in name or "conv.conv" in name or "gate_inp" in name
    ] == ["F32"] * (1 + 6 * 2 + 2 * 2 + 4 + 4)


def test_shards_prefixes_mixed_dtypes_and_other_towers(
    random_lfm2moe_folder: Path, tmp_path: Path, out: Path, one_thread: None
) -> None:
    """A checkpoint like real fine-tunes: doubled prefixes, a vision tower, some tensors in F32, several shards."""
    import torch
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(random_lfm2moe_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {
        name.replace("model.", "model.language_model.language_model.", 1): value.float()
        if "norm" in name
        else value
        for name, value in weights.items()
    }
    renamed["model.vision_tower.patch.weight"] = torch.ones(3, 3)
    renamed["model.language_model.rotary_emb.inv_freq"] = torch.ones(32)
    save_torch_state_dict(renamed, folder, max_shard_size="4MB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) >= 3
    one = convert(random_lfm2moe_folder, quant="BF16", out=out / "1.gguf")
    two = convert(folder, quant="BF16", out=out / "2.gguf")
    assert tensors(one.path) == tensors(two.path)

    (folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    os.truncate(shards[-1], shards[-1].stat().st_size - 100)
    with pytest.raises(CheckpointError, match=r"truncated|no such file"):
        convert(folder, quant="BF16", out=out / "3.gguf")
    assert sorted(path.name for path in out.iterdir()) == ["1.gguf", "2.gguf"]


def test_same_input_same_bytes(random_small_moe_folder: Path, out: Path) -> None:
    first = convert(random_small_moe_folder, quant="Q4_K_M", out=out / "a.gguf", threads=1)
    second = convert(random_small_moe_folder, quant="Q4_K_M", out=out / "b.gguf", threads=2)
    assert first.sha256 == second.sha256


# --- refusals ---


def refused(folder: Path, out: Path, *, file: str = "", quant: str = "BF16") -> str:
    """The error line of a conversion into the folder `out`, which must leave no file behind."""
    before = sorted(out.iterdir())
    with pytest.raises(EdgeError) as caught:
        convert(folder, quant=quant, out=out / file)
    assert "\n" not in str(caught.value)
    assert sorted(out.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported; edge converts ",
        ),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is already quantized"),
        ({"hidden_size": ...}, "has no hidden_size"),
        ({"hidden_size": "256"}, "hidden_size is '256', not an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not an integer of at least 1"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "layers.1.input_layernorm.weight is not a tensor of a llama model"),
        ({"num_hidden_layers": 100_000}, "llama.cpp takes at most 512"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"head_dim": 33}, "head width 33 is odd"),
        ({"head_dim": 64}, "self_attn.q_proj.weight is [128, 256], but config.json asks for [256, 256]"),
        ({"vocab_size": 1000}, "embed_tokens.weight is [1024, 256], but config.json asks for [1000, 256]"),
        ({"tie_word_embeddings": "yes"}, "not true or false"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported by llama.cpp, only 'silu'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a positive number"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], problem: str, folder: Path, out: Path) -> None:
    change_config(folder, **changes)
    message = refused(folder, out)
    assert problem in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layer_types": ["conv"] * 5}, "layer_types must list full_attention or conv for each of 6 layers"),
        ({"layer_types": ["mamba"] * 6}, "layer_types must list full_attention or conv for each of 6 layers"),
        ({"layer_types": ["conv"] * 6}, "all 6 layers are conv; llama.cpp needs both kinds"),
        (
            {"layer_types": ["full_attention"] * 6},
            "all 6 layers are full_attention; llama.cpp needs both kinds",
        ),
        (
            {"layer_types": [*["conv"] * 5, "full_attention"]},
            "the checkpoint lacks layers.2.conv.conv.weight",
        ),
        ({"conv_bias": True}, "conv_bias True is not supported"),
        ({"norm_topk_prob": False}, "norm_topk_prob False is not supported"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor 2.5 is not supported"),
        ({"num_experts": 5}, "feed_forward.gate.weight is [4, 256], but config.json asks for [5, 256]"),
        ({"num_experts": 4000}, "llama.cpp takes at most 1024"),
        ({"num_experts_per_tok": 5}, "5 of 4 experts per token"),
        ({"moe_intermediate_size": 128}, "is [256, 256], but config.json asks for [128, 256]"),
        ({"num_dense_layers": 3}, "the checkpoint lacks layers.2.feed_forward.w1.weight"),
        ({"num_attention_heads": 8, "head_dim": 64}, "heads x head width is 512, but hidden_size is 256"),
        ({"conv_L_cache": 4}, "conv.conv.weight is [256, 1, 3], but config.json asks for [256, 1, 4]"),
    ],
)
def test_mixture_that_does_not_fit(
    changes: dict[str, Any], problem: str, random_lfm2moe_folder: Path, tmp_path: Path, out: Path
) -> None:
    folder = Path(shutil.copytree(random_lfm2moe_folder, tmp_path / "model"))
    change_config(folder, **changes)
    assert problem in refused(folder, out)


def test_fused_experts_of_another_layout(
    random_lfm2moe_fused_folder: Path, tmp_path: Path, out: Path
) -> None:
    folder = Path(shutil.copytree(random_lfm2moe_fused_folder, tmp_path / "model"))
    name = "model.layers.2.feed_forward.experts.gate_up_proj"
    change_weights(folder, lambda weights: weights.update({name: weights[name].transpose(1, 2).contiguous()}))
    assert f"{name} is [4, 256, 512], but config.json asks for [4, 512, 256]" in refused(folder, out)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_and_inf(dtype: str, value: float, folder: Path, out: Path, one_thread: None) -> None:
    import torch

    name = "model.layers.1.mlp.down_proj.weight"

    def damage(weights: dict[str, Any]) -> None:
        weights[name] = weights[name].to(getattr(torch, dtype))
        weights[name][255, 511] = value

    change_weights(folder, damage)
    for quant in ("F32", "F16", "Q8_0"):
        assert f"{name} holds NaN or Inf" in refused(folder, out, quant=quant)


def test_values_beyond_float16(folder: Path, out: Path, one_thread: None) -> None:
    def grow(weights: dict[str, Any]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 70_000.0

    change_weights(folder, grow)
    assert "exceeds float16's range; convert to BF16 or F32" in refused(folder, out, quant="F16")
    convert(folder, quant="BF16", out=out)


@pytest.mark.parametrize("quant", ["IQ3_S", "IQ4_XS", "Q4_K_M", "Q8_0"])
def test_values_that_no_type_can_hold(quant: str, folder: Path, out: Path, one_thread: None) -> None:
    """With some types llama.cpp would stop the process; with others it would write infinite scales."""

    def grow(weights: dict[str, Any]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 3e38

    change_weights(folder, grow)
    assert "mlp.up_proj.weight: values too large for" in refused(folder, out, quant=quant)


def test_the_same_tensor_twice(folder: Path, out: Path, one_thread: None) -> None:
    change_weights(
        folder, lambda weights: weights.update({"norm.weight": weights["model.norm.weight"].clone()})
    )
    assert "name the same tensor" in refused(folder, out)


def test_too_little_disk(folder: Path, out: Path) -> None:
    """A sparse checkpoint of terabytes is refused before edge writes anything."""
    width = (1 << 31) - 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"intermediate_size": width}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = [width if n == 512 else n for n in entry["shape"]]
            size = 2 * int(np.prod([int(n) for n in entry["shape"]], dtype=object))
            entry["data_offsets"] = [end, end + size]
            end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + end)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    for quant in ("BF16", "Q4_K_M"):
        assert "needed; choose another place with --out" in refused(folder, out, quant=quant)


def test_output_that_cannot_be_written(random_small_moe_folder: Path, out: Path) -> None:
    (out / "file").write_text("")
    assert "file is a file, not a folder" in refused(random_small_moe_folder, out, file="file/x.gguf")
    assert "file is a file, not a folder" in refused(random_small_moe_folder, out, file="file/a/b/x.gguf")
    os.mkfifo(out / "fifo")
    assert "is not a regular file" in refused(random_small_moe_folder, out, file="fifo")
    assert "cannot be written: File name too long" in refused(random_small_moe_folder, out, file="x" * 300)
    assert "cannot be written: embedded null byte" in refused(random_small_moe_folder, out, file="a\0b")
    for place, problem in (
        ("", "is empty"),
        ("/dev/null", "not a regular file"),
        ("/proc/x.gguf", "cannot be"),
        ("/proc", "^/proc: cannot be written"),  # the folder that the user named, not the file in it
    ):
        with pytest.raises(ConversionError, match=problem):  # before the source is read
            convert("no such source", quant="F16", out=place)
    (out / "folder.gguf").mkdir()
    convert(random_small_moe_folder, quant="F16", out=out / "folder.gguf")
    assert (out / "folder.gguf" / "lfm2moe-small-f16.gguf").is_file()


def test_a_link_stays_and_what_it_points_to_is_written(random_small_moe_folder: Path, out: Path) -> None:
    (out / "disk").mkdir()
    (out / "link.gguf").symlink_to(out / "disk" / "x.gguf")
    done = convert(random_small_moe_folder, quant="F16", out=out / "link.gguf")
    assert done.path == out / "link.gguf"
    assert done.path.is_symlink()
    assert (out / "disk" / "x.gguf").stat().st_size == done.n_bytes
    assert len(list(out.rglob("*"))) == 3
    (out / "disk" / "folder").mkdir()
    (out / "folder").symlink_to(out / "disk" / "folder")
    assert convert(random_small_moe_folder, quant="F16", out=out / "folder").n_bytes == done.n_bytes
    assert (out / "disk" / "folder" / "lfm2moe-small-f16.gguf").is_file()


def test_empty_source_and_too_many_threads(random_small_moe_folder: Path, out: Path) -> None:
    with pytest.raises(CheckpointError, match="the source is empty"):
        convert("", out=out)
    for threads in (0, 513):
        with pytest.raises(ConversionError, match=f"^{threads} threads: llama.cpp takes 1 to 512"):
            convert(random_small_moe_folder, out=out, threads=threads)
    assert not list(out.iterdir())


def test_aliases_of_types(random_small_moe_folder: Path, out: Path) -> None:
    for alias, quant in (("q3_k", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M"), ("mxfp4", "MXFP4_MOE")):
        done = convert(random_small_moe_folder, quant=alias, out=out, threads=1)
        assert (done.quant, done.path.name) == (quant, f"lfm2moe-small-{quant}.gguf")
        assert read_model_file(done.path).file_type == quant


def test_output_that_is_an_input_is_refused(folder: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        before = (folder / name).read_bytes()
        with pytest.raises(ConversionError, match="is an input of this command"):
            convert(folder, quant="BF16", out=folder / name)
        assert (folder / name).read_bytes() == before


def test_failure_keeps_the_older_file(folder: Path, out: Path) -> None:
    path = convert(folder, quant="BF16", out=out / "x.gguf").path
    before = path.read_bytes()
    change_config(folder, num_hidden_layers=3)
    refused(folder, out, file="x.gguf")
    assert path.read_bytes() == before


def test_default_output(
    random_small_moe_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's store; never ./models, and never through a link to another file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_MODELS", str(tmp_path / "store"))
    (tmp_path / "models").mkdir()
    written = convert(random_small_moe_folder, quant="F16").path
    assert written == tmp_path / "store" / "lfm2moe-small-f16.gguf" and written.is_file()
    assert not any((tmp_path / "models").iterdir())
    written.rename(tmp_path / "pulled")
    written.symlink_to(tmp_path / "pulled")
    before = (tmp_path / "pulled").read_bytes()
    with pytest.raises(ConversionError, match="is a link to another model's file"):
        convert(random_small_moe_folder, quant="F16")
    assert (tmp_path / "pulled").read_bytes() == before


def test_tokenization_is_checked_by_default(folder: Path, out: Path) -> None:
    """llama.cpp's qwen2 always merges, so a token that no merge produces is tokenized differently."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    split = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    vocab = tokenizer["model"]["vocab"]
    last = max(vocab, key=lambda text: int(vocab[text]))
    tokenizer["model"]["merges"] = [
        pair for pair in tokenizer["model"]["merges"] if last not in "".join(pair)
    ]
    vocab["total"] = vocab.pop(last)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    message = refused(folder, out)
    assert f"{path}: llama.cpp tokenizes differently after" in message
    assert "['total'" in message
    assert convert(folder, quant="BF16", out=out, check=False).path.is_file()


def test_result_says_what_was_made(random_small_moe_folder: Path, out: Path) -> None:
    (out / "no-template").mkdir()
    folder = Path(shutil.copytree(random_small_moe_folder, out / "no-template" / "m"))
    (folder / "chat_template.jinja").unlink()
    done = convert(folder, quant="F16", out=out / "x.gguf")
    assert isinstance(done, Converted)
    assert done.warnings == ("the checkpoint has no chat template; prompts will use a fallback",)
    for template, warning in (
        (" \n", "the checkpoint's chat template is empty; prompts will use a fallback"),
        (
            "{{ raise_exception('no\\nuser') }}",
            "the chat template cannot be rendered: no user; prompts will use a fallback",
        ),
        ("{% if %}", None),
        ("{{ bos_token }}{{ messages[0].content }}", ""),
    ):
        (folder / "chat_template.jinja").write_text(template)
        warnings = convert(folder, quant="F16", out=out / "x.gguf", force=True).warnings
        assert warnings == ((warning,) if warning else ()) or (
            warning is None and "cannot be rendered: " in warnings[0]
        )
    assert 0 < done.seconds < 300
    assert len(done.sha256) == 64
