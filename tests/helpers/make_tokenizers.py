"""Small tokenizers of each family's kind, trained on this folder's own sources.

Each function writes tokenizer.json, tokenizer_config.json and, where the family has one, generation_config.json into
a checkpoint folder. The texts of special tokens are the published ones, since llama.cpp knows some by their text.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LFM2_REGEX = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
QWEN2_REGEX = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
QWEN35_REGEX = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
TEKKEN_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.role == 'assistant' -%}{% generation %}{{- message.content + '<|im_end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- message.content + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
N_VOCAB = 1024


def training_texts() -> list[str]:
    """A text that never changes: the ids in docs/damaged-input.md depend on it."""
    return [Path(__file__).with_name("plain_text.txt").read_text(encoding="utf-8")]


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# --- byte-level BPE ---


def train_tokenizer(
    pre_tokenizer: pre_tokenizers.PreTokenizer, n_vocab: int, special: list[str] = SPECIAL, **model: Any
) -> Tokenizer:
    """A byte-level BPE of n_vocab tokens trained on the sources in this folder."""
    tokenizer = Tokenizer(BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that today's byte-level BPEs have: a regex, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def lfm2(folder: Path) -> None:
    """LFM2.5's kind: its regex, ignore_merges, BOS by the post-processor, thought tags."""
    tokenizer = train_tokenizer(split(LFM2_REGEX), N_VOCAB - 2, ignore_merges=True)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _qwen(folder: Path, regex: str) -> None:
    """No BOS, NFC, and after the trained tokens the special ones, thought tags among them."""
    last = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(split(regex), N_VOCAB - 32, special=[])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in last])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings |= {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", settings)
    template = CHAT_TEMPLATE.replace("{{- bos_token -}}", "")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    ids = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ids, "pad_token_id": ids[1]})


def qwen2(folder: Path) -> None:
    """Qwen2's and Qwen3's."""
    _qwen(folder, QWEN2_REGEX)


def qwen35(folder: Path) -> None:
    _qwen(folder, QWEN35_REGEX)


def tekken(folder: Path) -> None:
    """Mistral's byte-level kind: control tokens first, ignore_merges, BOS by the post-processor."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    tokenizer = train_tokenizer(split(TEKKEN_REGEX), N_VOCAB, special=special, ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    (folder / "chat_template.jinja").write_text(MISTRAL_TEMPLATE, encoding="utf-8")


MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


# --- SentencePiece's BPE as tokenizer.json holds it ---


def sentencepiece_like(special: list[str], runs: list[str], *, prefix: bool) -> Tokenizer:
    """A BPE whose blanks are ▁ and whose bytes are the fallback: special tokens, bytes, `runs` of blanks and newlines,
    then the trained pieces, the earlier merged first, then single characters.

    Its merges are all the ways to make each piece, as transformers derives them from SentencePiece's scores.
    """
    trained = Tokenizer(BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    fixed = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *runs]
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB - len(fixed), show_progress=False)
    trained.train_from_iterator(training_texts(), trainer)
    pieces = [left + right for left, right in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in fixed]
    letters = [text for text, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    letters = [text for text in letters if len(text) == 1 and text not in fixed]
    vocab = {text: i for i, text in enumerate([*fixed, *pieces, *letters])}
    scores = dict.fromkeys(runs, 0.0) | {piece: -float(i) for i, piece in enumerate(pieces)}
    ways = [
        (score, piece[:at], piece[at:])
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    ways.sort(key=lambda way: (way[0], len(way[1]), len(way[2])), reverse=True)
    merges = [(left, right) for _, left, right in ways]
    tokenizer = Tokenizer(BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in runs])
    return tokenizer


def added_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json's list of added tokens, as published checkpoints have it."""
    decoder = tokenizer.get_added_tokens_decoder()
    return {
        str(i): {"content": token.content, "special": token.special, "normalized": token.normalized}
        for i, token in sorted(decoder.items())
    }


_RUNS = ["▁" * n for n in range(2, 10)] + ["\n" * n for n in range(2, 6)]


def _gemma(folder: Path, special: list[str], settings: dict[str, Any], template: str) -> None:
    tokenizer = sentencepiece_like(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *special], _RUNS, prefix=False
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("bos", "eos", "unk", "pad")
    settings = {f"{name}_token": f"<{name}>" for name in names} | settings
    settings |= {"tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": added_tokens(tokenizer)}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    end = tokenizer.token_to_id(special[1])
    write_json(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, end]})


_GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma3(folder: Path) -> None:
    """No blank put before a text, runs of blanks and newlines that no merge of letters makes, unused tokens."""
    _gemma(folder, ["<start_of_turn>", "<end_of_turn>", "<unused0>", "<unused1>"], {}, _GEMMA_TEMPLATE)


def gemma4(folder: Path) -> None:
    """Gemma 3's shape with other turns, and tokens that a chat parser reads."""
    special = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"]
    special += ["<|tool_response>", "<tool_response|>"]
    template = _GEMMA_TEMPLATE.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
    _gemma(folder, special, {"mask_token": "<mask>", "extra_special_tokens": special}, template)


def mistral(folder: Path) -> None:
    """Mistral's older kind, Llama 2's: a blank before every text."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer = sentencepiece_like(special, [], prefix=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_prefix_space": True}
    settings |= {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added_tokens(tokenizer)}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(MISTRAL_TEMPLATE, encoding="utf-8")
