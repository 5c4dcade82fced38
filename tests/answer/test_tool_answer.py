"""Answers with calls of tools, on the constraint alone: random tools, budgets and forms.

`scripts/tool_calls.py` tries more of them.

.venv/bin/pytest tests/answer/test_tool_answer.py
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import converted, keyed
from random_tools import check, liked_tokens, random_answer, try_one

from edge.answer.call_formats import FORMATS, GEMMA, HARMONY, HERMES, LFM2, MISTRAL, QWEN_XML, CallFormat
from edge.answer.call_schema import Tool
from edge.answer.calls import CallBegun, Piece
from edge.answer.endings import Endings
from edge.answer.sampling import Sampling
from edge.answer.tools import Wanted, compile_calls, tool_answer
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary, file_vocabulary

RENAMED = {
    "<|fim_pre|>": "<tool_call>",
    "<|fim_mid|>": "</tool_call>",
    "<|fim_suf|>": '<|"|>',
    "<|pad|>": "[TOOL_CALLS]",
    "<|endoftext|>": "<|tool_call>",
}
BASH = Tool(
    "bash",
    {
        "type": "object",
        "properties": {"command": {"type": "string"}, "timeout": {"type": "integer", "minimum": 1}},
        "required": ["command"],
    },
)


def make_renamed(folder: Path, out: Path) -> None:
    """The embedded model with other special tokens: those of the forms of calls."""
    shutil.copytree(folder, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (out / name).read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (out / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def renamed(tiny_folder: Path) -> Iterator[Vocabulary]:
    sources = [Path(__file__), *sorted(tiny_folder.glob("*.json"))]
    folder = keyed("tool-tokens", sources, lambda path: make_renamed(tiny_folder, path))
    with file_vocabulary(converted(folder, "tool-tokens-Q4_K_M.gguf", "Q4_K_M")) as vocabulary:
        yield vocabulary


@pytest.fixture(scope="module")
def plain(tiny_q4: Path) -> Iterator[Vocabulary]:
    with file_vocabulary(tiny_q4) as vocabulary:
        yield vocabulary


def endings_of(vocabulary: Vocabulary) -> Endings:
    return Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True])
def test_random_tools_budgets_and_forms(plain: Vocabulary, renamed: Vocabulary, special: bool) -> None:
    """No call is invalid, and each comes back as the same text; with markers that are special tokens, and without."""
    vocabulary = renamed if special else plain
    endings, liked = endings_of(vocabulary), liked_tokens(vocabulary)
    counts: Counter[str] = Counter()
    for number in range(150):
        form, answer = try_one(vocabulary, endings, number + 1000 * special, liked)
        counts["refused" if answer is None else "calls" if answer.calls else "text"] += 1
        counts[form] += answer is not None and bool(answer.calls)
    assert counts["refused"] < 10 and counts["text"] > 10
    assert all(counts[form.name] for form in FORMATS if form is not HARMONY)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_each_budget_from_the_shortest_call_on(renamed: Vocabulary, form: CallFormat) -> None:
    endings, liked = endings_of(renamed), liked_tokens(renamed)
    calls = compile_calls(renamed, endings, form, [BASH, Tool("f")], many=True)
    shortest = form.text([("f", {})], ["a" * 9])
    tokens = sum(
        1 if isinstance(part, int) else len(renamed.encode(part, special=False))
        for part in renamed.parts(shortest)
    )
    assert calls.shortest <= tokens
    for more in range(25):
        pieces: list[Piece] = []
        answer, _ = random_answer(
            renamed,
            endings,
            calls,
            random.Random(more),
            must=True,
            max_tokens=calls.shortest + more,
            emit=pieces.append,
            liked=liked,
        )
        assert answer.calls and answer.completion_tokens <= calls.shortest + more
        check(form, [BASH, Tool("f")], answer, pieces)


def write(
    vocabulary: Vocabulary, form: CallFormat, script: str, room: int, think: int = 0, **options: Any
) -> Any:
    """The answer of a model that wants to write this text, and then to end."""
    endings = endings_of(vocabulary)
    calls = compile_calls(vocabulary, endings, form, [BASH], many=options.pop("many", True))
    wanted: list[int] = []
    for part in vocabulary.parts(script):
        wanted += [part] if isinstance(part, int) else vocabulary.encode(part, special=False)
    pieces: list[Piece] = []
    writer = tool_answer(
        vocabulary,
        endings,
        Wanted(calls, **options),
        [0],
        max_tokens=room,
        sampling=Sampling(),
        think=think,
        emit=pieces.append,
    )
    end = min(vocabulary.end_ids)
    written = len(next(writer))
    try:
        while True:
            logits = np.zeros(vocabulary.n_vocab, np.float32)
            logits[wanted[written] if written < len(wanted) else end] = 1
            written += len(writer.send(logits))
    except StopIteration as ended:
        check(form, [BASH], ended.value, pieces)
        return ended.value


CALL = [("bash", {"command": "ls -l 'a b'", "timeout": 5})]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", [HERMES, LFM2, QWEN_XML, GEMMA, MISTRAL], ids=lambda form: form.name)
def test_text_and_then_a_call(
    plain: Vocabulary, renamed: Vocabulary, form: CallFormat, special: bool
) -> None:
    vocabulary = renamed if special else plain
    text = form.text(CALL)
    answer = write(vocabulary, form, f"I look.\n\n{text}", 200)
    assert answer.text == "I look." and answer.finish_reason == "stop"
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == CALL
    two = form.text(CALL * 2)
    assert len(write(vocabulary, form, two, 200).calls) == 2
    assert len(write(vocabulary, form, two, 200, many=False).calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", [HERMES, LFM2, QWEN_XML, GEMMA, MISTRAL], ids=lambda form: form.name)
def test_a_call_that_does_not_fit_is_not_begun(renamed: Vocabulary, form: CallFormat) -> None:
    for room in range(1, 60):
        answer = write(renamed, form, f"Look: {form.text(CALL)}", room)
        assert answer.completion_tokens <= room
        assert form.trigger not in answer.text
        assert answer.calls or answer.finish_reason == "length" or "Look" in answer.text


def test_forbidden_calls_stops_and_thoughts(renamed: Vocabulary) -> None:
    endings = endings_of(renamed)
    answer = write(renamed, HERMES, "One. Two. Three.", 100, stop=["Two"])
    assert answer.text == "One. " and answer.stopped_by == "Two"
    answer = write(renamed, HERMES, f"<think>Hm.</think>{HERMES.text(CALL)}", 200, think=20)
    assert answer.thought == "Hm." and answer.calls and answer.text == ""
    answer = write(renamed, HERMES, "<think>Hm, hm, hm, hm, hm, hm, hm, hm, hm", 40, think=100, must=True)
    assert answer.thought and answer.calls
    assert endings is not None


def test_schemas_that_cannot_be_kept_are_refused_by_name(plain: Vocabulary) -> None:
    endings = endings_of(plain)

    def refused(parameters: dict[str, Any], form: CallFormat = HERMES) -> str:
        with pytest.raises(GrammarError) as error:
            compile_calls(plain, endings, form, [BASH, Tool("odd", parameters)], many=True)
        return str(error.value)

    assert "odd" in refused({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    assert "odd" in refused({"type": "string"})
    assert "odd" in refused({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"]})
    assert "odd" in refused({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}})
    assert "odd" in refused({"type": "object", "properties": {"a": {"type": "strange"}}})
    assert "odd" in refused({"type": "object", "properties": {"a": False}, "required": ["a"]})
    nested = {"type": "array", "items": {"type": "object", "patternProperties": {"^x": {}}}}
    assert "odd" in refused({"type": "object", "properties": {"a": nested}}, GEMMA)
    inner = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?:^a|b$)"}}}
    assert "(?:^a|b$)" in refused(inner, LFM2)


def test_recursive_and_open_schemas(plain: Vocabulary) -> None:
    tree = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}, "any": {}, "more": {"type": "object"}},
        "required": ["tree"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name"],
            }
        },
    }
    endings, liked = endings_of(plain), liked_tokens(plain)
    calls = compile_calls(plain, endings, HERMES, [Tool("tree", tree)], many=False)
    for number in range(20):
        pieces: list[Piece] = []
        answer, _ = random_answer(
            plain,
            endings,
            calls,
            random.Random(number),
            must=True,
            max_tokens=90,
            emit=pieces.append,
            liked=liked,
        )
        assert isinstance(pieces[0], CallBegun) and len(answer.calls) == 1
        json.loads(answer.calls[0].arguments)


RULES: dict[str, dict[str, Any]] = {
    "password": {"pattern": r"^(?=.*[A-Z])(?=.*[a-z])(?=.*\d)(?=.*[^A-Za-z0-9]).{8,64}$"},
    "a size as look-ahead": {"pattern": r"^(?=.*\d)(?=.{6,72}$)(?!.*\s)[\x20-\x7E]+$"},
    "not at the end": {"pattern": r"^[a-z]+\.(?:js|ts)(?<!\.d\.ts)$"},
    "an anchor in a group": {"pattern": r"^(?:[a-c]{2}|x$)"},
    "a pattern and a size": {"pattern": "^[a-z-]+$", "minLength": 3, "maxLength": 9},
    "no double dash, sized": {"pattern": "^(?!-)(?!.*--)[a-z0-9-]{1,63}$", "maxLength": 6},
    "a format and a pattern": {"format": "date", "pattern": "^20[12]"},
    "a format and a size": {"format": "email", "maxLength": 20},
}


@pytest.mark.parametrize("form", [LFM2, QWEN_XML, GEMMA, HERMES], ids=lambda form: form.name)
@pytest.mark.parametrize("name", RULES)
def test_texts_without_quotes_keep_what_texts_of_json_keep(
    renamed: Vocabulary, form: CallFormat, name: str
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", **RULES[name]}}, "required": ["a"]}
    tools = [Tool("f", schema)]
    endings, liked = endings_of(renamed), liked_tokens(renamed)
    calls = compile_calls(renamed, endings, form, tools, many=False)
    for more in (0, 3, 40):
        pieces: list[Piece] = []
        answer, _ = random_answer(
            renamed,
            endings,
            calls,
            random.Random(more),
            must=True,
            max_tokens=calls.shortest + more,
            emit=pieces.append,
            liked=liked,
        )
        check(form, tools, answer, pieces)
        assert len(answer.calls) == 1
