"""Who may send requests to the server. Each request is counted and logged, without its content."""

import hmac
import ipaddress
import time
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.serve.failures import error_response
from edge.serve.state import Server
from edge.system.text import printable

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_POLLED = ("/health", "/metrics")


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


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
