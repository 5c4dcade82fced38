"""Verify a GGUF: read all of its data, and compare it with its checkpoint (`edge inspect --verify`, `--source`).

The comparison is the stronger test: edge converts and quantizes every tensor again, to the type that the file has, and
every bit must be the same. It writes only a temporary file for each tensor, and needs no more memory than the largest
tensor.
"""

import contextlib
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from edge.conversion.families import make_plan, settled
from edge.conversion.plan import Plan, TensorPlan
from edge.conversion.tokenizer import make_vocabulary
from edge.conversion.weights import FLOATS, Output, write_weights
from edge.errors import ConversionError
from edge.formats.adapter import is_adapter, read_adapter
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.checksum import damage
from edge.formats.gguf import (
    ModelFile,
    TensorInfo,
    part_files,
    read_array,
    read_metadata,
    read_model_file,
    read_padding,
    read_tensors,
)
from edge.formats.lora import merge_lora
from edge.llama import ggml
from edge.system.machine import physical_cores

_CHUNK = 1 << 24  # bytes checked at a time


@dataclass(frozen=True)
class Difference:
    """One difference between a file and its source: the name of a tensor or key, and how it differs."""

    name: str
    problem: str


@dataclass(frozen=True)
class Comparison:
    """A file compared with its source: the number of tensors with the same bits, and all differences.

    `skipped`: tensors that edge could not convert again, because the importance matrix was not given.
    """

    source: str
    revision: str | None
    equal: int
    different: tuple[Difference, ...]
    skipped: tuple[str, ...]


def check_data(path: Path) -> list[str]:
    """What is wrong with the data of a GGUF, one line each. Reads the whole file.

    The lines name data that does not fit the checksums of `edge convert`, rows with NaN or Inf, bytes that belong to no
    tensor, and tensors that do not fit the metadata. Raises ModelFileError if the header is damaged.
    """
    tensors = read_tensors(path)
    problems: list[str] = []
    if is_adapter(path):
        read_adapter(path)
    else:
        problems += _misfits(read_model_file(path), tensors, read_metadata(path))
    files = part_files(path)
    for number, file in enumerate(files, 1):
        found = _bad_data(file, [tensor for tensor in tensors if tensor.part == number])
        problems += [f"{file.name}: {problem}" for problem in found] if len(files) > 1 else found
    return problems


def _bad_data(path: Path, tensors: Sequence[TensorInfo]) -> list[str]:
    """What is wrong with the data of one file."""
    problems: list[str] = []
    with _mapped(path) as mapped:
        data = np.frombuffer(mapped, np.uint8)
        try:
            problems += _stray_bytes(data, read_padding(path))
            problems += [f"{problem} (CRC-32)" for problem in damage(path) or ()]
            with _silenced():
                for tensor in tensors:
                    row = _first_bad_row(data, tensor)
                    if row is not None:
                        rows = _n_rows(tensor)
                        problems.append(
                            f"{tensor.name}: row {row:,} of {rows:,} holds NaN or Inf ({tensor.type})"
                        )
        finally:
            del data  # otherwise the mapping cannot be closed
    return problems


