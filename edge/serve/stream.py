"""Answers on their way to their clients: whole, or as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edge.answer.calls import Piece
from edge.answer.scores import Scored
from edge.answer.writer import Answer
from edge.serve.failures import failure
from edge.serve.model import Event, Ticket
from edge.serve.response import ErrorBody, Sse
from edge.serve.state import Server


class Form(Protocol):
    """Writes the response of one API: `edge.serve.response.Form` is that of chats and completions."""

    def whole(self, answers: Sequence[Answer]) -> object:
        """The body of a response without `stream`."""

    def opening(self, lengths: Sequence[int]) -> list[Sse]:
        """What a stream begins with; `lengths`: of the prompts of its answers, in tokens."""

    def part(self, index: int, piece: Piece | Scored) -> list[Sse]:
        """The next piece of an answer."""

    def ended(self, index: int, answer: Answer) -> list[Sse]:
        """An answer has ended."""

    def closing(self, answers: Sequence[Answer]) -> list[Sse]:
        """All answers have ended."""

    def failed(self, error: ErrorBody) -> list[Sse]:
        """The engine could not finish an answer: the end of the stream."""

    def alive(self) -> list[Sse]:
        """An event that tells a client that the server still works; none: a comment is sent."""


@dataclass
class Answering:
    """The answers of one request on their way to its client."""

    server: Server
    tickets: Sequence[Ticket]
    form: Form
    answers: dict[int, Answer] = field(default_factory=dict)
    begun: bool = False

    async def events(self, receive: Receive) -> AsyncIterator[tuple[int, Event] | None]:
        """Events of the answers, until all have ended or one has failed; ends early if the client goes away.

        None: nothing has happened for a while.
        """
        ticket = self.tickets[0]
        gone = asyncio.ensure_future(_disconnected(receive))
        waiting: asyncio.Future[tuple[int, Event]] | None = None
        try:
            while len(self.answers) < len(self.tickets):
                waiting = waiting or asyncio.ensure_future(ticket.events.get())
                futures: set[asyncio.Future[Any]] = {waiting, gone}
                await asyncio.wait(futures, timeout=self.server.silence, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    if gone.done():
                        self.server.metrics.gone.inc()
                        return
                    yield None
                    continue
                index, event = waiting.result()
                waiting = None
                if not self.begun:
                    self.begun = True
                    self.server.metrics.first.observe(time.monotonic() - ticket.handed_in)
                if isinstance(event, Answer):
                    self.answers[index] = event
                    self._count(event)
                yield index, event
                if isinstance(event, Exception):
                    return
        finally:
            gone.cancel()
            if waiting is not None:
                waiting.cancel()

    def _count(self, answer: Answer) -> None:
        metrics = self.server.metrics
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.completion_tokens.inc(answer.completion_tokens)
        metrics.seconds.observe(time.monotonic() - self.tickets[0].handed_in)

    @property
    def _all(self) -> list[Answer]:
        return [self.answers[index] for index in range(len(self.tickets))]

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers as one JSON object."""
        async for happened in self.events(receive):
            if happened is not None and isinstance(happened[1], Exception):
                await JSONResponse(*failure(happened[1]))(scope, receive, send)
                return
        if len(self.answers) == len(self.tickets):
            await JSONResponse(self.form.whole(self._all))(scope, receive, send)

    async def stream(self, receive: Receive, send: Send, lengths: Sequence[int]) -> None:
        """Send the answers as server-sent events; `lengths`: of their prompts, in tokens.

        While a long prompt is read, a comment or an event keeps the connection open: Node's clients give up after 300
        seconds of silence.
        """
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def put(events: list[Sse]) -> None:
            data = "".join(map(_event, events)).encode()
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        await put(self.form.opening(lengths))
        ended = False
        async for happened in self.events(receive):
            if happened is None:
                events = self.form.alive()
                await put(events) if events else await send(_COMMENT)
                continue
            index, event = happened
            if isinstance(event, Exception):
                ended = True
                await put(self.form.failed(failure(event)[0]))
            elif isinstance(event, Answer):
                await put(self.form.ended(index, event))
            else:
                await put(self.form.part(index, event))
        if len(self.answers) == len(self.tickets):
            ended = True
            await put(self.form.closing(self._all))
        if ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


_COMMENT = {"type": "http.response.body", "body": b": the model still works\n\n", "more_body": True}


def _event(event: Sse) -> str:
    name, value = event
    data = value if isinstance(value, str) else json.dumps(value)
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
