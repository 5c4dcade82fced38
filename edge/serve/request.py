"""A client's request: the body of OpenAI's chat and text completions, checked field by field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.answer.answering import AnswerKind
from edge.answer.sampling import Sampling
from edge.errors import EdgeError, PromptError
from edge.prompt import Message, check_messages
from edge.serve.response import ErrorKind

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_STOPS = 16


class BadRequestError(Exception):
    """A request that the server refuses. `param`: the field; `status`, `kind`, `code`: as in OpenAI's errors."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: ErrorKind = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.kind, self.code = param, status, kind, code


@dataclass(frozen=True)
class Guide:
    """The form of an answer: the action, a JSON schema, a GBNF grammar, or any text."""

    kind: Literal["action", "schema", "gbnf", "text"]
    text: str = ""
    param: str | None = None


@dataclass(frozen=True)
class ClientRequest:
    """A checked request."""

    messages: list[Message]
    """Of a chat; empty for a completion."""
    prompt: str | list[int]
    """Of a completion, as text or token ids."""
    guide: Guide
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    """Write up to max_tokens, as in vLLM and llama-server; for text only."""
    model: str | None = None
    """The name of the model, as far as it is a text."""


def read_body(data: bytes) -> dict[str, Any]:
    """A request's body as a JSON object. Raises BadRequestError."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadRequestError("the body is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError("the body is not a JSON object")
    return value


def read_chat(body: Mapping[str, Any], answers: AnswerKind = "action") -> ClientRequest:
    """A body for /v1/chat/completions; `answers`: what a request gets that asks for no format.

    Raises BadRequestError.
    """
    try:
        messages = check_messages(body.get("messages"))
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None
    for index, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise BadRequestError(
                f"message {index} has the role {str(message['role'])[:40]!r}; use one of {', '.join(ROLES)}",
                "messages",
            )
    return _read(body, messages, "", Guide(answers))


def read_completion(body: Mapping[str, Any]) -> ClientRequest:
    """A body for /v1/completions. Raises BadRequestError."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not prompt or not (isinstance(prompt, str) or ids):
        raise BadRequestError("prompt must be one text, or one list of token ids", "prompt")
    for name in ("echo", "suffix"):
        if body.get(name):
            raise BadRequestError(f"{name} is not supported", name)
    return _read(body, [], prompt, Guide("text"))


def _read(
    body: Mapping[str, Any], messages: list[Message], prompt: str | list[int], default: Guide
) -> ClientRequest:
    for name in ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio", "prediction"):
        if body.get(name):
            raise BadRequestError(f"{name} is not supported", name)
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise BadRequestError(
                f"{name} must be 1; send several requests instead: the server reads the prompt once", name
            )
    for name in ("presence_penalty", "frequency_penalty"):
        if body.get(name) not in (None, 0):
            raise BadRequestError(f"{name} is not supported; use repetition_penalty", name)
    guide = _guide(body, default)
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise BadRequestError("stop must be a text or a list of texts", "stop")
    if len(stops) > MOST_STOPS:
        raise BadRequestError(f"stop has {len(stops)} texts; the maximum is {MOST_STOPS}", "stop")
    if stops and guide.kind != "text":
        raise BadRequestError(
            'stop would cut an answer that must be complete; use it with response_format {"type": "text"}',
            "stop",
        )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    sampling = _sampling(body)
    max_tokens = _whole(body, "max_completion_tokens")
    if max_tokens is None:
        max_tokens = _whole(body, "max_tokens")
    if max_tokens is not None and max_tokens < 1:
        raise BadRequestError(f"max_tokens is {max_tokens}; it must be at least 1", "max_tokens")
    return ClientRequest(
        messages,
        prompt,
        guide,
        max_tokens,
        sampling,
        tuple(stops),
        _flag(body, "stream"),
        _flag(options, "include_usage"),
        _flag(body, "ignore_eos"),
        model if isinstance(model := body.get("model"), str) else None,
    )


def _sampling(body: Mapping[str, Any]) -> Sampling:
    def number(name: str, default: float) -> float:
        value = _number(body, name)
        return default if value is None else value

    default = Sampling()
    try:
        return Sampling(
            temperature=number("temperature", default.temperature),
            top_p=number("top_p", default.top_p),
            min_p=number("min_p", default.min_p),
            repetition_penalty=number("repetition_penalty", default.repetition_penalty),
            top_k=_top_k(body),
            seed=_whole(body, "seed"),
        )
    except EdgeError as error:
        raise BadRequestError(str(error), str(error).split(" ")[0]) from None


def _top_k(body: Mapping[str, Any]) -> int:
    top_k = _whole(body, "top_k")
    return 0 if top_k is None or top_k == -1 else top_k  # vLLM also turns it off with -1


def _guide(body: Mapping[str, Any], default: Guide) -> Guide:
    form, grammar = body.get("response_format"), body.get("grammar")
    if grammar is not None:
        if not isinstance(grammar, str) or not grammar.strip():
            raise BadRequestError("grammar must be a text in GBNF", "grammar")
        if form is not None:
            raise BadRequestError("give either response_format or grammar, not both", "grammar")
        return Guide("gbnf", grammar, "grammar")
    if form is None:
        return default
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return Guide("text")
    if kind == "json_object":
        return Guide("schema", '{"type": "object"}', "response_format")
    if kind == "json_schema":
        inner = form.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise BadRequestError("response_format.json_schema.schema must be an object", "response_format")
        return Guide("schema", json.dumps(schema), "response_format")
    raise BadRequestError("response_format.type must be text, json_object or json_schema", "response_format")


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequestError(f"{name} must be a number", name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise BadRequestError(f"{name} must be a whole number", name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise BadRequestError(f"{name} must be true or false", name)
    return bool(value)
