"""The white space between an answer's JSON tokens: learned from what is written, or given, and forced from then on.

Pure text. A style holds the white space of each place that edge/grammar.gbnf names (`ws-open`, `ws-colon`, …), and
the grammar of a style is that file with a literal in these rules: what is fixed there, `Constraint` then forces.
"""

import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from edge.answer.action import ActionScanner

StyleName = Literal["auto", "compact", "indented", "free"]
STYLE_NAMES: tuple[StyleName, ...] = ("auto", "compact", "indented", "free")

# Before "{", after it, before ":", after it, before any ",", after it, before "}" of the action; after "[" and before
# "]" with commands between ("list", "end") or none ("empty"), after the "," between two commands; and after "{",
# after "," and before "}" of a command. Colons, and the place before a comma, are alike at both levels.
PLACES = (
    *("lead", "open", "colon", "value", "comma", "key", "close"),
    *("list", "empty", "next", "end"),
    *("in", "pair", "out"),
)
_ALONE = ("lead", "list", "empty")  # written once at most, and fixing nothing by themselves
Style = tuple[str | None, ...]  # for each of PLACES the white space there, or None where the model is free

FREE: Style = (None,) * len(PLACES)
# As Python's json.dumps writes, and as json.dumps(indent=2) does.
_COMPACT: Style = (*("", "", "", " ", "", " ", ""), *("", "", " ", ""), *("", " ", ""))
_INDENTED: Style = (
    *("", "\n  ", "", " ", "", "\n  ", "\n"),
    *("\n    ", "", "\n    ", "\n  "),
    *("\n      ", "\n      ", "\n    "),
)


@cache
def load_grammar() -> str:
    """The action's grammar in GBNF, the text of edge/grammar.gbnf.

    The format: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
    """
    return (Path(__file__).parent.parent / "grammar.gbnf").read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def style_grammar(style: Style) -> str:
    """The action's grammar in GBNF with the white space of `style`; FREE's is `load_grammar()`."""
    grammar = load_grammar()
    for place, gap in zip(PLACES, style, strict=True):
        if gap is not None:
            rule = f"ws-{place}".ljust(8) + " ::= "
            # blanks, tabs and line breaks, which GBNF escapes as JSON does
            grammar = grammar.replace(f"{rule}ws\n", rule + json.dumps(gap) + "\n")
    return grammar


def style_of(name: StyleName, answer: ActionScanner) -> Style:
    """The style in which an answer goes on; its grammar always takes what `answer` has seen so far.

    "auto": free up to the analysis string; then as the text has it at each place, and at places not yet written as
    what is written implies, if it does. "compact" and "indented": given for the whole answer. "free": never fixed.
    """
    if name == "auto":
        return _learned(tuple(answer.gaps.items()), *answer.gap)
    return {"compact": _COMPACT, "indented": _INDENTED, "free": FREE}[name]


@lru_cache(maxsize=1024)  # asked at each token
def _learned(written: tuple[tuple[str, str | None], ...], begun: str, places: tuple[str, ...]) -> Style:
    gaps = dict(written)
    if "value" not in gaps:
        return FREE
    style = _implied(gaps) | {place: gap for place, gap in written if place not in _ALONE}
    # A token that ends a string may go on with other white space than implied.
    if not any((gap := style.get(place)) is None or gap.startswith(begun) for place in places):
        style |= dict.fromkeys(places)
    return tuple(map(style.get, PLACES))


def _implied(gaps: dict[str, str | None]) -> dict[str, str | None]:
    """What the white space after the braces, "[" and colons says about places that come later."""
    value = gaps["value"]

    def between(opening: str | None) -> str | None:
        """After a comma: what stands after the opening bracket, or, on one line, after a colon."""
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
