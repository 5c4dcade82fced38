"""A conversation in a file: JSON that `edge run --messages` and `edge prompt --messages` also read."""

import json
from pathlib import Path
from typing import Annotated, TypedDict, cast

from edge.chat.conversation import Conversation
from edge.errors import ResultError
from edge.prompt import MESSAGES_VERSION, Message, Messages, parse_messages
from edge.system.places import read_text, write_json
from edge.system.typed_json import Rule
from edge.version import __version__


class SavedConversation(TypedDict):
    """The file that /save of `edge chat` writes. It is also a messages file."""

    schema_version: int
    """Version of this format."""
    edge_version: str
    """Version of edge."""
    model: str | None
    """Name of the model for people."""
    answers: Annotated[
        str, Rule("action or text", ("action", "text").__contains__, {"enum": ["action", "text"]})
    ]
    """What the model answered with."""
    messages: Messages
    """All messages, the system prompt first."""


def save(conversation: Conversation, path: Path) -> int:
    """Write all messages, the system prompt first, as a complete file. Returns how many.

    Raises ResultError, also if there are no messages: edge could not load such a file.
    """
    system = conversation.system_prompt
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += conversation.messages
    if not messages:
        raise ResultError(f"{path}: was not written: the conversation has no messages")
    saved: SavedConversation = {
        "schema_version": MESSAGES_VERSION,
        "edge_version": __version__,
        "model": conversation.runner.model_name,
        "answers": conversation.answers,
        "messages": cast(Messages, messages),  # as `parse_messages` checks them
    }
    write_json(path, saved)
    conversation.file = path.resolve()
    return len(messages)


def check(path: Path) -> None:
    """Check that `load` can read a file. A pipe is not read, as it can be read only once. Raises what `load` raises."""
    if not path.is_fifo():
        parse_messages(read_text(path), str(path))


def load(conversation: Conversation, path: Path) -> int:
    """Continue from the messages of a file. Returns how many it has.

    The file is one that `save` wrote, or any messages file. A system message at its start becomes the system prompt.
    Raises PromptError, or ReplayError if it cannot be read; the conversation is then unchanged.
    """
    text = read_text(path)  # once: it may be a pipe
    messages = parse_messages(text, str(path))
    value = json.loads(text)
    version = value.get("schema_version") if isinstance(value, dict) else None
    first = messages[0]
    if first["role"] == "system" and isinstance(first.get("content"), str):
        conversation.replace(messages[1:], first["content"])
    else:
        conversation.replace(messages, "")
    conversation.file = None if version is None else path.resolve()
    return len(messages)
