"""Rewrites expressions with look-ahead as equal ones without it, because llguidance has no look-ahead.

`(?=x)rest` is what begins with x and is rest; `(?!x)rest` is rest that does not begin with x. Both are languages of
automata. The derivatives of Brzozowski (1964) give one automaton for the whole expression, whose states are then
removed one after the other until one expression is left.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache, partial

from edge.answer.expression import (
    ANY,
    LAST,
    Node,
    Range,
    UnknownError,
    for_rust,
    leading_looks,
    opposite,
    parse,
)

_MOST_STATES = 400
_MOST_REPEATED = 64
_MOST_TERMS = 20_000
_LONGEST = 20_000  # characters of the result


@dataclass(frozen=True)
class _Term:
    """A language. `kind`: none, empty, class, cat, or, and, not, star; `parts`: the numbers of other languages."""

    kind: str
    ranges: tuple[Range, ...] = ()
    parts: tuple[int, ...] = ()


class Languages:
    """Languages by number. Equal terms have one number, and the parts of `or` and `and` are in one order.

    `most_repeated`: the largest number in a quantifier.
    """

    def __init__(self, most_repeated: int = _MOST_REPEATED) -> None:
        self._most_repeated = most_repeated
        self._terms: list[_Term] = []
        self._numbers: dict[_Term, int] = {}
        self._after: dict[tuple[int, int], int] = {}
        self.none, self.empty = self._number("none"), self._number("empty")
        self.all = self._number("star", parts=(self._number("class", ANY),))

    def _number(self, kind: str, ranges: tuple[Range, ...] = (), parts: tuple[int, ...] = ()) -> int:
        term = _Term(kind, ranges, parts)
        if term not in self._numbers:
            if len(self._terms) >= _MOST_TERMS:
                raise UnknownError
            self._numbers[term] = len(self._terms)
            self._terms.append(term)
        return self._numbers[term]

    def whole(self, node: Node) -> int:
        """The whole texts in which an expression matches."""
        rows = []
        for row in node.parts:
            parts = list(row.parts)
            anchored = bool(parts) and parts[0].kind == "begin"
            parts = _at_the_beginning(parts[1:]) if anchored else parts
            term = self._then(Node("cat", parts=tuple(parts)), self.all)
            rows.append(term if anchored else self._cat(self.all, term))
        return self._join("or", rows)

    def together(self, numbers: list[int]) -> int:
        """The texts that are in each of these languages."""
        return self._join("and", numbers)

    def _then(self, node: Node, rest: int) -> int:
        """The texts that begin with the node and go on with `rest`."""
        if node.kind == "class":
            return self._cat(self._number("class", node.ranges), rest) if node.ranges else self.none
        if node.kind == "cat":
            for part in reversed(node.parts):
                rest = self._then(part, rest)
            return rest
        if node.kind == "alt":
            return self._join("or", [self._then(part, rest) for part in node.parts])
        if node.kind == "end":
            return self._join("and", [self.empty, rest])
        if node.kind == "ahead":
            return self._join("and", [self._then(node.parts[0], self.all), rest])
        if node.kind == "not_ahead":
            return self._join("and", [self._not(self._then(node.parts[0], self.all)), rest])
        if node.kind == "repeat":
            return self._repeated(node, rest)
        raise UnknownError  # ^ inside

    def _repeated(self, node: Node, rest: int) -> int:
        (inner,) = node.parts
        if max(node.least, node.most or 0) > self._most_repeated:
            raise UnknownError
        if node.most is None:
            if _looks(inner):
                raise UnknownError
            rest = self._cat(self._star(self._then(inner, self.empty)), rest)
        else:
            end = rest
            for _ in range(node.most - node.least):
                rest = self._join("or", [end, self._then(inner, rest)])
        for _ in range(node.least):
            rest = self._then(inner, rest)
        return rest

    def _cat(self, first: int, rest: int) -> int:
        if self.none in (first, rest):
            return self.none
        if first == self.empty:
            return rest
        if rest == self.empty:
            return first
        term = self._terms[first]
        if term.kind == "cat":
            return self._cat(term.parts[0], self._cat(term.parts[1], rest))
        return self._number("cat", parts=(first, rest))

    def _star(self, inner: int) -> int:
        if inner in (self.none, self.empty):
            return self.empty
        return inner if self._terms[inner].kind == "star" else self._number("star", parts=(inner,))

    def _not(self, inner: int) -> int:
        if inner in (self.none, self.all):
            return self.all if inner == self.none else self.none
        term = self._terms[inner]
        return term.parts[0] if term.kind == "not" else self._number("not", parts=(inner,))

    def _join(self, kind: str, numbers: list[int]) -> int:
        """The union (or) or the intersection (and) of languages."""
        neutral, final = (self.none, self.all) if kind == "or" else (self.all, self.none)
        found: set[int] = set()
        for number in numbers:
            term = self._terms[number]
            found |= set(term.parts) if term.kind == kind else {number}
        found.discard(neutral)
        if final in found:
            return final
        if kind == "and" and self.empty in found:
            return self.empty if all(map(self.nullable, found)) else self.none
        if len(found) < 2:
            return found.pop() if found else neutral
        return self._number(kind, parts=tuple(sorted(found)))

    def nullable(self, number: int) -> bool:
        """Whether the empty text is one of the language."""
        term = self._terms[number]
        if term.kind in ("empty", "star"):
            return True
        if term.kind == "not":
            return not self.nullable(term.parts[0])
        if term.kind in ("cat", "and"):
            return all(map(self.nullable, term.parts))
        return term.kind == "or" and any(map(self.nullable, term.parts))

    def after(self, number: int, code: int) -> int:
        """What may follow a character: the derivative."""
        if (number, code) not in self._after:
            self._after[number, code] = self._derivative(self._terms[number], number, code)
        return self._after[number, code]

    def _derivative(self, term: _Term, number: int, code: int) -> int:
        parts = term.parts
        if term.kind == "class":
            return self.empty if any(low <= code <= high for low, high in term.ranges) else self.none
        if term.kind == "cat":
            after = self._cat(self.after(parts[0], code), parts[1])
            return self._join("or", [after, self.after(parts[1], code)]) if self.nullable(parts[0]) else after
        if term.kind == "star":
            return self._cat(self.after(parts[0], code), number)
        if term.kind == "not":
            return self._not(self.after(parts[0], code))
        if term.kind in ("or", "and"):
            return self._join(term.kind, [self.after(part, code) for part in parts])
        return self.none

    def alphabet(self) -> list[Range]:
        """Ranges of characters. The expression treats all characters of a range alike."""
        begins = {0, LAST + 1} | {
            begin for term in self._terms for low, high in term.ranges for begin in (low, high + 1)
        }
        return [(low, high - 1) for low, high in itertools.pairwise(sorted(begins))]


def _at_the_beginning(parts: list[Node]) -> list[Node]:
    """Parts that follow `^`: look-ahead there may have its own `^`, as in pydantic's pattern of a decimal."""
    found = list(parts)
    for at, part in enumerate(parts):
        if part.kind not in ("ahead", "not_ahead"):
            break
        (inner,) = part.parts
        rows = tuple(
            Node("cat", parts=row.parts[1:]) if row.parts and row.parts[0].kind == "begin" else row
            for row in inner.parts
        )
        found[at] = Node(part.kind, parts=(Node("alt", parts=rows),))
    return found


