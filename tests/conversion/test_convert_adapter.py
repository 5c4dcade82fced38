"""An adapter as a GGUF: the tensors of llama.cpp's converter, the logits of peft and of the merged model.

    pytest tests/conversion/test_convert_adapter.py

The comparison with llama.cpp's converter needs the sdist of llama-cpp-python in build/sdist, where `make test` puts it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_random
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from logits import N_TOKENS, real_text
from make_adapter import ATTENTION, LINEAR, make_adapter, save

from edge.convert import convert, convert_adapter
from edge.errors import CheckpointError, ConversionError
from edge.formats.adapter import read_adapter
from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Adapter, Loading

# Runs the script of argv[1] with each list of arguments: one process imports torch once.
RUN_EACH = (
    "import json, runpy, sys\nscript, *lists = json.loads(sys.argv[1])\n"
    "for sys.argv in lists: runpy.run_path(script, run_name='__main__')"
)


def by_llama_cpp(sources: Path, folder: Path, base: Path, outs: dict[str, Path]) -> None:
    """Have convert_lora_to_gguf.py write a file of each type, in a process with llama.cpp's own gguf package."""
    script = str(sources / "convert_lora_to_gguf.py")
    lists = [
        [script, str(folder), "--base", str(base), "--outfile", str(out), "--outtype", kind.lower()]
        for kind, out in outs.items()
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (sources / "gguf-py", sources)))}
    command = [sys.executable, "-c", RUN_EACH, json.dumps([script, *lists])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a GGUF with their types, shapes and bits, and the metadata that make it an adapter."""
    reader = GGUFReader(path)
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    keys = [key for key in reader.fields if key.startswith("adapter.")] + [
        "general.type",
        "general.architecture",
    ]
    fields = {key: (reader.fields[key].types, reader.fields[key].contents()) for key in keys}
    return tensors, fields


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_file_as_from_llama_cpp(
    dtype: torch.dtype, llama_cpp_sources: Path, random_llama_folder: Path, tmp_path: Path
) -> None:
    """All linear weights of a Llama, whose queries and keys llama.cpp reorders."""
    folder = make_adapter(random_llama_folder, tmp_path / "ad", rank=32, alpha=24, dtype=dtype)
    theirs = {kind: tmp_path / f"theirs-{kind}.gguf" for kind in ("F32", "F16", "BF16", "Q8_0")}
    by_llama_cpp(llama_cpp_sources, folder, random_llama_folder, theirs)
    for kind, path in theirs.items():
        ours = convert_adapter(folder, random_llama_folder, quant=kind, out=tmp_path / f"{kind}.gguf")
        assert content(ours.path) == content(path), kind
        assert (ours.quant, ours.weights, ours.ranks, ours.alpha) == (kind, 14, (32,), 24.0)


FAMILIES: dict[str, tuple[Callable[..., None], str]] = {
    "qwen2": (make_random.qwen2, LINEAR),
    "qwen3": (make_random.qwen3, LINEAR),
    "gemma3": (make_random.gemma3, LINEAR),
    "lfm2": (make_random.lfm2, LINEAR),
    "lfm2moe": (make_random.lfm2moe, rf"({LINEAR}|feed_forward\.experts\.\d+\.w[123])"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_file_for_each_family(
    family: str, llama_cpp_sources: Path, tmp_path: Path, one_thread: None
) -> None:
    """Other names, stacked experts, a rank of its own for some modules; rows that do not divide into blocks of Q8_0."""
    make, modules = FAMILIES[family]
    make(tmp_path / "base")
    ranks = {"rank_pattern": {"q_proj": 2}}
    folder = make_adapter(tmp_path / "base", tmp_path / "ad", modules, rank=6, alpha=3, **ranks)
    theirs = {kind: tmp_path / f"theirs-{kind}.gguf" for kind in ("F32", "Q8_0")}
    by_llama_cpp(llama_cpp_sources, folder, tmp_path / "base", theirs)
    for kind, path in theirs.items():
        ours = convert_adapter(folder, tmp_path / "base", quant=kind, out=tmp_path / f"{kind}.gguf")
        assert content(ours.path) == content(path), kind


# --- the logits ---


def logits(path: Path, ids: list[int], *adapters: Adapter) -> np.ndarray:
    """The logits after each of the last tokens, from edge's engine: (N_TOKENS - begin, n_vocab)."""

    def script() -> Writer[list[np.ndarray]]:
        found = [(yield []).copy()]
        for token in ids[1:]:
            found.append((yield [token]).copy())
        return found

    engine = Engine(path, Loading(gpu_layers=0, threads=1, adapters=adapters))
    try:
        engine.reserve(len(ids) + 1, 2)
        [(_, found)] = engine.run([Job(ids[:1], script(), len(ids))])
        return np.array(found)
    finally:
        engine.close()


def token_ids(folder: Path, count: int = 64) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(real_text(), add_special_tokens=False).ids[:count]
    assert N_TOKENS >= len(ids) == count
    return ids


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference as a share of the range."""
    return float(np.abs(a - b).max() / (a.max() - a.min()))


def in_peft(base: Path, folder: Path, ids: list[int]) -> np.ndarray:
    """The logits of transformers with the adapter that peft adds while the model runs: nothing is merged."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("random_llama_folder", {}),
    "attention": ("random_llama_folder", {"modules": ATTENTION, "alpha": 5}),
    "ranks": ("random_llama_folder", {"rank_pattern": {"down_proj": 7}, "alpha_pattern": {"v_proj": 24}}),
    "rslora": ("random_llama_folder", {"use_rslora": True, "alpha": 4}),
    "output": ("random_llama_folder", {"modules": "(lm_head|q_proj)"}),
    "lfm2moe": ("random_lfm2moe_folder", {}),
    "tiny": ("tiny_folder", {}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_peft_and_of_the_merged_model(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, one_thread: None
) -> None:
    """On an F32 base. The KV cache in half precision is the largest source of the difference from transformers."""
    fixture, how = CASES[case]
    base = request.getfixturevalue(fixture)
    folder = make_adapter(base, tmp_path / "ad", size=1.0, **how)
    ids = token_ids(base)
    f32 = convert(base, quant="F32", out=tmp_path / "base.gguf", threads=1).path
    file = convert_adapter(folder, base, out=tmp_path / "ad.gguf").path
    got, plain = logits(f32, ids, Adapter(file)), logits(f32, ids)
    assert difference(plain, got) > 0.05, "the adapter changes nothing"
    wanted = in_peft(base, folder, ids)
    assert difference(wanted, got) < 0.005
    assert (wanted.argmax(1) == got.argmax(1)).mean() >= 0.98
    np.testing.assert_array_equal(logits(f32, ids, Adapter(file, 0.0)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["random_llama_folder", "random_lfm2moe_folder"])
def test_the_logits_of_the_merged_file(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Merged in float32, so that no rounding to bfloat16 is between them; also with half and with twice the change."""
    base = as_float32(request.getfixturevalue(fixture), tmp_path / "base")
    ids = token_ids(base)
    f32 = convert(base, quant="F32", out=tmp_path / "base.gguf", threads=1).path
    folder = make_adapter(base, tmp_path / "ad", size=1.0)
    file = convert_adapter(folder, base, out=tmp_path / "ad.gguf").path
    for scale in (1.0, 0.5, -2.0):
        scaled = make_adapter(base, tmp_path / f"ad{scale}", size=1.0, alpha=8 * scale)
        merged = convert(base, quant="F32", lora=scaled, out=tmp_path / f"m{scale}.gguf", threads=1).path
        wanted, got = logits(merged, ids), logits(f32, ids, Adapter(file, scale))
        assert difference(wanted, got) < 0.002
        assert (wanted.argmax(1) == got.argmax(1)).mean() >= 0.98
    two = make_adapter(base, tmp_path / "two", ATTENTION, seed=9, size=1.0)
    other = convert_adapter(two, base, quant="F32", out=tmp_path / "two.gguf").path
    both = logits(f32, ids, Adapter(file), Adapter(other, 0.5))
    np.testing.assert_allclose(
        both, logits(f32, ids, Adapter(other, 0.5), Adapter(file)), rtol=1e-3, atol=1e-3
    )
    assert difference(both, logits(f32, ids, Adapter(file))) > 0.02


def as_float32(folder: Path, out: Path) -> Path:
    """The same checkpoint with all its tensors in float32."""
    from safetensors.torch import load_file, save_file

    out.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            save_file({name: value.float() for name, value in load_file(file).items()}, out / file.name)
        else:
            (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
def test_fused_experts(random_lfm2moe_fused_folder: Path, tmp_path: Path, one_thread: None) -> None:
    """peft's target_parameters: one adapter for all experts of a layer. llama.cpp's converter has no form for it."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    base = random_lfm2moe_fused_folder
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    targets = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "w1"], target_parameters=targets
    )
    model = peft.get_peft_model(model, config)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for values in model.parameters():
            if values.requires_grad:
                values.copy_(0.1 * torch.randn(values.shape, generator=random))
        model.save_pretrained(tmp_path / "ad")
        ids = token_ids(base)
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    f32 = convert(base, quant="F32", out=tmp_path / "base.gguf", threads=1).path
    converted = convert_adapter(tmp_path / "ad", base, out=tmp_path / "ad.gguf")
    names = {pair.name.split(".", 2)[2] for pair in read_adapter(converted.path).pairs}
    assert {"ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight", "attn_q.weight"} <= names
    got = logits(f32, ids, Adapter(converted.path))
    assert difference(wanted, got) < 0.005
    assert difference(logits(f32, ids), got) > 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
def test_embeddings(random_llama_folder: Path, tmp_path: Path, one_thread: None) -> None:
    """The embeddings of a model whose output is another matrix."""
    random = torch.Generator().manual_seed(4)
    n_vocab, width = make_random.N_VOCAB, 256
    name = "base_model.model.model.embed_tokens.lora_embedding"
    tensors = {
        f"{name}_A": torch.randn((4, n_vocab), generator=random),
        f"{name}_B": torch.randn((width, 4), generator=random) * 0.1,
    }
    folder = save(tmp_path / "ad", tensors, r=4, lora_alpha=4, target_modules=["embed_tokens"])
    ids = token_ids(random_llama_folder)
    f32 = convert(random_llama_folder, quant="F32", out=tmp_path / "base.gguf", threads=1).path
    file = convert_adapter(folder, random_llama_folder, out=tmp_path / "ad.gguf").path
    got = logits(f32, ids, Adapter(file))
    assert difference(in_peft(random_llama_folder, folder, ids), got) < 0.005
    assert difference(logits(f32, ids), got) > 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
def test_columns_that_the_conversion_moves(tmp_path: Path, one_thread: None) -> None:
    """Qwen3.5 reorders the columns of a weight of its delta net; llama.cpp's converter stops at Qwen3.5."""
    make_random.qwen35(tmp_path / "base")
    modules = rf"(linear_attn\.(in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj)|{LINEAR})"
    folder = make_adapter(tmp_path / "base", tmp_path / "ad", modules, size=1.0)
    ids = token_ids(tmp_path / "base")
    f32 = convert(tmp_path / "base", quant="F32", out=tmp_path / "base.gguf", threads=1).path
    file = convert_adapter(folder, tmp_path / "base", out=tmp_path / "ad.gguf").path
    got = logits(f32, ids, Adapter(file))
    assert difference(in_peft(tmp_path / "base", folder, ids), got) < 0.01
    assert difference(logits(f32, ids), got) > 0.05


# --- what cannot become a GGUF ---


def test_what_llama_cpp_cannot_run_is_refused(
    random_llama_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, base: Path, problem: str) -> None:
        with pytest.raises((ConversionError, CheckpointError), match=problem):
            convert_adapter(folder, base, out=tmp_path / "no.gguf")
        assert not (tmp_path / "no.gguf").exists()

    norm = {"base_model.model.model.norm.weight": torch.ones(256) * 2}
    refused(
        save(tmp_path / "norm", norm, r=4, lora_alpha=4),
        random_llama_folder,
        "replaces all of model.norm.weight",
    )
    embedding = {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones((4, 4096)),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones((256, 4)),
    }
    refused(save(tmp_path / "tied", embedding, r=4, lora_alpha=4), tiny_folder, "are one matrix in the base")
    zero = make_adapter(random_llama_folder, tmp_path / "zero", alpha=0)
    refused(zero, random_llama_folder, "lora_alpha is 0")
    refused(
        make_adapter(random_llama_folder, tmp_path / "other"),
        tiny_folder,
        "is the adapter for another base model",
    )
    refused(tmp_path / "missing", tiny_folder, "no such folder")
    large = make_adapter(random_llama_folder, tmp_path / "large", size=1e9)
    with pytest.raises(ConversionError, match="exceeds the range of F16"):
        convert_adapter(large, random_llama_folder, quant="f16", out=tmp_path / "no.gguf")
    with pytest.raises(
        ConversionError, match="Q4_K is not a type for an adapter; use one of F32, F16, BF16, Q8_0"
    ):
        convert_adapter(large, random_llama_folder, quant="Q4_K", out=tmp_path / "no.gguf")


def test_a_copy_of_the_base_in_the_adapter_is_no_change(random_llama_folder: Path, tmp_path: Path) -> None:
    """peft saves the embeddings beside the factors, unchanged, if an option says so or if they may have changed."""
    from safetensors.torch import load_file

    folder = make_adapter(random_llama_folder, tmp_path / "ad")
    file = folder / "adapter_model.safetensors"
    from safetensors.torch import save_file

    head = load_file(random_llama_folder / "model.safetensors")["lm_head.weight"]
    save_file({**load_file(file), "base_model.model.lm_head.weight": head}, file)
    assert convert_adapter(folder, random_llama_folder, out=tmp_path / "ad.gguf").weights == 14


def test_another_adapter_is_another_run(random_llama_folder: Path, tmp_path: Path) -> None:
    """An output is replaced by the same adapter; by one with other weights only with force."""
    out = tmp_path / "ad.gguf"
    one = make_adapter(random_llama_folder, tmp_path / "a" / "ad")
    other = make_adapter(random_llama_folder, tmp_path / "b" / "ad", seed=5)
    first = convert_adapter(one, random_llama_folder, out=out)
    assert convert_adapter(one, random_llama_folder, out=out).sha256 == first.sha256
    with pytest.raises(ConversionError, match=r"holds a GGUF of another run .*--force"):
        convert_adapter(other, random_llama_folder, out=out)
    assert convert_adapter(other, random_llama_folder, out=out, force=True).sha256 != first.sha256


def test_the_base_is_recorded(random_llama_folder: Path, tmp_path: Path) -> None:
    folder = make_adapter(random_llama_folder, tmp_path / "ad", base_model_name_or_path="someone/Other-1B")
    done = convert_adapter(folder, random_llama_folder, out=tmp_path / "ad.gguf")
    assert read_adapter(done.path).base == ("llama",)
    assert done.warnings == (
        f"{folder}: was trained on someone/Other-1B, says adapter_config.json; --base is llama",
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "meta/Llama"})
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = convert_adapter(folder, random_llama_folder, out=tmp_path / "ad2.gguf")
    assert read_adapter(done.path).base == ("llama", "https://huggingface.co/meta/Llama")
    assert len(done.warnings) == 1 and "has another chat template than the base" in done.warnings[0]
