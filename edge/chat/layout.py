"""Text and JSON of a model as a person or a program reads them: nothing in them can control a terminal."""

import json

from edge.system.text import printable

# Not printable in Python's sense, but these steer nothing: tabs of code, and the joiners of Persian, Hindi and emoji.
_HARMLESS = "\t\u200c\u200d"


def safe_text(text: str) -> str:
    """The text with its line breaks and tabs, and an escape for each character that may steer a terminal."""
    return "".join(c if c in _HARMLESS else printable(c, lines=True) for c in text)


class JsonLayout:
    """Lays JSON out while it arrives: indented, or in one line as Python's json.dumps does.

    Strings and numbers stay as they are, but a character that cannot be seen becomes its JSON escape.
    """

    def __init__(self, *, indented: bool) -> None:
        self._indented = indented
        self._depth = 0
        self._string = False
        self._escaped = False
        self._opened = False  # the last mark was an opening bracket

    def feed(self, piece: str) -> str:
        """The next text of the layout."""
        return "".join(map(self._next, piece))

    def _next(self, char: str) -> str:
        if self._string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._string = False
            return char if char.isprintable() else json.dumps(char)[1:-1].replace("\x7f", "\\u007f")
        if char in " \t\r\n":
            return ""
        opened, self._opened = self._opened, char in "{["
        if char in "}]":
            self._depth -= 1
            return char if opened else self._line() + char
        before = self._line() if opened else ""
        if char in "{[":
            self._depth += 1
        self._string = char == '"'
        if char == ",":
            return "," + (self._line() or " ")
        return before + (": " if char == ":" else char)

    def _line(self) -> str:
        return "\n" + "  " * self._depth if self._indented else ""
