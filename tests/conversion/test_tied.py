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

from edge.conversion.verify import compare_with_source
from edge.convert import convert, convert_adapter
from edge.errors import CheckpointError, ConversionError, EdgeError
from edge.llama.vocabulary import file_vocabulary

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
    # peft ties the factors, not what they are multiplied with.
    "embeddings, tied, own alpha": (
        {"target_modules": PAIRS, "ensure_weight_tying": True, "alpha_pattern": {"embed_tokens": 3}},
        2,
    ),
    "output, tied, own rank": (
        {
            "target_modules": ["q_proj", "lm_head"],
            "ensure_weight_tying": True,
            "rank_pattern": {"lm_head": 6},
            "alpha_pattern": {"embed_tokens": 3},
        },
        2,
    ),
    "embeddings, tied, own rank": (
        {
            "target_modules": PAIRS,
            "ensure_weight_tying": True,
            "rank_pattern": {"embed_tokens": 6},
            "use_rslora": True,
        },
        2,
    ),
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


def trained(
    base: Path, folder: Path, options: dict[str, Any], rows: int | None = None
) -> tuple[Matrix, Matrix]:
    """Train (at random), save and load an adapter with peft; the embeddings and the output matrix of the live model.

    `rows`: resize the vocabulary first. Then the model that was trained counts: peft loads one only into a base that
    was resized too, whose rows can be others.
    """
    import peft
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **options})
    loaded = load()
    if rows is not None:
        loaded.resize_token_embeddings(rows)
    model = peft.get_peft_model(loaded, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += torch.randn(value.shape, generator=random) / 10
    model.save_pretrained(folder)
    live = model if rows is not None else peft.PeftModel.from_pretrained(load(), folder)
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
    compared = compare_with_source(done.path, tied, lora=tmp_path / "adapter")
    assert (compared.different, compared.skipped, compared.equal) == ((), (), 23 + count)
    if name != "neither":  # the same file is not what the base alone gives, nor what another adapter gives
        plain = {one.name for one in compare_with_source(done.path, tied).different}
        assert plain >= {"edge.lora", "token_embd.weight" if count == 1 else "output.weight"}
    if name == "neither":
        assert convert_adapter(tmp_path / "adapter", base=tied, out=tmp_path / "adapter.gguf")
    else:  # llama.cpp has one matrix, and cannot change it as this adapter does
        with pytest.raises(ConversionError, match=r"embeddings|modules_to_save"):
            convert_adapter(tmp_path / "adapter", base=tied, out=tmp_path / "adapter.gguf")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A random Qwen3 with two matrices, in float32."""
    import make_random

    folder = tmp_path_factory.mktemp("untied") / "base"
    make_random.qwen3(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value.float() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


# What an adapter trains after the vocabulary was resized, on a tied base (T) or another (U); and the number of
# matrices of the merged model, 0 where a row of the trained model is nowhere.
RESIZED: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "neither": ({}, {"T": 1, "U": 2}),
    "both whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, {"T": 2, "U": 2}),
    "embeddings whole": ({"modules_to_save": ["embed_tokens"]}, {"T": 2, "U": 2}),
    "output whole": ({"modules_to_save": ["lm_head"]}, {"T": 2, "U": 2}),
    "embeddings": ({"target_modules": PAIRS}, {"T": 2, "U": 0}),
    "output": ({"target_modules": ["q_proj", "lm_head"]}, {"T": 2, "U": 0}),
    "both": ({"target_modules": [*PAIRS, "lm_head"]}, {"T": 2, "U": 2}),
    "embeddings, output whole": ({"target_modules": PAIRS, "modules_to_save": ["lm_head"]}, {"T": 2, "U": 2}),
    "both whole, tied": (ADAPTERS["both whole, tied"][0], {"T": 1}),
    "embeddings whole, tied": (ADAPTERS["embeddings whole, tied"][0], {"T": 1}),
    "embeddings, tied": (ADAPTERS["embeddings, tied"][0], {"T": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1088, 1000])
@pytest.mark.parametrize(("name", "base"), [(name, base) for name, (_, n) in RESIZED.items() for base in n])
def test_a_resized_vocabulary(
    name: str, base: str, rows: int, tied: Path, untied: Path, tmp_path: Path
) -> None:
    """Every row of the trained model is in the file, with the tokens of the adapter's tokenizer; or it is refused."""
    pytest.importorskip("peft", minversion="0.19", reason="needs peft 0.19")
    from transformers import AutoTokenizer

    folder, source = tmp_path / "adapter", tied if base == "T" else untied
    options, counts = RESIZED[name]
    embeddings, output = trained(source, folder, options, rows)
    tokenizer = AutoTokenizer.from_pretrained(source)
    new = [f"<|new{i}|>" for i in range(min(rows, 1060) - len(tokenizer))]
    tokenizer.add_special_tokens({"additional_special_tokens": new})
    if counts[base] == 0 and rows > 1024:
        tokenizer.save_pretrained(folder)
        with pytest.raises(
            CheckpointError, match=r"1,088 rows, 64 rows more than the base, but it does not hold"
        ):
            convert(source, lora=folder, quant="F32", out=tmp_path / "merged.gguf")
        return
    if rows > 1024:
        with pytest.raises(
            CheckpointError, match="tokens were added, but no tokenizer is beside the adapter"
        ):
            convert(source, lora=folder, quant="F32", out=tmp_path / "merged.gguf")
    tokenizer.save_pretrained(folder)
    done = convert(source, lora=folder, quant="F32", out=tmp_path / "merged.gguf")
    first, last, found = matrices(done.path)
    assert first.shape[0] == rows
    np.testing.assert_allclose(first, embeddings, rtol=0, atol=1e-6)
    np.testing.assert_allclose(last, output, rtol=0, atol=1e-6)
    assert found == (counts[base] or 2)
    assert any(f"{rows:,} rows, {abs(rows - 1024)} rows" in line for line in done.warnings)
    with file_vocabulary(done.path) as vocabulary:
        text = f"ls{new[0]} -la{new[-1]}"
        assert vocabulary.encode(text) == tokenizer(text, add_special_tokens=False).input_ids
    compared = compare_with_source(done.path, source, lora=folder)
    assert not compared.different and not compared.skipped
    with pytest.raises(ConversionError, match="a GGUF adapter cannot change the number of rows"):
        convert_adapter(folder, base=source, out=tmp_path / "adapter.gguf")


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


@pytest.mark.parametrize(
    ("further", "problem"),
    [
        ({"tie_embedding": False}, None),  # Lfm2's older key, which a Qwen3 does not have
        ({"tie_word_embeddings": False}, "set tie_word_embeddings to true in config.json"),
        ({"tie_word_embeddings": "true"}, "config.json: tie_word_embeddings is 'true', not true or false"),
    ],
)
def test_the_flag(further: dict[str, Any], problem: str | None, tied: Path, tmp_path: Path) -> None:
    """Which key counts, and what to do about one that does not fit the weights."""
    folder = Path(shutil.copytree(tied, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **further}))
    if problem is None:
        assert matrices(convert(folder, quant="F32", out=tmp_path / "m.gguf").path)[2] == 1
        return
    with pytest.raises(ConversionError, match=problem):
        convert(folder, quant="F32", out=tmp_path / "m.gguf")
