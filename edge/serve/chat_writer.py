"""The writer of a chat's answer that is text, calls of tools, or both; and the prompt of a chat that has tools."""

from dataclasses import replace
from itertools import takewhile
from typing import Any

from edge.answer.endings import Guide
from edge.answer.tools import CallGuide, Wanted, tool_answer
from edge.errors import GrammarError, PromptError
from edge.prompt import Message
from edge.serve.model import MakeWriter
from edge.serve.request import BadRequestError, ClientRequest
from edge.serve.state import Server
from edge.serve.tools import ToolChoice, tools_key

Form = tuple[Guide, list[int]]
"""A format that the client wants, and an ending at its start."""


def conversation(server: Server, request: ClientRequest) -> tuple[list[Message], dict[str, Any]]:
    """The messages of a chat for the model's template, and the template's variables.

    Tools whose schemas the template cannot write are described in the system message.
    """
    messages, variables = request.messages, request.thinking.variables
    tools = request.tools.declared if request.tools is not None else ()
    if not tools and not any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return messages, variables
    found, more = server.tool_prompt.prepare(messages, tools)
    if more and server.model.runner.render(found, {**variables, **more}).reason:
        found, more = replace(server.tool_prompt, shows_tools=False).prepare(messages, tools)
    return found, {**variables, **more}


def chosen(server: Server, request: ClientRequest) -> ToolChoice:
    """Whether an answer has no calls, may have them, or has nothing else."""
    if request.tools is None:
        return "none"
    return "required" if _forced(server, request) else request.tools.choice


def _forced(server: Server, request: ClientRequest) -> bool:
    """Whether the server wants a call where the client leaves the choice open.

    After the result of a call the choice stays open: agents end with an answer that has no call.
    """
    if not server.must_call or request.tools is None or request.tools.choice != "auto":
        return False
    new = takewhile(lambda message: message["role"] != "assistant", reversed(request.messages))
    return all(message["role"] not in ("tool", "function") for message in new)


def chat_writer(
    server: Server, request: ClientRequest, prompt: list[int], room: int, form: Form | None = None
) -> MakeWriter:
    """Makes the writer of an answer of at most `room` tokens. `form`: what an answer without calls is.

    Raises BadRequestError for tools whose calls cannot be guaranteed, or do not fit.
    """
    vocabulary, endings = server.model.runner.vocabulary, server.model.endings
    choice = chosen(server, request)
    wanted = Wanted(
        _calls(server, request) if choice != "none" else None,
        choice == "required",
        request.stop,
        request.ignore_eos,
        server.call_form.trigger if request.tools is not None else "",
        form,
        request.scores,
    )
    if (least := wanted.least(vocabulary, prompt)) > room:
        what = "call of the tools" if wanted.must else "answer"
        raise BadRequestError(
            f"the shortest {what} needs {least} tokens, and there is room for {room}; raise max_tokens",
            "max_tokens",
        )
    return lambda emit: tool_answer(
        vocabulary,
        endings,
        wanted,
        prompt,
        max_tokens=room,
        sampling=request.sampling,
        think=request.thinking.tokens(room),
        emit=emit,
    )


def _calls(server: Server, request: ClientRequest) -> CallGuide:
    assert request.tools is not None
    try:
        many = request.tools.many and not _forced(
            server, request
        )  # a forced call is one: the client chose none
        return server.calls(tools_key(request.tools.tools), many)
    except (GrammarError, PromptError) as error:
        raise BadRequestError(f"tools: {error}", "tools") from None
