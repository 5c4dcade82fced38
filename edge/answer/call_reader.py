"""Reads the text of calls while it is written: names, and arguments as JSON.

The text keeps to the grammar of `edge.answer.call_grammar`, so this reads only what that allows.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edge.answer.call_formats import GEMMA_QUOTE, ID, ID_LENGTH, XML_END, CallFormat, plain
from edge.answer.call_schema import (
    Schema,
    Shape,
    Tool,
    alternatives,
    choices,
    is_valid,
    is_valid_text,
    kind_of,
    shape,
    standalone,
    unknown_names,
)
from edge.answer.calls import CallArguments, CallBegun, CallEnded, Piece, ToolCall, read_json

_LETTERS = string.ascii_letters + string.digits
_SCALAR = re.compile(r"-?[0-9][0-9.]*(?:[eE][+-]?[0-9]+)?|True|False|None|true|false|null")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_CLOSING = {"[": "]", "{": "}"}
Read = tuple[dict[str, Any], int]
"""Arguments, and where they end in the text."""


class CallReader:
    """Reads calls from the text that follows the opening of the first one. `calls`: those that are complete."""

    def __init__(self, form: CallFormat, tools: Sequence[Tool]) -> None:
        self.calls: list[ToolCall] = []
        self._form = form
        self._tools = sorted(tools, key=lambda tool: -len(tool.name))
        self._text = ""
        self._at = 0
        self._call: tuple[Tool, str] | None = None  # the tool and the id of the call that is read
        self._json = _JsonEnd()
        self._shown = 0  # where the arguments begin that were not emitted
        self._at_once = form.values != "json" or ID in form.end

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that this text completes."""
        self._text += text
        while True:
            before = self._at, self._call is None
            yield from self._begin() if self._call is None else self._continue(*self._call)
            if before == (self._at, self._call is None):
                return

    def _begin(self) -> Iterator[Piece]:
        if self.calls:
            opening = self._form.between + self._form.begin
            if not self._text.startswith(opening, self._at):
                return
            at = self._at + len(opening)
        else:
            at = self._at
        before, with_id, after = self._form.middle.partition(ID)
        for tool in self._tools:
            start = at + len(tool.name + before)
            if not self._text.startswith(tool.name + before, at):
                continue
            id_ = self._text[start : start + ID_LENGTH] if with_id else ""
            if not self._text.startswith(after, start + len(id_)) or len(id_) < len(
                with_id and "x" * ID_LENGTH
            ):
                continue
            self._at = self._shown = start + len(id_) + len(after)
            self._call = tool, self._new_id(id_)
            self._json = _JsonEnd()
            if not self._at_once:
                yield CallBegun(len(self.calls), self._call[1], tool.name)
            return

    def _new_id(self, wanted: str = "") -> str:
        while not wanted or any(call.id == wanted for call in self.calls):
            wanted = "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))
        return wanted

    def _continue(self, tool: Tool, id_: str) -> Iterator[Piece]:
        if self._form.values == "json":
            end = self._json.find(self._text, self._at)
            if not self._at_once and (shown := end or len(self._text)) > self._shown:
                yield CallArguments(len(self.calls), self._text[self._shown : shown])
                self._shown = shown
            arguments = self._text[self._at : end] if end else ""
        else:
            found = self._read(tool)
            end = found[1] if found else None
            arguments = json.dumps(found[0], ensure_ascii=False) if found else ""
        if end is None:
            return
        closing, with_id, after = self._form.end.partition(ID)
        if not self._text.startswith(closing, end):
            return
        end += len(closing)
        if with_id:
            id_, end = self._new_id(self._text[end : end + ID_LENGTH]), end + ID_LENGTH
            if not self._text.startswith(after, end):
                return
            end += len(after)
        index = len(self.calls)
        call = ToolCall(id_, tool.name, arguments)
        if self._at_once:
            yield CallBegun(index, id_, tool.name)
            yield CallArguments(index, arguments)
        self._at, self._call = end, None
        self.calls.append(call)
        yield CallEnded(index, call)

    def _read(self, tool: Tool) -> Read | None:
        found = shape(tool, alphabetical=self._form.values == "gemma")
        assert found is not None  # the grammar was made from it
        if self._form.values == "xml":
            return _xml(self._text, self._at, found)
        if self._form.values == "gemma":
            return _gemma(self._text, self._at, found)
        ends = [")]", *(f"), {other.name}(" for other in self._tools)]
        return _keywords(self._text, self._at, found, ends if self._form.values == "pythonic" else None)


