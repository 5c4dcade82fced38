"""A client's request: the body of OpenAI's chat and text completions, checked field by field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge.answer.answering import AnswerKind
from edge.answer.sampling import Sampling
from edge.errors import EdgeError, PromptError
from edge.prompt import Message, check_messages
from edge.serve.forms import FORMS, Guide, check_fields, read_guide
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
        value = json.loads(data.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except UnicodeDecodeError:
        raise BadRequestError("the body is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError("the body is not a JSON object")
    return value


def _finite(text: str) -> float:
    """A number that a response can repeat. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number that edge can keep")
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


def _check_names(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse a field whose name is almost a known one, or that limits the answer; a sentence about the others."""
    for name in body.keys() - set(_FIELDS):
        if meant := did_you_mean(name, _FIELDS, 0.9, parts=False):
            raise BadRequestError(f"unknown field {printable(name[:80])}; {meant}", printable(name[:80]))
    try:
        return check_fields(body, _FIELDS)
    except FieldError as error:
        raise BadRequestError(str(error), error.param) from None


def _read(
    body: Mapping[str, Any],
    messages: list[Message],
    prompts: tuple[str | list[int], ...],
    default: Guide,
    scores: int | None,
) -> ClientRequest:
    aside = _check_names(body)
    for name in ("tools", "functions", "function_call", "logit_bias", "audio", "prediction"):
        if body.get(name) and not (messages and name == "tools"):
            raise BadRequestError(f"{name} is not supported", name)
    n = _at_least_one(body, "n") or 1
    if body.get("best_of") not in (None, n):
        raise BadRequestError("best_of is not supported; use n", "best_of")
    try:
        guide = read_guide(body, default)
    except FieldError as error:
        raise BadRequestError(str(error), error.param) from None
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
    warnings = aside + tuple(
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


# Every name that is read, or refused below.
_FIELDS = (
    *FORMS,
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
    *("audio", "prediction", "reasoning_budget"),
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
