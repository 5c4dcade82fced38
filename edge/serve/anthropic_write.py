"""Responses of Anthropic's Messages API: whole, or as the named events of a stream.

The format: https://docs.anthropic.com/en/api/messages-streaming. `edge_warnings` is an additional field.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from edge.answer.calls import CallArguments, CallBegun, Piece, Thinking, read_json
from edge.answer.scores import Scored
from edge.answer.writer import Answer
from edge.serve.failures import with_retry
from edge.serve.request import BadRequestError, ClientRequest
from edge.serve.response import ErrorBody, Sse

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
}


@dataclass
class MessagesForm:
    """Writes one message. Its blocks are, in this order: a thought, a text, tool uses."""

    request: ClientRequest
    model: str
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    blocks: int = 0
    open: str = ""
    """The kind of the block that is open."""

    def whole(self, answers: Sequence[Answer]) -> object:
        """The body of a response without `stream`."""
        (answer,) = answers
        content: list[dict[str, Any]] = []
        if answer.thought is not None:
            content.append({"type": "thinking", "thinking": answer.thought, "signature": ""})
        if answer.text or not answer.calls:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": read_json(call.arguments)}
            for call in answer.calls
        ]
        return {**self._message(content), **_ending(answer), **self._warned(), "usage": _usage(answer)}

    def opening(self, lengths: Sequence[int]) -> list[Sse]:
        """What a stream begins with."""
        usage = {"input_tokens": lengths[0], "output_tokens": 0}
        usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        start = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [_event("message_start", message=start)]

    def part(self, index: int, piece: Piece | Scored) -> list[Sse]:
        """The next piece of the answer."""
        if isinstance(piece, CallBegun):
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            return [*self._close(), *self._begin(block)]
        if isinstance(piece, CallArguments):
            return self._delta({"type": "input_json_delta", "partial_json": piece.text})
        if isinstance(piece, Thinking):
            events = self._switch({"type": "thinking", "thinking": "", "signature": ""})
            return [*events, *self._delta({"type": "thinking_delta", "thinking": piece.text})]
        if isinstance(piece, str | Scored):
            text = piece if isinstance(piece, str) else piece.text
            events = self._switch({"type": "text", "text": ""})
            return [*events, *self._delta({"type": "text_delta", "text": text})]
        return self._close()

    def ended(self, index: int, answer: Answer) -> list[Sse]:
        """The answer has ended: its last block too."""
        empty = [] if self.blocks else self._begin({"type": "text", "text": ""})
        return [*empty, *self._close()]

    def closing(self, answers: Sequence[Answer]) -> list[Sse]:
        """How the message ended, and the tokens."""
        ending = _event(
            "message_delta", delta=_ending(answers[0]), usage=_usage(answers[0]), **self._warned()
        )
        return [ending, _event("message_stop")]

    def failed(self, error: ErrorBody) -> list[Sse]:
        """The end of a stream that the engine could not finish."""
        return [_event("error", error={"type": "api_error", "message": error["error"]["message"]})]

    def alive(self) -> list[Sse]:
        """Anthropic's own event for this."""
        return [_event("ping")]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        message = {"id": f"msg_{self.token}", "type": "message", "role": "assistant", "model": self.model}
        return {**message, "content": content}

    def _warned(self) -> dict[str, Any]:
        return {"edge_warnings": list(self.request.warnings)} if self.request.warnings else {}

    def _switch(self, block: dict[str, Any]) -> list[Sse]:
        """Begin a block, unless one of its kind is open."""
        return [] if self.open == block["type"] else [*self._close(), *self._begin(block)]

    def _begin(self, block: dict[str, Any]) -> list[Sse]:
        self.open = block["type"]
        self.blocks += 1
        return [_event("content_block_start", index=self.blocks - 1, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> list[Sse]:
        return [_event("content_block_delta", index=self.blocks - 1, delta=delta)]

    def _close(self) -> list[Sse]:
        if not self.open:
            return []
        self.open = ""
        return [_event("content_block_stop", index=self.blocks - 1)]


def messages_refusal(error: BadRequestError) -> JSONResponse:
    """The response to a request that the server refuses, in Anthropic's form."""
    message = str(error)
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # the words by which clients know it
    kind = _KINDS.get(error.status, "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return with_retry(JSONResponse(body, error.status), error)


def _event(kind: str, **fields: Any) -> Sse:
    return kind, {"type": kind, **fields}


def _ending(answer: Answer) -> dict[str, Any]:
    """Why the message ended. One that was closed at the budget is complete."""
    reason = "end_turn"
    if answer.calls:
        reason = "tool_use"
    elif answer.stopped_by is not None:
        reason = "stop_sequence"
    elif answer.finish_reason == "length" and not answer.closed_at_budget:
        reason = "max_tokens"
    return {"stop_reason": reason, "stop_sequence": answer.stopped_by}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": answer.completion_tokens,
    }
