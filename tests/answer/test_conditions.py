"""Patterns with look-around that have no small equal one: several patterns hold together. Against Python's `re`.

.venv/bin/pytest tests/answer/test_conditions.py
"""

import itertools
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from edge.answer.endings import Endings
from edge.answer.expression import UnknownError, for_rust
from edge.answer.guided import compile_guide
from edge.answer.look_ahead import plain_conditions, plain_pattern
from edge.answer.pattern import read_pattern
from edge.llama.vocabulary import file_vocabulary

PASSWORD = r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[^\w]).{8,}$"
PATTERNS = {
    PASSWORD: ("aZ5- b", ["aZ5-aaaa", "Abc 1234"]),
    r"^(?!.*\.\.)[\w.-]{1,64}$": ("a.-_ ", ["a.b-c", "a.."]),
    r"^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$": ("aB0-", ["a-b", "-ab", "ab-"]),
    r"^(?=.{3,20}$)(?![_.])(?!.*[_.]{2})[a-zA-Z0-9._]+(?<![_.])$": ("aB0._", ["a.b", "a_.b", "ab_"]),
    r"^(?=.*\d)(?=.{6,72}$)(?!.*\s)[\x20-\x7E]+$": ("a0 ", ["aaaaaa0", "aaaaa 0", "aaa0"]),
    r"^(?!-)[a-z-]+(?<=[ab])$": ("ab-c", ["c-a", "c-c"]),
}


def whole(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("$", r"\Z"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_together_they_are_the_pattern(pattern: str) -> None:
    exact, parts = whole(pattern), [whole(one) for one in plain_conditions(pattern)]
    assert not any(sign in part.pattern for part in parts for sign in ("(?=", "(?!", "(?<"))
    automaton = read_pattern(pattern)
    assert automaton is not None
    letters, near = PATTERNS[pattern]
    source = random.Random(pattern)
    found = 0
    texts = ["".join(source.choices(letters, k=source.randrange(14))) for _ in range(800)]
    for text in [*near, *texts]:
        wanted = exact.search(text) is not None
        found += wanted
        assert all(part.search(text) for part in parts) == wanted, text
        assert (automaton.end(text) == "") == wanted, text
        if (end := automaton.end(text)) is not None:
            assert exact.search(text + end), (text, end)
        if (long := automaton.end(text, 12)) is not None:
            assert exact.search(text + long) and len(text + long) >= 12, (text, long)
    assert 0 < found < len(texts)


def test_the_end_is_the_shortest() -> None:
    pattern = r"^(?=.*a)(?!.*bb)[ab]{2,70}(?<!a)$"
    with pytest.raises(UnknownError):
        plain_pattern(pattern)
    exact, automaton = whole(pattern), read_pattern(pattern)
    assert automaton is not None
    words = ["".join(word) for size in range(7) for word in itertools.product("ab", repeat=size)]
    for written in words:
        sizes = [len(word) for word in words if word.startswith(written) and exact.search(word)]
        end = automaton.end(written)
        if sizes:
            assert end is not None and len(written + end) == min(sizes), (written, end)


def test_a_hostile_one_ends_soon() -> None:
    began = time.process_time()
    automaton = read_pattern(r"^(?=.*a.{40}b)(?=.*b.{39}c)[abc]*$")
    assert automaton is not None
    for written in ("ab" * 100, "", "cab"):
        automaton.end(written)
    assert time.process_time() - began < 30


@pytest.mark.parametrize("pattern", ["(?<!a)b", r"^(?=a)*b(?<!c)d$", r"^(?:(?<!a)b)+$", r"^(?!a)b\1$"])
def test_others_are_refused(pattern: str) -> None:
    with pytest.raises(UnknownError):
        plain_conditions(pattern)


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        (r"^[^[\]]+$", r"^[^\[\]]+$"),
        (r"^/[^\0]*$", r"^/[^\x00]*$"),
        (r"[]a[]\[[b]", r"[]a\[]\[[b]"),
        (r"[[:alpha:]]", r"[[:alpha:]]"),
        (r"\\0[\d]", r"\\0[\d]"),
        (r"^[a&&b~~c]&&$", r"^[a\&&b\~~c]&&$"),
    ],
)
def test_a_class_is_one_as_in_javascript(pattern: str, same: str) -> None:
    assert for_rust(pattern) == same


def test_schemas_and_grammars_keep_them(tiny_q4: Path) -> None:
    with file_vocabulary(tiny_q4) as vocabulary:
        endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
        wide = 3.4028234663852886e38
        schemas: list[tuple[dict[str, Any], str | None]] = [
            ({"type": "string", "pattern": PASSWORD}, None),
            ({"type": "string", "pattern": PASSWORD, "minLength": 12, "maxLength": 14}, None),
            ({"type": "object", "properties": {"a": {"type": "string", "pattern": r"^[^[\]\0]{3}$"}}}, None),
            ({"type": "number", "minimum": -wide, "maximum": wide}, "-12.5"),
            ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "-12"),
            ({"type": "number", "exclusiveMinimum": 5e-324}, "0.5"),
            ({"type": "number", "minimum": 2e18, "maximum": 3e18}, "2500000000000000000"),
        ]
        for schema, text in schemas:
            guide = compile_guide(vocabulary, "schema", json.dumps(schema))
            shortest = endings.text(endings.first(guide, 60)).decode()
            matcher = guide.matcher.deep_copy()
            tokens = vocabulary.matcher_tokens().tokenize_str(text or shortest)
            assert matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting(), schema
            if schema.get("pattern") == PASSWORD:
                value = json.loads(shortest)
                assert re.search(PASSWORD, value) and len(value) == schema.get("minLength", 8)
        guide = compile_guide(
            vocabulary, "gbnf", r'root ::= "\u00e9\U0001f600\u0041" [\u00e0-\u00ff] "\\u00e9"'
        )
        assert endings.text(endings.first(guide, 40)).decode().startswith("é😀A")
        assert endings.text(endings.first(guide, 40)).decode().endswith(r"\u00e9")
