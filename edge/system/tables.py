"""Tables in Markdown, and plain ones for a terminal of any width. The texts in them are not trusted."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from edge.system.text import masked

_NARROWEST = 8  # columns of a cell before rows become paragraphs
_MOST_LINES = 3  # of a cell


def clean(text: str) -> str:
    """A text as one line for a table cell: it can neither steer a terminal nor break the table."""
    return masked(text).replace("|", "\\|")


def code(text: str, width: int = 36) -> str:
    """A command as inline code for a table cell, cut to `width` columns; "(none)" for an empty one."""
    if not text:
        return "(none)"
    shown = masked(text[: width + 1])
    while display_width(shown) > width:
        shown = shown[:-2] + "…"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    gap = " " if len(fence) > 1 else ""
    return f"{fence}{gap}{shown}{gap}{fence}".replace("|", "\\|")


def display_width(text: str) -> int:
    """Columns in a terminal: two for wide characters, none for combining ones, else one."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The lines of a Markdown table. Columns are aligned to the left, those whose index is in `right` to the right."""
    widths = [
        max(3, *(display_width(row[column]) for row in [header, *rows])) for column in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, cell in enumerate(cells):
            space = " " * (widths[column] - display_width(cell))
            padded.append(space + cell if column in right else cell + space)
        return "| " + " | ".join(padded) + " |"

    rule = [
        "-" * (width - 1) + ":" if column in right else "-" * width for column, width in enumerate(widths)
    ]
    return [line(header), line(rule), *map(line, rows)]


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table without rules, at most `width` columns wide; None is without limit.

    If the table is too wide, cells take up to three lines. If this is not enough either, each row becomes a paragraph
    with a line for each cell. No text is cut.
    """
    lines = [[masked(cell) for cell in line] for line in [header, *rows]]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    gaps = 2 * (len(header) - 1)
    while width is not None and sum(widths) + gaps > width:
        widest = max(range(len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
        if widths[widest] < _NARROWEST:
            return _paragraphs(lines, width)
    wrapped = [[_wrapped(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    if width is not None and max(len(cell) for line in wrapped for cell in line) > _MOST_LINES:
        return _paragraphs(lines, width)
    found = []
    for line in wrapped:
        for cells in zip_longest(*line, fillvalue=""):
            padded = (
                cell + " " * (room - display_width(cell)) for cell, room in zip(cells, widths, strict=True)
            )
            found.append("  ".join(padded).rstrip())
    return found


def _paragraphs(lines: Sequence[Sequence[str]], width: int) -> list[str]:
    """For each row its first cell, then the other cells with their headings."""
    header, *rows = lines
    found = []
    for row in rows:
        found += _wrapped(row[0], width)
        for name, cell in zip(header[1:], row[1:], strict=True):
            found += ["  " + part for part in _wrapped(f"{name}: {cell}", max(width - 2, 1))]
    return found


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at blanks, else after / - _ or anywhere."""
    found = []
    while display_width(text) > width:
        end = len(text)
        while end > 1 and display_width(text[:end]) > width:
            end -= 1
        soft = max(text.rfind(" ", 0, end + 1), *(text.rfind(mark, 0, end) + 1 for mark in "/-_"))
        end = soft if soft > end // 2 else end
        found.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*found, text]
