"""What every command of the command line shares: notes, tables, an interruption."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.system.text import printable

if TYPE_CHECKING:
    from edge.prompt import Rendered

Threads = Annotated[int | None, typer.Option(min=1, max=512, help="Default: the physical cores.")]


class Interrupted(Exception):
    """Ctrl-C, with a line on what is kept."""


def note(text: str) -> None:
    """A line on stderr that is no error."""
    typer.echo(f"note: {printable(text, lines=True)}", err=True)


def table(header: list[str], rows: list[tuple[str, ...]]) -> None:
    """Columns on stdout."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def progress_line(text: str) -> None:
    """A line of progress on stderr."""
    typer.echo(printable(text), err=True)


def note_fallback(model: Path, rendered: "Rendered") -> None:
    """A note if a prompt was not made by the model's own chat template."""
    if rendered.status != "chat_template":
        why = (
            f"its chat template cannot be rendered ({rendered.reason})"
            if rendered.reason
            else "it has no chat template"
        )
        note(f"{model}: {why}; the prompt uses {rendered.status}")


def shown_json(text: str) -> str:
    """JSON with the control characters that a terminal may obey as escapes; JSON's own escapes cover the others."""
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
