"""Tables in Markdown, and plain ones for a terminal of any width. The texts in them are not trusted."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby, zip_longest

from edge.system.text import masked

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


def columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    right: Sequence[int] = (),
    *,
    named: bool = False,
) -> list[str]:
    """The lines of a table without rules, at most `width` columns wide; None is without limit. `right` as in `table`.

    If the table is too wide, cells take up to three lines. If this is not enough either, each row becomes a paragraph
    with a line for each cell. No text is cut. `named`: the first column has names, which stay on one line to be copied.
    """
    lines = [[masked(cell) for cell in line] for line in [header, *rows]]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    gaps = 2 * (len(header) - 1)
    # No word is broken.
    least = [
        max(display_width(word) for cell in column for word in re.findall(r"[^ /_-]*[/_-]?", cell))
        for column in zip(*lines, strict=True)
    ]
    if named:
        least[0] = widths[0]
    while width is not None and sum(widths) + gaps > width:
        wider = [column for column in range(len(widths)) if widths[column] > least[column]]
        if not wider:
            return _paragraphs(lines, width, named)
        widths[max(wider, key=widths.__getitem__)] -= 1
    wrapped = [[_wrapped(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    if width is not None and max(len(cell) for line in wrapped for cell in line) > _MOST_LINES:
        return _paragraphs(lines, width, named)
    found = []
    for line in wrapped:
        for cells in zip_longest(*line, fillvalue=""):
            padded = []
            for column, (cell, room) in enumerate(zip(cells, widths, strict=True)):
                space = " " * (room - display_width(cell))
                padded.append(space + cell if column in right else cell + space)
            found.append("  ".join(padded).rstrip())
    return found


def fitted(text: str, width: int | None) -> str:
    """A report in lines of at most `width` columns: long lines are broken at blanks, Markdown tables become `columns`.

    The rest of a line begins below its second column if there is one, otherwise 2 columns to the right.
    """
    if width is None:
        return text
    found: list[str] = []
    for is_table, block in groupby(text.split("\n"), lambda line: line.startswith("| ")):
        lines = list(block)
        if is_table and max(map(display_width, lines)) > width:
            header, rule, *rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in lines]
            right = [column for column, dashes in enumerate(rule) if dashes.endswith(":")]
            found += columns(header, rows, width, right)
            continue
        for line in lines:
            label = re.match(r" *\S+(?: \S+)* {2,}(?=\S)", line)
            indent = label.end() if label and label.end() <= width // 2 else 2
            indent = min(max(indent, len(line) - len(line.lstrip())), width // 2)
            first, *rest = _wrapped(line, width, width - indent)
            found += [first, *(" " * indent + part for part in rest)]
    return "\n".join(found)


def _paragraphs(lines: Sequence[Sequence[str]], width: int, named: bool) -> list[str]:
    """For each row its first cell, then the other cells with their headings."""
    header, *rows = lines
    found = []
    for row in rows:
        found += [row[0]] if named else _wrapped(row[0], width)
        for name, cell in zip(header[1:], row[1:], strict=True):
            found += ["  " + part for part in _wrapped(f"{name}: {cell}", max(width - 2, 1))]
    return found


def _wrapped(text: str, width: int, later: int | None = None) -> list[str]:
    """The text in lines of at most `width` columns, those after the first of `later`; broken at blanks or / - _."""
    found: list[str] = []
    while display_width(text) > width:
        end = len(text)
        while end > 1 and display_width(text[:end]) > width:
            end -= 1
        soft = max(text.rfind(" ", 0, end + 1), *(text.rfind(mark, 0, end) + 1 for mark in "/-_"))
        end = soft if text[:soft].strip() else end
        found.append(text[:end].rstrip())
        text = text[end:].lstrip()
        width = later or width
    return [*found, text]
