"""`edge serve`: a model behind an OpenAI-compatible server."""

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from edge.errors import EdgeError, ServeError
from edge.footprint import BATCH
from edge.machine import devices, memory
from edge.placement import place
from edge.runner import Runner
from edge.serve_app import Server, make_app
from edge.serve_engine import ServingEngine
from edge.serve_model import ServedModel


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
    body_seconds: float = 30.0,
    gpu_layers: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
    mmap: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a GGUF until interrupted. `context`: tokens of a prompt and its answer; by default the model's, at most
    8,192. `port` 0 takes a free one. `say` is told the address once it answers.

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
            engine_class=ServingEngine,
        ) as runner:
            context = min(context or 8192, runner.engine.context_length)
            with contextlib.suppress(EdgeError):  # reserve says it where it cannot be
                say(
                    str(
                        place(
                            runner.model_file,
                            [context - max_tokens] if context > max_tokens else [context // 2],
                            min(max_tokens, context // 2),
                            memory=free,
                            devices=found,
                            parallel=parallel,
                            gpu_layers=gpu_layers,
                            threads=threads,
                            batch=batch,
                            kv_type=kv_type,
                            flash_attention=runner.engine.flash_attention,
                            mmap=mmap,
                        )
                    )
                )
            runner.engine.reserve(parallel * context, parallel + 1)
            model = ServedModel(runner, parallel, most_waiting)
            server = Server(model, path.stem, context, max_tokens, body_limit, body_seconds, api_key)
            config = uvicorn.Config(
                make_app(server),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=5,
                server_header=False,
                h11_max_incomplete_event_size=64 << 10,
                limit_concurrency=None,
                http="h11",
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


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
