"""1,000 malformed bodies for each endpoint: an answer or a clear refusal, never a 500, a hang or a traceback.

.venv/bin/pytest tests/serve/test_malformed.py
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import serving

pytestmark = pytest.mark.slow

PARAMETERS = {
    "type": "object",
    "properties": {"path": {"type": "string", "maxLength": 4}},
    "required": ["path"],
}
FUNCTION = {"name": "ls", "description": "List.", "parameters": PARAMETERS, "strict": True}
CALL = {"id": "a", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 1, "repetition_penalty": 1.1}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "a"},
        {"role": "assistant", "content": "b"},
    ],
    "max_tokens": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
    "stop": ["x"],
    "logprobs": True,
    "top_logprobs": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "continue_final_message": True,
    "add_generation_prompt": False,
    **SAMPLING,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a"]}, "strict": True}}
TOOLS = {
    **{name: CHAT[name] for name in ("messages", "max_tokens", "stream", "model")},
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "ls"}},
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking_budget": 2,
}
COMPLETION = {
    "model": "m",
    "prompt": ["a", [1, 2]],
    "max_tokens": 2,
    "logprobs": 1,
    "echo": False,
    **SAMPLING,
}
RESPONSES = {
    "model": "m",
    "instructions": "a",
    "input": [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "content": None},
        {"type": "function_call", "call_id": "a", "name": "ls", "arguments": "{}", "namespace": "b"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "a"}]},
        {"type": "custom_tool_call", "call_id": "b", "name": "p", "input": "a"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "a"},
    ],
    "tools": [
        {"type": "web_search"},
        {"type": "custom", "name": "p"},
        {"type": "namespace", "name": "b", "tools": [{"type": "function", **FUNCTION}]},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "p"}]},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "store": False,
    "stream": True,
    "max_output_tokens": 2,
    "truncation": "auto",
    "metadata": {"a": "b"},
}
MESSAGES = {
    "model": "m",
    "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a", "signature": "b"},
                {"type": "tool_use", "id": "a", "name": "ls", "input": {"path": "."}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "a"}]},
                {"type": "text", "text": "a"},
            ],
        },
    ],
    "max_tokens": 2,
    "stream": True,
    "stop_sequences": ["x"],
    "tools": [{"name": "ls", "input_schema": PARAMETERS}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1},
    "output_config": {"effort": "low"},
    "metadata": {"user_id": "a"},
    "temperature": 0.5,
}
BODIES: list[tuple[str, list[dict[str, Any]]]] = [
    ("/v1/chat/completions", [CHAT, {**CHAT, "response_format": SCHEMA}, TOOLS]),
    ("/v1/completions", [COMPLETION]),
    ("/v1/responses", [RESPONSES]),
    ("/v1/messages", [MESSAGES]),
    ("/v1/messages/count_tokens", [MESSAGES]),
    ("/tokenize", [{"content": "a", "with_pieces": True}, {"messages": CHAT["messages"]}]),
    ("/detokenize", [{"tokens": [1, 2]}]),
    ("/v1/embeddings", [{"input": "a", "model": "m"}]),
]
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    3,
    1 << 70,
    1e308,
    0.5,
    "",
    "a",
    "auto",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [None],
    [{}],
    ["a", 1],
    {"type": "x"},
    {"type": "text", "text": 1},
    {"a": {"b": []}},
    [[[[]]]] * 3,
    "x" * 3000,
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a value with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def malformed(body: dict[str, Any], random: random.Random) -> bytes:
    body = json.loads(json.dumps(body))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        container, key = random.choice(list(places(body)) or [(body, "a")])
        what = random.randrange(6)
        if what == 0 and container:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[random.choice(JUNK[9:13])] = container.pop(key, None)
        elif what == 2 and isinstance(container, list):
            container.append(random.choice([*container, *JUNK]))
        else:
            container[key] = json.loads(json.dumps(random.choice(JUNK)))
    data = json.dumps(body).encode()
    if random.random() < 0.1:
        at = random.randrange(len(data))
        data = random.choice((data[:at], data[:at] + random.randbytes(3) + data[at:], data[at:]))
    return data


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    options = ("--answers", "text", "--max-tokens", 2, "--context", 256, "--receive-timeout", 5)
    with serving(tiny_q4, *options) as address:
        yield address


@pytest.mark.parametrize(("path", "bodies"), BODIES, ids=[path for path, _ in BODIES])
def test_malformed_bodies(server: str, path: str, bodies: list[dict[str, Any]]) -> None:
    source = random.Random(path)
    refused = 0
    with httpx.Client(base_url=server, timeout=60) as client:
        for number in range(1000):
            data = malformed(source.choice(bodies), source)
            got = client.post(path, content=data)
            assert got.status_code in (200, 400, 404), (number, data, got.text)
            assert b"Traceback" not in got.content
            if got.status_code == 200:
                assert b'"server_error"' not in got.content and b'"api_error"' not in got.content, (
                    data,
                    got.text,
                )
            else:
                refused += 1
                assert got.json()["error"]["message"], data
        assert refused > 100
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/status").json()["places"]["used"] == 0
