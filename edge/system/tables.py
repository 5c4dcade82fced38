"""Markdown tables that also read well in a terminal. The texts in them are not trusted."""

import re
import unicodedata
from collections.abc import Sequence

from edge.system.text import masked


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
