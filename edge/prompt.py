"""Convert messages to the text of a prompt: with the model's chat template, otherwise with a fallback format.

edge renders a chat template as transformers' `apply_chat_template(messages, tokenize=False,
add_generation_prompt=True)` does. The template writes the BOS token if it needs one: do not add BOS when you tokenize
the text. The fallback formats are those of the published evaluation of LLM-OS-Models' terminal models. Each prompt
records which of them was used.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from edge.errors import PromptError
from edge.formats.chat_template import render
from edge.system.typed_json import Name, Rule, problems

Message = dict[str, Any]
"""`role` (system, user, assistant, tool) and `content`; a template can read further keys, such as `tool_calls`."""


class MessageFields(TypedDict):
    """One message of a conversation. A chat template can read further fields, such as `reasoning_content`."""

    role: Name
    """system, user, assistant or tool."""
    content: NotRequired[str | list[object] | None]
    """The text, or a list of parts such as {"type": "text", "text": "…"}."""
    tool_calls: NotRequired[object]
    """Calls of tools, for templates that write them. A message needs content or tool_calls."""


CheckedMessage = Annotated[
    MessageFields,
    Rule(
        "an object with content or tool_calls",
        lambda message: message.get("content") is not None or message.get("tool_calls") is not None,
        {
            "anyOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("content", "tool_calls")
            ]
        },
    ),
]
Messages = Annotated[list[CheckedMessage], Rule("a list of at least one message", bool, {"minItems": 1})]
"""Messages as JSON, with all their rules."""

MESSAGES_VERSION = 1
"""The version of the schema of a conversation that edge writes; a file of messages need not name one."""

# The template statuses in results.
CHAT_TEMPLATE, CHATML, GEMMA = "chat_template", "chatml_fallback", "gemma_fallback"
# Gemma 4's format written on purpose instead of its template, as published runs without past thoughts do.
GEMMA_TURNS = "gemma4_patched"

_SEE = "(see `edge schema messages`)"
_OTHER_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CHECKPOINT_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that can contain a thought. Most templates read the first, those of gpt-oss the second."""


@dataclass(frozen=True)
class PromptSource:
    """What a model needs for its prompts. A special token is its text, or None if the model has none."""

    template: str | None
    bos_token: str | None
    eos_token: str | None
    architecture: str
    """The name in the GGUF or in config.json: `lfm2moe`, `gemma4`, `gemma4_text`, …"""
    size_label: str = ""
    """The size in the form of a GGUF: `135M`, `26B-A4B`, `32x0.2B`; empty if unknown."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Further special tokens that a template can use: `pad_token`, `unk_token`, …"""


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt. `status`: `chat_template`, `chatml_fallback`, `gemma_fallback` or `gemma4_patched`."""

    text: str
    status: str
    reason: str = ""
    """Why the model's template was not used, in one line; empty if it was used or if the model has none."""


def check_messages(value: object) -> list[Message]:
    """Check that `value` is a non-empty list of messages. Raises PromptError that names the first wrong message."""
    messages = list(value) if isinstance(value, tuple) else value
    if (problem := next(problems(messages, Messages, "messages"), None)) is not None:
        raise PromptError(problem)
    assert isinstance(messages, list)
    for index, message in enumerate(messages):
        if not _is_utf8(message):
            raise PromptError(f"messages[{index}] is not UTF-8 text: it holds half of a surrogate pair")
    return list(messages)


def read_messages(path: Path | str) -> list[Message]:
    """Read messages from a JSON file: a list of messages, or an object with a `messages` list.

    Raises PromptError if the file cannot be read or contains no messages.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror} {_SEE}") from None
    except ValueError as error:
        raise PromptError(f"{path}: is not JSON in UTF-8: {error} {_SEE}") from None
    return parse_messages(text, str(path))


def parse_messages(text: str, source: str) -> list[Message]:
    """As `read_messages`, from the text of a file. `source`: its name in errors."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{source}: is not JSON in UTF-8: {error} {_SEE}") from None
    try:
        if isinstance(value, dict):
            _check_version(value.get("schema_version"))
        return check_messages(value.get("messages") if isinstance(value, dict) else value)
    except PromptError as error:
        raise PromptError(f"{source}: {error} {_SEE}") from None