def _misfits(model: ModelFile, tensors: list[TensorInfo], metadata: Mapping[str, object]) -> Iterator[str]:
    """Contradictions between the tensors and the metadata."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for name in ("token_embd.weight", "output.weight"):
        if name in shapes and shapes[name][1:] != (model.n_vocab,):
            yield f"{name}: {shapes[name][-1]:,} rows for a vocabulary of {model.n_vocab:,} tokens"
    width = metadata.get(f"{model.architecture}.embedding_length")
    if "token_embd.weight" in shapes and shapes["token_embd.weight"][0] != width:
        yield f"token_embd.weight: rows of {shapes['token_embd.weight'][0]:,}, but embedding_length is {width}"
    layers = metadata.get(f"{model.architecture}.block_count")
    found = {int(match[1]) for name in shapes if (match := re.match(r"blk\.(\d{1,9})\.", name))}
    if isinstance(layers, int) and found != set(range(layers)):
        yield f"the tensors belong to {len(found):,} layers, but block_count is {layers:,}"


def _stray_bytes(data: npt.NDArray[np.uint8], places: list[tuple[int, int]]) -> Iterator[str]:
    for begin, end in places:
        if end - begin >= 1 << 16:
            yield f"{end - begin:,} bytes at {begin:,} belong to no tensor"
        elif data[begin:end].any():
            yield f"the padding of {end - begin:,} bytes at {begin:,} is not zero"


def _first_bad_row(data: npt.NDArray[np.uint8], tensor: TensorInfo) -> int | None:
    """The first row with NaN or Inf, as ggml finds it; None if there is none."""
    number = ggml.types()[tensor.type.lower()]
    n_rows = _n_rows(tensor)
    if not n_rows or not tensor.n_bytes:
        return None
    rows = data[tensor.offset : tensor.offset + tensor.n_bytes].reshape(n_rows, -1)
    step = max(1, _CHUNK // rows.shape[1])
    for first in range(0, n_rows, step):
        low, high = first, min(first + step, n_rows)
        if ggml.is_valid(number, rows[low:high]):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if ggml.is_valid(number, rows[low:middle]) else (low, middle)
        return low
    return None


def _n_rows(tensor: TensorInfo) -> int:
    return int(np.prod(tensor.shape[1:], dtype=np.int64))


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Discard what ggml's C code prints to stderr about bad values: edge reports them itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- against the source ---


def compare_with_source(
    path: Path,
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    imatrix: Path | None = None,
    lora: Path | None = None,
    threads: int | None = None,
) -> Comparison:
    """Convert every tensor of a GGUF again from its checkpoint and compare; also vocabulary, template and metadata.

    `imatrix`, `lora`: those that the file was made with. Raises CheckpointError or ConversionError if the source
    cannot be read, and ModelFileError if the GGUF cannot.
    """
    model = read_model_file(path)
    checkpoint = settled(open_checkpoint(source, revision=revision, offline=offline))
    if lora is not None:
        checkpoint = merge_lora(checkpoint, lora)
    plan = make_plan(checkpoint)
    stored = {tensor.name: tensor for tensor in read_tensors(path)}
    planned = {tensor.name: tensor for tensor in plan.tensors}
    metadata = read_metadata(path)
    different = [*_other_metadata(path, model, metadata, checkpoint, plan)]
    adapter = metadata.get("edge.lora")
    if adapter is not None and lora is None:
        different.append(Difference("edge.lora", f"made with the adapter {adapter}; give it with --lora"))
    different += [Difference(name, "the file lacks it") for name in planned if name not in stored]
    different += [Difference(name, "the source has no such tensor") for name in stored if name not in planned]
    weights: dict[str, npt.NDArray[np.float32]] = {}
    if imatrix is not None:
        from edge.formats.imatrix import read_imatrix

        weights = read_imatrix(imatrix).weights()
    calibrated = any(key.startswith("quantize.imatrix.") for key in metadata)
    kind = model.file_type if model.file_type in FLOATS else checkpoint.dtype
    equal, skipped = 0, []
    with contextlib.ExitStack() as stack:
        mapped = [stack.enter_context(_mapped(file)) for file in part_files(path)]
        for name, info in stored.items():
            if name not in planned:
                continue
            number = ggml.types()[info.type.lower()]
            needed = calibrated and imatrix is None and ggml.is_quantized(number)
            if needed or (name not in weights and ggml.requires_imatrix(number)):
                skipped.append(name)
                continue
            output = _output(planned[name], info, number, kind, weights.get(name))
            problem = (
                "has another shape"
                if output is None
                else _remade(output, info, mapped[info.part - 1], threads)
            )
            if problem:
                different.append(Difference(name, problem))
            else:
                equal += 1
    return Comparison(str(source), checkpoint.revision, equal, tuple(different), tuple(skipped))


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _output(
    tensor: TensorPlan, info: TensorInfo, number: int, kind: str, weights: npt.NDArray[np.float32] | None
) -> Output | None:
    """How to convert a tensor again; None if its shape differs from that in the file."""
    if tensor.shape[::-1] != info.shape:
        return None
    columns = tensor.shape[-1]
    matrices = int(np.prod(tensor.shape[:-2], dtype=np.int64))
    fits = weights is not None and weights.size == matrices * columns
    importance = weights.reshape(matrices, columns) if weights is not None and fits else None
    return Output(tensor, "F32" if tensor.f32 else kind, number, 0, info.n_bytes, importance)


def _remade(output: Output, info: TensorInfo, mapped: mmap.mmap, threads: int | None) -> str | None:
    """Convert a tensor again and compare it with the file. Returns the difference, or None."""
    with tempfile.TemporaryFile() as file:
        file.truncate(info.n_bytes)
        try:
            write_weights(file.fileno(), [output], threads or physical_cores(), lambda done, total: None)
        except ConversionError as error:
            return f"cannot be converted again: {error}"
        n_rows = _n_rows(info)
        wrong = np.zeros(n_rows, bool)
        for at in range(0, info.n_bytes, _CHUNK):
            file.seek(at)
            ours = np.frombuffer(file.read(min(_CHUNK, info.n_bytes - at)), np.uint8)
            begin = info.offset + at
            theirs = np.frombuffer(mapped[begin : begin + len(ours)], np.uint8)
            wrong[(np.flatnonzero(ours != theirs) + at) // (info.n_bytes // n_rows)] = True
    if not wrong.any():
        return None
    return f"{wrong.sum():,} of {n_rows:,} rows differ, the first is {wrong.argmax():,} ({info.type})"


def _other_metadata(
    path: Path, model: ModelFile, metadata: Mapping[str, object], checkpoint: Checkpoint, plan: Plan
) -> Iterator[Difference]:
    """Hyper-parameters, vocabulary and template that differ from the source."""
    if model.architecture != plan.architecture:
        yield Difference(
            "general.architecture", f"{model.architecture}, but the source is {plan.architecture}"
        )
        return
    for key, value in plan.metadata:
        full = f"{plan.architecture}.{key}"
        found = read_array(path, full) if isinstance(value, list) else metadata.get(full)
        wanted = np.float32(value).item() if isinstance(value, float) else value
        if found != wanted:
            yield Difference(full, f"{found!r}, but the source gives {wanted!r}")
    vocabulary = make_vocabulary(checkpoint, plan.n_vocab)
    for name, texts in (("tokens", vocabulary.tokens), ("merges", vocabulary.merges)):
        found = read_array(path, f"tokenizer.ggml.{name}")
        wrong = [i for i, (a, b) in enumerate(zip(texts, found, strict=False)) if a.encode("utf-8") != b]
        if wrong or len(texts) != len(found):
            where = f", the first is {wrong[0]:,}" if wrong else ""
            yield Difference(
                f"tokenizer.ggml.{name}",
                f"{len(found):,}, the source has {len(texts):,}; {len(wrong):,} differ{where}",
            )
    if read_array(path, "tokenizer.ggml.token_type") != vocabulary.types:
        yield Difference("tokenizer.ggml.token_type", "differ from those of the source")
    if vocabulary.scores is not None:
        scores = np.asarray(read_array(path, "tokenizer.ggml.scores"), np.float32)
        if not np.array_equal(scores, np.asarray(vocabulary.scores, np.float32)):
            yield Difference("tokenizer.ggml.scores", "differ from those of the source")
    single: dict[str, object] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre or metadata.get("tokenizer.ggml.pre"),
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
    }
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom"):
        key = gguf.Keys.Tokenizer.__dict__[f"{kind.upper()}_ID"]
        single[key] = vocabulary.special_ids.get(kind)
    for key, expected in single.items():
        given = metadata.get(key)
        if given is None and key.endswith(("add_bos_token", "add_eos_token")):
            continue  # llama.cpp's converter leaves its default out
        if given != expected:
            yield Difference(key, f"{given!r}, but the source gives {expected!r}")
    if (metadata.get("tokenizer.chat_template") or None) != (checkpoint.chat_template or None):
        yield Difference("tokenizer.chat_template", "differs from that of the source")
