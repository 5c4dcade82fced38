"""The shortest end of a text under a regular expression, computed from its automaton.

For the subset that most JSON schemas use: characters, classes, `.`, `\\d`, `\\w`, `\\s` and their opposites, groups,
`|`, quantifiers, `^` and `$`. Other expressions (look-around, backreferences, `\\b`, `\\p{…}`) have no automaton here:
`read_pattern` returns None for them.
"""

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MOST_STATES = 20_000
_MOST_STEPS = 2_000_000  # states visited for one end: about a second
_MOST_NESTED = 60
_LAST = 0x10FFFF
Range = tuple[int, int]
_ANY: tuple[Range, ...] = ((0, _LAST),)
_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = (
    (9, 13),
    (32, 32),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x3000, 0x3000),
)
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
# The first of these in a class stands for it: the characters that no text must escape come first.
_USUAL = [
    *map(ord, string.ascii_lowercase + string.digits + string.ascii_uppercase + " -_./:"),
    *(code for code in range(0x21, 0x7F) if chr(code) not in '"\\'),
    *range(0x20, 0x7F),
    10,
    9,
]


class _UnknownError(Exception):
    """The expression is outside the subset, or too large."""


@dataclass(frozen=True)
class _Node:
    """A part of an expression. `kind`: class, cat, alt, repeat, begin or end."""

    kind: str
    ranges: tuple[Range, ...] = ()
    parts: tuple["_Node", ...] = ()
    least: int = 0
    most: int | None = None


