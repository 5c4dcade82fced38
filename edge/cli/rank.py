"""The command `edge rank`. It imports heavy modules only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import noting_replaced, show
from edge.cli.options import Force


def rank(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT", help="Result JSONs, edge's own and published ones.")
    ],
    rows_of: Annotated[
        Path | None,
        typer.Option(
            "--rows-of",
            help="Rank the steps of this result JSON. Default: the rows that most of the results have.",
        ),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the ranking as JSON.")] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the ranking as an HTML page.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the ranking. Default: the number of results.")] = "",
    force: Force = False,
) -> None:
    """Rank results by score, and show which are too close to rank.

    edge lists the results that it cannot compare, with the reason. Of results with the same model and settings, only
    the newest counts.
    """
    from edge.compare.ranking import rank as run_rank
    from edge.compare.ranking_text import check_ranking, ranking_markdown, ranking_run, write_ranking
    from edge.errors import ResultError
    from edge.report.rank_page import check_page, write_page
    from edge.system.places import place_of

    inputs = [*results, rows_of]
    if json_out is not None and html_out is not None and place_of(json_out) == place_of(html_out):
        raise ResultError(f"{html_out}: is given for two outputs: give another name")
    ranking = run_rank(results, rows_of)
    run = ranking_run(results, rows_of)
    if json_out is not None:
        check_ranking(json_out, inputs, run, force=force)
    if html_out is not None:
        check_page(html_out, inputs, run, force=force)
    with noting_replaced(json_out, html_out):
        if json_out is not None:
            write_ranking(json_out, ranking, run, title)
        if html_out is not None:
            write_page(html_out, ranking, run, title)
    show(ranking_markdown(ranking, title))
