"""Reads messages and commands from lines: one line each, or a block between three double quotes."""

from collections.abc import Callable
from dataclasses import dataclass

PROMPT, CONTINUED = ">>> ", "... "
QUOTES = '"""'
ReadLine = Callable[[str], str]
"""Shows a prompt and returns the next line without its line end. Raises EOFError after the last line."""


@dataclass(frozen=True)
class Entry:
    """What the person typed. A block is always a message, also if it begins with a slash."""

    text: str
    raw: str
    """With the quotes, for the history."""
    block: bool = False

    @property
    def command(self) -> bool:
        """Whether it is a line that begins with a slash. Lines that are pasted together are a message."""
        if self.block or not self.text.startswith("/"):
            return False
        return "\n" not in self.text or self.text.split()[0] == "/system"


def read_entry(read_line: ReadLine, prompt: str = PROMPT) -> Entry:
    """The next entry. The end of the input also ends a block. Raises EOFError if nothing is left."""
    line = read_line(prompt)
    begin = line.lstrip()
    if not begin.startswith(QUOTES):
        return Entry(line.strip(), line)
    lines, raw = [begin[len(QUOTES) :]], [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            following = read_line(CONTINUED)
        except EOFError:
            break
        lines.append(following)
        raw.append(following)
    else:
        lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
    if len(lines) > 1 and not lines[0]:
        del lines[0]
    return Entry("\n".join(lines), "\n".join(raw), block=True)


def read_block(read_line: ReadLine) -> str:
    """The lines up to one of three double quotes, or to the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = read_line(CONTINUED)
        except EOFError:
            break
        if line.strip() == QUOTES:
            break
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)
