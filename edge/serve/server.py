"""`edge serve`: a model behind an OpenAI-compatible server."""

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.answer.answering import AnswerKind
from edge.errors import EdgeError, ServeError
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.memory import padded
from edge.llama.placement import place
from edge.llama.remote import devices_for
from edge.llama.serving import ServingEngine
from edge.runner import Runner
from edge.serve.app import make_app
from edge.serve.failures import error_response
from edge.serve.model import ServedModel
from edge.serve.names import served_names
from edge.serve.state import Server
from edge.system.hosts import is_this_machine
from edge.system.machine import memory


@dataclass(frozen=True)
class Address:
    """Where the server listens. Raises ServeError for an address that others can reach if there is no key."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free one."""
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server, such as http://localhost:3000."""

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?", origin):
                raise ServeError(
                    f"--cors-origin {origin}: is not an origin; name one as a browser does, such as "
                    "http://localhost:3000"
                )
        if not is_this_machine(self.host) and not self.api_key:
            raise ServeError(
                f"other machines can reach {self.host}: set an API key in EDGE_API_KEY, or serve on 127.0.0.1"
            )


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    max_tokens: int = 1024
    """Maximum number of tokens of a chat answer, if the request names none."""
    queue: int = 64
    """Requests that may wait."""
    body: int = 16 << 20
    """Bytes of a request."""
    receive_seconds: float = 30.0
    """Time in which the head of a request must arrive, and its body."""
    cache_ram: int = 1 << 30
    """Bytes of prompts and answers that are kept for those that begin the same."""


DEFAULT_ADDRESS, DEFAULT_LIMITS = Address(), Limits()
_CONTEXT, _PARALLEL = 8192, 4  # by default


def serve(
    path: Path,
    address: Address = DEFAULT_ADDRESS,
    limits: Limits = DEFAULT_LIMITS,
    loading: Loading = DEFAULT_LOADING,
    say: Callable[[str], None] = lambda text: None,
    answers: AnswerKind = "action",
    must_call: bool = False,
) -> None:
    """Serve a GGUF until interrupted.

    `loading.context`: tokens of a prompt and its answer, by default the model's context length and at most 8,192.
    `loading.parallel`: answers at the same time, by default 4. A request chooses one of `loading.adapters`, or the base
    alone, by the name of its file. `say` receives notes, and the address when the server
    is ready. `answers`: what a chat request gets that asks for no format. `must_call`: a request with tools that leaves
    it open gets a call. Raises ServeError if the address cannot be
    used, and what loading a model raises.
    """
    names = served_names(path, loading.adapters)
    with contextlib.closing(_listen(address.host, address.port)) as listener:
        free, found = memory(), devices_for(loading)
        with Runner.open(path, loading, partial(ServingEngine, most_kept=limits.cache_ram)) as runner:
            most = runner.context_length
            if loading.context is not None and loading.context > most:
                say(
                    f"note: the context length of the model is {most:,}; "
                    f"--context {loading.context:,} is reduced to it"
                )
            context, parallel = min(loading.context or _CONTEXT, most), loading.parallel or _PARALLEL
            wanted = replace(
                loading, context=context, parallel=parallel, flash_attention=runner.flash_attention
            )
            budget = min(limits.max_tokens, context // 2)
            with contextlib.suppress(EdgeError):  # reserve reports it if it does not fit
                placement = place(
                    runner.model_file, None, budget, memory=free, devices=found, loading=wanted, apart=True
                )
                say(str(placement))
            places = max(2, parallel)  # one is read while another is written
            runner.engine.reserve(places * padded(context), places)
            server = Server(
                ServedModel(runner, parallel, limits.queue),
                names,
                context,
                limits.max_tokens,
                limits.body,
                limits.receive_seconds,
                address.api_key,
                say,
                answers,
                must_call,
                cors_origins=address.cors_origins,
            )
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}/v1"
            ready = (
                f"serving {', '.join(names.listed(answers))} at {url}, {parallel} answers at a time, "
                f"context {context:,}, answers: {answers}"
            )
            _run(server, listener, lambda: say(ready))


def _run(server: Server, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve until interrupted. `started` is called when the model is ready."""
    server.model.start()
    try:
        started()
        uvicorn.Server(_config(server)).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        server.model.stop()
        server.log("stopped")


def _config(server: Server) -> uvicorn.Config:
    class Protocol(_Protocol):
        head_seconds = server.body_seconds

    return uvicorn.Config(
        make_app(server),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
        limit_concurrency=None,
        http=Protocol,
        ws="none",
    )


class _Protocol(H11Protocol):
    """Closes a connection over which a request's head does not arrive in time, where uvicorn waits without end; what is
    no HTTP gets an error of OpenAI's form."""

    head_seconds: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(self.head_seconds, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        if self._late is None and self.conn.their_state is h11.IDLE:
            self._late = self.loop.call_later(self.head_seconds, self._close_if_idle)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        response = error_response("The request is not valid HTTP, or its head is too large.")
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        pass  # it advises to install a library for websockets, which edge does not speak

    def _close_if_idle(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()

    def _end_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(f"{host}: is not an address of this machine: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"{host} port {port}: cannot be served on: {error.strerror or error}; choose another --port"
        ) from None
    return listener
