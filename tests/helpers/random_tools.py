"""Random sets of tools, as clients declare them, and random answers under their constraint."""

import json
import random
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from edge.answer.call_formats import FORMATS, HARMONY, CallFormat
from edge.answer.call_schema import Tool
from edge.answer.calls import CallArguments, CallBegun, CallEnded, Piece, ToolCall
from edge.answer.endings import Endings
from edge.answer.sampling import Sampling
from edge.answer.tools import CallGuide, Wanted, compile_calls, tool_answer
from edge.answer.writer import Answer
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary

NAMES = ("path", "command", "n", "is_open", "List-Of", "q", "options", "x1", "Zoom", "über", "a b", "timeout")
WORDS = ("a", "on", "it's", 'say "hi"', "a\nb", "x, n=1", "')", "<b>", "None", "5", "ü", "", "true", "a'b\"c")
PATTERNS = ("^[a-z]+$", "^/[a-z/]*$", "^(yes|no)$", r"^[\w-]+\.py$", "^[0-9]{2,4}$", "[A-Z]")


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of a value, as pydantic and zod write them."""
    simple: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string"},
        lambda: {"type": "string", "description": "A text.", "title": "Text"},
        lambda: {"type": "integer"},
        lambda: {"type": "number"},
        lambda: {"type": "boolean", "default": False},
        lambda: {"enum": rng.sample(WORDS, rng.randint(1, 4)), "type": "string"},
        lambda: {"const": rng.choice((*WORDS, 3, True, None))},
        lambda: {"enum": [1, "a", None, True, 2.5]},
        lambda: {"type": "integer", "minimum": rng.randint(-20, 20), "maximum": rng.randint(20, 500)},
        lambda: {"type": "number", "exclusiveMinimum": 0, "maximum": rng.choice((1, 2.0, 10, 100))},
        lambda: {"type": "integer", "exclusiveMinimum": rng.randint(-5, 5)},
        lambda: {"type": "string", "minLength": rng.randint(0, 3)},
        lambda: {"type": "string", "minLength": 1, "maxLength": rng.randint(1, 20)},
        lambda: {"type": "null"},
        lambda: {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        lambda: {"type": ["integer", "null"]},
        lambda: {"anyOf": [{"type": "integer", "minimum": 100}, {"type": "string"}]},
    ]
    patterned: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string", "pattern": rng.choice(PATTERNS)},
        lambda: {
            "type": "string",
            "format": rng.choice(("date", "date-time", "email", "uuid", "path", "ipv4")),
        },
        lambda: {"anyOf": [{"type": "string", "pattern": "^[0-9]+$"}, {"type": "number"}, {"type": "null"}]},
    ]
    nested: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "array", "items": random_schema(rng, depth + 1)},
        lambda: {
            "type": "array",
            "items": random_schema(rng, depth + 1),
            "minItems": rng.randint(0, 2),
            "maxItems": rng.randint(2, 4),
        },
        lambda: random_object(rng, depth + 1),
        lambda: {"anyOf": [random_object(rng, depth + 1), {"type": "null"}]},
    ]
    ways = simple * 2 + ([] if depth else patterned * 3) + (nested * 3 if depth < 2 else [])
    return rng.choice(ways)()


def random_object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """The schema of an object."""
    names = rng.sample(NAMES, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
    }
    if rng.random() < 0.8:
        schema["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def random_tools(rng: random.Random) -> list[Tool]:
    """One to four tools."""
    names = rng.sample(("bash", "read_file", "read", "b", "web.search", "edit-file", "f1"), rng.randint(1, 4))
    return [Tool(name, random_object(rng) if rng.random() < 0.9 else {}) for name in names]


def random_answer(
    vocabulary: Vocabulary,
    endings: Endings,
    calls: CallGuide,
    rng: random.Random,
    *,
    must: bool,
    max_tokens: int,
    emit: Callable[[Piece], None] | None = None,
    liked: Sequence[int] = (),
) -> tuple[Answer, list[int]]:
    """An answer from random logits, and its tokens. `liked`: tokens that are chosen more often."""
    prompt = [vocabulary.encode("\n", special=False)[0]]
    writer: Generator[Sequence[int], Any, Answer] = tool_answer(
        vocabulary,
        endings,
        Wanted(calls, must),
        prompt,
        max_tokens=max_tokens,
        sampling=Sampling(),
        think=0,
        emit=emit,
    )
    random_numbers = np.random.default_rng(rng.getrandbits(32))
    tokens: list[int] = []
    like = np.zeros(vocabulary.n_vocab, np.float32)
    like[list(liked)] = rng.choice((0.0, 1.0, 2.0, 4.0))
    try:
        tokens += next(writer)
        while True:
            logits = random_numbers.standard_normal(vocabulary.n_vocab, dtype=np.float32) + like
            tokens += writer.send(logits)
    except StopIteration as ended:
        return ended.value, tokens


def check(form: CallFormat, tools: Sequence[Tool], answer: Answer, pieces: Sequence[Piece]) -> None:
    """Fail if a call is not valid, if its text would come back otherwise, or if the stream says something else."""
    schemas = {
        tool.name: tool.parameters or {"type": "object", "additionalProperties": False} for tool in tools
    }
    calls = [(call.name, json.loads(call.arguments)) for call in answer.calls]
    for name, arguments in calls:
        Draft202012Validator(schemas[name]).validate(arguments)
    text = form.text(calls, [call.id for call in answer.calls]) if calls else ""
    assert answer.raw.endswith(text) and answer.raw.removesuffix(text).rstrip().endswith(answer.text.rstrip())
    streamed: list[list[str]] = []
    shown = ""
    for piece in pieces:
        if isinstance(piece, str):
            assert not streamed
            shown += piece
        elif isinstance(piece, CallBegun):
            assert piece.index == len(streamed)
            streamed.append([piece.id, piece.name, ""])
        elif isinstance(piece, CallArguments):
            assert piece.index == len(streamed) - 1
            streamed[-1][2] += piece.text
        elif isinstance(piece, CallEnded):
            assert piece.call == ToolCall(*streamed[piece.index])
    assert shown == answer.text and [ToolCall(*one) for one in streamed] == list(answer.calls)
    assert len({call.id for call in answer.calls}) == len(answer.calls)


def liked_tokens(vocabulary: Vocabulary) -> list[int]:
    """Tokens that end values and calls, and answers."""
    marks = [vocabulary.encode(mark, special=False)[-1] for mark in "\"}])>'<,|"]
    named = [
        part
        for form in FORMATS
        for part in vocabulary.parts(form.text([("f", {"a": "x"})]))
        if isinstance(part, int)
    ]
    return [*marks, *named, *vocabulary.end_ids]


def try_one(
    vocabulary: Vocabulary, endings: Endings, number: int, liked: Sequence[int]
) -> tuple[str, Answer | None]:
    """One random set of tools with a random form and budget. Returns what was tried, and the answer; None if the
    schema is refused for this form. Raises what `check` raises."""
    rng = random.Random(number)
    form = rng.choice([one for one in FORMATS if one is not HARMONY])
    tools = random_tools(rng)
    many, must = rng.random() < 0.6, rng.random() < 0.7
    try:
        calls = compile_calls(vocabulary, endings, form, tools, many=many)
    except GrammarError:
        return form.name, None
    room = calls.shortest + (rng.randint(0, 3) if rng.random() < 0.4 else int(rng.random() ** 2 * 120))
    room = room if must else rng.randint(1, room + 40)
    pieces: list[Piece] = []
    answer, _ = random_answer(
        vocabulary, endings, calls, rng, must=must, max_tokens=room, emit=pieces.append, liked=liked
    )
    assert answer.completion_tokens <= room
    assert answer.calls or not must
    assert answer.calls or form.trigger not in answer.text
    check(form, tools, answer, pieces)
    return form.name, answer
