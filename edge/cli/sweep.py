"""The command `edge sweep`. It imports heavy modules only when it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import Threads, progress_line, show
from edge.cli.options import (
    Force,
    GpuLayers,
    MainGpu,
    Offline,
    Revision,
    Rpc,
    Silent,
    SplitMode,
    TensorSplit,
    Verbose,
    bytes_of,
    checked_quant,
    spread_of,
)
from edge.cli.pull import Yes


def sweep(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Hugging Face checkpoint: a folder or a hub id (owner/name)."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the results and the report.")
    ],
    quants: Annotated[
        str,
        typer.Option(
            "--quants", "-q", help="Quantization types, separated by commas, as in edge convert --quant."
        ),
    ] = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M",
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines). Default: the embedded rows."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Reference of the report: a result JSON or a known model's name. Default: the unquantized model.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="ROWS",
            help="Other replay rows. edge computes an importance matrix for all types from them.",
        ),
    ] = None,
    same_rows: Annotated[
        bool, typer.Option("--same-rows", help="Allow the same rows in --calibrate and --replay.")
    ] = False,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="For each type, make the best file of its size too, as edge convert --quant auto with --calibrate.",
        ),
    ] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Choose the best file up to this size, such as 6GB.")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            metavar="POINTS",
            min=0,
            help="Choose the smallest file whose loss of score is at most this many points, with 95 % confidence.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep all GGUFs, not only the chosen one.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    yes: Yes = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Maximum tokens of an answer.")
    ] = 1024,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Answer without the grammar, as vLLM does.")
    ] = False,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=64, help="Answers written in parallel, as in edge eval.")
    ] = None,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    force: Force = False,
    quiet: Silent = False,
    verbose: Verbose = False,
) -> None:
    """Convert, evaluate and measure several quantizations.

    edge then writes a report. If it is interrupted, run the same command again to resume.
    """
    limit = None if budget is None else bytes_of(budget, "--budget")
    from edge.answer.answering import Answering
    from edge.cli.defaults import checkpoint_source
    from edge.llama.loading import Loading
    from edge.sweep import SweepOptions, check_sweep
    from edge.sweep import sweep as run_sweep
    from edge.system.paths import embedded_rows

    names = [checked_quant(name, "--quants") for name in quants.replace(" ", "").split(",") if name]
    rows = replay or embedded_rows()
    options = SweepOptions(
        *(reference, calibrate, same_rows, frontier, keep, limit, max_loss),
        skip_too_long=skip_too_long,
        force=force,
    )

    def check(_: str | None) -> object:
        return check_sweep(names, rows, out, options)

    found = checkpoint_source(source, revision=revision, offline=offline, yes=yes, check=check, quiet=quiet)
    done = run_sweep(
        found.text,
        names,
        rows,
        out,
        replace(options, revision=found.hub.revision, offline=found.hub.offline),
        answering=Answering(max_tokens, constrained=not unconstrained),
        loading=Loading(
            gpu_layers, threads, parallel=parallel, spread=spread_of(rpc, tensor_split, main_gpu, split_mode)
        ),
        say=None if quiet else progress_line,
    )
    if done.frontier:
        show(done.frontier)
    typer.echo(str(done.page))
    if done.choice is not None:
        show(done.choice.why)
    if done.chosen is not None:
        typer.echo(str(done.chosen))
