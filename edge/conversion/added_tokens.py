"""The tokenizer of a checkpoint as transformers assembles it from all of its files.

tokenizer.json is only one of them: tokenizer_config.json (or the older added_tokens.json and special_tokens_map.json)
can name further tokens. transformers adds them with the tokenizers package, and so does edge. The rules are those of
transformers 5, tokenization_utils_base.py and tokenization_utils_tokenizers.py.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from edge.conversion.tokenizer_class import class_names
from edge.conversion.tokenizer_json import read_tokenizer
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint

# The order in which transformers adds those that are missing.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Assembled:
    """`tokenizer` holds every token that the model has a row for. `notes`: lines for the user.

    `left_out`: the texts of tokens that another file names and the model has no row for. `added`: by id, the tokens
    that tokenizer.json does not list as added tokens, or lists with other flags.
    """

    tokenizer: Tokenizer
    added: dict[int, AddedToken]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def assemble(checkpoint: Checkpoint, n_vocab: int) -> Assembled:
    """Assemble the tokenizer of a checkpoint whose model has `n_vocab` rows. A token past the last row is left out.

    Raises ConversionError if a file is malformed, or if the tokenizers package cannot read tokenizer.json.
    """
    file = checkpoint.tokenizer_file
    tokenizer = read_tokenizer(file)
    listed = tokenizer.get_added_tokens_decoder()
    declared = _declared(checkpoint, listed)
    adding = _missing(checkpoint, listed, declared)
    ids = _new_ids(tokenizer, adding)
    left_out = {content: i for content, i in ids.items() if i >= n_vocab}
    tokenizer.add_tokens([token for token in adding if token.content not in left_out])
    notes = [
        f"{file.parent}: names the token {content!r} (id {i}), for which the model has no row; left out"
        for content, i in left_out.items()
        if content not in class_names(checkpoint).values()  # no file names those
    ]
    for i, token in declared.items():
        got = tokenizer.token_to_id(token.content)
        if got is not None and got != i:
            notes.append(
                f"{file.parent}: gives {token.content!r} the id {i}; edge gives it {got}, as transformers does"
            )
    added = {
        i: token
        for i, token in tokenizer.get_added_tokens_decoder().items()
        if i not in listed or repr(listed[i]) != repr(token)
    }
    return Assembled(tokenizer, added, tuple(left_out), tuple(notes))


def class_tokens(checkpoint: Checkpoint, listed: Mapping[int, AddedToken]) -> list[AddedToken]:
    """The tokens that transformers adds to a tokenizer that it builds from a class. `listed`: those of `assemble`.

    It reads those of tokenizer.json only where tokenizer_config.json has no added_tokens_decoder.
    """
    declared = _declared(checkpoint, listed)
    if checkpoint.tokenizer_config.get("added_tokens_decoder") is None:
        declared |= listed
    return _missing(checkpoint, {}, declared)


def _new_ids(tokenizer: Tokenizer, adding: Iterable[AddedToken]) -> dict[str, int]:
    """The ids that the tokenizers package gives to added tokens: their own, or the next one after all others."""
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    following = max([size, *(i + 1 for i in tokenizer.get_added_tokens_decoder())])
    ids: dict[str, int] = {}
    for token in adding:
        if token.content not in ids:
            known = tokenizer.token_to_id(token.content)
            ids[token.content] = following if known is None else known
            following = max(following, ids[token.content] + 1)
    return ids


def _declared(checkpoint: Checkpoint, listed: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """The tokens that tokenizer_config.json or added_tokens.json give with their ids."""
    config = checkpoint.tokenizer_config
    where = f"{checkpoint.tokenizer_file.parent / 'tokenizer_config.json'}: added_tokens_decoder"
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise ConversionError(f"{where} is not a map of ids to tokens; save the tokenizer again")
        return {_id(where, key): _token(where, value) for key, value in sorted(decoder.items())}
    where = f"{checkpoint.tokenizer_file.parent / 'added_tokens.json'}: the map"
    encoder = config.get("added_tokens_encoder") or {}
    extra = config.get("extra_special_tokens")  # transformers does not look at the older key here
    special = {_text(config.get(name)) for name in _NAMED}
    special |= {_text(value) for value in extra} if isinstance(extra, list) else set()
    declared = {}
    for text, value in encoder.items():
        i = _id(where, value)
        if _text(text) is None:
            raise ConversionError(f"{where} holds a malformed token; save the tokenizer again")
        if i not in listed:  # tokenizer.json counts there
            is_special = text in special
            declared[i] = AddedToken(text, normalized=not is_special, special=is_special)
    return declared


def _missing(
    checkpoint: Checkpoint, listed: Mapping[int, AddedToken], declared: Mapping[int, AddedToken]
) -> list[AddedToken]:
    """The tokens that transformers adds to those of tokenizer.json, in its order."""
    config = {**checkpoint.tokenizer_config, **class_names(checkpoint)}
    known = {repr(token) for token in listed.values()}
    adding = [token for _, token in sorted(declared.items()) if repr(token) not in known]
    contents = {token.content for token in (*listed.values(), *adding)}
    flags = {token.content: token for token in (*declared.values(), *listed.values())}
    where = str(checkpoint.tokenizer_file.parent / "tokenizer_config.json")
    seen: set[tuple[str | None, bool]] = set()
    named = [config.get(name) for name in _NAMED]
    named += [
        value
        for key, value in config.items()
        if key.endswith("_token") and key not in _NAMED and isinstance(value, str)
    ]
    further = config.get("model_specific_special_tokens")
    named += further.values() if isinstance(further, dict) else []
    for value in (*named, *_extra(config)):
        text = _text(value)
        form = (text, isinstance(value, dict))  # one of each form is added, and the flags of the last count
        if text and text not in contents and form not in seen:
            seen.add(form)
            made = _token(where, value) if isinstance(value, dict) else AddedToken(text, special=True)
            made.special = True
            adding.append(flags.get(text, made))
    names = {_text(value) for value in named}
    for token in adding:
        token.special = token.special or token.content in names
    return [token for token in adding if token.content]


def _extra(config: Mapping[str, Any]) -> Iterable[object]:
    """Further special tokens without a name."""
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    return extra if isinstance(extra, list) else []


def _text(value: object) -> str | None:
    """The text of a token that a configuration gives as a text or as a map."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or re.search("[\ud800-\udfff]", content):  # half of a surrogate pair
        return None
    return content


def _id(where: str, value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ConversionError(
            f"{where} holds {text[:40]!r}, which is not a token id; save the tokenizer again"
        )
    return int(text)


def _token(where: str, value: object) -> AddedToken:
    flags = {name: value.get(name, False) for name in _FLAGS} if isinstance(value, dict) else {}
    content = _text(value)
    if content is None or not flags or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ConversionError(f"{where} holds a malformed token; save the tokenizer again")
    return AddedToken(content, **flags)
