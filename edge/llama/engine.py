"""One loaded llama.cpp model: token ids in, logits out. It knows nothing of text, prompts or JSON.

The engine reads a prompt once, and writes its answer into a copy of the prompt's sequence. States are held where other
prompts continue (edge/llama/cache.py).

Answers that are written at the same time share each batch with each other and with the prompt that is read. This pays
where they branch from the same prompt: the model's weights, and the prompt's keys and values, are then fetched from
memory once for all of them.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar, TypeVar

import llama_cpp
import numpy as np

from edge.errors import ContextError, EdgeError, ModelFileError
from edge.llama import library
from edge.llama.adapters import LoadedAdapter, check_adapters, load_adapters
from edge.llama.cache import KV_TYPES, Cache, State
from edge.llama.crowding import Threads
from edge.llama.drafts import LENGTHS, Draft, Drafting, Repeats
from edge.llama.jobs import Job, Logits
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.memory import BATCH
from edge.llama.prefixes import chunk_ends, common_length, distinct_tokens
from edge.llama.remote import connect
from edge.llama.restore import DiskStates
from edge.llama.under_way import PromptReading, RunningJob
from edge.system.machine import MAX_THREADS, physical_cores

T = TypeVar("T")
# Cells beyond a prompt's own that the answers written beside it may hold. Without a GPU, attention runs over all cells
# in use, of any sequence: with two long prompts in the cache, every token of both pays for both.
_FOREIGN = 512
GROWTH = 1.25
"""Of a conversation, until its state is written to disk again: how much longer it is."""
Entry = tuple[int, int, int, bool]
"""Of a token in a batch: its id, its position, its sequence, and whether the logits after it are wanted."""


class Engine:
    """A loaded model and its cache. Use it in one thread.

    The engine does not use the context and parallel of `loading`. By default all layers are offloaded if llama.cpp
    was built with a GPU backend. Flash attention is on by default if layers are offloaded or the cache is quantized;
    CPUs write faster without it. All adapters of `loading` change every answer.

    `before_batch`, once set, is called before each batch. What it raises ends the run, and the engine stays usable.
    `mixes`: whether a prompt is read in the same batches in which answers are written.
    """

    cache_class: ClassVar[type[Cache]] = Cache
    adds_adapters: ClassVar[bool] = True  # all at once

    def __init__(self, path: Path, loading: Loading = DEFAULT_LOADING) -> None:
        self._model = None  # for __del__, if one of the next lines raises
        self._owned = contextlib.ExitStack()  # what `close` frees, the last first
        self._forgotten: deque[object] = deque()
        self.before_batch: Callable[[], None] | None = None
        threads = loading.threads or physical_cores()
        batch = BATCH if loading.batch is None else loading.batch
        gpu_layers = -1 if loading.gpu_layers is None else loading.gpu_layers
        kv_type, flash_attention = loading.kv_type, loading.flash_attention
        _check(threads, batch, loading)
        check_adapters(path, loading.adapters, together=self.adds_adapters, trusted=loading.trusted)
        library.start()
        self.states = _states(path, loading)
        params = library.model_params()
        params.n_gpu_layers = gpu_layers
        connect(loading.spread.rpc)
        library.spread_out(params, loading.spread)
        if not loading.mmap:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self._model = library.load_model(path, params, trusted=loading.trusted)
        self._owned.callback(llama_cpp.llama_model_free, self._model)
        self.path = path
        try:
            self.adapters = load_adapters(self._model, loading.adapters)
        except EdgeError:
            self.close()
            raise
        self.threads = threads
        self.kv_type = kv_type
        self.batch = batch
        self.offloads = library.can_offload() and gpu_layers != 0
        if flash_attention is None:
            flash_attention = self.offloads or kv_type != "f16"
        self.flash_attention = flash_attention
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.cache = self.cache_class(
            self._model,
            path,
            threads=threads,
            batch=batch,
            kv_type=kv_type,
            flash_attention=flash_attention,
            offloads=self.offloads,
            adapters=self.adapters,
        )
        self._owned.callback(self.cache.close)
        self.workers = Threads(threads, adapts=not (self.offloads or flash_attention or loading.steady))
        self._describe(gpu_layers)
        # llama.cpp splits a hybrid's batch until each sequence has as many tokens as the others: a prompt and answers
        # gain nothing from one batch there. So answers wait until more of them can continue together.
        self.mixes = self.cache.rewindable
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self._owned.callback(llama_cpp.llama_batch_free, self._batch)
        # A hybrid cannot take back the tokens of a wrong draft.
        draft = LENGTHS[-1] * self.offloads if loading.draft is None else loading.draft
        self.drafting = Drafting(draft) if draft and self.cache.rewindable else None
        self._kept: dict[int, int] = {}  # tokens of a conversation on disk, by the identity of its owner
        self.prompt_tokens_decoded = 0
        self.answer_tokens_decoded = self.answer_passes = 0

    @property
    def cells(self) -> int:
        """Tokens that the cache can hold, of all sequences together."""
        return self.cache.cells

    @property
    def sequences(self) -> int:
        """Sequences that the cache can hold."""
        return self.cache.sequences

    def close(self) -> None:
        """Free the model and its cache. The engine cannot be used any more."""
        if self._model:
            if self.states is not None:
                self.states.close()
            self._model = None
            self._owned.close()

    def __del__(self) -> None:
        self.close()

    def check_open(self) -> None:
        """Raises EdgeError after `close`: llama.cpp would end the process."""
        if not self._model:
            raise EdgeError(f"{self.path}: this model was closed; load it again")

    def reserve(self, cells: int, sequences: int) -> None:
        """Make room for at least `cells` tokens of all sequences together, and for that many sequences.

        Held states move to the larger cache. Raises ContextError if there is not enough memory.
        """
        self.check_open()
        self._forget()
        self.cache.resize(cells, sequences)

    def held_by_others(self, owner: object) -> int:
        """Tokens in the held states of other owners."""
        self._forget()
        return self.cache.held_by_others(owner)

    def keep_conversation(self, owner: object, following: Sequence[int], *, now: bool = False) -> None:
        """Let the state of an owner that saves most of the prompt `following` go to disk.

        It does if the state has grown by a quarter since the last time, or `now`: written each time, a long
        conversation would write its size over and over.
        """
        state, length = self.cache.longest(self.cache.of(owner), following)
        before = self._kept.get(id(owner), 0)
        if self.states is not None and state is not None and length > before * (1 if now else GROWTH):
            self._kept[id(owner)] = length
            self.states.keep(self.cache, state, "conversation", self.adapters_of(state))
            self.states.flush()

    def forget(self, owner: object) -> None:
        """Drop the states of `owner`. Does nothing once the engine is closed."""
        self._kept.pop(id(owner), None)
        self.cache.forget(owner)

    def forget_later(self, owner: object) -> None:
        """Drop the states of `owner` before the next run. For finalizers: any thread may call it, also during a run."""
        self._forgotten.append(owner)

    def _forget(self) -> None:
        while self._forgotten:
            self.forget(self._forgotten.popleft())

    def run(self, jobs: Sequence[Job[T]], parallel: int = 1, owner: object = None) -> Iterator[tuple[int, T]]:
        """Read the prompts and write the answers; yields (index of the job, answer) as soon as each is finished.

        `jobs` should be in an order that finishes a branch of their prefix tree before the next
        (`edge.llama.prefixes.reading_order`). Every token is then read once if the cache has room. At most `parallel`
        answers are written at the same time. With 1, no batch holds two of them: batches and the layout of the cache
        depend only on a prompt, its `cuts` and its answer. The logits are then those of an empty cache, to the last
        bit, if the engine was new (no flash attention, no states of other owners).

        The states of the last prompt stay for the next run of the same `owner`. If there is only one job, the state
        after its answer stays too. Raises ContextError if a job does not fit into the cache that `reserve` made.
        """
        self.check_open()
        self._forget()
        self._check_room(jobs)
        shared = [common_length(a.prompt, b.prompt) for a, b in pairwise(jobs)]
        context = self.cache.context
        active: list[RunningJob[T]] = []
        reading: PromptReading[T] | None = None
        waiting = 0  # the next prompt waits until there are not this many answers
        following = 0  # the job whose prompt is read next
        end = self.cache.hold if len(jobs) == 1 else self.cache.drop  # an answer's state
        try:
            while following < len(jobs) or active:
                if self.cache.context is not context:
                    raise EdgeError(f"{self.path}: the model or its cache was freed in the middle of a run")
                free = len(active) < min(parallel, self.sequences - 1)
                if (
                    reading is None
                    and following < len(jobs)
                    and free
                    and (not active or len(active) != waiting)
                ):
                    # Later prompts continue from these lengths.
                    stops = _running_minima(shared[following:]) | set(jobs[following].held)
                    reading = self._begin(jobs[following], active, stops, owner)
                    waiting = len(active) if reading is None else 0
                if reading is not None and reading.logits is not None:
                    active.append(RunningJob(following, reading.job, self.cache.copy(reading.state)))
                    following += 1
                    self.cache.hold(reading.state)
                    ready = [(active[-1], reading.logits)]
                    reading = None
                else:
                    ready = self.decode(active, reading)
                    if reading is not None and reading.at_stop:
                        self.cache.hold(self.cache.copy(reading.state))
                for running, logits in ready:
                    if self.resume(running, logits):
                        active.remove(running)
                        end(running.state)
                        self.flush_states()
                        yield running.index, running.answer
        finally:
            if self.cache.context is context:  # otherwise the states went with it
                for running in active:
                    self.cache.drop(running.state)
                if reading is not None:
                    self.cache.drop(reading.state)

    def decode(
        self, active: Sequence[RunningJob[T]], reading: PromptReading[T] | None = None
    ) -> list[tuple[RunningJob[T], Logits]]:
        """Decode one batch: the pending tokens of answers, then as much of a prompt as there is room for.

        Returns the jobs whose pending tokens are all decoded, each with the logits after the last. These are valid
        until the next batch. Raises ContextError if an answer outgrows the cache, EdgeError if llama.cpp fails, and
        ModelFileError if logits are not finite.
        """
        if self.before_batch is not None:
            self.before_batch()
        entries: list[Entry] = []
        awaited: list[tuple[RunningJob[T], int]] = []
        grown: list[tuple[State, Sequence[int]]] = []
        for running in active if reading is None or self.mixes else []:
            part: Sequence[int] = running.pending[: self.batch - len(entries)]
            del running.pending[: len(part)]
            entries += _entries(running.state, part, last=not running.pending)
            grown.append((running.state, part))
            if part and not running.pending:
                awaited.append((running, len(entries) - 1))
        self.answer_tokens_decoded += len(entries)
        self.answer_passes += bool(entries)
        if reading is None and len(active) == 1 and awaited:
            entries += self._drafted(active[0], len(entries) - 1, grown)
        if reading is not None and len(entries) < self.batch:
            state = reading.state
            part = reading.next_part(self.batch - len(entries))
            entries += _entries(state, part, last=len(state.tokens) + len(part) == len(reading.job.prompt))
            grown.append((state, part))
            self.prompt_tokens_decoded += len(part)
        began = time.perf_counter()
        self._compute(entries)
        alone = sum(bool(part) for _, part in grown) == 1
        for state, part in grown:
            state.grow(part, alone=alone)
        if self.drafting is not None and self.drafting.times_passes and len(entries) == 1 and awaited:
            self._logits(0)  # with a GPU, this waits for the computation
            self.drafting.took(time.perf_counter() - began)
        if reading is not None and len(reading.state.tokens) == len(reading.job.prompt):
            reading.state.logits = self._logits(len(entries) - 1).copy()
        if reading is not None and self.states is not None:
            self.states.offer(self.cache, reading.state, reading.job, self.adapters_of(reading.state))
        return [(running, self._logits(i)) for running, i in awaited]

    def resume(self, running: RunningJob[T], logits: Logits) -> bool:
        """Send the writer the logits after its last token; whether the answer is finished.

        As long as it chooses the tokens of the draft, it receives the logits after them too. The rest of the draft
        is removed from the cache.
        """
        ended = running.resume(logits)
        if running.draft is not None and self.drafting is not None:
            ended = self._take(running, running.draft, self.drafting, ended)
            running.draft = None
        if ended and self.drafting is not None:
            self.drafting.answers.append(running.state.tokens[len(running.job.prompt) :])
        return ended

    def _take(self, running: RunningJob[T], draft: Draft, drafting: Drafting, ended: bool) -> bool:
        """Take the tokens of a draft that the writer chooses, and remove the others; whether the answer is finished."""
        right = 0
        while not ended and right < len(draft.tokens):
            same = common_length(running.pending, draft.tokens[right:])
            right += same
            if same < len(running.pending):
                del running.pending[:same]
                break
            ended = running.resume(self._logits(draft.first + right))
        state = running.state
        if wrong := len(draft.tokens) - right:
            del state.tokens[-wrong:]
            state.ends = None
            self.cache.cut(state.sequence, len(state.tokens))
        self.answer_tokens_decoded += right
        drafting.count(draft.match, len(draft.tokens), right)
        return ended

    def _drafted(
        self, running: RunningJob[T], first: int, grown: list[tuple[State, Sequence[int]]]
    ) -> list[Entry]:
        """What to decode ahead after the last token of an answer, added to `grown`; [] if that gains nothing."""
        drafting = self.drafting
        if drafting is None:
            return []
        state, (_, part) = running.state, grown[-1]
        length = len(state.tokens) + len(part)
        room = min(len(running.job.prompt) + running.job.room - length, self.batch - first - 1)
        drafting.measure(room, lambda count: self._timed(state, count))
        if running.repeats is None:
            running.repeats = Repeats(drafting.answers)
        running.repeats.add([*state.tokens[running.repeats.length :], *part])
        tokens, match = drafting.propose(running.repeats, room)
        if tokens and running.job.guide is not None:
            tokens = tokens[: running.job.guide.fitting(tokens)]
        if not tokens:
            return []
        running.draft = Draft(tokens, match, first)
        grown.append((state, tokens))
        return [(token, i, state.sequence, True) for i, token in enumerate(tokens, length)]

    def _timed(self, state: State, count: int) -> float:
        """Seconds of a pass over `count` tokens behind a state, which stays as it is."""
        began = time.perf_counter()
        self._compute(_entries(state, [state.tokens[-1]] * count, last=True))
        self._logits(count - 1)
        seconds = time.perf_counter() - began
        self.cache.cut(state.sequence, len(state.tokens))
        return seconds

    def _check_room(self, jobs: Sequence[Job[T]]) -> None:
        most = min(self.cells, self.context_length)
        for job in jobs:
            if not job.prompt:
                raise ContextError("the prompt has no tokens")
            if len(job.prompt) + job.room > most:
                raise ContextError(
                    f"a prompt of {len(job.prompt)} tokens and an answer of up to {job.room} do not fit into "
                    f"{most} tokens"
                )

    def _begin(
        self, job: Job[T], active: Sequence[RunningJob[T]], stops: set[int], owner: object
    ) -> PromptReading[T] | None:
        """Begin to read a prompt from as much of it as is held; None if answers must end first to make room."""
        writing = [running.job.prompt for running in active]
        room = job.room + sum(running.job.room for running in active)
        if active:
            together = distinct_tokens([*writing, job.prompt])
            if together + room > self.cells:
                return None
            if not self.offloads and together - len(job.prompt) > _FOREIGN:
                return None
        state = self.cache.branch(job.prompt, owner, needed=stops, writing=writing, room=room)
        # In an empty cache, a restored state takes the cells that reading it would take.
        if not active and self.cache.empty and self.restore(job, state, stops) and len(state.tokens) in stops:
            self.cache.hold(self.cache.copy(state))
        return PromptReading(job, state, stops)

    def restore(self, job: Job[T], state: State, stops: Collection[int]) -> bool:
        """Fill a sequence from disk, if a state there has more of the prompt than the sequence."""
        if self.states is None:
            return False
        ends = chunk_ends(len(job.prompt), {*job.cuts, *stops}, self.batch)
        any_chunks = self.states.wanted.continues and self.is_conversation(state)
        adapters = self.adapters_of(state)
        return self.states.restore(self.cache, state, job.prompt, ends, adapters, any_chunks=any_chunks)

    def is_conversation(self, state: State) -> bool:
        """Whether a state belongs to a conversation, which may continue from its own states on disk."""
        return state.owner is not None

    def adapters_of(self, state: State) -> Sequence[LoadedAdapter]:
        """The adapters that a state is read with."""
        return self.adapters

    @property
    def prompt_tokens_restored(self) -> int:
        """Prompt tokens that were not read because a state on disk has them."""
        return 0 if self.states is None else self.states.restored

    @property
    def writes_whole_prompts(self) -> bool:
        """Whether states of whole prompts go to disk, not only those of instructions."""
        return self.states is not None and self.states.wanted.whole

    def flush_states(self) -> None:
        """Write prompt states that wait to be written to disk, beside the engine's work."""
        if self.states is not None:
            self.states.flush()

    def _describe(self, gpu_layers: int) -> None:
        """Complete what states on disk must have in common with this engine; without it, none is used."""
        if self.states is not None:
            try:
                self.states.describe(
                    threads=self.threads,
                    batch=self.batch,
                    kv_type=self.kv_type,
                    flash_attention=self.flash_attention,
                    offloads=self.offloads,
                    gpu_layers=gpu_layers,
                )
            except (OSError, EdgeError):
                self.states = None

    def _compute(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        library.forget_errors()
        status = self.workers.decode(self.cache.context, batch)
        # After a move to a larger cache, copies share no cells.
        while status == 1 and self.cache.drop_cheapest():
            status = self.workers.decode(self.cache.context, batch)
        if status == 1:
            raise ContextError(f"{self.path}: an answer outgrew the cache of {self.cells} tokens")
        if status:
            raise EdgeError(f"{self.path}: llama.cpp failed with status {status}: {library.last_error()}")

    def _logits(self, index: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self.cache.context, index)
        logits = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        if np.isnan(logits.max()):  # NaN if any of them is
            raise ModelFileError(
                f"{self.path}: gives logits that are not finite: the model is damaged; convert it again"
            )
        return logits


def _check(threads: int, batch: int, loading: Loading) -> None:
    """Raises EdgeError for options that llama.cpp does not take."""
    if not 1 <= threads <= MAX_THREADS:
        raise EdgeError(f"{threads} threads: llama.cpp takes 1 to {MAX_THREADS}")
    if batch < 1:
        raise EdgeError(f"a batch of {batch} tokens: it must be at least 1")
    if loading.kv_type not in KV_TYPES:
        raise EdgeError(f"{loading.kv_type} is not a cache type: choose one of {', '.join(KV_TYPES)}")
    if loading.kv_type != "f16" and loading.flash_attention is False:
        raise EdgeError(
            f"a KV cache of type {loading.kv_type} needs flash attention, which was turned off: "
            "leave out --no-flash-attention, or take --kv-type f16"
        )


def _states(path: Path, loading: Loading) -> DiskStates | None:
    """The states on disk, if they are wanted and can be used: an engine works without them.

    Not with RPC servers: nothing tells whether the same machine still answers there.
    """
    if loading.states is None or loading.spread.rpc:
        return None
    try:
        return DiskStates(path, loading)
    except (OSError, EdgeError):
        return None


def _entries(state: State, tokens: Sequence[int], *, last: bool) -> list[Entry]:
    """Tokens that follow a state, for a batch. `last`: the logits after the last of them are wanted."""
    begin, end = len(state.tokens), len(state.tokens) + len(tokens) - 1
    return [(token, i, state.sequence, last and i == end) for i, token in enumerate(tokens, begin)]


def _running_minima(lengths: Sequence[int]) -> set[int]:
    """The least of the first, of the first two, of the first three, and so on; without 0."""
    return set(accumulate(lengths, min)) - {0}
