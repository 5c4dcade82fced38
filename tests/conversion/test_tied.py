"""Embeddings and output matrix, tied or not: what edge writes equals what transformers and peft compute.

pytest tests/conversion/test_tied.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from edge.convert import convert, convert_adapter
from edge.errors import CheckpointError, ConversionError, EdgeError

# peft says that the base is tied, torch what is deprecated
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
Matrix = np.ndarray[Any, np.dtype[np.float32]]
PAIRS = ["q_proj", "embed_tokens"]
# What an adapter trains on a tied base, and the number of matrices that the model then has.
ADAPTERS: dict[str, tuple[dict[str, Any], int]] = {
    "neither": ({}, 1),
    "both whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 2),
    "embeddings whole": ({"modules_to_save": ["embed_tokens"]}, 2),
    "output whole": ({"modules_to_save": ["lm_head"]}, 2),
    "embeddings": ({"target_modules": PAIRS}, 2),
    "output": ({"target_modules": ["q_proj", "lm_head"]}, 2),
    "both": ({"target_modules": [*PAIRS, "lm_head"]}, 2),
    "embeddings, output whole": ({"target_modules": PAIRS, "modules_to_save": ["lm_head"]}, 2),
    "output, embeddings whole": (
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
        2,
    ),
    "both whole, tied": ({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, 1),
    "embeddings whole, tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, 1),
    "embeddings, tied": ({"target_modules": PAIRS, "ensure_weight_tying": True}, 1),
    "output, tied": ({"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}, 1),
    "both, tied": ({"target_modules": [*PAIRS, "lm_head"], "ensure_weight_tying": True}, 1),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A random tied Qwen3."""
    import make_random

    folder = tmp_path_factory.mktemp("tied") / "base"
    make_random.qwen3(folder, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    as_float32 = {name: value.float() for name, value in tensors.items()}
    save_file(as_float32, folder / "model.safetensors", {"format": "pt"})
    return folder


def matrices(file: Path) -> tuple[Matrix, Matrix, int]:
    """The embeddings, the output matrix and how many of them a GGUF has."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(file).tensors}
    embeddings = tensors["token_embd.weight"]
    return embeddings, tensors.get("output.weight", embeddings), 1 + ("output.weight" in tensors)


def trained(base: Path, folder: Path, options: dict[str, Any]) -> tuple[Matrix, Matrix]:
    """Train (at random), save and load an adapter with peft; the embeddings and the output matrix of the live model."""
    import peft
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **options})
    model = peft.get_peft_model(load(), config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += torch.randn(value.shape, generator=random) / 10
    model.save_pretrained(folder)
    live = peft.PeftModel.from_pretrained(load(), folder)
    with torch.no_grad():
        width = live.config.hidden_size
        embeddings = live.get_input_embeddings()(torch.arange(live.config.vocab_size))
        output = live.base_model.model.lm_head(torch.eye(width)).T
    return embeddings.numpy(), output.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_a_tied_base(name: str, tied: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    options, count = ADAPTERS[name]
    if options.get("ensure_weight_tying") and tuple(map(int, peft.__version__.split(".")[:2])) < (0, 19):
        pytest.skip("this peft does not tie adapters")
    try:
        embeddings, output = trained(tied, tmp_path / "adapter", options)
    except TypeError as error:  # peft cannot train this combination
        pytest.skip(str(error)[:80])
    done = convert(tied, lora=tmp_path / "adapter", quant="F32", out=tmp_path / "merged.gguf")
    first, last, found = matrices(done.path)
    np.testing.assert_allclose(first, embeddings, rtol=0, atol=1e-6)
    np.testing.assert_allclose(last, output, rtol=0, atol=1e-6)
    assert found == count
    assert sum("ties the output matrix" in line for line in done.warnings) == count - 1
    if name == "neither":
        assert convert_adapter(tmp_path / "adapter", base=tied, out=tmp_path / "adapter.gguf")
    else:  # llama.cpp has one matrix, and cannot change it as this adapter does
        with pytest.raises(ConversionError, match=r"embeddings|modules_to_save"):
            convert_adapter(tmp_path / "adapter", base=tied, out=tmp_path / "adapter.gguf")


def test_a_bf16_adapter_that_stays_tied(tied: Path, tmp_path: Path) -> None:
    """peft rounds the embeddings' change and the output's differently: one matrix has one of them."""
    peft = pytest.importorskip("peft", minversion="0.19", reason="needs peft 0.19")
    base = tmp_path / "base"
    shutil.copytree(tied, base)
    tensors = load_file(base / "model.safetensors")
    save_file({key: value.bfloat16() for key, value in tensors.items()}, base / "model.safetensors")
    trained(base, tmp_path / "adapter", ADAPTERS["both, tied"][0])
    done = convert(base, lora=tmp_path / "adapter", quant="F32", out=tmp_path / "merged.gguf")
    assert matrices(done.path)[2] == 1
    assert peft


@pytest.mark.slow
def test_a_stored_output_beside_a_tied_flag(tied: Path, tmp_path: Path) -> None:
    """transformers decides: a copy is tied, another matrix is kept, one alone serves as both."""
    from transformers import AutoModelForCausalLM

    tensors = load_file(tied / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    without = {name: value for name, value in tensors.items() if name != "model.embed_tokens.weight"}
    cases = {
        "copy": ({**tensors, "lm_head.weight": embeddings.clone()}, 1),
        "other": ({**tensors, "lm_head.weight": embeddings.flip(0).contiguous()}, 2),
        "last value": ({**tensors, "lm_head.weight": embeddings + (embeddings == embeddings[-1, -1])}, 2),
        "other dtype": ({**tensors, "lm_head.weight": embeddings.double().float().clone()}, 1),
        "output alone": ({**without, "lm_head.weight": embeddings}, 1),
        "output alone, wrapped": ({**without, "model.lm_head.weight": embeddings}, 1),
    }
    for name, (stored, count) in cases.items():
        folder = tmp_path / name
        shutil.copytree(tied, folder)
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        done = convert(folder, quant="F32", out=tmp_path / f"{name}.gguf")
        first, last, found = matrices(done.path)
        assert found == count, name
        assert any("lm_head.weight differs" in line for line in done.warnings) == (count == 2)
        if "wrapped" not in name:  # transformers does not know that name
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            assert np.array_equal(first, model.model.embed_tokens.weight.detach().numpy()), name
            assert np.array_equal(last, model.lm_head.weight.detach().numpy()), name


def test_an_adapter_does_not_repair_its_base(tied: Path, tmp_path: Path) -> None:
    """A base that lacks its output matrix is refused, even if the adapter holds one."""
    pytest.importorskip("peft", reason="peft is not installed")
    trained(tied, tmp_path / "adapter", ADAPTERS["both whole"][0])
    base = tmp_path / "base"
    shutil.copytree(tied, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(EdgeError, match=r"lacks lm_head\.weight") as caught:
        convert(base, lora=tmp_path / "adapter", quant="F32", out=tmp_path / "m.gguf")
    assert isinstance(caught.value, CheckpointError | ConversionError)
