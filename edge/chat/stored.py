"""A conversation in a file: JSON that `edge run --messages` and `edge prompt --messages` also read."""

import json
from pathlib import Path

from edge.chat.conversation import Conversation
from edge.prompt import MESSAGES_VERSION, parse_messages
from edge.system.places import read_text, write_json
from edge.version import __version__


def save(conversation: Conversation, path: Path) -> int:
    """Write all messages, the system prompt first, as a complete file. Returns how many. Raises ResultError."""
    system = conversation.system_prompt
    messages = [{"role": "system", "content": system}] if system else []
    messages += conversation.messages
    write_json(
        path,
        {
            "schema_version": MESSAGES_VERSION,
            "edge_version": __version__,
            "model": conversation.runner.model_file.name,
            "answers": conversation.answers,
            "messages": messages,
        },
    )
    conversation.file = path.resolve()
    return len(messages)


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
