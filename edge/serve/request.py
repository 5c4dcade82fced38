"""A client's request: the body of OpenAI's chat and text completions, checked field by field."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edge.answer.answering import AnswerKind
from edge.answer.sampling import Sampling
from edge.errors import EdgeError, PromptError
from edge.prompt import Message, check_messages
from edge.serve.messages import template_messages
from edge.serve.response import ErrorKind
from edge.serve.tools import FieldError, ThinkingRequest, ToolRequest, read_thinking, read_tools
from edge.system.text import did_you_mean, printable

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_STOPS = 16
MOST_SCORES = 20


class BadRequestError(Exception):
    """A request that the server refuses. `param`: the field; `status`, `kind`, `code`: as in OpenAI's errors.

    `retry_after`: seconds after which the client may try again.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: ErrorKind = "invalid_request_error",
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
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
    prompts: tuple[str | list[int], ...]
    """Of a completion, each as text or token ids."""
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
    n: int = 1
    """Answers for each prompt."""
    scores: int | None = None
    """How many of the most probable tokens the answer gives with each token; None: no log probabilities."""
    continued: str | None = None
    """The beginning of the answer, which the client has written."""
    warnings: tuple[str, ...] = ()
    """Fields that are ignored, because the answer must be complete: one sentence for each."""
    tools: ToolRequest | None = None
    thinking: ThinkingRequest = field(default_factory=ThinkingRequest)


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
    for name in ("logprobs", "echo"):
        _flag(body, name)
    most = _whole(body, "top_logprobs") or 0
    if most and not body.get("logprobs"):
        raise BadRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    try:
        tools, thinking = read_tools(body), read_thinking(body)
    except FieldError as error:
        raise BadRequestError(str(error), error.param) from None
    kind = "text" if tools is not None else answers  # a request with tools never gets an action
    request = _read(body, messages, (), Guide(kind), most if body.get("logprobs") else None)
    return _continued(body, replace(request, tools=tools, thinking=thinking))


def _continued(body: Mapping[str, Any], request: ClientRequest) -> ClientRequest:
    """The request with the last message as the beginning of the answer, if that is the model's own text."""
    wanted = body.get("continue_final_message")
    _flag(body, "continue_final_message")
    if not _flag(body, "add_generation_prompt", True) and not wanted:
        raise BadRequestError(
            "add_generation_prompt can be false only with continue_final_message: true",
            "add_generation_prompt",
        )
    last = request.messages[-1]
    text = last.get("content")
    own = last["role"] == "assistant" and isinstance(text, str) and not last.get("tool_calls")
    free = request.guide.kind == "text" and not body.get("tools")
    if wanted:
        name = "continue_final_message"
        if not own:
            raise BadRequestError(f"{name} needs a last message of the role assistant, with text", name)
        if not free:
            raise BadRequestError(
                f'{name} works only for text answers: add response_format {{"type": "text"}}, without tools',
                name,
            )
    if wanted is False or not own or not free:
        return request
    if len(request.messages) == 1:
        raise BadRequestError("the first message must not be the model's own", "messages")
    return replace(request, messages=request.messages[:-1], continued=str(text))


def read_completion(body: Mapping[str, Any]) -> ClientRequest:
    """A body for /v1/completions. Raises BadRequestError."""
    for name in ("echo", "suffix"):
        if body.get(name):
            raise BadRequestError(f"{name} is not supported", name)
    scores = None if body.get("logprobs") is False else _whole(body, "logprobs")
    return _read(body, [], read_prompts(body.get("prompt"), "prompt"), Guide("text"), scores)


def read_prompts(value: object, name: str) -> tuple[str | list[int], ...]:
    """Prompts: one text, one list of token ids, or a list of texts and lists of token ids. Raises BadRequestError."""
    many = isinstance(value, list) and not all(type(token) is int for token in value)
    prompts = tuple(value) if many and isinstance(value, list) else (value,)
    for prompt in prompts:
        ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not prompt or not (isinstance(prompt, str) or ids):
            raise BadRequestError(
                f"{name} must be a text, a list of token ids, or a list of these, and none of them empty",
                name,
            )
    return prompts


def _check_names(body: Mapping[str, Any]) -> None:
    """Refuse a field whose name is almost a known one. Other unknown fields are ignored, as in other servers."""
    for name in body.keys() - set(_FIELDS):
        if meant := did_you_mean(name, _FIELDS, 0.9, parts=False):
            raise BadRequestError(f"unknown field {printable(name[:80])}; {meant}", name[:80])


