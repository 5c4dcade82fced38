"""The server's responses in OpenAI's form: completions, the chunks of a stream, errors, models.

The format: https://platform.openai.com/docs/api-reference/chat and /completions. `closed_at_budget` and
`max_model_len` are additional fields.
"""

import secrets
import time
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

from edge.answer.writer import Answer

ErrorKind = Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]


class ErrorFields(TypedDict):
    """What went wrong. `param` is the field of the request that is wrong."""

    message: str
    type: ErrorKind
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """An error."""

    error: ErrorFields


class Model(TypedDict):
    """A served model. `created` is in seconds since 1970, `max_model_len` in tokens, as vLLM has it.

    `parent`: of an adapter, the name of its base.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: NotRequired[str]


class ModelList(TypedDict):
    """All models of the server: the base, then its adapters."""

    object: Literal["list"]
    data: list[Model]


class Usage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Message(TypedDict):
    """The answer of a chat. `reasoning_content` is the thought, if there is one."""

    role: Literal["assistant"]
    content: str
    reasoning_content: NotRequired[str]


class Delta(TypedDict, total=False):
    """The new part of a chat's answer."""

    role: Literal["assistant"]
    content: str


class Choice(TypedDict):
    """The answer: `message` or `delta` in a chat, `text` in a completion.

    `finish_reason` says how the answer ended; None: it has not.
    """

    index: int
    logprobs: None
    finish_reason: Literal["stop", "length"] | None
    closed_at_budget: NotRequired[bool]
    message: NotRequired[Message]
    delta: NotRequired[Delta]
    text: NotRequired[str]


class Completion(TypedDict):
    """A whole completion, or one chunk of a stream."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: NotRequired[Usage]


@dataclass(frozen=True)
class Form:
    """Makes the bodies of one response: of a chat, or of a text completion."""

    chat: bool
    model: str
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> Completion:
        """The response to a request without `stream`."""
        choice = _choice(answer)
        if self.chat:
            choice["message"] = {"role": "assistant", "content": answer.text}
            if answer.thought is not None:
                choice["message"]["reasoning_content"] = answer.thought
        else:
            choice["text"] = answer.text
        return {**self._completion(choice, chunk=False), "usage": _usage(answer)}

    def opening(self) -> Completion:
        """The first chunk of a chat."""
        return self._chunk({"role": "assistant", "content": ""}, "")

    def part(self, text: str) -> Completion:
        """A chunk with the next text."""
        return self._chunk({"content": text}, text)

    def ending(self, answer: Answer) -> Completion:
        """The chunk that says how the answer ended."""
        return self._chunk({}, "", answer)

    def usage(self, answer: Answer) -> Completion:
        """The last chunk, if the request asks for it."""
        return {**self._chunk({}, ""), "choices": [], "usage": _usage(answer)}

    def _chunk(self, delta: Delta, text: str, answer: Answer | None = None) -> Completion:
        choice = _choice(answer)
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = text
        return self._completion(choice, chunk=True)

    def _completion(self, choice: Choice, *, chunk: bool) -> Completion:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        kind: Literal["chat.completion", "chat.completion.chunk", "text_completion"] = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": prefix + self.token,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def _choice(answer: Answer | None) -> Choice:
    """Without the text; None: the answer has not ended.

    An answer that was closed at the budget is complete, so it ends with "stop". "length" means that the text was cut,
    and clients such as Harbor's LiteLLM then discard it.
    """
    choice: Choice = {"index": 0, "logprobs": None, "finish_reason": None}
    if answer is not None:
        choice["finish_reason"] = "stop" if answer.closed_at_budget else answer.finish_reason
        if answer.closed_at_budget:
            choice["closed_at_budget"] = True
    return choice


def _usage(answer: Answer) -> Usage:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
