"""Small checkpoints with random weights, saved by transformers itself, for tests of structure rather than skill.

    python tests/helpers/make_random.py FAMILY FOLDER      one of FAMILIES below, e.g. qwen35moe

Their tokenizers are real ones of each family's kind (tests/helpers/make_tokenizers.py). A family's checkpoint
has what its published models differ in: unequal numbers of heads, experts, kinds of layers.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_tokenizers
import torch
import transformers
from make_tokenizers import N_VOCAB
from safetensors.torch import load_file, save_file

SMALL: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 4,
}
MOE_LAYERS = ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]


def save(
    model: "transformers.PreTrainedModel",
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: Callable[[Path], object] = make_tokenizers.lfm2,
    norm: float = 1.0,
    **how: Any,
) -> None:
    """Give every weight a size that matters to the logits, then save the checkpoint with a tokenizer.

    `norm` is what the norms' weights lie around: 0 where they are stored as their difference from 1.
    """
    generator = torch.Generator().manual_seed(7)

    def normal(values: torch.Tensor, scale: float, mean: float = 0.0) -> None:
        values.copy_(mean + scale * torch.randn(values.shape, generator=generator))

    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" in name or name.endswith("embed_scale"):
                continue
            if "norm" in name and values.ndim == 1:
                normal(values, 0.2, 1.0 if "linear_attn" in name else norm)
            elif name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
                normal(values, 0.2, 1.0)
            elif name.endswith("A_log"):
                normal(values, 0.7, 0.5)
            elif name.endswith(("expert_bias", "dt_bias")):
                normal(values, 0.3)
            else:
                normal(values, 0.5 if values.ndim == 3 and values.shape[1] == 1 else values.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder, **how)
    tokenizer(folder)


def lfm2moe(folder: Path, *, fused: bool = False, **changes: Any) -> None:
    """The target's architecture in small: 6 layers, 2 of 4 experts, the first two layers dense."""
    config = transformers.Lfm2MoeConfig(
        **{
            **SMALL,
            "intermediate_size": 512,
            "moe_intermediate_size": 256,
            "num_hidden_layers": 6,
            "layer_types": MOE_LAYERS,
            "num_dense_layers": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            **changes,
        }
    )
    save(transformers.Lfm2MoeForCausalLM(config), folder, save_original_format=not fused)


def lfm2(folder: Path, **changes: Any) -> None:
    """A dense Lfm2 of 4 layers, with its adjusted feed-forward width (768 becomes 512)."""
    layers = {"num_hidden_layers": 4, "full_attn_idxs": [1, 3]}
    config = transformers.Lfm2Config(**{**SMALL, "intermediate_size": 768, **layers, **changes})
    save(transformers.Lfm2ForCausalLM(config), folder)


