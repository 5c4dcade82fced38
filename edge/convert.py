"""`edge convert`: turn a Hugging Face checkpoint into a GGUF, quantized or not.

The conversion is one pass: edge reads each tensor from the checkpoint, quantizes it and writes it to its place in the
output, without an intermediate file. It writes the header first and leaves a hole for the data. llama.cpp reads that
header to tokenize a test text and to choose the type of each tensor.
"""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.conversion.adapter import ConvertedAdapter, convert_adapter
from edge.conversion.families import make_plan, settled
from edge.conversion.header import Placed, write_header
from edge.conversion.importance import Importance, needs_weights, read_importance
from edge.conversion.output import Replaced, header_run, output_place, sources
from edge.conversion.plan import Plan, TensorPlan
from edge.conversion.recipe import Recipe
from edge.conversion.template import Findings, examine, rendering_warnings, vocabulary_tokens
from edge.conversion.tokenizer import Vocabulary, make_vocabulary
from edge.conversion.tokenizer_check import check_tokenization
from edge.conversion.weights import FLOATS, Output, write_weights
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.checksum import seal
from edge.formats.gguf import read_model_file, remember, sha256
from edge.formats.hub import NEWEST, HubOptions
from edge.formats.imatrix import read_imatrix
from edge.formats.lora import check_adapter, merge_lora
from edge.formats.own_files import mark_written
from edge.llama import ggml
from edge.llama.types import FTYPES, NEEDS_IMATRIX, choose_types, type_name
from edge.replay.rows import read_rows
from edge.system.files import allocate, temporary_file, whole_file
from edge.system.hashes import package_version
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.outputs import check_output
from edge.system.paths import DEFAULT_QUANT
from edge.system.places import check_disk
from edge.system.progress import bar
from edge.system.text import counted, did_you_mean

__all__ = ["Converted", "ConvertedAdapter", "TensorTypes", "convert", "convert_adapter"]

_IDLE_TYPE = "q4_k"  # its blocks are as long as those of the types that need a matrix
_OTHER_PLACE = "choose another place with --out"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Converted:
    """A finished conversion. `quant` is the type's name: f32, f16, bf16, otherwise llama.cpp's name in upper case.

    `n_bytes` is the size of the whole file. `bits_per_weight` counts its tensors only. `template`: what edge found in
    the chat template. `replaced`: whether a file was there before.
    """

    path: Path
    quant: str
    n_bytes: int
    bits_per_weight: float
    seconds: float
    sha256: str
    warnings: tuple[str, ...]
    replaced: bool = False
    template: Findings = field(default_factory=Findings)


@dataclass(frozen=True)
class TensorTypes:
    """Types for single tensors, used instead of llama.cpp's choice. Each is a ggml type name in any case, such as q6_k.

    `patterns`: pairs of a regular expression and a type; the first expression found in a tensor's name counts.
    `output`: the type of the output matrix. `embedding`: the type of the token embeddings.
    `recipe`: more patterns, which count after `patterns`. The file keeps the lines of both in its metadata.
    """

    patterns: Sequence[tuple[str, str]] = ()
    output: str | None = None
    embedding: str | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class _Types:
    """The types to write: `quant`, one of QUANT_TYPES, and the ggml numbers for single tensors.

    `recipe`: what the metadata says of `patterns`; None if they came without a recipe.
    """

    quant: str
    patterns: tuple[tuple[str, int], ...] = ()
    output: int | None = None
    embedding: int | None = None
    recipe: Recipe | None = None

    @property
    def shown(self) -> str:
        return self.quant.lower() if self.quant in FLOATS else self.quant


@dataclass(frozen=True)
class _Model:
    """The model to convert, and how: `threads` None means the physical cores, `say` None means silent."""

    checkpoint: Checkpoint
    plan: Plan
    vocabulary: Vocabulary
    check: bool
    threads: int | None
    say: Say | None


