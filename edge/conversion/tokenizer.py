"""Convert tokenizer.json to the tokenizer metadata of llama.cpp.

llama.cpp's own converter hashes the tokens of a test text to find the pre-tokenizer, which fails for each new revision
of a tokenizer. edge compares the structure and the regex in tokenizer.json instead (pre_tokenizer.py). The keys
(tokenizer.ggml.*) are in gguf's constants.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from edge.conversion.added_tokens import assemble
from edge.conversion.class_tokenizer import class_note, regex_note
from edge.conversion.pre_tokenizer import as_llama_cpp, byte_level_pre, sentencepiece_pre
from edge.conversion.space_prefix import SpacePrefix, chat_prompts, choose
from edge.conversion.special_tokens import adds, around_note, special_ids
from edge.conversion.tokenizer_json import TokenizerJson, templates
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint
from edge.system.text import counted, quoted


class Added(NamedTuple):
    """An added token; `kind` is a gguf.TokenType."""

    text: str
    id: int
    kind: int


_MAX_VOCABULARY = 1 << 22  # tokens; the largest known has 262,144
_RESIZE = "call model.resize_token_embeddings and save the model again, or remove the token"
_NOT_EXTENDED = (
    "an adapter's tokenizer can only extend the base's: give the base that it was trained on, or remove the tokenizer "
    "files beside the adapter to use the base's"
)
_SPECIAL_LOOKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
# As in llama.cpp's converter: these tokens are visible text, so that a chat parser can read them.
_GEMMA4_SHOWN = [
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp describes it. The fields are those of the tokenizer.ggml.* metadata.

    `left_out`: added tokens past the last row of the embeddings. `warnings` say what differs from the checkpoint's
    tokenizer, one line each.
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
    space: SpacePrefix | None  # only for SentencePiece-like tokenizers
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    tokenizer: Tokenizer  # as transformers assembles it
    compared: (
        Tokenizer  # the same with llama.cpp's own regex, if that is another one: what llama.cpp must equal
    )
    ends: bool  # whether tokenizer.json says what is put around a text, and the GGUF can say it too

    @property
    def add_space_prefix(self) -> bool | None:
        """Whether llama.cpp puts a space before a text and after each special token; None if it never does."""
        return None if self.space is None else self.space.adds


def make_vocabulary(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary of a checkpoint, padded with unused tokens to `n_vocab`.

    Raises ConversionError if the kind of tokenizer is unknown (the line shows its regex), if the id of a token that is
    not added is `n_vocab` or larger, if a token or an id occurs twice, if the tokenizers package cannot read the file,
    or if the tokenizer of an adapter does more than extend the base's.
    """
    vocabulary = _vocabulary(checkpoint, n_vocab)
    changes = tokenizer_changes(checkpoint, vocabulary)
    if not changes:
        return vocabulary
    note = f"the tokenizer is the adapter's, not the base's: {', '.join(changes)}"
    return replace(vocabulary, warnings=(note, *vocabulary.warnings))


