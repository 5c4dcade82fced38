"""`edge serve`: a model behind an OpenAI-compatible server."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import EdgeError, ServeError
from edge.llama.devices import devices
from edge.llama.memory import BATCH, padded
from edge.llama.placement import place
from edge.llama.serving import ServingEngine
from edge.runner import Runner
from edge.serve.app import Server, error_response, is_local, make_app
from edge.serve.model import ServedModel
from edge.system.machine import memory


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key: str | None = None,
    parallel: int = 4,
    most_waiting: int = 64,
    context: int | None = None,
    max_tokens: int = 1024,
    body_limit: int = 16 << 20,
    receive_seconds: float = 30.0,
    cache_ram: int = 1 << 30,
    gpu_layers: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
    mmap: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a GGUF until interrupted. `context`: tokens of a prompt and its answer; by default the model's, at most
    8,192. `receive_seconds`: in which a request's head must arrive, and its body. `cache_ram`: bytes of prompts and
    answers kept for those that begin the same. `port` 0 takes a free one. `say` is told the address once it answers.

    Raises ServeError for an address that cannot be had, and what loading a model raises.
    """
    if not is_local(host) and not api_key:
        raise ServeError(
            f"{host} can be reached by others: set an API key in EDGE_API_KEY, or serve on 127.0.0.1"
        )
    listener = _listen(host, port)
    with contextlib.closing(listener):
        free, found = memory(), devices()
        with Runner.load(
            path,
            gpu_layers=gpu_layers,
            threads=threads,
            batch=batch or BATCH,
            kv_type=kv_type,
            flash_attention=flash_attention,
            mmap=mmap,
            engine_class=partial(ServingEngine, most_kept=cache_ram),
        ) as runner:
            most = runner.engine.context_length
            if context is not None and context > most:
                say(f"note: the model's context is {most:,}; --context {context:,} is cut to it")
            context = min(context or 8192, most)
            with contextlib.suppress(EdgeError):  # reserve says it where it cannot be
                say(
                    str(
                        place(
                            runner.model_file,
                            None,
                            min(max_tokens, context // 2),
                            memory=free,
                            devices=found,
                            context=context,
                            parallel=parallel,
                            gpu_layers=gpu_layers,
                            threads=threads,
                            batch=batch,
                            kv_type=kv_type,
                            flash_attention=runner.engine.flash_attention,
                            mmap=mmap,
                            apart=True,
                        )
                    )
                )
            places = max(2, parallel)  # one is read while another is written
            runner.engine.reserve(places * padded(context), places)
            model = ServedModel(runner, parallel, most_waiting)
            server = Server(model, path.stem, context, max_tokens, body_limit, receive_seconds, api_key)

            class Protocol(_Protocol):
                head_seconds = receive_seconds

            config = uvicorn.Config(
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
            model.start()
            try:
                address, real_port = listener.getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                say(
                    f"serving {path.stem} at http://{shown}:{real_port}/v1, {parallel} at once, context {context:,}"
                )
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:
                pass
            finally:
                model.stop()


class _Protocol(H11Protocol):
    """Closes a connection over which a request's head does not arrive in time, where uvicorn waits for ever; what is
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
        response = error_response("the request is no valid HTTP, or its head is too large")
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
        raise ServeError(f"{host}: is no address of this machine: {error.strerror or error}") from None
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
