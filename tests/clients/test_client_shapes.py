"""The requests of real clients, as recorded by `scripts/clients.sh`, in their structure but with own short texts.

.venv/bin/pytest tests/clients/test_client_shapes.py

Each client asks, gets a call, sends the result back in its own structure, and gets an answer. One server for all, of
the embedded model; it forces the call (`--tool-choice required`) where the client leaves the choice open.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from served import serving

pytestmark = pytest.mark.slow

Json = dict[str, Any]
STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def http(tiny_q4: Path) -> Iterator[httpx.Client]:
    with (
        serving(tiny_q4, "--tool-choice", "required", "--parallel", "2") as address,
        httpx.Client(base_url=address, timeout=300) as client,
    ):
        yield client


def tool(name: str, properties: Json, required: list[str] | None = None, **more: object) -> Json:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required or list(properties),
        **more,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "A tool.", "parameters": parameters},
    }


TEXT: Json = {"type": "string"}
BASH = tool("bash", {"command": TEXT})
SYSTEM: Json = {"role": "system", "content": "You work in a terminal."}
USER: Json = {"role": "user", "content": "List the files."}
BIG = 9007199254740991


@dataclass(frozen=True)
class Chat:
    """How a client asks /v1/chat/completions. `content`: of a message with calls; None leaves the field out."""

    tools: list[Json]
    fields: Json = field(default_factory=dict)
    opening: list[Json] = field(default_factory=lambda: [SYSTEM, USER])
    content: list[Any] = field(default_factory=lambda: [None])
    parts: bool = False
    result: Json = field(default_factory=dict)
    index: str | None = None
    least: int = 1


NO_PARAMETERS: Json = {"type": "function", "function": {"name": "get_goal", "description": "No parameters."}}
QWEN_AGENT = tool(
    "agent",
    {
        "prompt": {"type": "string", "minLength": 1},
        "turns": {
            "oneOf": [{"type": "string", "enum": ["all"]}, {"type": "string", "pattern": "^[1-9][0-9]*$"}]
        },
        "background": {"type": "boolean", "default": True},
        "offset": {"type": ["integer", "null"]},
    },
    ["prompt"],
)
CLINE_READ = tool(
    "read_files",
    {
        "files": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "path": TEXT,
                    "line": {
                        "anyOf": [
                            {"type": "integer", "exclusiveMinimum": 0, "maximum": BIG},
                            {"type": "null"},
                        ]
                    },
                },
                "required": ["path"],
                "additionalProperties": False,
            },
        }
    },
    additionalProperties=False,
)
OPENCODE_BASH = tool(
    "bash",
    {"command": TEXT, "timeout": {"minimum": -BIG, "exclusiveMinimum": 0, "type": "integer", "maximum": BIG}},
    ["command"],
)
OPENCODE_BASH["function"]["parameters"]["$schema"] = "https://json-schema.org/draft/2020-12/schema"
PI_BASH = tool("bash", {"command": TEXT, "timeout": {"type": "number"}}, ["command"])
PI_BASH["function"]["strict"] = False
STRICT = tool("bash", {"command": TEXT}, additionalProperties=False)
STRICT["function"]["strict"] = True

CHATS = {
    "opencode": Chat([OPENCODE_BASH], {"max_tokens": 4096, "tool_choice": "auto", **STREAM}, content=[""]),
    "cline": Chat(
        [CLINE_READ, tool("run_commands", {"commands": {"type": "array", "items": TEXT}})],
        {"tool_choice": "auto", **STREAM},
    ),
    "qwen-code": Chat(
        [QWEN_AGENT, NO_PARAMETERS, tool("run_shell_command", {"command": TEXT})],
        {"max_tokens": 32000, **STREAM},
        opening=[
            SYSTEM,
            {
                "role": "user",
                "content": [{"type": "text", "text": "Notes."}, {"type": "text", "text": "Go."}],
            },
        ],
        parts=True,
    ),
    "pi": Chat([PI_BASH], {"max_completion_tokens": 4096, "store": False, **STREAM}),
    "mini-swe-agent": Chat([BASH], content=[]),
    "open-interpreter": Chat(
        [tool("execute", {"language": {"type": "string", "enum": ["python", "shell"]}, "code": TEXT})],
        {"stream": True, "max_tokens": 200},
        content=[""],
        result={"name": "execute"},
        index="toolu_1",
    ),
    "pydantic-ai": Chat(
        [STRICT], {"max_completion_tokens": 200, "tool_choice": "auto", "stream": False}, opening=[USER]
    ),
    "langchain": Chat([BASH], {"max_completion_tokens": 200, "stream": True}, opening=[USER]),
    "litellm": Chat([BASH], {"max_tokens": 200}, opening=[USER], content=[]),
    "openai (Node)": Chat(
        [BASH], {"max_completion_tokens": 200, "tool_choice": "auto", "stream": True}, opening=[USER]
    ),
    "AI SDK": Chat([BASH], {"max_tokens": 200, "tool_choice": "required", **STREAM}, opening=[USER]),
    "llm": Chat([BASH], {**STREAM}, opening=[USER]),
    "dspy": Chat(
        [BASH, tool("submit", {"answer": TEXT})], {"max_completion_tokens": 300, "temperature": 0.0}
    ),
}


def post(http: httpx.Client, path: str, body: Json) -> httpx.Response:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def events(response: httpx.Response) -> list[Json]:
    """The events of a stream; an `event` line, where there is one, says the type of its data."""
    found: list[Json] = []
    for block in response.text.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        data = [line[6:] for line in lines if line.startswith("data: ")]
        names = [line[7:] for line in lines if line.startswith("event: ")]
        if not data or data == ["[DONE]"]:
            continue
        found.append(json.loads(data[0]))
        assert not names or names == [found[-1]["type"]]
    assert not [event for event in found if event.get("error")]
    return found


def chat(http: httpx.Client, body: Json) -> Json:
    """The choice of an answer; of a stream, put together as clients do it."""
    response = post(http, "/v1/chat/completions", body)
    if not body.get("stream"):
        choice: Json = response.json()["choices"][0]
        return choice
    assert response.text.strip().endswith("data: [DONE]")
    found = events(response)
    usage = (body.get("stream_options") or {}).get("include_usage")
    if usage:
        assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] > 0
    chunks = [event["choices"][0] for event in found if event["choices"]]
    assert chunks[0]["delta"]["role"] == "assistant"
    assert [chunk["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    calls: list[Json] = []
    for part in itertools.chain.from_iterable(chunk["delta"].get("tool_calls") or [] for chunk in chunks):
        if part["index"] == len(calls):
            assert part["id"] and part["type"] == "function" and part["function"]["name"]
            calls.append(
                {
                    "id": part["id"],
                    "type": "function",
                    "function": {"name": part["function"]["name"], "arguments": ""},
                }
            )
        assert part["index"] == len(calls) - 1  # one call after the other
        calls[-1]["function"]["arguments"] += part["function"].get("arguments") or ""
    content = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    message = {"role": "assistant", "content": content or None, **({"tool_calls": calls} if calls else {})}
    return {"message": message, "finish_reason": chunks[-1]["finish_reason"]}


def check_calls(calls: list[Json], tools: list[Json]) -> None:
    """Each call names a tool, and its arguments are valid."""
    assert calls
    known = {one["function"]["name"]: one["function"] for one in tools}
    assert len({call["id"] for call in calls}) == len(calls)
    for call in calls:
        schema = known[call["function"]["name"]].get("parameters", {"type": "object", "maxProperties": 0})
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)


@pytest.mark.parametrize("name", CHATS)
def test_a_session_with_a_call(http: httpx.Client, name: str) -> None:
    client = CHATS[name]
    body = {"model": "edge", "messages": client.opening, "tools": client.tools, **client.fields}
    first = chat(http, body)
    assert first["finish_reason"] == "tool_calls"
    calls = first["message"]["tool_calls"]
    check_calls(calls, client.tools)
    if client.index:
        calls = [{**call, "id": client.index} for call in calls[:1]]
    output = "notes.txt\n"
    said = {
        "role": "assistant",
        **({"content": client.content[0]} if client.content else {}),
        "tool_calls": calls,
    }
    results = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": [{"type": "text", "text": output}] if client.parts else output,
            **client.result,
        }
        for call in calls
    ]
    second = chat(http, {**body, "max_tokens": 40, "messages": [*client.opening, said, *results]})
    if second["finish_reason"] == "tool_calls":
        check_calls(second["message"]["tool_calls"], client.tools)
    else:
        assert second["finish_reason"] in ("stop", "length")
        assert isinstance(second["message"]["content"], str)


def test_smolagents_calls_beside_stops(http: httpx.Client) -> None:
    """The results come back as a user's text, and the calls as the assistant's."""
    parts = lambda text: [{"type": "text", "text": text}]  # noqa: E731
    tools = [BASH, tool("final_answer", {"answer": TEXT})]
    body = {
        "model": "edge",
        "stop": ["Observation:", "Calling tools:"],
        "tool_choice": "required",
        "tools": tools,
    }
    messages: list[Json] = [
        {"role": "system", "content": parts("Use tools.")},
        {"role": "user", "content": parts("New task:\nList the files.")},
    ]
    for stream in ({}, STREAM):
        choice = chat(http, {**body, **stream, "messages": messages})
        check_calls(choice["message"]["tool_calls"], tools)
        messages += [
            {
                "role": "assistant",
                "content": parts("Calling tools:\n" + json.dumps(choice["message"]["tool_calls"])),
            },
            {"role": "user", "content": parts("Observation:\nnotes.txt")},
        ]
    last = chat(http, {"model": "edge", "max_tokens": 30, "messages": messages})
    assert isinstance(last["message"]["content"], str)


def test_smolagents_json_beside_stops(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"thought": TEXT, "code": TEXT},
        "required": ["thought", "code"],
        "additionalProperties": False,
        "title": "ThoughtAndCode",
    }
    form = {
        "type": "json_schema",
        "json_schema": {"schema": schema, "name": "ThoughtAndCode", "strict": True},
    }
    body = {
        "model": "edge",
        "messages": [SYSTEM, USER],
        "response_format": form,
        "stop": ["Observation:", "</code>"],
    }
    choice = chat(http, {**body, "max_tokens": 60})
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_named_tool_gives_the_object(http: httpx.Client, parallel: bool) -> None:
    """Instructor's and LangChain's way to an object; DSPy's last step, after results."""
    properties = {
        "name": {"minLength": 1, "type": "string"},
        "size": {"minimum": 0, "type": "integer"},
        "kind": {"anyOf": [TEXT, {"type": "null"}], "default": None},
    }
    tools = [tool("File", properties, ["name", "size"]), BASH]
    call = {"id": "call_9", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_9", "content": "a"},
        USER,
    ]
    for messages in ([USER], history):
        body = {"model": "edge", "messages": messages, "tools": tools, "max_tokens": 100}
        named = {
            "tool_choice": {"type": "function", "function": {"name": "File"}},
            "parallel_tool_calls": parallel,
        }
        (call,) = chat(http, {**body, **named})["message"]["tool_calls"]
        assert call["function"]["name"] == "File"
        check_calls([call], tools)


