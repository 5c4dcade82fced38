"""The engine for jobs that arrive while others are written: they share batches, and prefixes with those before.

What prompts and answers leave in the cache is held as long as there is room, the latest used longest. A hybrid can go
on only from where a state was held, so one is held wherever a new prompt parts from what has been read.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import llama_cpp

from edge.engine import Engine, Job, _Answer, _State
from edge.tree import common_length, distinct_tokens

T = TypeVar("T")
_LEAST_SHARED = 16  # tokens: a shorter common beginning is not worth a state


@dataclass(frozen=True, eq=False)
class Request(Job[T], Generic[T]):
    """A job of a client's; `cancelled` is set where it has gone away."""

    cancelled: threading.Event = field(default_factory=threading.Event)


class ServingEngine(Engine):
    """An engine whose `serve` never ends by itself. Its cache is made once, by `reserve`."""

    def serve(
        self, arrivals: Callable[[bool], Request[T] | None], parallel: int
    ) -> Iterator[tuple[Request[T], T]]:
        """Answer what arrives, at most `parallel` at once; (a request, its answer), each as soon as it is there.

        `arrivals(wait)` gives the next request or None; with `wait` nothing is under way and it may wait for one, and
        its None ends the loop. Each request must fit into the cache alone. A cancelled one is let go of after the
        next batch, and yields nothing.
        """
        self.check_open()
        requests: dict[int, Request[T]] = {}
        active: list[_Answer[T]] = []
        reading: _State | None = None
        job: Request[T] | None = None  # the one that is read, or waits for room
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
            if job is not None and reading is None and (not active or self._has_room(job, active)):
                reading, stops = self._start(job, active)
            if reading is not None and job is not None and reading.logits is not None:
                answer = _Answer(count, job, self._copy(reading))
                requests[count] = job
                active.append(answer)
                self._hold(reading)
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
                self._hold(self._copy(reading))
                stops.discard(len(reading.tokens))
            for answer, logits in done:
                for index, value in self._write(answer, logits, active, True):
                    yield requests.pop(index), value

    def _has_room(self, job: Job[T], active: list[_Answer[T]]) -> bool:
        """Whether a prompt and its answer fit beside the answers under way, with all else let go of."""
        written = [answer.state.tokens for answer in active]
        left = sum(answer.job.room - len(answer.state.tokens) + len(answer.job.prompt) for answer in active)
        return distinct_tokens([*written, job.prompt]) + left + job.room <= self.cells

    def _start(self, job: Job[T], active: list[_Answer[T]]) -> tuple[_State, set[int]]:
        """A sequence with as much of the prompt as is held, and where its reading stops to hold a state."""
        prompt = list(job.prompt)
        shared = {common_length(state.tokens, prompt) for state in self._states}
        start = max(self._states, key=lambda state: self._usable(state, prompt), default=None)
        length = 0 if start is None else self._usable(start, prompt)
        if start is not None and length:
            self._states.remove(start)  # the latest used stands last
            self._states.append(start)
        reading = _State(self._take(start), prompt[:length], None)
        if start is not None and length:
            end = -1 if length == len(start.tokens) else length
            llama_cpp.llama_memory_seq_cp(self._memory, start.sequence, reading.sequence, -1, end)
            reading.logits = start.logits if length == len(prompt) else None
        written = [answer.state.tokens for answer in active]
        left = sum(answer.job.room - len(answer.state.tokens) + len(answer.job.prompt) for answer in active)
        room = self.cells - left - job.room
        while self._states and distinct_tokens([*(s.tokens for s in self._states), *written, prompt]) > room:
            self._drop(self._states[0])
        stops = {at for at in job.held if length < at < len(prompt)}
        if not self._rewindable:
            stops |= {at for at in shared if max(length, _LEAST_SHARED) < at < len(prompt)}
        return reading, stops