def tokenizer_changes(checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """What an adapter changes in the tokenizer of its base. `vocabulary`: that of `checkpoint`.

    Raises ConversionError if it does more than add tokens that have rows, and name special tokens.
    """
    if checkpoint.extends is None:
        return []
    base, own = make_vocabulary(checkpoint.extends, len(vocabulary.tokens)), vocabulary
    where = checkpoint.tokenizer_file
    for i, (old, new) in enumerate(zip(base.tokens, own.tokens, strict=True)):
        if base.types[i] != TokenType.UNUSED and old.replace("▁", " ") != new.replace("▁", " "):
            missing = own.types[i] == TokenType.UNUSED
            raise ConversionError(
                f"{where}: {f'lacks {old!r}' if missing else f'id {i} is {new!r}'}, but the base's id {i} is {old!r}; "
                f"{_NOT_EXTENDED}"
            )
    normal = [i for i, kind in enumerate(own.types) if kind == base.types[i] == TokenType.NORMAL]
    ranks = [[v.scores[i] for i in normal] if v.scores else v.merges for v in (base, own)]
    if (base.model, base.pre) != (own.model, own.pre) or ranks[0] != ranks[1]:
        raise ConversionError(f"{where}: splits texts in another way than the base's; {_NOT_EXTENDED}")
    beyond = [text for text in own.left_out if text not in base.left_out]
    if beyond:
        raise ConversionError(
            f"{where}: {beyond[0]!r} is past the {len(own.tokens):,} rows of the embeddings; {_RESIZE}"
        )
    return _changes(base, own)


def _changes(base: Vocabulary, own: Vocabulary) -> list[str]:
    known = [kind != TokenType.UNUSED for kind in base.types]
    further = [
        text
        for text, old, kind in zip(own.tokens, known, own.types, strict=True)
        if not old and kind != TokenType.UNUSED
    ]
    changes = [f"{counted(len(further), 'further token')} ({quoted(further)})"] if further else []
    flags = sum(old and base.types[i] != own.types[i] for i, old in enumerate(known))
    if flags:
        changes.append(f"{counted(flags, 'token')} of another type")
    for kind in dict.fromkeys([*base.special_ids, *own.special_ids]):
        texts = [
            repr(v.tokens[v.special_ids[kind]]) if kind in v.special_ids else "none" for v in (base, own)
        ]
        if texts[0] != texts[1]:
            changes.append(f"{kind} is {texts[1]}, not {texts[0]}")
    for name in ("add_bos", "add_eos", "add_space_prefix"):
        if getattr(base, name) != getattr(own, name):
            changes.append(f"{name} is {str(getattr(own, name)).lower()}")
    return changes


def _vocabulary(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary of a checkpoint, without a look at the base of an adapter."""
    where = str(checkpoint.tokenizer_file)
    model = _bpe_model(where, checkpoint)
    _check_size(where, n_vocab)
    sentencepiece = bool(model.get("byte_fallback"))
    gemma4 = sentencepiece and _is_gemma4(checkpoint)
    merges = _merges(where, model)
    added = _added_tokens(where, checkpoint.tokenizer)
    assembled = assemble(checkpoint, n_vocab)  # a file that it accepts has the structure of TokenizerJson
    stored = cast(TokenizerJson, checkpoint.tokenizer)
    pre = sentencepiece_pre(where, stored) if sentencepiece else byte_level_pre(where, stored)
    added, renumbered = _as_numbered(where, stored["model"]["vocab"], added, assembled.tokenizer)
    vocab, added, left_out = _within(stored["model"]["vocab"], added, merges, n_vocab)
    if assembled.added:  # what is wrong in tokenizer.json itself is said first
        _tokens(where, vocab, added, n_vocab, sentencepiece)
        added = _with(added, assembled.added)
    if gemma4:
        added = [Added(token.text, token.id, _gemma4_type(token)) for token in added]
    tokens, types = _tokens(where, vocab, added, n_vocab, sentencepiece)
    found, unused, notes = special_ids(checkpoint, {text: i for i, text in enumerate(tokens)})
    add_bos, add_eos = adds(checkpoint, tokens, found)
    around = around_note(checkpoint, tokens, found)
    if gemma4 and "bos" not in found:  # llama.cpp always adds BOS to Gemma 4, and asserts that it exists
        raise ConversionError(
            f"{where}: tokenizer_config.json names no bos_token, which llama.cpp's Gemma 4 needs"
        )
    scores, space, compared = None, None, as_llama_cpp(assembled.tokenizer, pre)
    names = {f"{kind}_token": tokens[i] for kind, i in found.items()}
    if sentencepiece:
        special = [token.text for token in added]
        space = choose(stored, checkpoint.chat_template, names, special)
        # llama.cpp's Gemma 4 uses the merges; -1000 is what llama.cpp's converter writes there
        scores = [-1000.0] * len(tokens) if gemma4 else _scores(tokens, types, merges, added)
    return Vocabulary(
        model="gemma4" if gemma4 else "llama" if sentencepiece else "gpt2",
        pre=None if gemma4 else pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=[] if sentencepiece and not gemma4 else [" ".join(pair) for pair in merges],
        special_ids=found,
        add_bos=add_bos or gemma4,
        add_eos=add_eos,
        space=space,
        left_out=(*left_out, *assembled.left_out),
        warnings=(
            *renumbered,
            *assembled.notes,
            *_left_out_note(left_out, n_vocab),
            *_written_note([*left_out, *assembled.left_out], checkpoint, names),
            *around,
            *notes,
            *(space.notes if space is not None else ()),
            *class_note(checkpoint, assembled.tokenizer, names),
            *regex_note(checkpoint, assembled.tokenizer, compared, names),
            *(
                f"a GGUF can store only three EOS tokens; {tokens[i]!r} will not end an answer"
                for i in unused
            ),
        ),
        tokenizer=assembled.tokenizer,
        compared=compared,
        ends=bool(templates(checkpoint)) and not around,
    )


def _check_size(where: str, n_vocab: int) -> None:
    if n_vocab > _MAX_VOCABULARY:
        raise ConversionError(
            f"{where}: config.json's vocab_size is {n_vocab:,}; edge takes at most {_MAX_VOCABULARY:,}"
        )


def _bpe_model(where: str, checkpoint: Checkpoint) -> Mapping[str, object]:
    """The `model` of tokenizer.json, not checked further. Raises ConversionError if it is not a BPE."""
    model = checkpoint.tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ConversionError(f"{where}: holds no BPE model; edge converts BPE tokenizers only")
    if model.get("type", "BPE") != "BPE":
        raise ConversionError(f"{where}: is of type {model['type']}; edge converts BPE tokenizers only")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConversionError(f"{where}: llama.cpp's BPE has no {key} ({str(model[key])[:20]!r})")
    if model.get("dropout"):
        raise ConversionError(f"{where}: leaves out merges at random (dropout); set dropout to null in it")
    return model


def _is_gemma4(checkpoint: Checkpoint) -> bool:
    """Gemma 3 and 4 have tokenizers of the same structure; llama.cpp uses scores for Gemma 3 and merges for Gemma 4."""
    names = checkpoint.config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).startswith("Gemma4")


# --- tokens, merges, special tokens ---


def _added_tokens(where: str, stored: Mapping[str, Any]) -> list[Added]:
    """The added tokens. Raises ConversionError if they are malformed."""
    added = stored.get("added_tokens") or []
    try:
        return [Added(token["content"], int(token["id"]), _added_type(token)) for token in added]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConversionError(f"{where}: added_tokens is malformed") from None


def _within(
    vocab: Mapping[str, int], added: list[Added], merges: list[tuple[str, str]], n_vocab: int
) -> tuple[Mapping[str, int], list[Added], list[str]]:
    """The vocabulary and the added tokens that have a row in the embeddings, and the texts of those that have none.

    Gemma 3's tokenizer has a token for images one past the rows of its text models. A token that a merge makes stays,
    and is an error: it can be in any text.
    """
    if all(token.id < n_vocab for token in added):
        return vocab, added, []
    made = {left + right for left, right in merges}
    beyond = {token.text for token in added if token.id >= n_vocab and token.text not in made}
    inside = {text: i for text, i in vocab.items() if text not in beyond}
    return inside, [token for token in added if token.text not in beyond], sorted(beyond)


def _as_numbered(
    where: str, vocab: Mapping[str, int], added: list[Added], tokenizer: Tokenizer
) -> tuple[list[Added], list[str]]:
    """The added tokens with the ids that the tokenizers package gives them, and a note if some have others.

    It gives a token that is not in the vocabulary the next id, whatever tokenizer.json says. An id that tokenizer.json
    gives to two tokens, and a token with two ids, stay: they are errors.
    """
    fixed = set(vocab.values())
    free = [token for token in added if token.text not in vocab and token.id not in fixed]
    given = {token.text: tokenizer.token_to_id(token.text) for token in free}
    ids = {text: i for text, i in given.items() if i is not None and i not in fixed}
    numbered = [Added(token.text, ids.get(token.text, token.id), token.kind) for token in added]
    other = [(old, new) for old, new in zip(added, numbered, strict=True) if old.id != new.id]
    if not other or len({token.id for token in numbered}) < len(numbered):
        return added, []
    (old, new), count = other[0], counted(len(other), "added token")
    note = f"{where}: gives {count} another id than transformers reads ({old.text!r}: {old.id}, not {new.id})"
    return numbered, [f"{note}; edge writes what transformers reads"]


def _written_note(left_out: list[str], checkpoint: Checkpoint, names: dict[str, str]) -> list[str]:
    """A note if the chat template writes a token that was left out. `names`: the tokens that it knows by name."""
    prompts = "".join(chat_prompts(checkpoint.chat_template, names)) if left_out else ""
    found = [text for text in left_out if text and text in prompts]
    if not found:
        return []
    return [
        f"the chat template writes {quoted(found)}, for which the model has no row: prompts have other tokens than in "
        f"the training; {_RESIZE.partition(',')[0]}, or use the template of the base model"
    ]


def _left_out_note(left_out: list[str], n_vocab: int) -> list[str]:
    if not left_out:
        return []
    return [
        f"{counted(len(left_out), 'added token')} ({quoted(left_out)}) past the {n_vocab:,} rows of the embeddings: "
        "left out, so a prompt must not hold that text"
    ]


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
                f"{where}: token {text!r} has id {i}, beyond config.json's vocab_size {n_vocab}; {_RESIZE}"
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

    Raises ConversionError if there is none, if a merge is not a pair, or if a part contains a space.
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
    if (
        not pairs
    ):  # llama.cpp cannot read a BPE without merges, and SentencePiece scores come from their order
        raise ConversionError(
            f"{where}: has no merges; download it again, or save it again with a fast tokenizer"
        )
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
