"""The HTTP side of `edge serve`: OpenAI's endpoints, streamed or not, their errors, health and metrics."""

import asyncio
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.answer.answering import DEFAULT_TEXT_SHARE
from edge.answer.guided import compile_guide, guided_answer, text_answer
from edge.answer.writer import Answer, action_answer
from edge.errors import ContextError, EdgeError, GrammarError, PromptError
from edge.llama.prefixes import common_length
from edge.serve.model import MakeWriter, QueueFullError, ServedModel, Ticket
from edge.serve.request import Asked, BadRequestError, Guide, read_body, read_chat, read_completion

_COMPLETION_TOKENS = 16  # OpenAI's default
_ENCODED_AT_ONCE = 2  # prompts; llama.cpp's tokenizer takes up to 140 bytes for each of theirs
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


@dataclass
class Metrics:
    """What /metrics tells, in Prometheus' text format. Nothing of prompts or answers."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "edge_requests", "Requests by endpoint and status.", ("path", "status"), **own
        )
        self.prompt_tokens = Counter("edge_prompt_tokens", "Tokens of prompts that were answered.", **own)
        self.decoded = Gauge("edge_prompt_tokens_decoded", "Prompt tokens read; the rest was reused.", **own)
        self.completion_tokens = Counter("edge_completion_tokens", "Tokens of answers.", **own)
        self.gone = Counter("edge_clients_gone", "Clients that went away before their answer ended.", **own)
        self.running = Gauge("edge_requests_running", "Requests being answered.", **own)
        self.waiting = Gauge("edge_requests_waiting", "Requests that wait for a place.", **own)
        self.kept = Gauge("edge_cache_ram_bytes", "Prompts and answers kept in memory.", **own)
        self.seconds = Histogram("edge_request_seconds", "Seconds of an answer.", buckets=_SECONDS, **own)
        self.first = Histogram(
            "edge_first_text_seconds", "Seconds to its first text.", buckets=_SECONDS, **own
        )


@dataclass
class Server:
    """What the routes share."""

    model: ServedModel
    name: str
    context: int
    max_tokens: int
    body_limit: int
    body_seconds: float
    api_key: str | None
    metrics: Metrics = field(default_factory=Metrics)
    began: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.encoding = asyncio.Semaphore(_ENCODED_AT_ONCE)
        # Compiling takes milliseconds; agents ask with the same schema again and again.
        self.compiled = lru_cache(maxsize=64)(
            lambda kind, text: compile_guide(self.model.runner.vocabulary, kind, text)
        )


def make_app(server: Server) -> ASGIApp:
    """The ASGI application."""
    routes = [
        Route("/v1/chat/completions", _Endpoint(server, chat=True), methods=["POST"]),
        Route("/v1/completions", _Endpoint(server, chat=False), methods=["POST"]),
        Route("/v1/models", partial(_models, server), methods=["GET"]),
        Route("/v1/models/{name:path}", partial(_models, server), methods=["GET"]),
        Route("/health", partial(_health, server), methods=["GET"]),
        Route("/metrics", partial(_metrics, server), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    return _Guarded(app, server)


@dataclass
class _Guarded:
    """Counts requests, and lets in only whom it should."""

    app: ASGIApp
    server: Server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        path = "/v1/models" if path.startswith("/v1/models/") else path
        known = path if path in _PATHS else "other"  # a label for each path asked for would have no bound
        status = 499  # the client went away before its answer began

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if (refusal := self._refusal(scope)) is not None:
                await refusal(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        except BaseException:
            status = 500
            raise
        finally:
            self.server.metrics.requests.labels(known, str(status)).inc()

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.server.api_key is not None:
            if scope["path"] == "/health":
                return None
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self.server.api_key.encode()):
                return error_response("the API key is missing or wrong", status=401, code="invalid_api_key")
            return None
        # Without a key only programs on this machine may ask: no web page, by whatever name it calls this server.
        host = headers.get("host", "localhost").rpartition(":")
        name = host[0] if host[1] and not host[2].endswith("]") else "".join(host)
        if "origin" in headers or not is_local(name.removeprefix("[").removesuffix("]")):
            return error_response(
                "requests from web pages, or under another name than localhost, need an API key",
                status=403,
                kind="permission_error",
            )
        return None


@dataclass
class _Endpoint:
    """Chat or text completions, as an ASGI application: it sees when the client goes away."""

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
            asked = await self._read(Request(scope, receive, send))
            prompt_tokens = await self._hand_in(ticket, asked)
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
        answer = _Answering(self.server, self.chat, asked, ticket, prompt_tokens)
        if asked.stream:
            await answer.stream(receive, send)
        else:
            await answer.whole(scope, receive, send)

    async def _read(self, request: Request) -> Asked:
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
        return read_chat(body) if self.chat else read_completion(body)

    async def _hand_in(self, ticket: Ticket, asked: Asked) -> int:
        """Tokens of the prompt."""
        server = self.server
        async with server.encoding:
            prompt, held = await run_in_threadpool(_encoded, server, asked)
        default = server.max_tokens if self.chat else _COMPLETION_TOKENS
        left = server.context - len(prompt)
        most = min(default, left) if asked.max_tokens is None else asked.max_tokens
        if most > left or left < 1:
            raise BadRequestError(
                f"a prompt of {len(prompt)} tokens and an answer of {max(most, 1)} do not fit into the context of "
                f"{server.context}",
                "messages" if self.chat else "prompt",
                code="context_length_exceeded",
            )
        make_writer = await run_in_threadpool(_writer_maker, server, asked, prompt, most)
        server.model.hand_in(ticket, prompt, most, held, make_writer)
        return len(prompt)


def is_local(host: str) -> bool:
    """Whether only this machine reaches the name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _encoded(server: Server, asked: Asked) -> tuple[list[int], list[int]]:
    """The prompt's token ids, and where the conversation's next prompt will part from it."""
    runner = server.model.runner
    if not asked.messages:
        if isinstance(asked.prompt, list):
            if not all(0 <= token < runner.engine.n_vocab for token in asked.prompt):
                raise BadRequestError(f"token ids go from 0 to {runner.engine.n_vocab - 1}", "prompt")
            return asked.prompt, []
        _check_size(server, asked.prompt, "prompt")
        try:
            return runner.encode(asked.prompt), []
        except PromptError as error:
            raise BadRequestError(str(error), "prompt") from None
    try:
        text = runner.render(asked.messages).text
        _check_size(server, text, "messages")
        prompt = runner.encode(text)
        later = [*asked.messages, {"role": "assistant", "content": "{}"}, {"role": "user", "content": ""}]
        following = runner.encode(runner.render(later).text)
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None
    at = common_length(prompt, following)
    return prompt, [at] if 0 < at < len(prompt) else []


