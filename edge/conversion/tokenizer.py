"""Convert tokenizer.json to the tokenizer metadata of llama.cpp.

llama.cpp identifies a pre-tokenizer by its name. Its own converter hashes the tokens of a test text to find the name,
which fails for each new revision of a tokenizer. edge compares the structure and the regex in tokenizer.json instead.
Sources: the regex of each name is in llama.cpp's src/llama-vocab.cpp, the keys (tokenizer.ggml.*) are in gguf's
constants.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from edge.conversion.added_tokens import assemble
from edge.conversion.plan import text_values
from edge.conversion.tokenizer_json import Step, TokenizerJson, parts, templates
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint

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
_QWEN2 = rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_GPT4O = rf"{_CASED}{_ENGLISH}?|{_CASED_2}{_ENGLISH}?|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_SPACES}"
_TEKKEN = rf"{_CASED}|{_CASED_2}|\p{{N}}|{_SIGNS_SLASH}|{_SPACES}"
_QWEN35 = (
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
    (_QWEN2, "bytes"): ("qwen2", None),
    (_QWEN35, "bytes"): ("qwen35", None),
    (_GPT4O, "bytes"): ("gpt-4o", None),
    (_TEKKEN, "bytes"): (None, "tekken"),
}


class Added(NamedTuple):
    """An added token; `kind` is a gguf.TokenType."""

    text: str
    id: int
    kind: int


_NO_SPACES: Step = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SPLIT_SPACES: Step = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_MAX_VOCABULARY = 1 << 22  # tokens; the largest known has 262,144
_SPECIAL_LOOKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
# As in llama.cpp's converter: these tokens are visible text, so that a chat parser can read them.
_GEMMA4_SHOWN = [
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp describes it. The fields are those of the tokenizer.ggml.* metadata.

    `warnings` say what a GGUF cannot store, one line each.
    """

    model: str  # gpt2 (byte-level BPE), llama (SentencePiece-like) or gemma4 (BPE on raw UTF-8)
    pre: str | None  # the pre-tokenizer; None if `model` implies it
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    special_ids: dict[str, int]  # bos, eos, unk, sep, pad, mask, eot, eom
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    warnings: tuple[str, ...]
    tokenizer: Tokenizer  # as transformers assembles it, to compare with


