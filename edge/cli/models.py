"""The commands about model files: convert, imatrix, inspect, models, doctor. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import Interrupted, Threads, note, table
from edge.errors import EdgeError
from edge.replay.known import known_models
from edge.system.paths import converted_models


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A Hugging Face checkpoint: a folder or a hub id (owner/name)."
        ),
    ],
    quant: Annotated[
        str,
        typer.Option(
            "--quant",
            "-q",
            help="f32, f16, bf16 or a type of llama.cpp: Q8_0, Q4_K_M, …; an unknown one lists all.",
        ),
    ] = "Q4_K_M",
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="<path>", help="Default: models/<name>-<quant>.gguf.")
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix: a GGUF of edge imatrix or llama-imatrix."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="ROWS", help="Replay rows (JSON Lines) to make an importance matrix from first."
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A LoRA adapter of the checkpoint to merge.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE", help="Another type for tensors whose name has PATTERN; repeatable."
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Another type for the output matrix.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Another type for the token embeddings.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is in the hub's cache.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Compare llama.cpp's tokenization with the checkpoint's."),
    ] = True,
    threads: Threads = None,
) -> None:
    """Turn a Hugging Face checkpoint into a quantized GGUF."""
    overrides = []
    for pair in tensor_type or []:
        pattern, _, kind = pair.partition("=")
        overrides.append((pattern, kind))
    if not all(pattern and kind for pattern, kind in overrides):
        raise typer.BadParameter("must be PATTERN=TYPE, such as ffn_down=q6_k", param_hint="--tensor-type")

    from edge.convert import TensorTypes
    from edge.convert import convert as run_convert

    try:
        done = run_convert(
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
            say=lambda line: typer.echo(line, err=True),
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; nothing was written") from None
    for warning in done.warnings:
        note(warning)
    typer.echo(
        f"{done.path}: {done.quant}, {done.n_bytes / 1e6:,.1f} MB, {done.bits_per_weight:.2f} bits per weight, "
        f"{done.seconds:.1f} s\nSHA-256 {done.sha256}"
    )


def imatrix(
    model: Annotated[Path, typer.Option("--model", "-m", help="A GGUF, best one that is not quantized.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The GGUF of the matrix to write.")],
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines) with references."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text, cut as llama-imatrix cuts it.")] = None,
    chunk: Annotated[int, typer.Option(min=2, help="Tokens of a chunk of text.")] = 512,
    ctx: Annotated[
        int | None, typer.Option(min=2, help="Leave out rows of more tokens. Default: what the model has.")
    ] = None,
    process_output: Annotated[
        bool,
        typer.Option("--process-output", help="Take in the output matrix too."),
    ] = False,
    gpu_layers: Annotated[
        int, typer.Option("--gpu-layers", min=-1, help="Layers to offload; -1 is all.")
    ] = -1,
    threads: Threads = None,
) -> None:
    """Compute an importance matrix from real sessions. Interrupted, it goes on when started again."""
    if (replay is None) == (text is None):
        raise typer.BadParameter("give one of --replay and --text", param_hint="--replay")

    from edge.measure.calibrate import calibrate
    from edge.system.progress import bar

    try:
        with bar("reading", show=True, unit="tokens") as watch:
            done = calibrate(
                model,
                out,
                rows=replay,
                text=text,
                chunk=chunk,
                context=ctx,
                threads=threads,
                gpu_layers=gpu_layers,
                process_output=process_output,
                progress=watch,
            )
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; run the same command again to go on") from None
    typer.echo(done)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all of its data and check it.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Its checkpoint, a folder or hub id: make every tensor anew and compare."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is in the hub's cache.")] = False,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The importance matrix that it was made with.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The LoRA adapter that it was made with.")
    ] = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")] = False,
) -> None:
    """Show what a GGUF is, where it comes from, and what is wrong with it, if anything is."""
    from edge.conversion.inspect import inspect as run_inspect

    found = run_inspect(
        file,
        verify=verify,
        source=source,
        revision=revision,
        offline=offline,
        imatrix=imatrix,
        lora=lora,
        threads=threads,
    )
    typer.echo(found.to_json() if as_json else found.to_text())
    if not found.ok:
        raise typer.Exit(1)


def models() -> None:
    """List the known models and the GGUFs at hand."""
    pass

    table(["known model", "hub id", "quant", "default context", "memory", "published F1"], known_rows())
    files = converted_rows()
    typer.echo()
    if files:
        table(["GGUF", "type", "size", "architecture"], files)
    else:
        typer.echo("No GGUF in models/ yet; `edge convert SOURCE` makes one.")


def doctor(
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Would this GGUF fit?")] = None,
    ctx: Annotated[int | None, typer.Option(min=1, help="Context in tokens to reckon with.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Try all that edge needs without a network; 1 if not ready.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")] = False,
) -> None:
    """Show versions, devices, memory; would a model fit, is all there to work without a network?"""
    if offline:
        from edge.airgap.ready import offline as run_offline

        ready = run_offline(model, ctx)
        typer.echo(ready.to_json() if as_json else ready.to_text())
        if not ready.ready:
            raise typer.Exit(1)
        return
    from edge.airgap.doctor import doctor as run_doctor

    report = run_doctor(model, ctx)
    typer.echo(report.to_json() if as_json else report.to_text())


def known_rows() -> list[tuple[str, ...]]:
    """Each known model for `edge models`: name, hub id, quantization, context, memory, published F1."""
    rows: list[tuple[str, ...]] = []
    for model in known_models():
        f1 = model.reference.get("avg_command_f1")
        rows.append(
            (
                model.path.stem,
                model.hub_id or "(ships with edge)",
                model.default_quant,
                f"{model.context:,}",
                f"{model.memory_gb:g} GB",
                "-" if f1 is None else f"{f1:.4f}",
            )
        )
    return rows


def converted_rows() -> list[tuple[str, ...]]:
    """Each GGUF in ./models and the cache folder, newest first: path, type, size, architecture.

    A damaged file is listed with what is wrong in place of its type.
    """
    from edge.formats.gguf import read_model_file  # numpy and gguf: not needed to read TOML

    rows: list[tuple[str, ...]] = []
    for path in converted_models():
        try:
            model = read_model_file(path)
        except EdgeError as error:
            rows.append((str(path), f"unusable: {str(error).removeprefix(f'{path}: ')}", "-", "-"))
        else:
            rows.append((str(path), model.file_type, f"{model.n_bytes / 1e6:,.1f} MB", model.architecture))
    return rows
