"""A Hugging Face checkpoint turned into a GGUF, quantized or not: `edge convert`.

The weights are read, checked and written one tensor at a time. F32, F16 and BF16 are written directly; for
every other type a file in the checkpoint's own dtype is written first, beside the output, and llama.cpp
quantizes it.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from edge.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from edge.errors import CheckpointError, ConversionError, PromptError
from edge.families import make_plan
from edge.machine import physical_cores
from edge.modelfile import read_model_file, sha256
from edge.paths import model_folder
from edge.plan import Array, Plan, TensorPlan
from edge.prompt import render_chat_template
from edge.quantize import quantize
from edge.template import find_hostile
from edge.vocabulary import Vocabulary, check_tokenization, make_vocabulary

Advance = Callable[[int], None]

_FLOATS: dict[str, tuple[gguf.GGMLQuantizationType, np.dtype[Any]]] = {
    "F32": (gguf.GGMLQuantizationType.F32, np.dtype(np.float32)),
    "F16": (gguf.GGMLQuantizationType.F16, np.dtype(np.float16)),
    "BF16": (gguf.GGMLQuantizationType.BF16, np.dtype(np.uint16)),
}
# By llama.cpp's names; the number is what llama_model_quantize takes. It has no NVFP4 of its own yet.
_FTYPES = {
    name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_"): int(
        getattr(llama_cpp, name)
    )
    for name in dir(llama_cpp)
    if name.startswith("LLAMA_FTYPE_") and not name.endswith(("GUESSED", "NVFP4"))
}
NEEDS_IMATRIX = [
    name for name in _FTYPES if name.startswith(("IQ1_", "IQ2_")) or name in ("IQ3_XXS", "IQ3_XS", "Q2_K_S")
]
_ALIASES = {"MXFP4": "MXFP4_MOE", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama-quantize's
QUANT_TYPES = [name for name in sorted(_FTYPES, key=lambda name: _FTYPES[name]) if name not in NEEDS_IMATRIX]

_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}  # all ones there: NaN or Inf
_CHUNK = 1 << 22  # values checked and cast at a time, so that temporary copies stay small
_MAX_THREADS = 512  # GGML_MAX_N_THREADS
_DISK_MARGIN = 64 << 20  # bytes left free for the file system's own needs and the header


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


def convert(
    source: str | Path,
    *,
    quant: str = "Q4_K_M",
    out: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    check: bool = True,
    threads: int | None = None,
    progress: bool = False,
) -> Converted:
    """Convert a checkpoint folder or hub id to a GGUF of type `quant`, one of QUANT_TYPES in any case.

    `out` is a file or a folder, by default models/<name>-<quant>.gguf; a link is followed and stays. `check`
    compares llama.cpp's tokenization with the tokenizers package before the file gets its name. `progress`
    draws a bar on a terminal's stderr.

    Raises CheckpointError, ConversionError, each before or instead of any output.
    """
    begin = time.monotonic()
    quant = _quant(quant)
    shown = quant.lower() if quant in _FLOATS else quant
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise ConversionError(f"{threads} threads: llama.cpp takes 1 to {_MAX_THREADS}")
    _place(out, f"model-{shown}.gguf")  # before anything is fetched
    checkpoint = open_checkpoint(source, revision=revision, offline=offline)
    plan = make_plan(checkpoint)
    vocabulary = make_vocabulary(checkpoint, plan.n_vocab)
    out, place = _place(out, f"{checkpoint.name}-{shown}.gguf")
    direct = quant if quant in _FLOATS else checkpoint.dtype
    _check_disk(_folder_above(place), plan, direct, quant)
    warnings = [*_template_warnings(checkpoint, vocabulary), *vocabulary.warnings]

    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    floats = temporary if direct == quant else place.with_name(f".{place.name}.{os.getpid()}.{direct}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _bar(progress, f"writing {direct}", _n_bytes(plan, direct)) as advance:
            _write(floats, checkpoint, plan, vocabulary, direct, advance)
        if check:
            _check(floats, checkpoint)
        if floats is not temporary:
            with _bar(progress, f"quantizing to {quant}", _n_bytes(plan, direct)) as advance:
                fallbacks = _quantize(floats, temporary, plan, direct, quant, threads, advance)
            floats.unlink()
            if fallbacks:
                warnings.append(
                    f"{fallbacks} of {len(plan.tensors)} tensors took another type, since their rows do not divide "
                    f"into {quant}'s blocks"
                )
        bits_per_weight = read_model_file(temporary).bits_per_weight
        os.replace(temporary, place)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        for path in (floats, temporary):
            path.unlink(missing_ok=True)
    return Converted(
        path=out,
        quant=shown,
        n_bytes=out.stat().st_size,
        bits_per_weight=bits_per_weight,
        sha256=sha256(out),
        seconds=time.monotonic() - begin,
        warnings=tuple(warnings),
    )


def _quant(name: str) -> str:
    """The type's canonical name. Raises ConversionError: unknown, or in need of an importance matrix."""
    upper = _ALIASES.get(name.upper(), name.upper())
    if upper in NEEDS_IMATRIX:
        raise ConversionError(
            f"{upper} needs an importance matrix, which edge does not make yet; take Q2_K or larger"
        )
    if upper not in QUANT_TYPES:
        raise ConversionError(f"{name} is no type of llama.cpp; one of {', '.join(QUANT_TYPES)}")
    return upper


