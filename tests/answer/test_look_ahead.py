"""Patterns with look-ahead become equal ones without it: against Python's `re`.

.venv/bin/pytest tests/answer/test_look_ahead.py
"""

import itertools
import json
import random
import re
import time

import pytest

from edge.answer.endings import Endings
from edge.answer.expression import UnknownError
from edge.answer.guided import compile_guide
from edge.answer.look_ahead import plain_pattern
from edge.errors import GrammarError
from edge.runner import Runner

EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
"""zod's e-mail."""
PATTERNS = {
    EMAIL: "ab.@-_'0 ",
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": "PTW12YMDHS.",
    r"^(?=.*[A-Z])(?=.*\d)[A-Za-z0-9]{4,8}$": "aB1c_",
    r"^(?!-)(?!.*--)[a-z0-9-]{1,12}$": "a-0B",
    r"^(?!(con|prn|aux)$)[a-z]+$": "conpraux1",
    r"(?!a)[ab]c": "abcd",
    r"^(?:(?=a)[a-c]{2}|(?!b)[bc]d)$": "abcd",
    r"^[^\s](?!.*\s\s).*$": "a b\t",
    r"a(?=b|$)": "abc",
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": "-+.01a",
}
"""The last one is pydantic's decimal."""


def whole(pattern: str) -> str:
    """Python's `$` also matches before a last newline, JSON Schema's does not."""
    return pattern.replace("$", r"\Z")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_texts_match(pattern: str) -> None:
    """On all short texts, and on thousands of random ones that are near to matching."""
    plain = re.compile(whole(plain_pattern(pattern)))
    assert "(?=" not in plain.pattern and "(?!" not in plain.pattern
    exact = re.compile(whole(pattern))
    letters = PATTERNS[pattern]
    source = random.Random(pattern)
    texts = ["".join(text) for size in range(5) for text in itertools.product(letters[:6], repeat=size)]
    matching = ["-1.5", "a.b@c.de", "P3Y6M4DT12H30M5S", "P2W", "aB1c", "a-b", "con", "bc", "ab", "cd", "a b"]
    for _ in range(6000):
        near = list(source.choice(matching))
        for _ in range(source.randrange(3)):
            near.insert(source.randrange(len(near) + 1), source.choice(letters))
        for _ in range(source.randrange(3)):
            near and near.pop(source.randrange(len(near)))
        texts += [
            "".join(source.choices(letters + "\n\u00e9\U0001f600", k=source.randrange(14))),
            "".join(near),
        ]
    found = 0
    for text in texts:
        wanted = exact.search(text) is not None
        found += wanted
        assert (plain.search(text) is not None) == wanted, text
    assert 0 < found < len(texts)


def _random(source: random.Random, depth: int = 3) -> str:
    kind = source.randrange(9 if depth else 3)
    if kind < 3:
        return source.choice(["a", "b", "[ab]", ".", "ab", "[^a]"])
    inner = _random(source, depth - 1)
    if kind < 5:
        return inner + _random(source, depth - 1)
    if kind == 5:
        return f"(?:{inner}|{_random(source, depth - 1)})"
    if kind == 6:
        return f"(?:{inner})" + source.choice("*+?") if "(?=" not in inner and "(?!" not in inner else inner
    return f"(?{source.choice('=!')}{inner}{source.choice(['', '$'])}){_random(source, depth - 1)}"


@pytest.mark.slow
def test_1000_random_patterns() -> None:
    source = random.Random(3)
    texts = ["".join(text) for size in range(6) for text in itertools.product("abc", repeat=size)]
    told = large = 0
    for _ in range(1000):
        pattern = source.choice(("", "^")) + _random(source) + source.choice(("", "$"))
        exact = re.compile(whole(pattern))
        matching = [exact.search(text) is not None for text in texts]
        try:
            plain = re.compile(whole(plain_pattern(pattern)))
        except UnknownError:
            large += any(matching)  # the others match nothing
            continue
        told += 1
        assert [plain.search(text) is not None for text in texts] == matching, pattern
    assert told > 700 and large < 10


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?=a)(?<!a)b",
        r"((?=a).)*b",
        r"(?=a)b",
        r"(?=((a{60}){60}){60})a",
        r"(?!(a|b)*a(a|b){14})[ab]{20}",
        "(?=" * 3000,
    ],
)
def test_others_are_refused_soon(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises((UnknownError, RecursionError)):
        plain_pattern(pattern)
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_an_answer_keeps_the_pattern(tiny: Runner, endings: Endings) -> None:
    for pattern in list(PATTERNS)[:6]:
        guide = compile_guide(tiny.vocabulary, "schema", json.dumps({"type": "string", "pattern": pattern}))
        text = json.loads(endings.text(endings.first(guide, 60)))
        assert re.search(pattern, text), (pattern, text)
    schema = {"type": "object", "patternProperties": {r"^(?!x)[a-z]+$": {"type": "null"}}}
    schema |= {"additionalProperties": False, "minProperties": 1}
    guide = compile_guide(tiny.vocabulary, "schema", json.dumps(schema))
    tokens = tiny.vocabulary.matcher_tokens().tokenize_str
    for name, fits in (("ax", True), ("xa", False)):
        matcher = guide.matcher.deep_copy()
        ids = tokens(json.dumps({name: None}))
        assert (matcher.try_consume_tokens(ids) == len(ids)) == fits
    with pytest.raises(GrammarError, match="cannot be"):
        compile_guide(tiny.vocabulary, "schema", json.dumps({"type": "string", "pattern": r"(?<!a)b"}))
