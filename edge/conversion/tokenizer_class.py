"""The class with which transformers 5 builds the tokenizer of a checkpoint, and the special tokens that it names.

Sources: transformers 5.24, models/auto/tokenization_auto.py and the tokenization files of the classes.
"""

import json
from collections.abc import Mapping
from typing import Any

from edge.formats.checkpoint import Checkpoint

# The class of a model's type, without those whose tokenizer.json transformers reads as it is.
_CLASS_OF_TYPE = {
    **dict.fromkeys(("qwen2", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("gemma3", "gemma3_text"), "GemmaTokenizer"),
}
# Types whose class counts, whatever class the checkpoint names; and types whose tokenizer.json always counts.
_CLASS_COUNTS = {"qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"}
_FILE_COUNTS = {"mistral", "mistral3", "ministral3"}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_QWEN = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
# The special tokens of a class, where the checkpoint does not name one.
_NAMES = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GemmaTokenizer": {f"{kind}_token": f"<{kind}>" for kind in ("unk", "bos", "eos", "pad", "mask")},
    "Qwen2Tokenizer": _QWEN,
    "Qwen3_5Tokenizer": _QWEN,
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
        "pad_token": "<|padding|>",
    },
}


def class_name(checkpoint: Checkpoint) -> str | None:
    """The class whose code builds the tokenizer; None if transformers 5 reads tokenizer.json as it is."""
    config = checkpoint.config
    kind = config.get("model_type")
    named = checkpoint.tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    name = named.removesuffix("Fast") if isinstance(named, str) else None
    own = _CLASS_OF_TYPE.get(kind) if isinstance(kind, str) else None
    if isinstance(kind, str) and kind in _FILE_COUNTS:
        return None
    if name is None or (own is not None and kind in _CLASS_COUNTS):
        return own
    if name == "LlamaTokenizer" and _is_byte_level(checkpoint.tokenizer):
        return None
    return name


def class_names(checkpoint: Checkpoint) -> Mapping[str, str]:
    """The special tokens that the class names itself, by the keys of tokenizer_config.json that are not there."""
    names = _NAMES.get(class_name(checkpoint) or "", {})
    return {key: text for key, text in names.items() if key not in checkpoint.tokenizer_config}


def _is_byte_level(stored: Mapping[str, Any]) -> bool:
    kinds = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return any('"ByteLevel"' in json.dumps(stored.get(kind)) for kind in kinds)