def convert(
    source: str | Path,
    *,
    quant: str = DEFAULT_QUANT,
    out: str | Path | None = None,
    imatrix: str | Path | None = None,
    calibrate: str | Path | None = None,
    lora: str | Path | None = None,
    tensor_types: TensorTypes | None = None,
    hub: HubOptions = NEWEST,
    check: bool = True,
    force: bool = False,
    threads: int | None = None,
    say: Say | None = None,
) -> Converted:
    """Convert a checkpoint folder or hub id to a GGUF of type `quant`, one of QUANT_TYPES in any case.

    `out`: a file or a folder, by default <name>-<quant>.gguf in the user's model store (edge.system.store). If it is a
    link, edge writes the file that the link points to; not through a link in the store.
    `imatrix`: an importance matrix, a GGUF from `edge imatrix` or llama-imatrix.
    `calibrate`: replay rows to compute an importance matrix from. edge first writes the checkpoint in its own dtype to
    a temporary file, and keeps the matrix as <out>.imatrix.
    `lora`: the folder of an adapter to merge. `tensor_types`: types for single tensors.
    `check`: compare llama.cpp's tokenization with the tokenizers package before anything is quantized.
    `force`: replace a file of another conversion: one with other metadata, tensors or types.
    `say`: receives each line about the progress. If it is given, stderr shows progress bars on a terminal.

    Raises CheckpointError or ConversionError if the input or the output is unusable; then `out` is unchanged.
    """
    begin = time.monotonic()
    types = check_options(quant, out, imatrix, calibrate, lora, tensor_types, threads)  # before the download
    checkpoint = settled(open_checkpoint(source, revision=hub.revision, offline=hub.offline))
    if lora is not None:
        make_plan(checkpoint)  # a base that lacks a matrix is refused, even if the adapter would bring it
        checkpoint = merge_lora(checkpoint, Path(lora))
    plan = make_plan(checkpoint)
    model = _Model(checkpoint, plan, make_vocabulary(checkpoint, plan.n_vocab), check, threads, say)
    out, place = output_place(out, f"{checkpoint.name}-{types.shown}.gguf")
    inputs = [
        *_files(checkpoint),
        checkpoint.folder,
        imatrix,
        calibrate,
        *([] if lora is None else [Path(lora)]),
        None if types.recipe is None else types.recipe.path,
    ]
    check_output(out, inputs, error=ConversionError, streams=False)
    replaced = Replaced.at(out, force)
    made_from = sources(
        checkpoint=checkpoint.hub_id or checkpoint.folder, lora=lora, imatrix=imatrix, calibrate=calibrate
    )
    replaced.check_sources(made_from)
    replaced.check({"architecture": plan.architecture, "type": types.quant})
    warnings = _warnings(model)
    try:
        if calibrate is not None:
            imatrix = _calibrated(model, place, Path(calibrate), inputs, force)
        with whole_file(place) as (temporary, descriptor):
            warnings += _write(temporary, descriptor, model, types, imatrix, replaced)
            written, digest = read_model_file(temporary), sha256(temporary)
        remember(place, "made_from", made_from)
        remember(place, "sha256", digest)  # saves the next reader a full pass over the file
        remember(place, "crc32", "right")
        mark_written(place, digest)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from None
    seconds = time.monotonic() - begin
    return Converted(
        path=out,
        quant=types.shown,
        n_bytes=written.n_bytes,
        bits_per_weight=written.bits_per_weight,
        seconds=seconds,
        sha256=digest,
        warnings=tuple(warnings),
        replaced=replaced.there,
        template=examine(checkpoint.chat_template or "", vocabulary_tokens(model.vocabulary)),
    )


def check_options(
    quant: str,
    out: str | Path | None,
    imatrix: str | Path | None,
    calibrate: str | Path | None,
    lora: str | Path | None,
    tensor_types: TensorTypes | None,
    threads: int | None,
) -> _Types:
    """Check the arguments of `convert` that need no checkpoint, before a download. Raises what it raises."""
    types = _checked_types(quant, tensor_types or TensorTypes())
    _check_options(types, imatrix, calibrate, threads)
    output_place(out, f"model-{types.shown}.gguf")
    if imatrix is not None:
        read_imatrix(imatrix)
    if calibrate is not None:
        read_rows(calibrate)
    if lora is not None:
        check_adapter(Path(lora))
    return types


def check_quant(quant: str, *, has_imatrix: bool) -> str:
    """The name of a type as files use it: f32, f16, bf16, otherwise llama.cpp's name in upper case.

    Raises ConversionError if the type is unknown, or if it needs an importance matrix and `has_imatrix` is False.
    """
    name = type_name(quant)
    if name in NEEDS_IMATRIX and not has_imatrix:
        raise ConversionError(
            f"{name} needs an importance matrix: give one with --imatrix, compute one from replay rows with "
            "--calibrate, or choose Q2_K or a larger type"
        )
    return name.lower() if name in FLOATS else name


# --- checks before the work ---