def make_vocabulary(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary of a checkpoint, padded with unused tokens to `n_vocab`.

    Raises ConversionError if the kind of tokenizer is unknown (the line shows its regex), if an id is `n_vocab` or
    larger, if a token or an id occurs twice, or if the tokenizers package cannot read the file.
    """
    file = checkpoint.folder / "tokenizer.json"
    where = str(file)
    model = _bpe_model(where, checkpoint)
    if n_vocab > _MAX_VOCABULARY:
        raise ConversionError(
            f"{where}: config.json's vocab_size is {n_vocab:,}; edge takes at most {_MAX_VOCABULARY:,}"
        )
    sentencepiece = bool(model.get("byte_fallback"))
    gemma4 = sentencepiece and _is_gemma4(checkpoint)
    merges = _merges(where, model)
    if (
        not merges
    ):  # llama.cpp cannot read a BPE without merges, and SentencePiece scores come from their order
        raise ConversionError(
            f"{where}: has no merges; download it again, or save it again with a fast tokenizer"
        )
    added = _added_tokens(where, checkpoint.tokenizer)
    assembled = assemble(checkpoint, n_vocab)  # a file that it accepts has the structure of TokenizerJson
    stored = cast(TokenizerJson, checkpoint.tokenizer)
    pre = _sentencepiece_pre(where, stored) if sentencepiece else _byte_level_pre(where, stored)
    if assembled.added:  # what is wrong in tokenizer.json itself is said first
        _tokens(where, stored["model"]["vocab"], added, n_vocab, sentencepiece)
        added = _with(added, assembled.added)
    if gemma4:
        added = [Added(token.text, token.id, _gemma4_type(token)) for token in added]
    tokens, types = _tokens(where, stored["model"]["vocab"], added, n_vocab, sentencepiece)
    special_ids, unused, notes = _special_ids(checkpoint, {text: i for i, text in enumerate(tokens)})
    add_bos, add_eos = _adds(checkpoint, tokens, special_ids)
    if (
        gemma4 and "bos" not in special_ids
    ):  # llama.cpp always adds BOS to Gemma 4, and asserts that it exists
        raise ConversionError(
            f"{where}: tokenizer_config.json names no bos_token, which llama.cpp's Gemma 4 needs"
        )
    scores = None
    if sentencepiece:  # llama.cpp's Gemma 4 uses the merges; -1000 is what llama.cpp's converter writes there
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
        add_space_prefix=_adds_space(stored) if sentencepiece else None,
        warnings=(
            *assembled.notes,
            *notes,
            *(
                f"a GGUF can store only three EOS tokens; {tokens[i]!r} will not end an answer"
                for i in unused
            ),
        ),
        tokenizer=assembled.tokenizer,
    )


def _bpe_model(where: str, checkpoint: Checkpoint) -> Mapping[str, object]:
    """The `model` of tokenizer.json, not checked further. Raises ConversionError if it is not a BPE."""
    model = checkpoint.tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ConversionError(f"{where}: holds no BPE model; edge converts BPE tokenizers only")
    if model.get("type", "BPE") != "BPE":
        raise ConversionError(f"{where}: is of type {model['type']}; edge converts BPE tokenizers only")
    return model


# --- the pre-tokenizer ---


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
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        pattern = pre_tokenizer.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            return (pattern["Regex"],)
    return (json.dumps(pre_tokenizer, ensure_ascii=False),)


def _byte_level_pre(where: str, stored: TokenizerJson) -> str:
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


def _adds_space(stored: TokenizerJson) -> bool:
    """Whether a step puts a space before a SentencePiece-like text."""
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in [
            *parts(stored.get("normalizer") or Step(), "normalizers"),
            *parts(stored.get("pre_tokenizer") or Step(), "pretokenizers"),
        ]
    )


def _is_gemma4(checkpoint: Checkpoint) -> bool:
    """Gemma 3 and 4 have tokenizers of the same structure; llama.cpp uses scores for Gemma 3 and merges for Gemma 4."""
    names = checkpoint.config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).startswith("Gemma4")


def _sentencepiece_pre(where: str, stored: TokenizerJson) -> str:
    """llama.cpp's name for the structure of Llama 2: spaces become ▁, and bytes are the fallback.

    Gemma also splits at spaces, but its normalizer leaves no spaces. Raises ConversionError for any other step.
    """
    normalizer, pre_tokenizer = stored.get("normalizer"), stored.get("pre_tokenizer")
    if normalizer == _NO_SPACES and pre_tokenizer == _SPLIT_SPACES:
        return "default"
    for step in (normalizer, pre_tokenizer):
        kinds = set() if step is None else {part.get("type") for part in parts(step, "normalizers")}
        regex = '"Regex"' in json.dumps(step)  # a hostile regex could run without end
        if regex or not kinds <= {"Prepend", "Replace", "Metaspace"}:
            raise ConversionError(f"{where}: llama.cpp's SentencePiece model has no {json.dumps(step)[:200]}")
    return "default"


# --- tokens, merges, special tokens ---


def _added_tokens(where: str, stored: Mapping[str, Any]) -> list[Added]:
    """The added tokens. Raises ConversionError if they are malformed."""
    added = stored.get("added_tokens") or []
    try:
        return [Added(token["content"], int(token["id"]), _added_type(token)) for token in added]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConversionError(f"{where}: added_tokens is malformed") from None


def _tokens(
    where: str, vocab: Mapping[str, int], added: list[Added], n_vocab: int, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of each id from 0 to n_vocab - 1.

    Raises ConversionError for an id out of range, an id or a text that occurs twice, a text that llama.cpp cannot
    store, and a missing byte token.
    """
    texts: list[str | None] = [None] * n_vocab
    types = [int(TokenType.UNUSED)] * n_vocab
    entries = [Added(text, i, int(TokenType.NORMAL)) for text, i in vocab.items()]
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
        if kind == TokenType.USER_DEFINED:  # llama.cpp searches a text for these before its spaces become ▁
            tokens[i] = tokens[i].replace("▁", " ")
    # llama.cpp reads C strings, renames an empty token to [EMPTY_n], and asserts that no token occurs twice.
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if not text or "\0" in text:
            raise ConversionError(f"{where}: token {i} is {text!r}, which llama.cpp cannot hold")
        if seen.setdefault(text, i) != i:
            raise ConversionError(f"{where}: tokens {seen[text]} and {i} are both {text!r}")
    missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in seen]
    if sentencepiece and missing:  # llama.cpp would stop the process at a text with that byte
        raise ConversionError(f"{where}: has no token {missing[0]} for its byte fallback")
    return tokens, types


def _with(listed: list[Added], further: Mapping[int, AddedToken]) -> list[Added]:
    """The added tokens of tokenizer.json, and those that other files add or give other flags."""
    changed = {
        token.content: Added(
            token.content, i, _added_type({"content": token.content, "special": token.special})
        )
        for i, token in further.items()
    }
    same = [changed.pop(token.text, token) for token in listed]
    return [*same, *changed.values()]


