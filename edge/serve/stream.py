"""Answers on their way to their clients: whole, or as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edge.answer.writer import Answer
from edge.serve.failures import failure
from edge.serve.model import Event, Ticket
from edge.serve.response import Completion, ErrorBody, Form
from edge.serve.state import Server


@dataclass
class Answering:
    """One answer on its way to its client."""

    server: Server
    ticket: Ticket
    form: Form
    begun: bool = False

    async def events(self, receive: Receive) -> AsyncIterator[Event]:
        """Texts, then the answer or an exception; ends early if the client goes away."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while True:
                event = asyncio.ensure_future(self.ticket.events.get())
                await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    self.server.metrics.gone.inc()
                    return
                value = event.result()
                if not self.begun:
                    self.begun = True
                    self.server.metrics.first.observe(time.monotonic() - self.ticket.handed_in)
                yield value
                if not isinstance(value, str):
                    return
        finally:
            gone.cancel()

    def count(self, answer: Answer) -> None:
        """Add a finished answer to the metrics."""
        metrics = self.server.metrics
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.completion_tokens.inc(answer.completion_tokens)
        metrics.seconds.observe(time.monotonic() - self.ticket.handed_in)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as one JSON object."""
        async for event in self.events(receive):
            if isinstance(event, Answer):
                self.count(event)
                await JSONResponse(self.form.whole(event))(scope, receive, send)
            elif isinstance(event, Exception):
                await JSONResponse(*failure(event))(scope, receive, send)

    async def stream(self, receive: Receive, send: Send, *, include_usage: bool) -> None:
        """Send the answer as server-sent events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def put(data: str) -> None:
            await send(
                {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
            )

        async def put_json(value: Completion | ErrorBody) -> None:
            await put(json.dumps(value))

        if self.form.chat:
            await put_json(self.form.opening())
        ended = False
        async for event in self.events(receive):
            if isinstance(event, str):
                await put_json(self.form.part(event))
            elif isinstance(event, Answer):
                self.count(event)
                ended = True
                await put_json(self.form.ending(event))
                if include_usage:
                    await put_json(self.form.usage(event))
            else:
                ended = True
                await put_json(failure(event)[0])
        if ended:
            await put("[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
