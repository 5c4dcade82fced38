"""Regular expressions as trees, for the subset that most JSON schemas use.

Characters, classes, `.`, `\\d`, `\\w`, `\\s` and their opposites, groups, `|`, quantifiers, `^`, `$`, and look-ahead
where the caller can use it. `parse` raises UnknownError for other expressions (look-behind, backreferences, `\\b`,
`\\p{…}`).
"""

import re
import string
from dataclasses import dataclass
from functools import lru_cache

_MOST_NESTED = 60
LAST = 0x10FFFF
Range = tuple[int, int]
ANY: tuple[Range, ...] = ((0, LAST),)
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

# The first of these in a class represents it: the characters that no text must escape come first.
_USUAL = [
    *map(ord, string.ascii_lowercase + string.digits + string.ascii_uppercase + " -_./:"),
    *(code for code in range(0x21, 0x7F) if chr(code) not in '"\\'),
    *range(0x20, 0x7F),
    10,
    9,
]


class UnknownError(Exception):
    """The expression is outside the subset, or too large."""


@dataclass(frozen=True)
class Node:
    """A part of an expression. `kind`: class, cat, alt, repeat, begin, end, ahead or not_ahead."""

    kind: str
    ranges: tuple[Range, ...] = ()
    parts: tuple["Node", ...] = ()
    least: int = 0
    most: int | None = None


def opposite(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """The ranges of all other characters, in order."""
    found = []
    begin = 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return (*found, (begin, LAST)) if begin <= LAST else tuple(found)


# To JavaScript letters are ASCII, to Python they are Unicode's. No letter to both: of ASCII, punctuation and emoji.
_NO_WORD = (
    *((low, high) for low, high in opposite((*_WORD, (0x80, LAST)))),
    (0x2010, 0x205E),
    (0x1F300, 0x1FAFF),
)
_NO_SPACE = opposite((*_SPACE, (0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF)))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE, "D": opposite(_DIGIT), "W": _NO_WORD, "S": _NO_SPACE}
_IN_NEGATED = {
    **{name: opposite(_CLASSES[name.upper()]) for name in "dws"},
    **{name: opposite(_CLASSES[name.lower()]) for name in "DWS"},
}
"""Wider ones, for what must not be there: in a negated class, or in a negative look-ahead."""


class _Parser:
    def __init__(self, text: str, looks: bool) -> None:
        self.text = text
        self.looks = looks
        self.negative = False
        self.at = 0
        self.depth = 0

    def take(self, *wanted: str) -> str:
        found = next((one for one in wanted if self.text.startswith(one, self.at)), "")
        self.at += len(found)
        return found

    def next(self) -> str:
        if self.at >= len(self.text):
            raise UnknownError
        self.at += 1
        return self.text[self.at - 1]

    def whole(self) -> Node:
        node = self.choice()
        if self.at < len(self.text):
            raise UnknownError
        return node

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > _MOST_NESTED:
            raise UnknownError
        parts = [self.row()]
        while self.take("|"):
            parts.append(self.row())
        self.depth -= 1
        return Node("alt", parts=tuple(parts))

    def row(self) -> Node:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return Node("cat", parts=tuple(parts))

    def atom(self) -> Node:
        character = self.next()
        if character == "(":
            if self.looks and (sign := self.take("?=", "?!")):
                self.negative ^= sign == "?!"
                inner = self.choice()
                self.negative ^= sign == "?!"
                if self.next() != ")":
                    raise UnknownError
                return Node("ahead" if sign == "?=" else "not_ahead", parts=(inner,))
            if self.take("?<", "?P<"):
                if self.text[self.at : self.at + 1] in ("=", "!"):
                    raise UnknownError
                while self.next() != ">":
                    pass
            elif not self.take("?:") and self.take("?"):
                raise UnknownError
            node = self.choice()
            if self.next() != ")":
                raise UnknownError
            return node
        if character == "[":
            return Node("class", self.members())
        if character == ".":
            return Node("class", opposite(((10, 10),)))
        if character in "^$":
            return Node("begin" if character == "^" else "end")
        if character in "*+?":
            raise UnknownError
        return Node("class", self.escaped() if character == "\\" else _one(character))

    def escaped(self, negated: bool = False) -> tuple[Range, ...]:
        character = self.next()
        if character in _CLASSES:
            return (_IN_NEGATED if negated != self.negative else _CLASSES)[character]
        if character in "xu":
            size = 2 if character == "x" else 4
            digits = "".join(self.next() for _ in range(size))
            if not all(digit in string.hexdigits for digit in digits):
                raise UnknownError
            return _one(chr(int(digits, 16)))
        if character in _CONTROLS:
            return ((_CONTROLS[character],) * 2,)
        if character.isalnum():
            raise UnknownError
        return _one(character)

    def members(self) -> tuple[Range, ...]:
        negative = bool(self.take("^"))
        members = set(re.findall(r"\\[dDwWsS]", self.text[self.at : self.text.find("]", self.at)]))
        everything = any({name, name.upper()} <= members for name in (r"\d", r"\w", r"\s"))
        found: list[Range] = []
        first = True
        while (character := self.next()) != "]" or first:
            after = self.text[self.at : self.at + 1]
            if (character in "&-~" and after == character) or (character == "[" and after == ":"):
                raise UnknownError  # engines read these differently
            first = False
            low = self.escaped(negative) if character == "\\" else _one(character)
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
                    raise UnknownError
                low = ((low[0][0], high[0][1]),)
            found += low
        if negative:
            return opposite(tuple(found))
        return ANY if everything else tuple(found)

    def repeated(self, node: Node) -> Node:
        while sign := self.take("*", "+", "?", "{"):
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": (0, None)}[sign]
            if sign == "{":
                least, most = self.bounds()
            self.take("?")  # lazy: the same texts
            node = Node("repeat", parts=(node,), least=least, most=most)
        return node

    def bounds(self) -> tuple[int, int | None]:
        inner = ""
        while (character := self.next()) != "}":
            inner += character
        low, comma, high = inner.partition(",")
        if not low.isdecimal() or not (high.isdecimal() or not high) or len(inner) > 12:
            raise UnknownError
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and most < least:
            raise UnknownError
        return least, most


