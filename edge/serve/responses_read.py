"""Requests of OpenAI's Responses API, translated into chat requests.

The format: https://platform.openai.com/docs/api-reference/responses/create. The server keeps no responses, so each
request has its whole conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge.answer.answering import AnswerKind
from edge.errors import PromptError
from edge.serve.forms import check_fields
from edge.serve.request import ROLES, BadRequestError, ClientRequest, read_chat
from edge.serve.tools import FieldError
from edge.serve.turns import Turns, text_field

_SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "thinking_budget",
)
"""Fields that mean the same in a chat request."""
_NOT_KEPT = {
    "previous_response_id": "the server keeps no responses; send the whole conversation in input",
    "conversation": "the server keeps no conversations; send the whole conversation in input",
    "background": "the server keeps no responses; use stream",
    "prompt": "the server keeps no prompts; send instructions and input",
    "top_logprobs": "use /v1/chat/completions",
}
_FIELDS = (
    *_SAME,
    *("instructions", "input", "tools", "tool_choice", "max_output_tokens", "reasoning", "truncation"),
    *_NOT_KEPT,
)
_INSIDE = {"text": ("format", "verbosity")}
_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@dataclass(frozen=True)
class Names:
    """Tools whose names or kinds differ in the chat form, by their names there."""

    custom: frozenset[str] = frozenset()
    """Tools that take a text instead of JSON."""
    spaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The namespace and the name in it."""


