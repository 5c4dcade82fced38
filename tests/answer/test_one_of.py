"""`oneOf`: taken where its schemas exclude each other, refused by name where they may not.

.venv/bin/pytest tests/answer/test_one_of.py
"""

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.answer.guided import Endings, compile_guide
from edge.answer.one_of import replace_one_of
from edge.errors import GrammarError
from edge.runner import Runner


def _object(required: list[str], **properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_CIRCLE = _object(["kind", "r"], kind={"const": "circle"}, r={"type": "number"})
_SQUARE = _object(["kind", "a"], kind={"const": "square"}, a={"type": "number"})
TAKEN: dict[str, dict[str, Any]] = {
    "all or a number (qwen-code)": {
        "oneOf": [{"type": "string", "enum": ["all"]}, {"type": "string", "pattern": "^[1-9][0-9]*$"}]
    },
    "types": {
        "oneOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"type": "integer"}}]
    },
    "constants (Rust's enums)": {"oneOf": [{"const": "on", "description": "On."}, {"const": "off"}]},
    "a tag (pydantic's discriminator)": {
        "$defs": {"Circle": _CIRCLE, "Square": _SQUARE},
        "oneOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}],
        "discriminator": {"propertyName": "kind", "mapping": {"circle": "#/$defs/Circle"}},
    },
    "names": {
        "oneOf": [_object(["path"], path={"type": "string"}), _object(["url"], url={"type": "string"})]
    },
    "objects that edge closes": {
        "oneOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "one": {"oneOf": [{"type": "boolean"}]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "integer is a number": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "two patterns": {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "b$"}]},
    "1 and 1.0": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "an enum that matches": {"oneOf": [{"enum": ["12"]}, {"type": "string", "pattern": "^[0-9]+$"}]},
}


@pytest.mark.parametrize("name", TAKEN)
def test_schemas_that_exclude_each_other_are_taken(tiny: Runner, endings: Endings, name: str) -> None:
    schema = {"type": "object", "properties": {"it": TAKEN[name]}, "required": ["it"]}
    for one in (TAKEN[name], schema if "$defs" not in TAKEN[name] else TAKEN[name]):
        ending = endings.first(compile_guide(tiny.vocabulary, "schema", json.dumps(one)), 100)
        jsonschema.validate(json.loads(tiny.vocabulary.text(ending)), one)


@pytest.mark.parametrize("name", REFUSED)
def test_schemas_that_may_overlap_are_refused(tiny: Runner, name: str) -> None:
    with pytest.raises(GrammarError, match="oneOf"):
        compile_guide(tiny.vocabulary, "schema", json.dumps(REFUSED[name]))


_scalars = st.sampled_from(["", "a", "7", "all", 1, 1.0, 0, True, False, None])
_leaves = st.one_of(
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda name: {"type": name}),
    st.builds(lambda value: {"const": value}, _scalars),
    st.builds(lambda values: {"enum": values}, st.lists(_scalars, min_size=1, max_size=3)),
    st.sampled_from(["^[0-9]+$", "a", "^$"]).map(lambda text: {"type": "string", "pattern": text}),
    st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 1}, st.integers(0, 2)),
    st.just({"type": ["string", "null"]}),
)
_values = st.one_of(_scalars, st.dictionaries(st.sampled_from("ab"), _scalars, max_size=2))


@st.composite
def _schemas(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return dict(draw(_leaves))
    properties = draw(st.dictionaries(st.sampled_from("ab"), _leaves, max_size=2))
    made = {
        "type": "object",
        "properties": properties,
        "required": draw(st.lists(st.sampled_from("ab"), unique=True)),
    }
    return made | ({"additionalProperties": False} if draw(st.booleans()) else {})


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(_schemas(), min_size=2, max_size=3), st.lists(_values, min_size=5, max_size=20))
def test_no_value_is_valid_for_two_of_the_replaced_schemas(several: list[Any], values: list[Any]) -> None:
    schema = {"oneOf": several}
    replaced = copy.deepcopy(schema)
    replace_one_of(replaced)
    if "anyOf" not in replaced:
        return
    for value in values:
        one = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert one == jsonschema.Draft202012Validator(replaced).is_valid(value)
