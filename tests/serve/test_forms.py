"""The forms of an answer that clients ask for: names of objects in one spelling, and the words of other servers.

.venv/bin/pytest tests/serve/test_forms.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import serving

from edge.answer.endings import Guide
from edge.answer.guided import compile_guide
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary
from edge.serve.request import BadRequestError, read_chat

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Remove the file old.log."}]
SCHEMA = {"type": "object", "properties": {"cmd": {"enum": ["ls", "rm"]}}, "required": ["cmd"]}


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text") as address:
        yield address


def takes(vocabulary: Vocabulary, guide: Guide, text: str) -> bool:
    matcher = guide.matcher.deep_copy()
    tokens = vocabulary.matcher_tokens().tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def post(server: str, **fields: Any) -> httpx.Response:
    body = {"messages": MESSAGES, "max_tokens": 60, **fields}
    return httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": SCHEMA},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA, "regex": None}},
        {"format": SCHEMA},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "grammar": None},
    ],
)
def test_a_schema_in_the_words_of_other_servers_holds(server: str, fields: dict[str, Any]) -> None:
    answer = post(server, temperature=1, seed=2, **fields)
    assert answer.status_code == 200, answer.text
    value = json.loads(answer.json()["choices"][0]["message"]["content"])
    jsonschema.validate(value, SCHEMA)
    assert set(value) == {"cmd"}  # beside listed names no others


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_choice": ["<think>", 'say "no"']},
        {"structured_outputs": {"choice": ["<think>", 'say "no"']}},
        {"guided_grammar": 'root ::= "<think>"'},
    ],
)
def test_a_choice_or_grammar_in_the_words_of_other_servers_holds(server: str, fields: dict[str, Any]) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] in ("<think>", 'say "no"')


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "a+"},
        {"structural_tag": "{}"},
        {"lark": 'start: "a"'},
        {"response_schema": SCHEMA},
        {"json_object": True},
        {"guided_json_object": True},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"extra_body": {"guided_json": SCHEMA}},
        {"nvext": {"guided_regex": "a+"}},
        {"structured_outputs": {"regex": "a+"}},
        {"structured_outputs": {}},
        {"format": "xml"},
        {"guided_json": "no schema"},
        {"guided_choice": []},
        {"guided_choice": "a"},
        {"json_schema": SCHEMA, "grammar": 'root ::= "a"'},
        {"response_format": {"type": "json_object", "schema": "no schema"}},
    ],
)
def test_a_form_that_cannot_be_kept_is_refused_by_name(server: str, fields: dict[str, Any]) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in fields


ANY_LETTERS = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-z]+$"},
    "additionalProperties": {"enum": [1]},
}
RECORD = {"type": "object", "propertyNames": {"type": "string", "enum": ["p", "q"]}, "required": ["p"]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (RECORD | {"additionalProperties": {"format": "date"}}, '{"p": "2024-02-29"}', '{"p": "2023-02-29"}'),
        (RECORD, '{"p": 1, "q": 2}', '{"p": 1, "r": 2}'),
        (ANY_LETTERS, '{"ab": 1}', '{"A": 1}'),
        ({"type": "string", "format": "date"}, '"2000-02-29"', '"1900-02-29"'),
        ({"type": "string", "format": "date"}, '"2023-12-31"', '"0000-12-31"'),
        ({"type": "string", "format": "time"}, '"12:59:59.123456Z"', '"12:00:60Z"'),
        ({"type": "string", "format": "date-time"}, '"2023-02-28T00:00:00+01:00"', '"2023-02-29T00:00:00Z"'),
    ],
)
def test_records_and_dates(vocabulary: Vocabulary, schema: dict[str, Any], right: str, wrong: str) -> None:
    jsonschema.validate(json.loads(right), schema)
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    assert takes(vocabulary, guide, right) and not takes(vocabulary, guide, wrong)


def test_a_name_that_is_written_twice_is_not_two(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "minProperties": 2}
    with pytest.raises(GrammarError, match="minProperties"):
        compile_guide(vocabulary, "schema", json.dumps(schema | {"additionalProperties": False}))


def test_a_field_that_asks_for_no_form_is_no_reason_to_refuse() -> None:
    fields = {"text": {"verbosity": "low"}, "extra_body": {}, "guided_regex": None, "json_object": False}
    assert read_chat({"messages": MESSAGES, **fields}).guide.kind == "action"


_texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('\n\r\t"\\/-[]'), min_size=1, max_size=8
)


@given(texts=st.lists(_texts, min_size=1, max_size=4))
def test_each_choice_and_no_other_text_is_taken(vocabulary: Vocabulary, texts: list[str]) -> None:
    request = read_chat({"messages": MESSAGES, "guided_choice": texts})
    assert request.guide.kind == "gbnf"
    guide = compile_guide(vocabulary, "gbnf", request.guide.text)
    assert all(takes(vocabulary, guide, text) for text in texts)
    assert not takes(vocabulary, guide, texts[0] + "\x01")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda one: st.lists(one) | st.dictionaries(st.text(max_size=8), one),
        max_leaves=6,
    )
)
def test_any_value_is_a_form_or_a_clear_refusal(value: object) -> None:
    for name in (
        "json_schema",
        "guided_json",
        "guided_choice",
        "structured_outputs",
        "format",
        "response_format",
    ):
        try:
            read_chat({"messages": MESSAGES, name: value})
        except BadRequestError as error:
            assert error.param == name


_names = st.text(st.characters(exclude_categories=("Cs",), max_codepoint=0x2FF), min_size=1, max_size=5)


@given(name=_names, place=st.integers(0, 4))
def test_a_listed_name_has_no_second_spelling(vocabulary: Vocabulary, name: str, place: int) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"type": "string"}},
        "additionalProperties": {"type": "string"},
    }
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    at = place % len(name)
    for code in (f"\\u{ord(name[at]):04x}", f"\\u{ord(name[at]):04X}", "\\/" if name[at] == "/" else ""):
        spelled = (
            json.dumps(name[:at], ensure_ascii=False)[1:-1]
            + code
            + json.dumps(name[at + 1 :], ensure_ascii=False)[1:-1]
        )
        if (
            not code
            or json.loads(f'"{spelled}"') != name
            or f'"{spelled}"' == json.dumps(name, ensure_ascii=False)
        ):
            continue
        first = json.dumps({name: "ls"}, ensure_ascii=False)
        assert not takes(vocabulary, guide, first[:-1] + f', "{spelled}": "rm -rf /"}}')


def test_objects_are_closed_unless_schemas_apply_together(vocabulary: Vocabulary) -> None:
    junk = '{"cmd": "ls", "junk": 1}'
    guide = compile_guide(vocabulary, "schema", json.dumps(SCHEMA))
    assert takes(vocabulary, guide, '{"cmd": "ls"}') and not takes(vocabulary, guide, junk)
    opened = compile_guide(vocabulary, "schema", json.dumps(SCHEMA | {"additionalProperties": True}))
    assert takes(vocabulary, opened, junk)
    parts = [{"$ref": "#/$defs/one"}, {"type": "object", "properties": {"b": {"type": "null"}}}]
    both = compile_guide(vocabulary, "schema", json.dumps({"$defs": {"one": SCHEMA}, "allOf": parts}))
    assert takes(vocabulary, both, '{"cmd": "ls", "b": null}')
    named = {
        "type": "object",
        "properties": {"properties": {"type": "object", "properties": {"x": {"const": {"properties": {}}}}}},
    }
    guide = compile_guide(vocabulary, "schema", json.dumps(named))
    assert takes(vocabulary, guide, '{"properties": {"x": {"properties": {}}}}')


@pytest.mark.parametrize(
    "form", ["path", "binary", "password", "base64", "jwt", "starts_with", "cidrv4", "idn-email"]
)
def test_an_unknown_format_is_a_note(vocabulary: Vocabulary, form: str) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"format": {"type": "string", "format": form}}}
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    assert takes(vocabulary, guide, '{"format": "a b"}') and not takes(vocabulary, guide, '{"format": 1}')
    started = {"type": "string", "format": form, "pattern": "^ab"}
    guide = compile_guide(vocabulary, "schema", json.dumps(started))
    assert takes(vocabulary, guide, '"abc"') and not takes(vocabulary, guide, '"cab"')


def test_what_asserts_nothing_is_taken_and_other_assertions_are_refused_by_name(
    vocabulary: Vocabulary,
) -> None:
    for always in (True, {}, {"type": "string"}):
        schema: dict[str, Any] = {
            "type": "object",
            "propertyNames": always,
            "additionalProperties": {"type": "null"},
        }
        assert takes(vocabulary, compile_guide(vocabulary, "schema", json.dumps(schema)), '{"a": null}')
    compile_guide(vocabulary, "schema", '{"type": "array", "uniqueItems": false, "not": false}')
    constant = compile_guide(vocabulary, "schema", '{"const": {"format": "path", "uniqueItems": false}}')
    assert takes(vocabulary, constant, '{"format": "path", "uniqueItems": false}')
    for name, value in (("uniqueItems", True), ("not", {"const": 1}), ("propertyNames", {"minLength": 2})):
        with pytest.raises(GrammarError, match=name):
            compile_guide(vocabulary, "schema", json.dumps({"type": ["array", "object"], name: value}))
