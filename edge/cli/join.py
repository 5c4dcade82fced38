"""The command `edge join`. It imports heavy modules only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import noting_replaced, show
from edge.cli.options import Force
from edge.cli.results import print_scores, print_trials
from edge.system.text import counted


def join(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="SHARD", help="All shards of one edge eval, measure or trial, in any order."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Result or measurement JSON to write.")],
    force: Force = False,
) -> None:
    """Join the shards of a replay, a measurement or trials.

    Give every file that --shard 1/N to N/N wrote. edge checks that they are of one run and complete.
    """
    from edge.compare.trial_join import join_trials
    from edge.compare.trials import is_trials
    from edge.measure.join import is_measurement, join_measurements
    from edge.replay.join import join as join_results

    with noting_replaced(out):
        if is_measurement(shards[0]):
            done = join_measurements(shards, out, force=force)
            figures = done["aggregate"]
            show(f"{out}: {counted(figures['rows'], 'row')}, {counted(figures['tokens'], 'token')}")
        elif is_trials(shards[0]):
            print_trials([(out, join_trials(shards, out, force=force))])
        else:
            print_scores(join_results(shards, out, force=force), out)
