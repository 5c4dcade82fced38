"""The command `edge report`. It imports heavy modules only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import noting_replaced
from edge.cli.options import Force


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="Result JSONs, and measurement JSONs of the same models."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML page to write.")] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Result JSON to compare with, or a known model's name for its published figures. Default: the only "
            "unquantized one of several results. Without one, edge compares nothing.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write a short form in Markdown, for a model card.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", metavar="FOLDER", help="Also write the plots as PNG into this folder."),
    ] = None,
    worse: Annotated[
        int, typer.Option("--worse", min=0, help="Maximum number of steps that got worse, for each result.")
    ] = 20,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", "-r", help="Replay rows. With them, these steps show the last message of the task."
        ),
    ] = None,
    notes: Annotated[
        list[str] | None,
        typer.Option("--note", help="Paragraph for the beginning of the page; repeatable."),
    ] = None,
    title: Annotated[
        str, typer.Option(help="Heading of the page. Default: from the names of the models.")
    ] = "",
    force: Force = False,
) -> None:
    """Write a page about the cost of quantization.

    The page has a verdict, tables, plots, and the steps that got worse.
    """
    from edge.report.build import report as write_report

    with noting_replaced(out, markdown):
        write_report(
            results,
            out,
            reference,
            markdown=markdown,
            plots=plots,
            worse=worse,
            replay=replay,
            title=title,
            notes=notes or (),
            force=force,
        )
    for path in (out, markdown, plots):
        if path is not None:
            typer.echo(str(path))