def _checked_types(quant: str, single: TensorTypes) -> _Types:
    """The types by their canonical names and numbers. Raises ConversionError, with its option, if one is unknown."""
    try:
        name = type_name(quant)
    except ConversionError as error:
        raise ConversionError(str(error), option="--quant") from None
    if name in FLOATS and (single.patterns or single.output or single.embedding or single.recipe):
        raise ConversionError(f"{name} is not a quantized type: types for single tensors cannot be set")
    recipe = single.recipe
    if recipe is not None:
        if single.output or single.embedding:
            raise ConversionError("a recipe names the types of all tensors: add a line to it instead")
        recipe = replace(recipe, lines=(*single.patterns, *recipe.lines))
    patterns = single.patterns if recipe is None else recipe.lines
    given = len(single.patterns)

    def number(kind: str, option: str) -> int:
        if kind.lower() not in ggml.types():
            meant = did_you_mean(kind, ggml.types())
            raise ConversionError(
                f"{kind} is not a ggml type; {f'{meant} All types: ' if meant else 'choose one of '}"
                f"{', '.join(sorted(ggml.types()))}",
                option=option,
            )
        return ggml.types()[kind.lower()]

    return _Types(
        name,
        # llama-quantize changes the pattern to lower case too
        tuple(
            (pattern.lower(), number(kind, "--tensor-type" if i < given else "--recipe"))
            for i, (pattern, kind) in enumerate(patterns)
        ),
        None if single.output is None else number(single.output, "--output-tensor-type"),
        None if single.embedding is None else number(single.embedding, "--token-embedding-type"),
        recipe,
    )


def _check_options(
    types: _Types, imatrix: str | Path | None, calibrate: str | Path | None, threads: int | None
) -> None:
    if imatrix is not None and calibrate is not None:
        raise ConversionError("--imatrix and --calibrate cannot be used together: give one of them")
    if types.quant in FLOATS and (imatrix or calibrate):
        raise ConversionError(
            f"{types.shown} is not a quantized type and uses no importance matrix: "
            "omit --imatrix and --calibrate"
        )
    check_quant(types.quant, has_imatrix=imatrix is not None or calibrate is not None)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConversionError(f"{threads} threads: llama.cpp takes 1 to {MAX_THREADS}")


def _files(checkpoint: Checkpoint) -> list[Path]:
    """The files of a checkpoint that the output must not replace."""
    tokenizers = (checkpoint.folder / "tokenizer.json", checkpoint.tokenizer_file)
    return [*(tensor.file for tensor in checkpoint.tensors.values()), *tokenizers]


def _warnings(model: _Model) -> list[str]:
    """What the user must know about the checkpoint. Raises ConversionError if its chat template is hostile."""
    checkpoint, vocabulary = model.checkpoint, model.vocabulary
    template = rendering_warnings(checkpoint, vocabulary)
    return [*checkpoint.notes, *checkpoint.card.notes, *model.plan.notes, *template, *vocabulary.warnings]


# --- the work ---


def _calibrated(
    model: _Model, place: Path, rows: Path, inputs: Sequence[Path | str | None], force: bool
) -> Path:
    """Compute the importance matrix of a checkpoint from replay rows. An interrupted run resumes where it stopped."""
    from edge.llama.loading import Loading
    from edge.measure.calibrate import calibrate

    read_rows(rows)  # reports bad rows before the long work
    matrix = place.with_name(place.name + ".imatrix")
    check_output(matrix, inputs, error=ConversionError)
    with temporary_file(place) as (floats, descriptor):
        _write(floats, descriptor, model, _Types(model.checkpoint.dtype), None)
        mark_written(floats)
        loading = Loading(threads=model.threads)
        with bar("calibrating", model.say, unit="tokens") as watch:
            done = calibrate(floats, matrix, rows=rows, loading=loading, force=force, progress=watch)
    if model.say is not None:
        for line in str(done).splitlines():
            model.say(line)
    return matrix


def _write(
    path: Path,
    descriptor: int,
    model: _Model,
    types: _Types,
    imatrix: str | Path | None,
    replaced: Replaced | None = None,
) -> list[str]:
    """Write the whole file. Returns the warnings about its types. `replaced`: what must be of the same conversion."""
    plan, quantized = model.plan, types.quant not in FLOATS
    kind = model.checkpoint.dtype if quantized else types.quant
    floats = [(tensor, FLOATS[_kind(tensor, kind)]) for tensor in plan.tensors]
    placed, n_bytes = _header(path, model, floats, kind)
    # Before the types are known: every type uses at least one bit for each weight.
    check_disk(
        path.parent,
        sum(t.n_values for t in plan.tensors) // 8 if quantized else n_bytes,
        _OTHER_PLACE,
        error=ConversionError,
    )
    # llama.cpp checks that the data is there; a hole is enough where the file system supports holes.
    os.truncate(path, n_bytes)
    if model.check:
        vocabulary, where = model.vocabulary, model.checkpoint.tokenizer_file
        check_tokenization(
            path, vocabulary.compared, add_special=vocabulary.ends, space=vocabulary.space, where=where
        )
    importance = read_importance(imatrix, plan)
    warnings = [*importance.warnings]
    if quantized:
        chosen, notes = _chosen(path, plan, types, None if imatrix is None else importance)
        warnings += notes
        recipe = () if types.recipe is None else types.recipe.metadata
        placed, n_bytes = _header(path, model, chosen, types.quant, (*importance.metadata, *recipe))
    outputs = [
        Output(
            tensor=each.tensor,
            kind=_kind(each.tensor, kind),
            type=each.type,
            offset=each.offset,
            n_bytes=each.n_bytes,
            importance=importance.of(each, _kind(each.tensor, kind), types.quant),
        )
        for each in placed
    ]
    check_disk(path.parent, n_bytes, _OTHER_PLACE, error=ConversionError)
    allocate(descriptor, n_bytes)
    if replaced is not None:
        replaced.check(header_run(path))
    text = f"quantizing to {types.quant}" if quantized else f"writing {kind}"
    with bar(text, model.say, unit="bytes") as watch:
        write_weights(descriptor, outputs, model.threads or min(physical_cores(), MAX_THREADS), watch)
    seal(path, descriptor)
    return warnings


