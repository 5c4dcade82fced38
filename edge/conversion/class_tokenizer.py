"""Tokenizers that transformers 5 builds from a class, instead of reading tokenizer.json as it is.

And where llama.cpp's regex is another one than that of tokenizer.json.

transformers takes vocabulary, merges, added tokens and post-processor from tokenizer.json, and normalizer and
pre-tokenizer from the code of the class. Usually the two are the same. edge follows tokenizer.json, and says where they
differ. Sources: transformers 5.24, models/auto/tokenization_auto.py, tokenization_utils_tokenizers.py and the
tokenization files of the classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from edge.conversion.added_tokens import class_tokens
from edge.conversion.pre_tokenizer import QWEN2, QWEN35
from edge.conversion.space_prefix import chat_prompts
from edge.conversion.tokenizer_check import PROBE_LINES
from edge.conversion.tokenizer_class import class_name
from edge.formats.checkpoint import Checkpoint
from edge.system.text import counted

_SHOWN = 40  # characters of a text in a note


@dataclass(frozen=True)
class _Parts:
    """What a class builds. `unknown`: its unknown token. None of the classes sets `ignore_merges`."""

    normalizer: Normalizer | None
    pre_tokenizer: PreTokenizer
    byte_fallback: bool = False
    unknown: str | None = None


def class_note(checkpoint: Checkpoint, tokenizer: Tokenizer, tokens: dict[str, str]) -> list[str]:
    """A note if transformers 5 gives other tokens than `tokenizer`, which follows tokenizer.json.

    The texts are those of the tokenization check, and what the chat template writes. `tokens`: its special tokens.
    """
    name = class_name(checkpoint)
    built = None if name is None else build(checkpoint, tokenizer, name)
    if built is None:
        return []
    after = [f"{token}ls -la" for token in dict.fromkeys(tokens.values())]
    texts = [*PROBE_LINES, *after, *chat_prompts(checkpoint.chat_template, tokens)]
    different = [text for text in texts if _ids(built, text) != _ids(tokenizer, text)]
    if not different:
        return []
    shown = min(different, key=len)
    return [
        f"transformers 5 builds the tokenizer from its class ({name}) and gives other tokens for {len(different)} of "
        f"{counted(len(texts), 'text')} that edge tried, such as {shown[:_SHOWN]!r}; edge follows tokenizer.json: if "
        "the model was trained with transformers 5, save the tokenizer again with it (save_pretrained) first"
    ]


def regex_note(
    checkpoint: Checkpoint, tokenizer: Tokenizer, compared: Tokenizer, tokens: dict[str, str]
) -> list[str]:
    """A note if llama.cpp's own regex gives other tokens (`compared`) than the checkpoint's, for the same texts."""
    if compared is tokenizer:
        return []
    texts = [*PROBE_LINES, *chat_prompts(checkpoint.chat_template, tokens)]
    different = [text for text in texts if _ids(compared, text) != _ids(tokenizer, text)]
    if not different:
        return []
    return [
        "llama.cpp splits words with combining marks (as in Hindi and Thai), and capitals outside of ASCII inside a "
        f"word, in another way than this tokenizer: {len(different)} of {counted(len(texts), 'text')} that edge tried "
        f"have other tokens, such as {min(different, key=len)[:_SHOWN]!r}"
    ]


def build(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str) -> Tokenizer | None:
    """The tokenizer as transformers 5 builds it; None for a class that edge does not know.

    `tokenizer`: that of tokenizer.json with all added tokens; its vocabulary and merges are shared. The added tokens
    are those that transformers gives the class: where tokenizer_config.json lists some, not those of tokenizer.json.
    """
    parts = _parts(name, checkpoint.tokenizer_config)
    if parts is None:
        return None
    stored = checkpoint.tokenizer["model"]
    model: Any = tokenizer.model
    if stored.get("ignore_merges") or bool(stored.get("byte_fallback")) != parts.byte_fallback:
        model = Tokenizer.from_str(tokenizer.to_str()).model  # a copy, which can have other settings
        model.ignore_merges, model.byte_fallback = False, parts.byte_fallback
        model.fuse_unk, model.unk_token = parts.byte_fallback, parts.unknown
    built = Tokenizer(model)
    if parts.normalizer is not None:
        built.normalizer = parts.normalizer
    built.pre_tokenizer = parts.pre_tokenizer
    built.add_tokens(class_tokens(checkpoint, tokenizer.get_added_tokens_decoder()))
    return built


def _parts(name: str, config: Mapping[str, Any]) -> _Parts | None:
    space = config.get("add_prefix_space")
    if name in ("LlamaTokenizer", "CodeLlamaTokenizer"):
        always = name == "LlamaTokenizer" and bool(config.get("legacy"))
        scheme = "never" if space is not None and not space else "always" if always else "first"
        return _Parts(None, pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False), True)
    if name == "GemmaTokenizer":
        return _Parts(
            normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), True, "<unk>"
        )
    if name in ("GPT2Tokenizer", "GPTNeoXTokenizer"):
        normalizer = normalizers.NFC() if name == "GPTNeoXTokenizer" else None
        return _Parts(normalizer, pre_tokenizers.ByteLevel(add_prefix_space=bool(space)))
    regex = {"Qwen2Tokenizer": QWEN2, "Qwen3_5Tokenizer": QWEN35}.get(name)
    if regex is None:
        return None
    steps = [
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=bool(space), use_regex=False),
    ]
    return _Parts(normalizers.NFC(), pre_tokenizers.Sequence(steps))


def _ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """The tokens of a text; None if the tokenizer cannot write it, such as one whose unknown token is missing."""
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception:  # the tokenizers package raises bare Exception
        return None