def test_a_schema_beside_tools(http: httpx.Client) -> None:
    """DSPy: a call, or a text of the schema."""
    schema = {
        "type": "object",
        "properties": {"answer": TEXT},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "Outputs", "schema": schema, "strict": True}}
    for choice in ("auto", "none"):
        got = chat(
            http,
            {
                "model": "edge",
                "messages": [SYSTEM, USER],
                "tools": [BASH],
                "tool_choice": choice,
                "response_format": form,
                "max_tokens": 80,
            },
        )
        if got["finish_reason"] == "tool_calls":
            assert choice == "auto"
            check_calls(got["message"]["tool_calls"], [BASH])
        else:
            jsonschema.validate(json.loads(got["message"]["content"]), schema)


def test_two_requests_at_once_one_without_tools(http: httpx.Client) -> None:
    """opencode asks for a title of the conversation meanwhile: two user messages in a row, no tools, so a text."""
    title = {"role": "user", "content": "Write a title for this conversation:\n"}
    body = {"model": "edge", "max_tokens": 30, "messages": [SYSTEM, title, USER], **STREAM}
    choice = chat(http, body)
    assert choice["message"]["content"] and "tool_calls" not in choice["message"]


def test_text_from_a_model_that_writes_actions(http: httpx.Client) -> None:
    """aider, CodeAgent and mini-swe-agent want text, and its stop left out, from a model that writes actions."""
    messages = [
        SYSTEM,
        USER,
        {"role": "assistant", "content": "Ok."},
        USER,
        {"role": "assistant", "content": "Ok."},
        USER,
    ]
    names = [one["id"] for one in http.get("/v1/models").json()["data"]]
    name = next(one for one in names if one.endswith("-text"))
    body = {"model": name, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 20}
    choice = chat(http, body)
    assert choice["finish_reason"] == "length"  # the action of so many tokens would be complete
    text = choice["message"]["content"]
    word = text.split()[1]
    choice = chat(http, {**body, "stop": [word]})
    assert choice["finish_reason"] == "stop"
    assert (choice["message"]["content"] or "") == text.partition(word)[0]


