"""Endings: short ways from the state of a matcher to a complete text, in tokens of one vocabulary."""

import contextlib
import itertools
import json
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from edge.answer.pattern import TextRule
from edge.errors import GrammarError

_MOST_TRIED = 400  # states that each attempt to find an ending visits
_MOST_TOO_LONG = 20  # complete texts over the budget in each attempt
_MOST_ALIKE = 8  # states in which the same tokens may follow
# Kinds of bytes, with how many of the first and of the last of a kind are tried. Those that lead to an end soonest come
# first, white space comes last. Of the others the kind of the last byte comes last: more of it may never end.
_KINDS = (
    (b'"}]:)>.;!?,', 5, 0),
    (b"0123456789", 1, 1),
    (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 1, 1),
    (b"@-/_" + bytes(byte for byte in range(0x21, 0x7F) if not chr(byte).isalnum()), 8, 0),
    (bytes(range(0x80, 0x100)), 1, 1),
    (b"\n ", 1, 1),
)
_DIGITS = (
    1  # the kind of the digits: inside a number the last one comes first, since 0.00 may never be enough
)
_MOST_CLOSINGS = 8  # of one open string
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LONGEST = 4000  # tokens of an ending, which may be checked as a whole at each token of an answer
_MOST_WITHOUT_BYTES = 5
_SECONDS = 1.5  # of processor time, for one search
_FOR_ONE_TOKEN = 0.02


@dataclass
class Effort:
    """The processor time in seconds that the searches of one answer may still take. Each token of it adds some.

    Without a limit, the searches of one hostile schema would hold up the answers of all clients.
    """

    left: float = 2 * _SECONDS

    def add(self) -> None:
        """Add the time for one token."""
        self.left = min(2 * _SECONDS, self.left + _FOR_ONE_TOKEN)


@dataclass(frozen=True)
class Guide:
    """The form of an answer: the matcher at its start, and what helps to find an ending.

    `literals`: the literal texts in it. `rules`: what the strings of a schema must match.
    `closers`: tokens that an ending is likely to need, special tokens among them. `quick`: a search that finds only
    endings that are too long stops soon; the shortest text was not found by a search. `short`: a text that is likely to
    be a whole answer, and short.
    """

    matcher: LLMatcher
    literals: tuple[bytes, ...] = ()
    rules: tuple[TextRule, ...] = ()
    closers: tuple[tuple[int, ...], ...] = ()
    quick: bool = False
    short: bytes = b""


def forced(matcher: LLMatcher) -> list[int]:
    """The tokens that must follow, as far as the matcher takes them; often none."""
    tokens: list[int] = matcher.compute_ff_tokens()
    return tokens[: matcher.validate_tokens(tokens)] if tokens else []


def _open_string(text: bytes) -> str | None:
    """The content of the JSON string that is open at the end of the text; None if none is, or inside a character."""
    end = 0
    for whole in _STRING.finditer(text):
        end = whole.end()
    begin = text.find(b'"', end)
    if begin < 0:
        return None
    try:
        return str(json.loads(text[begin:] + b'"'))
    except ValueError:
        return None


class _Walk:
    """A matcher that goes forward from a state and back. It has one copy of the state: a long text has a large one.

    `guide`: the form of the answer, as far as it is known; `before`: the text up to the state.
    """

    def __init__(self, matcher: LLMatcher, guide: Guide | None, before: bytes, seconds: float) -> None:
        self._end = time.thread_time() + seconds
        self.matcher = matcher.deep_copy()
        self.way: list[int] = []
        self.guide = guide
        self.before = before
        self.too_long = False  # a complete text was found, but over the budget

    def is_over(self) -> bool:
        """Whether the time for the search is over."""
        return time.thread_time() >= self._end

    def back(self, length: int) -> None:
        """Go back to where the way had `length` tokens."""
        if length < len(self.way):
            self.matcher.rollback(len(self.way) - length)
            del self.way[length:]

    def go(self, tokens: Sequence[int]) -> bool:
        """Go over these tokens and all that must follow. If they may not follow, stay and return False."""
        taken = self.matcher.try_consume_tokens(list(tokens))
        self.way += tokens[:taken]
        if taken < len(tokens):
            self.back(len(self.way) - taken)
            return False
        while not self.matcher.is_accepting() and (more := forced(self.matcher)):
            self.way += more[: self.matcher.try_consume_tokens(more)]
        return True


