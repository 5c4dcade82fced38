"""Answers under any JSON schema or grammar, valid at any budget that a valid text fits into; and plain text with stops.

At every step an ending is known: tokens that make the text so far a whole one, few enough for what is left of the
budget. A token that would leave none is not written; the ending is, and closes the answer. So nothing that was written
is ever taken back, and all of it may be streamed.
"""

import codecs
import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from llguidance import LLMatcher, LLTokenizer, grammar_from
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from edge.engine import Writer
from edge.errors import GrammarError
from edge.generate import Answer, TokenWriter
from edge.sampling import Sampling
from edge.tokens import Vocabulary

_MOST_TRIED = (
    400  # states looked at for an ending, in each attempt; in the first, two more for each token of room
)
# What leads to an end soonest comes first, white space last. Of each kind some are tried: its first, and its last.
_KINDS = (
    (b'"}]:)>.;!?,', 5, 0),
    (b"0123456789", 1, 1),
    (bytes(byte for byte in range(0x21, 0x7F) if not chr(byte).isalnum()), 5, 0),
    (b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", 1, 1),
    (bytes(range(0x80, 0x100)), 1, 1),
    (b"\n ", 1, 1),
)
_MOST_WITHOUT_BYTES = 5


def compile_guide(vocabulary: Vocabulary, kind: Literal["schema", "gbnf"], text: str) -> LLMatcher:
    """The matcher at the start of an answer. Raises GrammarError with llguidance's reason."""
    try:
        if kind == "schema":
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": r"[ \n\t]{0,20}"}
            )
        else:
            grammar = grammar_from("gbnf", text)
        matcher = LLMatcher(vocabulary.matcher_tokens(), grammar, log_level=0)
    except Exception as error:  # gbnf_to_lark raises bare Exceptions
        raise GrammarError(f"cannot be read: {_one_line(error)}") from None
    if matcher.is_error():
        raise GrammarError(f"cannot be compiled: {_one_line(matcher.get_error())}")
    return matcher


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]


class Endings:
    """Finds endings: short ways from a matcher's state to a whole text, in tokens of one vocabulary."""

    def __init__(self, tokenizer: LLTokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = np.array(sorted(end_ids))
        single: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            if tokenizer.is_special_token(token):
                continue
            data = tokenizer.decode_bytes([token])
            if len(data) == 1:
                single.setdefault(data[0], token)
        self._kinds = [
            ([single[byte] for byte in kind if byte in single], first, last) for kind, first, last in _KINDS
        ]

    def find(self, matcher: LLMatcher, most: int) -> list[int] | None:
        """At most `most` tokens that complete the text; None if none were found. The matcher stays as it is.

        The way is looked for byte by byte, and then written in the tokenizer's own, longer tokens.
        """
        longest = 8 * most + 16
        # For JSON the marks that close things lead straight to the end.
        found = self._search(matcher, most, longest, _MOST_TRIED + 2 * most)
        depth = 4
        while found is None and depth < longest:
            found = self._search(matcher, most, depth, _MOST_TRIED)
            depth *= 2
        return found

    def first(self, matcher: LLMatcher, most: int) -> list[int]:
        """The same at the start of an answer. Raises GrammarError where none was found."""
        found = self.find(matcher, most)
        if found is None:
            raise GrammarError(
                f"no valid text was found that fits into {most} tokens: raise max_tokens, or ask for a shorter one"
            )
        return found

    def _search(self, matcher: LLMatcher, most: int, longest: int, tries: int) -> list[int] | None:
        """Depth first, at most `longest` single bytes deep."""
        stack: list[tuple[LLMatcher, list[int], int | None]] = [(matcher, [], None)]
        for _ in range(tries):
            if not stack:
                return None
            before, way, token = stack.pop()
            state = before.deep_copy()
            if token is not None:
                if state.try_consume_tokens([token]) != 1:
                    continue
                way = [*way, token]
            if state.is_accepting():
                whole = self._in_few(matcher, way)
                if len(whole) <= most:
                    return whole
                continue
            if len(way) >= longest:
                continue
            if forced := state.compute_ff_tokens():
                if state.try_consume_tokens(forced) == len(forced):
                    stack.append((state, way + forced, None))
                continue
            stack += ((state, way, choice) for choice in reversed(self._choices(state)))
        return None

    def _in_few(self, matcher: LLMatcher, way: list[int]) -> list[int]:
        """The same text in the tokenizer's own tokens, if the grammar takes it so."""
        tokens = self._tokenizer.tokenize_bytes(self._tokenizer.decode_bytes(way)) if way else []
        return tokens if len(tokens) < len(way) and self.holds(matcher, tokens) else way

    def holds(self, matcher: LLMatcher, ending: Sequence[int]) -> bool:
        """Whether an ending found earlier still is one."""
        state = matcher.deep_copy()
        return state.try_consume_tokens(list(ending)) == len(ending) and bool(state.is_accepting())

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """The tokens that may follow, those that end the answer among them: bool, of shape (n_vocab,)."""
        bits = self._bits(matcher).view(np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._tokenizer.vocab_size].view(np.bool_)
        mask[self._end_ids] = matcher.is_accepting()
        return mask

    def _bits(self, matcher: LLMatcher) -> NDArray[np.int32]:
        bits = allocate_token_bitmask(1, self._tokenizer.vocab_size)
        fill_next_token_bitmask(matcher, bits)
        row: NDArray[np.int32] = bits[0]
        return row

    def _choices(self, matcher: LLMatcher) -> list[int]:
        bits = self._bits(matcher)

        def fits(token: int) -> bool:
            return bool(bits[token >> 5] >> (token & 31) & 1)

        found: dict[int, None] = {}
        for kind, first, last in self._kinds:
            fitting = [token for token in kind if fits(token)]
            found |= dict.fromkeys([*fitting[:first], *fitting[len(fitting) - last :]])
        if not found:  # a vocabulary without single bytes
            found = dict.fromkeys(np.flatnonzero(self.allowed(matcher))[:_MOST_WITHOUT_BYTES].tolist())
        return list(found)


def guided_answer(
    vocabulary: Vocabulary,
    endings: Endings,
    guide: LLMatcher,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None] | None = None,
) -> Writer[Answer]:
    """An answer that the guide accepts as a whole. Raises GrammarError at once where no such text fits the budget."""
    matcher = guide.deep_copy()
    ending = endings.first(matcher, max_tokens)
    return _guided(vocabulary, endings, matcher, ending, prompt, max_tokens, sampling, emit)


