"""A client's request: the body of OpenAI's chat and text completions, checked field by field."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.answer.answering import AnswerKind
from edge.answer.sampling import Sampling
from edge.errors import EdgeError, PromptError
from edge.prompt import Message, check_messages
from edge.serve.messages import template_messages
from edge.serve.response import ErrorKind
from edge.system.text import did_you_mean, printable

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
    try:
        messages = template_messages(messages)
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None
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


def _check_names(body: Mapping[str, Any]) -> None:
    """Refuse a field whose name is almost a known one. Other unknown fields are ignored, as in other servers."""
    for name in body.keys() - set(_FIELDS):
        if meant := did_you_mean(name, _FIELDS, 0.9, parts=False):
            raise BadRequestError(f"unknown field {printable(name[:80])}; {meant}", name[:80])


def _read(
    body: Mapping[str, Any], messages: list[Message], prompt: str | list[int], default: Guide
) -> ClientRequest:
    _check_names(body)
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
    """The form that a request asks for. Other servers have other names for it: each is kept, or refused by its name."""
    for name in _UNKNOWN_FORMS:
        if body.get(name) is not None:
            raise BadRequestError(f"{name} is not supported; use response_format or grammar", name)
    given = [name for name in _FORMS if body.get(name) is not None]
    if len(given) > 1:
        raise BadRequestError(f"give either {given[0]} or {given[1]}, not both", given[1])
    try:
        return _FORMS[given[0]](body[given[0]], given[0]) if given else default
    except RecursionError:
        raise BadRequestError(f"{given[0]} is nested too deeply", given[0]) from None


def _gbnf(value: object, name: str) -> Guide:
    if not isinstance(value, str) or not value.strip():
        raise BadRequestError(f"{name} must be a text in GBNF", name)
    return Guide("gbnf", value, name)


def _schema(value: object, name: str) -> Guide:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise BadRequestError(f"{name} must be an object: a JSON schema", name)
    return Guide("schema", json.dumps(value), name)


def _choice(value: object, name: str) -> Guide:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise BadRequestError(f"{name} must be a list of texts", name)
    return Guide("gbnf", "root ::= " + " | ".join(map(_quoted, value)), name)


def _quoted(text: str) -> str:
    """A text as a literal of GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _structured(value: object, name: str) -> Guide:
    """vLLM's structured_outputs: one of its forms."""
    given = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else {}
    forms: dict[str, Callable[[object, str], Guide]] = {"json": _schema, "choice": _choice, "grammar": _gbnf}
    if len(given) != 1 or (key := next(iter(given))) not in (*forms, "json_object"):
        raise BadRequestError(f"{name} must have exactly one of json, choice, grammar, json_object", name)
    return forms[key](given[key], name) if key in forms else Guide("schema", _ANY_OBJECT, name)


def _format(value: object, name: str) -> Guide:
    """Ollama's format: "json", or a schema."""
    return Guide("schema", _ANY_OBJECT, name) if value == "json" else _schema(value, name)


def _response_format(form: object, name: str) -> Guide:
    kind = form.get("type") if isinstance(form, dict) else None
    if not isinstance(form, dict) or kind not in ("text", "json_object", "json_schema"):
        raise BadRequestError("response_format.type must be text, json_object or json_schema", name)
    if kind == "text":
        return Guide("text")
    schema = form.get("schema")
    if kind == "json_schema" and schema is None:
        inner = form.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise BadRequestError("response_format.json_schema.schema must be an object", name)
    if schema is None:
        return Guide("schema", _ANY_OBJECT, name)
    if not isinstance(schema, dict):
        raise BadRequestError("response_format.schema must be an object", name)
    return Guide("schema", json.dumps(schema), name)


_ANY_OBJECT = '{"type": "object"}'
_FORMS: dict[str, Callable[[object, str], Guide]] = {
    "response_format": _response_format,
    "grammar": _gbnf,
    "json_schema": _schema,
    "guided_json": _schema,
    "guided_choice": _choice,
    "guided_grammar": _gbnf,
    "structured_outputs": _structured,
    "format": _format,
}
_UNKNOWN_FORMS = ("guided_regex", "guided_whitespace_pattern", "structural_tag", "regex", "ebnf")
# Every name that this module reads or that OpenAI's clients send.
_FIELDS = (
    *_FORMS,
    *_UNKNOWN_FORMS,
    *(
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
    ),
    *(
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
    ),
    *(
        "ignore_eos",
        "n",
        "best_of",
        "echo",
        "suffix",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "tools",
        "tool_choice",
    ),
    *("functions", "function_call", "parallel_tool_calls", "user", "metadata", "store", "reasoning_effort"),
)


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
