"""Patterns in a spelling that llguidance keeps inside of JSON strings.

For a class with all control characters llguidance writes every escape, also `\\"` and `\\\\` for a class without a
quote or a backslash, such as `[^"]`. Without U+0000 in the class it writes the right ones. So no text under such a
pattern has U+0000.
"""

import re
from functools import lru_cache

from edge.answer.expression import LAST, Node, Range, UnknownError, opposite, parse
from edge.answer.look_ahead import class_text
from edge.errors import GrammarError

_CONTROLS = tuple(code for code in range(0x20) if chr(code) not in "\b\t\n\f\r")
_ESCAPED = (ord('"'), ord("\\"))
_NUL: tuple[Range, ...] = ((0, 0),)
# For patterns that edge cannot read: classes that may have all control characters.
_UNSURE = re.compile(
    r"\\P(?!\{(?:[LMNSZ][a-z]?|Letter|Number|Mark|Symbol)\})|\\p(?:C|\{\^|\{(?:C|Cc|Other|Control|Cntrl)\})"
    r"|(?<!\[\^)\\(?:x00|u0000|0)-|\[:\^|\[:cntrl:"
)
_READ_DIFFERENTLY = re.compile(r"\[:\^?[a-z]+:\]")


@lru_cache(maxsize=512)
def json_pattern(text: str) -> str:
    """The same expression, without U+0000 where that is needed. Raises GrammarError if that cannot be."""
    if _READ_DIFFERENTLY.search(text) or _has_difference(text):
        raise GrammarError(f"the pattern {text[:80]!r} has a class that engines read differently")
    try:
        tree = parse(text)
    except (UnknownError, RecursionError):
        if _UNSURE.search(text):
            raise GrammarError(f"the pattern {text[:80]!r} cannot be kept") from None
        return _as_all_read_it(_without_nul_in_negated(text))
    if not _is_wrong(tree):
        return _as_all_read_it(text)
    tree = _without_nul(tree)
    if _is_wrong(tree):
        raise GrammarError(f"the pattern {text[:80]!r} cannot be kept")
    return _written(tree)


def needs_long_escapes(text: str) -> bool:
    """Whether an expression has a character that JSON writes as `\\u` and digits only."""
    try:
        waiting = [parse(text, looks=True)]
    except (UnknownError, RecursionError):
        return False
    for node in waiting:  # it grows
        waiting += node.parts
        if node.kind == "class" and node.ranges and all(_are_controls(*one) for one in node.ranges):
            return True
    return False


def _are_controls(low: int, high: int) -> bool:
    return high < 0x20 and all(code in _CONTROLS for code in range(low, high + 1))


def _is_wrong(node: Node) -> bool:
    """Whether a class of it, or classes that are choices of one group, get wrong escapes."""
    if node.kind == "class":
        return _gets_all(node.ranges)
    together = tuple(one for part in node.parts for one in _single(part)) if node.kind == "alt" else ()
    return _gets_all(together) or any(map(_is_wrong, node.parts))


def _single(node: Node) -> tuple[Range, ...]:
    """The characters of a node that is one class."""
    while node.kind in ("cat", "alt") and len(node.parts) == 1:
        (node,) = node.parts
    return node.ranges if node.kind == "class" else ()


def _gets_all(ranges: tuple[Range, ...]) -> bool:
    def has(code: int) -> bool:
        return any(low <= code <= high for low, high in ranges)

    return not all(map(has, _ESCAPED)) and all(map(has, _CONTROLS))


def _without_nul(node: Node) -> Node:
    if node.kind != "class" or set(node.ranges) == set(_NUL):
        return Node(node.kind, node.ranges, tuple(map(_without_nul, node.parts)), node.least, node.most)
    others = opposite((*opposite(node.ranges), *_NUL))
    return Node("class", tuple((low, min(high, LAST)) for low, high in others))


def _written(node: Node) -> str:
    if node.kind == "class":
        return class_text(list(node.ranges)) if node.ranges else r"[^\s\S]"
    inner = [_written(part) for part in node.parts]
    if node.kind == "alt":
        return f"(?:{'|'.join(inner)})"
    if node.kind == "repeat":
        return f"(?:{inner[0]}){{{node.least},{'' if node.most is None else node.most}}}"
    return {"begin": "^", "end": "$"}.get(node.kind, "".join(inner))


def _pieces(text: str) -> list[str]:
    """Characters, and escapes as one."""
    return re.findall(r"\\.|.", text, re.DOTALL)


# To JavaScript letters are ASCII, to Python they are Unicode's: what is not a letter must be one to neither.
_NARROWER = {
    r"\W": r"[^\p{L}\p{N}_]",
    r"\D": r"[^\p{Nd}]",
    r"\S": r"[^\s\x1c-\x1f\x85\x{feff}]",
}
_WIDER = {r"\w": r"\w\p{L}\p{N}", r"\d": r"\d\p{Nd}", r"\s": r"\s\x1c-\x1f\x85\x{feff}"}


def _as_all_read_it(text: str) -> str:
    """An expression whose texts JavaScript and Python both take."""
    pieces = _pieces(text)
    found: list[str] = []
    at = 0
    while at < len(pieces):
        if pieces[at] != "[":
            found.append(_NARROWER.get(pieces[at], pieces[at]))
            at += 1
            continue
        begin = at + 1 + (pieces[at + 1 : at + 2] == ["^"])
        end = begin + 1
        while end < len(pieces) and pieces[end] != "]":
            end += 1
        inner = pieces[begin:end]
        if "[" in inner:
            return text
        everything = any({one.lower(), one} <= set(inner) for one in _NARROWER)
        others = _WIDER if begin == at + 2 else {} if everything else _NARROWER
        found += [*pieces[at:begin], *(others.get(one, one) for one in inner)]
        at = end
    return "".join(found)


def _without_nul_in_negated(text: str) -> str:
    found: list[str] = []
    for piece in _pieces(text):
        found.append(r"^\x00" if piece == "^" and found[-1:] == ["["] else piece)
    return "".join(found)


def _has_difference(text: str) -> bool:
    """Whether a class has `--`, which is a difference of classes to llguidance."""
    inside = False
    before = ""
    for piece in _pieces(text):
        if inside and piece == before == "-":
            return True
        inside = piece != "]" if inside else piece == "["
        before = piece
    return False