def _check_version(version: object) -> None:
    if version is not None and (type(version) is not int or version > MESSAGES_VERSION):
        raise PromptError(
            f"has schema version {str(version)[:20]}; this edge reads up to {MESSAGES_VERSION}: update edge"
        )


def render_chat_template(
    messages: Sequence[Message],
    *,
    template: str,
    bos_token: str | None,
    eos_token: str | None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The text that transformers' `apply_chat_template` writes for these messages, byte for byte.

    A token that is None is undefined in the template. `variables`: further variables of the template, such as special
    tokens, `tools` or `enable_thinking`. Raises PromptError with the template's own reason, and if the template runs
    too long or writes too much.
    """
    chat = check_messages(messages)
    chat = [{key: value for key, value in message.items() if value is not None} for message in chat]
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    names = {
        "tools": None,
        "documents": None,
        **{name: token for name, token in tokens.items() if token is not None},
        **_plain(variables),
        "messages": [_with_reasoning(_plain(message)) for message in chat],
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        text = render(template, names)
    except Exception as error:  # a template can raise any exception
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PromptError(f"the chat template cannot be rendered: {reason}") from None
    if not _is_utf8(text):
        raise PromptError("the chat template cannot be rendered: it writes half of a surrogate pair")
    return text


def _is_utf8(value: Any) -> bool:
    """Whether all texts in the value can be encoded in UTF-8 (no half of a surrogate pair)."""
    if isinstance(value, Mapping):
        return all(_is_utf8(key) and _is_utf8(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_utf8, value))
    if not isinstance(value, str):
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """`value` rebuilt from plain JSON types, because a template could call the methods of other objects."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return f"<{type(value).__name__}>"


def _with_reasoning(message: Message) -> Message:
    """The message with its thought under both keys that templates read."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if thought is None:
        return message
    return {"thinking": thought, **message, "reasoning_content": thought}


def prompt_source(path: Path | str) -> PromptSource:
    """What a GGUF or a Hugging Face folder needs for its prompts.

    `edge.formats.checkpoint.read_chat_template` reads the template of a folder. Raises PromptError if a folder is not
    a checkpoint, CheckpointError if a file in it is damaged, and ModelFileError if a GGUF is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_source(path)
    from edge.formats.gguf import read_model_file

    model = read_model_file(path)
    return PromptSource(
        template=model.chat_template,
        bos_token=model.bos_token,
        eos_token=model.eos_token,
        architecture=model.architecture,
        size_label=model.size_label or _billions(model.n_params),
    )


def _folder_source(folder: Path) -> PromptSource:
    from edge.formats.checkpoint import read_chat_template, read_header, read_json, read_tokenizer_config

    if not any((folder / name).is_file() for name in _CHECKPOINT_FILES):
        raise PromptError(f"{folder}: is not a checkpoint: it has none of {', '.join(_CHECKPOINT_FILES)}")
    config = read_json(folder / "config.json", missing_ok=True)
    tokenizer = read_tokenizer_config(folder)
    texts = {name: _token_text(tokenizer.get(name)) for name in ("bos_token", "eos_token", *_OTHER_TOKENS)}
    tokens = {name: text for name, text in texts.items() if text is not None}
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    source = PromptSource(
        template=read_chat_template(folder, tokenizer),
        bos_token=tokens.pop("bos_token", None),
        eos_token=tokens.pop("eos_token", None),
        architecture=str(config.get("model_type") or named),
        special_tokens=tokens,
    )
    if is_gemma4(source):  # only the Gemma fallback depends on the size
        headers = [read_header(file) for file in folder.glob("*.safetensors")]
        count = sum(math.prod(tensor.shape) for header in headers for tensor in header.values())
        return replace(source, size_label=_billions(count))
    return source


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):  # an AddedToken
        value = value.get("content")
    return value if isinstance(value, str) else None


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters else ""


