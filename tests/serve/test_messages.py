"""Messages of clients reach the model's own template: text parts, tool history, and what a template refuses.

.venv/bin/pytest tests/serve/test_messages.py
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import serving

from edge.convert import convert
from edge.prompt import render_chat_template
from edge.serve.request import BadRequestError, read_chat

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny model with a template that refuses more than three messages."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(ROOT / "models" / "tiny-terminal", folder)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.write_text("{{- raise_exception('odd') if messages[3:] -}}" + text, encoding="utf-8")
    model = folder.with_suffix(".gguf")
    convert(folder, quant="Q4_K_M", out=model, threads=1)
    with serving(model, "--answers", "text") as address:
        yield address


def post(server: str, messages: list[dict[str, Any]]) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 2}
    return httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)


def tokens(server: str, *messages: dict[str, Any]) -> int:
    answer = post(server, list(messages))
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


def test_text_parts_are_the_text(server: str) -> None:
    text = {"role": "user", "content": "Remove the file old.log."}
    parts = [{"type": "text", "text": "Remove the "}, {"type": "text", "text": "file old.log."}]
    assert tokens(server, {"role": "user", "content": parts}) == tokens(server, text)
    system = {"role": "system", "content": "Be short."}
    assert tokens(server, system | {"role": "developer"}, text) == tokens(server, system, text)


def test_tool_history_reaches_the_template(server: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
    asked = {"role": "user", "content": "List."}
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "old.log"}]}
    # The embedded model's template has no calls: they are part of the text.
    text = '<tool_call>\n{"name": "ls", "arguments": {"path": "."}}\n</tool_call>'
    response = {"role": "user", "content": "<tool_response>\nold.log\n</tool_response>"}
    plain = [asked, {"role": "assistant", "content": text}, response]
    assert tokens(server, asked, calls, result) == tokens(server, *plain)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "'image_url'"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
            "messages[0].content[1]",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}, "arguments"),
        ({"role": "assistant", "tool_calls": "a"}, "tool_calls"),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "a", "arguments": "{}"}},
            "function_call",
        ),
        ({"role": "assistant", "tool_calls": [1]}, "tool_calls[0]"),
    ],
)
def test_other_parts_are_refused_by_name(server: str, message: dict[str, Any], words: str) -> None:
    answer = post(server, [message])
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"] and answer.json()["error"]["param"] == "messages"


def test_a_template_that_refuses_messages_is_an_error_of_the_request(server: str) -> None:
    turn = {"role": "user", "content": "List."}
    assert tokens(server, turn, turn, turn) > 0
    answer = post(server, [turn] * 4)
    assert answer.status_code == 400
    assert "chat template" in answer.json()["error"]["message"] and "odd" in answer.json()["error"]["message"]


def test_arguments_are_objects_in_the_template() -> None:
    template = (
        "{% for message in messages %}{% for call in message.tool_calls %}"
        "{% for key, value in call.function.arguments.items() %}{{ key }}={{ value }};{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    for arguments in ('{"a": 1, "b": "x"}', {"a": 1, "b": "x"}):
        call = {"function": {"name": "f", "arguments": arguments}}
        request = read_chat({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})
        text = render_chat_template(request.messages, template=template, bos_token=None, eos_token=None)
        assert text == "a=1;b=x;"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda one: (
        st.lists(one, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "function", "arguments"]), one)
    ),
    max_leaves=8,
)


@given(content=_json, calls=_json)
def test_any_message_is_text_or_a_clear_refusal(content: object, calls: object) -> None:
    try:
        request = read_chat({"messages": [{"role": "user", "content": content, "tool_calls": calls}]})
    except BadRequestError as error:
        assert error.param == "messages"
        return
    message = request.messages[0]
    assert isinstance(message["content"], str)
    for call in message.get("tool_calls") or []:
        assert isinstance(call["function"]["arguments"], dict)
    json.dumps(message)
