"""Small checkpoints with random weights, saved by transformers itself, for tests of structure rather than skill.

Their tokenizer is a real byte-level BPE with LFM2.5's pre-tokenizer, trained on this folder's own sources.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    Lfm2MoeConfig,
    Lfm2MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

LFM2_REGEX = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.role == 'assistant' -%}{% generation %}{{- message.content + '<|im_end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- message.content + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
N_VOCAB = 1024
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


def train_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer, n_vocab: int, **model: Any) -> Tokenizer:
    """A byte-level BPE of n_vocab tokens trained on the sources in this folder."""
    tokenizer = Tokenizer(BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("make_random.py", "conftest.py")
    ]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that today's byte-level BPEs have: a regex, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write_tokenizer(folder: Path) -> None:
    """LFM2.5's kind of tokenizer: its regex, ignore_merges, BOS by the post-processor, thought tags."""
    tokenizer = train_tokenizer(split(LFM2_REGEX), N_VOCAB - 2, ignore_merges=True)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def save(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.bfloat16, **how: Any) -> None:
    """Give every weight a size that matters to the logits, then save the checkpoint with a tokenizer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name and values.ndim == 1:
                values.copy_(1 + 0.2 * torch.randn(values.shape, generator=generator))
            elif name.endswith("expert_bias"):
                values.copy_(0.3 * torch.randn(values.shape, generator=generator))
            elif "inv_freq" not in name:
                scale = 0.5 if values.ndim == 3 and values.shape[1] == 1 else values.shape[-1] ** -0.5
                values.copy_(scale * torch.randn(values.shape, generator=generator))
    model.to(dtype).save_pretrained(folder, **how)
    write_tokenizer(folder)


def lfm2moe(folder: Path, *, fused: bool = False, **changes: Any) -> None:
    """The target's architecture in small: 6 layers, 2 of 4 experts, the first two layers dense."""
    config = Lfm2MoeConfig(
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
    save(Lfm2MoeForCausalLM(config), folder, save_original_format=not fused)


def lfm2(folder: Path, **changes: Any) -> None:
    """A dense Lfm2 of 4 layers, with its adjusted feed-forward width (768 becomes 512)."""
    layers = {"num_hidden_layers": 4, "full_attn_idxs": [1, 3]}
    config = Lfm2Config(**{**SMALL, "intermediate_size": 768, **layers, **changes})
    save(Lfm2ForCausalLM(config), folder)


def llama(folder: Path, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> None:
    """A Llama of 2 layers."""
    config = LlamaConfig(**{**SMALL, "intermediate_size": 512, "num_hidden_layers": 2, **changes})
    save(LlamaForCausalLM(config), folder, dtype=dtype)