def test_a_prompt_that_is_too_long_has_the_words_that_litellm_knows(http: httpx.Client) -> None:
    body = {"model": "edge", "messages": [{"role": "user", "content": "word " * 40_000}]}
    for path, request in (
        ("/v1/chat/completions", body),
        ("/v1/responses", {"model": "edge", "input": "word " * 40_000}),
    ):
        response = http.post(path, json=request)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded" and "maximum context length is" in error["message"]


def respond(http: httpx.Client, body: Json) -> Json:
    """An answer of /v1/responses; the events of a stream are in the order that codex and OpenAI's packages need."""
    response = post(http, "/v1/responses", body)
    if not body.get("stream"):
        whole: Json = response.json()
        return whole
    found = events(response)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[0]["type"] == "response.created" and found[-1]["type"] in (
        "response.completed",
        "response.incomplete",
    )
    final: Json = found[-1]["response"]
    open_item: Json | None = None
    for event in found:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert open_item is None
            open_item = {**event["item"], "at": event["output_index"], "text": "", "parts": 0}
        elif kind == "content_part.added":
            assert open_item
            open_item["parts"] += 1
        elif kind in ("output_text.delta", "function_call_arguments.delta"):
            assert (
                open_item and event["output_index"] == open_item["at"] and event["item_id"] == open_item["id"]
            )
            assert kind != "output_text.delta" or open_item["parts"] == event["content_index"] + 1
            open_item["text"] += event["delta"]
        elif kind == "output_item.done":
            assert open_item and event["item"] == final["output"][event["output_index"]]
            item = event["item"]
            assert item["type"] == open_item["type"]
            text = item["arguments"] if item["type"] == "function_call" else None
            if item["type"] == "message":
                text = "".join(part["text"] for part in item["content"])
            assert text is None or text == open_item["text"]
            open_item = None
    assert open_item is None
    return final