def _kind(tensor: TensorPlan, kind: str) -> str:
    return "F32" if tensor.f32 else kind


def _header(
    path: Path,
    model: _Model,
    types: Sequence[tuple[TensorPlan, int]],
    quant: str,
    further: Sequence[tuple[str, int | str]] = (),
) -> tuple[list[Placed], int]:
    sized = []
    for tensor, number in types:
        columns = tensor.shape[-1]
        sized.append((tensor, number, tensor.n_values // columns * ggml.row_bytes(number, columns)))
    return write_header(path, model.checkpoint, model.plan, model.vocabulary, sized, FTYPES[quant], further)


def _chosen(
    path: Path, plan: Plan, types: _Types, importance: Importance | None
) -> tuple[list[tuple[TensorPlan, int]], list[str]]:
    """Each tensor with the type that llama.cpp chooses, in the order in which it writes them; and warnings."""
    try:
        choice = choose_types(
            path,
            FTYPES[types.quant],
            has_imatrix=importance is not None,
            output_type=types.output,
            embedding_type=types.embedding,
            overrides=types.patterns,
        )
    except ConversionError as error:
        if error.option == "--tensor-type" and types.recipe is not None and types.recipe.path is not None:
            raise ConversionError(f"{types.recipe.path}: {error}", option="--recipe") from None
        raise
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    if choice.types.keys() != by_name.keys():
        installed = package_version("llama-cpp-python")
        raise ConversionError(
            f"llama-cpp-python {installed} does not report which types it chooses; install 0.3.36"
        )
    warnings = _unmatched(types, by_name)
    if choice.fallbacks:
        warnings.append(
            f"{choice.fallbacks} of {len(plan.tensors)} tensors use another type, because their rows cannot be "
            f"divided into {types.quant} blocks"
        )
    chosen = [(by_name[name], ggml.types()[kind]) for name, kind in choice.types.items()]
    if importance is not None:
        chosen, notes = _without_weights(chosen, types, importance)
        warnings += notes
    return chosen, warnings


def _unmatched(types: _Types, names: Iterable[str]) -> list[str]:
    """A warning for patterns that match no tensor. Raises ConversionError if the recipe is one of another model."""
    missing = [pattern for pattern, _ in types.patterns if not _matches(pattern, names)]
    if types.recipe is None or not missing:
        return [f"--tensor-type {pattern}: no tensor name matches it" for pattern in missing]
    where = types.recipe.path or "the recipe"
    if len(missing) == len(types.patterns):
        raise ConversionError(f"{where}: is a recipe for another model: no tensor has a name that it matches")
    lines = f"{len(missing)} of {counted(len(types.patterns), 'line')}"
    return [f"{where}: {lines} match no tensor of this model, such as {missing[0]}"]


def _without_weights(
    chosen: list[tuple[TensorPlan, int]], types: _Types, importance: Importance
) -> tuple[list[tuple[TensorPlan, int]], list[str]]:
    """The types, with a larger one for what llama.cpp does not run: a matrix that it computed cannot have its weights.

    A type that the user chose for a tensor stays.
    """
    larger = ggml.types()[_IDLE_TYPE]
    changed = {
        tensor.name
        for tensor, number in chosen
        if tensor.idle
        and tensor.name not in importance.weights
        and needs_weights(tensor.name, number, types.quant)
        and not any(_matches(pattern, [tensor.name]) for pattern, _ in types.patterns)
    }
    if not changed:
        return chosen, []
    note = (
        f"{counted(len(changed), 'tensor')} in {_IDLE_TYPE.upper()}, not in a type that needs an importance matrix: "
        f"edge does not run them, so the matrix has no weights for them (such as {min(changed)})"
    )
    return [(t, larger if t.name in changed else number) for t, number in chosen], [note]


def _matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a regular expression is found in a name. True if llama.cpp accepts the expression and Python does not."""
    try:
        with warnings.catch_warnings():  # of Python about patterns that C++ reads otherwise
            warnings.simplefilter("ignore", FutureWarning)
            return any(re.search(pattern, name) for name in names)
    except (re.error, RecursionError, OverflowError):
        return True
