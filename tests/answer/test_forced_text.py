"""Forced text that spells a token with a name, such as `<think>`: written in other tokens, valid at every budget.

.venv/bin/pytest tests/answer/test_forced_text.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import serving

from edge.answer.endings import Endings, Guide
from edge.answer.guided import compile_guide, guided_answer
from edge.answer.sampling import Sampling
from edge.errors import GrammarError
from edge.llama.jobs import Job
from edge.runner import Runner

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Remove the file old.log."}]
_texts = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<",
            "think>",
            "</",
            "<<think>",
            "<|im_end|>",
            "é",
            "한",
            " ",
            "\n",
            '"',
            "a b",
        ]
    ),
    min_size=1,
    max_size=5,
).map("".join)


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--answers", "text") as address:
        yield address


def streamed(server: str, **fields: Any) -> str:
    body = {"messages": MESSAGES, "max_tokens": 40, "stream": True, **fields}
    text = ""
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=120) as answer:
        lines = list(answer.iter_lines())
        assert answer.status_code == 200, lines
        for line in lines:
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["delta"].get("content") or ""
    return text


@pytest.mark.parametrize("text", ["<think>", "x </think> y", "<<think>", "<think></think>"])
def test_a_forced_name_of_a_token_is_written(server: str, text: str) -> None:
    def form(schema: object) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    assert json.loads(streamed(server, response_format=form({"const": text}))) == text
    assert json.loads(streamed(server, response_format=form({"enum": [text, text + "s"]}))) in (
        text,
        text + "s",
    )
    schema: Any = {"type": "object", "properties": {"a": {"const": text}}, "additionalProperties": False}
    for temperature in (0, 1.5):
        answer = streamed(server, response_format=form(schema), temperature=temperature, seed=1)
        jsonschema.validate(json.loads(answer), schema)
    assert streamed(server, grammar=f'root ::= "{text}" ".."') == text + ".."


def write(runner: Runner, endings: Endings, guide: Guide, room: int, temperature: float) -> str:
    prompt = runner.encode("<|startoftext|>Write it.")
    writer = guided_answer(
        runner.vocabulary,
        endings,
        guide,
        endings.first(guide, room),
        prompt,
        max_tokens=room,
        sampling=Sampling(temperature=temperature, seed=1),
    )
    runner.engine.reserve(4096, 4)
    answer = next(runner.engine.run([Job(prompt, writer, room)]))[1]
    assert answer.completion_tokens <= room
    return answer.text


@settings(max_examples=60, deadline=None)
@given(
    text=_texts, other=_texts, name=_texts, room=st.integers(1, 90), temperature=st.sampled_from([0.0, 1.5])
)
def test_names_of_tokens_in_a_schema_hold_at_every_budget(
    tiny: Runner, endings: Endings, text: str, other: str, name: str, room: int, temperature: float
) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"const": text}, "b": {"enum": [text, other, other + text]}},
        "required": ["b"],
        "additionalProperties": False,
    }
    for one in (schema, {"const": text}):
        guide = compile_guide(tiny.vocabulary, "schema", json.dumps(one))
        try:
            answer = write(tiny, endings, guide, room, temperature)
        except GrammarError as error:
            assert "raise max_tokens" in str(error) and room < 90
            continue
        jsonschema.validate(json.loads(answer), one)


@given(text=_texts)
def test_a_text_for_the_matcher_never_has_a_token_with_a_name(tiny: Runner, text: str) -> None:
    tokens = tiny.vocabulary.matcher_tokens()
    spelled = tokens.tokenize_str(text)
    assert tokens.decode_bytes(spelled) == text.encode()
    assert not any(map(tokens.is_special_token, spelled))
    usual = tiny.vocabulary.encode(text, special=False)
    if not any(map(tokens.is_special_token, usual)):
        assert spelled == usual  # all other texts: the model's own tokens
