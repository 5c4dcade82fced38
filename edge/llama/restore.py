"""The states on disk of one engine: what they must have in common with it, when they are used and written.

A state is used only where its bits are those that this engine would compute: same model file, llama.cpp, processor,
placement, cache and adapters, and the tokens were read in the same chunks. In doubt it is not used.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edge.errors import EdgeError
from edge.formats.gguf import model_sha256, part_files, read_metadata, read_tensors, recall, sha256, signature
from edge.llama.adapters import LoadedAdapter
from edge.llama.cache import Cache, State
from edge.llama.devices import devices, inspect_llama
from edge.llama.jobs import Job
from edge.llama.loading import Adapter, Loading, States
from edge.llama.states import Head, Kind, StateStore, stored_files
from edge.system.machine import cpu_name
from edge.version import __version__

LEAST = 64
"""Tokens: a shorter state is not worth a file."""
# Options that change no bit of a state, or that the identity has in another form.
_NO_BITS = ("context", "parallel", "mmap", "trusted", "states")
_ELSEWHERE = ("adapters", "threads", "batch", "kv_type", "flash_attention", "gpu_layers")
_SWITCHES = ("GGML_", "LLAMA_", "CUDA_", "HIP_", "SYCL_", "VK_")  # environment variables of the libraries


@dataclass(frozen=True)
class _Pending:
    """A state that is not written yet. `adapters`: those that it was read with.

    `facts`: what decides its bits, without the digests of files. To read a large file would delay the answer.
    """

    facts: dict[str, Any]
    head: Head
    adapters: tuple[Adapter, ...]
    tokens: list[int]
    logits: Any
    data: Any


class DiskStates:
    """The states on disk of one engine. Use it in the engine's thread.

    Make it before the model is loaded: a file that changes afterwards is not taken for the loaded one. Raises
    ConfigError without a home folder, and ModelFileError.
    """

    def __init__(self, path: Path, loading: Loading) -> None:
        self.wanted = loading.states or States()
        self.store = StateStore(self.wanted.limit)
        self.restored = 0
        """Tokens that were not read because a state on disk has them."""
        self._path = path
        self._files = [*part_files(path), *(adapter.path for adapter in loading.adapters)]
        self._signatures = [signature(file) for file in self._files]
        self._facts: dict[str, Any] = {
            "edge": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "loading": {
                one.name: repr(getattr(loading, one.name))
                for one in fields(loading)
                if one.name not in (*_NO_BITS, *_ELSEWHERE)
            },
            "cpu": [cpu_name(), platform.machine()],
            "switches": {name: value for name, value in os.environ.items() if name.startswith(_SWITCHES)},
        }
        self._pending: list[_Pending] = []
        self._writer: threading.Thread | None = None

    def describe(self, **facts: Any) -> None:
        """Add what is known once the model is loaded: threads, batch, cache type, flash attention, placement.

        Raises ModelFileError, and OSError if llama.cpp's own files cannot be listed.
        """
        found = devices()
        llama = inspect_llama(found)
        metadata = read_metadata(self._path)
        architecture = metadata.get("general.architecture")
        scaled = metadata.get(f"{architecture}.rope.scaling.original_context_length")
        long = any(tensor.name.startswith("rope_factors_long") for tensor in read_tensors(self._path))
        # llama.cpp takes other factors for a context that is longer than this (LongRoPE).
        self._short_context = (scaled or metadata.get(f"{architecture}.context_length", 0)) if long else None
        self._facts |= facts | {
            "llama.cpp": [llama.ggml, llama.system_info, _libraries()],
            "devices": [[one.name, one.description, one.kind] for one in found],
            "rope": {key: repr(value) for key, value in metadata.items() if ".rope." in key},
        }

    def restore(
        self,
        cache: Cache,
        state: State,
        prompt: Sequence[int],
        ends: Sequence[int],
        adapters: Sequence[LoadedAdapter],
        *,
        any_chunks: bool = False,
    ) -> bool:
        """Fill a sequence with the longest beginning of the prompt on disk, if it is longer than what the sequence has.

        `ends`: the chunks in which an empty cache would read the prompt; see `StoredState.usable` for `any_chunks`.
        False: nothing changed, or the sequence is empty now.
        """
        digests = self._digests(tuple(one.adapter for one in adapters), compute=False)
        if digests is None:
            return False
        identity = self._identity(cache, digests)
        found, length = self.store.best(
            identity, prompt, ends, most=cache.window, rewindable=cache.rewindable, any_chunks=any_chunks
        )
        if found is None or length < LEAST or length <= len(state.tokens):
            return False
        try:
            loaded = self.store.load(found)
        except EdgeError:
            return False
        if loaded is None:
            return False
        if state.tokens:
            cache.cut(state.sequence, 0)
            state.tokens, state.ends, state.logits = [], [], None
        count = len(loaded.tokens)
        data = (ctypes.c_uint8 * len(loaded.data)).from_buffer(loaded.data)
        if not cache.import_sequence(state.sequence, data) or cache.length(state.sequence) != count:
            cache.cut(state.sequence, 0)
            return False
        if length < count:
            cache.cut(state.sequence, length)
        state.tokens = list(prompt[:length])
        own = loaded.head["ends"]
        state.ends = None if own is None or length not in own else own[: own.index(length) + 1]
        if length == len(prompt) and length == count:
            state.logits = loaded.logits
        self.restored += length
        return True

    def offer(self, cache: Cache, state: State, job: Job[Any], adapters: Sequence[LoadedAdapter]) -> None:
        """Keep a copy of a prompt's state for `flush`, if the job wants it on disk here and no file has it."""
        length = len(state.tokens)
        if length in job.stored and state.ends is not None:
            self.keep(cache, state, "prompt" if length == len(job.prompt) else "instructions", adapters)

    def keep(
        self, cache: Cache, state: State, kind: Kind, adapters: Sequence[LoadedAdapter], data: Any = None
    ) -> None:
        """Keep a copy of a state for `flush`, if it is long enough and no file has it.

        A conversation replaces the states of its beginnings. `data`: the state in llama.cpp's form; None if it is in
        its sequence.
        """
        if len(state.tokens) < LEAST:
            return
        own = tuple(one.adapter for one in adapters)
        digests = self._digests(own, compute=False)
        identity = "" if digests is None else self._identity(cache, digests)
        if identity and self.store.has(identity, state.tokens, state.ends):
            return
        if any(one.tokens == state.tokens and one.adapters == own for one in self._pending):
            return
        size = cache.export_size(state.sequence) if data is None else len(data)
        logits = None if state.logits is None else state.logits.copy()
        if size > self.store.limit:
            return
        try:
            data = cache.export_sequence(state.sequence, size) if data is None else data
        except MemoryError:
            return
        head = Head(
            identity=identity,
            kind=kind,
            model=self._path.name,
            tokens=len(state.tokens),
            ends=None if state.ends is None else list(state.ends),
            logits=0 if logits is None else len(logits),
            data=size,
        )
        self._pending.append(_Pending(self._known(cache), head, own, list(state.tokens), logits, data))

    def has_most(self, cache: Cache, state: State, adapters: Sequence[LoadedAdapter], growth: float) -> bool:
        """Whether a file has a beginning of this state's tokens that is less than `growth` times shorter."""
        digests = self._digests(tuple(one.adapter for one in adapters), compute=False)
        if digests is None:
            return False
        ids = np.asarray(state.tokens, np.int32)
        files = stored_files(self.store.folder, self._identity(cache, digests))
        return any(
            len(ids) < growth * len(file.tokens) and np.array_equal(file.tokens, ids[: len(file.tokens)])
            for file in files
        )

    def flush(self) -> None:
        """Write what `offer` and `keep` took, beside the engine's work."""
        if self._pending and (self._writer is None or not self._writer.is_alive()):
            pending, self._pending = self._pending, []
            writer = threading.Thread(target=self._write, args=(pending,), name="edge-states", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can start, or Python is ending
                writer.start()
                self._writer = writer

    def close(self) -> None:
        """Write what is left, and wait for it; but not after Ctrl-C."""
        if isinstance(sys.exception(), KeyboardInterrupt):
            return
        for _ in range(2):
            if self._writer is not None:
                self._writer.join()
            self.flush()

    def _write(self, pending: Sequence[_Pending]) -> None:
        """Write states. What cannot be written is left out: the next process reads it again."""
        for one in pending:
            try:
                digests = self._digests(one.adapters, compute=True)
                if digests is None:
                    return
                identity = _digest(one.facts | digests)
                if not self.store.has(identity, one.tokens, one.head["ends"]):
                    self.store.write({**one.head, "identity": identity}, one.tokens, one.logits, one.data)
            except (OSError, EdgeError, MemoryError):
                continue

    def _digests(self, adapters: Sequence[Adapter], *, compute: bool) -> dict[str, Any] | None:
        """The SHA-256 of the model and of adapters. None: a file changed since it was loaded, or is not known yet."""
        try:
            if [signature(file) for file in self._files] != self._signatures:
                return None
            if not compute and any(recall(file, "sha256") is None for file in self._files):
                return None
            found = {
                "model": model_sha256(self._path),
                "adapters": [[sha256(one.path), one.scale] for one in adapters],
            }
            same = [signature(file) for file in self._files] == self._signatures
        except EdgeError:
            return None
        return found if same else None

    def _known(self, cache: Cache) -> dict[str, Any]:
        short = None if self._short_context is None else cache.window <= self._short_context
        return self._facts | {"unified": cache.unified, "short context": short}

    def _identity(self, cache: Cache, digests: dict[str, Any]) -> str:
        return _digest(self._known(cache) | digests)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _libraries() -> list[list[Any]]:
    """The files of the installed llama.cpp with their sizes and times: a build of one's own has no other version."""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib")
    found = []
    for path in sorted(folder.iterdir()):
        status = path.stat()
        found.append([path.name, status.st_size, status.st_mtime_ns])
    return found
