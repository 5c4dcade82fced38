"""The shortest text of a pattern is found whenever one exists, at any budget that it fits into.

.venv/bin/pytest tests/answer/test_pattern.py
"""

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from served import serving

from edge.answer.endings import Endings
from edge.answer.guided import compile_guide
from edge.answer.pattern import read_pattern
from edge.runner import Runner

pytestmark = pytest.mark.slow

EVERYDAY = [
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",  # zod's e-mail
    r"^(?!\.)(?!.*\.\.)([A-Z0-9_'+\-\.]*)[A-Z0-9_+-]@([A-Z0-9][A-Z0-9\-]*\.)+[A-Z]{2,}$",
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
    r"^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*)@(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$",
    r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$",
    r"^(/[\w.-]+){3,}$",
    r"^[\w./-]+\.(py|js|ts)$",
    r"^(\*|[0-9]{1,2}|\*/[0-9]+)( (\*|[0-9]{1,2}|\*/[0-9]+)){4}$",
    r"^((git|ssh|http(s)?)|(git@[\w.]+))(:(//)?)([\w.@:/~-]+)(\.git)(/)?$",
    r"^git@[\w.-]+:[\w.-]+/[\w.-]+\.git$",
    r"^```[a-z]*\n[\s\S]*?\n```$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"^v?\d+\.\d+\.\d+(-[\w.]+)?(\+[\w.]+)?$",
    r"^https?://[^\s/$.?#].[^\s]*$",
    r"^[0-9a-f]{40}$",
    r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
    r"^#[0-9a-f]{6}$",
    r"^\+?[1-9]\d{1,14}$",
    r"^((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)$",
    r"^[A-Z][a-z]+(?: [A-Z][a-z]+)*$",
    r"^[a-z]+(-[a-z]+)*$",
    r"^\$\d+\.\d{2}$",
    r"^(\d+\.)?(\d+\.)?(\*|\d+)$",
    r"^[A-Z_][A-Z0-9_]*=.*$",
    r"^\S+\s+\S+\s+\S+$",
    r"^(ls|cat|rm) -[a-z]+ .+\.txt$",
    r"error: .+ at line \d+",
    r"^\[\d{2}:\d{2}\] .*$",
    r"^SELECT .+ FROM \w+;$",
    r"^<([a-z]+)>[^<]*</[a-z]+>$",
    r"^[\w-]+\.[\w-]+\.[\w-]+$",
    r"^data:\w+/[\w-]+;base64,[A-Za-z0-9+/]+=*$",
    r"^arn:aws:[a-z0-9-]+:[a-z0-9-]*:\d{12}:.+$",
    r"^([01]\d|2[0-3]):[0-5]\d$",
    r"^--[a-z-]+=\S+$",
    r"^refs/(heads|tags)/[\w./-]+$",
    r"^(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)$",
    r"^P(\d+Y)?(\d+M)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?$",
    r"^[a-z]+\[[0-9]+\]\.[a-z]+(\.[a-z]+)*$",
    r"^(.+)/([^/]+)\.(tar\.gz|zip)$",
    r"\.(jpe?g|png)$",
    r"^(feat|fix|docs)(\([a-z-]+\))?: .{10,50}$",
    r"^([A-Za-z_]\w*\.)*[A-Za-z_]\w*\(.*\)$",
]
PARTS = ["a", "b", "[^a]", ".", "(a|bb)", "^", "$", "a*", "b+", "(ab)?", "a{2}", "b{1,2}"]


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text") as address:
        yield address


def test_the_end_is_the_shortest_for_every_small_pattern() -> None:
    """Against Python's `re` on all texts of a and b with up to five characters."""
    words = ["".join(word) for size in range(6) for word in itertools.product("ab", repeat=size)]
    for size in (1, 2, 3):
        for parts in itertools.product(PARTS, repeat=size):
            for text in ("".join(parts), "|".join(parts)):
                right = re.compile(text.replace("$", r"\Z"))
                pattern = read_pattern(text)
                assert pattern is not None
                for written in ("", "a", "ab"):
                    sizes = [len(word) for word in words if word.startswith(written) and right.search(word)]
                    end = pattern.end(written)
                    if end is None:
                        assert not sizes, (text, written)
                        continue
                    assert right.search(written + end), (text, written, end)
                    if sizes:
                        assert len(written + end) <= min(sizes), (text, written, end)
                        assert len(written + end) == min(sizes) or set(end) - set("ab")


