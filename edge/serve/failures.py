"""Errors in OpenAI's form, with their status."""

from starlette.responses import JSONResponse

from edge.errors import ContextError, GrammarError
from edge.serve.request import BadRequestError
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


def refusal(error: BadRequestError) -> JSONResponse:
    """The response to a request that the server refuses, in OpenAI's form."""
    response = error_response(
        str(error), status=error.status, kind=error.kind, param=error.param, code=error.code
    )
    return with_retry(response, error)


def with_retry(response: JSONResponse, error: BadRequestError) -> JSONResponse:
    """The response with the time after which the client may try again, if the error has one."""
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response
