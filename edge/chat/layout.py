"""Text and JSON of a model as a person or a program reads them: nothing in them can control a terminal."""

from rich.cells import cell_len

from edge.system.text import json_escape, printable

# Not printable in Python's sense, but these steer nothing: tabs of code, and the joiners of Persian, Hindi and emoji.
_HARMLESS = "\t\u200c\u200d"


def safe_text(text: str) -> str:
    """The text with its line breaks and tabs, and an escape for each character that may steer a terminal."""
    return "".join(c if c in _HARMLESS or c.isprintable() else printable(c, lines=True) for c in text)


class WordWrap:
    """Breaks lines between words while the text arrives, for a terminal of `width` columns.

    A word is held until it is complete. A word that is longer than a line stays whole.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 1)
        self._column = 0
        self._blanks = ""
        self._word = ""

    def feed(self, piece: str) -> str:
        """The next text with its line breaks."""
        return "".join(map(self._next, piece))

    def end(self) -> str:
        """What was held."""
        return self._flush()

    def _next(self, char: str) -> str:
        if char == "\n":
            line = self._flush() + "\n"
            self._column = 0
            return line
        if char in " \t":
            written = self._flush() if self._word else ""
            self._blanks += char
            return written
        self._word += char
        return self._flush() if cell_len(char) > 1 else ""  # Chinese and Japanese have no blanks

    def _flush(self) -> str:
        blanks, word, self._blanks, self._word = self._blanks, self._word, "", ""
        cells = self._cells(word)
        if self._column and word and self._column + self._cells(blanks) + cells > self._width >= cells:
            self._column = cells
            return "\n" + word
        self._column = (self._column + self._cells(blanks) + cells) % (self._width + 1)
        return blanks + word

    def _cells(self, text: str) -> int:
        return cell_len(text.replace("\t", " " * 8))


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
            return json_escape(char)
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
