"""The server's responses in OpenAI's form: completions, the chunks of a stream, errors, models.

The format: https://platform.openai.com/docs/api-reference/chat and /completions. `closed_at_budget`, `edge_warnings`,
`reasoning_content` and `max_model_len` are additional fields.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from edge.answer.calls import CallArguments, CallBegun, Piece, Thinking
from edge.answer.scores import Scored, TokenScore
from edge.answer.writer import Answer

Sse = tuple[str, object]
"""A server-sent event: its name, empty for none, and its data, as JSON or as a text."""
FinishReason = Literal["stop", "length", "tool_calls"]
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


class CachedTokens(TypedDict):
    """Tokens of the prompt that were not read again."""

    cached_tokens: int


class ThoughtTokens(TypedDict):
    """Tokens of the answer that are its thought."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ThoughtTokens


class CalledFunction(TypedDict, total=False):
    """The function of a call; in a stream the arguments come in parts."""

    name: str
    arguments: str


class Call(TypedDict, total=False):
    """A tool call, or the next part of one."""

    index: int
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(TypedDict):
    """The answer of a chat. `reasoning_content` is the thought, if there is one."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class Delta(TypedDict, total=False):
    """The new part of a chat's answer."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[Call]


class Choice(TypedDict):
    """The answer: `message` or `delta` in a chat, `text` in a completion.

    `finish_reason` says how the answer ended; None: it has not. `logprobs` has OpenAI's two forms.
    """

    index: int
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason | None
    closed_at_budget: NotRequired[bool]
    message: NotRequired[Message]
    delta: NotRequired[Delta]
    text: NotRequired[str]


class Completion(TypedDict):
    """A whole completion, or one chunk of a stream. `edge_warnings`: fields of the request that were ignored."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: NotRequired[Usage]
    edge_warnings: NotRequired[list[str]]


def finish_reason(answer: Answer) -> FinishReason:
    """How an answer ended.

    One that was closed at the budget is complete, so it ends with "stop". "length" means that the text was cut, and
    clients such as Harbor's LiteLLM then discard it.
    """
    if answer.calls:
        return "tool_calls"
    return "stop" if answer.closed_at_budget else answer.finish_reason


@dataclass
class Form:
    """Makes the bodies of one response: of a chat, or of a text completion.

    `per_prompt`: answers for each prompt (`n`). `piece`: the text of a token, for log probabilities.
    """

    chat: bool
    model: str
    piece: Callable[[int], bytes]
    per_prompt: int = 1
    warnings: tuple[str, ...] = ()
    include_usage: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(default_factory=dict)
    """Characters of each answer so far, for the offsets of a completion's tokens."""

    def whole(self, answers: Sequence[Answer]) -> Completion:
        """The response to a request without `stream`."""
        choices = [self._whole_choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._completion(choices, chunk=False), **self._warned(), "usage": self._usage(answers)}

    def opening(self, lengths: Sequence[int]) -> list[Sse]:
        """What a stream begins with; `lengths`: of the prompts of its answers, in tokens."""
        if not self.chat:
            return []
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(lengths))]

    def part(self, index: int, piece: Piece | Scored) -> list[Sse]:
        """The next piece of an answer."""
        if isinstance(piece, Scored):
            return [self._chunk(index, {"content": piece.text}, self._logprobs(index, piece.scores))]
        if isinstance(piece, str):
            return [self._chunk(index, {"content": piece})]
        if not self.chat:
            return []
        if isinstance(piece, Thinking):
            return [self._chunk(index, {"reasoning_content": piece.text})]
        call: Call
        if isinstance(piece, CallBegun):
            function: CalledFunction = {"name": piece.name, "arguments": ""}
            call = {"index": piece.index, "id": piece.id, "type": "function", "function": function}
        elif isinstance(piece, CallArguments):
            call = {"index": piece.index, "function": {"arguments": piece.text}}
        else:
            return []
        return [self._chunk(index, {"tool_calls": [call]})]

    def ended(self, index: int, answer: Answer) -> list[Sse]:
        """The chunk that says how an answer ended."""
        choice = _choice(index, answer)
        if self.chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return [("", {**self._completion([choice], chunk=True), **self._warned()})]

    def closing(self, answers: Sequence[Answer]) -> list[Sse]:
        """The end of a stream, with the usage if the request asks for it."""
        last: list[Sse] = [("", "[DONE]")]
        if self.include_usage:
            last.insert(0, ("", {**self._completion([], chunk=True), "usage": self._usage(answers)}))
        return last

    def failed(self, error: ErrorBody) -> list[Sse]:
        """The end of a stream that the engine could not finish."""
        return [("", error), ("", "[DONE]")]

    def alive(self) -> list[Sse]:
        """What tells a client that the server still works; no event: a comment is sent."""
        return []

    def _whole_choice(self, index: int, answer: Answer) -> Choice:
        choice = _choice(index, answer)
        if answer.scores:
            choice["logprobs"] = self._logprobs(index, answer.scores)
        if not self.chat:
            choice["text"] = answer.text
            return choice
        message: Message = {"role": "assistant", "content": answer.text}
        choice["message"] = message
        if answer.thought is not None:
            message["reasoning_content"] = answer.thought
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        return choice

    def _warned(self) -> Any:
        return {"edge_warnings": list(self.warnings)} if self.warnings else {}

    def _chunk(self, index: int, delta: Delta, logprobs: dict[str, Any] | None = None) -> Sse:
        choice: Choice = {"index": index, "logprobs": logprobs, "finish_reason": None}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return "", self._completion([choice], chunk=True)

    def _completion(self, choices: list[Choice], *, chunk: bool) -> Completion:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        kind: Literal["chat.completion", "chat.completion.chunk", "text_completion"] = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": prefix + self.token,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _usage(self, answers: Sequence[Answer]) -> Usage:
        """The tokens of all answers; a prompt with several answers counts once."""
        prompts = answers[:: self.per_prompt]
        read = sum(answer.prompt_tokens for answer in prompts)
        written = sum(answer.completion_tokens for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in prompts)},
            "completion_tokens_details": {
                "reasoning_tokens": sum(answer.thought_tokens for answer in answers)
            },
        }

    def _logprobs(self, index: int, scores: Sequence[TokenScore]) -> dict[str, Any]:
        if self.chat:
            return {"content": [self._chat_score(score) for score in scores]}
        texts = [self._text(score.token) for score in scores]
        begin = self.offsets.get(index, 0)
        offsets = [begin + sum(map(len, texts[:at])) for at in range(len(texts))]
        self.offsets[index] = begin + sum(map(len, texts))
        best = [{self._text(token): logprob for token, logprob in score.best} for score in scores]
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": best if any(best) else None,
            "text_offset": offsets,
        }

    def _chat_score(self, score: TokenScore) -> dict[str, Any]:
        best = [self._named(token, logprob) for token, logprob in score.best]
        return {**self._named(score.token, score.logprob), "top_logprobs": best}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self.piece(token))}

    def _text(self, token: int) -> str:
        return self.piece(token).decode(errors="replace")


def _choice(index: int, answer: Answer) -> Choice:
    """Without the text."""
    choice: Choice = {"index": index, "logprobs": None, "finish_reason": finish_reason(answer)}
    if answer.closed_at_budget:
        choice["closed_at_budget"] = True
    return choice
