"""/v1/responses with the real openai client: whole and streamed, what is refused, and items with tools.

.venv/bin/pytest tests/serve/test_responses.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from served import serving

from edge.answer.calls import CallArguments, CallBegun, CallEnded, Piece, Thinking, ToolCall
from edge.answer.writer import Answer
from edge.serve.request import BadRequestError
from edge.serve.responses_read import read_responses
from edge.serve.responses_write import ResponsesForm

pytestmark = pytest.mark.slow

ASK: Any = {"model": "m", "input": "Remove the file old.log.", "instructions": "Be short."}
ITEMS: Any = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
    {"role": "user", "content": "Remove the file "},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "easy"}], "id": "r"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Which?"}]},
    {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": '{"path": "."}'},
    {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "*** Begin"},
    {"type": "function_call_output", "call_id": "c1", "output": "old.log"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
    {"role": "user", "content": [{"type": "input_text", "text": "old.log."}]},
]


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text", "--max-tokens", 12) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_whole_response(client: openai.OpenAI, server: str) -> None:
    got = client.responses.create(**ASK, max_output_tokens=8)
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": ASK["input"]}]
    same = httpx.post(f"{server}/v1/chat/completions", json={"messages": chat, "max_tokens": 8}).json()
    assert got.output_text == same["choices"][0]["message"]["content"]
    assert got.usage is not None and got.usage.input_tokens == same["usage"]["prompt_tokens"]
    assert got.status == "incomplete" and got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"
    assert got.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert got.usage.output_tokens == 8 and got.store is False  # type: ignore[attr-defined]


def test_a_streamed_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASK, store=False)
    events: list[Any] = list(client.responses.create(**ASK, store=False, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",  # the client named no maximum, and codex takes "incomplete" as an error
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    text = "".join(event.delta for event in events[4:-4])
    assert text == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 12
    assert events[2].item.id == events[4].item_id == events[-1].response.output[0].id
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1
    last = list(client.responses.create(**ASK, stream=True, max_output_tokens=3))[-1]
    assert last.type == "response.incomplete"
    with client.responses.stream(**ASK, max_output_tokens=999) as stream:
        assert list(stream)[-1].type == "response.completed"


def test_a_format_and_the_names_of_events(client: openai.OpenAI, server: str) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["yes", "no"]}}}
    got = client.responses.create(**ASK, text=form)
    assert json.loads(got.output_text) in ("yes", "no") and got.status == "completed"
    body = {**ASK, "stream": True, "truncation": "auto", "text": form, "stop": "e"}
    lines = httpx.post(f"{server}/responses", json=body, timeout=60).text.splitlines()
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [one["type"] for one in data] == [line[7:] for line in lines if line.startswith("event: ")]
    assert len(data[-1]["response"]["edge_warnings"]) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "a", "arguments": "{}"}]}, "input"),
        ({"instructions": 4}, "instructions"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": "x " * 9000}, "input"),
    ],
)
def test_what_is_not_kept_is_refused_by_name(server: str, fields: dict[str, Any], param: str) -> None:
    got = httpx.post(f"{server}/v1/responses", json={**ASK, **fields}, timeout=60)
    assert got.status_code == 400
    name = got.json()["error"]["param"]
    assert name == param or (fields.get("input", "")[:2] == "x " and name in ("input", "messages"))


def test_items_become_turns() -> None:
    request = read_responses({"input": ITEMS, "instructions": "Obey."}, "text")
    system, user, own, first, second, last = request.messages
    assert system == {"role": "system", "content": "Obey.\n\nBe short."}
    assert user["content"] == "Remove the file " and last["content"] == "old.log."
    assert (own["content"], own["reasoning_content"]) == ("Which?", "easy")
    calls = [call["function"] for call in own["tool_calls"]]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("ls", {"path": "."}),
        ("patch", {"input": "*** Begin"}),
    ]
    assert (first["tool_call_id"], first["content"]) == ("c1", "old.log")
    assert (second["tool_call_id"], second["content"]) == ("c2", "done")


def answered(text: str, calls: tuple[ToolCall, ...]) -> Answer:
    return Answer(text, text, "hm", "stop", False, 9, 5, 0, 2, calls=calls, cached_tokens=4)


def test_calls_thoughts_and_texts_are_items() -> None:
    """Streamed and whole, the same items; a tool that takes a text and one in a namespace among them."""
    call, patch = ToolCall("c1", "ls", '{"path":"."}'), ToolCall("c2", "patch", '{"input":"*** Begin"}')
    remote = ToolCall("c3", "mcp__disk__free", "{}")
    pieces: list[Piece] = [Thinking("h"), Thinking("m"), "Wait", "."]
    for index, one in enumerate((call, patch, remote)):
        pieces += [CallBegun(index, one.id, one.name), CallArguments(index, one.arguments)]
        pieces += [CallEnded(index, one)]
    request = read_responses({"input": "x"}, "text")
    names = type(request.names)(frozenset({"patch"}), {"mcp__disk__free": ("mcp__disk", "free")})
    object.__setattr__(request, "names", names)
    form = ResponsesForm(request, "m")
    events: list[Any] = form.opening([9])
    for piece in pieces:
        events += form.part(0, piece)
    answer = answered("Wait.", (call, patch, remote))
    events += json.loads(json.dumps([*form.ended(0, answer), *form.closing([answer])]))
    assert [event[1]["sequence_number"] for event in events] == list(range(len(events)))
    whole: Any = ResponsesForm(request, "m").whole([answer])
    streamed = Response.model_validate(events[-1][1]["response"])
    for response in (streamed, Response.model_validate(whole)):
        thought, text, first, second, third = (item.model_dump() for item in response.output)
        assert thought["content"][0]["text"] == "hm" and text["content"][0]["text"] == "Wait."
        assert (first["type"], first["call_id"], first["arguments"]) == (
            "function_call",
            "c1",
            '{"path":"."}',
        )
        assert (second["type"], second["call_id"], second["input"]) == ("custom_tool_call", "c2", "*** Begin")
        assert (third["name"], third["namespace"]) == ("free", "mcp__disk")
        assert response.status == "completed" and response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == 4
        assert all(item.status == "completed" for item in response.output)  # type: ignore[union-attr]
    done = [event[1]["item"]["type"] for event in events if event[0] == "response.output_item.done"]
    assert done == ["reasoning", "message", "function_call", "custom_tool_call", "function_call"]


def test_tools_of_other_kinds_are_set_aside() -> None:
    tools = [{"type": "web_search"}, {"type": "web_search"}, {"type": "local_shell"}]
    request = read_responses({"input": "x", "tools": tools}, "text")
    assert [warning.split(" are ")[0] for warning in request.warnings] == [
        "tools of the type web_search",
        "tools of the type local_shell",
    ]
    with pytest.raises(BadRequestError, match="tool_choice"):
        read_responses({"input": "x", "tools": tools, "tool_choice": "required"}, "text")


@pytest.fixture(scope="module")
def caller(tiny_q4: Path) -> Iterator[openai.OpenAI]:
    with (
        serving(tiny_q4, "--tool-choice", "required") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        yield client


TOOLS: Any = [
    {
        "type": "function",
        "name": "ls",
        "description": "List a folder.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"path": {"enum": [".", "/tmp"]}},
            "required": ["path"],
        },
    },
    {"type": "custom", "name": "patch", "description": "Apply a patch."},
    {"type": "web_search"},
]


def test_a_session_with_tools(caller: openai.OpenAI) -> None:
    """As codex does: a call comes, its result goes back, another call comes; streamed and not."""
    items: list[Any] = [{"type": "message", "role": "user", "content": "List the files."}]
    choice: Any = {"type": "function", "name": "ls"}
    for turn in range(3):
        events: list[Any] = list(
            caller.responses.create(
                model="m",
                instructions="You are a coding agent.",
                input=items,
                tools=TOOLS,
                tool_choice=choice,
                parallel_tool_calls=False,
                store=False,
                stream=True,
                include=["reasoning.encrypted_content"],
                max_output_tokens=60,
            )
        )
        assert events[-1].type == "response.completed", events[-1]
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.type for item in done] == ["function_call"]
        assert done[0].name == "ls" and json.loads(done[0].arguments)["path"] in (".", "/tmp")
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == done[0].arguments
        assert len(events[-1].response.edge_warnings) == 1
        items.append(done[0].model_dump(exclude_none=True))
        items.append({"type": "function_call_output", "call_id": done[0].call_id, "output": f"file{turn}"})
    whole = caller.responses.create(model="m", input=items, tools=TOOLS, tool_choice=choice)
    assert whole.output[-1].type == "function_call" and whole.status == "completed"
    custom: Any = {"type": "custom", "name": "patch"}
    patch = caller.responses.create(
        model="m", input=items, tools=TOOLS, tool_choice=custom, max_output_tokens=40
    ).output[-1]
    assert patch.type == "custom_tool_call" and patch.name == "patch" and isinstance(patch.input, str)
    forced = caller.responses.create(model="m", input="Hello.", tools=TOOLS, max_output_tokens=60)
    assert forced.output[-1].type in ("function_call", "custom_tool_call")  # --tool-choice required