def codex_message(role: str, *texts: str, kind: str = "input_text") -> Json:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts]}


def test_codex(http: httpx.Client) -> None:
    command = {
        "type": "object",
        "properties": {"cmd": TEXT, "wait": {"type": "number"}},
        "required": ["cmd"],
        "additionalProperties": False,
    }
    function = {
        "type": "function",
        "name": "exec_command",
        "description": "Run it.",
        "strict": False,
        "parameters": command,
    }
    inner = {**function, "name": "close_agent"}
    body = {
        "model": "edge",
        "stream": True,
        "tools": [
            function,
            {"type": "namespace", "name": "agents", "description": "More.", "tools": [inner]},
            {"type": "web_search", "external_web_access": True},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01",
        "client_metadata": {"a": "b"},
    }
    opening = [
        codex_message("developer", "You work in a terminal."),
        codex_message("developer", "Rules.", "More rules."),
        codex_message("user", "<environment/>"),
        codex_message("user", "List the files."),
    ]
    final = respond(http, {**body, "input": opening})
    assert final["status"] == "completed" and final["usage"]["output_tokens"] > 0
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    check_calls(
        [{"id": call["call_id"], "function": call} for call in calls],
        [{"function": function}, {"function": inner}],
    )
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "Output:\nnotes.txt\n"}
        for call in calls
    ]
    final = respond(http, {**body, "input": [*opening, *calls, *results], "max_output_tokens": 40})
    assert final["output"]
    text = codex_message("assistant", "Done.", kind="output_text")
    final = respond(
        http, {**body, "input": [*opening, *calls, *results, text, codex_message("user", "Again.")]}
    )
    assert [item for item in final["output"] if item["type"] == "function_call"]


def test_openai_responses(http: httpx.Client) -> None:
    flat = {
        "type": "function",
        "name": "bash",
        "description": "Run it.",
        "parameters": BASH["function"]["parameters"],
    }
    body = {"model": "edge", "max_output_tokens": 100}
    first = respond(http, {**body, "input": "Show the folder.", "tools": [flat], "tool_choice": "required"})
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    check_calls([{"id": call["call_id"], "function": call} for call in calls], [BASH])
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "a"} for call in calls]
    asked = {"role": "user", "content": "Show the folder."}
    second = respond(http, {**body, "input": [asked, *first["output"], *results], "store": False})
    assert second["output"][-1]["type"] == "message"
    assert respond(http, {**body, "input": "Say hello.", "stream": True})["output"]
