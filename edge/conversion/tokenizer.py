"""tokenizer.json turned into llama.cpp's tokenizer metadata, and the proof that both tokenize alike.

llama.cpp knows pre-tokenizers by name only. Its own converter finds the name by hashing the tokens of a test
text, which fails for each new revision of a tokenizer; here the structure and the regex in tokenizer.json
decide. The names' regexes are in llama.cpp's src/llama-vocab.cpp, the keys in gguf's constants
(tokenizer.ggml.*).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from edge.conversion.plan import text_values
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENGLISH_SHORT = r"'(?i:[sdmt]|ll|ve|re)"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+"
_CASED_2 = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LFM2 = rf"{_ENGLISH_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s"
_LLAMA3 = rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_BLANKS}"
_QWEN2 = rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_SIGNS}|{_BLANKS}"
_GPT4O = rf"{_CASED}{_ENGLISH}?|{_CASED_2}{_ENGLISH}?|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_BLANKS}"
_TEKKEN = rf"{_CASED}|{_CASED_2}|\p{{N}}|{_SIGNS_SLASH}|{_BLANKS}"
_QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)

# Structure of the pre-tokenizer (see _structure) -> llama.cpp's name without and with ignore_merges. Where
# llama.cpp has one of the two only, the other is None.
_PRE_TOKENIZERS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    ("gpt2",): ("gpt-2", None),
    ("digits", "gpt2"): ("smollm", None),
    (_LFM2, "bytes"): ("dbrx", "lfm2"),
    (_LLAMA3, "bytes"): ("dbrx", "llama-bpe"),
    (_QWEN2, "bytes"): ("qwen2", None),
    (_QWEN35, "bytes"): ("qwen35", None),
    (_GPT4O, "bytes"): ("gpt-4o", None),
    (_TEKKEN, "bytes"): (None, "tekken"),
}

_NO_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SPLIT_BLANKS = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_MAX_VOCABULARY = 1 << 22  # tokens; the largest known has 262,144
_SPECIAL_LOOKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
# llama.cpp's converter has them shown, so that a chat parser can read them.
_GEMMA4_SHOWN = [
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms; the fields are those of tokenizer.ggml.* metadata, and what was lost."""

    model: str  # gpt2 (byte-level BPE), llama (SentencePiece-like) or gemma4 (BPE on raw UTF-8)
    pre: str | None  # the pre-tokenizer, if the model leaves a choice
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    special_ids: dict[str, int]  # bos, eos, unk, sep, pad, mask, eot, eom
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    warnings: tuple[str, ...]


