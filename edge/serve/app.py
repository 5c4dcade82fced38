"""The HTTP part of `edge serve`: which path has which endpoint; models, health and metrics."""

from functools import partial
from typing import Any

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edge.serve.anthropic_write import messages_refusal
from edge.serve.dialects import CHAT, COMPLETION, MESSAGES, RESPONSES, count_tokens
from edge.serve.endpoint import Asking, Endpoint
from edge.serve.failures import error_response
from edge.serve.guard import Guarded
from edge.serve.page import page, status
from edge.serve.response import Model, ModelList
from edge.serve.state import Server
from edge.serve.tokens import detokenize, embed, tokenize

_WITHOUT_PREFIX = ("/", "/status", "/health", "/metrics")


def make_app(server: Server) -> ASGIApp:
    """The ASGI application. Each path of an API also works without `/v1`."""
    routes = [
        Route(f"{prefix}{path}", endpoint, methods=[method])
        for path, method, endpoint in _endpoints(server)
        for prefix in (("/v1", "") if path not in _WITHOUT_PREFIX else ("",))
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    return Guarded(app, server)


def _endpoints(server: Server) -> list[tuple[str, str, Any]]:
    return [
        ("/", "GET", page),
        ("/status", "GET", partial(status, server)),
        ("/chat/completions", "POST", Endpoint(server, CHAT)),
        ("/completions", "POST", Endpoint(server, COMPLETION)),
        ("/responses", "POST", Endpoint(server, RESPONSES)),
        ("/messages", "POST", Endpoint(server, MESSAGES)),
        ("/messages/count_tokens", "POST", Asking(server, count_tokens, messages_refusal)),
        ("/embeddings", "POST", Asking(server, embed)),
        ("/tokenize", "POST", Asking(server, tokenize)),
        ("/detokenize", "POST", Asking(server, detokenize)),
        ("/models", "GET", partial(_models, server)),
        ("/models/{name:path}", "GET", partial(_models, server)),
        ("/health", "GET", partial(_health, server)),
        ("/metrics", "GET", partial(_metrics, server)),
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path[:100]
    message = {
        404: f"{path} does not exist; use /v1/chat/completions, /v1/responses, /v1/messages, /v1/completions "
        "or /v1/models",
        405: f"{path} does not accept {request.method}",
    }.get(status, getattr(error, "detail", "") or "error")
    response = error_response(message, status=status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _models(server: Server, request: Request) -> Response:
    models = [_model(server, name) for name in server.names.listed(server.answers)]
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
