"""The page at `/`: what is loaded, the places, the queue, and a prompt box. `/status` has its data."""

import base64
import hashlib
import re
import time
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.serve.state import Server


async def page(request: Request) -> Response:
    """The page. It is the same for each server: it gets what it shows from `/status`."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run only its own script."""
    text = (files("edge.serve") / "page.html").read_text(encoding="utf-8")
    script, style = (
        "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"
        for tag in ("script", "style")
        if (found := re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) is not None
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def status(server: Server, request: Request) -> Response:
    """What is loaded, the places and the queue, as JSON. It has nothing of prompts or answers."""
    model, file = server.model, server.model.runner.model_file
    return JSONResponse(
        {
            "status": "error" if model.failure else "ok",
            "error": model.failure,
            "models": server.names.listed(server.answers),
            "architecture": file.architecture,
            "parameters": file.n_params,
            "file_type": file.file_type,
            "file_bytes": file.n_bytes,
            "answers": server.answers,
            "context": server.context,
            "max_tokens": server.max_tokens,
            "places": {"all": model.parallel, "used": model.running},
            "queue": {"all": model.queue_limit, "used": model.waiting},
            "cache_bytes": model.kept_bytes,
            "seconds": round(time.time() - server.began),
        }
    )
