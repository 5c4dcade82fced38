"""The commands `edge convert`, `edge imatrix`, `edge inspect` and `edge doctor`.

They import heavy modules only when they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edge.cli.common import (
    Threads,
    echo_json,
    is_given,
    note,
    note_unless,
    progress_line,
    show,
    warn,
)
from edge.cli.options import (
    Force,
    Offline,
    Revision,
    Rpc,
    Silent,
    Verbose,
    bytes_of,
    spread_of,
)
from edge.cli.pull import Yes
from edge.system.paths import DEFAULT_QUANT
from edge.system.text import size

if TYPE_CHECKING:
    from edge.convert import Converted

AUTO = "auto"


def convert(
    command: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Hugging Face checkpoint: a folder, a known name or a hub id (owner/name). With --base: the folder of "
            "a LoRA adapter.",
        ),
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            "-q",
            help="Quantization type: f32, f16, bf16, Q8_0, Q4_K_M, … The error for an unknown type lists them all. "
            "Default: that of the name (org/repo:Q8_0) or of the known model, else Q4_K_M. With --base: f32 (the "
            "default), f16, bf16 or q8_0. auto: the types with the smallest loss at a size, measured on --calibrate.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="GGUF to write. Default: <name>-<quant>.gguf in the store."
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
    target_size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="SIZE", help="With --quant auto: maximum size of the file, such as 5.15GB."
        ),
    ] = None,
    bpw: Annotated[
        float | None,
        typer.Option("--bpw", metavar="BITS", help="With --quant auto: maximum bits per weight."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="TYPE", help="With --quant auto: no larger than a file of this type."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            "--speed",
            metavar="SHARE",
            help="With --quant auto: minimum speed, as a share of the tokens per second of llama.cpp's type of this "
            "size, such as 0.9 or 1.2. edge times each type on this machine.",
        ),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            metavar="TYPES",
            help="With --quant auto: ggml types to leave out, separated by commas, or beginnings of their names, "
            "such as iq.",
        ),
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(
            "--measure",
            metavar="ROWS",
            help="With --quant auto: other rows, to measure the finished file on.",
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="LoRA adapter to merge into the checkpoint.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Base of the LoRA adapter SOURCE: a folder, a known name or a hub id. edge writes the adapter as a "
            "separate GGUF, for --lora of other commands.",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Type for tensors whose name matches PATTERN. Repeatable."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Types for tensors: lines PATTERN=TYPE, as for --tensor-type-file of llama-quantize, or a GGUF that "
            "was made with a recipe. --quant is for the tensors that no line matches.",
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type for the output matrix.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type for the token embeddings.")
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    yes: Yes = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Compare llama.cpp's tokenization with that of the checkpoint."
        ),
    ] = True,
    threads: Threads = None,
    force: Force = False,
    quiet: Silent = False,
    verbose: Verbose = False,
) -> None:
    """Convert a Hugging Face checkpoint to a quantized GGUF.

    With --lora, edge merges a LoRA adapter into it. With --base, it converts an adapter alone.
    """
    if base is not None:
        _check_options(command, _MODELS_ONLY, "is for a model; --base converts an adapter")
        where = _Base(base, revision, offline, yes)
        return _convert_adapter(source, where, quant, out, force=force, quiet=quiet)
    if quant is not None and quant.lower() == AUTO:
        _check_options(command, _NOT_AUTO, "--quant auto chooses the types itself")
        limits = (target_size, bpw, like, speed, exclude)
        auto = _Auto(limits, calibrate, measure, out, threads, force, quiet)
        return auto.convert(source, revision, offline=offline, yes=yes)
    _check_options(command, _AUTO_ONLY, "is for --quant auto")
    overrides = _overrides(tensor_type or [])
    from edge.cli.defaults import checkpoint_source
    from edge.conversion.recipe import read_recipe
    from edge.convert import TensorTypes, check_options
    from edge.convert import convert as run_convert

    lines = None if recipe is None else read_recipe(recipe)
    types = TensorTypes(overrides, output_tensor_type, token_embedding_type, lines)

    def check_first(named: str | None) -> None:
        check_options(quant or named or DEFAULT_QUANT, out, imatrix, calibrate, lora, types, threads)

    found = checkpoint_source(
        source, revision=revision, offline=offline, yes=yes, check=check_first, quiet=quiet
    )
    converted = run_convert(
        found.text,
        quant=quant or found.quant or DEFAULT_QUANT,
        out=out,
        imatrix=imatrix,
        calibrate=calibrate,
        lora=lora,
        tensor_types=types,
        hub=found.hub,
        check=check,
        force=force,
        threads=threads,
        say=None if quiet else progress_line,
    )
    _tell(converted, quiet)


def _overrides(pairs: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of --tensor-type. Raises typer.BadParameter."""
    found = [(pattern, kind) for pattern, _, kind in (pair.partition("=") for pair in pairs)]
    if not all(pattern and kind for pattern, kind in found):
        raise typer.BadParameter(
            "must be PATTERN=TYPE, for example ffn_down=q6_k", param_hint="--tensor-type"
        )
    return found


def _tell(converted: "Converted", quiet: bool, quant: str | None = None) -> None:
    """Print what the user must know about a conversion, and the file. Warnings are printed also with `quiet`."""
    for warning in converted.template.warnings:
        warn(warning)
    for text in (*converted.warnings, converted.template.note):
        if text:
            note_unless(quiet)(text)
    _tell_replaced(converted.path, converted.replaced and not quiet)
    show(
        f"{converted.path}: {quant or converted.quant}, {size(converted.n_bytes)}, "
        f"{converted.bits_per_weight:.2f} bits per weight, {converted.seconds:.1f} s\nSHA-256 {converted.sha256}"
    )