def _one(character: str) -> tuple[Range, ...]:
    return ((ord(character), ord(character)),)


def parse(text: str, *, looks: bool = False) -> Node:
    """The tree of an expression: of the kind alt. `looks`: with look-ahead. Raises UnknownError, RecursionError."""
    return _Parser(text, looks).whole()


@lru_cache(maxsize=4096)
def usual_character(ranges: tuple[Range, ...]) -> str:
    """One character of a class, an ordinary one if possible: it represents the class."""
    for code in _USUAL:
        if any(low <= code <= high for low, high in ranges):
            return chr(code)
    high = [max(low, 0xA0) for low, high in ranges if high >= 0xA0]
    return chr(min(high) if high else ranges[0][0])


def leading_looks(text: str) -> tuple[list[str], str]:
    """The look-aheads at the beginning of an expression, each as an expression, and the rest. Raises UnknownError."""
    if len(parse(text, looks=True).parts) != 1 or not text.startswith("^"):
        return [], text
    parser = _Parser(text, True)
    parser.next()
    found = []
    while text.startswith(("(?=", "(?!"), parser.at):
        begin = parser.at
        parser.atom()
        if text[parser.at : parser.at + 1] in ("*", "+", "?", "{"):
            return [], text
        found.append("^" + text[begin : parser.at])
    return found, "^" + text[parser.at :]


def for_rust(text: str) -> str:
    """The same expression for llguidance, to which `[` inside a class begins another class, `&&` and `~~` join classes,
    and `\\0` is a group.

    An expression with `[:alpha:]` is left as it is.
    """
    if re.search(r"\[:\^?[a-z]+:\]", text) or not (
        any(sign in text for sign in ("\\0", "&&", "~~")) or text.count("[") > 1
    ):
        return text
    found: list[str] = []
    at, inside = 0, False
    while at < len(text):
        size = 2 if text[at] == "\\" else 3 if text[at : at + 3] == "[^]" else 1
        piece = text[at : at + size]
        at += size
        if piece == "\\0" and not text[at : at + 1].isdecimal():
            piece = r"\x00"
        elif inside and (piece == "[" or (piece in ("&", "~") and text[at : at + 1] == piece)):
            piece = f"\\{piece}"
        elif not inside and piece in ("[", "[^]"):
            inside = True
            if piece == "[" and text[at : at + 1] in ("^", "]"):
                piece += text[at]
                at += 1
        elif inside and piece == "]":
            inside = False
        found.append(piece)
    return "".join(found)
