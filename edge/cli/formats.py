"""The commands `edge schema` and `edge rows`. They import heavy modules only when they run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from edge.cli.command import App

rows = App(
    help="Check replay rows.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Name of the format, such as replay-row. Default: list the names."
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print an example file to copy instead of the schema.")
    ] = False,
) -> None:
    """Print the JSON Schema of a file format, or list the formats."""
    from edge import schemas
    from edge.cli.common import table
    from edge.errors import EdgeError

    if name is None:
        if example:
            raise typer.BadParameter("needs the name of a format", param_hint="--example")
        listed: list[tuple[str, ...]] = [
            (one.name, "yes" if one.example else "-", one.about) for one in schemas.FORMATS
        ]
        table(["format", "example", "what it is"], listed)
        return
    try:
        text = (
            schemas.example(name)
            if example
            else json.dumps(schemas.schema(name), indent=2, ensure_ascii=False)
        )
    except EdgeError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    if text is None:
        raise typer.BadParameter(
            f"{name} has no example; `edge schema {name}` prints its schema", param_hint="--example"
        )
    typer.echo(text.rstrip("\n"))


@rows.callback()
def _rows() -> None:
    """Check replay rows."""


@rows.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Replay rows (JSON Lines); - for standard input."),
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Find every problem of a replay file.

    An error is a line that edge refuses. A warning is a line that edge reads, but that is probably a mistake: for
    example a reference that is not an action. The exit code is 1 if there is an error.
    """
    from edge.cli.common import STDIN, echo_json, input_lines, show
    from edge.replay.check import check_rows
    from edge.system.text import printable

    checked = check_rows("standard input", input_lines()) if file == STDIN else check_rows(file)
    if as_json:
        echo_json(checked.to_json())
    else:
        show(printable(checked.to_text(), lines=True))
    if checked.errors or (strict and checked.warnings):
        raise typer.Exit(1)
