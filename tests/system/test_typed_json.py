"""JSON values against TypedDicts: what fits comes back as it is, what does not is named in one line.

.venv/bin/pytest tests/system/test_typed_json.py
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge.errors import ReplayError, ResultError
from edge.replay.stored_result import Step, Summary
from edge.system.typed_json import Index, Name, check, json_schema


class Part(TypedDict, total=False):
    share: float | None
    on: bool | None


class Whole(TypedDict):
    name: Name
    count: Index
    limit: NotRequired[Index | None]
    mode: NotRequired[str | bool | None]
    words: NotRequired[list[str]]
    parts: NotRequired[list[Part]]
    by_name: NotRequired[dict[str, Part]]
    part: NotRequired[Part | None]
    loose: NotRequired[Mapping[str, object] | None]
    anything: NotRequired[object]


GOOD: dict[str, Any] = {"name": "n", "count": 0}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"further": [1, {"a": None}]},
        {"limit": None, "mode": None, "part": None, "loose": None, "anything": None},
        {"limit": 3, "mode": "a", "words": ["x", ""], "loose": {"a": [1]}, "anything": [1]},
        {
            "mode": True,
            "parts": [{}, {"share": 1}, {"share": 0.5, "on": False}],
            "by_name": {"x": {"share": None}},
        },
    ],
)
def test_what_fits_comes_back(fields: dict[str, Any]) -> None:
    value = {**GOOD, **fields}
    assert check(value, Whole, "f.json") is value


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": ""}, "name is ''; it must be a non-empty string"),
        ({"name": None}, "name is null; it must be a non-empty string"),
        (
            {"name": "x\n" * 99, "count": "y\n" * 99},
            "count is " + repr("y\n" * 20) + "; it must be a non-negative whole number",
        ),
        ({"count": -1}, "count is -1; it must be a non-negative whole number"),
        ({"count": True}, "count is true; it must be a non-negative whole number"),
        ({"count": 1.0}, "count is 1.0; it must be a non-negative whole number"),
        ({"limit": "3"}, "limit is '3'; it must be a non-negative whole number or null"),
        ({"mode": 3}, "mode is 3; it must be a string, true, false or null"),
        ({"words": ["a", 1]}, "words is a list; it must be a list of strings"),
        ({"words": None}, "words is null; it must be a list of strings"),
        ({"parts": [{}, 3]}, "parts[1] is 3; it must be an object"),
        ({"parts": [{}, {"on": 0}]}, "parts[1].on is 0; it must be true, false or null"),
        ({"by_name": {"a\n": {"share": "1"}}}, r"by_name['a\n'].share is '1'; it must be a number or null"),
        ({"part": {"share": float("nan")}}, "part.share is nan; it must be a number or null"),
        ({"part": {"share": 10**400}}, f"part.share is 1{'0' * 39}; it must be a number or null"),
        ({"part": {"share": True}}, "part.share is true; it must be a number or null"),
        ({"part": []}, "part is an empty list; it must be an object"),
        ({"loose": 1}, "loose is 1; it must be an object or null"),
    ],
)
def test_the_first_wrong_field_is_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ResultError) as caught:
        check({**GOOD, **fields}, Whole, "f.json")
    assert str(caught.value) == f"f.json: {problem}"
    assert "\n" not in str(caught.value)


def test_missing_fields_and_other_values() -> None:
    with pytest.raises(ReplayError, match=r"^f.jsonl:3: count is missing$"):
        check({"name": "n"}, Whole, "f.jsonl:3", ReplayError)
    for value in (None, 3, [], "x"):
        with pytest.raises(ResultError, match=r"^f.json is not an object$"):
            check(value, Whole, "f.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(st.sampled_from([Step, Summary]), st.data())
def test_any_json_fits_or_is_one_line(kind: Any, draw: st.DataObject) -> None:
    value = draw.draw(st.dictionaries(st.sampled_from(sorted(kind.__annotations__)), values))
    try:
        assert check(value, kind, "f") is value
    except ResultError as error:
        assert str(error).startswith("f: ") and "\n" not in str(error)


def test_a_value_nested_very_deep_is_named() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(ResultError, match="count is a list"):
        check({**GOOD, "count": deep}, Whole, "f.json")


class Described(TypedDict):
    """A thing."""

    name: Name
    """Its name."""
    more: NotRequired[list[Part] | None]
    plain: NotRequired[float]


class Further(Described):
    """A further thing."""

    limit: NotRequired[Index | None]
    """A limit,
    in two lines."""


def test_a_schema_has_the_fields_rules_and_descriptions() -> None:
    part = {
        "type": "object",
        "properties": {"share": {"type": ["number", "null"]}, "on": {"type": ["boolean", "null"]}},
    }
    assert json_schema(Further, title="T", closed=(Further,)) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "A further thing.",
        "type": "object",
        "properties": {
            "name": {"description": "Its name.", "type": "string", "minLength": 1},
            "more": {"type": ["array", "null"], "items": {"$ref": "#/$defs/Part"}},
            "plain": {"type": "number"},
            "limit": {"description": "A limit, in two lines.", "type": ["integer", "null"], "minimum": 0},
        },
        "required": ["name"],
        "additionalProperties": False,
        "$defs": {"Part": part},
    }


@given(st.data())
def test_the_schema_accepts_what_check_accepts(draw: st.DataObject) -> None:
    """For any value, but for what JSON cannot say: 1.0 as a whole number, and numbers too large for a float."""
    names = st.sampled_from(sorted(Whole.__annotations__))
    value = {**GOOD, **draw.draw(st.dictionaries(names, values, max_size=3))}
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return
    found = re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)
    if any(float(number).is_integer() for number in found if "." in number or "e" in number):
        return
    try:
        check(value, Whole, "f")
        fits = True
    except ResultError:
        fits = False
    assert Draft202012Validator(json_schema(Whole, title="T")).is_valid(value) == fits
