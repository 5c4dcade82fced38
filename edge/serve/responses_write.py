"""Responses of OpenAI's Responses API: whole, or as the named events of a stream.

The format: https://platform.openai.com/docs/api-reference/responses-streaming. `edge_warnings` is an additional field.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.answer.calls import CallArguments, CallBegun, CallEnded, Piece, Thinking
from edge.answer.scores import Scored
from edge.answer.writer import Answer
from edge.serve.response import ErrorBody, Sse
from edge.serve.responses_read import ResponsesRequest


@dataclass
class ResponsesForm:
    """Writes one response. Its items are, in this order: a thought, a message, tool calls."""

    request: ResponsesRequest
    model: str
    items: list[dict[str, Any]] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(24))
    created: int = field(default_factory=lambda: int(time.time()))
    number: int = 0

    def whole(self, answers: Sequence[Answer]) -> object:
        """The body of a response without `stream`."""
        (answer,) = answers
        if answer.thought is not None:
            self.part(0, Thinking(answer.thought))
        if answer.text or not answer.calls:
            self.part(0, answer.text)
        for index, call in enumerate(answer.calls):
            self.part(0, CallBegun(index, call.id, call.name))
            self.part(0, CallEnded(index, call))
        self._close("incomplete" if _cut(answer) else "completed")
        return self._response(answer)

    def opening(self, lengths: Sequence[int]) -> list[Sse]:
        """What a stream begins with."""
        return [
            self._event(f"response.{kind}", response=self._response()) for kind in ("created", "in_progress")
        ]

    def part(self, index: int, piece: Piece | Scored) -> list[Sse]:
        """The next piece of the answer."""
        if isinstance(piece, CallBegun):
            return [*self._close(), *self._begin_call(piece)]
        if isinstance(piece, CallArguments):
            if "input" in self.items[-1]:
                return []
            return [self._of_item("response.function_call_arguments.delta", delta=piece.text)]
        if isinstance(piece, CallEnded):
            return self._end_call(piece)
        text = piece if isinstance(piece, str) else piece.text
        kind = "reasoning" if isinstance(piece, Thinking) else "message"
        events: list[Sse] = []
        if not self._open or self.items[-1]["type"] != kind:
            events = [*self._close(), *self._begin_text(kind)]
        self.items[-1]["content"][0]["text"] += text
        if text:
            events.append(self._of_part(f"response.{_TEXT[kind]}.delta", delta=text, **_LOGPROBS[kind]))
        return events

    def ended(self, index: int, answer: Answer) -> list[Sse]:
        """The answer has ended: its last item too."""
        first = [] if self.items else self._begin_text("message")
        return [*first, *self._close("incomplete" if _cut(answer) else "completed")]

    def closing(self, answers: Sequence[Answer]) -> list[Sse]:
        """The last event. A client that named no maximum gets `completed`: some take `incomplete` as an error."""
        response = self._response(answers[0])
        named = self.request.max_tokens is not None
        kind = "incomplete" if response["status"] == "incomplete" and named else "completed"
        return [self._event(f"response.{kind}", response=response)]

    def failed(self, error: ErrorBody) -> list[Sse]:
        """The end of a stream that the engine could not finish."""
        fields = error["error"]
        reason = {"code": fields["code"] or "server_error", "message": fields["message"]}
        return [
            self._event("response.failed", response={**self._response(), "status": "failed", "error": reason})
        ]

    def alive(self) -> list[Sse]:
        """An event, because codex counts only events."""
        return [self._event("response.in_progress", response=self._response())]

    @property
    def _open(self) -> bool:
        return bool(self.items) and self.items[-1]["status"] == "in_progress"

    def _begin_text(self, kind: str) -> list[Sse]:
        item: dict[str, Any] = {"id": self._id(kind), "type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item["summary"] = []
        else:
            item["role"] = "assistant"
        self.items.append({**item, "content": [_part(kind)]})
        added = {**item, "content": []}
        return [
            self._event("response.output_item.added", output_index=len(self.items) - 1, item=added),
            self._of_part("response.content_part.added", part=_part(kind)),
        ]

    def _begin_call(self, begun: CallBegun) -> list[Sse]:
        names = self.request.names
        custom = begun.name in names.custom
        kind = "custom_tool_call" if custom else "function_call"
        space, name = names.spaces.get(begun.name, (None, begun.name))
        item = {
            "id": self._id(kind),
            "type": kind,
            "status": "in_progress",
            "call_id": begun.id,
            "name": name,
        }
        item |= {"namespace": space} if space is not None else {}
        self.items.append({**item, ("input" if custom else "arguments"): ""})
        return [
            self._event(
                "response.output_item.added", output_index=len(self.items) - 1, item=self.items[-1].copy()
            )
        ]

    def _end_call(self, ended: CallEnded) -> list[Sse]:
        item = self.items[-1]
        events = []
        if "input" in item:
            text = json.loads(ended.call.arguments).get("input", "")
            item["input"] = text
            events = [
                self._of_item("response.custom_tool_call_input.delta", delta=text),
                self._of_item("response.custom_tool_call_input.done", input=text),
            ]
        else:
            item["arguments"] = arguments = ended.call.arguments
            events = [
                self._of_item("response.function_call_arguments.done", arguments=arguments, name=item["name"])
            ]
        return [*events, *self._close()]

    def _close(self, status: str = "completed") -> list[Sse]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        item = self.items[-1]
        events: list[Sse] = []
        if "content" in item:
            kind, part = item["type"], item["content"][0]
            events = [
                self._of_part(f"response.{_TEXT[kind]}.done", text=part["text"], **_LOGPROBS[kind]),
                self._of_part("response.content_part.done", part=part.copy()),
            ]
        item["status"] = status
        last = self._event("response.output_item.done", output_index=len(self.items) - 1, item=item)
        return [*events, last]

    def _event(self, kind: str, **fields: Any) -> Sse:
        number, self.number = self.number, self.number + 1
        return kind, {"type": kind, "sequence_number": number, **fields}

    def _of_item(self, kind: str, **fields: Any) -> Sse:
        return self._event(kind, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **fields)

    def _of_part(self, kind: str, **fields: Any) -> Sse:
        return self._of_item(kind, content_index=0, **fields)

    def _id(self, kind: str) -> str:
        return f"{_IDS[kind]}_{self.token}{len(self.items):02x}"

    def _response(self, answer: Answer | None = None) -> dict[str, Any]:
        cut = answer is not None and _cut(answer)
        status = "in_progress" if answer is None else "incomplete" if cut else "completed"
        response: dict[str, Any] = {
            "id": f"resp_{self.token}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            **self.request.told,
            "model": self.model,
            "output": self.items if answer is not None else [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
        }
        if self.request.warnings:
            response["edge_warnings"] = list(self.request.warnings)
        return response


_IDS = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}
_TEXT = {"message": "output_text", "reasoning": "reasoning_text"}
_LOGPROBS: dict[str, dict[str, Any]] = {"message": {"logprobs": []}, "reasoning": {}}


def _part(kind: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _TEXT[kind], "text": ""}
    return part if kind == "reasoning" else {**part, "annotations": [], "logprobs": []}


def _cut(answer: Answer) -> bool:
    """Whether the text was cut at the maximum of tokens."""
    return answer.finish_reason == "length" and not answer.closed_at_budget and not answer.calls


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
