"""The served model in its own thread: many clients submit requests, and receive text as it is written."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from edge.answer.calls import Piece
from edge.answer.endings import Endings
from edge.answer.scores import Scored
from edge.answer.writer import Answer
from edge.errors import EdgeError
from edge.llama.jobs import Logits, Writer
from edge.llama.loading import Adapter
from edge.llama.serving import Request, ServingEngine
from edge.runner import Runner

MakeWriter = Callable[[Callable[[Piece | Scored], None]], Writer[Answer]]
"""Makes the writer of an answer. Its argument is called with each piece of the answer that is certain."""
Event = Piece | Scored | Answer | Exception
"""A piece of an answer, the finished answer, or the exception that ends it."""
Events = asyncio.Queue[tuple[int, Event]]
"""Events of the answers of one request: which answer, and what happened."""


class QueueFullError(Exception):
    """Too many requests wait. `retry_after`: seconds until there may be a free place."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} seconds")
        self.retry_after = retry_after


@dataclass(eq=False)
class Ticket:
    """An answer in progress. `events`: its pieces, then an Answer or an exception that ends it, each with its index."""

    loop: asyncio.AbstractEventLoop
    events: Events = field(default_factory=asyncio.Queue)
    index: int = 0
    """Which of the answers that share `events` this one is."""
    cached: int = 0
    """Tokens of the prompt that were not read, because they were kept."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    handed_in: float = field(default_factory=time.monotonic)
    ended: bool = False

    def put(self, event: Event) -> None:
        """Add an event; for the model's thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, (self.index, event))
        except RuntimeError:  # the server has ended
            self.cancelled.set()

    def begin(self, kept: int) -> None:
        """The prompt is being read, except the tokens that were kept; for the model's thread."""
        self.cached = kept

    def cancel(self) -> None:
        """The client has gone away. Its place is free after the next batch."""
        self.cancelled.set()


class ServedModel:
    """The model's thread. Call `start` once, and `hand_in` from the event loop.

    At most `parallel` requests are answered at the same time, and `queue_limit` more may wait. Raises TypeError if the
    engine of the runner is not a ServingEngine.
    """

    def __init__(self, runner: Runner, parallel: int, queue_limit: int) -> None:
        if not isinstance(runner.engine, ServingEngine):
            raise TypeError("the runner's engine must be a ServingEngine")
        self.runner = runner
        self.parallel = parallel
        self.queue_limit = queue_limit
        self.failure: str | None = None
        self._engine = runner.engine
        self._waiting: queue.SimpleQueue[tuple[Ticket, Request[Answer | Exception]] | None] = (
            queue.SimpleQueue()
        )
        self._tickets: dict[int, Ticket] = {}  # by the identity of the request
        self._seconds: deque[float] = deque([5.0], maxlen=32)  # that the latest answers took
        self._in_line = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="edge-model", daemon=True)
        self._stopping = False
        runner.vocabulary.prepare()
        self.longest_token = max(len(runner.vocabulary.spelling(token)) for token in range(runner.n_vocab))
        """Bytes."""
        self.endings = Endings(runner.vocabulary.matcher_tokens(), sorted(runner.vocabulary.end_ids))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it abandons the requests in progress."""
        self._stopping = True
        for ticket in list(self._tickets.values()):
            ticket.cancel()
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return min(self._in_line, self.parallel)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return max(0, self._in_line - self.parallel)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prompts and answers that are kept beside the cache."""
        return self._engine.kept_bytes

    @property
    def prompt_tokens_decoded(self) -> int:
        """Prompt tokens read so far, without those that were kept."""
        return self._engine.prompt_tokens_decoded

    def enter(self, first: Ticket | None = None, index: int = 0) -> Ticket:
        """Take a place in line. `leave` frees it. Raises QueueFullError.

        Call it before the request is read: only requests with a place are then held in memory. `first`: the ticket of
        the first answer of the same request, `index`: the number of this answer in it.
        """
        with self._lock:
            if self._in_line >= self.parallel + self.queue_limit:
                seconds = sum(self._seconds) / len(self._seconds)
                raise QueueFullError(max(1, round(seconds * (1 + self.waiting / self.parallel))))
            self._in_line += 1
        if first is not None:
            return Ticket(first.loop, first.events, index)
        return Ticket(asyncio.get_running_loop())

    def hand_in(
        self,
        ticket: Ticket,
        prompt: Sequence[int],
        room: int,
        held: Sequence[int],
        make_writer: MakeWriter,
        adapter: Adapter | None = None,
        instructions: int = 0,
    ) -> None:
        """Queue a request whose answer takes at most `room` tokens. Raises EdgeError if the model has failed.

        `held`: lengths of the prompt at which its state is kept, see `edge.llama.jobs.Job`. `adapter`: one of the
        engine's; None for the base alone. `instructions`: as in `edge.runner.Runner.write`.
        """
        if self.failure:
            raise EdgeError(f"the model has failed: {self.failure}; start the server again")
        writer = _guarded(make_writer, ticket.put)
        cuts = [instructions] if instructions else []
        request: Request[Answer | Exception] = Request(
            list(prompt),
            writer,
            room,
            cuts,
            list(held),
            cuts,
            cancelled=ticket.cancelled,
            adapter=adapter,
            begun=ticket.begin,
        )
        self._tickets[id(request)] = ticket
        self._waiting.put((ticket, request))

    def leave(self, ticket: Ticket) -> None:
        """Free a place in line: the request is answered, or its client has gone. Later calls do nothing."""
        with self._lock:
            if not ticket.ended:
                ticket.ended = True
                self._in_line -= 1

    def _run(self) -> None:
        try:
            for request, answer in self._engine.serve(self._next, self.parallel):
                ticket = self._tickets.pop(id(request), None)
                if ticket is None:  # its client went away while its last token was computed
                    continue
                self.leave(ticket)  # now, because its client may be slow to read the answer
                self._seconds.append(time.monotonic() - ticket.handed_in)
                ticket.put(
                    replace(answer, cached_tokens=ticket.cached) if isinstance(answer, Answer) else answer
                )
        except Exception as error:  # those who wait must learn that the thread has ended
            self.failure = str(error) or type(error).__name__
            for ticket in list(self._tickets.values()):
                ticket.put(EdgeError(f"the model has failed: {self.failure}"))

    def _next(self, wait: bool) -> Request[Answer | Exception] | None:
        while not self._stopping:
            for key, ticket in list(self._tickets.items()):  # a copy: the event loop adds requests meanwhile
                if ticket.cancelled.is_set() and ticket.ended:
                    del self._tickets[key]
            try:
                entry = self._waiting.get(block=wait)
            except queue.Empty:
                return None
            if entry is None:
                return None
            ticket, request = entry
            if not ticket.cancelled.is_set():
                return request
            self._tickets.pop(id(request), None)
        return None


def _guarded(
    make_writer: MakeWriter, emit: Callable[[Piece | Scored], None]
) -> Generator[Sequence[int], Logits, Answer | Exception]:
    """The writer, made in the model's thread. What it raises becomes its answer, so that other requests continue."""
    try:
        return (yield from make_writer(emit))
    except Exception as error:
        return error
