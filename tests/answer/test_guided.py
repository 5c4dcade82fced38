"""Answers under any schema or grammar are valid at every budget, with real models; and texts with stops.

.venv/bin/pytest tests/answer/test_guided.py
"""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.answer.endings import Endings, Guide
from edge.answer.guided import compile_guide, guided_answer
from edge.answer.sampling import Sampling
from edge.answer.text import text_answer
from edge.answer.writer import Answer
from edge.errors import GrammarError
from edge.llama.jobs import Job, Writer
from edge.runner import Runner

pytestmark = pytest.mark.slow


def answered(runner: Runner, writer: Writer[Answer], prompt: Sequence[int], room: int) -> Answer:
    runner.engine.reserve(4096, 4)
    return next(runner.engine.run([Job(list(prompt), writer, room)]))[1]


def guided(
    runner: Runner, endings: Endings, guide: Guide, room: int, shown: list[str], temperature: float = 0.0
) -> Answer:
    prompt = runner.encode("<|startoftext|>Write it.")
    sampling = Sampling(temperature=temperature, seed=1)
    ending = endings.first(guide, room)
    writer = guided_answer(
        runner.vocabulary,
        endings,
        guide,
        ending,
        prompt,
        max_tokens=room,
        sampling=sampling,
        emit=shown.append,
    )
    return answered(runner, writer, prompt, room)


_names = st.text(alphabet='abc_ é"\\', min_size=1, max_size=6)
_leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 40}, st.integers(-50, 5000)),
    st.just({"type": "number"}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 6),
        st.integers(0, 9),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(_names, min_size=1, max_size=4, unique=True)),
    st.just({"type": "string", "pattern": "^[0-9]{3}-[a-f]+$"}),
    st.builds(lambda value: {"const": value}, _names),
)


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(_names, inner, max_size=4)
    return fields.flatmap(
        lambda found: st.builds(
            lambda required: {
                "type": "object",
                "properties": found,
                "required": required,
                "additionalProperties": False,
            },
            st.lists(st.sampled_from(sorted(found)), unique=True) if found else st.just([]),
        )
    )


def _arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        inner,
        st.integers(0, 4),
        st.integers(0, 4),
    )


_schemas = st.recursive(_leaves, lambda inner: _objects(inner) | _arrays(inner), max_leaves=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=_schemas, room=st.integers(1, 90), temperature=st.sampled_from([0.0, 2.0]))
def test_a_schema_holds_at_every_budget(
    tiny: Runner, endings: Endings, schema: dict[str, Any], room: int, temperature: float
) -> None:
    guide = compile_guide(tiny.vocabulary, "schema", json.dumps(schema))
    shown: list[str] = []
    try:
        answer = guided(tiny, endings, guide, room, shown, temperature)
    except GrammarError as error:
        assert "raise max_tokens" in str(error)
        shortest = endings.find(guide.matcher, 2000)
        assert shortest is None or len(shortest) > room
        assert room < 90 or shortest is not None
        return
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.completion_tokens <= room
    assert "".join(shown) == answer.text
    assert answer.finish_reason == ("length" if answer.closed_at_budget else "stop")


_LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
# Patterns whose texts must hold something, with the bytes of a short one.
_PATTERNS = {
    "^[^x]*x$": 3,
    "m$": 3,
    "error": 7,
    "^[^@]+@[^@]+$": 5,
    "^.*[0-9].*[A-Z].*$": 4,
    r"^[\s\S]*END$": 5,
    "^[a-z]*: [a-z]*k$": 5,
    "^(foo|barbaz)+x$": 6,
}
_whole: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    ("schema", "room"),
    [
        ({"type": "string", "minLength": 500}, 502),
        ({"type": "string", "minLength": 500, "maxLength": 500}, 502),
        ({"type": "string", "minLength": 3000}, 3100),
        (_whole | {"minItems": 4}, 9),
        (_whole | {"minItems": 10, "maxItems": 10}, 21),
        (_whole | {"minItems": 400}, 801),
        ({"const": {"a": [1, 2, 3]}}, 13),
        ({"type": "object", "properties": {"a": {"const": 1.5}}, "required": ["a"]}, 9),
        (_LIST, 19),
        *(({"type": "string", "pattern": pattern}, room) for pattern, room in _PATTERNS.items()),
        ({"type": "string", "format": "email"}, 12),
        ({"type": "string", "format": "date-time"}, 40),
    ],
)
def test_what_fits_is_found(tiny: Runner, endings: Endings, schema: dict[str, Any], room: int) -> None:
    """`room` is the number of bytes of a short valid text, so it fits with any tokens."""
    guide = compile_guide(tiny.vocabulary, "schema", json.dumps(schema))
    assert len(endings.first(guide, room)) <= room
    answer = guided(tiny, endings, guide, room, [])
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.completion_tokens <= room


