"""Errors in OpenAI's form, with their status."""

from starlette.responses import JSONResponse

from edge.errors import ContextError, GrammarError
from edge.serve.response import ErrorBody, ErrorKind


def error_response(
    message: str,
    *,
    status: int = 400,
    kind: ErrorKind = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse(error_body(message, kind, param, code), status)


def error_body(
    message: str, kind: ErrorKind = "invalid_request_error", param: str | None = None, code: str | None = None
) -> ErrorBody:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failure(error: Exception) -> tuple[ErrorBody, int]:
    """The body and the status for an exception that ended an answer."""
    if isinstance(error, ContextError | GrammarError):
        return error_body(str(error)), 400
    return error_body(str(error) or type(error).__name__, "server_error"), 500
