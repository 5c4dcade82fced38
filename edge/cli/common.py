"""What every command of the command line shares: notes, tables, an interruption."""

from typing import Annotated

import typer

from edge.system.text import printable

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