def test_ends_have_a_least_length() -> None:
    pattern = read_pattern("^[a-c]*(x|yy)$")
    assert pattern is not None
    fixed = {"abx": 3, "y": 2}  # whole texts that must end there
    for least in range(12):
        for written in ("", "a", "abx", "y"):
            end = pattern.end(written, least)
            if least > fixed.get(written, 12):
                assert end is None
                continue
            assert end is not None and re.search("^[a-c]*(x|yy)$", written + end)
            assert len(written + end) >= least


@pytest.mark.parametrize(
    "text",
    [
        r"(?=a)b",  # no text at all
        r"(?<!a)b",
        r"((?=a).)*b",
        r"(a)\1",
        r"\bx",
        r"\p{L}",
        "((a{900}){900}){900}",
        "(" * 3000,
        "[",
        "a{2,1}",
    ],
)
def test_other_and_hostile_patterns_have_no_automaton(text: str) -> None:
    assert read_pattern(text) is None


def _random_pattern(source: random.Random, depth: int = 3) -> str:
    kind = source.randrange(7 if depth else 3)
    if kind == 0:
        return re.escape("".join(source.choices("abz019@/._- ", k=source.randrange(1, 4))))
    if kind == 1:
        return source.choice(
            [r"\w", r"\d", r"\s", r"\S", ".", "[a-f]", "[^@]", r"[\w.-]", "[0-9A-F]", "[^a-z ]"]
        )
    if kind == 2:
        return source.choice("xyz7é")
    inner = [_random_pattern(source, depth - 1) for _ in range(source.randrange(1, 4))]
    if kind in (3, 4):
        return "".join(inner)
    if kind == 5:
        return f"(?:{'|'.join(inner)})"
    return f"({inner[0]})" + source.choice(["*", "+", "?", "{2}", "{1,3}", "{3,}"])


def test_500_random_patterns_have_an_answer_in_their_shortest_size(tiny: Runner, endings: Endings) -> None:
    source = random.Random(17)
    for _ in range(500):
        text = f"^{_random_pattern(source)}$" if source.random() < 0.8 else _random_pattern(source)
        pattern = read_pattern(text)
        assert pattern is not None, text
        end = pattern.end("")
        assert end is not None and re.search(text, end), text
        room = len(json.dumps(end, ensure_ascii=False).encode())
        guide = compile_guide(tiny.vocabulary, "schema", json.dumps({"type": "string", "pattern": text}))
        tokens = endings.first(guide, room)
        assert len(tokens) <= room
        assert re.search(text, json.loads(endings.text(tokens))), text


def _schemas(pattern: str) -> list[dict[str, Any]]:
    one = {"type": "string", "pattern": pattern}
    fields = {
        "n": {"type": "integer"},
        "x": one,
        "y": {"type": "array", "items": one, "minItems": 2},
        "z": {"type": "string"},
    }
    whole = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return [one, whole]


@pytest.mark.parametrize("pattern", EVERYDAY)
def test_everyday_patterns_have_an_ending(tiny: Runner, endings: Endings, pattern: str) -> None:
    for schema in _schemas(pattern):
        guide = compile_guide(tiny.vocabulary, "schema", json.dumps(schema))
        jsonschema.validate(json.loads(endings.text(endings.first(guide, 200))), schema)


def test_everyday_patterns_hold_in_answers(server: str) -> None:
    """The model writes what it likes between; each answer still ends validly."""
    for pattern in EVERYDAY[::4]:
        schema = _schemas(pattern)[1]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {
            "messages": [{"role": "user", "content": "Give an example."}],
            "response_format": form,
            "max_tokens": 200,
            "temperature": 1,
            "seed": 3,
        }
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=300)
        assert answer.status_code == 200, (pattern, answer.text)
        jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), schema)
