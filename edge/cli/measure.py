"""The command `edge measure`. It imports heavy modules only when it runs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.common import Threads, note_unless, noting_replaced, progress_line, show
from edge.cli.options import (
    Batch,
    Force,
    GpuLayers,
    Lora,
    MainGpu,
    Rpc,
    Shard,
    Silent,
    SplitMode,
    TensorSplit,
    Verbose,
    spread_of,
)
from edge.system.text import counted

if TYPE_CHECKING:
    from edge.measure.schema import Measurement


def measure(
    model: Annotated[str, typer.Option("--model", "-m", metavar="FILE", help="GGUF to measure.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Measurement JSON to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Base to compare with: a GGUF of the same model, if possible in bf16, or a file that --keep-base "
            "wrote. Without it, edge measures likelihoods only.",
        ),
    ] = None,
    lora: Lora = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", "-r", help="Replay rows (JSON Lines) with reference answers.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text, cut as llama-perplexity does.")] = None,
    chunk: Annotated[int, typer.Option(min=4, help="Chunk size of a text, in tokens.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only the first N rows or chunks.")] = None,
    shard: Shard = None,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=2,
            help="Maximum tokens of a row with its answer. Default: the model's context length.",
        ),
    ] = None,
    keep_base: Annotated[
        bool,
        typer.Option(
            "--keep-base",
            help="Keep the base's distributions as OUT.base-scores, for the --base of other models.",
        ),
    ] = False,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    batch: Batch = None,
    force: Force = False,
    quiet: Silent = False,
    verbose: Verbose = False,
) -> None:
    """Measure the cost of quantization on given texts.

    The figures are the likelihood, the KL divergence from the base and the top-1 agreement. First the base and
    then the model read the reference answers of replay rows, or a plain text. Only one of them is in memory at
    a time. These figures have far less noise than scores of generated answers.
    """
    if (replay is None) == (text is None):
        raise typer.BadParameter("give one of --replay and --text", param_hint="--replay")
    if text is not None and (context is not None or skip_too_long):
        raise typer.BadParameter(
            "is for --replay; a text has --chunk", param_hint="--context, --skip-too-long"
        )

    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading, parse_adapters, with_own_adapter
    from edge.llama.tuned import with_tuned
    from edge.measure.run import Chosen
    from edge.measure.run import measure as run_measure
    from edge.replay.shards import parse_shard
    from edge.runner import reading_layers

    chosen = Chosen(skip_too_long, parse_shard(shard))
    check = partial(_check, replay, limit)
    adapters, spread = parse_adapters(lora or ()), spread_of(rpc, tensor_split, main_gpu, split_mode)
    path = chosen_model(model, note_unless(quiet), check=check)
    base_path = None if base is None else chosen_model(base, note_unless(quiet), check=check)
    loading = Loading(gpu_layers, threads, context, batch=batch, adapters=adapters, spread=spread)
    loading = with_tuned(path, loading, measures=True, say=note_unless(quiet))
    loading = replace(loading, gpu_layers=reading_layers(loading, path, base_path))
    with noting_replaced(out, quiet=quiet):
        done = run_measure(
            path,
            out,
            base=base_path,
            replay=replay,
            text=text,
            chunk=chunk,
            limit=limit,
            chosen=chosen,
            loading=with_own_adapter(path, loading),
            keep_base=keep_base,
            force=force,
            say=None if quiet else progress_line,
        )
    _print(done, out, note_unless(quiet))


def _check(replay: Path | None, limit: int | None) -> None:
    """Check the rows before a model is downloaded. Raises ReplayError."""
    from edge.replay.rows import read_rows

    if replay is not None:
        read_rows(replay, limit)


def _print(done: "Measurement", out: Path, note: Callable[[str], None]) -> None:
    from edge.system.tables import table

    for line in done["method"]["notes"]:
        note(line)
    figures, intervals = done["aggregate"], done["intervals"]
    names = (
        ("nll", "NLL, nats per token", ".4f"),
        ("base_nll", "NLL of the base", ".4f"),
        ("perplexity", "perplexity", ".4f"),
        ("base_perplexity", "perplexity of the base", ".4f"),
        ("kl_mean", "KL divergence, mean", ".6f"),
        ("kl_median", "median", ".6f"),
        ("kl_p90", "90 %", ".6f"),
        ("kl_p99", "99 %", ".6f"),
        ("kl_max", "largest", ".6f"),
        ("kl_error_bound", "maximum error of the mean", ".1e"),
        ("top1_agreement_pct", "same top token, %", ".2f"),
        ("first_command_prob", "probability of the first command", ".4f"),
        ("base_first_command_prob", "the same for the base", ".4f"),
    )
    lines = []
    values: Mapping[str, object] = figures
    for name, label, form in names:
        value = values.get(name)
        if isinstance(value, int | float):
            bounds = [format(bound, form) for bound in intervals.get(name) or () if bound is not None]
            lines.append([label, format(value, form), " to ".join(bounds) if len(bounds) == 2 else ""])
    show("\n".join(table(("figure", "value", "95 % interval"), lines, right=(1,))))
    rows = done["kind"] == "rows"
    what = (
        f"{counted(figures['rows'], 'row')} of {counted(figures['tasks'], 'task')}"
        if rows
        else counted(figures["rows"], "chunk")
    )
    show(f"\n{out}: {counted(figures['tokens'], 'token')} of {what}")
