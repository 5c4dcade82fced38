"""Options of asking a model: which shard of the rows it answers, and how their prompts are written.

`thinking_mode` and `strip_thinking_history` are options of the published runs, with the same names and values there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import EdgeError
from edge.prompt import REASONING, Message, PromptSource, Rendered, render_prompt
from edge.replay.shards import Shard
from edge.replay.stored_result import PromptTemplate, SamplingFields
from edge.system.outputs import Run

Switch = Literal["auto", "on", "off"]
SWITCHES: tuple[Switch, ...] = ("auto", "on", "off")

# As the published scripts find thoughts in past answers.
_THOUGHTS = (
    re.compile(r"<think>\s*.*?</think>\s*", re.DOTALL),
    re.compile(r"<\|channel\>thought\n.*?<channel\|>\s*", re.DOTALL),
)


@dataclass(frozen=True)
class Asking:
    """Options of asking a model. Raises EdgeError for a value that is not auto, on or off."""

    thinking_mode: Switch = "auto"
    """`enable_thinking` of the chat template: on true, off false, auto not set (for Gemma 4 false)."""
    strip_thinking_history: Switch = "auto"
    """on: remove thoughts from past answers before the template writes them. auto: as off."""
    shard: Shard | None = None
    """Answer only this shard of the rows."""

    def __post_init__(self) -> None:
        for name in ("thinking_mode", "strip_thinking_history"):
            if (value := getattr(self, name)) not in SWITCHES:
                raise EdgeError(f"{name} is {value}; it must be one of {', '.join(SWITCHES)}")

    @property
    def thinking(self) -> bool | None:
        """The value of the template's `enable_thinking`; None where it is not set."""
        return None if self.thinking_mode == "auto" else self.thinking_mode == "on"

    @property
    def strips(self) -> bool:
        """Whether thoughts in past answers are removed."""
        return self.strip_thinking_history == "on"

    @property
    def sampling(self) -> SamplingFields:
        """The fields of `sampling` that record the options."""
        return {
            "thinking_mode": self.thinking_mode,
            "strip_thinking_history": self.strip_thinking_history,
        }

    @property
    def identity(self) -> Run:
        """What two runs must share so that one may continue the other: the options that are set."""
        set_here: dict[str, object] = {k: v for k, v in self.sampling.items() if v != "auto"}
        return set_here if self.shard is None else {**set_here, "shard": str(self.shard)}

    def messages(self, messages: Sequence[Message]) -> tuple[list[Message], int]:
        """The messages that the model gets, and the number of thoughts that were removed from them."""
        if not self.strips:
            return list(messages), 0
        found = [_without_thoughts(one) if one["role"] == "assistant" else (one, 0) for one in messages]
        return [message for message, _ in found], sum(count for _, count in found)

    def render(self, messages: Sequence[Message], source: PromptSource) -> tuple[Rendered, int]:
        """The prompt of a row, and the number of thoughts that were removed. Raises PromptError."""
        given, stripped = self.messages(messages)
        return render_prompt(given, source, thinking=self.thinking, plain_turns=self.strips), stripped

    def recorded(self, stripped: int, thinking: bool | None) -> PromptTemplate:
        """The fields of `prompt_template` that say what the options did. `thinking`: what the template was given."""
        return {
            "chat_template_kwargs": {} if thinking is None else {"enable_thinking": thinking},
            "prompt_options": {"strip_thinking_history": self.strips},
            "stripped_thinking_blocks": stripped,
        }


DEFAULT_ASKING = Asking()


def _without_thoughts(message: Message) -> tuple[Message, int]:
    """A past answer without its thoughts, in its text and in its own fields, and how many there were."""
    kept = {key: value for key, value in message.items() if key not in REASONING}
    count = len({str(message[key]) for key in REASONING if message.get(key)})
    content, more = _stripped(kept.get("content"))
    return ({**kept, "content": content} if "content" in kept else kept), count + more


def _stripped(content: Any) -> tuple[Any, int]:
    if isinstance(content, list):
        parts = [_stripped_part(part) for part in content]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if not isinstance(content, str):
        return content, 0
    total = 0
    for pattern in _THOUGHTS:
        content, count = pattern.subn("", content)
        total += count
    return content.lstrip(), total


def _stripped_part(part: Any) -> tuple[Any, int]:
    if isinstance(part, str):
        return _stripped(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        text, count = _stripped(part["text"])
        return {**part, "text": text}, count
    return part, 0
