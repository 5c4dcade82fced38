"""The action in the model's answer: read it, and close it validly wherever the budget cuts it.

This module knows text and bytes, no models or tokens. The format is that of Terminus-2, the agent of
Terminal-Bench/Harbor, as edge/grammar.gbnf describes it. `ActionScanner` accepts exactly the beginnings of the texts of
that grammar.
"""

import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn, TypedDict

from edge.errors import GrammarError


@dataclass(frozen=True)
class Command:
    """Keystrokes, sent unchanged (a newline at the end runs them), and seconds to wait after them, 0 to 60."""

    keystrokes: str
    duration: float


class Fields(TypedDict):
    """The fields of the JSON: the first four of an Action."""

    analysis: str
    plan: str
    commands: tuple[Command, ...]
    task_complete: bool


@dataclass(frozen=True)
class Action:
    """One answer: what to do next, and how the model wrote it.

    `text` is the JSON exactly as written, `thought` the text in `<think>…</think>` before it. `completion_tokens`
    counts every token, chosen or forced; `forced_tokens` and `thought_tokens` are parts of it.
    """

    analysis: str
    plan: str
    commands: tuple[Command, ...]
    task_complete: bool
    text: str
    thought: str | None
    finish_reason: Literal["stop", "length"]
    closed_at_budget: bool
    prompt_tokens: int
    completion_tokens: int
    forced_tokens: int
    thought_tokens: int

    def to_json(self) -> str:
        """All fields as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def parse_action(text: str, *, any_order: bool = False) -> Fields:
    """Read an action strictly: exactly the four keys in order, the right types, durations from 0 to 60.

    `any_order`: as another engine writes it with the JSON schema: keys in any order, and a duration can be longer.
    Raises GrammarError if the text is anything else. Use: `Action(**parse_action(text), text=text, …)`.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise GrammarError("the action has a key twice")
        return dict(pairs)

    def no_constant(name: str) -> NoReturn:
        raise GrammarError(f"the action contains {name}, which is not JSON")

    try:
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, or a number of 5,000 digits
        raise GrammarError(f"the action is not JSON: {error}") from error
    if not _has_keys(data, ("analysis", "plan", "commands", "task_complete"), any_order):
        raise GrammarError(
            "the action must be an object with the keys analysis, plan, commands, task_complete"
            + ("" if any_order else " in this order")
        )
    if not isinstance(data["commands"], list):
        raise GrammarError("the action's commands must be a list")
    if not isinstance(data["task_complete"], bool):
        raise GrammarError("the action's task_complete must be true or false")
    return Fields(
        analysis=_string(data["analysis"], "analysis"),
        plan=_string(data["plan"], "plan"),
        commands=tuple(_command(item, i, any_order) for i, item in enumerate(data["commands"], start=1)),
        task_complete=data["task_complete"],
    )


def _has_keys(value: Any, keys: tuple[str, ...], any_order: bool) -> bool:
    return isinstance(value, dict) and (sorted(value) == sorted(keys) if any_order else tuple(value) == keys)


def _command(item: Any, number: int, any_order: bool) -> Command:
    if not _has_keys(item, ("keystrokes", "duration"), any_order):
        order = "" if any_order else " in this order"
        raise GrammarError(f"command {number} must be an object with the keys keystrokes, duration{order}")
    duration = item["duration"]
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise GrammarError(f"the duration of command {number} must be a number")
    most = sys.float_info.max if any_order else 60
    if not (0 <= duration <= most) or math.copysign(1, duration) < 0:  # NaN and infinity fail here too
        raise GrammarError(f"the duration of command {number} must be from 0 to 60 seconds")
    return Command(_string(item["keystrokes"], f"keystrokes of command {number}"), float(duration))


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise GrammarError(f"the action's {name} must be a string")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise GrammarError(f"the action's {name} contains half of a surrogate pair")
    return value


_STRING, _NUMBER = b'""', b"0"  # any string and any duration; the shortest of each