def _looks(node: Node) -> bool:
    return node.kind in ("ahead", "not_ahead", "end") or any(map(_looks, node.parts))


@lru_cache(maxsize=512)
def plain_pattern(text: str) -> str:
    """An expression for the same texts without look-ahead, as llguidance reads it.

    Raises UnknownError for an expression outside the subset: with other look-around, look-ahead inside of a repetition
    without a maximum, or too many states.
    """
    if "(?=" not in text and "(?!" not in text:
        if "(?<=" in text or "(?<!" in text:
            parse(text)
        return for_rust(text)
    return by_automaton(text)


def by_automaton(text: str) -> str:
    """An expression for the same texts, with `^` at its beginning and `$` at its end only. Raises UnknownError."""
    languages = Languages()
    first = languages.whole(parse(text, looks=True))
    pieces = [
        (max(1, low), high) for low, high in languages.alphabet() if high
    ]  # see json_pattern about U+0000
    states, steps = {first: 0}, list[dict[int, list[Range]]]()
    waiting = [first]
    for state in waiting:  # it grows
        targets: dict[int, list[Range]] = {}
        for low, high in pieces:
            after = languages.after(state, low)
            if after == languages.none:
                continue
            if after not in states:
                if len(states) >= _MOST_STATES:
                    raise UnknownError
                states[after] = len(states)
                waiting.append(after)
            targets.setdefault(states[after], []).append((low, high))
        steps.append(targets)
    return f"^(?:{_expression(*_minimal(steps, [languages.nullable(state) for state in waiting]))})$"


_MOST_CONDITIONS = 12


@lru_cache(maxsize=512)
def conditions(text: str) -> tuple[str, ...]:
    """The expressions that hold together where `text` holds: its look-aheads at the beginning, a look-behind at the
    end, and the rest.

    One expression for all of them can be far too large: that of a password with four kinds of characters. Raises
    UnknownError if there is nothing to part.
    """
    found = []
    place = max(text.rfind("(?<!"), text.rfind("(?<="))
    if place >= 0:
        negative, inner, end = text[place + 3] == "!", text[place + 4 : -2], text[-2:]
        if end != ")$":
            raise UnknownError
        parse(inner)
        text = text[:place] + "$"
        found.append(rf"^(?![\s\S]*(?:{inner})$)" if negative else f"(?:{inner})$")
    looks, rest = leading_looks(text)
    found += looks
    if not found or len(found) > _MOST_CONDITIONS:
        raise UnknownError
    return (rest, *found)


