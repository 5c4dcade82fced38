"""A number between any bounds has an ending, also as one of the last fields of a long object.

.venv/bin/pytest tests/answer/test_number_endings.py
"""

import json
import random
from typing import Any

import jsonschema
import pytest

from edge.answer.endings import Endings
from edge.answer.guided import compile_guide
from edge.llama.vocabulary import Vocabulary

BEFORE: dict[str, Any] = {
    "n": {"type": "null"},
    "e": {"type": "string", "minLength": 2, "maxLength": 4},
    "id": {"type": "string", "format": "uuid"},
    "when": {"type": "string", "format": "date-time"},
}


def check(vocabulary: Vocabulary, number: dict[str, Any]) -> None:
    fields = {**BEFORE, "a": number, "b": {"type": "array", "items": number, "minItems": 1}}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
    guide = compile_guide(vocabulary, "schema", json.dumps(schema))
    jsonschema.validate(json.loads(endings.text(endings.first(guide, 200))), schema)


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 0},
        {"exclusiveMaximum": 0},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"exclusiveMinimum": 0, "maximum": 0.05},
        {"exclusiveMinimum": 100},
        {"exclusiveMinimum": 1e-6, "maximum": 1e-5},
        {"minimum": 1.5, "maximum": 1.6},
    ],
)
def test_bounds_that_people_write(vocabulary: Vocabulary, bounds: dict[str, float]) -> None:
    check(vocabulary, {"type": "number", **bounds})


@pytest.mark.parametrize(
    ("bounds", "excluded", "taken"),
    [
        ({"exclusiveMinimum": 2, "maximum": 2.5}, "2", "2.1"),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, "0", "0.1"),
        ({"exclusiveMaximum": -2, "minimum": -2.5}, "-2", "-2.1"),
        ({"exclusiveMaximum": 0, "minimum": -0.5}, "-0", "-0.1"),
    ],
)
def test_an_excluded_number_is_not_taken(
    vocabulary: Vocabulary, bounds: dict[str, float], excluded: str, taken: str
) -> None:
    guide = compile_guide(vocabulary, "schema", json.dumps({"type": "number", **bounds}))
    for text, right in ((excluded, False), (taken, True)):
        matcher = guide.matcher.deep_copy()
        tokens = vocabulary.matcher_tokens().tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) == right, text


@pytest.mark.slow
def test_random_bounds(vocabulary: Vocabulary) -> None:
    source = random.Random(17)
    for _ in range(60):
        low = round(source.uniform(-1000, 1000) * 10 ** source.randrange(-4, 4), source.randrange(6))
        bounds = {source.choice(["minimum", "exclusiveMinimum"]): low}
        if source.random() < 0.6:
            more = source.choice([0.5, 3, 1000]) * max(1.0, abs(low) / 100)
            bounds[source.choice(["maximum", "exclusiveMaximum"])] = round(low + more, 6)
        check(vocabulary, {"type": "number", **bounds})
