"""One llama.cpp model and its cache: token ids in, logits out. Knows nothing of text, prompts or JSON.

All sequences share one unified cache, so that a copy of a sequence costs no memory and no time. A prompt is
read once; its answer is written into a copy of it. What other prompts go on from is held as a state: a
sequence and the tokens in it. A hybrid (LFM2) cannot be rewound, but it can be copied, so a state is held
wherever prompts part; a transformer would need only some of them and shares their cells anyway.

Answers that are written at the same time share each batch with each other and with the prompt being read. That
pays where they branch from the same prompt, since the model's weights and the prompt's keys and values are then
fetched from memory once for all of them.
"""

import ctypes
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Generic, TypeVar

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, EdgeError, ModelFileError
from edge.llama import library
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.memory import BATCH, MAX_SEQUENCES, buffers, read_shape
from edge.llama.prefixes import common_length, distinct_tokens
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.signals import signals_later

Logits = NDArray[np.float32]
T = TypeVar("T")
Writer = Generator[Sequence[int], Logits, T]

KV_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
# Cells beyond a prompt's own that answers beside it may hold. Without a GPU attention runs over all cells in use,
# whoever's they are: with two long prompts in the cache, every token of both pays for both.
_FOREIGN = 512


@dataclass(frozen=True)
class Job(Generic[T]):
    """A prompt and who writes the answer to it.

    `writer` is a generator: it yields the tokens that follow and is sent the logits after the last of them,
    float32 of shape (n_vocab,), valid until it yields again. An empty first yield asks for the logits after
    the prompt. What it returns is the answer. `room`: the most tokens it will yield. `cuts`: lengths of the
    prompt at which reading stops, because other prompts part there.
    """

    prompt: Sequence[int]
    writer: Writer[T]
    room: int
    cuts: Sequence[int] = ()
    held: Sequence[int] = ()  # lengths at which a state is held, since the owner's next prompt may part there


@dataclass(eq=False)
class _State:
    """A sequence in the cache and the tokens in it."""

    sequence: int
    tokens: list[int]
    owner: object
    logits: Logits | None = None  # after the last token, where a prompt ends here


@dataclass(frozen=True)
class _Saved:
    """A state on its way to a larger cache. `trunk` has the same keys and values, and more."""

    state: _State
    trunk: _State | None
    data: bytes
    flags: int


@dataclass(eq=False)
class _Answer(Generic[T]):
    """An answer being written."""

    index: int
    job: Job[T]
    state: _State
    begun: bool = False
    pending: list[int] = field(default_factory=list)  # tokens yielded and not decoded yet


