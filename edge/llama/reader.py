"""A model that reads given texts, for a calibration or a measurement: token ids in, the wanted logits out.

`edge.llama.engine` writes answers instead. `Walk` goes through the prefix tree of many token sequences, and reads every
node of it once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, EdgeError
from edge.llama import library
from edge.llama.adapters import check_adapters, load_adapters, use_adapters
from edge.llama.crowding import Threads
from edge.llama.loading import ONE_DEVICE, Adapter, Spread
from edge.llama.memory import buffers, padded, read_shape
from edge.llama.prefixes import Corpus, depth_held
from edge.llama.remote import connect
from edge.system.signals import signals_later

# States held for later sequences. In a deeper tree the shallowest is read again, but not counted again.
MOST_HELD = 32


class Reader:
    """A loaded model with one cache of `cells` tokens that all its sequences share.

    A batch is read as it is given, so the same calls give the same values, to the last bit. `flash_attention`: let
    llama.cpp choose it, as by default; without it, a CPU does not use flash attention. `callback`: llama.cpp's
    `cb_eval`. `adapters`: LoRA adapters, whose changes add up. `spread`: over which devices. Use the reader in
    one thread, as a context manager.

    Raises ModelFileError, ContextError.
    """

    def __init__(
        self,
        path: Path,
        *,
        cells: int,
        sequences: int,
        batch: int,
        threads: int,
        gpu_layers: int = -1,
        flash_attention: bool = False,
        mmap: bool = True,
        callback: Any = None,
        adapters: Sequence[Adapter] = (),
        spread: Spread = ONE_DEVICE,
    ) -> None:
        self._model = self._context = None
        self.path = path
        check_adapters(path, adapters)
        library.start()
        self._callback = callback  # ctypes keeps no reference
        model_params = library.model_params()
        model_params.n_gpu_layers = gpu_layers
        connect(spread.rpc)
        library.spread_out(model_params, spread)
        if not mmap:
            model_params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        offloads = library.can_offload() and gpu_layers != 0
        self._model = library.load_model(path, model_params)
        shape = read_shape(path, [adapter.path for adapter in adapters])
        needed = buffers(
            shape, cells, sequences=sequences, batch=batch, flash_attention=flash_attention
        ).total
        try:  # with room for the logits of a whole batch
            loaded = load_adapters(self._model, adapters)
            library.check_room(
                f"{path}: cannot make a cache of {cells} tokens", needed + batch * shape.n_vocab * 4
            )
        except EdgeError:
            self.close()
            raise
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = padded(cells)
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences
        params.n_outputs_max_per_seq = 0  # as many as tokens
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = -1 if offloads or flash_attention else 0
        if callback is not None:
            params.cb_eval = callback
        else:
            library.end_early(params)
        library.forget_errors()
        with signals_later():
            self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            reason = library.last_error()
            self.close()
            raise ContextError(f"{path}: cannot make a cache of {cells} tokens: {reason}")
        if loaded:
            use_adapters(self._context, loaded)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._workers = Threads(threads, adapts=not (offloads or flash_attention))
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.tokens_decoded = 0

    def decode(self, tokens: Sequence[int], position: int, sequence: int, wanted: Sequence[bool]) -> None:
        """Read at most one batch of tokens, which follow `position` others in `sequence`.

        `wanted`: for each token, whether the logits after it are computed. Raises EdgeError if llama.cpp fails.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted[i]
        library.forget_errors()
        status = self._workers.decode(self._context, batch)
        if status:
            raise EdgeError(f"{self.path}: llama.cpp failed with status {status}: {library.last_error()}")
        self.tokens_decoded += len(tokens)

    def logits(self, index: int) -> NDArray[np.float32]:
        """The logits after the token at `index` of the last batch, of shape (n_vocab,); valid until the next batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,))

    @property
    def model(self) -> Any:
        """llama.cpp's model, valid until `close`."""
        return self._model

    def clear(self) -> None:
        """Empty all sequences, for a new walk."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def copy(self, source: int, target: int) -> None:
        """Copy the tokens of a sequence to another one, which is empty."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Empty a sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Free the model and its cache."""
        if self._context:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_batch_free(self._batch)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Walked(Protocol):
    """What `Walk` needs of a reader."""

    def read(self, tokens: Sequence[int], position: int, sequence: int, *, counts: bool = True) -> None:
        """Read tokens that follow `position` others. Without `counts` they were read before."""

    def copy(self, source: int, target: int) -> None:
        """Copy the tokens of a sequence to another one, which is empty."""

    def drop(self, sequence: int) -> None:
        """Empty a sequence."""


def places(work: Corpus) -> int:
    """How many states a walk through these sequences holds at the same time."""
    return min(depth_held(work.sequences), MOST_HELD) if any(work.shared) else 0


class Walk:
    """Goes through the prefix tree. Sequence 0 reads; the others hold states that later token sequences continue from.

    Every held state is a beginning of what was read last. So the cell of a token in the cache is its position, and a
    walk that continues after an interruption finds the same cache.
    """

    def __init__(self, reader: Walked, work: Corpus) -> None:
        self._reader = reader
        self._work = work
        self._free = list(range(places(work), 0, -1))
        self._held: list[tuple[int, int]] = []  # (length, sequence), ascending
        self._last = 0  # the sequence that was read last

    def read(self, index: int) -> Iterator[tuple[int, int]]:
        """Read the new tokens of a sequence; yields (begin, end) of each batch after it is read.

        Sequences are read in ascending order; some may be left out.
        """
        reader, work = self._reader, self._work
        tokens, seen = work.sequences[index], work.seen(index)
        if seen == len(tokens):
            return  # a duplicate, or the beginning of another; its end is held if needed
        common = min(work.shared[self._last : index], default=0)  # with the sequence that was read last
        self._last = index
        while self._held and self._held[-1][0] > common:
            self._drop_held(-1)
        reader.drop(0)
        start = 0
        if self._held:
            start, sequence = self._held[-1]
            reader.copy(sequence, 0)
        if start < seen:
            needed = set(self._needed(index))
            for begin, end in work.way(index):
                if begin >= start:
                    reader.read(tokens[begin:end], begin, 0, counts=False)
                    self._hold(end, needed)
        stops = set(work.stops(index))
        for begin, end in work.batches(index):
            reader.read(tokens[begin:end], begin, 0)
            self._hold(end, stops)
            yield begin, end

    def _needed(self, index: int) -> Iterator[int]:
        """The lengths that later sequences continue from, up to where this one parts from the one before."""
        least = self._work.seen(index) + 1
        for length in self._work.shared[index - 1 :]:
            if length < least:
                least = length
                yield length

    def _hold(self, length: int, wanted: set[int]) -> None:
        if length not in wanted:
            return
        if not self._free:
            if not self._held:
                return
            self._drop_held(0)
        sequence = self._free.pop()
        self._reader.copy(0, sequence)
        self._held.append((length, sequence))

    def _drop_held(self, which: int) -> None:
        sequence = self._held.pop(which)[1]
        self._reader.drop(sequence)
        self._free.append(sequence)
