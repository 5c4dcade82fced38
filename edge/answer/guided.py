"""Answers under any JSON schema or grammar, valid at any budget that a valid text fits into.

At every step the writer knows an ending: tokens that complete the text so far and fit into the rest of the budget. It
does not write a token that leaves no ending; it writes the ending instead. So it never takes text back, and may stream
all of it.
"""

import codecs
import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from llguidance import LLMatcher, grammar_from

from edge.answer.call_schema import shortest
from edge.answer.client_schema import (
    allowed_escapes,
    check_controls,
    check_least,
    close_objects,
    leave_out_annotations,
    patterns_apart,
)
from edge.answer.endings import Effort, Endings, Guide, forced
from edge.answer.one_of import replace_one_of
from edge.answer.pattern import text_rules
from edge.answer.sampling import Sampling
from edge.answer.writer import Answer, TokenWriter
from edge.errors import GrammarError
from edge.llama.jobs import Logits, Writer
from edge.llama.vocabulary import Vocabulary

_MOST_LITERALS = 64
_OVERLAP = 256  # bytes of an ending that a model may have begun itself


def compile_guide(vocabulary: Vocabulary, kind: Literal["schema", "gbnf"], text: str) -> Guide:
    """Compile a JSON schema or a GBNF grammar. Raises GrammarError with llguidance's reason."""
    try:
        if kind == "schema":
            schema = json.loads(text)
            leave_out_annotations(schema)
            replace_one_of(schema)
            close_objects(schema)
            check_least(schema)
            if (escapes := allowed_escapes(schema)) is not None:
                check_controls(schema)
            grammar = LLMatcher.grammar_from_json_schema(
                patterns_apart(json.dumps(schema)),
                overrides={
                    "whitespace_pattern": r"[ \n\t]{0,20}",
                    "json_allowed_escapes": escapes,
                },
            )
        else:
            grammar = grammar_from("gbnf", _ESCAPE.sub(_plain_escape, text))
        matcher = LLMatcher(vocabulary.matcher_tokens(), grammar, log_level=0)
    except GrammarError:
        raise
    except Exception as error:  # gbnf_to_lark raises bare Exceptions
        raise GrammarError(f"cannot be read: {_one_line(error)}") from None
    if matcher.is_error():
        raise GrammarError(f"cannot be compiled: {_one_line(matcher.get_error())}")
    if kind == "gbnf":
        return Guide(matcher, _literals(kind, text))
    return Guide(matcher, _literals(kind, text), text_rules(json.loads(text)), short=_short(schema))


def _short(schema: Any) -> bytes:
    """A short valid text, most often the shortest; empty if none is known."""
    try:
        return json.dumps(shortest(schema, schema), ensure_ascii=False, separators=(",", ":")).encode()
    except (LookupError, GrammarError, TypeError, AttributeError, ValueError, RecursionError):
        return b""


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def _plain_escape(escape: re.Match[str]) -> str:
    """`\\u00e9` as the character itself, since llguidance reads GBNF without its zeros; other escapes as they are."""
    digits = escape[1] or escape[2]
    code = int(digits, 16) if digits else 0
    if code < 0x80:
        return f"\\x{code:02x}" if digits else escape[0]
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else escape[0]


def _literals(kind: Literal["schema", "gbnf"], text: str) -> tuple[bytes, ...]:
    """Runs of plain characters in the literals of a grammar, or the patterns of a schema: an ending may need them."""
    if kind == "gbnf":
        quoted = re.findall(r'"((?:[^"\\\n]|\\.)*)"', text)
        found = [one.replace(r"\n", "\n").replace(r"\t", "\t").replace("\\", "") for one in quoted]
        classes = re.findall(r"\[((?:[^\]\\\n]|\\.)*)\]", text)
    else:
        patterns = re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', text)
        read = [str(json.loads(pattern)) for pattern in patterns]
        classes = [one for pattern in read for one in re.findall(r"\[((?:[^\]\\]|\\.)*)\]", pattern)]
        plain = [re.sub(r"\[(?:[^\]\\]|\\.)*\]|\\[a-zA-Z]", "\0", pattern) for pattern in read]
        found = [run for pattern in plain for run in re.findall(r"[^\0^$.*+?()|{}\\]+", pattern)]
    found += [character for one in classes for character in one]
    return tuple(dict.fromkeys(one.encode() for one in found if one))[:_MOST_LITERALS]


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]


