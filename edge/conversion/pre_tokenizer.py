"""Recognize the pre-tokenizer of a tokenizer.json by its structure and its regex.

llama.cpp identifies a pre-tokenizer by its name; the regex of each name is in llama.cpp's src/llama-vocab.cpp.
"""

import json
from typing import Literal

from tokenizers import Regex, Tokenizer, pre_tokenizers

from edge.conversion.space_prefix import ONE_MORE
from edge.conversion.tokenizer_json import Step, TokenizerJson, parts
from edge.errors import ConversionError

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENGLISH_SHORT = r"'(?i:[sdmt]|ll|ve|re)"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+"
_CASED_2 = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LFM2 = rf"{_ENGLISH_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s"
_LLAMA3 = rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
QWEN2 = rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_GPT4O = rf"{_CASED}{_ENGLISH}?|{_CASED_2}{_ENGLISH}?|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_SPACES}"
_TEKKEN = rf"{_CASED}|{_CASED_2}|\p{{N}}|{_SIGNS_SLASH}|{_SPACES}"
QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

# Structure of the pre-tokenizer (see _structure) -> llama.cpp's name without and with ignore_merges. None: llama.cpp
# has no such pre-tokenizer.
_PRE_TOKENIZERS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    ("gpt2",): ("gpt-2", None),
    ("digits", "gpt2"): ("smollm", None),
    (_LFM2, "bytes"): ("dbrx", "lfm2"),
    (_LLAMA3, "bytes"): ("dbrx", "llama-bpe"),
    (QWEN2, "bytes"): ("qwen2", None),
    (QWEN35, "bytes"): ("qwen35", None),
    (_GPT4O, "bytes"): ("gpt-4o", None),
    (_TEKKEN, "bytes"): (None, "tekken"),
}

# llama.cpp's own regex where it is another one: it knows no case of letters outside of ASCII and no combining marks.
_CASED_THERE = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
_CASED_THERE_2 = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
_IN_LLAMA_CPP = {
    "tekken": rf"{_CASED_THERE}|{_CASED_THERE_2}|\p{{N}}|{_SIGNS_SLASH}|{_SPACES}",
    "gpt-4o": (
        rf"{_CASED_THERE}{_ENGLISH}?|{_CASED_THERE_2}{_ENGLISH}?|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_SPACES}"
    ),
}

_NO_SPACES: Step = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SPLIT_SPACES: Step = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def _structure(pre_tokenizer: Step | None) -> tuple[str, ...]:
    """A pre-tokenizer as a tuple of steps: a regex that isolates its matches, or one of digits, gpt2, bytes.

    Any other step is returned as its JSON.
    """
    if not isinstance(pre_tokenizer, dict):
        return (json.dumps(pre_tokenizer),)
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer.get("pretokenizers", []) for step in _structure(part))
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return ("digits",)
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return ("gpt2",) if pre_tokenizer.get("use_regex", True) else ("bytes",)
    behavior = (pre_tokenizer.get("behavior"), bool(pre_tokenizer.get("invert")))
    # Every known regex covers all text, so that its matches are all parts, and there are none between them.
    if kind == "Split" and behavior in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        pattern = pre_tokenizer.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            return (pattern["Regex"],)
    return (json.dumps(pre_tokenizer, ensure_ascii=False),)


def byte_level_pre(where: str, stored: TokenizerJson) -> str:
    """llama.cpp's name for the pre-tokenizer. Raises ConversionError if it has none; the line shows the regex."""
    normalizer = stored.get("normalizer") or Step()
    steps = parts(normalizer, "normalizers")
    # llama.cpp does not normalize the text of a byte-level BPE. NFC is accepted, because nearly all text is in NFC.
    if any(step.get("type", "NFC") != "NFC" for step in steps):
        raise ConversionError(
            f"{where}: llama.cpp has no normalizer {json.dumps(normalizer)[:200]} for this BPE"
        )
    structure = _structure(stored.get("pre_tokenizer"))
    without, with_ignore = _PRE_TOKENIZERS.get(structure, (None, None))
    first, second = (with_ignore, without) if stored["model"].get("ignore_merges") else (without, with_ignore)
    name = (
        first or second
    )  # if it is the second, the tokenization check decides whether the difference matters
    if name is None:
        raise ConversionError(f"{where}: llama.cpp has no pre-tokenizer for {' then '.join(structure)}")
    return name


def as_llama_cpp(tokenizer: Tokenizer, pre: str | None) -> Tokenizer:
    """The tokenizer with the regex that llama.cpp has under the name `pre`; unchanged if that is the same regex."""
    regex = _IN_LLAMA_CPP.get(pre or "")
    if regex is None:
        return tokenizer
    built = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        built.normalizer = tokenizer.normalizer
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.post_processor, built.decoder = tokenizer.post_processor, tokenizer.decoder
    built.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    return built


def sentencepiece_pre(where: str, stored: TokenizerJson) -> str:
    """llama.cpp's name for the structure of Llama 2: spaces become ▁, and bytes are the fallback.

    Gemma also splits at spaces, but its normalizer leaves no spaces. Raises ConversionError for any other step.
    """
    normalizer, pre_tokenizer = stored.get("normalizer"), stored.get("pre_tokenizer")
    if normalizer == _NO_SPACES and pre_tokenizer == _SPLIT_SPACES:
        return "default"
    kinds: tuple[Literal["normalizers", "pretokenizers"], ...] = ("normalizers", "pretokenizers")
    for kind, whole in zip(kinds, (normalizer, pre_tokenizer), strict=True):
        for step in parts(whole, kind) if whole is not None else []:
            # a hostile regex could run without end
            known = step == ONE_MORE or '"Regex"' not in json.dumps(step)
            if not known or step.get("type") not in ("Prepend", "Replace", "Metaspace"):
                raise ConversionError(
                    f"{where}: llama.cpp's SentencePiece model has no {json.dumps(whole)[:200]}"
                )
    return "default"
