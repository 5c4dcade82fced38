"""The command that measures a model on given text. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli_models import Interrupted, Threads


def measure(
    model: Annotated[Path, typer.Option("--model", "-m", help="The GGUF to measure.")],
    base: Annotated[
        Path | None,
        typer.Option(help="The GGUF to compare it with, or scores kept of one. Default: likelihoods alone."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", "-r", help="Replay rows (JSON Lines) with references.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Plain text instead, cut as llama-perplexity does.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The measurement JSON to write.")] = Path(
        "measurement.json"
    ),
    keep_base: Annotated[
        Path | None,
        typer.Option(
            "--keep-base", metavar="FILE", help="Keep the base's scores, as --base of other models."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    chunk: Annotated[int, typer.Option(min=4, help="Tokens of a chunk of text.")] = 512,
    ctx: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a row. Default: what the model has.")
    ] = None,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Probabilities of the base kept one by one.")] = 256,
    gpu_layers: Annotated[
        int, typer.Option("--gpu-layers", min=-1, help="Layers to offload; -1 is all.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Tokens read at once.")] = 512,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Measure what a model loses on the reference answers: likelihood, and divergence from its base."""
    if (replay is None) == (text is None):
        raise typer.BadParameter("give either --replay or --text", param_hint="--replay")
    if keep_base is not None and base is None:
        raise typer.BadParameter("goes with --base", param_hint="--keep-base")

    from edge.markdown import table
    from edge.measure import measure as run_measure

    try:
        result = run_measure(
            model,
            out,
            replay=replay,
            text=text,
            base=base,
            keep_base=keep_base,
            limit=limit,
            chunk=chunk,
            context=ctx,
            skip_too_long=skip_too_long,
            top=top,
            threads=threads,
            gpu_layers=gpu_layers,
            batch=batch,
            quiet=quiet,
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop)) from None
    figures = result["aggregate"]
    rows = []
    for name, label, places in (
        ("nll", "negative log-likelihood, nats a token", 4),
        ("base_nll", "… of the base", 4),
        ("perplexity", "perplexity", 3),
        ("base_perplexity", "… of the base", 3),
        ("kl_mean", "KL divergence from the base, mean", 5),
        ("kl_median", "… median", 5),
        ("kl_p99", "… 99th percentile", 4),
        ("kl_max", "… largest", 3),
        ("top1_agreement_pct", "same best token %", 2),
        ("first_command_prob", "probability of the first command", 4),
        ("base_first_command_prob", "… of the base", 4),
    ):
        if name in figures:
            low_high = figures["intervals"].get(name)
            between = " … ".join(f"{bound:.{places}f}" for bound in low_high) if low_high else "–"
            rows.append([label, f"{figures[name]:.{places}f}", between])
    what = (
        f"{figures['rows']} {'rows' if result['kind'] == 'rows' else 'chunks'}, {figures['tokens']:,} tokens"
    )
    typer.echo("\n".join(table((what, "value", "95 % interval"), rows, right=(1, 2))))
    for line in result["method"]["notes"]:
        typer.echo(f"note: {line}", err=True)
    typer.echo(f"\n{out}")