def _check_size(server: Server, text: str, field: str) -> None:
    """Refuse what has more tokens than the context, however long they are, before memory is spent on them."""
    if len(text) > server.context * server.model.longest_token:
        raise BadRequestError(
            f"a prompt of {len(text):,} characters has more tokens than the context of {server.context}",
            field,
            code="context_length_exceeded",
        )


def _writer_maker(server: Server, asked: Asked, prompt: list[int], most: int) -> MakeWriter:
    vocabulary = server.model.runner.vocabulary
    common: Any = {"max_tokens": most, "sampling": asked.sampling}
    guide: Guide = asked.guide
    if guide.kind == "action":
        return lambda emit: action_answer(
            vocabulary, prompt, **common, think=most // 4, text_share=DEFAULT_TEXT_SHARE, emit=emit
        )
    if guide.kind == "text":
        return lambda emit: text_answer(
            vocabulary, prompt, **common, stop=asked.stop, ignore_eos=asked.ignore_eos, emit=emit
        )
    try:
        compiled = server.compiled(guide.kind, guide.text)
        endings = server.model.endings
        ending = endings.first(compiled, most)
    except GrammarError as error:
        raise BadRequestError(f"{guide.param}: {error}", guide.param) from None
    return lambda emit: guided_answer(vocabulary, endings, compiled, ending, prompt, **common, emit=emit)