class Endings:
    """Finds endings: short ways from the state of a matcher to a complete text, in tokens of one vocabulary."""

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
        self._single = single
        self._before_digits = {single[byte] for byte in b".0123456789" if byte in single}
        kinds = [[single[byte] for byte in kind if byte in single] for kind, _, _ in _KINDS]
        self._tokens = np.array([token for kind in kinds for token in kind], np.int64)
        ends = np.cumsum([0, *map(len, kinds)])
        self._kinds = [slice(begin, end) for begin, end in itertools.pairwise(ends)]  # of these tokens

    def find(
        self,
        matcher: LLMatcher,
        most: int,
        guide: Guide | None = None,
        before: bytes = b"",
        effort: Effort | None = None,
    ) -> list[int] | None:
        """At most `most` tokens, and at most 4,000, that complete the text; None if none were found in time.

        The matcher does not change. `guide`: the form of the answer; `before`: the text so far. The search goes byte by
        byte, by whole literals, or by the shortest rest of an open string under its pattern; the result is in the
        tokenizer's own, longer tokens. There are three kinds of search: depth first, because in JSON closing marks lead
        to the end; breadth first, for endings that must contain something; and deep, for texts that must be long. Each
        is tried with few steps first, then with more. The search takes 1.5 seconds of processor time at most, or what
        is left of `effort`.
        """
        if matcher.is_accepting():
            return []
        began = time.thread_time()
        found = self._search(matcher, most, guide, before, min(_SECONDS, effort.left) if effort else _SECONDS)
        if effort is not None:
            effort.left -= time.thread_time() - began
        return found

    def _search(
        self, matcher: LLMatcher, most: int, guide: Guide | None, before: bytes, seconds: float
    ) -> list[int] | None:
        most = min(most, _LONGEST)
        far = 4 * most + 16  # bytes
        words = [way for one in (guide.literals if guide else ()) if (way := self._bytes(one))]
        words += map(list, guide.closers if guide else ())
        walk = _Walk(matcher, guide, before, seconds)

        def attempts() -> Iterator[list[int] | None]:
            yield self._straight(matcher, walk, most, far, _MOST_TRIED // 10)
            yield self._nearest(matcher, walk, most, words, _MOST_TRIED // 5)
            if guide is not None and guide.quick and walk.too_long:
                return
            yield self._straight(matcher, walk, most, far, _MOST_TRIED)
            if guide is not None and guide.quick and walk.too_long:
                return
            yield self._nearest(matcher, walk, most, words, 4 * _MOST_TRIED)
            yield self._straight(matcher, walk, most, far, far)
            for depth in (4, 8, 16, 32, 64):
                yield self._straight(matcher, walk, most, depth, _MOST_TRIED)

        return next((found for found in attempts() if found is not None), None)

    def first(self, guide: Guide, most: int) -> list[int]:
        """The ending at the start of an answer. Raises GrammarError if none was found."""
        if guide.short:
            known = self._tokenizer.tokenize_bytes(guide.short)
            if len(known) <= min(most, _LONGEST) and self.holds(guide.matcher, known):
                return list(known)
        began = time.thread_time()
        found = self.find(guide.matcher, most, guide)
        if found is None and time.thread_time() - began >= _SECONDS:
            raise GrammarError(
                f"no valid text that fits into {most} tokens was found in {_SECONDS} seconds of search; raise "
                "max_tokens, or request a shorter or simpler text"
            )
        if found is None:
            bound = f" (of {_LONGEST:,} at most)" if most > _LONGEST else ""
            raise GrammarError(
                f"no valid text was found that fits into {most} tokens{bound}; raise max_tokens, or request a "
                "shorter text"
            )
        return found

    def _closings(self, walk: _Walk) -> list[list[int]]:
        """The shortest rests of the open string, if a pattern of the schema may hold for it."""
        if walk.guide is None or not walk.guide.rules:
            return []
        content = _open_string(walk.before + self._tokenizer.decode_bytes(walk.way))
        if content is None:
            return []
        ends: set[bytes] = set()
        for rule in walk.guide.rules:
            if (end := rule.closing(content)) is not None:
                ends.add(end)
            if walk.is_over():
                break
        ways = [self._bytes(end) for end in sorted(ends, key=lambda end: (len(end), end))[:_MOST_CLOSINGS]]
        return [way for way in ways if way]

    def _bytes(self, text: bytes) -> list[int]:
        """The tokens of its single bytes; empty if a byte has no token."""
        tokens = [self._single[byte] for byte in text if byte in self._single]
        return tokens if len(tokens) == len(text) else []

    def text(self, tokens: Sequence[int]) -> bytes:
        """The bytes of these tokens."""
        return bytes(self._tokenizer.decode_bytes(list(tokens)))

    def _straight(
        self, matcher: LLMatcher, walk: _Walk, most: int, longest: int, tries: int
    ) -> list[int] | None:
        """Depth first, at most `longest` single bytes deep."""
        walk.back(0)
        closers = list(map(list, walk.guide.closers)) if walk.guide else []
        stack: list[tuple[int, list[int]]] = [(0, [])]
        too_long = 0
        for _ in range(tries):
            if not stack or walk.is_over():
                return None
            length, more = stack.pop()
            walk.back(length)
            if not walk.go(more):
                continue
            if walk.matcher.is_accepting():
                whole = self._in_few(matcher, walk.way)
                if len(whole) <= most:
                    return whole
                too_long += 1
                walk.too_long = True
                if too_long == _MOST_TOO_LONG:  # its neighbours are not shorter
                    return None
            elif (here := len(walk.way)) < longest:
                ways = [*self._closings(walk), *closers, *([choice] for choice in self._choices(walk))]
                stack += ((here, way) for way in reversed(ways))
        return None

    def _nearest(
        self, matcher: LLMatcher, walk: _Walk, most: int, literals: list[list[int]], tries: int
    ) -> list[int] | None:
        """Breadth first, one literal or byte a step. Of states with the same next tokens, only some are tried."""
        waiting: deque[list[int]] = deque([[]])
        alike: Counter[bytes] = Counter()
        for _ in range(tries):
            if not waiting or walk.is_over():
                return None
            walk.back(0)
            if not walk.go(waiting.popleft()):
                continue
            if walk.matcher.is_accepting():
                whole = self._in_few(matcher, walk.way)
                if len(whole) <= most:
                    return whole
                walk.too_long = True
                continue
            mask = self._bits(walk.matcher).tobytes()
            alike[mask] += 1
            if alike[mask] <= _MOST_ALIKE:
                waiting += ([*walk.way, *literal] for literal in literals)
                waiting += ([*walk.way, choice] for choice in self._choices(walk))
        return None

    def _in_few(self, matcher: LLMatcher, way: list[int]) -> list[int]:
        """The same text in the tokenizer's own tokens, if the grammar accepts these. Special tokens stay."""
        tokens: list[int] = []
        for special, part in itertools.groupby(way, self._tokenizer.is_special_token):
            run = list(part)
            tokens += run if special else self._tokenizer.tokenize_bytes(self._tokenizer.decode_bytes(run))
        return tokens if len(tokens) < len(way) and self.holds(matcher, tokens) else list(way)

    def rests(self, ending: Sequence[int], written: bytes) -> Iterator[list[int]]:
        """What is left of an ending whose first bytes are the last of `written`; most of them first."""
        pieces = [self.text([token]) for token in ending]
        whole = b"".join(pieces)
        for size in range(min(len(whole), len(written)), 0, -1):
            if written.endswith(whole[:size]):
                yield self._rest(ending, pieces, size)

    def _rest(self, ending: Sequence[int], pieces: list[bytes], size: int) -> list[int]:
        for index, piece in enumerate(pieces):
            if size < len(piece):
                first = self._tokenizer.tokenize_bytes(piece[size:]) if size else [ending[index]]
                return [*first, *ending[index + 1 :]]
            size -= len(piece)
        return []

    def holds(self, matcher: LLMatcher, ending: Sequence[int]) -> bool:
        """Whether an earlier ending is still valid."""
        end = self._tokenizer.eos_token
        return bool(matcher.validate_tokens([*ending, end]) > len(ending))

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """The tokens that may follow, including those that end the answer: bool, shape (n_vocab,)."""
        bits = self._bits(matcher).view(np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._tokenizer.vocab_size].view(np.bool_)
        mask[self._end_ids] |= bool(matcher.is_accepting())
        if not mask.any():
            raise GrammarError("no token of this model's vocabulary can continue the answer")
        return mask

    def _bits(self, matcher: LLMatcher) -> NDArray[np.int32]:
        bits = allocate_token_bitmask(1, self._tokenizer.vocab_size)
        fill_next_token_bitmask(matcher, bits)
        row: NDArray[np.int32] = bits[0]
        return row

    def _choices(self, walk: _Walk) -> list[int]:
        bits = self._bits(walk.matcher)
        fits = bits[self._tokens >> 5] >> (self._tokens & 31) & 1
        fitting = [self._tokens[kind][fits[kind] == 1].tolist() for kind in self._kinds]
        last_written = walk.way[-1] if walk.way else -1
        middle = sorted(range(1, len(_KINDS) - 1), key=lambda number: last_written in fitting[number])
        found: dict[int, None] = {}
        for number in (0, *middle, len(_KINDS) - 1):
            _, first, last = _KINDS[number]
            tokens = fitting[number]
            some = [*tokens[:first], *tokens[len(tokens) - last :]]
            if number == _DIGITS and last_written in self._before_digits:
                some.reverse()
            found |= dict.fromkeys(some)
        if not found:  # a vocabulary without single bytes
            with contextlib.suppress(GrammarError):
                allowed = np.flatnonzero(self.allowed(walk.matcher))
                found = dict.fromkeys(allowed[:_MOST_WITHOUT_BYTES].tolist())
        return list(found)