class Engine:
    """A loaded model. Use it in one thread.

    Of `loading`, context and parallel are not used here. By default all layers are offloaded where llama.cpp was
    built with a GPU backend, and flash attention is on where layers are offloaded or the cache is quantized: without
    it CPUs write faster. `before_batch`, once set, is called before each batch; what it raises ends the run, and the
    engine can go on with another.
    """

    _unified = True  # one cache for all sequences, else each has an equal part of it

    def __init__(
        self,
        path: Path,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        self._model = self._context = self._memory = None  # for __del__, where the next lines raise
        self.before_batch: Callable[[], None] | None = None
        threads = loading.threads or physical_cores()
        batch = BATCH if loading.batch is None else loading.batch
        gpu_layers = -1 if loading.gpu_layers is None else loading.gpu_layers
        kv_type, flash_attention = loading.kv_type, loading.flash_attention
        if not 1 <= threads <= MAX_THREADS:
            raise EdgeError(f"{threads} threads: llama.cpp takes 1 to {MAX_THREADS}")
        if batch < 1:
            raise EdgeError(f"a batch of {batch} tokens: it must be at least 1")
        if kv_type not in KV_TYPES:
            raise EdgeError(f"{kv_type} is no type of the cache: choose one of {', '.join(KV_TYPES)}")
        if kv_type != "f16" and flash_attention is False:
            raise EdgeError(f"a cache of type {kv_type} needs flash attention, which was turned off")
        library.start()
        params = library.model_params()
        params.n_gpu_layers = gpu_layers
        if not loading.mmap:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self._model = library.load_model(path, params, trusted=loading.trusted)
        self.path = path
        self.threads = threads
        self.kv_type = kv_type
        self.batch = batch
        self.offloads = llama_cpp.llama_supports_gpu_offload() and gpu_layers != 0
        if flash_attention is None:
            flash_attention = self.offloads or kv_type != "f16"
        self.flash_attention = flash_attention
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        # What is recurrent has its state only after its last token, so that only a whole copy is of use.
        self._rewindable = not (
            llama_cpp.llama_model_is_hybrid(self._model) or llama_cpp.llama_model_is_recurrent(self._model)
        )
        # llama.cpp splits a hybrid's batch until each sequence has as many tokens as the others: a prompt and
        # answers gain nothing from one another there, so that answers wait until more of them can go on together.
        self._mixes = self._rewindable
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self.cells = 0
        self.sequences = 0
        self._free: list[int] = []  # sequences not in use
        self._states: list[_State] = []  # the latest used stands last
        self.prompt_tokens_decoded = 0
        self.answer_tokens_decoded = 0

    def close(self) -> None:
        """Free the model and its cache. The engine cannot be used any more."""
        self._free_context()
        if self._model:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        self.close()

    def check_open(self) -> None:
        """Raises EdgeError after `close`: llama.cpp would end the process."""
        if not self._model:
            raise EdgeError(f"{self.path}: this model was closed; load it again")

    def reserve(self, cells: int, sequences: int) -> None:
        """Have a cache for at least `cells` tokens of all sequences together, and that many sequences.

        What is held moves to a larger cache with it. Raises ContextError if memory does not suffice.
        """
        self.check_open()
        sequences = max(2, min(sequences, MAX_SEQUENCES))  # one reads while the other is written
        if cells <= self.cells and sequences <= self.sequences:
            return
        used = list(self._states)
        moved: list[_Saved] = []
        for state in sorted(used, key=lambda state: -len(state.tokens)):
            moved.append(self._save(state, moved))
        cells = -(-max(cells, self.cells) // 256) * 256  # llama.cpp pads to 256 itself
        sequences = max(sequences, self.sequences)
        self._free_context()
        library.check_room(
            f"{self.path}: cannot make a cache of {cells} tokens", self._buffers(cells, sequences)
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = max(self.batch, sequences)  # llama.cpp asserts it
        params.n_seq_max = sequences
        params.kv_unified = self._unified
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = KV_TYPES[self.kv_type]
        # enum llama_flash_attn_type: off, on, or -1, on where the device can
        params.flash_attn_type = -1 if self.flash_attention and self.offloads else int(self.flash_attention)
        library.forget_errors()
        with signals_later():
            self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ContextError(f"{self.path}: cannot make a cache of {cells} tokens: {library.last_error()}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.cells = cells
        self.sequences = sequences
        self._free = list(reversed(range(sequences)))
        for saved in moved:
            self._restore(saved)
        self._states = [state for state in used if state.sequence >= 0]

    def _buffers(self, cells: int, sequences: int) -> int:
        """The bytes that a cache takes, with what llama.cpp computes in."""
        return buffers(
            read_shape(self.path),
            cells,
            sequences=sequences,
            batch=max(self.batch, sequences),
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
            apart=not self._unified,
        ).total

    def run(self, jobs: Sequence[Job[T]], parallel: int = 1, owner: object = None) -> Iterator[tuple[int, T]]:
        """Read the prompts, write the answers; (a job's index, its answer), each as soon as it is there.

        `jobs` should be in an order that finishes a branch of their prefix tree before the next
        (`tree.reading_order`); every token is then read once if the cache has room. At most `parallel` answers
        are written at once. With 1, no batch holds two of them, and batches and the cache's layout depend on a
        prompt, its `cuts` and its answer alone: the logits are those of an empty cache, to the last bit, if
        the engine was new (no flash attention, no other owner's states).

        What was read last stays for the next run of the same `owner`, and so does the only job's answer.
        Raises ContextError if a job does not fit into the cache that `reserve` has made.
        """
        self.check_open()
        for job in jobs:
            if not job.prompt:
                raise ContextError("the prompt has no tokens")
            most = min(self.cells, self.context_length)
            if len(job.prompt) + job.room > most:
                raise ContextError(
                    f"a prompt of {len(job.prompt)} tokens and an answer of up to {job.room} do not fit into "
                    f"{most} tokens"
                )
        shared = [common_length(a.prompt, b.prompt) for a, b in pairwise(jobs)]
        context = self._context
        active: list[_Answer[T]] = []
        reading: _State | None = None
        waiting = 0  # answers that the next prompt waits for: as long as none of them ends
        following = 0  # the job whose prompt is read next
        needed: set[int] = set()  # lengths of that prompt from which later ones go on
        try:
            while following < len(jobs) or active:
                if self._context is not context:
                    raise EdgeError(
                        f"{self.path}: the model or its cache was let go of in the middle of a run"
                    )
                if (
                    reading is None
                    and following < len(jobs)
                    and len(active) < min(parallel, self.sequences - 1)
                    and (not active or len(active) != waiting)
                ):
                    needed = _running_minima(shared[following:]) | set(jobs[following].held)
                    reading = self._begin(jobs[following], active, needed, owner)
                    waiting = len(active) if reading is None else 0
                if reading is not None and reading.logits is not None:
                    answer = _Answer(following, jobs[following], self._copy(reading))
                    active.append(answer)
                    following += 1
                    self._hold(reading)
                    logits, reading = reading.logits, None
                    yield from self._write(answer, logits, active, len(jobs) == 1)
                    continue
                prompt = None if reading is None else jobs[following]
                done = self._decode(active, reading, prompt, needed)
                if reading is not None and reading.logits is None and len(reading.tokens) in needed:
                    self._hold(self._copy(reading))
                for answer, logits in done:
                    yield from self._write(answer, logits, active, len(jobs) == 1)
        finally:
            if self._context is context:  # closed in between, all went with it
                for state in [answer.state for answer in active] + ([reading] if reading else []):
                    self._drop(state)

    def held_by_others(self, owner: object) -> int:
        """Tokens in the states of other owners than this."""
        return distinct_tokens(
            [s.tokens for s in self._states if s.owner is not owner and s.owner is not None]
        )

    def forget(self, owner: object) -> None:
        """Let go of the states of `owner`. Does nothing once the engine is closed."""
        for state in [state for state in self._states if state.owner is owner]:
            self._drop(state)

    def _begin(
        self, job: Job[T], active: Sequence[_Answer[T]], needed: set[int], owner: object
    ) -> _State | None:
        """A sequence with as much of the prompt as is held; None if answers must end first to make room."""
        prompt = job.prompt
        writing = [answer.job.prompt for answer in active]
        budget = job.room + sum(answer.job.room for answer in active)
        if active:
            together = distinct_tokens([*writing, prompt])
            if together + budget > self.cells:
                return None
            if not self.offloads and together - len(prompt) > _FOREIGN:
                return None
        start = max(self._states, key=lambda state: self._usable(state, prompt), default=None)
        length = 0 if start is None else self._usable(start, prompt)
        reading = _State(self._take(start), list(prompt[:length]), owner)
        if start is not None and length:
            end = -1 if length == len(start.tokens) else length
            llama_cpp.llama_memory_seq_cp(self._memory, start.sequence, reading.sequence, -1, end)
            reading.logits = start.logits if length == len(prompt) else None
        others = []
        for state in list(self._states):
            on_path = common_length(state.tokens, prompt) == len(state.tokens)
            if state.owner is owner and not (on_path and (owner is not None or len(state.tokens) in needed)):
                self._drop(state)  # now, so that what comes next takes its cells
            elif not on_path:
                others.append(state)
        while distinct_tokens([*(state.tokens for state in others), *writing, prompt]) + budget > self.cells:
            victim = min(others, key=self._loss)
            others.remove(victim)
            self._drop(victim)
        return reading

    def _usable(self, state: _State, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt need not be read again, since the state has them."""
        common = common_length(state.tokens, prompt)
        if common < len(state.tokens) and not self._rewindable:
            return 0
        if common == len(prompt) and (common < len(state.tokens) or state.logits is None):
            return common - 1 if self._rewindable else 0  # the last token is read again for its logits
        return common

    def _decode(
        self, active: Sequence[_Answer[T]], reading: _State | None, job: Job[T] | None, needed: set[int]
    ) -> list[tuple[_Answer[T], Logits]]:
        """Decode one batch; the answers that are to go on, each with its logits.

        First what the answers have yielded, then as much of the prompt that is read as there is room for.
        """
        if self.before_batch is not None:
            self.before_batch()
        entries: list[tuple[int, int, int, bool]] = []  # token, position, sequence, whether logits are wanted
        awaited: list[tuple[_Answer[T], int]] = []
        grown: list[tuple[_State, Sequence[int]]] = []
        for answer in active if reading is None or self._mixes else []:
            part: Sequence[int] = answer.pending[: self.batch - len(entries)]
            del answer.pending[: len(part)]
            _append(entries, answer.state, part, last=not answer.pending)
            grown.append((answer.state, part))
            if part and not answer.pending:
                awaited.append((answer, len(entries) - 1))
        self.answer_tokens_decoded += len(entries)
        if reading is not None and job is not None and len(entries) < self.batch:
            begin = len(reading.tokens)
            stop = min(p for p in (*job.cuts, *needed, len(job.prompt)) if p > begin)
            end = min(stop, begin + self.batch - len(entries))
            if stop - end == 1 and end - begin > 1:
                end -= 1  # a chunk of one token runs through other kernels
            _append(entries, reading, job.prompt[begin:end], last=end == len(job.prompt))
            grown.append((reading, job.prompt[begin:end]))
            self.prompt_tokens_decoded += end - begin
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        library.forget_errors()
        status = llama_cpp.llama_decode(self._context, batch)
        while status == 1 and self._states:  # after a move to a larger cache, copies share no cells
            self._drop(min(self._states, key=self._loss))
            status = llama_cpp.llama_decode(self._context, batch)
        if status == 1:
            raise ContextError(f"{self.path}: an answer outgrew the cache of {self.cells} tokens")
        if status:
            raise EdgeError(f"{self.path}: llama.cpp failed with status {status}: {library.last_error()}")
        for state, part in grown:
            state.tokens += part
            state.logits = None
        if reading is not None and job is not None and len(reading.tokens) == len(job.prompt):
            reading.logits = self._logits(len(entries) - 1).copy()
        return [(answer, self._logits(i)) for answer, i in awaited]

    def _logits(self, index: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        logits = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        if np.isnan(logits.max()):  # NaN if any of them is
            raise ModelFileError(
                f"{self.path}: gives logits that are not finite: the model is damaged; convert it again"
            )
        return logits

    def _write(
        self, answer: _Answer[T], logits: Logits, active: list[_Answer[T]], keep: bool
    ) -> Iterator[tuple[int, T]]:
        """Let the writer go on; its result if it is done."""
        writer = answer.job.writer
        try:
            tokens = () if answer.begun else next(writer)
            answer.begun = True
            answer.pending = list(tokens or writer.send(logits))
        except StopIteration as stop:
            active.remove(answer)
            if keep:
                self._hold(answer.state)
            else:
                self._drop(answer.state)
            yield answer.index, stop.value

    def _hold(self, state: _State) -> None:
        """Keep a state for later prompts, in place of one with the same tokens."""
        for other in list(self._states):
            if other.owner is state.owner and other.tokens == state.tokens:
                self._drop(other)
        self._states.append(state)

    def _copy(self, state: _State) -> _State:
        copy = _State(self._take(state), list(state.tokens), state.owner, state.logits)
        llama_cpp.llama_memory_seq_cp(self._memory, state.sequence, copy.sequence, -1, -1)
        return copy

    def _take(self, keep: _State | None) -> int:
        """A free sequence; if there is none, that of the state that is cheapest to read again, but not `keep`."""
        if not self._free:
            self._drop(min((state for state in self._states if state is not keep), key=self._loss))
        return self._free.pop()

    def _loss(self, state: _State) -> int:
        """How many tokens would have to be read again without this state."""
        others = (self._usable(other, state.tokens) for other in self._states if other is not state)
        return len(state.tokens) - max(others, default=0)

    def _drop(self, state: _State) -> None:
        if state in self._states:
            self._states.remove(state)
        llama_cpp.llama_memory_seq_rm(self._memory, state.sequence, -1, -1)
        self._free.append(state.sequence)

    def _save(self, state: _State, longer: Sequence[_Saved]) -> _Saved:
        """What a new cache needs of a state: all of it, or only what a longer one that goes on from it lacks."""
        trunk = next(
            (
                o.state
                for o in longer
                if o.trunk is None and o.state.tokens[: len(state.tokens)] == state.tokens
            ),
            None,
        )
        if trunk is not None and self._rewindable:
            return _Saved(state, trunk, b"", 0)
        flags = 0 if trunk is None else llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # the recurrent part
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, state.sequence, flags)
        data = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data_ext(self._context, data, size, state.sequence, flags)
        return _Saved(state, trunk, bytes(data), flags)

    def _restore(self, saved: _Saved) -> None:
        """Bring a state into a new cache, if it has room; the state's sequence is -1 if not."""
        state, trunk = saved.state, saved.trunk
        state.sequence = -1
        if not self._free or (trunk is not None and trunk.sequence < 0):
            return
        sequence = self._free.pop()
        done = True
        if trunk is not None:
            llama_cpp.llama_memory_seq_cp(self._memory, trunk.sequence, sequence, -1, len(state.tokens))
        if saved.data:
            buffer = (ctypes.c_uint8 * len(saved.data)).from_buffer_copy(saved.data)
            done = bool(
                llama_cpp.llama_state_seq_set_data_ext(
                    self._context, buffer, len(saved.data), sequence, saved.flags
                )
            )
        if done:
            state.sequence = sequence
        else:
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._free.append(sequence)

    def _free_context(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = self._memory = None
        self.cells = self.sequences = 0
        self._states = []


def _append(
    entries: list[tuple[int, int, int, bool]], state: _State, tokens: Sequence[int], *, last: bool
) -> None:
    """Put tokens that follow a state into a batch; of the last one the logits, if it is the `last` of all."""
    begin, end = len(state.tokens), len(state.tokens) + len(tokens) - 1
    entries += [(token, i, state.sequence, last and i == end) for i, token in enumerate(tokens, begin)]


def _running_minima(lengths: Sequence[int]) -> set[int]:
    """The least of the first, of the first two, of the first three, and so on; without 0."""
    return set(accumulate(lengths, min)) - {0}
