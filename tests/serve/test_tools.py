"""Tool calls of `edge serve`, through the real openai client: valid at each budget, streamed, and sent back.

.venv/bin/pytest tests/serve/test_tools.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from served import serving

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "Remove the file old.log."}]
PARAMETERS: Any = {
    "type": "object",
    "properties": {
        "command": {"type": "string"},
        "timeout": {"type": "integer", "minimum": 1, "maximum": 600},
    },
    "required": ["command"],
    "additionalProperties": False,
}


def tool(name: str, parameters: Any = None) -> Any:
    function = {"name": name, "description": "Does something."}
    return {"type": "function", "function": function | ({"parameters": parameters} if parameters else {})}


TOOLS: Any = [tool("bash", PARAMETERS), tool("done")]
NAMED: Any = {"type": "function", "function": {"name": "bash"}}


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(client: openai.OpenAI, **options: Any) -> Any:
    fields: dict[str, Any] = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 60, **options}
    return client.chat.completions.create(**fields)


def valid(calls: Any) -> list[str]:
    """The names of the calls; fails for arguments that are not valid."""
    for call in calls:
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, PARAMETERS if call.function.name == "bash" else {"type": "object"})
        assert call.type == "function" and len(call.id) == 9
    return [call.function.name for call in calls]


def shortest(client: openai.OpenAI, **options: Any) -> int:
    """The budget that the error for a smaller one names."""
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, max_tokens=2, **options)
    assert error.value.param == "max_tokens"
    return int(str(error.value).split("needs ")[1].split()[0])


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_calls_at_each_budget(client: openai.OpenAI, choice: Any) -> None:
    least = shortest(client, tool_choice=choice)
    with pytest.raises(openai.BadRequestError):
        ask(client, tool_choice=choice, max_tokens=least - 1)
    for budget in (least, least + 1, least + 3, least + 30):
        for temperature in (0, 2):
            answer = ask(client, tool_choice=choice, max_tokens=budget, temperature=temperature, seed=budget)
            chosen = answer.choices[0]
            names = valid(chosen.message.tool_calls)
            assert chosen.finish_reason == "tool_calls" and chosen.message.content is None
            assert answer.usage.completion_tokens <= budget
            assert choice == "required" or names == ["bash"]


def test_one_call_without_parallel_calls(client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    assert len(valid(answer.choices[0].message.tool_calls)) == 1


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = ask(client, tool_choice="required", max_tokens=150).choices[0].message.tool_calls
    calls: dict[int, Any] = {}
    reasons = []
    for event in ask(client, tool_choice="required", max_tokens=150, stream=True):
        choice = event.choices[0]
        reasons.append(choice.finish_reason)
        for part in choice.delta.tool_calls or []:
            if part.id is not None:
                assert part.index == len(calls) and part.type == "function" and part.function.arguments == ""
                calls[part.index] = [part.function.name, ""]
            else:
                assert part.function.name is None
                calls[part.index][1] += part.function.arguments
    assert list(calls.values()) == [[call.function.name, call.function.arguments] for call in whole]
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


def test_results_come_back(client: openai.OpenAI, server: str) -> None:
    message = ask(client, tool_choice="required").choices[0].message
    messages = [*MESSAGES, message.model_dump(exclude_none=True)]
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "it is gone"} for call in message.tool_calls
    ]
    answer = ask(client, messages=messages, tool_choice="none").choices[0]
    assert answer.message.tool_calls is None and answer.finish_reason in ("stop", "length")
    body = {"messages": messages, "tools": TOOLS, "return_token_strs": True}
    prompt = "".join(httpx.post(f"{server}/tokenize", json=body).json()["token_strs"])
    call = message.tool_calls[0].function
    written = f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'
    assert written in prompt and "<tool_response>\nit is gone\n</tool_response>" in prompt
    assert '"description": "Does something."' in prompt
    without = httpx.post(f"{server}/v1/chat/completions", json={"messages": messages, "max_tokens": 5})
    assert without.status_code == 200  # calls in the history, but no tools


def test_a_request_with_tools_never_gets_an_action(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = ask(client, tool_choice=choice, max_tokens=8).choices[0]
        assert answer.finish_reason == "length" and answer.message.tool_calls is None


def test_a_format_beside_tools(client: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    answer = ask(client, response_format=schema, max_tokens=40).choices[0]
    assert valid(answer.message.tool_calls or []) or isinstance(json.loads(answer.message.content), int)
    answer = ask(client, response_format=schema, tool_choice="required").choices[0]
    assert valid(answer.message.tool_calls)
    answer = ask(client, response_format=schema, tool_choice="none").choices[0]
    assert isinstance(json.loads(answer.message.content), int)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "bash"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [tool("two words")]}, "tools"),
        ({"tools": [tool("bash"), tool("bash")]}, "tools"),
        ({"tools": [tool("odd", {"type": "string"})]}, "tools"),
        (
            {
                "tools": [
                    tool(
                        "odd", {"type": "object", "properties": {"a": {"uniqueItems": True, "type": "array"}}}
                    )
                ]
            },
            "tools",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"thinking_budget": -5}, "thinking_budget"),
        ({"functions": [{"name": "bash"}]}, "functions"),
    ],
)
def test_refusals_name_the_field(server: str, fields: dict[str, Any], param: str) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 50, **fields}
    answer = httpx.post(
        f"{server}/v1/chat/completions", json={k: v for k, v in body.items() if v is not None}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_second_name_gives_the_other_answers(client: openai.OpenAI, tiny_q4: Path) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [tiny_q4.stem, f"{tiny_q4.stem}-text"]
    action = client.chat.completions.create(model=names[0], messages=MESSAGES, max_tokens=30)
    assert json.loads(action.choices[0].message.content or "")
    text = client.chat.completions.create(model=names[1], messages=MESSAGES, max_tokens=5)
    assert text.choices[0].finish_reason == "length" and text.model == names[1]


def test_options_of_the_server(tiny_q4: Path) -> None:
    """--tool-choice required makes a call where the client leaves it open; --answers text is for all names."""
    with (
        serving(tiny_q4, "--tool-choice", "required", "--answers", "text") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        for choice in ({}, {"tool_choice": "auto"}):
            assert valid(ask(client, **choice).choices[0].message.tool_calls)
        assert ask(client, tool_choice="none", max_tokens=5).choices[0].message.tool_calls is None
        assert [model.id for model in client.models.list()][1] == f"{tiny_q4.stem}-action"
        text = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=5).choices[0]
        assert text.finish_reason == "length"


def test_other_models_answer_with_text(smollm2_q4: Path) -> None:
    """A model that is not known as a terminal model answers with text, and calls tools in edge's own form."""
    with (
        serving(smollm2_q4, "--context", "1024", "--parallel", "1") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        text = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=6).choices[0]
        assert text.finish_reason == "length" and not (text.message.content or "{").startswith("{")
        assert valid(ask(client, tool_choice="required", max_tokens=40).choices[0].message.tool_calls)
        action = client.chat.completions.create(
            model=f"{smollm2_q4.stem}-action", messages=MESSAGES, max_tokens=30
        )
        assert "commands" in json.loads(action.choices[0].message.content or "")