def _opposite(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    found = []
    begin = 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return (*found, (begin, _LAST)) if begin <= _LAST else tuple(found)


_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CLASSES |= {name.upper(): _opposite(ranges) for name, ranges in _CLASSES.items()}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def take(self, *wanted: str) -> str:
        found = next((one for one in wanted if self.text.startswith(one, self.at)), "")
        self.at += len(found)
        return found

    def next(self) -> str:
        if self.at >= len(self.text):
            raise _UnknownError
        self.at += 1
        return self.text[self.at - 1]

    def whole(self) -> _Node:
        node = self.choice()
        if self.at < len(self.text):
            raise _UnknownError
        return node

    def choice(self) -> _Node:
        self.depth += 1
        if self.depth > _MOST_NESTED:
            raise _UnknownError
        parts = [self.row()]
        while self.take("|"):
            parts.append(self.row())
        self.depth -= 1
        return _Node("alt", parts=tuple(parts))

    def row(self) -> _Node:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return _Node("cat", parts=tuple(parts))

    def atom(self) -> _Node:
        character = self.next()
        if character == "(":
            if self.take("?<", "?P<"):
                if self.text[self.at : self.at + 1] in ("=", "!"):
                    raise _UnknownError
                while self.next() != ">":
                    pass
            elif not self.take("?:") and self.take("?"):
                raise _UnknownError
            node = self.choice()
            if self.next() != ")":
                raise _UnknownError
            return node
        if character == "[":
            return _Node("class", self.members())
        if character == ".":
            return _Node("class", _opposite(((10, 10),)))
        if character in "^$":
            return _Node("begin" if character == "^" else "end")
        if character in "*+?":
            raise _UnknownError
        return _Node("class", self.escaped() if character == "\\" else _one(character))

    def escaped(self) -> tuple[Range, ...]:
        character = self.next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character in "xu":
            size = 2 if character == "x" else 4
            digits = "".join(self.next() for _ in range(size))
            if not all(digit in string.hexdigits for digit in digits):
                raise _UnknownError
            return _one(chr(int(digits, 16)))
        if character in _CONTROLS:
            return ((_CONTROLS[character],) * 2,)
        if character.isalnum():
            raise _UnknownError
        return _one(character)

    def members(self) -> tuple[Range, ...]:
        negative = bool(self.take("^"))
        found: list[Range] = []
        first = True
        while (character := self.next()) != "]" or first:
            if character == "[" or (character in "&-~" and self.text[self.at : self.at + 1] == character):
                raise _UnknownError  # engines read these differently
            first = False
            low = self.escaped() if character == "\\" else _one(character)
            ends = self.text[self.at : self.at + 2]
            if (
                len(low) == 1
                and low[0][0] == low[0][1]
                and len(ends) == 2
                and ends[0] == "-"
                and ends[1] != "]"
            ):
                self.at += 1
                character = self.next()
                high = self.escaped() if character == "\\" else _one(character)
                if len(high) != 1 or high[0][1] < low[0][0]:
                    raise _UnknownError
                low = ((low[0][0], high[0][1]),)
            found += low
        return _opposite(tuple(found)) if negative else tuple(found)

    def repeated(self, node: _Node) -> _Node:
        while sign := self.take("*", "+", "?", "{"):
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": (0, None)}[sign]
            if sign == "{":
                least, most = self.bounds()
            self.take("?")  # lazy: the same texts
            node = _Node("repeat", parts=(node,), least=least, most=most)
        return node

    def bounds(self) -> tuple[int, int | None]:
        inner = ""
        while (character := self.next()) != "}":
            inner += character
        low, comma, high = inner.partition(",")
        if not low.isdecimal() or not (high.isdecimal() or not high) or len(inner) > 12:
            raise _UnknownError
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and most < least:
            raise _UnknownError
        return least, most


def _one(character: str) -> tuple[Range, ...]:
    return ((ord(character), ord(character)),)


@dataclass
class _State:
    """Steps to other states: without a character (always, at the beginning, at the end), or with one of `ranges`."""

    free: list[int]
    begin: list[int]
    end: list[int]
    ranges: tuple[Range, ...] = ()
    target: int = -1


class Pattern:
    """The automaton of a regular expression that may match anywhere in a text, as in JSON Schema."""

    def __init__(self, node: _Node) -> None:
        self._states: list[_State] = []
        first, self._last = self._state(), self._state()
        before = self._add(_Node("repeat", parts=(_Node("class", _ANY),)), first)
        after = self._add(node, before)
        self._states[self._add(_Node("repeat", parts=(_Node("class", _ANY),)), after)].free.append(self._last)
        self._first = first

    def _state(self) -> int:
        if len(self._states) >= _MOST_STATES:
            raise _UnknownError
        self._states.append(_State([], [], []))
        return len(self._states) - 1

    def _add(self, node: _Node, begin: int) -> int:
        """Add the states of a node after `begin`; the state at its end."""
        if node.kind == "class":
            end = self._state()
            if node.ranges:  # an empty class matches nothing
                step = self._state()
                self._states[begin].free.append(step)
                self._states[step].ranges, self._states[step].target = node.ranges, end
            return end
        if node.kind == "cat":
            for part in node.parts:
                begin = self._add(part, begin)
            return begin
        if node.kind == "alt":
            end = self._state()
            for part in node.parts:
                self._states[self._add(part, begin)].free.append(end)
            return end
        if node.kind == "repeat":
            return self._add_repeat(node, begin)
        end = self._state()
        steps = self._states[begin]
        (steps.begin if node.kind == "begin" else steps.end).append(end)
        return end

    def _add_repeat(self, node: _Node, begin: int) -> int:
        for _ in range(node.least):
            begin = self._add(node.parts[0], begin)
        loop = self._state()  # its own, so that no other way leads into the repetition
        self._states[begin].free.append(loop)
        if node.most is None:
            self._states[self._add(node.parts[0], loop)].free.append(loop)
            return self._after(loop)
        end = self._after(loop)
        for _ in range(node.most - node.least):
            loop = self._add(node.parts[0], loop)
            self._states[loop].free.append(end)
        return end

    def _after(self, state: int) -> int:
        end = self._state()
        self._states[state].free.append(end)
        return end

    def _reach(self, states: Iterator[int] | list[int], first: bool, final: bool) -> list[int]:
        found = dict.fromkeys(states)
        waiting = list(found)
        while waiting:
            state = self._states[waiting.pop()]
            for target in (*state.free, *(state.begin if first else ()), *(state.end if final else ())):
                if target not in found:
                    found[target] = None
                    waiting.append(target)
        return list(found)

    def end(self, text: str, least: int = 0) -> str | None:
        """The shortest text that completes `text` to at least `least` characters; None if there is none, or if the
        search is too long."""
        states = [self._first]
        left = _MOST_STEPS
        for at, character in enumerate(text):
            states = self._reach(states, not at, False)
            left -= len(states)
            code = ord(character)
            states = [
                state.target
                for state in map(self._states.__getitem__, states)
                if any(low <= code <= high for low, high in state.ranges)
            ]
            if left < 0 or not states:
                return None
        return self._shortest(states, not text, max(0, least - len(text)), left)

    def _shortest(self, states: list[int], first: bool, least: int, left: int) -> str | None:
        """Layer by layer: the states after each number of characters, and where each came from."""
        layers: list[dict[int, int]] = []  # of each layer: state → the state with the step to it
        seen: set[int] = set()
        while True:
            if len(layers) >= least and self._last in self._reach(states, first, True):
                return self._way(layers, states, first)
            here = self._reach(states, first, False)
            left -= len(here)
            layer: dict[int, int] = {}
            for number in here:
                state = self._states[number]
                if state.ranges and (len(layers) < least or number not in seen):
                    layer.setdefault(state.target, number)
                    if len(layers) >= least:
                        seen.add(number)
            if not layer or left < 0:
                return None
            layers.append(layer)
            states, first = list(layer), False

    def _way(self, layers: list[dict[int, int]], states: list[int], first: bool) -> str:
        """Back from the state that ends the text."""
        codes: list[str] = []
        wanted = next(one for one in states if self._last in self._reach([one], first, True))
        for place in range(len(layers) - 1, -1, -1):
            step = layers[place][wanted]
            codes.append(_character(self._states[step].ranges))
            if place:
                before = layers[place - 1]
                wanted = next(one for one in before if step in self._reach([one], False, False))
        return "".join(reversed(codes))


@lru_cache(maxsize=4096)
def _character(ranges: tuple[Range, ...]) -> str:
    for code in _USUAL:
        if any(low <= code <= high for low, high in ranges):
            return chr(code)
    high = [max(low, 0xA0) for low, high in ranges if high >= 0xA0]
    return chr(min(high) if high else ranges[0][0])


def read_pattern(text: str) -> Pattern | None:
    """The automaton of a regular expression; None if it is outside the subset, or too large."""
    try:
        return Pattern(_Parser(text).whole())
    except (_UnknownError, RecursionError):
        return None


def whole_expression(text: str) -> str | None:
    """The same expression for a whole text, for llguidance: without anchors. None outside the subset, or for an anchor
    inside a group."""
    try:
        rows = _Parser(text).whole().parts
        return "|".join(_whole_row(row) for row in rows)
    except (_UnknownError, RecursionError):
        return None


def _whole_row(row: _Node) -> str:
    parts = list(row.parts)
    before = after = "(?s:.)*"
    if parts and parts[0].kind == "begin":
        parts, before = parts[1:], ""
    if parts and parts[-1].kind == "end":
        parts, after = parts[:-1], ""
    return before + "".join(map(_expression, parts)) + after


def _expression(node: _Node) -> str:
    if node.kind == "class":
        ranges = [
            one for low, high in node.ranges for one in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high))
        ]
        shown = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges if low <= high)
        if not shown:
            raise _UnknownError
        return f"[{shown}]"
    if node.kind == "cat":
        return "".join(map(_expression, node.parts))
    if node.kind == "alt":
        return "(" + "|".join(map(_expression, node.parts)) + ")"
    if node.kind == "repeat":
        most = "" if node.most is None else node.most
        return f"({_expression(node.parts[0])}){{{node.least},{most}}}"
    raise _UnknownError


@dataclass(frozen=True)
class TextRule:
    """What a string of a schema must match, and its smallest number of characters."""

    pattern: Pattern
    least: int

    def closing(self, written: str) -> bytes | None:
        """The shortest rest of a JSON string with this content so far, its quote included; None without one."""
        end = self.pattern.end(written, self.least)
        if end is None:
            return None
        try:
            return json.dumps(end, ensure_ascii=False)[1:].encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return None


_MOST_RULES = 64


def text_rules(schema: object) -> tuple[TextRule, ...]:
    """The rules of all strings and names in a JSON schema whose expressions are in the subset."""
    found: dict[tuple[str, int], None] = {}
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            least = value.get("minLength")
            least = least if type(least) is int else 0
            if isinstance(pattern := value.get("pattern"), str):
                found[pattern, least] = None
            if isinstance(named := value.get("patternProperties"), dict):
                found |= dict.fromkeys((str(name), 0) for name in named)
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    pairs = ((read_pattern(text), least) for text, least in list(found)[:_MOST_RULES])
    return tuple(TextRule(pattern, least) for pattern, least in pairs if pattern is not None)
