"""A Hugging Face checkpoint turned into a GGUF, quantized or not: `edge convert`.

One pass: every tensor is read from the checkpoint, quantized and written to its place in the output, with no file
in between. The header is written first, with a hole in place of the data: llama.cpp reads it to prove that it
tokenizes as the checkpoint does, and to choose each tensor's type.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.conversion.families import make_plan
from edge.conversion.header import Placed, write_header
from edge.conversion.plan import Plan, TensorPlan
from edge.conversion.tokenizer import Vocabulary, make_vocabulary
from edge.conversion.tokenizer_check import check_tokenization
from edge.conversion.weights import FLOATS, Output, write_weights
from edge.errors import ConversionError, PromptError
from edge.formats.chat_template import find_hostile
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.checksum import seal
from edge.formats.gguf import read_model_file, remember, sha256
from edge.formats.lora import merge_lora
from edge.llama import ggml
from edge.llama.types import FTYPES, NEEDS_IMATRIX, choose_types, type_name
from edge.prompt import render_chat_template
from edge.replay.rows import read_rows
from edge.system.files import allocate, temporary_file, whole_file
from edge.system.hashes import package_version
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.paths import model_folder
from edge.system.places import check_place, place_of
from edge.system.progress import bar
from edge.system.text import size

__all__ = ["Converted", "convert"]

# As llama.cpp's quantizer has it: below these types a tensor is garbage without an importance matrix. ggml itself
# asks for one for fewer types.
_LOW_BIT = ("iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Converted:
    """A finished conversion. `quant` is the type's name: f32, f16, bf16, else llama.cpp's in upper case.

    `n_bytes` is the whole file's size, `bits_per_weight` that of its tensors.
    """

    path: Path
    quant: str
    n_bytes: int
    bits_per_weight: float
    seconds: float
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Wish:
    """What the types are chosen by: `quant`, one of QUANT_TYPES, and what was named for single tensors."""

    quant: str
    overrides: tuple[tuple[str, int], ...]
    output_type: int | None
    embedding_type: int | None

    @property
    def shown(self) -> str:
        return self.quant.lower() if self.quant in FLOATS else self.quant


def convert(
    source: str | Path,
    *,
    quant: str = "Q4_K_M",
    out: str | Path | None = None,
    imatrix: str | Path | None = None,
    calibrate: str | Path | None = None,
    lora: str | Path | None = None,
    tensor_types: Sequence[tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    check: bool = True,
    threads: int | None = None,
    progress: bool = False,
) -> Converted:
    """Convert a checkpoint folder or hub id to a GGUF of type `quant`, one of QUANT_TYPES in any case.

    `out` is a file or a folder, by default models/<name>-<quant>.gguf; a link is followed and stays. `imatrix`: a
    GGUF from `edge imatrix` or llama-imatrix; `calibrate`: replay rows to make one from first, which stays beside the
    output as <out>.imatrix. For that the checkpoint is written in its own dtype too, and removed. `lora`: the folder
    of an adapter to merge. `tensor_types`: (regular expression, type) pairs that go before the mixture's choice, as
    do the two types for the output matrix and the token embeddings; types are ggml's, such as q6_k. `check` compares
    llama.cpp's tokenization with the tokenizers package before anything is quantized. `progress` draws a bar on a
    terminal's stderr.

    Raises CheckpointError, ConversionError, each before or instead of any output.
    """
    begin = time.monotonic()
    wish = _wish(quant, tensor_types, output_tensor_type, token_embedding_type)
    if imatrix is not None and calibrate is not None:
        raise ConversionError("an importance matrix is either given or made from rows: name one of the two")
    if wish.quant in FLOATS and (imatrix or calibrate):
        raise ConversionError(f"{wish.shown} is not quantized: an importance matrix is of no use to it")
    check_quant(quant, has_imatrix=imatrix is not None or calibrate is not None)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConversionError(f"{threads} threads: llama.cpp takes 1 to {MAX_THREADS}")
    _place(out, f"model-{wish.shown}.gguf")  # before anything is fetched
    checkpoint = open_checkpoint(source, revision=revision, offline=offline)
    if lora is not None:
        checkpoint = merge_lora(checkpoint, Path(lora))
    plan = make_plan(checkpoint)
    vocabulary = make_vocabulary(checkpoint, plan.n_vocab)
    out, place = _place(out, f"{checkpoint.name}-{wish.shown}.gguf")
    inputs = [*(tensor.file for tensor in checkpoint.tensors.values()), checkpoint.folder / "tokenizer.json"]
    inputs += [Path(path) for path in (imatrix, calibrate) if path is not None]
    _check_distinct(out, place, inputs)
    warnings = [
        *checkpoint.notes,
        *plan.notes,
        *_template_warnings(checkpoint, vocabulary),
        *vocabulary.warnings,
    ]
    try:
        if calibrate is not None:
            imatrix = _calibrated(
                checkpoint, plan, vocabulary, place, Path(calibrate), check, threads, progress
            )
        with whole_file(place) as (temporary, descriptor):
            warnings += _write(
                temporary, descriptor, checkpoint, plan, vocabulary, wish, imatrix, check, threads, progress
            )
            model, digest = read_model_file(temporary), sha256(temporary)
        remember(place, "sha256", digest)  # nobody needs to read it in full again
        remember(place, "crc32", "right")
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Converted(
        path=out,
        quant=wish.shown,
        n_bytes=model.n_bytes,
        bits_per_weight=model.bits_per_weight,
        sha256=digest,
        seconds=time.monotonic() - begin,
        warnings=tuple(warnings),
    )


def _check_distinct(out: Path, place: Path, inputs: Sequence[Path]) -> None:
    """Raises ConversionError where the output is a file that it would be made from."""
    if any(os.path.realpath(path) == str(place) for path in inputs):
        raise ConversionError(f"{out}: is what it would be made from; choose another name with --out")


def _calibrated(
    checkpoint: Checkpoint,
    plan: Plan,
    vocabulary: Vocabulary,
    place: Path,
    rows: Path,
    check: bool,
    threads: int | None,
    progress: bool,
) -> Path:
    """The importance matrix of a checkpoint from replay rows. An interrupted one goes on where it was."""
    from edge.measure.calibrate import calibrate

    read_rows(rows)  # what is wrong with them shows before the work
    matrix = place.with_name(place.name + ".imatrix")
    _check_distinct(matrix, Path(os.path.realpath(matrix)), [rows])
    wish = _Wish(checkpoint.dtype, (), None, None)
    with temporary_file(place) as (floats, descriptor):
        _write(floats, descriptor, checkpoint, plan, vocabulary, wish, None, check, threads, progress)
        with bar("calibrating", show=progress, unit="tokens") as watch:
            done = calibrate(floats, matrix, rows=rows, threads=threads, progress=watch)
    if progress:
        print(done, file=sys.stderr)
    return matrix


def check_quant(quant: str, *, has_imatrix: bool) -> str:
    """A type's name as files carry it: f32, f16, bf16, else llama.cpp's in upper case.

    Raises ConversionError for an unknown one, and for one that needs an importance matrix where there is none.
    """
    name = type_name(quant)
    if name in NEEDS_IMATRIX and not has_imatrix:
        raise ConversionError(
            f"{name} needs an importance matrix: give one with --imatrix, or rows to make it from with "
            "--calibrate, or take Q2_K or larger"
        )
    return name.lower() if name in FLOATS else name


def _wish(
    quant: str, tensor_types: Sequence[tuple[str, str]], output_type: str | None, embedding_type: str | None
) -> _Wish:
    """The types by their canonical names and numbers. Raises ConversionError: an unknown one."""
    name = type_name(quant)
    if name in FLOATS and (tensor_types or output_type or embedding_type):
        raise ConversionError(
            f"types of single tensors can be named where the file is quantized, not for {name}"
        )

    def number(kind: str) -> int:
        if kind.lower() not in ggml.types():
            raise ConversionError(f"{kind} is no type of ggml; one of {', '.join(sorted(ggml.types()))}")
        return ggml.types()[kind.lower()]

    return _Wish(
        name,
        # llama-quantize lowers the pattern too
        tuple((pattern.lower(), number(kind)) for pattern, kind in tensor_types),
        None if output_type is None else number(output_type),
        None if embedding_type is None else number(embedding_type),
    )


def _write(
    path: Path,
    descriptor: int,
    checkpoint: Checkpoint,
    plan: Plan,
    vocabulary: Vocabulary,
    wish: _Wish,
    imatrix: str | Path | None,
    check: bool,
    threads: int | None,
    progress: bool,
) -> list[str]:
    """Write the whole file; warnings about its types."""
    kind = wish.quant if wish.quant in FLOATS else checkpoint.dtype
    sized = [(tensor, FLOATS[_kind(tensor, kind)]) for tensor in plan.tensors]
    placed, n_bytes = _header(path, checkpoint, plan, vocabulary, sized, kind)
    # No type has less than a bit for a weight.
    _check_disk(path.parent, n_bytes if wish.quant in FLOATS else sum(t.n_values for t in plan.tensors) // 8)
    # A hole, where the file system has them: llama.cpp looks that the data is there.
    os.truncate(path, n_bytes)
    if check:
        _check(path, checkpoint)
    importance, described, warnings = _importance(imatrix, plan)
    if wish.quant not in FLOATS:
        types = choose_types(
            path,
            FTYPES[wish.quant],
            has_imatrix=imatrix is not None,
            output_type=wish.output_type,
            embedding_type=wish.embedding_type,
            overrides=wish.overrides,
        )
        by_name = {tensor.name: tensor for tensor in plan.tensors}
        if types.types.keys() != by_name.keys():
            installed = package_version("llama-cpp-python")
            raise ConversionError(
                f"llama-cpp-python {installed} does not tell which types it chooses; install 0.3.36"
            )
        warnings += [
            f"--tensor-type {pattern}: no tensor has it in its name"
            for pattern, _ in wish.overrides
            if not _matches(pattern, by_name)
        ]
        sized = [(by_name[name], ggml.types()[chosen]) for name, chosen in types.types.items()]
        if types.fallbacks:
            warnings.append(
                f"{types.fallbacks} of {len(plan.tensors)} tensors took another type, since their rows do not divide "
                f"into {wish.quant}'s blocks"
            )
        placed, n_bytes = _header(path, checkpoint, plan, vocabulary, sized, wish.quant, described)
    outputs = [
        Output(
            tensor=each.tensor,
            kind=_kind(each.tensor, kind),
            type=each.type,
            offset=each.offset,
            n_bytes=each.n_bytes,
            importance=_tensor_importance(each, _kind(each.tensor, kind), wish.quant, importance),
        )
        for each in placed
    ]
    _check_disk(path.parent, n_bytes)
    allocate(descriptor, n_bytes)
    text = f"writing {kind}" if wish.quant in FLOATS else f"quantizing to {wish.quant}"
    with bar(text, show=progress, unit="bytes") as watch:
        write_weights(descriptor, outputs, threads or min(physical_cores(), MAX_THREADS), watch)
    seal(path, descriptor)
    return warnings


def _matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a regular expression is found in a name; so be it for one that llama.cpp takes and Python does not."""
    try:
        return any(re.search(pattern, name) for name in names)
    except re.error:
        return True


