"""The endpoints that answer: each takes a place, reads the body, and submits the request."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge.errors import EdgeError
from edge.serve.chat_writer import chosen
from edge.serve.failures import refusal
from edge.serve.model import QueueFullError, Ticket
from edge.serve.prepare import prepare
from edge.serve.request import BadRequestError, ClientRequest, read_body
from edge.serve.state import Server
from edge.serve.stream import Answering, Form


@dataclass(frozen=True)
class Dialect:
    """The language of one API: how its requests are read, and how its answers and errors are written."""

    read: Callable[[Server, Mapping[str, Any]], ClientRequest]
    form: Callable[[Server, ClientRequest, str], Form]
    """The third argument: the name of the model that answers."""
    refuse: Callable[[BadRequestError], Response] = refusal


@dataclass
class Endpoint:
    """An endpoint that answers, as an ASGI application, so that it learns when the client goes away."""

    server: Server
    dialect: Dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tickets: list[Ticket] = []
        try:
            refused = await _refused(self._answer(tickets, scope, receive, send))
            if refused is not None:
                await self.dialect.refuse(refused)(scope, receive, send)
        finally:
            for ticket in tickets:
                ticket.cancel()
                self.server.model.leave(ticket)

    async def _answer(self, tickets: list[Ticket], scope: Scope, receive: Receive, send: Send) -> None:
        server = self.server
        tickets.append(server.model.enter())
        body = await received(server, Request(scope, receive, send))
        request = self.dialect.read(server, body)
        name, adapter = server.names.choose(request.model)
        work = await prepare(server, request)
        tickets += [server.model.enter(tickets[0], index) for index in range(1, len(work))]
        for ticket, one in zip(tickets, work, strict=True):
            server.model.hand_in(
                ticket, one.prompt, one.room, one.held, one.make_writer, adapter, one.instructions
            )
        if request.stop and chosen(server, request) == "required":
            aside = "stop is ignored: it would cut a call that must be complete"
            request = replace(request, warnings=(*request.warnings, aside))
        answering = Answering(server, tickets, self.dialect.form(server, request, name))
        if request.stream:
            await answering.stream(receive, send, [len(one.prompt) for one in work])
        else:
            await answering.whole(scope, receive, send)


async def received(server: Server, request: Request) -> dict[str, Any]:
    """The body of a request as a JSON object. Raises BadRequestError, ClientDisconnect."""
    most = server.body_limit
    too_large = BadRequestError(f"the body is larger than {most:,} bytes", status=413)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(server.body_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise BadRequestError(
            f"the body did not arrive within {server.body_seconds:g} seconds", status=408
        ) from None
    return read_body(bytes(data))


@dataclass
class Asking:
    """An endpoint that asks the tokenizer, not the model. It takes a place too, so that memory has a limit."""

    server: Server
    answer: Callable[[Server, Mapping[str, Any]], object]
    """Runs in a thread. Raises BadRequestError."""
    refuse: Callable[[BadRequestError], Response] = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = await _refused(self._answer(scope, receive, send))
        if refused is not None:
            await self.refuse(refused)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self.server
        ticket = server.model.enter()
        try:
            body = await received(server, Request(scope, receive, send))
            async with server.encoding:
                found = await run_in_threadpool(self.answer, server, body)
        finally:
            server.model.leave(ticket)
        await JSONResponse(found)(scope, receive, send)


async def _refused(work: Coroutine[Any, Any, None]) -> BadRequestError | None:
    """Do the work of a request; why it is refused, if it is."""
    try:
        await work
    except ClientDisconnect:
        pass
    except QueueFullError as error:
        return BadRequestError(
            str(error), status=429, kind="rate_limit_error", code="queue_full", retry_after=error.retry_after
        )
    except BadRequestError as error:
        return error
    except EdgeError as error:
        return BadRequestError(str(error), status=500, kind="server_error")
    return None
