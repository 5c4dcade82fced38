"""The command `edge imatrix`. It imports heavy modules only when it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import Threads, note_unless, noting_replaced, progress_line, show
from edge.cli.options import (
    Force,
    GpuLayers,
    MainGpu,
    Rpc,
    Silent,
    SplitMode,
    TensorSplit,
    Verbose,
    spread_of,
)


def imatrix(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="FILE", help="GGUF to read; use an unquantized one if you can."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Importance matrix (GGUF) to write.")],
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines) with reference answers."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text, cut as llama-imatrix does.")] = None,
    chunk: Annotated[int, typer.Option(min=2, help="Chunk size of a text, in tokens.")] = 512,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=2,
            help="Leave out rows of more tokens. Default: the model's context length.",
        ),
    ] = None,
    process_output: Annotated[
        bool,
        typer.Option("--process-output", help="Include the output matrix."),
    ] = False,
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
    """Compute an importance matrix from replay rows or a text.

    If it is interrupted, run the same command again to resume.
    """
    if (replay is None) == (text is None):
        raise typer.BadParameter("give one of --replay and --text", param_hint="--replay")

    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading
    from edge.measure.calibrate import calibrate
    from edge.replay.rows import read_rows
    from edge.runner import reading_layers
    from edge.system.progress import bar

    def check() -> None:
        if replay is not None:
            read_rows(replay)

    spread = spread_of(rpc, tensor_split, main_gpu, split_mode)
    path = chosen_model(model, note_unless(quiet), check=check)
    loading = Loading(gpu_layers, threads, context, spread=spread)
    with (
        noting_replaced(out, quiet=quiet),
        bar("reading", None if quiet else progress_line, unit="tokens") as progress,
    ):
        calibrated = calibrate(
            path,
            out,
            rows=replay,
            text=text,
            chunk=chunk,
            loading=replace(loading, gpu_layers=reading_layers(loading, path)),
            process_output=process_output,
            force=force,
            progress=progress,
        )
    show(calibrated)
