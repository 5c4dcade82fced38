"""The white space between the JSON tokens of an answer: learned from the text so far, or given, and then forced.

A style has the white space of each place that edge/grammar.gbnf names (`ws-open`, `ws-colon`, …). The grammar of a
style is that file with a literal in these rules; `Constraint` then forces the literal.
"""

import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from edge.answer.action import ActionScanner

StyleName = Literal["auto", "compact", "indented", "free"]
STYLE_NAMES: tuple[StyleName, ...] = ("auto", "compact", "indented", "free")

# First line, of the action: before "{", after it, before ":", after it, before any ",", after it, before "}".
# Second line: after "[" with commands after it ("list") or none ("empty"), after the "," between two commands, before
# "]". Third line, of a command: after "{", after ",", before "}". Colons, and the place before a comma, are the same
# in the action and in a command.
PLACES = (
    *("lead", "open", "colon", "value", "comma", "key", "close"),
    *("list", "empty", "next", "end"),
    *("in", "pair", "out"),
)
_ALONE = ("lead", "list", "empty")  # written at most once, so they fix nothing themselves
Style = tuple[str | None, ...]
"""For each of PLACES the white space there, or None where the model chooses."""

FREE: Style = (None,) * len(PLACES)
# As Python's json.dumps writes it, and as json.dumps(indent=2) does.
_COMPACT: Style = (*("", "", "", " ", "", " ", ""), *("", "", " ", ""), *("", " ", ""))
_INDENTED: Style = (
    *("", "\n  ", "", " ", "", "\n  ", "\n"),
    *("\n    ", "", "\n    ", "\n  "),
    *("\n      ", "\n      ", "\n    "),
)


@cache
def load_grammar() -> str:
    """The grammar of the action in GBNF: the text of edge/grammar.gbnf.

    The format: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
    """
    return (Path(__file__).parent.parent / "grammar.gbnf").read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def style_grammar(style: Style) -> str:
    """The grammar of the action in GBNF with the white space of `style`; for FREE it is `load_grammar()`."""
    grammar = load_grammar()
    for place, gap in zip(PLACES, style, strict=True):
        if gap is not None:
            rule = f"ws-{place}".ljust(8) + " ::= "
            # GBNF escapes blanks, tabs and line breaks as JSON does
            grammar = grammar.replace(f"{rule}ws\n", rule + json.dumps(gap) + "\n")
    return grammar


def style_of(name: StyleName, answer: ActionScanner) -> Style:
    """The style in which an answer continues. Its grammar always accepts what `answer` has read so far.

    "auto": free up to the analysis string; then each place has the white space that the text has there. A place that is
    not written yet gets what the text implies, if it implies anything. "compact" and "indented": fixed for the whole
    answer. "free": never fixed.
    """
    if name == "auto":
        return _learned(tuple(answer.gaps.items()), *answer.gap)
    return {"compact": _COMPACT, "indented": _INDENTED, "free": FREE}[name]


@lru_cache(maxsize=1024)  # called at each token
def _learned(written: tuple[tuple[str, str | None], ...], begun: str, places: tuple[str, ...]) -> Style:
    gaps = dict(written)
    if "value" not in gaps:
        return FREE
    style = _implied(gaps) | {place: gap for place, gap in written if place not in _ALONE}
    # A token that ends a string may continue with other white space than implied.
    if not any((gap := style.get(place)) is None or gap.startswith(begun) for place in places):
        style |= dict.fromkeys(places)
    return tuple(map(style.get, PLACES))


def _implied(gaps: dict[str, str | None]) -> dict[str, str | None]:
    """What the white space after braces, "[" and colons implies for later places."""
    value = gaps["value"]

    def between(opening: str | None) -> str | None:
        """After a comma: as after the opening bracket, or, on one line, as after a colon."""
        return value if opening == "" and value in ("", " ") else opening or None

    opening = gaps["open"]
    closing = opening
    if opening is None or "\n" in opening:
        closing = "\n" if re.fullmatch(r"\n[ \t]*", opening or "") else None
    style = {"comma": "", "key": between(opening), "close": closing}
    if "in" in gaps:
        item, inside = gaps["list"], gaps["in"]
        lines = ["\n" in gap if gap is not None else None for gap in (opening, item, inside)]
        style["list"] = item
        style["pair"] = between(inside)
        style["out"] = {False: inside, True: item if lines[1] else None, None: None}[lines[2]]
        style["end"] = {False: item, True: opening if lines[0] else None, None: None}[lines[1]]
        style["next"] = item if lines[1] else between(item) if lines == [False] * 3 else None
    return style