class _JsonEnd:
    """Finds the end of a JSON object in a text that grows."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._seen: int | None = None
        self._end: int | None = None

    def find(self, text: str, begin: int) -> int | None:
        """The place after the object that begins at `begin`; None if it is not complete."""
        at = begin if self._seen is None else self._seen
        while self._end is None and at < len(text):
            one = text[at]
            if self._in_string:
                if one == "\\":
                    if at + 1 == len(text):
                        break  # the next text begins with what it escapes
                    at += 1
                elif one == '"':
                    self._in_string = False
            elif one == '"':
                self._in_string = True
            elif one in "{[":
                self._depth += 1
            elif one in "}]":
                self._depth -= 1
                if not self._depth:
                    self._end = at + 1
            at += 1
        self._seen = at
        return self._end


def _ways(name: str, found: Shape) -> list[Schema]:
    return [one for one in alternatives(found.properties[name], found.root) if isinstance(one, dict)]


def _is_text(schema: Schema) -> bool:
    """Whether its values are texts without quotes."""
    kind = schema.get("type")
    return choices(schema) is None and (kind == "string" or (kind is None and not unknown_names(schema, ())))


def _fits(value: Any, schema: Schema, root: Schema, text: str | None = None) -> bool:
    """`text`: how the value was written, if that was JSON."""
    if not schema or set(schema) <= {"type"}:
        kind = schema.get("type", "string")
        return kind in (kind_of(value), [kind_of(value)]) or (
            kind == "number" and kind_of(value) == "integer"
        )
    whole = standalone(schema, root)
    return is_valid(value, whole) or (text is not None and is_valid_text(text, whole))


# --- XML ---


def _xml(text: str, at: int, found: Shape) -> Read | None:
    arguments: dict[str, Any] = {}
    while True:
        name = next((name for name in found.names if text.startswith(f"<parameter={name}>\n", at)), None)
        if name is None:
            return arguments, at
        begin = at + len(f"<parameter={name}>\n")
        ways = _ways(name, found)
        end = text.find(XML_END, begin)
        while end >= 0 and not (values := _xml_values(text[begin:end], ways, found.root)):
            end = text.find(XML_END, end + 1)
        if end < 0:
            return None
        arguments[name] = values[0]
        at = end + len(XML_END)


def _xml_values(text: str, ways: list[Schema], root: Schema) -> list[Any]:
    """What the text can mean; a text is the last of these."""
    values: list[Any] = []
    for schema in sorted(ways, key=_is_text):
        listed = choices(schema)
        if listed is not None:
            values += [value for value in listed if plain(value) == text]
        elif _is_text(schema):
            values += [text] if _fits(text, schema, root) else []
        else:
            values += [value for value in _literals(text) if _fits(value, schema, root, text)]
    return values


def _literals(text: str) -> list[Any]:
    if text in _WORDS:
        return [_WORDS[text]]
    try:
        return [read_json(text)]
    except (ValueError, RecursionError):
        return []


# --- name=value, and Gemma's name:value ---


def _keywords(text: str, at: int, found: Shape, ends: list[str] | None) -> Read | None:
    """`ends`: for texts without escapes, what may follow the last argument."""

    def value(at: int, index: int) -> tuple[Any, int] | None:
        return _raw(text, at, found, index, ends) if ends and text.startswith("'", at) else _value(text, at)

    return _named(text, at, found, (", ", "="), value)


def _named(
    text: str,
    at: int,
    found: Shape,
    marks: tuple[str, str],
    value: Callable[[int, int], tuple[Any, int] | None],
) -> Read | None:
    """Arguments by name from `at` on. `marks`: between two, and after a name. `value` reads one from a place in the
    text; it also gets the number of its name."""
    arguments: dict[str, Any] = {}
    index = -1
    while True:
        separator = marks[0] if index >= 0 else ""
        following = found.next_names(index)
        name = next((one for one in following if text.startswith(f"{separator}{one}{marks[1]}", at)), None)
        if name is None:
            return arguments, at
        index = found.names.index(name)
        read = value(at + len(f"{separator}{name}{marks[1]}"), index)
        if read is None:
            return None
        arguments[name], at = read


def _raw(text: str, at: int, found: Shape, index: int, ends: list[str]) -> tuple[str, int] | None:
    """A text in single quotes without escapes: it ends where one of the texts follows that may follow it."""
    after = [f"', {name}=" for name in found.next_names(index)]
    after += [f"'{end}" for end in ends] if found.may_end(index) else []
    ways = _ways(found.names[index], found)
    listed = [one for way in ways for one in choices(way) or () if isinstance(one, str)]
    texts = [way for way in ways if _is_text(way)]
    closings = re.compile("|".join(map(re.escape, after)))
    for one in closings.finditer(text, at + 1):
        content = text[at + 1 : one.start()]
        if content in listed or any(_fits(content, way, found.root) for way in texts):
            return content, one.start() + 1
    return None


def _value(text: str, at: int) -> tuple[Any, int] | None:
    """A value of Python or JSON; None if it is not complete."""
    if text[at : at + 1] in ("[", "{", '"', "'"):
        end = _closed(text, at)
        return None if end is None else (_python(text[at:end]), end)
    if (scalar := _SCALAR.match(text, at)) and scalar.end() < len(text):
        word = scalar[0]
        return (_WORDS[word] if word in _WORDS else read_json(word)), scalar.end()
    return None


def _closed(text: str, at: int) -> int | None:
    """Where the text or the brackets end that begin here."""
    waiting: list[str] = []
    while at < len(text):
        one = text[at]
        if waiting and waiting[-1] in "\"'":
            if one == "\\":
                at += 1
            elif one == waiting[-1]:
                waiting.pop()
        elif one in "\"'":
            waiting.append(one)
        elif one in _CLOSING:
            waiting.append(_CLOSING[one])
        elif waiting and one == waiting[-1]:
            waiting.pop()
        at += 1
        if not waiting:
            return at
    return None


def _python(text: str) -> Any:
    import ast

    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return ast.literal_eval(text)


def _gemma(text: str, at: int, found: Shape) -> Read | None:
    return _named(text, at, found, (",", ":"), lambda place, _: _gemma_value(text, place))


def _gemma_value(text: str, at: int) -> tuple[Any, int] | None:
    if text.startswith(GEMMA_QUOTE, at):
        begin = at + len(GEMMA_QUOTE)
        end = text.find(GEMMA_QUOTE, begin)
        return None if end < 0 else (text[begin:end], end + len(GEMMA_QUOTE))
    if text.startswith("[", at):
        items: list[Any] = []
        while not text.startswith("]", at + 1 if not items else at):
            read = _gemma_value(text, at + 1)
            if read is None:
                return None
            items.append(read[0])
            at = read[1]
        return items, at + (1 if items else 2)
    if text.startswith("{", at):
        members: dict[str, Any] = {}
        at += 1
        while not text.startswith("}", at):
            at += text.startswith(",", at)
            name, colon, _ = text[at:].partition(":")
            read = _gemma_value(text, at + len(name) + 1) if colon else None
            if read is None:
                return None
            members[name], at = read
        return members, at + 1
    return _value(text, at)
