"""The command `edge measure`. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edge.cli.common import Interrupted, Threads, note, progress_line


def measure(
    model: Annotated[Path, typer.Option("--model", "-m", help="The GGUF to measure.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The measurement JSON to write.")],
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What it came from: a GGUF of the same model, best in bf16, or scores kept by --keep-base. "
            "Without it: likelihoods only.",
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", "-r", help="Replay rows (JSON Lines) with references.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text, cut as llama-perplexity cuts it.")] = None,
    chunk: Annotated[int, typer.Option(min=4, help="Tokens of a chunk of text.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows or chunks.")] = None,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    ctx: Annotated[
        int | None,
        typer.Option(min=2, help="Most tokens of a row with its answer. Default: what the model has."),
    ] = None,
    keep_base: Annotated[
        bool,
        typer.Option(
            "--keep-base", help="Keep the base's scores as OUT.base-scores, for other models' --base."
        ),
    ] = False,
    gpu_layers: Annotated[
        int, typer.Option("--gpu-layers", min=-1, help="Layers to offload; -1 is all.")
    ] = -1,
    threads: Threads = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Tokens decoded at once. Default: 512.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no notes and no progress.")] = False,
) -> None:
    """Measure what quantization cost on given texts: likelihood, KL divergence from the base, top-1 agreement.

    The reference answers of replay rows, or a plain text, are read by the base and then by the model, never both in
    memory. Far less noisy than answers that the models write themselves.
    """
    if (replay is None) == (text is None):
        raise typer.BadParameter("give one of --replay and --text", param_hint="--replay")
    if text is not None and (ctx is not None or skip_too_long):
        raise typer.BadParameter("is for --replay; a text has --chunk", param_hint="--ctx, --skip-too-long")

    from edge.llama.loading import Loading
    from edge.measure import measure as run_measure

    try:
        done = run_measure(
            model,
            out,
            base=base,
            replay=replay,
            text=text,
            chunk=chunk,
            limit=limit,
            skip_too_long=skip_too_long,
            loading=Loading(gpu_layers=gpu_layers, threads=threads, context=ctx, batch=batch),
            keep_base=keep_base,
            say=None if quiet else progress_line,
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; nothing was written") from None
    if not quiet:
        for line in done["method"]["notes"]:
            note(line)
    _print(done, out)


def _print(done: dict[str, Any], out: Path) -> None:
    from edge.system.tables import table

    figures, intervals = done["aggregate"], done["intervals"]
    names = (
        ("nll", "NLL, nats a token", ".4f"),
        ("base_nll", "NLL of the base", ".4f"),
        ("perplexity", "perplexity", ".4f"),
        ("base_perplexity", "perplexity of the base", ".4f"),
        ("kl_mean", "KL divergence, mean", ".6f"),
        ("kl_median", "median", ".6f"),
        ("kl_p90", "90 %", ".6f"),
        ("kl_p99", "99 %", ".6f"),
        ("kl_max", "largest", ".6f"),
        ("kl_error_bound", "the mean is off by at most", ".1e"),
        ("top1_agreement_pct", "same top token, %", ".2f"),
        ("first_command_prob", "probability of the first command", ".4f"),
        ("base_first_command_prob", "that of the base", ".4f"),
    )
    lines = []
    for name, label, form in names:
        if figures.get(name) is not None:
            bounds = intervals.get(name)
            known = bounds is not None and None not in bounds
            lines.append(
                [
                    label,
                    format(figures[name], form),
                    " to ".join(format(b, form) for b in bounds) if known else "",
                ]
            )
    typer.echo("\n".join(table(("figure", "value", "95 % interval"), lines, right=(1,))))
    rows = done["kind"] == "rows"
    what = f"{figures['rows']} rows of {figures['tasks']} tasks" if rows else f"{figures['rows']} chunks"
    typer.echo(f"\n{out}: {figures['tokens']:,} tokens of {what}")
