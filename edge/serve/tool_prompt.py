"""How a model's chat template shows tools, their calls and their results; found out by rendering samples.

A template that writes calls in a known form gets tools and calls as they are. For all others edge writes the tools into
the system message, and the calls into the content, in a JSON form.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.answer.call_formats import FORMATS, HERMES, LFM2_KEYWORDS, CallFormat
from edge.errors import PromptError
from edge.prompt import Message, Rendered

Render = Callable[[Sequence[Message], Mapping[str, Any]], Rendered]
_ARGUMENTS: dict[str, Any] = {"a": "x y", "b": 1, "c": True, "d": ["q", 2], "e": {"k": "v'w"}, "f": 0.5}
_NAME, _RESULT, _SYSTEM = "edge_probe", "edge result", "edge system"
_IDS = ("abcdefgh1", "abcdefgh2")
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "A text."}},
            "required": ["a"],
        },
    },
}
_GOOD_ID = re.compile("[A-Za-z0-9]{9}")
_LFM2_MARK = "List of tools: "


@dataclass(frozen=True)
class ToolPrompt:
    """`form`: of the calls. `shows_tools`, `shows_calls`, `shows_results`, `takes_system`: what the template does.

    `needs_list`: the template fails without tools, and takes an empty list.
    """

    form: CallFormat
    shows_tools: bool
    shows_calls: bool
    shows_results: bool
    takes_system: bool
    needs_list: bool = False

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Message], dict[str, Any]]:
        """Messages for the template, and its variables."""
        found = _with_names(messages)
        if not self.shows_calls:
            found = [self._in_content(message) for message in found]
        if not self.shows_results:
            found = _results_as_user(found)
        if tools and not self.shows_tools:
            found = self._with_tools(found, tools)
        shown = list(tools) if self.shows_tools else []
        return found, {"tools": shown} if shown or self.needs_list else {}

    def _in_content(self, message: Message) -> Message:
        calls = message.get("tool_calls")
        if not calls:
            return message
        pairs = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        texts = [self.form.text(pairs)] if self.form.many else [self.form.text([pair]) for pair in pairs]
        content = "\n".join(filter(None, (message.get("content"), *texts)))
        return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}

    def _with_tools(self, messages: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
        text = _description(self.form, tools)
        first = messages[0]
        role = "system" if self.takes_system else "user"
        if first["role"] == role or (first["role"] == "system" and not self.takes_system):
            content = "\n\n".join(filter(None, (first.get("content"), text)))
            return [{**first, "content": content}, *messages[1:]]
        return [{"role": role, "content": text}, *messages]


def recognize(render: Render) -> ToolPrompt:
    """What a template does with tools. `render`: renders messages with variables, with a reason if it fails."""
    takes_system = _SYSTEM in _shown(render, [{"role": "system", "content": _SYSTEM}, _USER], {})
    tools = {"tools": [_TOOL]}
    shows_tools = _NAME in _shown(render, [_USER], tools)
    one, two = (_conversation(render, count, tools) for count in (1, 2))
    for form in FORMATS if shows_tools else ():
        if form.text([(_NAME, _ARGUMENTS)], list(_IDS[:1])) in one and _RESULT in one:
            both = form.text([(_NAME, _ARGUMENTS)] * 2, list(_IDS)) in two
            own = form if both == form.many else _single(form)
            needs_list = not _shown(render, [_USER], {}) and bool(_shown(render, [_USER], {"tools": []}))
            return ToolPrompt(own, True, True, True, takes_system, needs_list)
    if shows_tools and _LFM2_MARK in _shown(render, [_USER], tools):
        return ToolPrompt(LFM2_KEYWORDS, True, False, True, takes_system)
    return ToolPrompt(HERMES, False, False, False, takes_system)


_USER: Message = {"role": "user", "content": "edge user"}


def _single(form: CallFormat) -> CallFormat:
    return replace(form, many=False)


def _shown(render: Render, messages: list[Message], variables: Mapping[str, Any]) -> str:
    try:
        rendered = render(messages, variables)
    except PromptError:
        return ""
    return "" if rendered.reason or rendered.status != "chat_template" else rendered.text


def _conversation(render: Render, count: int, variables: Mapping[str, Any]) -> str:
    function = {"name": _NAME, "arguments": _ARGUMENTS}
    calls = [{"id": id_, "type": "function", "function": function} for id_ in _IDS[:count]]
    results = [
        {"role": "tool", "content": _RESULT, "tool_call_id": id_, "name": _NAME} for id_ in _IDS[:count]
    ]
    messages = [_USER, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    return _shown(render, messages, variables)


def _description(form: CallFormat, tools: Sequence[dict[str, Any]]) -> str:
    """The tools in words, for a template that does not show them."""
    lines = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    example = form.opening() + "NAME" + form.middle + "{ARGUMENTS}" + form.end + form.after
    return f"You can call these tools:\n<tools>\n{lines}\n</tools>\nTo call a tool, write:\n{example}"


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """Results with the names of their tools, and ids that each template takes."""
    names: dict[str, str] = {}
    found = []
    for message in messages:
        message = dict(message)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": _good_id(call.get("id"))} for call in calls]
            names |= {call["id"]: str(call["function"].get("name")) for call in message["tool_calls"]}
        if message["role"] == "tool" and isinstance(message.get("tool_call_id"), str):
            message["tool_call_id"] = _good_id(message["tool_call_id"])
            if message["tool_call_id"] in names:
                message.setdefault("name", names[message["tool_call_id"]])
        found.append(message)
    return found


def _good_id(value: object) -> str:
    """The id, or one of 9 letters and digits for it: Mistral's templates refuse others."""
    text = str(value or "")
    return text if _GOOD_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _results_as_user(messages: list[Message]) -> list[Message]:
    """Results of tools as messages of the user; those that follow each other are one."""
    found: list[Message] = []
    after_result = False
    for message in messages:
        is_result = message["role"] in ("tool", "function")
        if is_result:
            text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
            if after_result:
                found[-1]["content"] += "\n" + text
            else:
                found.append({"role": "user", "content": text})
        else:
            found.append(message)
        after_result = is_result
    return found