@dataclass(frozen=True)
class ResponsesRequest(ClientRequest):
    """A chat request, with what its response tells of it."""

    names: Names = field(default_factory=Names)
    told: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that the response repeats."""


def read_responses(body: Mapping[str, Any], answers: AnswerKind) -> ResponsesRequest:
    """A body for /v1/responses. Raises BadRequestError."""
    for name, reason in _NOT_KEPT.items():
        if body.get(name):
            raise BadRequestError(f"{name} is not supported: {reason}", name)
    try:
        unknown = check_fields(body, _FIELDS, _INSIDE, "text.format")
    except FieldError as error:
        raise BadRequestError(str(error), error.param) from None
    tools, names, aside = _tools(body.get("tools"))
    warnings = [*unknown, *aside]
    if body.get("truncation") not in (None, "disabled"):
        warnings.append("truncation is ignored: a prompt that is too long is refused")
    chat: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = _messages(body, names)
    chat["max_tokens"] = body.get("max_output_tokens")
    if isinstance(options := body.get("reasoning"), dict):
        chat["reasoning_effort"] = options.get("effort")
    if (form := _format(body.get("text"))) is not None:
        chat["response_format"] = form
    if tools:
        chat["tools"], chat["tool_choice"] = _chosen(body.get("tool_choice"), tools)
    elif body.get("tool_choice") not in (None, "auto", "none"):
        raise BadRequestError("tool_choice names a tool, and no tool can be called", "tool_choice")
    chat = {name: value for name, value in chat.items() if value is not None}
    try:
        request = read_chat(chat, answers)
    except BadRequestError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    whole = ResponsesRequest(**fields, names=names, told=_told(body))
    return replace(whole, warnings=(*warnings, *request.warnings))


_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    reasoning = body.get("reasoning")
    reasoning = reasoning if isinstance(reasoning, dict) else {}
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "temperature": body.get("temperature"),
        "text": {"format": form or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
    }


def _messages(body: Mapping[str, Any], names: Names) -> list[dict[str, Any]]:
    turns = Turns()
    items = body.get("input")
    try:
        if body.get("instructions") is not None:
            if not isinstance(body["instructions"], str):
                raise BadRequestError("instructions must be a text", "instructions")
            turns.say("system", body["instructions"], "instructions")
        if isinstance(items, str):
            turns.say("user", items, "input")
        elif isinstance(items, list) and items:
            for index, item in enumerate(items):
                _add(turns, item, f"input[{index}]", names)
        else:
            raise BadRequestError("input must be a text, or a list of items that is not empty", "input")
    except PromptError as error:
        raise BadRequestError(str(error), "input") from None
    return turns.messages


def _add(turns: Turns, item: object, name: str, names: Names) -> None:
    """Add one item of the input. Raises PromptError."""
    if not isinstance(item, dict):
        raise PromptError(f"{name} must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ROLES:
            raise PromptError(
                f"{name} has the role {str(role)[:40]!r}; use user, assistant, system or developer"
            )
        turns.say(role, item.get("content"), f"{name}.content")
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        texts = (
            [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        )
        turns.think("\n".join(text for text in texts if isinstance(text, str)))
    elif kind == "function_call":
        called = text_field(item, "name", name)
        shown = _shown(item.get("namespace"), called)
        turns.call(
            text_field(item, "call_id", name),
            shown if shown in names.spaces else called,
            item.get("arguments", "{}"),
        )
    elif kind == "custom_tool_call":
        text = item.get("input")
        turns.call(text_field(item, "call_id", name), text_field(item, "name", name), {"input": text})
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output")
        if isinstance(output, dict):
            output = output.get("content")
        turns.result(text_field(item, "call_id", name), output, f"{name}.output")
    else:
        raise PromptError(f"{name} is of type {str(kind)[:40]!r}, which the server cannot keep or read")


def _shown(space: object, name: str) -> str:
    """The name of a tool in a namespace, as the model sees it."""
    if not isinstance(space, str) or not space:
        return name
    return space + name if space.endswith("__") else f"{space}__{name}"


def _tools(value: object) -> tuple[list[dict[str, Any]], Names, list[str]]:
    """Tools in the chat form, those with other names or kinds, and a sentence about each part that is ignored."""
    if value is not None and not isinstance(value, list):
        raise BadRequestError("tools must be a list", "tools")
    tools: list[dict[str, Any]] = []
    custom, spaces, aside = set(), dict[str, tuple[str, str]](), list[str]()

    def add(tool: object, space: str | None) -> None:
        if not isinstance(tool, dict):
            raise BadRequestError("each of the tools must be an object", "tools")
        kind, name = tool.get("type"), tool.get("name")
        inner = tool.get("tools")
        if kind == "namespace" and isinstance(inner, list) and isinstance(name, str) and space is None:
            for one in inner:
                add(one, name)
            return
        if kind not in ("function", "custom"):
            aside.append(f"tools of the type {str(kind)[:40]} are ignored: the server has none")
            return
        if not isinstance(name, str) or not name:
            raise BadRequestError("each of the tools needs a name", "tools")
        shown = _shown(space, name)
        function = {"name": shown, "description": tool.get("description")}
        if space is not None:
            spaces[shown] = (space, name)
        if kind == "custom":
            custom.add(shown)
            function["parameters"] = _INPUT
            form = tool.get("format")
            if isinstance(form, dict) and form.get("type") != "text":
                aside.append(f"the format of the tool {shown[:80]} is not kept: its input is any text")
        else:
            function |= {key: tool[key] for key in ("parameters", "strict") if tool.get(key) is not None}
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})

    for tool in value or []:
        add(tool, None)
    return tools, Names(frozenset(custom), spaces), list(dict.fromkeys(aside))


def _chosen(choice: object, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], object]:
    """The tools that may be called, and the choice in the chat form."""
    if choice is None or isinstance(choice, str):
        return tools, choice
    if isinstance(choice, dict):
        kind, name = choice.get("type"), choice.get("name")
        if kind in ("function", "custom") and isinstance(name, str):
            return tools, {"type": "function", "function": {"name": name}}
        listed = choice.get("tools")
        if kind == "allowed_tools" and isinstance(listed, list):
            allowed = [one.get("name") for one in listed if isinstance(one, dict)]
            found = [tool for tool in tools if tool["function"]["name"] in allowed]
            if found:
                return found, choice.get("mode", "auto")
    raise BadRequestError("tool_choice must be auto, none, required, or name one of the tools", "tool_choice")


def _format(text: object) -> dict[str, Any] | None:
    """The response_format of a chat request."""
    if text is None:
        return None
    if not isinstance(text, dict):
        raise BadRequestError("text must be an object", "text")
    form = text.get("format")
    if form is None:
        return None
    if not isinstance(form, dict):
        raise BadRequestError("text.format must be an object", "text.format")
    return form
