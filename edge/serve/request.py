"""What a client asks for: the bodies of OpenAI's chat and text completions, checked field by field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.answer.sampling import Sampling
from edge.errors import EdgeError, PromptError
from edge.prompt import Message, check_messages

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_STOPS = 16


class BadRequestError(Exception):
    """A request that cannot be answered. `param`: the field; `status`, `kind`, `code`: as in OpenAI's errors."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.kind, self.code = param, status, kind, code


@dataclass(frozen=True)
class Guide:
    """What an answer keeps to: the action, a JSON schema, a GBNF grammar, or nothing (`text`)."""

    kind: Literal["action", "schema", "gbnf", "text"]
    text: str = ""
    param: str | None = None


@dataclass(frozen=True)
class Asked:
    """A checked request. `messages` of a chat, or the `prompt` of a completion: text or token ids."""

    messages: list[Message]
    prompt: str | list[int]
    guide: Guide
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    """Go on to max_tokens, as vLLM and llama-server have it: for text alone."""


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


def read_chat(body: Mapping[str, Any]) -> Asked:
    """A body for /v1/chat/completions. Raises BadRequestError."""
    try:
        messages = check_messages(body.get("messages"))
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None
    for index, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise BadRequestError(
                f"message {index} has the role {str(message['role'])[:40]!r}; known: {', '.join(ROLES)}",
                "messages",
            )
    return _read(body, messages, "", Guide("action"))


def read_completion(body: Mapping[str, Any]) -> Asked:
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


def _read(body: Mapping[str, Any], messages: list[Message], prompt: str | list[int], default: Guide) -> Asked:
    for name in ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio", "prediction"):
        if body.get(name):
            raise BadRequestError(f"{name} is not supported", name)
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise BadRequestError(
                f"{name} must be 1: ask several times instead, the prompt is read once", name
            )
    for name in ("presence_penalty", "frequency_penalty"):
        if body.get(name) not in (None, 0):
            raise BadRequestError(f"{name} is not supported; repetition_penalty is", name)
    guide = _guide(body, default)
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise BadRequestError("stop must be a text or a list of texts", "stop")
    if len(stops) > MOST_STOPS:
        raise BadRequestError(f"stop has {len(stops)} texts; at most {MOST_STOPS} are looked for", "stop")
    if stops and guide.kind != "text":
        raise BadRequestError(
            'stop would cut a text that is valid as a whole; use it with response_format {"type": "text"}',
            "stop",
        )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    numbers = {name: _number(body, name) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    wholes = {name: _whole(body, name) for name in ("top_k", "seed")}
    if wholes["top_k"] == -1:  # vLLM's way to say off
        wholes["top_k"] = 0
    given: dict[str, Any] = {
        name: value for name, value in {**numbers, **wholes}.items() if value is not None
    }
    try:
        sampling = Sampling(**given)
    except EdgeError as error:
        raise BadRequestError(str(error), str(error).split(" ")[0]) from None
    most = _whole(body, "max_completion_tokens")
    most = _whole(body, "max_tokens") if most is None else most
    if most is not None and most < 1:
        raise BadRequestError(f"max_tokens is {most}; it must be at least 1", "max_tokens")
    return Asked(
        messages,
        prompt,
        guide,
        most,
        sampling,
        tuple(stops),
        _flag(body, "stream"),
        _flag(options, "include_usage"),
        _flag(body, "ignore_eos"),
    )


def _guide(body: Mapping[str, Any], default: Guide) -> Guide:
    wanted, grammar = body.get("response_format"), body.get("grammar")
    if grammar is not None:
        if not isinstance(grammar, str) or not grammar.strip():
            raise BadRequestError("grammar must be a text in GBNF", "grammar")
        if wanted is not None:
            raise BadRequestError("give either response_format or grammar", "grammar")
        return Guide("gbnf", grammar, "grammar")
    if wanted is None:
        return default
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return Guide("text")
    if kind == "json_object":
        return Guide("schema", '{"type": "object"}', "response_format")
    if kind == "json_schema":
        inner = wanted.get("json_schema")
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