def llama(folder: Path, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> None:
    """A Llama of 2 layers."""
    config = transformers.LlamaConfig(
        **{**SMALL, "intermediate_size": 512, "num_hidden_layers": 2, **changes}
    )
    save(transformers.LlamaForCausalLM(config), folder, dtype=dtype)


# --- the families: small ones of each, with what sets its published models apart ---


def _family(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    changes: dict[str, Any],
    tokenizer: Callable[[Path], object],
    **how: Any,
) -> None:
    """A model of transformers' classes <name>Config or <name>TextConfig and <name>ForCausalLM."""
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    config = config_class(**{**SMALL, **settings, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    save(model, folder, tokenizer=tokenizer, **how)


QWEN = {"bos_token_id": None, "eos_token_id": 994, "pad_token_id": 992}


def qwen2(folder: Path, **changes: Any) -> None:
    """Qwen2.5: biases, tied embeddings as in the small ones."""
    settings = {**QWEN, "intermediate_size": 512, "num_hidden_layers": 2, "tie_word_embeddings": True}
    _family(folder, "Qwen2", settings, changes, make_tokenizers.qwen2)


def qwen3(folder: Path, **changes: Any) -> None:
    """Qwen3: norms in each head, whose width is not the embedding's through the heads."""
    settings = {**QWEN, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32}
    _family(folder, "Qwen3", settings, changes, make_tokenizers.qwen2)


def qwen3moe(folder: Path, *, fused: bool = False, **changes: Any) -> None:
    """Qwen3-MoE: experts one by one as published, or fused as transformers holds them."""
    settings = {"intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32, "norm_topk_prob": True}
    settings |= {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}
    _family(
        folder,
        "Qwen3Moe",
        QWEN | settings,
        changes,
        make_tokenizers.qwen2,
        save_original_format=not fused,
    )


# 2 key heads and 6 value heads: grouped and tiled order differ, and undoing is not doing
_DELTA = {
    "head_dim": 64,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}


def qwen35(folder: Path, *, mtp: bool = False, **changes: Any) -> None:
    """Qwen3.5: three gated delta nets, then an attention with a gate."""
    settings = {**QWEN, **_DELTA, "intermediate_size": 512}
    settings |= {"mtp_num_hidden_layers": 1} if mtp else {}
    _family(folder, "Qwen3_5", settings, changes, make_tokenizers.qwen35, norm=0.0)
    if mtp:
        add_mtp(folder, layer=3)


def qwen35moe(folder: Path, *, fused: bool = True, mtp: bool = False, **changes: Any) -> None:
    """Qwen3.5-MoE: the same with experts, fused as published, and a shared one with a gate."""
    settings = {**QWEN, **_DELTA, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 192}
    settings |= {"num_experts": 4, "num_experts_per_tok": 2}
    settings |= {"mtp_num_hidden_layers": 1} if mtp else {}
    _family(
        folder,
        "Qwen3_5Moe",
        settings,
        changes,
        make_tokenizers.qwen35,
        norm=0.0,
        save_original_format=not fused,
    )
    if mtp:
        add_mtp(folder, layer=3)


def add_mtp(folder: Path, layer: int) -> None:
    """A multi-token prediction layer, which transformers does not keep: as an attention layer, with four tensors."""
    tensors = load_file(folder / "model.safetensors")
    prefix = f"model.layers.{layer}."
    copies = {
        name.replace(prefix, "mtp.layers.0."): values.flip(0)
        for name, values in tensors.items()
        if name.startswith(prefix)
    }
    norm = tensors["model.norm.weight"]
    width = len(norm)
    copies |= {
        "mtp.fc.weight": torch.randn(
            width, 2 * width, generator=torch.Generator().manual_seed(8), dtype=norm.dtype
        ),
        "mtp.norm.weight": norm.flip(0),
        "mtp.pre_fc_norm_embedding.weight": norm + 1,
        "mtp.pre_fc_norm_hidden.weight": norm - 1,
    }
    tensors |= {name: values.contiguous() for name, values in copies.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


_GEMMA = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "sliding_window": 64,
    "intermediate_size": 512,
}


def gemma3(folder: Path, **changes: Any) -> None:
    """Gemma 3: six sliding layers and a full one, with different bases and a window shorter than the test's text."""
    settings = {**_GEMMA, "num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64}
    _family(folder, "Gemma3", settings, changes, make_tokenizers.gemma3, norm=0.0)


def gemma4(folder: Path, **changes: Any) -> None:
    """Gemma 4 as E2B is: per-layer embeddings, the last two layers with others' keys and values and twice the width."""
    types = ["sliding", "sliding", "full", "sliding", "full", "sliding", "full"]
    settings = {
        **_GEMMA,
        "num_hidden_layers": 7,
        "layer_types": [f"{kind}_attention" for kind in types],
        "head_dim": 32,
        "global_head_dim": 64,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": N_VOCAB,
        "final_logit_softcapping": 30.0,
    }
    _family(folder, "Gemma4", settings, changes, make_tokenizers.gemma4)


def gemma4_31b(folder: Path, **changes: Any) -> None:
    """Gemma 4 as 31B is: full layers whose keys are their values, with fewer and wider heads."""
    types = ["sliding", "full", "sliding", "full"]
    settings = {
        **_GEMMA,
        "num_hidden_layers": 4,
        "layer_types": [f"{kind}_attention" for kind in types],
        "head_dim": 32,
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
    }
    _family(folder, "Gemma4", settings, changes, make_tokenizers.gemma4)


def gemma4_26b(folder: Path, **changes: Any) -> None:
    """Gemma 4 as 26B-A4B is: the same with experts beside the dense layers."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 128}
    gemma4_31b(folder, **experts, **changes)


def mistral(folder: Path, *, tekken: bool = False, **changes: Any) -> None:
    """Mistral: a Llama with a head width of its own, no window, either kind of tokenizer."""
    settings = {"intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32, "sliding_window": None}
    tokenizer = make_tokenizers.tekken if tekken else make_tokenizers.mistral
    ids = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    _family(folder, "Mistral", settings | ids, changes, tokenizer)


def ministral3(folder: Path, **changes: Any) -> None:
    """Ministral 3: YaRN, and queries scaled by the position's place in the original context."""
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 20_000.0,
        "factor": 4.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    parameters |= {"original_max_position_embeddings": 64, "beta_fast": 24.0, "beta_slow": 1.0}
    settings = {"intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32, "pad_token_id": None}
    settings |= {"rope_parameters": parameters | {"llama_4_scaling_beta": 0.3}, "eos_token_id": 2}
    _family(folder, "Ministral3", settings, changes, make_tokenizers.tekken)


def as_parent(folder: Path, architecture: str, prefix: str, towers: list[str]) -> None:
    """Make a text model's checkpoint that of a multimodal parent: text_config, a prefix, tensors of towers."""
    path = folder / "config.json"
    text = json.loads(path.read_text(encoding="utf-8"))
    kind = text["model_type"].removesuffix("_text")
    ids = {key: text[key] for key in ("tie_word_embeddings",) if key in text}
    parent = {"architectures": [architecture], "model_type": kind, "text_config": text, **ids}
    path.write_text(json.dumps(parent), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): values for name, values in tensors.items()}
    renamed |= {name: torch.ones(4, dtype=torch.bfloat16) for name in towers}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def qwen35_parent(folder: Path) -> None:
    qwen35(folder)
    towers = ["model.visual.blocks.0.norm1.weight", "model.visual.merger.norm.weight"]
    as_parent(folder, "Qwen3_5ForConditionalGeneration", "model.language_model.", towers)


def gemma3_parent(folder: Path) -> None:
    """As published; transformers 5 puts `model.language_model.` before."""
    gemma3(folder)
    towers = [
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
    ]
    as_parent(folder, "Gemma3ForConditionalGeneration", "language_model.model.", towers)


def gemma4_parent(folder: Path) -> None:
    gemma4(folder)
    towers = [
        f"model.{name}.x.weight" for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    ]
    as_parent(folder, "Gemma4ForConditionalGeneration", "model.language_model.", towers)


FAMILIES: dict[str, Callable[[Path], object]] = {
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "qwen3moe-fused": lambda folder: qwen3moe(folder, fused=True),
    "qwen35": qwen35,
    "qwen35-mtp": lambda folder: qwen35(folder, mtp=True),
    "qwen35moe": qwen35moe,
    "qwen35moe-mtp": lambda folder: qwen35moe(folder, mtp=True),
    "qwen35moe-unfused": lambda folder: qwen35moe(folder, fused=False),
    "qwen35-parent": qwen35_parent,
    "gemma3": gemma3,
    "gemma3-parent": gemma3_parent,
    "gemma4-e2b": gemma4,
    "gemma4-parent": gemma4_parent,
    "gemma4-31b": gemma4_31b,
    "gemma4-26b-a4b": gemma4_26b,
    "mistral": mistral,
    "ministral3": ministral3,
    "mistral-tekken": lambda folder: mistral(folder, tekken=True),
}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in FAMILIES:
        sys.exit(f"usage: python tests/helpers/make_random.py {{{','.join(FAMILIES)}}} FOLDER")
    FAMILIES[sys.argv[1]](Path(sys.argv[2]))
