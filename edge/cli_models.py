"""The commands about model files: convert, models, doctor. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option(min=1, max=512, help="Default: the physical cores.")]


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

    from edge.convert import convert as run_convert

    done = run_convert(
        source,
        quant=quant,
        out=out,
        imatrix=imatrix,
        tensor_types=overrides,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        revision=revision,
        offline=offline,
        check=check,
        threads=threads,
        progress=True,
    )
    for warning in done.warnings:
        note(warning)
    typer.echo(
        f"{done.path}: {done.quant}, {done.n_bytes / 1e6:,.1f} MB, {done.bits_per_weight:.2f} bits per weight, "
        f"{done.seconds:.1f} s\nSHA-256 {done.sha256}"
    )


def models() -> None:
    """List the known models and the GGUFs at hand."""
    from edge.known import converted_rows, known_rows

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
) -> None:
    """Show versions, devices, memory; would a model fit?"""
    from edge.doctor import doctor as run_doctor

    typer.echo(str(run_doctor(model, ctx)))


def note(text: str) -> None:
    """A line on stderr that is no error."""
    typer.echo(f"note: {text}", err=True)


def table(header: list[str], rows: list[tuple[str, ...]]) -> None:
    """Columns on stdout."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