def is_gemma4(source: PromptSource) -> bool:
    """Whether the architecture of the model is Gemma 4."""
    return source.architecture.lower().replace("_", "").replace("-", "").startswith("gemma4")


def _opens_empty_thought(size_label: str) -> bool:
    # True for the 26B and 31B models, the only ones of the family with more than 20 billion parameters.
    found = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)B", size_label, re.IGNORECASE)
    return found is not None and int(found[1] or 1) * float(found[2]) > 20


def render_prompt(
    messages: Sequence[Message],
    source: PromptSource,
    variables: Mapping[str, Any] | None = None,
    *,
    thinking: bool | None = None,
    plain_turns: bool = False,
) -> Rendered:
    """The prompt for these messages: by the model's chat template, or by a fallback if that is missing or fails.

    The fallback is Gemma 4's format for Gemma 4 and ChatML for all other models. For Gemma 4, `enable_thinking` is
    False unless `thinking` is True. `variables`: further ones of the template, as in `render_chat_template`.
    `thinking`: the template's `enable_thinking`; None leaves it unset. `plain_turns`: for Gemma 4, write its format
    without its template, as published runs without past thoughts do. Raises PromptError if the fallback cannot write
    the messages either.
    """
    chat = check_messages(messages)
    gemma = is_gemma4(source)
    reason = ""
    if gemma and plain_turns:
        return Rendered(_gemma(chat, source, thinking), GEMMA_TURNS)
    if source.template and source.template.strip():
        names: dict[str, Any] = {**source.special_tokens, **(variables or {})}
        if gemma or thinking is not None:
            names["enable_thinking"] = bool(thinking)
        try:
            text = render_chat_template(
                chat,
                template=source.template,
                bos_token=source.bos_token,
                eos_token=source.eos_token,
                **names,
            )
            return Rendered(text, CHAT_TEMPLATE)
        except PromptError as error:
            reason = str(error).removeprefix("the chat template cannot be rendered: ")
    if gemma:
        return Rendered(_gemma(chat, source, thinking), GEMMA, reason)
    return Rendered(_chatml(chat), CHATML, reason)


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            role = message["role"]
            raise PromptError(
                f"a {role} message has a part that is not text: the fallback prompt supports only text"
            )
        return "".join(map(str, texts))
    return content or ""


def _chatml(messages: Sequence[Message]) -> str:
    turns = []
    for message in messages:
        role = "user" if message["role"] == "tool" else message["role"]
        turns.append(f"<|im_start|>{role}\n{_content(message)}<|im_end|>\n")
    return "".join(turns) + "<|im_start|>assistant\n"


def _gemma(messages: Sequence[Message], source: PromptSource, thinking: bool | None) -> str:
    roles = {"assistant": "model", "tool": "user"}
    turns = []
    for message in messages:
        role = roles.get(message["role"], message["role"])
        turns.append(f"<|turn>{role}\n{_content(message).strip()}<turn|>\n")
    if thinking:
        return "<bos><|turn>system\n<|think|>\n<turn|>\n" + "".join(turns) + "<|turn>model\n"
    end = "<|channel>thought\n<channel|>" if _opens_empty_thought(source.size_label) else ""
    return "<bos>" + "".join(turns) + "<|turn>model\n" + end


SYSTEM_PROMPT = "You are a terminal automation assistant. Return JSON only."


def task_messages(task: str, screen: str | None = None) -> list[Message]:
    """The messages that `edge run` sends for a task and, if given, the text on the terminal's screen."""
    user = task if screen is None else f"{task}\n\nCurrent terminal state:\n{screen}"
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]