GRAMMARS = {
    "a choice": 'root ::= "yes" | "no" | "perhaps"',
    "a list": 'root ::= item (", " item)* "."\nitem ::= [a-z]{3,9}',
    "nested": 'root ::= "(" root? ")" | "[" root "]" [0-9]+',
    "two words": 'root ::= [A-Z] [a-z]+ " " [A-Z] [a-z]+ "!"',
    "unicode": 'root ::= "Ä" [ä-ü]+ "€"',
    "a last word": 'root ::= [a-z ]+ "done"',
    "lines": 'root ::= line+ "END"\nline ::= [A-Z a-z]+ "\\n"',
    "a fence": 'root ::= "```" [^`]* "```"',
    "numbers": 'root ::= ("-"? [1-9] [0-9]* "\\n"){2,5}',
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_holds_at_every_budget(tiny: Runner, endings: Endings, name: str) -> None:
    guide = compile_guide(tiny.vocabulary, "gbnf", GRAMMARS[name])
    valid = 0
    for room in (1, 2, 3, 4, 5, 6, 8, 12, 20, 40):
        shown: list[str] = []
        try:
            answer = guided(tiny, endings, guide, room, shown)
        except GrammarError:
            assert not valid  # what fits into few tokens fits into more
            continue
        valid += 1
        matcher = guide.matcher.deep_copy()
        tokens = tiny.vocabulary.matcher_tokens().tokenize_str(answer.text)
        assert matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        assert "".join(shown) == answer.text
    assert valid >= 4


def test_names_that_may_come_twice_are_refused(tiny: Runner) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "minProperties": 2,
        "additionalProperties": {"type": "integer"},
    }
    with pytest.raises(GrammarError, match="minProperties"):
        compile_guide(tiny.vocabulary, "schema", json.dumps({"type": "array", "items": schema}))
    compile_guide(tiny.vocabulary, "schema", json.dumps(schema | {"minProperties": 1}))


def test_a_costly_answer_takes_little_memory_and_time(tiny: Runner, endings: Endings) -> None:
    """Counts searches for an ending, not seconds: a known ending, or its rest, is reused while it is valid."""
    for schema in (
        {"type": "string", "minLength": 400, "maxLength": 400},
        {"type": "string", "minLength": 300},
    ):
        guide = compile_guide(tiny.vocabulary, "schema", json.dumps(schema))
        looked = 0

        class Counting(Endings):
            def find(self, *arguments: Any) -> list[int] | None:
                nonlocal looked
                looked += 1
                return super().find(*arguments)

        counting = Counting(tiny.vocabulary.matcher_tokens(), sorted(tiny.vocabulary.end_ids))
        answer = guided(tiny, counting, guide, 450, [])
        jsonschema.validate(json.loads(answer.text), schema)
        assert looked < 40


def test_what_is_no_schema_or_grammar_is_told(tiny: Runner) -> None:
    with pytest.raises(GrammarError):
        compile_guide(tiny.vocabulary, "schema", '{"type": "strange"}')
    with pytest.raises(GrammarError):
        compile_guide(tiny.vocabulary, "gbnf", "root ::= (")
    with pytest.raises(GrammarError):
        compile_guide(tiny.vocabulary, "gbnf", "no grammar at all")


def test_a_text_ends_before_a_stop(tiny: Runner) -> None:
    messages = [{"role": "user", "content": "Remove the file old.log."}]
    prompt = tiny.encode(tiny.render(messages).text)

    def text(stop: Sequence[str], room: int = 64) -> tuple[Answer, list[str]]:
        shown: list[str] = []
        writer = text_answer(
            tiny.vocabulary, prompt, max_tokens=room, sampling=Sampling(), stop=stop, emit=shown.append
        )
        return answered(tiny, writer, prompt, room), shown

    whole, shown = text(())
    assert whole.finish_reason == "stop" and '"plan"' in whole.text and "".join(shown) == whole.text
    for stop in (['"plan"'], ["nowhere", ', "pl'], ["g"], [whole.text[:1]], ['old.log must go.", "plan']):
        cut, shown = text(stop)
        at = min(place for word in stop if (place := whole.text.find(word)) >= 0)
        assert cut.text == whole.text[:at] and "".join(shown) == cut.text
        assert cut.finish_reason == "stop"
    short, _ = text((), 5)
    assert short.finish_reason == "length" and whole.text.startswith(short.text)
