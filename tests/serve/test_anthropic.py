"""/v1/messages: Anthropic's Messages API, whole and streamed, and what is refused.

.venv/bin/pytest tests/serve/test_anthropic.py
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import serving

from edge.answer.calls import CallArguments, CallBegun, CallEnded, Piece, Thinking, ToolCall
from edge.answer.writer import Answer
from edge.serve.anthropic_read import read_messages
from edge.serve.anthropic_write import MessagesForm

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "Remove the file old.log."}]
ASK: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 12, "system": "Be short."}


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text", EDGE_API_KEY="sesame") as address:
        yield address


def post(server: str, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    headers = {"x-api-key": "sesame", "anthropic-version": "2023-06-01"}
    return httpx.post(f"{server}{path}", json={**ASK, **fields}, headers=headers, timeout=120)


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found


def test_a_message_whole_and_streamed(server: str) -> None:
    got = post(server).json()
    assert (got["type"], got["role"], got["stop_reason"]) == ("message", "assistant", "max_tokens")
    (block,) = got["content"]
    headers = {"Authorization": "Bearer sesame"}
    chat = [{"role": "system", "content": "Be short."}, *MESSAGES]
    same = httpx.post(
        f"{server}/v1/chat/completions", json={"messages": chat, "max_tokens": 12}, headers=headers
    ).json()
    assert block == {"type": "text", "text": same["choices"][0]["message"]["content"]}
    usage = got["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == same["usage"]["prompt_tokens"]
    start, begun, *deltas, ended, last, stop = events(post(server, stream=True).text)
    assert start["message"]["usage"]["input_tokens"] == same["usage"]["prompt_tokens"]
    assert begun["content_block"] == {"type": "text", "text": ""}
    assert "".join(one["delta"]["text"] for one in deltas) == block["text"]
    assert (ended["type"], stop["type"]) == ("content_block_stop", "message_stop")
    assert last["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 12
    stopped = post(server, stop_sequences=['"plan"'], max_tokens=60).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", '"plan"')
    count = post(server, "/v1/messages/count_tokens").json()
    assert count == {"input_tokens": same["usage"]["prompt_tokens"]}


def test_a_format_and_a_begun_answer(server: str) -> None:
    form = {"format": {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}}
    for fields in ({"output_config": form}, {"output_format": form["format"]}):
        got = post(server, **fields, stop_sequences=["s"]).json()
        assert json.loads(got["content"][0]["text"]) in ("yes", "no") and got["stop_reason"] == "end_turn"
        assert got["edge_warnings"]
    begun = [*MESSAGES, {"role": "assistant", "content": '{"analysis":'}]
    text = post(server, messages=begun).json()["content"][0]["text"]
    assert text and not text.startswith('{"analysis"')


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "name"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"input_schema": {}}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"thinking": {"type": "much"}}, "thinking"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, "prompt is too long"),
    ],
)
def test_refusals_have_the_form_of_anthropic(server: str, fields: dict[str, Any], words: str) -> None:
    got = post(server, **fields)
    assert got.status_code == 400
    body = got.json()
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"]


def test_the_key_is_needed(server: str) -> None:
    assert httpx.post(f"{server}/v1/messages", json=ASK).status_code == 401
    wrong = {"x-api-key": "other"}
    assert httpx.post(f"{server}/v1/messages", json=ASK, headers=wrong).status_code == 401


def test_blocks_become_turns() -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "List."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "easy", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "."}},
                {"type": "tool_use", "id": "t2", "name": "pwd", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "/", "is_error": False},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "short.", "cache_control": {}}]
    request = read_messages({"messages": messages, "system": system}, "text")
    first, user, own, one, two, last = request.messages
    assert (first["role"], first["content"]) == ("system", "Be short.")
    assert (user["content"], own["content"], own["reasoning_content"]) == ("List.", "I look.", "easy")
    assert [call["function"]["arguments"] for call in own["tool_calls"]] == [{"path": "."}, {}]
    assert [(one["tool_call_id"], one["content"]), (two["tool_call_id"], two["content"])] == [
        ("t1", "a"),
        ("t2", "/"),
    ]
    assert last == {"role": "user", "content": "And now?"}


def test_calls_thoughts_and_texts_are_blocks() -> None:
    call, empty = ToolCall("c1", "ls", '{"path":"."}'), ToolCall("c2", "pwd", "{}")
    pieces: list[Piece] = [Thinking("h"), Thinking("m"), "Wait", "."]
    for index, one in enumerate((call, empty)):
        pieces += [CallBegun(index, one.id, one.name), CallArguments(index, one.arguments)]
        pieces += [CallEnded(index, one)]
    request = read_messages({"messages": MESSAGES}, "text")
    form, answer = (
        MessagesForm(request, "m"),
        Answer("Wait.", "", "hm", "stop", False, 9, 5, 0, 2, (call, empty)),
    )
    found: list[Any] = form.opening([9])
    for piece in pieces:
        found += form.part(0, piece)
    found += [*form.ended(0, answer), *form.closing([answer])]
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    for _, event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            texts.append("")
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            delta = event["delta"]
            texts[-1] += delta.get("text", delta.get("thinking", delta.get("partial_json", "")))
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert texts == ["hm", "Wait.", '{"path":"."}', "{}"]
    assert sum(event["type"] == "content_block_stop" for _, event in found) == 4
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use"
    whole: Any = MessagesForm(request, "m").whole([answer])
    assert [block["type"] for block in whole["content"]] == [block["type"] for block in blocks]
    assert whole["content"][2] == {"type": "tool_use", "id": "c1", "name": "ls", "input": {"path": "."}}
    huge = replace(answer, calls=(ToolCall("c1", "ls", '{"size": 9e999}'),))
    assert json.dumps(MessagesForm(request, "m").whole([huge]), allow_nan=False)


def test_a_session_with_tools(server: str) -> None:
    schema = {"type": "object", "properties": {"path": {"enum": [".", "/tmp"]}}, "required": ["path"]}
    tools = [{"name": "ls", "description": "List a folder.", "input_schema": schema}]
    messages: list[Any] = [{"role": "user", "content": "List the files."}]
    for turn, choice in enumerate(({"type": "any"}, {"type": "tool", "name": "ls"}, {"type": "any"})):
        ask: Any = {"messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 60}
        got = post(server, **ask, stop_sequences=["x"]).json()
        assert got["stop_reason"] == "tool_use", got
        block = got["content"][-1]
        assert block["type"] == "tool_use" and block["input"]["path"] in (".", "/tmp")
        assert got["edge_warnings"] == ["stop is ignored: it would cut a call that must be complete"]
        found = events(post(server, **ask, stream=True).text)
        begun = [one["content_block"] for one in found if one["type"] == "content_block_start"]
        parts = [one["delta"] for one in found if one["type"] == "content_block_delta"]
        text = "".join(part["partial_json"] for part in parts if part["type"] == "input_json_delta")
        assert begun[-1]["name"] == "ls" and json.loads(text) == block["input"]
        assert found[-2]["delta"]["stop_reason"] == "tool_use"
        messages += [
            {"role": "assistant", "content": got["content"]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": f"file{turn}"}],
            },
        ]
    assert (
        post(server, "/v1/messages/count_tokens", messages=messages, tools=tools).json()["input_tokens"] > 50
    )
