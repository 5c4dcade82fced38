"""Tables in Markdown, and plain ones for a terminal of any width. The texts in them are not trusted."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from edge.system.text import masked

_MOST_LINES = 3  # of a cell
_LEAST_TEXT = 16  # columns of a last column whose text is wrapped


def clean(text: str) -> str:
    """A text as one line for a table cell: it cannot control a terminal or break the table."""
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

    If the table is too wide, a last column of text takes up to three lines. If this is not enough, the columns that do
    not fit go below each row, with their headings. No cell that fits into the width is broken, and no text is cut.
    `named`: the first column has names, which are never broken, so that they can be copied.
    """
    lines = [[masked(cell) for cell in line] for line in [header, *rows]]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        return [_aligned(line, widths, right) for line in lines]
    last = len(widths) - 1
    room = width - sum(widths[:-1]) - 2 * last
    if last and last not in right and room >= _LEAST_TEXT:
        cells = [_wrapped(line[-1], room) for line in lines]
        texts = [part for cell in cells for part in cell[:-1]]
        if max(map(len, cells)) <= _MOST_LINES and all(" " in part for part in texts):
            return [
                _aligned([*(line[:-1] if not i else [""] * last), part], [*widths[:-1], room], right)
                for line, cell in zip(lines, cells, strict=True)
                for i, part in enumerate(cell)
            ]
    fitting = 0
    while fitting <= last and sum(widths[: fitting + 1]) + 2 * fitting <= width:
        fitting += 1
    if fitting < 2:
        fitting = 1
    found = [_aligned(lines[0][:fitting], widths, right)] if fitting > 1 else []
    for line in lines[1:]:
        row = _aligned(line[:fitting], widths, right) if fitting > 1 else line[0]
        found += [row] if fitting > 1 or named else _wrapped(row, width)
        found += _below(header[fitting:], line[fitting:], width)
    return found


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    """One line of a table."""
    padded = []
    for column, (cell, room) in enumerate(zip(cells, widths, strict=False)):
        space = " " * (room - display_width(cell))
        padded.append(space + cell if column in right else cell + space)
    return "  ".join(padded).rstrip()


def _below(header: Sequence[str], cells: Sequence[str], width: int) -> list[str]:
    """Cells with their headings, in lines of at most `width` columns. Only a cell that is longer is broken."""
    found: list[str] = []
    for name, cell in zip(header, cells, strict=True):
        item = f"{name}: {cell}"
        if found and display_width(found[-1]) + 2 + display_width(item) <= width:
            found[-1] += f"  {item}"
        else:
            found += ["  " + part for part in _wrapped(item, max(width - 2, 1))]
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


def _wrapped(text: str, width: int, later: int | None = None) -> list[str]:
    """The text in lines of at most `width` columns, those after the first of `later`.

    A line ends at a blank. If that leaves half of it empty, it may also end at / - _.
    """
    found: list[str] = []
    while display_width(text) > width:
        end = len(text)
        while end > 1 and display_width(text[:end]) > width:
            end -= 1
        blanks = [
            blank.start() for blank in re.finditer(" (?!%)", text[: end + 1])
        ]  # no line begins with a %
        soft = blanks[-1] if blanks else 0
        if display_width(text[:soft]) < width / 2:
            soft = max(soft, *(text.rfind(mark, 0, end) + 1 for mark in "/-_"))
        end = soft if text[:soft].strip() else end
        found.append(text[:end].rstrip())
        text = text[end:].lstrip()
        width = later or width
    return [*found, text]
