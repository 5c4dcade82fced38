"""The commands `edge convert`, `edge imatrix`, `edge inspect`, `edge models` and `edge doctor`.

They import heavy modules only when they run.
"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import Threads, note, progress_line, show, table
from edge.cli.options import GpuLayers, Verbose, reading_layers
from edge.errors import EdgeError
from edge.replay.known import known_models
from edge.system.paths import converted_models
from edge.system.text import size


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Hugging Face checkpoint: a folder or a hub id (owner/name)."),
    ],
    quant: Annotated[
        str,
        typer.Option(
            "--quant",
            "-q",
            help="Quantization type: f32, f16, bf16, Q8_0, Q4_K_M, … The error for an unknown type lists them all.",
        ),
    ] = "Q4_K_M",
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="GGUF to write. Default: models/<name>-<quant>.gguf."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Importance matrix to use: a GGUF from edge imatrix or llama-imatrix."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="ROWS", help="Replay rows (JSON Lines) to compute an importance matrix from first."
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="LoRA adapter to merge into the checkpoint.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Type for tensors whose name matches PATTERN; repeatable."),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type for the output matrix.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type for the token embeddings.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the hub id. Default: main.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not connect: use only the hub's local cache.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Compare llama.cpp's tokenization with that of the checkpoint."
        ),
    ] = True,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Convert a Hugging Face checkpoint to a quantized GGUF."""
    overrides = [(pattern, kind) for pattern, _, kind in (pair.partition("=") for pair in tensor_type or [])]
    if not all(pattern and kind for pattern, kind in overrides):
        raise typer.BadParameter(
            "must be PATTERN=TYPE, for example ffn_down=q6_k", param_hint="--tensor-type"
        )

    from edge.convert import TensorTypes
    from edge.convert import convert as run_convert

    converted = run_convert(
        source,
        quant=quant,
        out=out,
        imatrix=imatrix,
        calibrate=calibrate,
        lora=lora,
        tensor_types=TensorTypes(overrides, output_tensor_type, token_embedding_type),
        revision=revision,
        offline=offline,
        check=check,
        threads=threads,
        say=progress_line,
    )
    for warning in converted.warnings:
        note(warning)
    show(
        f"{converted.path}: {converted.quant}, {size(converted.n_bytes)}, "
        f"{converted.bits_per_weight:.2f} bits per weight, {converted.seconds:.1f} s\nSHA-256 {converted.sha256}"
    )


def imatrix(
    model: Annotated[
        Path, typer.Option("--model", "-m", help="GGUF to read; use an unquantized one if you can.")
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
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress.")] = False,
    verbose: Verbose = False,
) -> None:
    """Compute an importance matrix from replay rows or a text.

    If it is interrupted, run the same command again to resume.
    """
    if (replay is None) == (text is None):
        raise typer.BadParameter("give one of --replay and --text", param_hint="--replay")

    from edge.measure.calibrate import calibrate
    from edge.system.progress import bar

    with bar("reading", None if quiet else progress_line, unit="tokens") as progress:
        calibrated = calibrate(
            model,
            out,
            rows=replay,
            text=text,
            chunk=chunk,
            context=context,
            threads=threads,
            gpu_layers=reading_layers(gpu_layers, model),
            process_output=process_output,
            progress=progress,
        )
    show(calibrated)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="GGUF to inspect.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and check all tensor data.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Its checkpoint (folder or hub id): convert every tensor again and compare.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the hub id. Default: main.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not connect: use only the hub's local cache.")
    ] = False,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix that the GGUF was made with.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="LoRA adapter that the GGUF was made with.")
    ] = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Show what a GGUF contains, its origin and any damage.

    The exit code is 1 if something is wrong with the file.
    """
    from edge.conversion.inspect import inspect as run_inspect

    inspected = run_inspect(
        file,
        verify=verify,
        source=source,
        revision=revision,
        offline=offline,
        imatrix=imatrix,
        lora=lora,
        threads=threads,
    )
    typer.echo(inspected.to_json()) if as_json else show(inspected.to_text())
    if not inspected.ok:
        raise typer.Exit(1)


def models() -> None:
    """List the known models and the converted GGUFs."""
    table(["known model", "hub id", "quant", "default context", "memory", "published F1"], known_rows())
    files = converted_rows()
    typer.echo()
    if files:
        table(["GGUF", "type", "size", "architecture"], files)
    else:
        typer.echo("No GGUF in models/ yet. To make one: edge convert SOURCE")


def doctor(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Check whether this GGUF fits. Default with --offline: the newest in models/.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=1,
            help="Context length to check, in tokens. Default: the model's, at most 8,192.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Try everything that edge needs without a network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, devices and memory, and whether a model fits.

    With --offline, edge tries everything that it needs without a network. The exit code is 1 if it is not ready.
    """
    if offline:
        from edge.airgap.ready import offline as run_offline

        readiness = run_offline(model, context)
        typer.echo(readiness.to_json()) if as_json else show(readiness.to_text())
        if not readiness.ready:
            raise typer.Exit(1)
        return
    from edge.airgap.doctor import doctor as run_doctor

    report = run_doctor(model, context)
    typer.echo(report.to_json()) if as_json else show(report.to_text())


def known_rows() -> list[tuple[str, ...]]:
    """The known models for `edge models`: name, hub id, quantization type, context, memory, published F1."""
    rows: list[tuple[str, ...]] = []
    for model in known_models():
        f1 = model.reference.get("avg_command_f1")
        rows.append(
            (
                model.path.stem,
                model.hub_id or "(included in edge)",
                model.default_quant,
                f"{model.context:,}",
                f"{model.memory_gb:g} GB",
                "-" if f1 is None else f"{f1:.4f}",
            )
        )
    return rows


def converted_rows() -> list[tuple[str, ...]]:
    """Each GGUF in ./models and the cache folder, newest first: path, quantization type, size, architecture.

    For a damaged file, the error is in the place of the type.
    """
    from edge.formats.gguf import (
        read_model_file,
    )  # imports numpy and gguf, which the known models do not need

    rows: list[tuple[str, ...]] = []
    for path in converted_models():
        try:
            model = read_model_file(path)
        except EdgeError as error:
            rows.append((str(path), f"unusable: {str(error).removeprefix(f'{path}: ')}", "-", "-"))
        else:
            rows.append((str(path), model.file_type, size(model.n_bytes), model.architecture))
    return rows
