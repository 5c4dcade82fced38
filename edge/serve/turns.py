"""The turns of a conversation in the chat form, built from the items of other APIs.

Those APIs divide a turn into several items. Many templates take only turns whose roles alternate, and one system
message at the beginning. So what follows of the same role is joined.
"""

from dataclasses import dataclass, field
from typing import Any

from edge.errors import PromptError
from edge.prompt import Message
from edge.serve.messages import joined_text

_BETWEEN = "\n\n"  # between texts that are joined


@dataclass
class Turns:
    """The messages so far."""

    messages: list[Message] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)

    def say(self, role: str, content: object, name: str) -> None:
        """Add a text, or a list of text parts. `name`: of the content in errors. Raises PromptError."""
        text = joined_text(content, name)
        if role == "developer":
            role = "system"
        last = self.messages[-1] if self.messages else None
        if role == "assistant":
            message = self._own()
            message["content"] = _BETWEEN.join(filter(None, (message["content"], text)))
        elif last is not None and last["role"] == role:
            last["content"] = _BETWEEN.join(filter(None, (last["content"], text)))
        else:
            self.messages.append({"role": role, "content": text})

    def think(self, text: str) -> None:
        """Add a thought of the model; the model's next message has it."""
        if text:
            self._thought.append(text)

    def call(self, id: str, name: str, arguments: object) -> None:
        """Add a tool call of the model. `arguments`: an object, or its JSON."""
        function = {"name": name, "arguments": arguments}
        self._own().setdefault("tool_calls", []).append({"id": id, "type": "function", "function": function})

    def result(self, id: str, content: object, name: str) -> None:
        """Add the result of a tool call. Raises PromptError."""
        self.messages.append({"role": "tool", "tool_call_id": id, "content": joined_text(content, name)})

    def _own(self) -> Message:
        """The message of the model that is being built."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        if self._thought:
            last["reasoning_content"] = _BETWEEN.join(
                filter(None, (last.get("reasoning_content"), *self._thought))
            )
            self._thought.clear()
        return last


def text_field(item: dict[str, Any], key: str, name: str) -> str:
    """A text of an item. Raises PromptError."""
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise PromptError(f"{name}.{key} must be a text")
    return value