def make_vocabulary(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary of a checkpoint, padded with unused tokens to `n_vocab`.

    Raises ConversionError: a tokenizer of no known kind (its regex is shown), ids beyond n_vocab, doubled
    tokens or ids, a file that the tokenizers package cannot read.
    """
    file = checkpoint.folder / "tokenizer.json"
    where = str(file)
    stored = checkpoint.tokenizer
    model = stored.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ConversionError(f"{where}: holds no BPE model; edge converts BPE tokenizers only")
    if model.get("type", "BPE") != "BPE":
        raise ConversionError(f"{where}: is of type {model['type']}; edge converts BPE tokenizers only")
    if n_vocab > _MAX_VOCABULARY:
        raise ConversionError(
            f"{where}: config.json's vocab_size is {n_vocab:,}; edge takes at most {_MAX_VOCABULARY:,}"
        )
    sentencepiece = bool(model.get("byte_fallback"))
    gemma4 = sentencepiece and _is_gemma4(checkpoint)
    merges = _merges(where, model)
    if not merges:  # without them llama.cpp reads no BPE, and a SentencePiece model has no order
        raise ConversionError(
            f"{where}: has no merges; fetch it again, or save it anew with a fast tokenizer"
        )
    added = _added_tokens(where, stored)
    read_tokenizer(file)  # what it accepts has the structure that is taken for granted below
    pre = _sentencepiece_pre(where, stored) if sentencepiece else _byte_level_pre(where, stored)
    if gemma4:
        added = [(text, i, _gemma4_type(text, kind)) for text, i, kind in added]
    tokens, types = _tokens(where, model["vocab"], added, n_vocab, sentencepiece)
    special_ids, unused = _special_ids(checkpoint, {text: i for i, text in enumerate(tokens)})
    add_bos, add_eos = _adds(checkpoint, tokens, special_ids)
    if (
        gemma4 and "bos" not in special_ids
    ):  # llama.cpp adds it whatever the file says, and asserts that it is there
        raise ConversionError(
            f"{where}: tokenizer_config.json names no bos_token, which llama.cpp's Gemma 4 needs"
        )
    scores = None
    if sentencepiece:  # llama.cpp's Gemma 4 goes by the merges, and its converter writes this score
        scores = [-1000.0] * len(tokens) if gemma4 else _scores(tokens, types, merges, added)
    return Vocabulary(
        model="gemma4" if gemma4 else "llama" if sentencepiece else "gpt2",
        pre=None if gemma4 else pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=[] if sentencepiece and not gemma4 else [" ".join(pair) for pair in merges],
        special_ids=special_ids,
        add_bos=add_bos or gemma4,
        add_eos=add_eos,
        add_space_prefix=bool(_prefixes(stored)) if sentencepiece else None,
        warnings=tuple(
            f"a GGUF holds three EOS tokens; {tokens[i]!r} will not end an answer" for i in unused
        ),
    )


def read_tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()  # neither is the model's, and both may be of any size
        tokenizer.no_truncation()
        return tokenizer
    except Exception as error:  # the tokenizers package raises bare Exception
        reason = " ".join(str(error).split())
        raise ConversionError(f"{file}: the tokenizers package cannot read it: {reason}") from None


# --- the pre-tokenizer ---


def _structure(pre_tokenizer: Any) -> tuple[str, ...]:
    """A pre-tokenizer as a tuple of steps: a regex that isolates its matches, or one of digits, gpt2, bytes.

    A step that is none of these comes back as its JSON.
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
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        pattern = pre_tokenizer.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            return (pattern["Regex"],)
    return (json.dumps(pre_tokenizer, ensure_ascii=False),)


def _byte_level_pre(where: str, stored: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer. Raises ConversionError that shows what it does not know."""
    normalizer = stored.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    # Text is in NFC already but for rare input, and llama.cpp normalizes no byte-level BPE, so NFC may stand.
    if any(step.get("type", "NFC") != "NFC" for step in steps):
        raise ConversionError(
            f"{where}: llama.cpp has no normalizer {json.dumps(normalizer)[:200]} for this BPE"
        )
    structure = _structure(stored.get("pre_tokenizer"))
    without, with_ignore = _PRE_TOKENIZERS.get(structure, (None, None))
    first, second = (with_ignore, without) if stored["model"].get("ignore_merges") else (without, with_ignore)
    name = first or second  # with the wrong one, the check after writing decides whether it matters
    if name is None:
        raise ConversionError(f"{where}: llama.cpp has no pre-tokenizer for {' then '.join(structure)}")
    return name


def _prefixes(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that put a space before a SentencePiece-like text."""
    steps = [stored.get("normalizer"), stored.get("pre_tokenizer")]
    for step in list(steps):
        if isinstance(step, dict) and step.get("type") == "Sequence":
            steps += step.get("normalizers", []) + step.get("pretokenizers", [])
    found = [step for step in steps if isinstance(step, dict)]
    return [
        step
        for step in found
        if step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
    ]


def _is_gemma4(checkpoint: Checkpoint) -> bool:
    """Gemma 4's tokenizer has the shape of Gemma 3's; llama.cpp runs the one by its merges, the other by scores."""
    names = checkpoint.config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).startswith("Gemma4")


def _sentencepiece_pre(where: str, stored: dict[str, Any]) -> str:
    """Llama 2's shape: blanks become ▁, bytes are the fallback. Raises ConversionError for any other step.

    Gemma splits at blanks besides, of which its normalizer has left none.
    """
    if stored.get("normalizer") == _NO_BLANKS and stored.get("pre_tokenizer") == _SPLIT_BLANKS:
        return "default"
    steps = [stored.get("normalizer"), stored.get("pre_tokenizer")]
    for step in steps:
        kinds = {
            part.get("type") for part in (step or {}).get("normalizers", [step]) if isinstance(part, dict)
        }
        regex = '"Regex"' in json.dumps(step)  # it could match for ever
        if regex or not kinds <= {"Prepend", "Replace", "Metaspace"}:
            raise ConversionError(f"{where}: llama.cpp's SentencePiece model has no {json.dumps(step)[:200]}")
    return "default"


# --- tokens, merges, special tokens ---


def _added_tokens(where: str, stored: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Text, id and type of each added token."""
    added = stored.get("added_tokens") or []
    try:
        return [(token["content"], int(token["id"]), _added_type(token)) for token in added]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConversionError(f"{where}: added_tokens is malformed") from None


def _tokens(
    where: str, vocab: dict[str, Any], added: list[tuple[str, int, int]], n_vocab: int, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of each id from 0 to n_vocab."""
    texts: list[str | None] = [None] * n_vocab
    types = [int(TokenType.UNUSED)] * n_vocab
    entries = [(text, i, int(TokenType.NORMAL)) for text, i in vocab.items()]
    for text, i, kind in entries + added:
        if type(i) is not int or not 0 <= i < n_vocab:
            raise ConversionError(
                f"{where}: token {text!r} has id {i}, beyond config.json's vocab_size {n_vocab}"
            )
        if sentencepiece and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = int(TokenType.BYTE)
        if texts[i] not in (None, text):
            raise ConversionError(f"{where}: id {i} is both {texts[i]!r} and {text!r}")
        texts[i], types[i] = text, kind
    tokens = [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)]
    for i, kind in enumerate(types):
        if kind == TokenType.USER_DEFINED:  # llama.cpp looks for these in a text before its blanks become ▁
            tokens[i] = tokens[i].replace("▁", " ")
    # llama.cpp reads C strings, calls an empty token [EMPTY_n], and asserts that no token occurs twice.
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if not text or "\0" in text:
            raise ConversionError(f"{where}: token {i} is {text!r}, which llama.cpp cannot hold")
        if seen.setdefault(text, i) != i:
            raise ConversionError(f"{where}: tokens {seen[text]} and {i} are both {text!r}")
    missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in seen]
    if sentencepiece and missing:  # llama.cpp would end the process on a text with that byte
        raise ConversionError(f"{where}: has no token {missing[0]} for its byte fallback")
    return tokens, types