@dataclass
class _Answering:
    """One answer on its way to its client."""

    server: Server
    chat: bool
    asked: Asked
    ticket: Ticket
    prompt_tokens: int

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self.first = False

    async def events(self, receive: Receive) -> AsyncIterator[str | Answer | Exception]:
        """Texts, then the answer or what went wrong; ends early where the client goes away."""
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
                if not self.first:
                    self.first = True
                    self.server.metrics.first.observe(time.monotonic() - self.ticket.handed_in)
                yield value
                if not isinstance(value, str):
                    return
        finally:
            gone.cancel()

    def counted(self, answer: Answer) -> None:
        metrics = self.server.metrics
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.completion_tokens.inc(answer.completion_tokens)
        metrics.seconds.observe(time.monotonic() - self.ticket.handed_in)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for event in self.events(receive):
            if isinstance(event, Answer):
                self.counted(event)
                await JSONResponse(self._body(event))(scope, receive, send)
            elif isinstance(event, Exception):
                await _failed(event)(scope, receive, send)

    async def stream(self, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(value: object) -> None:
            data = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        if self.chat:
            await tell(self._chunk({"role": "assistant", "content": ""}, None))
        ended = False
        async for event in self.events(receive):
            if isinstance(event, str):
                await tell(self._chunk({"content": event} if self.chat else event, None))
            elif isinstance(event, Answer):
                self.counted(event)
                ended = True
                await tell(self._chunk({} if self.chat else "", event))
                if self.asked.include_usage:
                    last = self._chunk({}, None) | {"choices": [], "usage": _usage(event)}
                    await tell(last)
            else:
                ended = True
                await tell(json.loads(bytes(_failed(event).body)))
        if ended:
            await tell("[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.server.name}

    def _body(self, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, **_finish(answer)}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": answer.text}
            if answer.thought is not None:
                message["reasoning_content"] = answer.thought
            choice["message"] = message
        else:
            choice["text"] = answer.text
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": _usage(answer)}

    def _chunk(self, delta: object, answer: Answer | None) -> dict[str, Any]:
        choice = {"index": 0, "delta" if self.chat else "text": delta, "logprobs": None, **_finish(answer)}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice]}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _finish(answer: Answer | None) -> dict[str, Any]:
    """How an answer ended; None: it has not. What was closed at the budget is whole, which clients take "stop" for:
    "length" says that a text was cut, and Harbor's LiteLLM throws it away then."""
    if answer is None:
        return {"finish_reason": None}
    if answer.closed_at_budget:
        return {"finish_reason": "stop", "closed_at_budget": True}
    return {"finish_reason": answer.finish_reason}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def error_response(
    message: str,
    *,
    status: int = 400,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status)


def _failed(error: Exception) -> JSONResponse:
    if isinstance(error, ContextError | GrammarError):
        return error_response(str(error))
    return error_response(str(error) or type(error).__name__, status=500, kind="server_error")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = {
        404: f"there is no {request.url.path[:100]}; see /v1/chat/completions, /v1/completions, /v1/models",
        405: f"{request.method} is not for {request.url.path[:100]}",
    }.get(status, getattr(error, "detail", "") or "error")
    response = error_response(message, status=status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _models(server: Server, request: Request) -> Response:
    model = {"id": server.name, "object": "model", "created": server.began, "owned_by": "edge"}
    model["max_model_len"] = server.context
    name = request.path_params.get("name")
    if name is None:
        return JSONResponse({"object": "list", "data": [model]})
    if name == server.name:
        return JSONResponse(model)
    return error_response(
        f"no model is called {name[:100]!r}", status=404, code="model_not_found", param="model"
    )


async def _health(server: Server, request: Request) -> Response:
    if server.model.failure:
        return JSONResponse({"status": "error", "error": server.model.failure}, status_code=503)
    return JSONResponse({"status": "ok"})


async def _metrics(server: Server, request: Request) -> Response:
    metrics = server.metrics
    metrics.running.set(server.model.running)
    metrics.waiting.set(server.model.waiting)
    metrics.kept.set(server.model.kept_bytes)
    metrics.decoded.set(server.model.runner.engine.prompt_tokens_decoded)
    data = generate_latest(metrics.registry)
    return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")
