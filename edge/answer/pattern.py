"""The shortest end of a text under a regular expression, computed from its automaton.

For the subset that most JSON schemas use: characters, classes, `.`, `\\d`, `\\w`, `\\s` and their opposites, groups,
`|`, quantifiers, `^`, `$`, and look-ahead outside of endless repetitions. Other expressions (look-behind,
backreferences, `\\b`, `\\p{…}`) have no automaton here: `read_pattern` returns None for them.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edge.answer.derived import DerivedPattern
from edge.answer.expression import ANY, Node, Range, UnknownError, parse, usual_character
from edge.answer.look_ahead import by_automaton, plain_conditions, plain_pattern

_MOST_STATES = 20_000
_MOST_STEPS = 600_000  # states visited for one end: about 0.3 seconds
_MOST_KNOWN = 64  # ends that an automaton remembers
_LONGEST_KNOWN = 200  # characters of their texts

FORMAT_TEXTS = {
    "date-time": r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "date": r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "duration": r"P[1-9][0-9]{0,5}[DWMY]",
    "email": r"[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*\.[a-z]{2,12}",
    "hostname": r"[a-z0-9]{1,60}(\.[a-z0-9]{1,60}){0,3}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|::",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": r"[a-z]+:[a-zA-Z0-9._~\/?@=&+-]+(#[a-zA-Z0-9._~-]*)?",
}
"""Texts of each format: not all of them, but simple ones."""


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

    def __init__(self, node: Node) -> None:
        self._states: list[_State] = []
        first, self._last = self._state(), self._state()
        before = self._add(Node("repeat", parts=(Node("class", ANY),)), first)
        after = self._add(node, before)
        self._states[self._add(Node("repeat", parts=(Node("class", ANY),)), after)].free.append(self._last)
        self._first = first
        self._known: dict[tuple[str, int], str | None] = {}

    @property
    def size(self) -> int:
        """States."""
        return len(self._states)

    def _state(self) -> int:
        if len(self._states) >= _MOST_STATES:
            raise UnknownError
        self._states.append(_State([], [], []))
        return len(self._states) - 1

    def _add(self, node: Node, begin: int) -> int:
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

    def _add_repeat(self, node: Node, begin: int) -> int:
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
        if len(text) > _LONGEST_KNOWN:
            return self._find_end(text, least)
        if (text, least) not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[text, least] = self._find_end(text, least)
        return self._known[text, least]

    def _find_end(self, text: str, least: int) -> str | None:
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
            codes.append(usual_character(self._states[step].ranges))
            if place:
                before = layers[place - 1]
                wanted = next(one for one in before if step in self._reach([one], False, False))
        return "".join(reversed(codes))


@lru_cache(maxsize=32)
def read_pattern(text: str) -> Pattern | DerivedPattern | None:
    """The automaton of a regular expression; None if it is outside the subset, or too large."""
    for make in (lambda: Pattern(parse(plain_pattern(text))), lambda: DerivedPattern(text)):
        with contextlib.suppress(UnknownError, RecursionError):
            return make()
    return None


def whole_expressions(text: str) -> list[str] | None:
    """Expressions for a whole text, for llguidance: without anchors and look-around. A text that is in all of them is
    one in which `text` holds. None outside the subset."""
    try:
        return [_whole_expression(one) for one in plain_conditions(text)]
    except (UnknownError, RecursionError):
        return None


def _whole_expression(text: str) -> str:
    try:
        return "|".join(map(_whole_row, parse(text).parts))
    except UnknownError:  # an anchor inside of a group
        return "|".join(map(_whole_row, parse(by_automaton(text)).parts))


def _whole_row(row: Node) -> str:
    parts = [inner for part in row.parts for inner in _unwrapped(part)]
    before = after = "(?s:.)*"
    if parts and parts[0].kind == "begin":
        parts, before = parts[1:], ""
    if parts and parts[-1].kind == "end":
        parts, after = parts[:-1], ""
    return before + "".join(map(_expression, parts)) + after


def _unwrapped(node: Node) -> tuple[Node, ...]:
    """The parts of a group without choices; otherwise the node itself."""
    return node.parts[0].parts if node.kind == "alt" and len(node.parts) == 1 else (node,)


def _expression(node: Node) -> str:
    if node.kind == "class":
        ranges = [
            one
            for low, high in node.ranges
            for one in (
                (max(1, low), min(high, 0xD7FF)),
                (max(low, 0xE000), high),
            )  # see json_pattern about U+0000
        ]
        shown = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges if low <= high)
        if not shown:
            raise UnknownError
        return f"[{shown}]"
    if node.kind == "cat":
        return "".join(map(_expression, node.parts))
    if node.kind == "alt":
        return "(" + "|".join(map(_expression, node.parts)) + ")"
    if node.kind == "repeat":
        most = "" if node.most is None else node.most
        return f"({_expression(node.parts[0])}){{{node.least},{most}}}"
    raise UnknownError


@dataclass(frozen=True)
class TextRule:
    """What a string of a schema must match, and its smallest number of characters."""

    pattern: Pattern | DerivedPattern
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
    """The rules of all strings and names in a JSON schema whose expressions are in the subset, and of formats."""
    found: dict[tuple[str, int], None] = {}
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            least = value.get("minLength")
            least = least if type(least) is int else 0
            if isinstance(pattern := value.get("pattern"), str):
                found[pattern, least] = None
            form = value.get("format")
            if isinstance(form, str) and form in FORMAT_TEXTS:
                found[f"^(?:{FORMAT_TEXTS[form]})$", least] = None
            if isinstance(named := value.get("patternProperties"), dict):
                found |= dict.fromkeys((str(name), 0) for name in named)
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    rules: list[TextRule] = []
    states = 0
    for text, least in list(found)[:_MOST_RULES]:
        if states < _MOST_STATES and (pattern := read_pattern(text)) is not None:
            rules.append(TextRule(pattern, least))
            states += pattern.size
    return tuple(rules)
