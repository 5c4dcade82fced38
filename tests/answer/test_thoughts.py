"""Thoughts between the marks of Gemma 4, Magistral and gpt-oss, in text and beside calls.

.venv/bin/pytest tests/answer/test_thoughts.py
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import converted, keyed
from random_tools import check
from served import serving

from edge.answer.action import parse_action
from edge.answer.call_formats import GEMMA, HARMONY_CHANNEL, HERMES, CallFormat
from edge.answer.call_schema import Tool
from edge.answer.calls import Piece, Thinking
from edge.answer.endings import Endings
from edge.answer.guided import compile_guide
from edge.answer.sampling import Sampling
from edge.answer.tools import Wanted, compile_calls, tool_answer
from edge.answer.writer import action_answer, chat_answer, thought_is_open
from edge.llama.vocabulary import Vocabulary, file_vocabulary

RENAMED = {
    "gemma": {
        "<think>": "<|channel>",
        "</think>": "<channel|>",
        "<|fim_pre|>": '<|"|>',
        "<|fim_mid|>": "<|tool_call>",
        "<|fim_suf|>": "<tool_call|>",
    },
    "magistral": {"<think>": "[THINK]", "</think>": "[/THINK]"},
    "gpt-oss": {
        "<|pad|>": "<|channel|>",
        "<|fim_pre|>": "<|message|>",
        "<|fim_mid|>": "<|end|>",
        "<|fim_suf|>": "<|start|>",
        "<|tool_call_start|>": "<|call|>",
        "<|tool_call_end|>": "<|constrain|>",
        "<think>": "<mark>",
    },
}
BASH = Tool(
    "bash", {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
)
CALL = [("bash", {"command": "ls"})]
ACTION = '{"analysis": "", "plan": "", "commands": [], "task_complete": true}'


def make_renamed(folder: Path, out: Path, names: dict[str, str]) -> None:
    """The embedded model with the special tokens of another one."""
    shutil.copytree(folder, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (out / name).read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (out / name).write_text(text, encoding="utf-8")


def model_file(tiny_folder: Path, name: str) -> Path:
    """The GGUF of the embedded model with the special tokens of another one."""
    sources = [Path(__file__), *sorted(tiny_folder.glob("*.json"))]
    folder = keyed(f"thoughts-{name}", sources, lambda out: make_renamed(tiny_folder, out, RENAMED[name]))
    return converted(folder, f"thoughts-{name}-Q4_K_M.gguf", "Q4_K_M")


@pytest.fixture(scope="module")
def load(tiny_folder: Path) -> Iterator[Callable[[str], Vocabulary]]:
    opened: dict[str, Any] = {}

    def load(name: str) -> Vocabulary:
        if name not in opened:
            context = file_vocabulary(model_file(tiny_folder, name))
            opened[name] = context, context.__enter__()
        found: Vocabulary = opened[name][1]
        return found

    yield load
    for context, _ in opened.values():
        context.__exit__(None, None, None)


def tokens(vocabulary: Vocabulary, script: str) -> list[int]:
    found: list[int] = []
    for part in vocabulary.parts(script):
        found += [part] if isinstance(part, int) else vocabulary.encode(part, special=False)
    return found


def play(vocabulary: Vocabulary, writer: Any, script: str) -> Any:
    """The answer of a model that wants to write this text, and then to end."""
    wanted, end = tokens(vocabulary, script), min(vocabulary.end_ids)
    try:
        written = len(next(writer))
        while True:
            logits = np.zeros(vocabulary.n_vocab, np.float32)
            logits[wanted[written] if written < len(wanted) else end] = 1
            written += len(writer.send(logits))
    except StopIteration as ended:
        return ended.value


def write(
    vocabulary: Vocabulary,
    script: str,
    calls_form: CallFormat | None,
    *,
    room: int = 200,
    think: int = 100,
    prompt: str = "\n",
    **wanted: Any,
) -> Any:
    endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
    calls = (
        compile_calls(vocabulary, endings, calls_form, [BASH], many=True) if calls_form is not None else None
    )
    pieces: list[Piece] = []
    writer = tool_answer(
        vocabulary,
        endings,
        Wanted(calls, **wanted),
        tokens(vocabulary, prompt),
        max_tokens=room,
        sampling=Sampling(),
        think=think,
        emit=pieces.append,
    )
    answer = play(vocabulary, writer, script)
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thinking))
    assert thoughts.strip() == (answer.thought or "")
    if calls_form is not None:
        check(calls_form, [BASH], answer, [piece for piece in pieces if not isinstance(piece, Thinking)])
    assert answer.completion_tokens <= room
    return answer


MARKS = {
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
}
FORMS = {"gemma": GEMMA, "magistral": HERMES, "gpt-oss": HARMONY_CHANNEL}
FINAL = "<|channel|>final<|message|>"


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKS)
def test_a_thought_and_then_text_or_a_call(name: str, load: Callable[[str], Vocabulary]) -> None:
    vocabulary = load(name)
    opening, closing = MARKS[name]
    header = FINAL if name == "gpt-oss" else ""
    thought = f"{opening}I must look.{closing}"
    answer = write(vocabulary, f"{thought}{header}Here it is.", FORMS[name])
    assert (answer.thought, answer.text, answer.calls) == ("I must look.", "Here it is.", ())
    answer = write(vocabulary, f"{header}No thought.", FORMS[name])
    assert (answer.thought, answer.text, answer.calls) == (None, "No thought.", ())
    for choice in ({}, {"must": True}):
        answer = write(vocabulary, thought + FORMS[name].text(CALL), FORMS[name], **choice)
        assert answer.thought == "I must look." and answer.text == ""
        assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == CALL
    answer = write(vocabulary, f"{header}Text.", None)
    assert (answer.text, answer.finish_reason) == ("Text.", "stop")


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKS)
def test_budgets_of_thoughts(name: str, load: Callable[[str], Vocabulary]) -> None:
    """A thought that is off is not begun, one that is too long is closed, and the call after it always fits."""
    vocabulary = load(name)
    opening, _ = MARKS[name]
    header = FINAL if name == "gpt-oss" else ""
    long = opening + "so, " * 300
    assert write(vocabulary, f"{long}", FORMS[name], think=0).thought is None
    assert write(vocabulary, long, FORMS[name], think=30).thought.startswith("so, so,")
    shortest = compile_calls(
        vocabulary,
        Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids)),
        FORMS[name],
        [BASH],
        many=True,
    ).shortest
    for room in range(shortest, shortest + 20):
        answer = write(vocabulary, long, FORMS[name], room=room, must=True)
        assert answer.calls and answer.completion_tokens <= room
    for room in range(1, 20):
        assert write(vocabulary, f"{header}One two three four five.", None, room=room, think=0) is not None


def test_a_format_after_a_thought(load: Callable[[str], Vocabulary]) -> None:
    for name in MARKS:
        vocabulary = load(name)
        opening, closing = MARKS[name]
        header = FINAL if name == "gpt-oss" else ""
        endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
        guide = compile_guide(vocabulary, "schema", '{"const": "yes"}')
        form = guide, endings.first(guide, 50)
        for calls in (None, FORMS[name]):
            answer = write(vocabulary, f'{opening}Hm.{closing}{header}"yes"', calls, form=form)
            assert (answer.thought, answer.text) == ("Hm.", '"yes"')
        answer = write(vocabulary, f"{opening}Hm.{closing}{FORMS[name].text(CALL)}", FORMS[name], form=form)
        assert answer.thought == "Hm." and answer.calls


def test_a_thought_that_the_template_has_opened_or_closed(load: Callable[[str], Vocabulary]) -> None:
    gemma = load("gemma")
    assert thought_is_open(gemma, tokens(gemma, "model\n<|channel>thought\n"))
    assert not thought_is_open(gemma, tokens(gemma, "model\n<|channel>thought\n<channel|>"))
    assert not thought_is_open(gemma, tokens(gemma, "model\n"))
    answer = write(gemma, "Hm.<channel|>Text.", GEMMA, prompt="model\n<|channel>thought\n")
    assert (answer.thought, answer.text) == ("Hm.", "Text.")


def test_actions_and_chats_of_gpt_oss(load: Callable[[str], Vocabulary]) -> None:
    vocabulary = load("gpt-oss")
    opening, closing = MARKS["gpt-oss"]
    script = f"{opening}Hm.{closing}{FINAL}"
    prompt = tokens(vocabulary, "<|start|>assistant")
    options: Any = {"max_tokens": 200, "sampling": Sampling(), "think": 50}
    writer = action_answer(vocabulary, prompt, text_share=0.5, **options)
    answer = play(vocabulary, writer, script + ACTION)
    assert answer.thought == "Hm." and parse_action(answer.text)
    answer = play(vocabulary, chat_answer(vocabulary, prompt, **options), f"{script}Hello.<|end|>")
    assert (answer.thought, answer.text, answer.raw) == ("Hm.", "Hello.", "Hello.")
    assert answer.finish_reason == "stop"


def scored(vocabulary: Vocabulary, answer: Any) -> str:
    """The text of the tokens that have a score."""
    return b"".join(vocabulary.piece(one.token) for one in answer.scores).decode()


@pytest.mark.parametrize("name", MARKS)
def test_scores_are_those_of_the_visible_text(name: str, load: Callable[[str], Vocabulary]) -> None:
    """Without the thought, the header, the stop text and the end; each token has its own score."""
    vocabulary = load(name)
    opening, closing = MARKS[name]
    header = FINAL if name == "gpt-oss" else ""
    for script in (f"{opening}I must look.{closing}{header}Here: 😀!", f"{header}Here: 😀!"):
        answer = write(vocabulary, script, None, scores=2)
        assert answer.text == "Here: 😀!" == scored(vocabulary, answer)
        assert all(one.best[0] == (one.token, one.logprob) for one in answer.scores)
    answer = write(vocabulary, f"{header}Here it is. Stop here.", None, scores=0, stop=["Stop"])
    assert answer.text == "Here it is. " and scored(vocabulary, answer).startswith(answer.text)
    last = vocabulary.piece(answer.scores[-1].token).decode()
    assert len(scored(vocabulary, answer)) - len(last) < len(answer.text)  # the last token begins in the text
    answer = write(vocabulary, f"{opening}{'so, ' * 90}", None, think=20, room=20, scores=1)
    assert answer.text == scored(vocabulary, answer)


@pytest.mark.slow
def test_log_probabilities_of_a_server_with_gpt_oss(tiny_folder: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Remove the file old.log."}], "max_tokens": 40}
    with serving(model_file(tiny_folder, "gpt-oss"), "--answers", "text") as address:

        def ask(**fields: Any) -> Any:
            got = httpx.post(f"{address}/v1/chat/completions", json={**body, **fields}, timeout=120)
            return got.json()["choices"][0]

        plain, choice = ask(), ask(logprobs=True, top_logprobs=2)
        assert choice["message"] == plain["message"]
        tokens = choice["logprobs"]["content"]
        assert b"".join(bytes(one["bytes"]) for one in tokens).decode() == choice["message"]["content"]
        for part in FINAL.replace("<", " <").replace(">", "> ").split():
            assert part not in [one["token"] for one in tokens]
