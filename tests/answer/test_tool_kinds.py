"""Schemas of tools whose calls were not valid, or were not read, in one of the forms.

.venv/bin/pytest tests/answer/test_tool_kinds.py
"""

import json
import random
import sys
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from random_tools import check, liked_tokens, random_answer

from edge.answer.call_formats import GEMMA, HERMES, LFM2, QWEN_XML, CallFormat
from edge.answer.call_reader import CallReader
from edge.answer.call_schema import Tool
from edge.answer.calls import Piece, read_json
from edge.answer.endings import Endings
from edge.answer.guided import compile_guide
from edge.answer.sampling import Sampling
from edge.answer.tools import Wanted, compile_calls, tool_answer
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary

Json = dict[str, Any]
FORMS = [HERMES, LFM2, QWEN_XML, GEMMA]
INTEGER: Json = {"type": "integer"}


def having(**properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


OPEN_OR_TWO: Json = {"oneOf": [having(a=INTEGER), having(a=INTEGER, b=INTEGER)]}
PETS: Json = {
    "$defs": {
        "Cat": having(kind={"const": "cat"}, lives=INTEGER),
        "Dog": having(kind={"const": "dog"}, name={"type": "string", "maxLength": 3}),
    },
    **having(
        pet={
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind"},
        }
    ),
}
KEPT: dict[str, Json] = {
    "a union with a discriminator": PETS,
    "a reference to the whole": {
        "type": "object",
        "properties": {"c": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["c"],
    },
    "small numbers": having(a={"type": "number", "minimum": 1e-5, "maximum": 2e-5}),
    "an address": having(a={"type": "string", "format": "uri"}, b={"type": "string"}),
    "other types than its keywords": having(a={"multipleOf": 3}),
    "parts that hold together": having(a={"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}),
    "a reference and more": {"$defs": {"n": INTEGER}, **having(a={"$ref": "#/$defs/n", "minimum": 5})},
    "a whole number as a float": having(a={"type": "integer", "const": 1.0}),
    "a property that is required as in draft 3": {
        "$schema": "http://json-schema.org/draft-03/schema#",
        "type": "object",
        "properties": {"a": {"type": "integer", "required": True}},
    },
    "a format without a type": having(a={"format": "date"}),
}
REFUSED: dict[str, tuple[Json, str]] = {
    "names": ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    "listed names": (having(a=INTEGER, bbb=INTEGER) | {"propertyNames": {"maxLength": 2}}, "propertyNames"),
    "no value": (having(a={"enum": []}), "enum without a value"),
    "a value of another type": (having(a={"type": "string", "const": 5}), "enum without a value"),
    "a length below 0": (having(a={"type": "string", "minLength": -1}), "length below 0"),
    "open schemas of which one holds": (having(a=OPEN_OR_TWO), "oneOf"),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", KEPT)
def test_each_call_is_read_and_valid_or_the_tool_is_refused(
    vocabulary: Vocabulary, endings: Endings, form: CallFormat, name: str
) -> None:
    tool, liked = Tool("f", KEPT[name]), liked_tokens(vocabulary)
    try:
        calls = compile_calls(vocabulary, endings, form, [tool], many=False)
    except GrammarError as error:
        assert form is not HERMES and "the tool f: " in str(error) and '"' in str(error)
        return
    for more in (0, 2, 30, 60):
        source = random.Random(more)
        room = calls.shortest + more
        answer, _ = random_answer(vocabulary, endings, calls, source, must=True, max_tokens=room, liked=liked)
        (call,) = answer.calls
        validator_for(KEPT[name], default=Draft202012Validator)(KEPT[name]).validate(
            json.loads(call.arguments)
        )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_form_can_keep_is_refused_by_name(
    vocabulary: Vocabulary, endings: Endings, form: CallFormat, name: str
) -> None:
    schema, keyword = REFUSED[name]
    with pytest.raises(GrammarError, match=keyword):
        compile_calls(vocabulary, endings, form, [Tool("f", schema)], many=False)


def test_a_control_character_without_a_short_escape(vocabulary: Vocabulary, endings: Endings) -> None:
    """llguidance leaves it out where a character has one escape: in JSON forms of calls, and beside other names."""
    text: Json = {"type": "string", "pattern": r"^\v\f$"}
    with pytest.raises(GrammarError, match="control character"):
        compile_calls(vocabulary, endings, HERMES, [Tool("f", having(a=text))], many=False)
    with pytest.raises(GrammarError, match="control character"):
        compile_guide(vocabulary, "schema", json.dumps({**having(a=text), "additionalProperties": True}))
    guide = compile_guide(vocabulary, "schema", json.dumps(text))
    assert json.loads(endings.text(endings.first(guide, 20))) == "\v\f"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_number_beyond_all_floats(form: CallFormat) -> None:
    """JSON has it, but no program can write it again: infinity is no JSON."""
    schema = having(
        a={"type": "array", "prefixItems": [{"type": "number"}], "minItems": 1}, b={"type": "number"}
    )
    reader = CallReader(form, [Tool("f", schema)])
    text = form.text([("f", {"a": [1.5], "b": 2.5})], ["a" * 9])
    text = text.replace("1.5", "-1E999").replace("2.5", "9e999")
    for _ in reader.feed(text.removeprefix(form.opening())):
        pass
    (call,) = reader.calls
    assert "Infinity" not in call.arguments
    assert read_json(call.arguments) == {"a": [-sys.float_info.max], "b": sys.float_info.max}


def test_schemas_of_which_one_holds(vocabulary: Vocabulary) -> None:
    """edge closes objects; what excludes each other only then is not what the client asked for."""
    with pytest.raises(GrammarError, match="oneOf"):
        compile_guide(vocabulary, "schema", json.dumps(OPEN_OR_TWO))
    closed = [one | {"additionalProperties": False} for one in OPEN_OR_TWO["oneOf"]]
    compile_guide(vocabulary, "schema", json.dumps({"oneOf": closed}))
    guide = compile_guide(vocabulary, "schema", json.dumps(PETS))
    for text, expected in (
        ('{"pet": {"kind": "cat", "lives": 9}}', True),
        ('{"pet": {"kind": "cat", "lives": 9, "junk": 1}}', False),
        ('{"pet": {"kind": "dog", "lives": 9}}', False),
    ):
        tokens = vocabulary.matcher_tokens().tokenize_str(text)
        assert (guide.matcher.validate_tokens(tokens) == len(tokens)) is expected


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_character_delete(vocabulary: Vocabulary, endings: Endings, form: CallFormat) -> None:
    tool = Tool(
        "f", having(a={"type": "string", "title": "A"}, b={"type": "array", "items": {"type": "string"}})
    )
    wanted_text = form.text([("f", {"a": "x\x7f", "b": ["y"]})], ["a" * 9])
    calls = compile_calls(vocabulary, endings, form, [tool], many=False)
    wanted: list[int] = []
    for part in vocabulary.parts(wanted_text):
        wanted += [part] if isinstance(part, int) else vocabulary.encode(part, special=False)
    pieces: list[Piece] = []
    writer = tool_answer(
        vocabulary,
        endings,
        Wanted(calls, True),
        [0],
        max_tokens=200,
        sampling=Sampling(),
        think=0,
        emit=pieces.append,
    )
    written = len(next(writer))
    try:
        while True:
            logits = np.zeros(vocabulary.n_vocab, np.float32)
            logits[wanted[written] if written < len(wanted) else min(vocabulary.end_ids)] = 1
            written += len(writer.send(logits))
    except StopIteration as ended:
        answer = ended.value
    check(form, [tool], answer, pieces)
    assert json.loads(answer.calls[0].arguments)["a"] == "x\x7f"