def guided_answer(
    vocabulary: Vocabulary,
    endings: Endings,
    guide: Guide,
    ending: list[int],
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None] | None = None,
) -> Writer[Answer]:
    """An answer whose whole text the guide accepts. `ending`: one for its start, from `Endings.first`."""
    writer = TokenWriter(prompt, sampling, max_tokens)
    shown = _Shown(emit)
    closed = yield from write_guided(vocabulary, endings, guide, ending, writer, shown.add)
    return writer.answer(shown.end(), "length" if closed else "stop", closed=closed)


def write_guided(
    vocabulary: Vocabulary,
    endings: Endings,
    guide: Guide,
    ending: list[int],
    writer: TokenWriter,
    add: Callable[[bytes], object],
) -> Generator[Sequence[int], Logits, bool]:
    """Write a text that the guide accepts; returns whether its end was written because the budget ran out.

    `ending`: one for the start of the text, which fits into the budget. `add`: called with the bytes of what is
    written; a special token's are its name.
    """
    matcher = guide.matcher.deep_copy()
    closed = False
    text = bytearray()
    effort = Effort()

    def written(tokens: Sequence[int]) -> None:
        data = b"".join(map(vocabulary.spelling, tokens))
        text.extend(data)
        add(data)

    def accepts(token: int) -> bool:
        if token in vocabulary.end_ids and matcher.is_accepting():
            return True
        return bool(matcher.validate_tokens([token]) == 1)

    while not matcher.is_stopped():
        effort.add()
        if not writer.left:
            closed = bool(ending) or not matcher.is_accepting()
            break
        more = forced(matcher)
        fits = _fits(endings, guide, matcher, bytes(text), more, writer.left, effort) if more else None
        if fits is not None:
            ending = fits
            matcher.try_consume_tokens(more)
            writer.force(more)
            written(more)
            continue
        try:
            token = yield from writer.choose(accepts, lambda: endings.allowed(matcher))
        except GrammarError:  # llguidance has reached one of its limits
            closed = True
            break
        if token in vocabulary.end_ids and matcher.is_accepting():
            writer.write(token)
            break
        if matcher.try_consume_tokens([token]) != 1:
            closed = True
            break
        after = _after(endings, guide, matcher, ending, bytes(text), token, writer.left - 1, effort)
        if after is None:
            matcher.rollback(1)
            closed = True
            break
        ending = after
        writer.write(token)
        written([token])
    if closed or not matcher.is_accepting():
        writer.force(ending)
        written(ending)
        closed = True
    return closed


def _after(
    endings: Endings,
    guide: Guide,
    matcher: LLMatcher,
    ending: list[int],
    text: bytes,
    token: int,
    left: int,
    effort: Effort,
) -> list[int] | None:
    """An ending of at most `left` tokens after `text` and this token: the one before, its rest, or another."""
    piece = endings.text([token])
    for known in (ending, ending[len(piece) :]):  # the rest: for a text of fixed length
        if len(known) <= left and endings.holds(matcher, known):
            return known
    if matcher.is_accepting():
        return []
    for known in endings.rests(ending, text[-_OVERLAP:] + piece):
        if len(known) <= left and endings.holds(matcher, known):
            return known
    return endings.find(matcher, left, guide, text + piece, effort)


def _fits(
    endings: Endings,
    guide: Guide,
    matcher: LLMatcher,
    text: bytes,
    tokens: Sequence[int],
    left: int,
    effort: Effort,
) -> list[int] | None:
    """The ending after `text` and these tokens, if they and the ending fit; otherwise None."""
    if len(tokens) > left:
        return None
    taken = matcher.try_consume_tokens(list(tokens))
    try:
        if taken < len(tokens):
            return None
        return endings.find(matcher, left - taken, guide, text + endings.text(tokens), effort)
    finally:
        matcher.rollback(taken)


class _Shown:
    """Decodes the text and emits it, complete characters only."""

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