def _check_disk(folder: Path, needed: int) -> None:
    """Raises ConversionError if a disk cannot hold so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConversionError(
            f"{folder}: {size(free)} free, {size(needed)} needed; choose another place with --out"
        )


def _kind(tensor: TensorPlan, kind: str) -> str:
    return "F32" if tensor.f32 else kind


def _header(
    path: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    vocabulary: Vocabulary,
    types: Sequence[tuple[TensorPlan, int]],
    quant: str,
    further: Sequence[tuple[str, int | str]] = (),
) -> tuple[list[Placed], int]:
    sized = []
    for tensor, number in types:
        columns = tensor.shape[-1]
        sized.append((tensor, number, tensor.n_values // columns * ggml.row_bytes(number, columns)))
    return write_header(path, checkpoint, plan, vocabulary, sized, FTYPES[quant], further)


def _importance(
    imatrix: str | Path | None,
    plan: Plan,
) -> tuple[Mapping[str, npt.NDArray[np.float32]], list[tuple[str, int | str]], list[str]]:
    """The weights of each tensor's columns by its name, what the file's metadata says of them, warnings."""
    if imatrix is None:
        return {}, [], []
    from edge.formats.imatrix import read_imatrix

    matrix = read_imatrix(imatrix)
    weights = matrix.weights()
    wanted = {t.name for t in plan.tensors if len(t.shape) > 1 and not t.f32 and t.name.startswith("blk.")}
    missing = wanted - weights.keys()
    if missing == wanted:
        raise ConversionError(
            f"{imatrix}: has no entry for any tensor of this model: it was made for another model"
        )
    warnings = []
    if missing:
        warnings.append(
            f"{imatrix} has no entry for {len(missing)} of {len(wanted)} tensors, such as {min(missing)}; they are "
            "quantized without"
        )
    return weights, matrix.metadata(str(imatrix)), warnings


def _tensor_importance(
    placed: Placed, kind: str, quant: str, importance: Mapping[str, npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32] | None:
    """One tensor's weights of shape (matrices, columns), as llama.cpp's quantizer looks them up."""
    name, shape = placed.tensor.name, placed.tensor.shape
    if placed.type == FLOATS[kind]:
        return None
    weights = importance.get(name)
    if weights is not None and weights.size != placed.tensor.n_values // shape[-2]:
        if name not in _EMBEDDINGS:
            raise ConversionError(
                f"the importance matrix has {weights.size:,} weights for {name}, not "
                f"{placed.tensor.n_values // shape[-2]:,}: it was made for another model"
            )
        weights = None
    if weights is None:
        kind_name = ggml.type_name(placed.type).lower()
        low = kind_name in _LOW_BIT or (kind_name == "q2_k" and quant == "Q2_K_S")
        if (low and name not in (*_EMBEDDINGS, "output.weight")) or ggml.requires_imatrix(placed.type):
            why = "the importance matrix has none" if importance else "give one with --imatrix"
            raise ConversionError(
                f"{name} in {kind_name} needs an importance matrix: {why}; or take a larger type"
            )
        return None
    return weights.reshape(-1, shape[-1])


def _place(out: str | Path | None, file: str) -> tuple[Path, Path]:
    """The output's path, of the name `file` if `out` is a folder, and where links lead from there.

    Nothing is made. Raises ConversionError where no file can be written.
    """
    path = model_folder() / file if out is None else Path(out) if str(out) else out
    if isinstance(path, Path) and path.is_dir():
        path = path / file
    check_place(path, error=ConversionError, streams=False)
    return Path(path), place_of(path)[0]


def _template_warnings(checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """What is wrong with the chat template, found by rendering one message with it."""
    template = checkpoint.chat_template
    if template is None:
        return ["the checkpoint has no chat template; prompts will use a fallback"]
    if not template.strip():
        return ["the checkpoint's chat template is empty; prompts will use a fallback"]
    bos, eos = (vocabulary.special_ids.get(kind) for kind in ("bos", "eos"))
    tokens = {f"{kind}_token": vocabulary.tokens[i] for kind, i in vocabulary.special_ids.items()}
    hostile = find_hostile(template, tokens)
    if hostile is not None:
        raise ConversionError(
            f"{checkpoint.folder}: its chat template is hostile: {hostile}; do not use the checkpoint, "
            "or remove the template"
        )
    try:
        render_chat_template(
            [{"role": "user", "content": "ls"}],
            template=template,
            bos_token=None if bos is None else vocabulary.tokens[bos],
            eos_token=None if eos is None else vocabulary.tokens[eos],
        )
    except PromptError as error:
        return [f"{error}; prompts will use a fallback"]
    return []


def _check(path: Path, checkpoint: Checkpoint) -> None:
    template = checkpoint.tokenizer.get("post_processor") or {}
    kinds = [part.get("type") for part in template.get("processors", [template])]
    check_tokenization(path, checkpoint.folder / "tokenizer.json", add_special="TemplateProcessing" in kinds)
