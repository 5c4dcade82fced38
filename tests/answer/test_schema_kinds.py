"""Schemas that llguidance alone reads otherwise than JSON Schema, or whose texts a search does not find.

.venv/bin/pytest tests/answer/test_schema_kinds.py
"""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edge.answer.endings import Endings
from edge.answer.guided import compile_guide
from edge.answer.pattern import FORMAT_TEXTS
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "array", "prefixItems": [{"type": "integer"}], "additionalItems": False}, "[1]", '["a"]'),
        ({"type": "array", "items": {"type": "integer"}, "additionalItems": False}, "[1, 2]", '["a"]'),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53 + 2), str(2**53)),
        ({"type": "integer", "maximum": -(2**53) - 1}, str(-(2**53) - 2), str(-(2**53))),
        ({"const": 1e22}, "10000000000000000000000", "10000000000000000000001"),
        ({"enum": [12345678901234567000, 0.1 + 0.2]}, "12345678901234567000", "0.3"),
    ],
)
def test_what_llguidance_alone_takes_otherwise(
    vocabulary: Vocabulary, schema: dict[str, Any], right: str, wrong: str
) -> None:
    for text, expected in ((right, True), (wrong, False)):
        assert Draft202012Validator(schema).is_valid(json.loads(text)) is expected
        matcher = compile_guide(vocabulary, "schema", json.dumps(schema)).matcher
        tokens = vocabulary.matcher_tokens().tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) is expected


@pytest.mark.parametrize("value", [2**53 + 1, 12345678901234567890, 10**400, {"a": [[-(2**63)]]}])
def test_numbers_with_too_many_digits_are_refused(vocabulary: Vocabulary, value: object) -> None:
    for schema in ({"const": value}, {"type": "object", "properties": {"a": {"enum": ["x", value]}}}):
        with pytest.raises(GrammarError, match="has more digits than can be kept"):
            compile_guide(vocabulary, "schema", json.dumps(schema))


@pytest.mark.parametrize("form", sorted(FORMAT_TEXTS))
def test_a_text_of_each_format_is_found_beside_other_rules(
    vocabulary: Vocabulary, endings: Endings, form: str
) -> None:
    open_type = {"format": form}
    schema = {
        "type": "object",
        "properties": {
            "a": open_type,
            "b": {"type": ["string", "null"], "format": form},
            "c": {"type": "string", "format": form},
        },
        "required": ["a", "b", "c"],
    }
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    assert len(endings.first(guide, 120)) < 120


COLORS: dict[str, Any] = {"$defs": {"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}}}
PAIR: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            {
                **COLORS,
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/Color"},
                "additionalProperties": True,
            },
            '{"red": 1}',
            '{"green": 1}',
        ),
        ({**PAIR, "unevaluatedProperties": False}, '{"a": null}', '{"a": null, "b": 1}'),
        (
            {**PAIR, "unevaluatedProperties": {"type": "null"}},
            '{"a": null, "b": null}',
            '{"a": null, "b": 1}',
        ),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False},
            "[null]",
            "[null, 1]",
        ),
    ],
)
def test_what_llguidance_does_not_know_in_words_that_it_knows(
    vocabulary: Vocabulary, schema: dict[str, Any], right: str, wrong: str
) -> None:
    test_what_llguidance_alone_takes_otherwise(vocabulary, schema, right, wrong)


def test_unevaluated_beside_other_schemas_is_refused_by_name(vocabulary: Vocabulary) -> None:
    for schema in ({"allOf": [PAIR, {}]}, {"anyOf": [PAIR]}, {"$defs": {"b": PAIR}, "$ref": "#/$defs/b"}):
        with pytest.raises(GrammarError, match="unevaluatedProperties"):
            compile_guide(vocabulary, "schema", json.dumps({**schema, "unevaluatedProperties": False}))


@pytest.mark.parametrize("step", [7, 5, 25, 0.25])
def test_a_multiple_between_bounds_is_found(vocabulary: Vocabulary, endings: Endings, step: float) -> None:
    number = {"type": "integer" if step > 1 else "number", "multipleOf": step, "minimum": 31, "maximum": 390}
    schema = {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    value = json.loads(endings.text(endings.first(guide, 30)))
    Draft202012Validator(schema).validate(value)