def _place(out: str | Path | None, file: str) -> tuple[Path, Path]:
    """The output's path, of the name `file` if `out` is a folder, and where links lead from there.

    Nothing is made. Raises ConversionError where no file can be written.
    """
    if out is not None and not str(out):
        raise ConversionError("the output's name is empty; give a file or a folder")
    path = model_folder() / file if out is None else Path(out)
    try:
        if path.is_dir():
            path = path / file
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise ConversionError(f"{path}: is a folder; choose another name with --out")
        if place.exists() and not place.is_file():
            raise ConversionError(f"{path}: is not a regular file; choose another place with --out")
        folder = _folder_above(place)
        if not folder.is_dir():
            raise ConversionError(f"{path}: {folder} is not a folder; choose another place with --out")
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell: /proc, a read-only mount
            pass
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConversionError(
            f"{path}: cannot be written: {reason}; choose another place with --out"
        ) from None
    return path, place


def _folder_above(place: Path) -> Path:
    """The nearest of the folders above that exists already."""
    return next(parent for parent in place.parents if parent.exists())


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


def _kind(tensor: TensorPlan, kind: str) -> str:
    return "F32" if tensor.f32 else kind


def _n_bytes(plan: Plan, kind: str) -> int:
    return sum(tensor.n_values * _FLOATS[_kind(tensor, kind)][1].itemsize for tensor in plan.tensors)


