"""Who may send requests to the server. Each request is counted and logged, without its content."""

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.serve.failures import error_response
from edge.serve.state import Server
from edge.system.hosts import is_this_machine
from edge.system.text import printable

_API = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/messages",
    "/messages/count_tokens",
    "/models",
    "/embeddings",
    "/tokenize",
    "/detokenize",
)
_PATHS = ("/", "/status", "/health", "/metrics", *(f"/v1{path}" for path in _API))
_POLLED = ("/health", "/metrics", "/status")
_OPEN = ("/health", "/")  # also without the key: the page holds nothing of this server


@dataclass
class Guarded:
    """Counts requests, and refuses those without permission."""

    app: ASGIApp
    server: Server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        status = 499  # the client went away before its answer began
        began = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        named = headers.get("origin") if headers.get("origin") in self.server.cors_origins else None

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if named is not None:
                    message = {**message, "headers": [*message.get("headers", ()), *_cors(named)]}
            await send(message)

        try:
            if (refusal := self._refusal(scope, headers)) is not None:
                await refusal(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        except BaseException:
            status = 500
            raise
        finally:
            self.server.metrics.requests.labels(_known(path), str(status)).inc()
            if status != 200 or path not in _POLLED:
                client = (scope.get("client") or ("?",))[0]
                asked = printable(f"{scope['method']} {scope['path']}")[:200]
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                self.server.log(f"{now} {client} {asked} {status} {time.monotonic() - began:.2f} s")

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request without permission, and to OPTIONS."""
        origin = headers.get("origin")
        if self.server.api_key is None:
            # Without a key only programs on this machine have access: no web page, whatever name it has for this
            # server, but the page of this server itself.
            foreign = (
                origin is not None and origin not in self.server.cors_origins and not _own(origin, headers)
            )
            if not is_this_machine(_name(headers)) or (foreign and scope["method"] != "OPTIONS"):
                return error_response(
                    "requests from web pages, or with a Host other than localhost, need an API key",
                    status=403,
                    kind="permission_error",
                )
        if scope["method"] == "OPTIONS":
            allow = {"Allow": "GET, POST, OPTIONS"}
            return Response(
                status_code=204, headers=allow
            )  # a browser takes it as a refusal: no CORS headers
        if self.server.api_key is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), self.server.api_key.encode()):
                return error_response("the API key is missing or wrong", status=401, code="invalid_api_key")
        return None


def _known(path: str) -> str:
    """A path of the metrics: clients choose the paths, so the number of others has no limit."""
    if path not in _PATHS:
        path = f"/v1{path}" if f"/v1{path}" in _PATHS else path
        path = "/v1/models" if path.startswith(("/v1/models/", "/models/")) else path
    return path if path in _PATHS else "other"


def _name(headers: Mapping[str, str]) -> str:
    """The name in the Host header, without its port."""
    host = headers.get("host", "localhost").rpartition(":")
    return host[0] if host[1] and not host[2].endswith("]") else "".join(host)


def _own(origin: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of this server sent the request: its origin is the address that the request went to.

    Both come from the browser. A page of another program, also on another port of this machine, has another origin.
    """
    return origin == f"http://{headers.get('host', '')}"


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    """The headers that let pages of an origin read an answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", b"*, Authorization"),
        (b"access-control-allow-private-network", b"true"),
        (b"access-control-expose-headers", b"Retry-After"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"Origin"),
    ]
