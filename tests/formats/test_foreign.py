"""Weights that other programs changed: one line that says what they are and where the original is.

pytest tests/formats/test_foreign.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.conversion.families import make_plan
from edge.convert import convert, convert_adapter
from edge.errors import CheckpointError
from edge.formats.checkpoint import open_checkpoint

Q = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def stored(**extra: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: (
        tensors | {f"{Q}.{name.replace('__', '.', 1)}": value for name, value in extra.items()}
    )


def as_dtype(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {f"{Q}.weight": tensors[f"{Q}.weight"].to(dtype)}


F16 = torch.ones(256, 4, dtype=torch.float16)
PACKED = torch.ones(256, 32, dtype=torch.int32)


@pytest.mark.parametrize(
    ("config", "change", "how"),
    [
        (
            {"quantization": {"group_size": 64, "bits": 4}},
            None,
            "quantization in config.json, as MLX writes it",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, None, "quantization_config in config.json: fp8"),
        ({}, stored(scales=F16, biases=F16.clone()), "MLX: it stores"),
        ({}, stored(SCB=torch.ones(256)), "bitsandbytes in 8 bits: it stores"),
        ({}, stored(weight__absmax=torch.ones(9)), f"bitsandbytes: it stores {Q}.weight.absmax"),
        ({}, stored(qweight=PACKED, scales=F16), f"GPTQ or AWQ: it stores {Q}.qweight"),
        ({}, stored(weight_packed=PACKED), "compressed-tensors"),
        ({}, stored(weight_scale_inv=torch.ones(2, 2)), "with scales"),
        ({}, stored(input_global_scale=torch.ones(1)), "with scales"),
        ({}, stored(k_scale=torch.ones(1)), "with scales"),
        ({}, stored(weight_quantizer___amax=torch.ones(1)), "with scales"),
        (
            {},
            stored(weight__scale=torch.ones(1), weight___data=PACKED),
            f"quanto: it stores {Q}.weight._data",
        ),
        ({}, stored(trellis=PACKED), "ExLlama"),
        ({}, stored(Qidxs=PACKED), "QuIP or VPTQ"),
        ({}, stored(zero_points=PACKED.to(torch.int8)), f"{Q}.zero_points is stored as I8"),
        ({}, as_dtype(torch.uint8), "weight is stored as U8"),
        ({}, as_dtype(torch.int8), "weight is stored as I8"),
        ({}, as_dtype(torch.float8_e4m3fn), "weight is stored as F8_E4M3"),
        ({}, as_dtype(torch.float8_e4m3fnuz), "weight is stored as F8_E4M3FNUZ"),
        ({}, as_dtype(torch.float8_e8m0fnu), "weight is stored as F8_E8M0"),
        ({}, lambda tensors: tensors | {f"{Q}.weight:_data": PACKED}, "torchao: it stores"),
        ({}, stored(_weight_qdata=PACKED), "torchao: it stores"),
    ],
)
def test_a_quantized_checkpoint(
    config: dict[str, Any],
    change: Callable[[Tensors], Tensors] | None,
    how: str,
    random_llama_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_llama_folder, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    if change is not None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    for base in ("", "base_model:\n- owner/model\n", 'base_model: "owner/model"\n'):
        (folder / "README.md").write_text(f"---\nlicense: mit\n{base}---\nbase_model: other/model\n")
        with pytest.raises(CheckpointError, match="is already quantized") as caught:
            make_plan(open_checkpoint(folder))
        line = str(caught.value)
        assert line.startswith(str(folder)) and "\n" not in line and how in line
        assert "convert the original checkpoint" in line and ("owner/model" in line) == bool(base)
        assert "other/model" not in line


def test_weights_smaller_than_a_byte(random_llama_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    header = json.dumps({"a": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(
        CheckpointError, match="a is stored as F4: the checkpoint is already quantized; convert the"
    ):
        open_checkpoint(folder)


def test_the_head_that_trl_adds(random_llama_folder: Path, tmp_path: Path) -> None:
    """A model with a value head: transformers ignores it, and edge leaves it out with a note."""
    folder = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"v_head.summary.weight": torch.ones(1, 256), "v_head.summary.bias": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors")
    assert any("v_head (2 tensors) omitted" in note for note in make_plan(open_checkpoint(folder)).notes)


@pytest.mark.parametrize(
    "name",
    [
        "lora_magnitude_vector__default.weight",
        "lora_A__weight",
        "lora_A__default.weight",
        "base_layer__weight",
        "lora_embedding_B",
    ],
)
def test_a_lora_that_is_not_merged(name: str, random_llama_folder: Path, tmp_path: Path) -> None:
    """As model.save_pretrained of a wrapped model leaves it."""
    folder = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    change = stored(**{name: F16})
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold a LoRA that is not merged") as caught:
        make_plan(open_checkpoint(folder))
    assert "merge_and_unload" in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_beside_the_weights(random_llama_folder: Path, tmp_path: Path) -> None:
    """transformers would load the adapter too; edge cannot know whether it is merged, and says so."""
    folder = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (note,) = open_checkpoint(folder).notes
    assert note.startswith(f"{folder} also has an adapter") and f"--lora {folder}" in note


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}, "adapters.safetensors"),
        (None, "adapters.safetensors"),
        (None, "0000100_adapters.safetensors"),
        (None, "adapters.npz"),
    ],
)
def test_an_adapter_of_mlx(
    config: dict[str, Any] | None, name: str, random_llama_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"{Q}.lora_a": torch.ones(256, 8), f"{Q}.lora_b": torch.ones(8, 256)},
        folder / name,
    )
    ways: list[Callable[[], object]] = [
        lambda: convert(random_llama_folder, lora=folder, out=tmp_path / "m.gguf"),
        lambda: convert_adapter(folder, random_llama_folder, out=tmp_path / "a.gguf"),
        lambda: convert(folder, out=tmp_path / "m.gguf"),
    ]
    for way in ways:
        with pytest.raises(CheckpointError, match="is an adapter of MLX") as caught:
            way()
        assert "mlx_lm.fuse" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_mlx_in_an_adapter_of_peft(random_llama_folder: Path, tmp_path: Path) -> None:
    """Files that somebody renamed: peft cannot merge them either."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    factors = {f"{Q}.lora_a": torch.ones(256, 8), f"{Q}.lora_b": torch.ones(8, 256)}
    save_file(factors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: is an adapter of MLX"):
        convert(random_llama_folder, lora=folder, out=tmp_path / "m.gguf")