def _check_disk(folder: Path, plan: Plan, direct: str, quant: str) -> None:
    """Raise ConversionError if the disk cannot hold what will be written, the intermediate file among it."""
    needed = _n_bytes(plan, direct)
    if direct != quant:
        digit = re.search(r"\d", quant)
        bits = (
            int(digit[0]) + 2 if digit else 16
        )  # two bits of head room for scales and larger types among them
        needed += min(needed, sum(tensor.n_values for tensor in plan.tensors) * bits // 8)
    free = shutil.disk_usage(folder).free
    if needed + _DISK_MARGIN > free:
        raise ConversionError(
            f"{folder}: {free / 1e9:,.1f} GB free, about {(needed + _DISK_MARGIN) / 1e9:,.1f} GB needed; "
            "choose another place with --out"
        )


# --- writing ---


def _write(
    path: Path, checkpoint: Checkpoint, plan: Plan, vocabulary: Vocabulary, kind: str, advance: Advance
) -> None:
    """Write a GGUF of floats, one tensor at a time."""
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        _add_metadata(writer, checkpoint, plan, kind)
        _add_vocabulary(writer, vocabulary, checkpoint.chat_template)
        for tensor in plan.tensors:
            raw, dtype = _FLOATS[_kind(tensor, kind)]
            writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.n_values * dtype.itemsize, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            values = _values(tensor, _kind(tensor, kind))
            writer.write_tensor_data(values)
            advance(values.nbytes)
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, plan: Plan, kind: str) -> None:
    n_params = sum(tensor.n_values for tensor in plan.tensors)
    n_expert_params = sum(tensor.n_values for tensor in plan.tensors if "_exps." in tensor.name)
    one_expert = n_expert_params // max(plan.n_experts, 1)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(checkpoint.name)
    writer.add_size_label(gguf.size_label(n_params, n_params - n_expert_params, one_expert, plan.n_experts))
    if checkpoint.hub_id is not None:
        writer.add_source_repo_url(f"https://huggingface.co/{checkpoint.hub_id}")
    for key, value in plan.metadata:
        full = f"{plan.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    writer.add_file_type(_FTYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, chat_template: str | None) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for name, token_id in vocabulary.special_ids.items():
        writer.add_uint32(gguf.Keys.Tokenizer.__dict__[f"{name.upper()}_ID"], token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _values(tensor: TensorPlan, kind: str) -> Array:
    """A tensor's values as they go into the file: cast, transformed, experts stacked."""
    if not tensor.parts:
        return tensor.change(np.empty(0, np.float32))
    if len(tensor.parts) == 1:
        return _cast(tensor.change(tensor.parts[0].read()), tensor.parts[0], kind)
    stacked = np.empty(tensor.shape, _FLOATS[kind][1])
    for i, part in enumerate(tensor.parts):
        stacked[i] = _cast(tensor.change(part.read()), part, kind)
    return stacked


def _cast(array: Array, part: StoredTensor, kind: str) -> Array:
    """The array in the file's type. Raises CheckpointError for NaN or Inf, ConversionError if float16
    cannot hold it.
    """
    array = np.ascontiguousarray(array)
    flat = array.reshape(-1)
    same = part.dtype == kind
    result = flat if same else np.empty(flat.shape, _FLOATS[kind][1])
    mask = _EXPONENT[part.dtype]
    for at in range(0, flat.size, _CHUNK):
        chunk = flat[at : at + _CHUNK]
        bits: Array = chunk.view(np.uint32 if part.dtype == "F32" else np.uint16)
        if (np.bitwise_and(bits, mask) == mask).any():
            raise CheckpointError(f"{part.file}: {part.name} holds NaN or Inf; the checkpoint is broken")
        if not same:
            result[at : at + _CHUNK] = _cast_chunk(chunk, part, kind)
    return result.reshape(array.shape)


def _cast_chunk(chunk: Array, part: StoredTensor, kind: str) -> Array:
    # A bfloat16 is the upper half of a float32.
    wide = (
        (chunk.astype(np.uint32) << 16).view(np.float32) if part.dtype == "BF16" else chunk.astype(np.float32)
    )
    if kind == "F32":
        return wide
    if kind == "F16":
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        if np.isinf(narrow).any():
            raise ConversionError(
                f"{part.file}: {part.name} exceeds float16's range; convert to BF16 or F32 instead"
            )
        return narrow
    bits = wide.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # round to nearest, ties to even


# --- the steps around it ---


def _check(path: Path, checkpoint: Checkpoint) -> None:
    template = checkpoint.tokenizer.get("post_processor") or {}
    kinds = [part.get("type") for part in template.get("processors", [template])]
    check_tokenization(path, checkpoint.folder / "tokenizer.json", add_special="TemplateProcessing" in kinds)


def _quantize(
    source: Path, out: Path, plan: Plan, direct: str, quant: str, threads: int | None, advance: Advance
) -> int:
    sizes = {t.name: t.n_values * _FLOATS[_kind(t, direct)][1].itemsize for t in plan.tensors}
    previous = [0]

    def begun(name: str) -> None:
        advance(previous[0])
        previous[0] = sizes.get(name, 0)

    fallbacks = quantize(source, out, _FTYPES[quant], threads or min(physical_cores(), _MAX_THREADS), begun)
    advance(previous[0])
    return fallbacks


@contextlib.contextmanager
def _bar(show: bool, text: str, total: int) -> Iterator[Advance]:
    """A progress bar on stderr with bytes and time left, if that is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda n_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)
