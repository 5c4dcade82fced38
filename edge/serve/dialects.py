"""The APIs that clients use: OpenAI's chats, completions and responses, and Anthropic's messages."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from edge.serve.anthropic_read import read_messages
from edge.serve.anthropic_write import MessagesForm, messages_refusal
from edge.serve.endpoint import Dialect
from edge.serve.failures import refusal
from edge.serve.prepare import chat_ids
from edge.serve.request import BadRequestError, ClientRequest, read_chat, read_completion
from edge.serve.response import Form
from edge.serve.responses_read import ResponsesRequest, read_responses
from edge.serve.responses_write import ResponsesForm
from edge.serve.state import Server


def _form(server: Server, request: ClientRequest, name: str) -> Form:
    return Form(
        bool(request.messages),
        name,
        server.model.runner.vocabulary.spelling,
        request.n,
        request.warnings,
        request.include_usage,
    )


def _responses_form(server: Server, request: ClientRequest, name: str) -> ResponsesForm:
    assert isinstance(request, ResponsesRequest)
    return ResponsesForm(request, name)


def _responses_refusal(error: BadRequestError) -> Response:
    if error.param == "messages":
        error.param = "input"
    return refusal(error)


def _messages_form(server: Server, request: ClientRequest, name: str) -> MessagesForm:
    return MessagesForm(request, name)


def count_tokens(server: Server, body: Mapping[str, Any]) -> object:
    """The tokens of the prompt of a message, in Anthropic's form. Raises BadRequestError."""
    return {"input_tokens": len(chat_ids(server, read_messages(body, server.kind(body))))}


CHAT = Dialect(lambda server, body: read_chat(body, server.kind(body)), _form)
COMPLETION = Dialect(lambda server, body: read_completion(body), _form)
RESPONSES = Dialect(
    lambda server, body: read_responses(body, server.kind(body)), _responses_form, _responses_refusal
)
MESSAGES = Dialect(
    lambda server, body: read_messages(body, server.kind(body)), _messages_form, messages_refusal
)