def _added_type(token: Mapping[str, Any]) -> int:
    """The type of an added token: control (not shown as text) or user-defined.

    Some checkpoints do not mark their control tokens as special. As in llama.cpp, their text then decides.
    """
    text = token["content"]
    special = (
        token.get("special")
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or any(text.startswith(begin) and text.endswith(end) for begin, end in _SPECIAL_LOOKS)
    )
    return int(TokenType.CONTROL if special else TokenType.USER_DEFINED)


def _merges(where: str, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order. The file stores pairs; older files store strings with a space between the two parts.

    Raises ConversionError if a merge is not a pair, or if a part contains a space.
    """
    pairs = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConversionError(f"{where}: merge {merge!r} is not a pair of tokens")
        if any(" " in part for part in pair):
            raise ConversionError(
                f"{where}: merge {merge!r} contains a space, which llama.cpp's merge list cannot store"
            )
        pairs.append((pair[0], pair[1]))
    return pairs


def _gemma4_type(token: Added) -> int:
    """Gemma 4 builds runs of spaces and newlines by merges, after spaces have become ▁: these are normal tokens."""
    if token.text in _GEMMA4_SHOWN:
        return int(TokenType.USER_DEFINED)
    return token.kind if token.text.strip("▁\n\t\r ") else int(TokenType.NORMAL)


def _scores(
    tokens: list[str], types: list[int], merges: list[tuple[str, str]], added: list[Added]
) -> list[float]:
    """SentencePiece scores from the order of the merges: an earlier merge gives a higher score.

    As in a model that SentencePiece trained: the scores are 0, -1, -2, … in the order of the merges, then through the
    single characters. Bytes and control tokens have 0. As in llama.cpp's converter: added tokens have -1000, unused
    tokens -10000.
    """
    rank: dict[str, int] = {}
    without = {token.text for token in added}
    for left, right in merges:
        if left + right not in without:
            rank.setdefault(left + right, len(rank))
    scores = []
    for text, kind in zip(tokens, types, strict=True):
        if kind == TokenType.NORMAL and text not in rank:
            rank[text] = len(rank)
        normal = -float(rank[text]) if kind == TokenType.NORMAL else 0.0
        scores.append(-10_000.0 if kind == TokenType.UNUSED else normal)
    for token in added:
        scores[token.id] = -1000.0
    return scores


def _special_ids(checkpoint: Checkpoint, ids: dict[str, int]) -> tuple[dict[str, int], list[int], list[str]]:
    """The ids of the special tokens, the EOS ids that a GGUF has no key for, and notes.

    tokenizer_config.json names special tokens by text; otherwise config.json names them by id. Further EOS ids of
    generation_config.json become eot and eom, so that llama.cpp stops at them too.
    """
    config = checkpoint.tokenizer_config
    numbers = text_values(checkpoint.config) | {
        key: value for key, value in checkpoint.config.items() if value is not None
    }
    found: dict[str, int] = {}
    notes: list[str] = []
    texts = list(ids)
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        entry = config.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = numbers.get(f"{kind}_token_id")
        if isinstance(text, str) and text in ids:
            found[kind] = ids[text]
        elif kind == "bos" and text is None and config:
            pass  # as in transformers: it is then undefined in a chat template, even if config.json has its id
        elif type(number) is int and 0 <= number < len(ids):
            found[kind] = number
            if isinstance(text, str):
                notes.append(
                    f"{checkpoint.folder}: its {kind}_token {text!r} is not in the vocabulary; the GGUF uses "
                    f"{kind}_token_id {number} ({texts[number]!r}) of config.json"
                )
    stops: list[object] = []
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
    return found | dict(zip(("eot", "eom"), further, strict=False)), further[2:], notes


def _adds(checkpoint: Checkpoint, tokens: list[str], special_ids: dict[str, int]) -> tuple[bool, bool]:
    """Whether a tokenizer adds BOS before a text and EOS after it.

    The post-processor decides, otherwise tokenizer_config.json; the default is no. An undefined token is not added.
    """
    config = checkpoint.tokenizer_config
    adds = [bool(config.get(f"add_{kind}_token")) and kind in special_ids for kind in ("bos", "eos")]
    for part in templates(checkpoint):
        single = part.get("single")
        if isinstance(single, list) and single:
            for at, (index, kind) in enumerate(((0, "bos"), (-1, "eos"))):
                special = single[index].get("SpecialToken")
                text = None if special is None else special.get("id")
                adds[at] = text is not None and kind in special_ids and tokens[special_ids[kind]] == text
    return adds[0], adds[1]
