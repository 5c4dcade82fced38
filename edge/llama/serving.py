"""The engine of a server: jobs arrive while others are written, and share batches with them.

Each answer has its own part of the cache, so its attention does not run over the tokens of the others. What prompts and
answers leave is kept in memory beside the cache. It comes back for a prompt with the same beginning; the least recently
used goes first. A hybrid can continue only from where a state was kept, so a state is kept wherever a new prompt parts
from what was read before.

A request may choose one of the loaded LoRA adapters. Only requests with the same adapter share a batch; those with
different ones take turns of a few batches. What was read with one adapter is kept for that adapter only.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge.llama.adapters import LoadedAdapter
from edge.llama.cache import Cache, State
from edge.llama.engine import GROWTH, Engine
from edge.llama.jobs import Job, Logits
from edge.llama.loading import DEFAULT_LOADING, Adapter, Loading
from edge.llama.prefixes import common_length
from edge.llama.states import Kind
from edge.llama.under_way import PromptReading, RunningJob

T = TypeVar("T")
_LEAST = 16  # tokens: a shorter common beginning is not worth a state
_MOST_KEPT = 1 << 30
_TURN = 8  # batches: llama.cpp plans its buffers again after each change of adapters, which took 20 ms


@dataclass(frozen=True, eq=False)
class Request(Job[T], Generic[T]):
    """A client's job; `cancelled` is set when the client has gone away. `adapter`: None for the base alone."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    adapter: Adapter | None = None
    begun: Callable[[int], None] = lambda kept: None
    """Called when its prompt begins to be read, with the number of its tokens that were kept."""


@dataclass(eq=False)
class KeptState(State):
    """A state outside the cache, in llama.cpp's own form; it has no sequence. Its owner is an adapter, or None."""

    data: Any = None


class ServingCache(Cache):
    """A cache in equal parts, one for each sequence. Held states are kept outside of it, up to `most_kept` bytes.

    The owner of a state is the adapter that it was read with, or None. A prompt continues only from its own adapter's.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, unified=False)
        self.most_kept = _MOST_KEPT
        self._kept: list[KeptState] = []  # the most recently used is last

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prompts and answers that are kept beside the cache. Any thread may read it."""
        return sum(len(kept.data) for kept in list(self._kept))

    def bring_back(self, prompt: Sequence[int], adapter: Adapter | None = None) -> State:
        """A new sequence with as much of the prompt as is kept of this adapter."""
        best, length = self.longest(self._kept_of(adapter), prompt)
        state = State(self.take(), [], adapter)
        if best is None or not length:
            return state
        self._use(best)
        if not self.import_sequence(state.sequence, best.data):
            return state
        if length < len(best.tokens):
            self.cut(state.sequence, length)
        state.tokens = list(prompt[:length])
        state.logits = best.logits if length == len(prompt) else None
        state.ends = best.ends_at(length)
        return state

    def newest(self, limit: int) -> list[KeptState]:
        """The states that were used last and have at most `limit` bytes together, the most recently used last."""
        found: list[KeptState] = []
        for kept in reversed(self._kept):
            limit -= len(kept.data)
            if limit < 0:
                break
            found.insert(0, kept)
        return found

    def partings(self, prompt: Sequence[int], adapter: Adapter | None = None) -> set[int]:
        """The lengths at which the prompt parts from what is kept of this adapter."""
        return {common_length(kept.tokens, prompt) for kept in self._kept_of(adapter)}

    def hold(self, state: State) -> None:
        """Keep a state outside the cache, and free its cells."""
        self.keep(state)
        self.drop(state)

    def keep(self, state: State) -> None:
        """Keep a copy of a state. Of several with the same beginning, a transformer needs only the longest."""
        if len(state.tokens) < _LEAST:
            return
        for kept in self._kept_of(state.owner):
            common = common_length(kept.tokens, state.tokens)
            if common == len(state.tokens) and (self.rewindable or common == len(kept.tokens)):
                self._use(kept)
                if state.logits is not None and common == len(kept.tokens):
                    kept.logits = state.logits
                return
            if common == len(kept.tokens) and self.rewindable:
                self._kept.remove(kept)
        size = self.export_size(state.sequence)
        if size > self.most_kept:
            return
        while self.kept_bytes > self.most_kept - size:
            self._kept.pop(0)
        data = self.export_sequence(state.sequence, size)
        self._kept.append(KeptState(-1, list(state.tokens), state.owner, state.logits, state.ends, data))

    def _kept_of(self, owner: object) -> list[KeptState]:
        return [kept for kept in self._kept if kept.owner == owner]

    def _use(self, kept: KeptState) -> None:
        self._kept.remove(kept)
        self._kept.append(kept)


@dataclass
class _Turn:
    """Whose turn it is to compute: each adapter with work gets `_TURN` batches, the one that waited longest next."""

    served: list[object] = field(default_factory=list)  # the owners that had a turn, the present one last
    batches: int = 0

    def next(self, waiting: Sequence[object]) -> object:
        """The owner of the next batch, one of `waiting`, which names the owner of each piece of work."""
        owners = list(dict.fromkeys(waiting))
        last = self.served[-1] if self.served else None
        if not self.served or last not in owners or (self.batches >= _TURN and len(owners) > 1):
            others = [owner for owner in owners if owner not in self.served]
            others += [owner for owner in self.served if owner in owners]
            self.served = [owner for owner in self.served if owner != others[0]] + [others[0]]
            self.batches = 0
        self.batches += 1
        return self.served[-1]