def _guided(
    vocabulary: Vocabulary,
    endings: Endings,
    matcher: LLMatcher,
    ending: list[int],
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None] | None,
) -> Writer[Answer]:
    writer = TokenWriter(prompt, sampling, max_tokens)
    shown = _Shown(emit)
    closed = False
    while not matcher.is_stopped():
        if not writer.left:
            closed = bool(ending) or not matcher.is_accepting()
            break
        forced = matcher.compute_ff_tokens()
        if forced and len(forced) <= writer.left and _fits(endings, matcher, forced, writer.left) is not None:
            ending = _fits(endings, matcher, forced, writer.left) or []
            matcher.try_consume_tokens(forced)
            writer.force(forced)
            shown.add(b"".join(map(vocabulary.piece, forced)))
            continue
        logits = yield from writer.logits()
        token = writer.sampler.pick(logits) if sampling.greedy else -1
        if token in vocabulary.end_ids and matcher.is_accepting():
            writer.write(token)
            break
        if token in vocabulary.end_ids or token < 0 or matcher.validate_tokens([token]) != 1:
            token = writer.sampler.pick(logits, endings.allowed(matcher))
            if token in vocabulary.end_ids:
                writer.write(token)
                break
        following = matcher.deep_copy()
        if following.try_consume_tokens([token]) != 1:
            closed = True
            break
        found = _after(endings, following, ending, len(vocabulary.piece(token)), writer.left - 1)
        if found is None:
            closed = True
            break
        ending = found
        matcher = following
        writer.write(token)
        shown.add(vocabulary.piece(token))
    if closed or not matcher.is_accepting():
        writer.force(ending)
        shown.add(b"".join(map(vocabulary.piece, ending)))
        closed = True
    text = shown.end()
    return Answer(
        text,
        text,
        None,
        "length" if closed else "stop",
        closed,
        len(prompt),
        len(writer.tokens),
        writer.forced,
        0,
    )


def _after(
    endings: Endings, matcher: LLMatcher, ending: list[int], n_bytes: int, left: int
) -> list[int] | None:
    """An ending in `left` tokens, after a token of that many bytes: the one before, or its rest, or another."""
    for known in (ending, ending[n_bytes:]):  # the rest: where the text has a length that it must have
        if len(known) <= left and endings.holds(matcher, known):
            return known
    found = [] if matcher.is_accepting() else endings.find(matcher, left)
    return None if found is None or len(found) > left else found


def _fits(endings: Endings, matcher: LLMatcher, tokens: Sequence[int], left: int) -> list[int] | None:
    """The ending after these tokens, if both fit."""
    following = matcher.deep_copy()
    if following.try_consume_tokens(list(tokens)) != len(tokens):
        return None
    return endings.find(following, left - len(tokens))


class _Shown:
    """Text as it becomes certain, whole characters only."""

    def __init__(self, emit: Callable[[str], None] | None) -> None:
        self._emit = emit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []

    def add(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if text:
            self._parts.append(text)
            if self._emit is not None:
                self._emit(text)
        return text

    def end(self) -> str:
        self.add(b"", True)
        return "".join(self._parts)


def text_answer(
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    emit: Callable[[str], None] | None = None,
) -> Writer[Answer]:
    """Text without a grammar, until the model's own EOS or one of the `stop` texts, which is left out."""
    writer = TokenWriter(prompt, sampling, max_tokens)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    shown = 0
    held = max(map(len, stop), default=1) - 1  # the end of the text may be the beginning of a stop
    reason: Literal["stop", "length"] = "length"
    while writer.left:
        token = writer.sampler.pick((yield from writer.logits()))
        writer.write(token)
        if token in vocabulary.end_ids and not ignore_eos:
            reason = "stop"
            break
        begin = max(0, len(text) - held)
        text += decoder.decode(vocabulary.piece(token))
        found = [at for word in stop if (at := text.find(word, begin)) >= 0]
        if found:
            text, reason = text[: min(found)], "stop"
            break
        if emit is not None and len(text) - held > shown:
            emit(text[shown : len(text) - held])
            shown = len(text) - held
    else:
        text += decoder.decode(b"", True)
    if emit is not None and len(text) > shown:
        emit(text[shown:])
    return Answer(text, text, None, reason, False, len(prompt), len(writer.tokens), 0, 0)


def schema_text(schema: object) -> str:
    """A JSON schema as llguidance takes it."""
    return json.dumps(schema)
