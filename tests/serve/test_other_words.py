"""A form in words that the server does not read is refused by name, at each door; the rest is named in a warning.

.venv/bin/pytest tests/serve/test_other_words.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import serving

from edge.serve.anthropic_read import read_messages
from edge.serve.request import BadRequestError, ClientRequest, read_body, read_chat, read_completion
from edge.serve.responses_read import read_responses

Json = dict[str, Any]
SCHEMA: Json = {"type": "object", "properties": {"cmd": {"enum": ["ls", "rm"]}}, "required": ["cmd"]}
GEMINI: Json = {"type": "OBJECT", "properties": {"cmd": {"type": "STRING"}}}
MESSAGES = [{"role": "user", "content": "Remove the file old.log."}]
Door = Callable[[Json], ClientRequest]
DOORS: dict[str, Door] = {
    "chat": lambda fields: read_chat({"messages": MESSAGES, **fields}, "text"),
    "completions": lambda fields: read_completion({"prompt": "a", **fields}),
    "responses": lambda fields: read_responses({"input": "a", **fields}, "text"),
    "messages": lambda fields: read_messages({"messages": MESSAGES, "max_tokens": 9, **fields}, "text"),
}
# The words of Gemini, vLLM, SGLang, TGI, TensorRT-LLM, Dynamo, LM Studio, guidance, outlines, LiteLLM, Ollama.
ASKED: list[Json] = [
    {"generation_config": {"responseSchema": SCHEMA}},
    {"generationConfig": {"temperature": 0, "responseMimeType": "application/json"}},
    {"generationConfig": {"thinkingConfig": {}, "responseJsonSchema": {}, "response_schema": GEMINI}},
    {"response_schema": SCHEMA},
    {"responseSchema": GEMINI},
    {"response_mime_type": "application/json"},
    {"config": {"anything": GEMINI}},
    {"guidance": 'gen("x")'},
    {"guided_options_request": {"guided_json": SCHEMA}},
    {"guided_decoding_backend": "outlines"},
    {"guided_decoding_params": {"regex": "a+"}},
    {"guided_regex": "a+"},
    {"guided_whitespace_pattern": " "},
    {"guided_json_object": True},
    {"regex": "a+"},
    {"ebnf": 'root ::= "a"'},
    {"lark": 'start: "a"'},
    {"structural_tag": "{}"},
    {"json_object": True},
    {"jsonSchema": SCHEMA},
    {"output_schema": SCHEMA},
    {"output_format": "json"},
    {"output_type": {"list": [1]}},
    {"structured": {"type": "json"}},
    {"structured_output": True},
    {"choices": ["yes", "no"]},
    {"choice": ["yes", "no"]},
    {"json_mode": True},
    {"options": {"num_ctx": 4096, "format": "json"}},
    {"extra_body": {"nvext": {"guided_regex": "a+"}}},
    {"nvext": {"guided_regex": "a+"}},
    {"provider": {"order": ["a"], "list": [{"deep": [SCHEMA]}]}},
    {"model_kwargs": {"response_format": {"type": "json_object"}}},
    {"available": [{"name": "ls", "parameters": SCHEMA}]},
    {"logits_processors": ["x"]},
    {"allowed_token_ids": [1]},
    {"bad_words": ["x"]},
    {"store": True},
]
OTHERS: Json = {
    "options": {"num_ctx": 4096},
    "provider": {"require_parameters": True, "order": ["a"]},
    "plugins": [{"id": "web"}],
    "cache_prompt": True,
    "samplers": ["top_k"],
    "reasoning_format": "auto",
    "verbosity": "low",
}
NOTHING: Json = {
    "guided_regex": None,
    "json_object": False,
    "extra_body": {},
    "choices": [],
    "user": "u",
    "metadata": {"json_schema": "a note"},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "k",
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fields", ASKED, ids=lambda fields: next(iter(fields)))
def test_a_form_in_unknown_words_is_refused_by_name(door: str, fields: Json) -> None:
    if door == "messages" and "output_format" in fields:  # Anthropic's own, with a schema
        fields = {"output_form": SCHEMA}
    with pytest.raises(BadRequestError) as refused:
        DOORS[door](fields)
    assert refused.value.param in fields and str(refused.value.param) in str(refused.value)


@pytest.mark.parametrize("door", DOORS)
def test_a_name_that_is_no_text_can_be_told(door: str) -> None:
    """Half of a surrogate pair: an error with it would be no UTF-8."""
    with pytest.raises(BadRequestError) as refused:
        DOORS[door]({"\ud800": SCHEMA})
    assert f"{refused.value} {refused.value.param}".encode()
    assert "".join(DOORS[door]({"\ud800": 1}).warnings).encode()


@pytest.mark.parametrize("door", ["responses", "messages"])
def test_words_of_a_chat_at_another_door_are_refused_by_name(door: str) -> None:
    words: list[Json] = [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"response_format": {"type": "json_object"}},
        {"json_schema": SCHEMA},
        {"guided_json": SCHEMA},
        {"guided_choice": ["a"]},
        {"guided_grammar": 'root ::= "a"'},
        {"grammar": 'root ::= "a"'},
        {"structured_outputs": {"json": SCHEMA}},
        {"format": "json"},
        {"output_config" if door == "messages" else "text": {"schema": SCHEMA}},
        {"output_config" if door == "messages" else "text": {"grammar": "x"}},
        {"text" if door == "messages" else "output_config": {"format": {"type": "json_schema"}}},
    ]
    for fields in words:
        with pytest.raises(BadRequestError) as refused:
            DOORS[door](fields)
        assert refused.value.param in fields


@pytest.mark.parametrize("door", DOORS)
def test_other_unknown_fields_are_named_in_a_warning(door: str) -> None:
    request = DOORS[door]({**OTHERS, "text": {"verbosity": "low"}})
    (warning,) = request.warnings
    assert all(name in warning for name in OTHERS)
    assert DOORS[door](NOTHING).warnings == ()
    many = DOORS[door]({f"field_{number}": 1 for number in range(1000)}).warnings
    assert len(many) == 1 and len(many[0]) < 1000


def test_a_schema_that_a_format_would_leave_out() -> None:
    wrapped: Json = {"name": "x", "strict": True, "schema": SCHEMA}
    for form in (
        {"type": "json_object", "json_schema": wrapped},
        {"type": "json_object", "schema": SCHEMA, "json_schema": wrapped},
        {"type": "json_schema", "json_schema": wrapped, "strict": True, "name": "x"},
    ):
        guide = DOORS["chat"]({"response_format": form}).guide
        assert guide.kind == "schema" and json.loads(guide.text) == SCHEMA
    for wrong in (
        {"type": "text", "schema": SCHEMA},
        {"type": "text", "json_schema": wrapped},
        {"type": "json_object", "json_schema": "x"},
        {"type": "json_object", "regex": "a+"},
        {"type": "json_object", "grammar": 'root ::= "a"'},
        {"type": "json_schema", "json_schema": {**wrapped, "pattern": "a+"}},
        {"type": "json_schema", "schema": {"const": 1}, "json_schema": wrapped},
        {"type": "grammar", "grammar": 'root ::= "a"'},
        {"type": "regex", "pattern": "a+"},
        {"type": "regex", "value": "a+"},
    ):
        with pytest.raises(BadRequestError) as refused:
            DOORS["chat"]({"response_format": wrong})
        assert refused.value.param == "response_format"
        with pytest.raises(BadRequestError) as refused:
            DOORS["responses"]({"text": {"format": wrong}})
        assert refused.value.param == "text.format"


def test_a_custom_tool_without_its_format_is_said() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    tool = {"type": "custom", "name": "patch", "format": grammar}
    (warning,) = DOORS["responses"]({"tools": [tool]}).warnings
    assert "patch" in warning
    assert DOORS["responses"]({"tools": [{**tool, "format": {"type": "text"}}]}).warnings == ()


@pytest.mark.parametrize("number", ["1e999", "-1E999", "NaN", "Infinity"])
def test_a_number_that_no_answer_can_repeat_is_refused(number: str) -> None:
    with pytest.raises(BadRequestError, match="the body is not JSON"):
        read_body(f'{{"metadata": {{"a": {number}}}}}'.encode())


@pytest.mark.slow
def test_the_server_says_it(tiny_q4: Path) -> None:
    with serving(tiny_q4, "--answers", "text") as address:
        bodies = {
            "chat/completions": {"messages": MESSAGES, "max_tokens": 2},
            "completions": {"prompt": "a", "max_tokens": 2},
            "responses": {"input": "a", "max_output_tokens": 2},
            "messages": {"messages": MESSAGES, "max_tokens": 2},
        }
        for path, body in bodies.items():
            url = f"{address}/v1/{path}"
            refused = httpx.post(
                url, json={**body, "generation_config": {"responseSchema": SCHEMA}}, timeout=60
            )
            assert refused.status_code == 400 and "generation_config" in refused.json()["error"]["message"]
            answer = httpx.post(url, json={**body, **OTHERS}, timeout=60)
            assert answer.status_code == 200 and "num_ctx" not in answer.text
            assert "provider" in answer.json()["edge_warnings"][0]