# The states between the action's JSON tokens. Each has the field and what may follow: a token, the state after it, and
# the place of the white space before it (the name in grammar.gbnf without "ws-"). An ending takes the first choice.
# Between "[" and "]" an ending goes back to _LIST or _MORE, where no command is open.
_STATES: list[tuple[str, list[tuple[bytes, int, str]]]] = [
    ("start", [(b"{", 1, "lead")]),
    ("start", [(b'"analysis"', 2, "open")]),
    ("start", [(b":", 3, "colon")]),
    ("analysis", [(_STRING, 4, "value")]),
    ("analysis", [(b",", 5, "comma")]),
    ("analysis", [(b'"plan"', 6, "key")]),
    ("analysis", [(b":", 7, "colon")]),
    ("plan", [(_STRING, 8, "value")]),
    ("plan", [(b",", 9, "comma")]),
    ("plan", [(b'"commands"', 10, "key")]),
    ("plan", [(b":", 11, "colon")]),
    ("plan", [(b"[", 12, "value")]),
    ("commands", [(b"]", 23, "empty"), (b"{", 13, "list")]),
    ("commands", [(b'"keystrokes"', 14, "in")]),
    ("commands", [(b":", 15, "colon")]),
    ("commands", [(_STRING, 16, "value")]),
    ("commands", [(b",", 17, "comma")]),
    ("commands", [(b'"duration"', 18, "pair")]),
    ("commands", [(b":", 19, "colon")]),
    ("commands", [(_NUMBER, 20, "value")]),
    ("commands", [(b"}", 21, "out")]),
    ("commands", [(b"]", 23, "end"), (b",", 22, "comma")]),
    ("commands", [(b"{", 13, "next")]),
    ("after", [(b",", 24, "comma")]),
    ("after", [(b'"task_complete"', 25, "key")]),
    ("after", [(b":", 26, "colon")]),
    ("after", [(b"false", 27, "value"), (b"true", 27, "value")]),
    ("after", [(b"}", 28, "close")]),
    ("end", []),
]
_LIST, _MORE, _END = 12, 21, 28

_ENDINGS = [b""] * len(_STATES)  # the shortest valid rest from each state
for _state, (_, _choices) in reversed(list(enumerate(_STATES))):
    if _choices:
        _ENDINGS[_state] = _choices[0][0] + _ENDINGS[_choices[0][1]]

_MAX_GAP = 20  # as in grammar.gbnf
_PLAIN = re.compile(rb'[^\x00-\x1f"\\\x80-\xff]+')  # characters that a string holds as they are
# One character inside a string: raw UTF-8, or an escape; surrogates only as an escaped pair.
_CHARACTER = re.compile(
    rb"""[\x20!#-\[\]-\x7f]|[\xc2-\xdf][\x80-\xbf]
    |(?:\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f])[\x80-\xbf]
    |(?:\xf0[\x90-\xbf]|[\xf1-\xf3][\x80-\xbf]|\xf4[\x80-\x8f])[\x80-\xbf]{2}
    |\\(?:["\\/bfnrt]|u(?:
        [0-9A-CEFa-cef][0-9A-Fa-f]{3}|[Dd][0-7][0-9A-Fa-f]{2}
        |[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}))""",
    re.VERBOSE,
)
# An unfinished character is valid if the end of one of these, from its own length on, completes it.
_RESTS = (b"\\n", b"\\u0000", b"\\ud800\\udc00", *(c * n for c in (b"\x80", b"\xbf") for n in (2, 3, 4)))
_DURATION = re.compile(rb"[1-5]?[0-9](?:\.[0-9]{1,6})?|60(?:\.0{1,6})?")
_DURATION_BEGUN = re.compile(rb"[1-5]?[0-9](?:\.[0-9]{0,6})?|60(?:\.0{0,6})?")


