"""LoRA adapters in llama.cpp: loaded beside a model, and put on a context.

A context has one set of adapters at a time, which holds for all tokens of a batch. What was read with one set is of no
use for another: the keys and values differ.
"""

import ctypes
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edge.errors import EdgeError, EdgeWarning, ModelFileError
from edge.formats.adapter import AdapterFile, check_base, read_adapter
from edge.formats.checksum import check
from edge.formats.default_model import is_default
from edge.llama import ggml, library
from edge.llama.loading import Adapter
from edge.llama.tryout import needs_no_trial, try_out

MOST_TOGETHER = 4
"""Adapters whose changes may add up. llama.cpp does not count their nodes in the graphs of some architectures: 8 on a
random Qwen 3.5 ran, and at 11 it stopped the process."""

_CHUNK = 1 << 24  # bytes checked at a time


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory. `pointer`: llama.cpp's, valid until its model is freed."""

    adapter: Adapter
    pointer: Any


def check_adapters(
    base: Path, adapters: Sequence[Adapter], *, together: bool = True, trusted: bool = False
) -> None:
    """Check all of each adapter and whether it fits the GGUF `base`, before llama.cpp loads either.

    `together`: their changes add up. An adapter that is not edge's own is tried on the base in a child process, unless
    it is `trusted`. Issues an EdgeWarning where an adapter was trained on another base, or where llama.cpp does not use
    all of it. Raises ModelFileError, and EdgeError for more than MOST_TOGETHER of them.
    """
    if together and len(adapters) > MOST_TOGETHER:
        raise EdgeError(
            f"{len(adapters)} adapters: at most {MOST_TOGETHER} can be added to a model at the same time"
        )
    files = [read_adapter(adapter.path) for adapter in adapters]
    notes = [check_base(file, base) for file in files]
    for adapter, lines in zip(adapters, notes, strict=True):
        if adapter.is_default and is_default(base):
            continue  # the SHA-256 of the base says that they belong together, whatever their names are
        for line in lines:
            warnings.warn(line, EdgeWarning, stacklevel=3)
    for adapter, file in zip(adapters, files, strict=True):
        check(file.path)
        _check_values(file)
        if not (trusted or adapter.is_default or needs_no_trial(base, file.path)):
            try_out(base, file.path)


def load_adapters(model: Any, adapters: Sequence[Adapter]) -> tuple[LoadedAdapter, ...]:
    """Load adapters that `check_adapters` has passed. Call it before a context is made, which counts their nodes.

    llama.cpp frees them with the model. Raises ModelFileError.
    """
    loaded = []
    for adapter in adapters:
        library.forget_errors()
        pointer = llama_cpp.llama_adapter_lora_init(model, os.fsencode(adapter.path))
        if not pointer:
            raise ModelFileError(f"{adapter.path}: llama.cpp cannot load it: {library.last_error()}")
        loaded.append(LoadedAdapter(adapter, pointer))
    return tuple(loaded)


def use_adapters(context: Any, adapters: Sequence[LoadedAdapter]) -> None:
    """Put these adapters on a context, and no others. Their changes add up."""
    count = len(adapters)
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*(one.pointer for one in adapters))
    scales = (ctypes.c_float * count)(*(one.adapter.scale for one in adapters))
    llama_cpp.llama_set_adapters_lora(context, pointers, count, scales)


def _check_values(file: AdapterFile) -> None:
    """Raises ModelFileError for NaN or Inf: the logits would only say that something is damaged."""
    for tensor in file.tensors:
        number = ggml.types()[tensor.type.lower()]
        row = tensor.n_bytes // max(1, int(np.prod(tensor.shape[1:])))
        step = max(1, _CHUNK // row) * row
        for begin in range(0, tensor.n_bytes, step):
            try:
                data = np.fromfile(
                    file.path, np.uint8, min(step, tensor.n_bytes - begin), offset=tensor.offset + begin
                )
            except OSError as error:
                raise ModelFileError(f"{file.path}: cannot be read: {error.strerror or error}") from None
            if not ggml.is_valid(number, data):
                raise ModelFileError(
                    f"{file.path}: is a damaged adapter: {tensor.name} has NaN or Inf; convert or fetch it again"
                )
