"""Requests of Anthropic's Messages API, translated into chat requests.

The format: https://docs.anthropic.com/en/api/messages.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge.answer.answering import AnswerKind
from edge.errors import PromptError
from edge.serve.forms import check_fields
from edge.serve.request import BadRequestError, ClientRequest, read_chat
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
    "max_tokens",
    "repetition_penalty",
)
"""Fields that mean the same in a chat request."""
_FIELDS = (
    *_SAME,
    *("system", "messages", "stop_sequences", "tools", "tool_choice", "thinking", "output_format"),
    *("container", "mcp_servers"),
)
_INSIDE = {"output_config": ("format", "effort")}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"xhigh": "high", "max": "high"}
_NAMES = {"stop": "stop_sequences", "response_format": "output_config", "reasoning_effort": "output_config"}


def read_messages(body: Mapping[str, Any], answers: AnswerKind) -> ClientRequest:
    """A body for /v1/messages. Raises BadRequestError."""
    if body.get("container") or body.get("mcp_servers"):
        name = "container" if body.get("container") else "mcp_servers"
        raise BadRequestError(f"{name} is not supported", name)
    try:
        unknown = check_fields(body, _FIELDS, _INSIDE, "output_config.format")
    except FieldError as error:
        raise BadRequestError(str(error), error.param) from None
    tools, aside = _tools(body.get("tools"))
    chat: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    chat |= {"messages": _messages(body), "stop": body.get("stop_sequences")}
    chat |= _thinking(body.get("thinking")) | _output(body)
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, dict):
        raise BadRequestError("tool_choice must be an object", "tool_choice")
    if tools:
        chat["tools"] = tools
        chat |= _chosen(choice or {"type": "auto"})
    elif choice is not None and choice.get("type") not in ("auto", "none"):
        raise BadRequestError("tool_choice wants a call, and no tool can be called", "tool_choice")
    chat = {name: value for name, value in chat.items() if value is not None}
    try:
        request = read_chat(chat, answers)
    except BadRequestError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise
    warnings = [f"tools of the type {kind} are ignored: the server has none" for kind in aside]
    return replace(request, warnings=(*unknown, *warnings, *request.warnings))


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given, turns = body.get("messages"), Turns()
    if not isinstance(given, list) or not given:
        raise BadRequestError("messages must be a list of at least one message", "messages")
    try:
        if body.get("system") is not None:
            turns.say("system", body["system"], "system")
        for index, message in enumerate(given):
            name = f"messages[{index}]"
            role = message.get("role") if isinstance(message, dict) else None
            if role not in ("user", "assistant", "system"):
                raise PromptError(f"{name} must be an object with the role user or assistant")
            _add(turns, role, message.get("content"), f"{name}.content")
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None
    return turns.messages


def _add(turns: Turns, role: str, content: object, name: str) -> None:
    """Add a message: a text, or a list of blocks. Raises PromptError."""
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise PromptError(f"{name} must be a text or a list of blocks")
        turns.say(role, content, name)
        return
    texts: list[object] = []

    def said() -> None:
        if texts:
            turns.say(role, texts.copy(), name)
            texts.clear()

    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        inner = f"{name}[{index}]"
        if not isinstance(block, dict) or kind not in ("tool_use", "tool_result", *_THOUGHTS):
            texts.append(block)
            continue
        if kind == "tool_use":
            said()
            arguments = block.get("input", {})
            turns.call(text_field(block, "id", inner), text_field(block, "name", inner), arguments)
        elif kind == "tool_result":
            said()
            turns.result(text_field(block, "tool_use_id", inner), block.get("content"), f"{inner}.content")
        elif isinstance(block.get("thinking"), str):
            turns.think(block["thinking"])
    said()


_THOUGHTS = ("thinking", "redacted_thinking")


def _tools(value: object) -> tuple[list[dict[str, Any]], list[str]]:
    """Tools in the chat form, and the kinds of those that are ignored."""
    if value is not None and not isinstance(value, list):
        raise BadRequestError("tools must be a list", "tools")
    tools, aside = [], []
    for index, tool in enumerate(value or []):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise BadRequestError(f"tools[{index}] must be an object with a name", "tools")
        if tool.get("type") not in (None, "custom"):
            aside.append(str(tool["type"])[:40])
            continue
        function = {"name": tool["name"], "description": tool.get("description")}
        function |= {"parameters": tool.get("input_schema"), "strict": tool.get("strict")}
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    return tools, list(dict.fromkeys(aside))


def _chosen(choice: Mapping[str, Any]) -> dict[str, Any]:
    kind, name = choice.get("type"), choice.get("name")
    several = choice.get("disable_parallel_tool_use")
    if several is not None and not isinstance(several, bool):
        raise BadRequestError("tool_choice.disable_parallel_tool_use must be true or false", "tool_choice")
    found: dict[str, Any] = {} if several is None else {"parallel_tool_calls": not several}
    if kind == "tool" and isinstance(name, str):
        return {**found, "tool_choice": {"type": "function", "function": {"name": name}}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise BadRequestError("tool_choice.type must be auto, any, none, or tool with a name", "tool_choice")
    return {**found, "tool_choice": _CHOICES[kind]}


def _thinking(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise BadRequestError("thinking.type must be enabled, disabled or adaptive", "thinking")
    if kind == "disabled":
        return {"chat_template_kwargs": {"enable_thinking": False}, "thinking_budget": 0}
    budget = value.get("budget_tokens")
    if budget is not None and (type(budget) is not int or budget < 0):
        raise BadRequestError("thinking.budget_tokens must be a whole number", "thinking")
    return {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget": budget}


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    """The format and the effort, which are in output_config; older clients have output_format."""
    config = body.get("output_config") or {}
    if not isinstance(config, dict):
        raise BadRequestError("output_config must be an object", "output_config")
    found: dict[str, Any] = {}
    form = config.get("format") or body.get("output_format")
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise BadRequestError("output_config.format.type must be json_schema", "output_config")
        found["response_format"] = form
    if (effort := config.get("effort")) is not None:
        found["reasoning_effort"] = _EFFORTS.get(effort, effort) if isinstance(effort, str) else effort
    return found
