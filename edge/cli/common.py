"""What the commands share: the option --threads, notes, tables, lines of progress."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.system.text import printable

if TYPE_CHECKING:
    from edge.prompt import Rendered

Threads = Annotated[
    int | None, typer.Option(min=1, max=512, help="CPU threads. Default: the number of physical cores.")
]


def note(text: str) -> None:
    """Print a note on stderr: not an error."""
    typer.echo(f"note: {printable(text, lines=True)}", err=True)


def table(header: list[str], rows: list[tuple[str, ...]]) -> None:
    """Print rows in aligned columns on stdout."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def progress_line(text: str) -> None:
    """Print a line of progress on stderr."""
    typer.echo(printable(text), err=True)


def note_fallback(model: Path, rendered: "Rendered") -> None:
    """Print a note if the prompt does not come from the model's own chat template."""
    if rendered.status != "chat_template":
        why = (
            f"its chat template cannot be rendered ({rendered.reason})"
            if rendered.reason
            else "it has no chat template"
        )
        note(f"{model}: {why}; the prompt uses {rendered.status}")


def shown_json(text: str) -> str:
    """JSON text that cannot control a terminal: U+007F to U+009F are escaped. JSON escapes those below U+0020."""
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
