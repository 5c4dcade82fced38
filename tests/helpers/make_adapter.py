"""LoRA adapters with random weights, in the form in which peft saves them, for any checkpoint folder.

python tests/helpers/make_adapter.py BASE FOLDER
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ATTENTION = r"self_attn\.(q|k|v|o|out)_proj"
LINEAR = rf"({ATTENTION}|mlp\.(gate|up|down)_proj|feed_forward\.w[123]|conv\.(in|out)_proj)"


def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checkpoint, by name."""
    found = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (safe_open has no iterator)
                found[name] = tuple(stored.get_slice(name).get_shape())
    return found


def make_adapter(
    base: Path,
    folder: Path,
    modules: str = LINEAR,
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 3,
    size: float = 0.3,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """An adapter for every module whose name ends with the pattern `modules`. `size`: of its change."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    ranks = config.get("rank_pattern") or {}
    for name, shape in shapes(base).items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or not name.endswith(".weight") or not re.search(rf"(^|\.){modules}$", module):
            continue
        own = next((value for key, value in ranks.items() if re.match(rf"(.*\.)?({key})$", module)), rank)
        a = torch.randn((own, shape[1]), generator=random) * shape[1] ** -0.5
        b = torch.randn((shape[0], own), generator=random) * size * own**-0.5
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype)
    assert tensors, f"{base} has no module {modules}"
    return save(folder, tensors, r=rank, lora_alpha=alpha, target_modules=rf"(.*\.)?{modules}", **config)


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Write the two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}), encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


if __name__ == "__main__":
    make_adapter(Path(sys.argv[1]), Path(sys.argv[2]))
