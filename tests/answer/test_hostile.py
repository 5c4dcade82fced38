"""Schemas that are made to cost: each is answered or refused after about two seconds of processor time.

.venv/bin/pytest tests/answer/test_hostile.py
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.answer.call_formats import HERMES, LFM2
from edge.answer.call_schema import Tool
from edge.answer.endings import Effort, Endings
from edge.answer.guided import compile_guide
from edge.answer.tools import compile_calls
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary, file_vocabulary

Json = dict[str, Any]
# Seconds of processor time: 1.5 for a search, the rest for reading the schema. Processor time doubles where two
# threads share a core. Without bounds the worst of these took 85 s.
LIMIT = 8.0


@pytest.fixture(scope="module")
def vocabulary(tiny_q4: Path) -> Iterator[Vocabulary]:
    with file_vocabulary(tiny_q4) as found:
        yield found


def closed(**properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def text(pattern: str, **more: Any) -> Json:
    return {"type": "string", "pattern": pattern, **more}


def nested_lists(levels: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "minItems": 900}
    return schema


def in_many_ways(count: int) -> Json:
    """Definitions that refer to each other, and none of them has an end."""
    names = range(count)
    ways = [closed(**{f"x{one}": {"$ref": f"#/$defs/d{one}"}}) for one in names]
    return {"$defs": {f"d{one}": {"anyOf": ways} for one in names}, "$ref": "#/$defs/d0"}


HOSTILE = {
    "many patterns": closed(**{f"n{i}": text(f"^([a-z]{{1,30}}-){{{i + 5},{i + 60}}}x$") for i in range(64)}),
    "a long text": text("^[a-f]+$", minLength=3000),
    "a long list": {"type": "array", "items": text("^[a-z]{3}$"), "minItems": 3000},
    "lists in lists": nested_lists(4),
    "references": in_many_ways(10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little(name: str, vocabulary: Vocabulary) -> None:
    schema, endings = HOSTILE[name], Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
    began = time.thread_time()
    with pytest.raises(GrammarError, match="into 200 tokens"):
        endings.first(compile_guide(vocabulary, "schema", json.dumps(schema)), 200)
    assert time.thread_time() - began < LIMIT
    for form in (HERMES, LFM2):
        began = time.thread_time()
        try:
            assert compile_calls(vocabulary, endings, form, [Tool("f", closed(a=schema))], many=True).shortest
        except GrammarError as error:
            assert "f" in str(error)
        assert time.thread_time() - began < LIMIT


def test_the_searches_of_one_answer_share_their_time(vocabulary: Vocabulary) -> None:
    endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
    guide = compile_guide(vocabulary, "schema", json.dumps(text("^[a-f]+$", minLength=3000)))
    effort = Effort(0.1)
    began = time.thread_time()
    assert endings.find(guide.matcher, 100, guide, effort=effort) is None
    assert time.thread_time() - began < 1 and effort.left <= 0
    easy = compile_guide(vocabulary, "schema", '{"type": "boolean"}')
    assert endings.find(easy.matcher, 100, easy, effort=effort) is None  # nothing is left
    for _ in range(100):
        effort.add()
    assert endings.find(easy.matcher, 100, easy, effort=effort)
