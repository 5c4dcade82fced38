"""The field of a reference answer that each of its tokens writes: analysis, keystrokes, structure and so on.

A token belongs to the first value (analysis, plan, keystrokes, duration, task_complete) of which it writes a byte. The
quotes around a text are not part of the value. Any other token is "structure" if it writes a byte of the JSON, and
"other" if not: a thought, text around the JSON, or an answer that is not JSON. The end of the answer is structure.

The first command is the first `keystrokes` text of the JSON. Its tokens are all that write a byte of it or of its
closing quote; without the quote the text could continue. A token that is only partly inside counts in full.
"""

import json
import re
from collections.abc import Iterator, Sequence

from edge.metrics import json_text

FIELDS = ("analysis", "plan", "keystrokes", "duration", "task_complete", "structure", "other")
_VALUES = FIELDS[:5]

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def token_fields(text: str, pieces: Sequence[bytes]) -> tuple[list[str], range]:
    """The field of each token, and the indices of the tokens of the first command (empty if there is no command).

    `pieces`: the bytes of each token. Joined, they must be `text` in UTF-8.
    """
    begin, whole = _json_bounds(text)
    places = dict.fromkeys(range(begin, begin + len(whole)), "structure")
    command: tuple[int, int] | None = None
    for name, start, end in _values(whole):
        places |= dict.fromkeys(range(begin + start, begin + end), name)
        if name == "keystrokes" and command is None:
            command = begin + start, begin + end + 1
    by_byte = [
        (places.get(i, "other"), command is not None and command[0] <= i < command[1])
        for i, character in enumerate(text)
        for _ in range(len(character.encode("utf-8", "surrogatepass")))
    ]
    fields, inside, at = list[str](), list[int](), 0
    for number, piece in enumerate(pieces):
        part = by_byte[at : at + len(piece)]
        at += len(piece)
        names = [name for name, _ in part]
        fallback = "structure" if "structure" in names else "other"
        fields.append(next((name for name in names if name in _VALUES), fallback))
        if any(counts for _, counts in part):
            inside.append(number)
    return fields, range(inside[0], inside[-1] + 1) if inside else range(0)


def _json_bounds(text: str) -> tuple[int, str]:
    """The index where the answer's JSON object begins, and its text; (0, "") if there is none."""
    whole = json_text(text)
    try:
        if isinstance(json.loads(whole), dict):
            return text.index(whole), whole
    except (ValueError, RecursionError):
        pass
    return 0, ""


def _values(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, begin, end) of each value that has its own field, in the order of the text. `text` must be valid JSON."""
    depth = 0
    name: str | None = None
    last: re.Match[str] | None = None
    for match in _TOKEN.finditer(text):
        sign = match[0]
        if sign in "{[":
            depth += 1
        elif sign in "}]":
            depth -= 1
        if sign == ":" and last is not None:
            name = json.loads(last[0])
        elif name is not None:
            level = 3 if name in ("keystrokes", "duration") else 1
            if name in _VALUES and depth == level and sign not in ("{", "[", "}", "]"):
                quoted = sign.startswith('"')
                yield name, match.start() + quoted, match.end() - quoted
            name = None
        last = match
