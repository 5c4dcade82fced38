"""The HTTP part of `edge serve`: OpenAI's endpoints, streamed or not, their errors, health and metrics."""

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.answer.answering import DEFAULT_TEXT_SHARE, AnswerKind
from edge.answer.guided import compile_guide, guided_answer, text_answer
from edge.answer.writer import Answer, action_answer
from edge.errors import ContextError, EdgeError, GrammarError, PromptError
from edge.llama.loading import Adapter
from edge.serve.model import Event, MakeWriter, QueueFullError, ServedModel, Ticket
from edge.serve.names import ServedNames
from edge.serve.request import BadRequestError, ClientRequest, read_body, read_chat, read_completion
from edge.serve.response import Completion, ErrorBody, ErrorKind, Form, Model, ModelList
from edge.system.text import printable

_COMPLETION_TOKENS = 16  # OpenAI's default
_ENCODED_IN_PARALLEL = 2  # prompts; llama.cpp's tokenizer takes up to 140 bytes for each byte
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_POLLED = ("/health", "/metrics")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


@dataclass
class Metrics:
    """The metrics of /metrics, in Prometheus' text format. They contain nothing of prompts or answers."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "edge_requests", "Requests by endpoint and status.", ("path", "status"), registry=registry
        )
        self.prompt_tokens = Counter("edge_prompt_tokens", "Tokens of answered prompts.", registry=registry)
        self.decoded = Gauge(
            "edge_prompt_tokens_decoded",
            "Prompt tokens that were read; the rest was kept.",
            registry=registry,
        )
        self.completion_tokens = Counter("edge_completion_tokens", "Tokens of answers.", registry=registry)
        self.gone = Counter(
            "edge_clients_gone", "Clients that went away before their answer ended.", registry=registry
        )
        self.running = Gauge("edge_requests_running", "Requests that are being answered.", registry=registry)
        self.waiting = Gauge("edge_requests_waiting", "Requests that wait for a place.", registry=registry)
        self.kept = Gauge(
            "edge_cache_ram_bytes", "Bytes of prompts and answers that are kept in memory.", registry=registry
        )
        self.seconds = Histogram(
            "edge_request_seconds", "Time until an answer is finished.", buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "edge_first_text_seconds",
            "Time until the first text of an answer.",
            buckets=_SECONDS,
            registry=registry,
        )


@dataclass
class Server:
    """What the endpoints share: the model, and the limits of a request in tokens, bytes and seconds."""

    model: ServedModel
    names: ServedNames
    context: int
    max_tokens: int
    body_limit: int
    body_seconds: float
    api_key: str | None
    log: Callable[[str], None] = lambda text: None
    """Receives a line for each request, except checks of health and metrics."""
    answers: AnswerKind = "action"
    """What a chat request gets that asks for no format."""
    metrics: Metrics = field(default_factory=Metrics)
    began: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.encoding = asyncio.Semaphore(_ENCODED_IN_PARALLEL)
        # Compiling takes milliseconds, and agents send the same schema again and again.
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
    """Counts requests, and refuses those without permission."""

    app: ASGIApp
    server: Server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        path = "/v1/models" if path.startswith("/v1/models/") else path
        known = path if path in _PATHS else "other"  # clients choose the paths, so their number has no limit
        status = 499  # the client went away before its answer began
        began = time.monotonic()

        async def counted(message: Message) -> None:
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
            if status != 200 or path not in _POLLED:
                client = (scope.get("client") or ("?",))[0]
                asked = printable(f"{scope['method']} {scope['path']}")[:200]
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                self.server.log(f"{now} {client} {asked} {status} {time.monotonic() - began:.2f} s")

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.server.api_key is not None:
            if scope["path"] == "/health":
                return None
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self.server.api_key.encode()):
                return error_response("the API key is missing or wrong", status=401, code="invalid_api_key")
            return None
        # Without a key only programs on this machine have access: no web page, whatever name it has for this server.
        host = headers.get("host", "localhost").rpartition(":")
        name = host[0] if host[1] and not host[2].endswith("]") else "".join(host)
        if "origin" in headers or not is_local(name.removeprefix("[").removesuffix("]")):
            return error_response(
                "requests from web pages, or with a Host other than localhost, need an API key",
                status=403,
                kind="permission_error",
            )
        return None


@dataclass
class _Endpoint:
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
            await self._hand_in(ticket, request, adapter)
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
        answer = _Answering(self.server, ticket, Form(self.chat, name))
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

    async def _hand_in(self, ticket: Ticket, request: ClientRequest, adapter: Adapter | None) -> None:
        server = self.server
        async with server.encoding:
            prompt, held = await run_in_threadpool(_encoded, server, request)
        default = server.max_tokens if self.chat else _COMPLETION_TOKENS
        left = server.context - len(prompt)
        room = min(default, left) if request.max_tokens is None else request.max_tokens
        if room > left or left < 1:
            raise BadRequestError(
                f"a prompt of {len(prompt)} tokens and an answer of {max(room, 1)} do not fit into the context of "
                f"{server.context}",
                "messages" if self.chat else "prompt",
                code="context_length_exceeded",
            )
        make_writer = await run_in_threadpool(_writer_maker, server, request, prompt, room)
        server.model.hand_in(ticket, prompt, room, held, make_writer, adapter)


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _encoded(server: Server, request: ClientRequest) -> tuple[list[int], list[int]]:
    """The token ids of the prompt, and the lengths at which the next prompt of the conversation will part from it."""
    runner = server.model.runner
    if not request.messages:
        if isinstance(request.prompt, list):
            if not all(0 <= token < runner.n_vocab for token in request.prompt):
                raise BadRequestError(f"token ids must be from 0 to {runner.n_vocab - 1}", "prompt")
            return request.prompt, []
        _check_size(server, request.prompt, "prompt")
        try:
            return runner.encode(request.prompt), []
        except PromptError as error:
            raise BadRequestError(str(error), "prompt") from None
    try:
        rendered = runner.render(request.messages)
        if rendered.reason:  # another format would be no error, but a worse answer
            raise PromptError(f"the model's chat template refuses these messages: {rendered.reason}")
        text = rendered.text
        _check_size(server, text, "messages")
        prompt = runner.encode(text)
        return prompt, runner.branch_points(request.messages, prompt)
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None


def _check_size(server: Server, text: str, param: str) -> None:
    """Refuse a text that is certainly too long for the context before the tokenizer takes memory for it."""
    if len(text) > server.context * server.model.longest_token:
        raise BadRequestError(
            f"a prompt of {len(text):,} characters has more tokens than the context of {server.context}",
            param,
            code="context_length_exceeded",
        )


def _writer_maker(server: Server, request: ClientRequest, prompt: list[int], room: int) -> MakeWriter:
    """Makes the writer of an answer of at most `room` tokens. Raises BadRequestError for a bad schema or grammar."""
    vocabulary, sampling, guide = server.model.runner.vocabulary, request.sampling, request.guide
    if guide.kind == "action":
        return lambda emit: action_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            think=room // 4,
            text_share=DEFAULT_TEXT_SHARE,
            emit=emit,
        )
    if guide.kind == "text":
        return lambda emit: text_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            emit=emit,
        )
    try:
        compiled = server.compiled(guide.kind, guide.text)
        endings = server.model.endings
        ending = endings.first(compiled, room)
    except GrammarError as error:
        raise BadRequestError(f"{guide.param}: {error}", guide.param) from None
    return lambda emit: guided_answer(
        vocabulary, endings, compiled, ending, prompt, max_tokens=room, sampling=sampling, emit=emit
    )


@dataclass
class _Answering:
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
                await JSONResponse(*_failure(event))(scope, receive, send)

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
                await put_json(_failure(event)[0])
        if ended:
            await put("[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_response(
    message: str,
    *,
    status: int = 400,
    kind: ErrorKind = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse(_error_body(message, kind, param, code), status)


def _error_body(
    message: str, kind: ErrorKind = "invalid_request_error", param: str | None = None, code: str | None = None
) -> ErrorBody:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _failure(error: Exception) -> tuple[ErrorBody, int]:
    """The body and the status for an exception that ended an answer."""
    if isinstance(error, ContextError | GrammarError):
        return _error_body(str(error)), 400
    return _error_body(str(error) or type(error).__name__, "server_error"), 500


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path[:100]
    message = {
        404: f"{path} does not exist; use /v1/chat/completions, /v1/completions or /v1/models",
        405: f"{path} does not accept {request.method}",
    }.get(status, getattr(error, "detail", "") or "error")
    response = error_response(message, status=status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _models(server: Server, request: Request) -> Response:
    models = [_model(server, name) for name in server.names.all]
    name = request.path_params.get("name")
    if name is None:
        listed: ModelList = {"object": "list", "data": models}
        return JSONResponse(listed)
    for model in models:
        if model["id"] == name:
            return JSONResponse(model)
    return error_response(
        f"the model {name[:100]!r} does not exist", status=404, code="model_not_found", param="model"
    )


def _model(server: Server, name: str) -> Model:
    model: Model = {
        "id": name,
        "object": "model",
        "created": server.began,
        "owned_by": "edge",
        "max_model_len": server.context,
    }
    if name != server.names.base:
        model["parent"] = server.names.base
    return model


async def _health(server: Server, request: Request) -> Response:
    if server.model.failure:
        return JSONResponse({"status": "error", "error": server.model.failure}, status_code=503)
    return JSONResponse({"status": "ok"})


async def _metrics(server: Server, request: Request) -> Response:
    metrics = server.metrics
    metrics.running.set(server.model.running)
    metrics.waiting.set(server.model.waiting)
    metrics.kept.set(server.model.kept_bytes)
    metrics.decoded.set(server.model.prompt_tokens_decoded)
    data = generate_latest(metrics.registry)
    return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")