class ActionScanner:
    """Follows an answer through the action's grammar. Feed it the bytes as they come."""

    def __init__(self) -> None:
        self._state = 0
        self._length = 0  # bytes fed
        self._token: bytes | None = None  # the open JSON token; None between two
        self._seen = (
            b""  # bytes so far of a literal or number; of a string, those of the unfinished character
        )
        self._gap = b""  # white space since the last JSON token
        self.gaps: dict[str, str | None] = {}
        """By place: the white space there, None if it was not always the same."""
        self._mark = 0  # after "[" or after the last whole command

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Raises GrammarError at the first byte that no action can have there."""
        position = 0
        while position < len(data):
            if self._token == _STRING and not self._seen and (run := _PLAIN.match(data, position)):
                self._length += run.end() - position
                position = run.end()
                continue
            self._step(data[position : position + 1])
            self._length += 1
            position += 1

    def _step(self, byte: bytes) -> None:
        if self._token == _NUMBER:
            if _DURATION_BEGUN.fullmatch(self._seen + byte):
                self._seen += byte
                return
            if not _DURATION.fullmatch(self._seen):
                raise self._refusal(byte)
            self._leave()  # a number ends only at the byte after it
        if self._token is None:
            self._enter(byte)
        elif self._token == _STRING:
            if byte == b'"' and not self._seen:
                self._leave()
                return
            self._seen += byte
            if _CHARACTER.fullmatch(self._seen):
                self._seen = b""
            elif not any(_CHARACTER.fullmatch(self._seen + rest[len(self._seen) :]) for rest in _RESTS):
                raise self._refusal(byte)
        else:
            self._seen += byte
            if not self._token.startswith(self._seen):
                raise self._refusal(byte)
            if self._seen == self._token:
                self._leave()

    def _enter(self, byte: bytes) -> None:
        """Begin the JSON token with this first byte, or lengthen the white space before it."""
        choices = _STATES[self._state][1]
        if byte in b" \n\t" and len(self._gap) < _MAX_GAP and choices:
            self._gap += byte
            return
        for token, _, place in choices:
            if token[:1] == byte or (token == _NUMBER and byte.isdigit()):
                gap = self._gap.decode()
                self.gaps[place] = gap if self.gaps.get(place, gap) == gap else None
                self._gap = b""
                self._token = token
                self._seen = b"" if token == _STRING else byte
                if token == byte and token != _NUMBER:
                    self._leave()
                return
        raise self._refusal(byte)

    def _leave(self) -> None:
        self._state = next(after for token, after, _ in _STATES[self._state][1] if token == self._token)
        self._token, self._seen = None, b""
        if self._state in (_LIST, _MORE):
            self._mark = self._length + 1

    def _refusal(self, byte: bytes) -> GrammarError:
        return GrammarError(
            f"byte {self._length} of the answer, {byte!r}, does not fit the action's grammar ({self.field})"
        )

    @property
    def field(self) -> str:
        """The current top-level part: start, analysis, plan, commands (from "[" to "]"), after, or end."""
        return _STATES[self._state][0]

    @property
    def gap(self) -> tuple[str, tuple[str, ...]]:
        """The white space since the last JSON token, and the places that it may belong to."""
        choices = _STATES[self._state][1] if self._token is None else []
        return self._gap.decode(), tuple(place for _, _, place in choices)

    @property
    def complete(self) -> bool:
        """Whether the text so far is a complete action."""
        return self._state == _END

    @property
    def in_text(self) -> bool:
        """Whether the next byte may be inside the analysis or plan string."""
        return self._token == _STRING and self.field != "commands"

    @property
    def at_boundary(self) -> bool:
        """Whether a string is open, and the text does not end inside an escape, surrogate pair or UTF-8 character."""
        return self._token == _STRING and not self._seen

    def closing(self) -> tuple[int, str]:
        """The shortest valid ending: how many bytes of the text so far to keep, and what to write after them.

        The ending removes an open command with the comma before it, an unfinished escape or UTF-8 character, and an
        unfinished `true`. Missing keys get empty values, task_complete gets false. Everything else is kept.
        """
        if self.field == "commands":
            return self._mark, _ENDINGS[_LIST].decode()
        if self._token is None:
            return self._length, _ENDINGS[self._state].decode()
        token, after, _ = _STATES[self._state][1][0]
        if self._token == _STRING:
            return self._length - len(self._seen), '"' + _ENDINGS[after].decode()
        if self._token != token:
            return self._length - len(self._seen), _ENDINGS[self._state].decode()
        return self._length, (token[len(self._seen) :] + _ENDINGS[after]).decode()

    def releasable(self) -> int:
        """How many bytes a stream may show: those that no later `closing` removes.

        So an open command is held back until its closing brace.
        """
        return self.closing()[0]


def close(text: bytes) -> str:
    """Complete any beginning of an action, also b"": see `ActionScanner.closing`.

    Raises GrammarError if no action begins with `text`.
    """
    scanner = ActionScanner()
    scanner.feed(text)
    keep, ending = scanner.closing()
    return text[:keep].decode("utf-8") + ending