def _added_type(token: dict[str, Any]) -> int:
    """Control tokens are not shown; some checkpoints forget to mark theirs as special, as llama.cpp knows
    too.
    """
    text = token["content"]
    special = (
        token.get("special")
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or any(text.startswith(begin) and text.endswith(end) for begin, end in _SPECIAL_LOOKS)
    )
    return int(TokenType.CONTROL if special else TokenType.USER_DEFINED)


def _merges(where: str, model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges in order: pairs, or in older files strings with a blank between."""
    pairs = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConversionError(f"{where}: merge {merge!r} is no pair")
        if any(" " in part for part in pair):
            raise ConversionError(
                f"{where}: merge {merge!r} holds a blank, which llama.cpp's list cannot say"
            )
        pairs.append((pair[0], pair[1]))
    return pairs


def _gemma4_type(text: str, kind: int) -> int:
    """Runs of blanks and newlines are made by merges there, after blanks have become ▁."""
    if text in _GEMMA4_SHOWN:
        return int(TokenType.USER_DEFINED)
    return kind if text.strip("▁\n\t\r ") else int(TokenType.NORMAL)


def _scores(
    tokens: list[str], types: list[int], merges: list[tuple[str, str]], added: list[tuple[str, int, int]]
) -> list[float]:
    """SentencePiece's scores from the order of the merges: the earlier a token is merged, the higher it scores.

    A model trained by SentencePiece counts down from 0 in that order, then on through the single characters; its
    bytes and control tokens have 0. -1000 for added tokens and -10000 for unused ones are llama.cpp's converter's.
    """
    rank: dict[str, int] = {}
    apart = {text for text, _, _ in added}
    for left, right in merges:
        if left + right not in apart:
            rank.setdefault(left + right, len(rank))
    scores = []
    for text, kind in zip(tokens, types, strict=True):
        if kind == TokenType.NORMAL and text not in rank:
            rank[text] = len(rank)
        normal = -float(rank[text]) if kind == TokenType.NORMAL else 0.0
        scores.append(-10_000.0 if kind == TokenType.UNUSED else normal)
    for _, i, _ in added:
        scores[i] = -1000.0
    return scores


def _special_ids(checkpoint: Checkpoint, ids: dict[str, int]) -> tuple[dict[str, int], list[int]]:
    """Ids of the special tokens: tokenizer_config.json names them by text, else config.json by number.

    Further EOS ids of generation_config.json become eot and eom, so that llama.cpp stops at them too; those
    for which no place is left come second.
    """
    config = checkpoint.tokenizer_config
    numbers = text_values(checkpoint.config) | {
        key: value for key, value in checkpoint.config.items() if value is not None
    }
    found: dict[str, int] = {}
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        entry = config.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = numbers.get(f"{kind}_token_id")
        if isinstance(text, str) and text in ids:
            found[kind] = ids[text]
        elif kind == "bos" and text is None and config:
            pass  # a template then finds it undefined in transformers, whatever config.json's number
        elif type(number) is int and 0 <= number < len(ids):
            found[kind] = number
    stops: list[Any] = []
    for source in (checkpoint.generation_config, numbers):
        value = source.get("eos_token_id")
        stops += value if isinstance(value, list) else [value]
    further = [
        i
        for i in dict.fromkeys(i for i in stops if type(i) is int and 0 <= i < len(ids))
        if i != found.get("eos")
    ]
    if "eos" not in found and further:
        found["eos"] = further.pop(0)
    return found | dict(zip(("eot", "eom"), further, strict=False)), further[2:]


def _adds(checkpoint: Checkpoint, tokens: list[str], special_ids: dict[str, int]) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text: as the post-processor says, else tokenizer_config.json,
    else not. One that is not defined is not added.
    """
    config = checkpoint.tokenizer_config
    adds = [bool(config.get(f"add_{kind}_token")) and kind in special_ids for kind in ("bos", "eos")]
    processor = checkpoint.tokenizer.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        single = part.get("single") if part.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single:
            for at, (index, kind) in enumerate(((0, "bos"), (-1, "eos"))):
                text = (single[index].get("SpecialToken") or {}).get("id")
                adds[at] = text is not None and kind in special_ids and tokens[special_ids[kind]] == text
    return adds[0], adds[1]


# --- the proof ---