def _tell_replaced(path: Path, replaced: bool) -> None:
    if replaced:
        note(f"{path}: was there before; edge converted again and replaced it")


_MODELS_ONLY = (
    "imatrix calibrate target_size bpw like speed exclude measure lora tensor_type recipe output_tensor_type "
    "token_embedding_type check threads verbose"
).split()


_AUTO_ONLY = "target_size bpw like speed exclude measure".split()
_NOT_AUTO = "imatrix lora tensor_type recipe output_tensor_type token_embedding_type check".split()


def _check_options(command: typer.Context, names: Sequence[str], why: str) -> None:
    """Raises typer.BadParameter for an option that was given, but belongs to another kind of conversion."""
    for name in names:
        if is_given(command, name):
            option = "--size" if name == "target_size" else "--" + name.replace("_", "-")
            raise typer.BadParameter(why, param_hint=option)


@dataclass(frozen=True)
class _Auto:
    """The options of `--quant auto`. `wanted`: --size, --bpw, --like, --speed and --exclude."""

    wanted: tuple[str | None, float | None, str | None, float | None, str | None]
    calibrate: Path | None
    measure: Path | None
    out: str | None
    threads: int | None
    force: bool
    quiet: bool

    def convert(self, source: str, revision: str | None, *, offline: bool, yes: bool) -> None:
        """Search, write the file, and print what was found."""
        from edge.cli.defaults import checkpoint_source
        from edge.mixing.run import Target, check_mix, mix

        size_text, bits, like, speed, exclude = self.wanted
        without = () if exclude is None else tuple(exclude.replace(" ", "").split(","))
        n_bytes = None if size_text is None else bytes_of(size_text, "--size")
        target = Target(n_bytes, bits, like, speed, without)
        rows = self.calibrate
        if rows is None:
            raise typer.BadParameter("--quant auto needs replay rows to measure on", param_hint="--calibrate")

        def check_first(_: str | None) -> None:
            check_mix(target, rows, self.measure, self.out)

        found = checkpoint_source(
            source, revision=revision, offline=offline, yes=yes, check=check_first, quiet=self.quiet
        )
        mixed = mix(
            found.text,
            target,
            rows,
            out=self.out,
            measure_on=self.measure,
            hub=found.hub,
            force=self.force,
            threads=self.threads,
            say=None if self.quiet else progress_line,
        )
        _tell(mixed.converted, self.quiet, "auto" if mixed.taken is None else None)
        show(mixed.to_text(source))


class _Base(NamedTuple):
    """The base of an adapter, and how it may be downloaded."""

    source: str
    revision: str | None
    offline: bool
    yes: bool


def _convert_adapter(
    folder: str, base: _Base, quant: str | None, out: str | None, *, force: bool, quiet: bool
) -> None:
    from edge.cli.defaults import checkpoint_source
    from edge.conversion.adapter import DEFAULT_ADAPTER_QUANT, checked_type, convert_adapter
    from edge.formats.lora import check_adapter

    kind = checked_type(quant or DEFAULT_ADAPTER_QUANT)
    check_adapter(Path(folder))
    found = checkpoint_source(
        base.source, revision=base.revision, offline=base.offline, yes=base.yes, quiet=quiet
    )
    converted = convert_adapter(folder, found.text, quant=kind, out=out, hub=found.hub, force=force)
    for warning in converted.warnings:
        note_unless(quiet)(warning)
    _tell_replaced(converted.path, converted.replaced and not quiet)
    ranks = ", ".join(map(str, converted.ranks))
    show(
        f"{converted.path}: LoRA adapter, {converted.quant}, {size(converted.n_bytes)}, {converted.weights} weights, "
        f"rank {ranks}, alpha {converted.alpha:g}, {converted.seconds:.1f} s\nSHA-256 {converted.sha256}"
    )


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="GGUF to inspect.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and check all tensor data.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Its checkpoint (folder or hub id): convert every tensor again and compare.",
        ),
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix that the GGUF was made with.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="LoRA adapter that the GGUF was made with.")
    ] = None,
    yes: Yes = False,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Show what a GGUF contains, its origin and any damage.

    The exit code is 1 if something is wrong with the file.
    """
    from edge.cli.defaults import checkpoint_source, chosen_model
    from edge.conversion.inspect import inspect as run_inspect

    path = chosen_model(file, note, offline=offline, yes=yes)
    if source is not None:
        found = checkpoint_source(source, revision=revision, offline=offline, yes=yes)
        source, revision, offline = found.text, found.hub.revision, found.hub.offline
    inspected = run_inspect(
        path,
        verify=verify,
        source=source,
        revision=revision,
        offline=offline,
        imatrix=imatrix,
        lora=lora,
        threads=threads,
    )
    echo_json(inspected.to_json()) if as_json else show(inspected.to_text())
    if not inspected.ok:
        raise typer.Exit(1)


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="Check whether this GGUF fits. Default with --offline: the default model.",
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
    rpc: Rpc = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, devices and memory, and whether a model fits.

    With --offline, edge tries everything that it needs without a network. The exit code is 1 if it is not ready.
    """
    from edge.cli.defaults import chosen_model

    path = None if model is None else chosen_model(model, note, offline=offline)
    if offline:
        from edge.airgap.ready import offline as run_offline

        readiness = run_offline(path, context)
        echo_json(readiness.to_json()) if as_json else show(readiness.to_text())
        if not readiness.ready:
            raise typer.Exit(1)
        return
    from edge.airgap.doctor import doctor as run_doctor

    report = run_doctor(path, context, rpc=spread_of(rpc, None, None, None).rpc)
    echo_json(report.to_json()) if as_json else show(report.to_text())
