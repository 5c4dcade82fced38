"""The tools of a request, and how much its answer may think: `tools`, `tool_choice`, `reasoning_effort`, …"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.answer.call_schema import Tool
from edge.errors import PromptError

ToolChoice = Literal["none", "auto", "required"]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MOST_TOOLS = 256
_EFFORTS = {
    "none": 0.0,
    "minimal": 1 / 16,
    "low": 1 / 8,
    "medium": 1 / 4,
    "high": 1 / 2,
    "xhigh": 1 / 2,
    "max": 1 / 2,
}
_SHARE = 1 / 2
_OWN = ("messages", "template", "tools", "add_generation_prompt", "bos_token", "eos_token")
_SWITCHES = ("enable_thinking", "thinking")


class FieldError(Exception):
    """A field of a request is wrong. `param`: its name."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class ToolRequest:
    """The tools of a request.

    `declared`: as the client declares them, for the prompt; `tools`: those that may be called; `choice`: none, text or
    calls, or calls; `many`: whether an answer may have several calls.
    """

    declared: tuple[dict[str, Any], ...]
    tools: tuple[Tool, ...]
    choice: ToolChoice
    many: bool


@dataclass(frozen=True)
class ThinkingRequest:
    """How much an answer may think. `variables`: for the chat template; `budget`: in tokens; `share`: of the answer."""

    variables: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
    share: float = _SHARE

    def tokens(self, room: int) -> int:
        """Maximum number of tokens of the thought of an answer of at most `room` tokens."""
        return int(room * self.share) if self.budget is None else min(self.budget, room)


def read_tools(body: Mapping[str, Any]) -> ToolRequest | None:
    """The tools of a body in OpenAI's chat form; None without tools. Raises FieldError."""
    declared = body.get("tools")
    choice = body.get("tool_choice")
    if declared is not None and not isinstance(declared, list):
        raise FieldError("tools must be a list", "tools")
    if not declared:
        if choice not in (None, "none", "auto"):
            raise FieldError("tool_choice needs tools", "tool_choice")
        return None
    if len(declared) > _MOST_TOOLS:
        raise FieldError(f"tools has {len(declared)} tools; the maximum is {_MOST_TOOLS}", "tools")
    tools = tuple(_tool(one, f"tools[{index}]") for index, one in enumerate(declared))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FieldError(f"tools has two tools with the name {twice!r}", "tools")
    many = body.get("parallel_tool_calls")
    if many not in (None, True, False):
        raise FieldError("parallel_tool_calls must be true or false", "parallel_tool_calls")
    kind, wanted = _choice(choice)
    if wanted is not None:  # one named tool is called once
        if not wanted <= set(names):
            raise FieldError(
                f"tool_choice names {min(wanted - set(names))[:60]!r}, which is not in tools", "tool_choice"
            )
        tools = tuple(tool for tool in tools if tool.name in wanted)
        many = many if len(tools) > 1 else False
    return ToolRequest(tuple(declared), tools, kind, many is not False)


def _tool(value: object, name: str) -> Tool:
    function = value.get("function") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or value.get("type", "function") != "function"
        or not isinstance(function, dict)
    ):
        raise FieldError(
            f'{name} must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}', "tools"
        )
    called = function.get("name")
    if not isinstance(called, str) or not _NAME.fullmatch(called):
        raise FieldError(f"{name}.function.name must be 1 to 128 letters, digits, _, . and -", "tools")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise FieldError(f"{name}.function.parameters must be an object: a JSON schema", "tools")
    return Tool(called, parameters or {})


def _choice(value: object) -> tuple[ToolChoice, set[str] | None]:
    """What the client wants, and the names that it allows; None: all."""
    if value is None:
        return "auto", None
    if value == "none" or value == "auto" or value == "required":
        return value, None
    if value == "any":  # Mistral's word
        return "required", None
    if isinstance(value, dict):
        inner = value.get("allowed_tools")
        if (
            value.get("type") == "allowed_tools"
            and isinstance(inner, dict)
            and isinstance(inner.get("tools"), list)
        ):
            mode: ToolChoice = "required" if inner.get("mode") == "required" else "auto"
            return mode, {_named(one) for one in inner["tools"]}
        return "required", {_named(value)}
    raise FieldError(
        'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
        "tool_choice",
    )


def _named(value: object) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    name = (
        function.get("name")
        if isinstance(function, dict)
        else value.get("name")
        if isinstance(value, dict)
        else None
    )
    if not isinstance(name, str):
        raise FieldError('tool_choice must be {"type": "function", "function": {"name": …}}', "tool_choice")
    return name


def read_thinking(body: Mapping[str, Any]) -> ThinkingRequest:
    """How much the answer may think. Raises FieldError."""
    given = body.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise FieldError("chat_template_kwargs must be an object", "chat_template_kwargs")
    variables = dict(given or {})
    for name in _OWN:
        if name in variables:
            raise FieldError(f"chat_template_kwargs must not contain {name}", "chat_template_kwargs")
    effort = body.get("reasoning_effort", variables.get("reasoning_effort"))
    if effort is not None and (not isinstance(effort, str) or effort not in _EFFORTS):
        raise FieldError(f"reasoning_effort must be one of {', '.join(_EFFORTS)}", "reasoning_effort")
    budget = None
    for name in ("thinking_budget", "reasoning_budget"):
        value = body.get(name)
        if value is None or value == -1:
            continue
        if type(value) is not int or value < 0:
            raise FieldError(f"{name} must be a whole number of tokens, 0 or more", name)
        budget = min(value, 1 << 31)
    off = budget == 0 or effort == "none" or any(variables.get(name) is False for name in _SWITCHES)
    if off:
        return ThinkingRequest({**variables, **dict.fromkeys(_SWITCHES, False)}, 0)
    if effort is not None:
        variables["reasoning_effort"] = effort
    if budget is not None or effort is not None:
        variables.setdefault("enable_thinking", True)
    return ThinkingRequest(variables, budget, _SHARE if effort is None else _EFFORTS[effort])


def tools_key(tools: tuple[Tool, ...]) -> str:
    """A text that identifies the tools, as a cache key. Raises PromptError for tools that are nested too deeply."""
    try:
        return json.dumps([(tool.name, tool.parameters) for tool in tools])
    except RecursionError:
        raise PromptError("tools is nested too deeply") from None