def _read(
    body: Mapping[str, Any],
    messages: list[Message],
    prompts: tuple[str | list[int], ...],
    default: Guide,
    scores: int | None,
) -> ClientRequest:
    _check_names(body)
    for name in ("tools", "functions", "function_call", "logit_bias", "audio", "prediction"):
        if body.get(name) and not (messages and name == "tools"):
            raise BadRequestError(f"{name} is not supported", name)
    n = _at_least_one(body, "n") or 1
    if body.get("best_of") not in (None, n):
        raise BadRequestError("best_of is not supported; use n", "best_of")
    guide = _guide(body, default)
    if scores is not None and (guide.kind != "text" or body.get("tools")):
        raise BadRequestError(
            'logprobs are for text answers only: add response_format {"type": "text"}, without tools',
            "logprobs",
        )
    if scores is not None and not 0 <= scores <= MOST_SCORES:
        name = "top_logprobs" if messages else "logprobs"
        raise BadRequestError(f"{name} is {scores}; it must be from 0 to {MOST_SCORES}", name)
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise BadRequestError("stop must be a text or a list of texts", "stop")
    if len(stops) > MOST_STOPS:
        raise BadRequestError(f"stop has {len(stops)} texts; the maximum is {MOST_STOPS}", "stop")
    warnings = tuple(
        f"{name} is ignored: it would cut or prolong an answer that must be complete"
        for name in ("stop", "ignore_eos")
        if body.get(name) and guide.kind != "text"
    )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    sampling = _sampling(body)
    return ClientRequest(
        messages,
        prompts,
        guide,
        _max_tokens(body),
        sampling,
        tuple(stops),
        _flag(body, "stream"),
        _flag(options, "include_usage"),
        _flag(body, "ignore_eos"),
        model if isinstance(model := body.get("model"), str) else None,
        n,
        scores,
        warnings=warnings,
    )


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """The maximum number of tokens of an answer; None: the server's own. -1 means as much as there is room."""
    for name in ("max_completion_tokens", "max_tokens"):
        if _whole(body, name) == -1:
            return 1 << 31
        if (value := _at_least_one(body, name)) is not None:
            return value
    return None


def _at_least_one(body: Mapping[str, Any], name: str) -> int | None:
    value = _whole(body, name)
    if value is not None and value < 1:
        raise BadRequestError(f"{name} is {value}; it must be at least 1", name)
    return value


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
            seed=None if body.get("seed") == -1 else _whole(body, "seed"),  # -1 is llama-server's "random"
            presence_penalty=number("presence_penalty", default.presence_penalty),
            frequency_penalty=number("frequency_penalty", default.frequency_penalty),
        )
    except EdgeError as error:
        raise BadRequestError(str(error), str(error).split(" ")[0]) from None


def _top_k(body: Mapping[str, Any]) -> int:
    top_k = _whole(body, "top_k")
    return 0 if top_k is None or top_k == -1 else top_k  # vLLM also turns it off with -1


def _guide(body: Mapping[str, Any], default: Guide) -> Guide:
    """The form that a request asks for. Other servers have other names for it: each is kept, or refused by its name."""
    for name in _UNKNOWN_FORMS:
        if body.get(name) not in (None, False):
            raise BadRequestError(f"{name} is not supported; use response_format or grammar", name)
    for name in _HOLDERS:
        inner = body.get(name)
        held = [one for one in inner if one in (*_FORMS, *_UNKNOWN_FORMS)] if isinstance(inner, dict) else []
        if held:
            raise BadRequestError(
                f"{name}.{held[0]} is not supported; use response_format or grammar at the top level", name
            )
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
_UNKNOWN_FORMS = (
    *("guided_regex", "guided_whitespace_pattern", "guided_json_object", "structural_tag", "regex", "ebnf"),
    *("lark", "response_schema", "json_object", "output_format"),
)
# Where other interfaces have a form, and where clients leave fields that belong at the top level.
_HOLDERS = ("text", "output_config", "extra_body", "nvext")
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
    *("chat_template_kwargs", "thinking_budget", "continue_final_message", "add_generation_prompt"),
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


def _flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} must be true or false", name)
    return value
