"""The engine for jobs that arrive while others are written: they share batches, and prefixes with those before.

Each answer has a part of the cache to itself, so that its tokens are not held against the others'. What prompts and
answers leave is kept in memory beside it, the latest used longest, and brought back for a prompt that begins the same.
A hybrid can go on only from where a state was kept, so one is kept wherever a new prompt parts from what was read
before.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import llama_cpp

from edge.llama.engine import Engine, Job, _Answer, _State
from edge.llama.prefixes import common_length

T = TypeVar("T")
_LEAST = 16  # tokens: a shorter common beginning is not worth a state


@dataclass(frozen=True, eq=False)
class Request(Job[T], Generic[T]):
    """A job of a client's; `cancelled` is set where it has gone away."""

    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Kept(_State):
    """A state outside of the cache; `data` is llama.cpp's own form of it."""

    data: Any = None


class ServingEngine(Engine):
    """An engine whose `serve` never ends by itself. Its cache is made once, by `reserve`, in equal parts.

    `most_kept`: bytes of prompts and answers that are kept beside the cache.
    """

    _unified = False

    def __init__(self, *args: Any, most_kept: int = 1 << 30, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: list[_Kept] = []  # the latest used stands last
        self._most_kept = most_kept

    @property
    def kept_bytes(self) -> int:
        """What is kept of prompts and answers beside the cache."""
        return sum(len(kept.data) for kept in list(self._kept))

    def serve(
        self, arrivals: Callable[[bool], Request[T] | None], parallel: int
    ) -> Iterator[tuple[Request[T], T]]:
        """Answer what arrives, at most `parallel` at once; (a request, its answer), each as soon as it is there.

        `arrivals(wait)` gives the next request or None; with `wait` nothing is under way and it may wait for one, and
        its None ends the loop. Each request must fit into one part of the cache. A cancelled one is let go of after the
        next batch, and yields nothing.
        """
        self.check_open()
        requests: dict[int, Request[T]] = {}
        active: list[_Answer[T]] = []
        reading: _State | None = None
        job: Request[T] | None = None  # the one that is read
        stops: set[int] = set()
        count = 0
        turn = False
        while True:
            for answer in [answer for answer in active if requests[answer.index].cancelled.is_set()]:
                active.remove(answer)
                self._hold(answer.state)
                del requests[answer.index]
            if job is not None and job.cancelled.is_set():
                if reading is not None:
                    self._hold(reading)
                job = reading = None
            if job is None and len(active) < parallel:
                job = arrivals(not active)
                if job is None and not active:
                    return
            if job is not None and reading is None:
                reading, stops = self._start(job)
            if reading is not None and job is not None and reading.logits is not None:
                if not self._rewindable:
                    self._keep(reading)
                answer = _Answer(count, job, reading)
                requests[count] = job
                active.append(answer)
                logits, reading, job = reading.logits, None, None
                count += 1
                for index, value in self._write(answer, logits, active, True):
                    yield requests.pop(index), value
                continue
            turn = not turn
            if reading is not None and active and not self._mixes:  # in turn, so that neither waits for long
                done = (
                    self._decode(active, None, None, set()) if turn else self._decode([], reading, job, stops)
                )
            else:
                done = self._decode(active, reading, job if reading is not None else None, stops)
            if reading is not None and reading.logits is None and len(reading.tokens) in stops:
                self._keep(reading)
                stops.discard(len(reading.tokens))
            for answer, logits in done:
                for index, value in self._write(answer, logits, active, True):
                    yield requests.pop(index), value

    def _start(self, job: Job[T]) -> tuple[_State, set[int]]:
        """A sequence with as much of the prompt as is kept, and where its reading stops to keep a state."""
        prompt = list(job.prompt)
        shared = {common_length(kept.tokens, prompt) for kept in self._kept}
        best = max(self._kept, key=lambda kept: self._usable(kept, prompt), default=None)
        length = 0 if best is None else self._usable(best, prompt)
        sequence = self._free.pop()
        if best is not None and length:
            self._kept.remove(best)
            self._kept.append(best)
            if llama_cpp.llama_state_seq_set_data_ext(self._context, best.data, len(best.data), sequence, 0):
                if length < len(best.tokens):
                    llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)
            else:
                llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
                length = 0
        reading = _State(sequence, prompt[:length], None)
        if length == len(prompt) and best is not None:
            reading.logits = best.logits
        stops = {at for at in job.held if length < at < len(prompt)}
        if not self._rewindable:
            stops |= {at for at in shared if max(length, _LEAST) < at < len(prompt)}
        return reading, stops

    def _hold(self, state: _State) -> None:
        """Keep a state outside of the cache, and free its cells."""
        self._keep(state)
        self._drop(state)

    def _keep(self, state: _State) -> None:
        """Keep a copy of a state; of several with the same beginning a transformer needs the longest alone."""
        if len(state.tokens) < _LEAST:
            return
        for kept in list(self._kept):
            common = common_length(kept.tokens, state.tokens)
            if common == len(state.tokens) and (self._rewindable or common == len(kept.tokens)):
                self._kept.remove(kept)
                self._kept.append(kept)
                if state.logits is not None and common == len(kept.tokens):
                    kept.logits = state.logits
                return
            if common == len(kept.tokens) and self._rewindable:
                self._kept.remove(kept)
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, state.sequence, 0)
        if size > self._most_kept:
            return
        while self.kept_bytes > self._most_kept - size:
            self._kept.pop(0)
        data = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data_ext(self._context, data, size, state.sequence, 0)
        self._kept.append(_Kept(-1, list(state.tokens), None, state.logits, data))
