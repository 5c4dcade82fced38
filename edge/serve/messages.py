"""A client's messages in the form that chat templates read: contents as text, arguments of calls as objects."""

import json
from typing import Any

from edge.errors import PromptError
from edge.prompt import Message

_TEXTS = ("text", "input_text", "output_text")


def template_messages(messages: list[Message]) -> list[Message]:
    """Join text parts, parse the arguments of tool calls, and call a developer `system`.

    Many templates write a list of parts as Python does, or fail at arguments that are a string. Raises PromptError that
    names the message, for a part that is not text or arguments that are no object.
    """
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, name: str) -> Message:
    found = dict(message)
    if found["role"] == "developer":
        found["role"] = "system"
    if found.get("function_call") is not None:  # templates do not read it, so the call would be lost
        raise PromptError(
            f"{name}.function_call is not supported; send tool_calls, and results with the role 'tool'"
        )
    if isinstance(content := found.get("content"), list):
        found["content"] = joined_text(content, f"{name}.content")
    calls = found.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise PromptError(f"{name}.tool_calls must be a list")
        if found.get("content") is None:  # templates add it to other texts
            found["content"] = ""
        found["tool_calls"] = [_call(call, f"{name}.tool_calls[{at}]") for at, call in enumerate(calls)]
    return found


def joined_text(content: object, name: str) -> str:
    """A text, or the joined texts of parts; None is empty. `name`: of the content in errors. Raises PromptError."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise PromptError(f"{name} must be a text or a list of parts")
    return "".join(_part(part, f"{name}[{at}]") for at, part in enumerate(content))


def _part(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in _TEXTS or not isinstance(text, str):
        what = f"of type {str(kind)[:40]!r}" if kind else "no object with a type"
        raise PromptError(f"{name} is {what}; the model reads only text: send parts of type 'text'")
    return text


def _call(call: object, name: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise PromptError(f"{name} must be an object with a function")
    if not isinstance(function.get("name"), str):
        raise PromptError(f"{name}.function.name must be a text")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise PromptError(f"{name}.function.arguments must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}