def plain_conditions(text: str) -> list[str]:
    """Expressions without look-around that hold together where `text` holds. Raises UnknownError, RecursionError."""
    try:
        return [plain_pattern(text)]
    except UnknownError:
        return [_plain_condition(one) for one in conditions(text)]


def _plain_condition(text: str) -> str:
    """An automaton's expression has fewer states in llguidance; where that is too large, the expression itself."""
    try:
        return plain_pattern(text)
    except UnknownError:
        if not text.startswith("^(?="):
            raise
        return plain_pattern(f"^(?:{text.removeprefix('^(?=')}")


def _minimal(
    steps: list[dict[int, list[Range]]], accepting: list[bool]
) -> tuple[list[dict[int, list[Range]]], list[bool]]:
    """The same automaton with as few states as possible, and without those that lead to no end. State 0 stays first."""
    group = [int(one) for one in accepting]
    while True:
        signs = [
            (group[at], tuple(sorted((low, group[to]) for to, ranges in found.items() for low, _ in ranges)))
            for at, found in enumerate(steps)
        ]
        names = {sign: number for number, sign in enumerate(dict.fromkeys(signs))}
        renewed = [names[sign] for sign in signs]
        if len(names) == len(set(group)):
            break
        group = renewed
    merged: list[dict[int, list[Range]]] = [{} for _ in names]
    ends = [False] * len(names)
    for at, found in enumerate(steps):
        ends[renewed[at]] = accepting[at]
        ranges: dict[int, list[Range]] = {}
        for to, some in found.items():
            ranges.setdefault(renewed[to], []).extend(some)
        merged[renewed[at]] = ranges
    alive = {at for at, end in enumerate(ends) if end}
    while more := {at for at, found in enumerate(merged) if at not in alive and alive & set(found)}:
        alive |= more
    if 0 not in alive:
        raise UnknownError  # no text at all
    kept = [{to: some for to, some in found.items() if to in alive} for found in merged]
    return [found if at in alive else {} for at, found in enumerate(kept)], ends


def _expression(steps: list[dict[int, list[Range]]], accepting: list[bool]) -> str:
    """An expression for an automaton, by removing its states: those with the fewest ways through them first."""
    start, end = len(steps), len(steps) + 1
    ways: dict[tuple[int, int], str] = {(start, 0): ""}
    for at, found in enumerate(steps):
        ways |= {(at, to): class_text(ranges) for to, ranges in found.items()}
        if accepting[at]:
            ways[at, end] = ""
    left = {at for pair in ways for at in pair} - {start, end}
    while left:
        state = min(left, key=partial(_cost, ways))
        left.discard(state)
        loop = ways.pop((state, state), "")
        around = f"(?:{loop})*" if loop else ""
        into = [(a, way) for (a, b), way in ways.items() if b == state]
        out = [(b, way) for (a, b), way in ways.items() if a == state]
        ways = {pair: way for pair, way in ways.items() if state not in pair}
        for a, before in into:
            for b, after in out:
                new = before + around + after
                known = ways.get((a, b))
                ways[a, b] = new if known is None else f"(?:{known}|{new})"
        if sum(map(len, ways.values())) > _LONGEST:
            raise UnknownError
    return ways[start, end]


def _cost(ways: dict[tuple[int, int], str], state: int) -> tuple[int, int]:
    """About how many characters the removal of a state adds."""
    into = sum(len(way) + 4 for (begin, end), way in ways.items() if end == state != begin)
    out = sum(len(way) + 4 for (begin, end), way in ways.items() if begin == state != end)
    return into * out, state


def class_text(ranges: list[Range]) -> str:
    """A class of characters. Halves of surrogate pairs are in no text."""
    joined: list[Range] = []
    for low, high in sorted(ranges):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    rest = opposite(tuple(joined))
    if len(joined) > 2 and len(rest) < len(joined) and joined[-1][1] == LAST:
        return "[^" + "".join(map(_range, rest)) + "]"
    if len(joined) == 1 and joined[0][0] == joined[0][1] and not 0xD800 <= joined[0][0] <= 0xDFFF:
        return _character(joined[0][0])
    return "[" + "".join(map(_range, joined)) + "]"


def _range(one: Range) -> str:
    low, high = one
    parts = [(low, min(high, 0xD7FF)), (max(low, 0xE000), high)]
    return "".join(
        _character(begin) if begin == last else f"{_character(begin)}-{_character(last)}"
        for begin, last in parts
        if begin <= last
    )


def _character(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\u{code:04x}" if code <= 0xFFFF else chr(code)