class ServingEngine(Engine):
    """An engine whose `serve` runs until its source of requests ends. `reserve` its cache once, before `serve`.

    Each request chooses one of the adapters of `loading`, or the base alone. `most_kept`: maximum bytes of prompts and
    answers that are kept beside the cache.
    """

    cache: ServingCache
    cache_class = ServingCache
    adds_adapters = False

    def __init__(
        self, path: Path, loading: Loading = DEFAULT_LOADING, *, most_kept: int = _MOST_KEPT
    ) -> None:
        super().__init__(path, loading)
        self.cache.most_kept = most_kept
        self._by_adapter = {loaded.adapter: (loaded,) for loaded in self.adapters}
        self._turn = _Turn()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prompts and answers that are kept beside the cache."""
        return self.cache.kept_bytes

    def serve(
        self, arrivals: Callable[[bool], Request[T] | None], parallel: int
    ) -> Iterator[tuple[Request[T], T]]:
        """Answer the requests that arrive, at most `parallel` at the same time; yields (request, answer).

        `arrivals(wait)` returns the next request or None. With `wait` no request is in progress: it may wait for one,
        and its None ends the loop. Each request must fit into one part of the cache. A cancelled request ends after
        the next batch, and yields nothing.
        """
        self.check_open()
        requests: dict[int, Request[T]] = {}  # by the index of its running job
        active: list[RunningJob[T]] = []
        reading: PromptReading[T] | None = None
        request: Request[T] | None = None  # whose prompt is read
        count = 0
        turn = False
        while True:
            for running in [running for running in active if requests[running.index].cancelled.is_set()]:
                active.remove(running)
                self.cache.hold(running.state)
                del requests[running.index]
            if reading is not None and request is not None and request.cancelled.is_set():
                self.cache.hold(reading.state)
                reading = None
            if reading is None and len(active) < parallel:
                request = arrivals(not active)
                if request is not None:
                    reading = self._start(request)
                elif not active:
                    return
            if reading is not None and request is not None and reading.logits is not None:
                if not self.cache.rewindable:
                    self._keep(reading.state)
                active.append(RunningJob(count, request, reading.state))
                requests[count] = request
                count += 1
                ready = [(active[-1], reading.logits)]
                reading = None
            else:
                turn = not turn
                ready = self._step(*self._turn_of(active, reading), turn)
            for running, logits in ready:
                if self.resume(running, logits):
                    active.remove(running)
                    if self.cache.rewindable:
                        self._store(running.state)
                    self.cache.hold(running.state)
                    self.flush_states()
                    yield requests.pop(running.index), running.answer

    def _turn_of(
        self, active: Sequence[RunningJob[T]], reading: PromptReading[T] | None
    ) -> tuple[list[RunningJob[T]], PromptReading[T] | None]:
        """The answers, and the prompt, of the adapter whose turn it is; the cache then computes with that adapter."""
        waiting = [running.state.owner for running in active] + (
            [] if reading is None else [reading.state.owner]
        )
        adapter = self._turn.next(waiting)
        self.cache.use(self._by_adapter[adapter] if isinstance(adapter, Adapter) else ())
        mine = [running for running in active if running.state.owner == adapter]
        return mine, reading if reading is not None and reading.state.owner == adapter else None

    def _step(
        self, active: Sequence[RunningJob[T]], reading: PromptReading[T] | None, turn: bool
    ) -> list[tuple[RunningJob[T], Logits]]:
        """Decode one batch. Where answers and a prompt cannot share one, `turn` says whether the answers get it."""
        if reading is None or not active or self.mixes:
            ready = self.decode(active, reading)
        elif turn:
            ready = self.decode(active)
        else:
            ready = self.decode([], reading)
        if reading is not None and reading.at_stop:
            self._keep(reading.state)
            reading.stops.discard(len(reading.state.tokens))
        return ready

    def _keep(self, state: State) -> None:
        """Keep a copy of the state of a prompt."""
        self.cache.keep(state)
        if not self.cache.rewindable:  # there, the state after the answer has the prompt too
            self._store(state)

    @property
    def _kind(self) -> Kind:
        """How a state is stored. Where the cache cannot be rewound, a prompt may need the beginnings of another."""
        return "conversation" if self.cache.rewindable else "prompt"

    def _store(self, state: State) -> None:
        """Let a state go to disk, if `Loading.states` is for whole prompts and it has grown enough."""
        if self.states is not None and self.writes_whole_prompts:
            adapters = self.adapters_of(state)
            if not self.states.has_most(self.cache, state, adapters, GROWTH):
                self.states.keep(self.cache, state, self._kind, adapters)

    def close(self) -> None:
        """Free the model and its cache. What is kept beside the cache goes to disk, if whole prompts may."""
        if self._model and self.states is not None and self.writes_whole_prompts:
            for kept in self.cache.newest(self.states.store.limit):
                self.states.keep(self.cache, kept, self._kind, self.adapters_of(kept), kept.data)
        super().close()

    def _start(self, job: Request[T]) -> PromptReading[T]:
        """Begin to read a prompt, from as much of it as is kept."""
        prompt = list(job.prompt)
        partings = self.cache.partings(prompt, job.adapter)
        state = self.cache.bring_back(prompt, job.adapter)
        stops = {at for at in job.held if at < len(prompt)}
        if not self.cache.rewindable:
            stops |= {at for at in partings if _LEAST < at < len(prompt)}
        self.restore(job, state, stops)
        length = len(state.tokens)
        job.begun(length)
        return PromptReading(job, state, {at for at in stops if at > length})

    def is_conversation(self, state: State) -> bool:
        """Whether a state may continue from its own states on disk: each prompt may be the next of a conversation."""
        return True

    def adapters_of(self, state: State) -> Sequence[LoadedAdapter]:
        """The adapter that a state is read with."""
        return self._by_adapter[state.owner] if isinstance(state.owner, Adapter) else ()
