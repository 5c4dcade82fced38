"""The endpoints that answer: they take a place, read the body, and hand the request in."""

import asyncio
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from edge.errors import EdgeError
from edge.serve.failures import error_response
from edge.serve.model import QueueFullError, Ticket
from edge.serve.prepare import hand_in
from edge.serve.request import BadRequestError, ClientRequest, read_body, read_chat, read_completion
from edge.serve.response import Form
from edge.serve.state import Server
from edge.serve.stream import Answering


@dataclass
class Endpoint:
    """Chat or text completions, as an ASGI application, so that it learns when the client goes away."""

    server: Server
    chat: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = self.server.model
        try:
            ticket = model.enter()
        except QueueFullError as error:
            response = error_response(str(error), status=429, kind="rate_limit_error", code="queue_full")
            response.headers["Retry-After"] = str(error.retry_after)
            await response(scope, receive, send)
            return
        try:
            await self._answer(ticket, scope, receive, send)
        finally:
            ticket.cancel()
            model.leave(ticket)

    async def _answer(self, ticket: Ticket, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = await self._read(Request(scope, receive, send))
            name, adapter = self.server.names.choose(request.model)
            await hand_in(self.server, ticket, request, adapter)
        except ClientDisconnect:
            return
        except BadRequestError as error:
            response = error_response(
                str(error), status=error.status, kind=error.kind, param=error.param, code=error.code
            )
            await response(scope, receive, send)
            return
        except EdgeError as error:
            await error_response(str(error), status=500, kind="server_error")(scope, receive, send)
            return
        answer = Answering(self.server, ticket, Form(self.chat, name))
        if request.stream:
            await answer.stream(receive, send, include_usage=request.include_usage)
        else:
            await answer.whole(scope, receive, send)

    async def _read(self, request: Request) -> ClientRequest:
        most = self.server.body_limit
        too_large = BadRequestError(f"the body is larger than {most:,} bytes", status=413)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.server.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            raise BadRequestError(
                f"the body did not arrive within {self.server.body_seconds:g} seconds", status=408
            ) from None
        body = read_body(bytes(data))
        return read_chat(body, self.server.answers) if self.chat else read_completion(body)
