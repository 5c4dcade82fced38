"""The command that makes a report. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="Result JSONs, and measurement JSONs of the same models."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to write.")] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="A result JSON, or a known model's name for its published figures. Default: the only unquantized "
            "one of several results; where there is none, nothing is compared.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write it in short as Markdown too, for a model card.")
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="A folder for the plots as PNG.")] = None,
    worse: Annotated[
        int, typer.Option("--worse", min=0, help="Most steps that got worse to show for each result.")
    ] = 20,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="The replay rows: shows what the task said at those steps."),
    ] = None,
    notes: Annotated[
        list[str] | None,
        typer.Option("--note", help="What the reader should know beforehand; repeatable."),
    ] = None,
    title: Annotated[
        str, typer.Option(help="The page's heading. Default: made from the models' names.")
    ] = "",
) -> None:
    """Write one page about what quantization cost: verdict, table, plots, and the steps that got worse."""
    from edge.report.build import report as write_report

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
    )
    for path in (out, markdown, plots):
        if path is not None:
            typer.echo(str(path))
