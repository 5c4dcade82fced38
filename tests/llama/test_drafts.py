"""Drafts: tokens decoded ahead save passes, never choose a token, and leave no trace in the cache.

pytest tests/llama/test_drafts.py
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import converted
from hypothesis import given
from hypothesis import strategies as st
from scripted import script

from edge.answer.answering import Answering
from edge.answer.constraint import Constraint
from edge.answer.sampling import Sampling
from edge.llama.drafts import LENGTHS, Costs, Drafting, Repeats
from edge.llama.engine import Engine
from edge.llama.jobs import Guide, Job
from edge.llama.loading import Loading
from edge.llama.serving import Request, ServingEngine
from edge.runner import Runner

FREE = Costs(((16, 1.0),))
FEW_TOKENS = st.lists(st.integers(0, 2), max_size=60)


def last_occurrence(texts: Sequence[Sequence[int]], most: int) -> tuple[list[int], int]:
    """What follows the longest match of the end of the last text, searched in every place; ([], 0) for none."""
    best: tuple[int, int, int] = (2, 0, 0)  # length of the match, text, end
    tail = list(texts[-1])
    for number, text in enumerate(texts):
        for end in range(3, len(text) + (number < len(texts) - 1)):
            length = 0
            while length < min(end, len(tail), 32) and text[end - 1 - length] == tail[-1 - length]:
                length += 1
            if length >= 3 and length >= best[0]:
                best = (length, number, end)
    length, number, end = best
    return (list(texts[number][end : end + most]), length) if length >= 3 else ([], 0)


@given(st.lists(FEW_TOKENS, max_size=2), FEW_TOKENS, st.integers(1, 9))
def test_the_longest_and_latest_match_is_found(earlier: list[list[int]], text: list[int], cut: int) -> None:
    repeats = Repeats(earlier)
    repeats.add(text[:cut])
    repeats.add(text[cut:])
    assert repeats.length == len(text)
    found, match = repeats.following(5)
    expected, length = last_occurrence([*earlier, text], 5)
    if match == length:
        # Only the latest 16 occurrences are compared, so a longer match may be older.
        assert match == 0 or len(found) <= 5
    else:
        assert match < length
    places = sum(
        t[i - 3 : i] == text[-3:] for t in [*earlier, text] for i in range(3, len(t) + 1) if len(text) >= 3
    )
    if places <= 16:
        assert (found, match) == (expected, length)


def test_a_draft_is_decoded_only_if_it_is_expected_to_save_time() -> None:
    dear = Drafting(15, Costs(((4, 4.0), (8, 8.0), (16, 16.0))))
    assert [dear.length(match) for match in (0, 3, 8, 32)] == [0, 0, 0, 0]
    free = Drafting(15, FREE)
    assert [free.length(match) for match in (0, 3, 8, 32)] == [0, 15, 15, 15]
    assert Drafting(4, FREE).length(32) == 4 and Drafting(15).length(32) == 0
    some = Drafting(15, Costs(((4, 1.6), (8, 2.4), (16, 4.4))))
    lengths = [some.length(match) for match in (3, 5, 8, 32)]
    assert lengths == sorted(lengths) and 0 < lengths[1] < lengths[3] and set(lengths) <= {0, *LENGTHS}
    for _ in range(20):  # the drafts were wrong, so they are no longer worth it
        some.count(32, 12, 0)
    assert some.length(32) == 0 and some.length(8) == lengths[2]


def test_costs_between_and_after_measured_points() -> None:
    costs = Costs(((4, 2.5), (8, 3.5)))
    assert [costs.of(n) for n in (1, 2, 4, 6, 8, 16)] == [1.0, 1.5, 2.5, 3.0, 3.5, 7.0]


def repeating(seed: int) -> tuple[list[int], list[list[int]]]:
    """A prompt, and an answer in parts that repeats it and itself with changes."""
    rng = random.Random(seed)
    prompt = [rng.randrange(20, 400) for _ in range(120)]
    answer: list[int] = []
    while len(answer) < 150:
        source = prompt + answer
        at = rng.randrange(len(source) - 20)
        answer += [*source[at : at + rng.randrange(4, 20)], rng.randrange(20, 400)]
    parts = []
    while answer:
        size = rng.choice((1, 1, 1, 2, 5))  # a grammar forces several tokens at once
        parts.append(answer[:size])
        answer = answer[size:]
    return prompt, parts


@pytest.fixture(scope="module")
def llama(random_llama_folder: Path) -> Path:
    """A transformer in F32: its kernels round little."""
    return converted(random_llama_folder, "random-llama-F32.gguf", "F32")


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal except for rounding: other batch sizes use other kernels. A wrong position or state differs much more."""
    return bool(np.abs(a - b).max() < 1e-3 * np.abs(a).max())


@pytest.mark.parametrize("seed", range(4))
def test_the_logits_are_those_without_drafts_and_the_state_stays_usable(llama: Path, seed: int) -> None:
    prompt, parts = repeating(seed)
    text = [*prompt, *(token for part in parts for token in part)]
    further = [text[-1], 50, 60]
    reads, passes = [], []
    for draft in (0, 15):
        engine = Engine(llama, Loading(threads=1, draft=draft))
        engine.reserve(600, 3)
        if engine.drafting is not None:
            engine.drafting.costs = FREE
        owner = object()
        first = next(engine.run([Job(prompt, script(*parts), len(text))], owner=owner))[1]
        passes.append(engine.answer_passes)
        before = engine.prompt_tokens_decoded
        then = next(engine.run([Job([*text, *further], script([70]), 1)], owner=owner))[1]
        assert engine.prompt_tokens_decoded - before == len(further)  # the answer's state was kept whole
        reads.append([*first, *then])
        assert engine.answer_tokens_decoded == len(text) - len(prompt) + 1
        drafting = engine.drafting
        engine.close()
    assert drafting is not None and 0 < drafting.accepted < drafting.drafted
    assert passes[1] < 0.7 * passes[0]
    assert all(alike(a, b) for a, b in zip(*reads, strict=True))


def test_answers_of_a_server_are_those_without_drafts(llama: Path) -> None:
    prompt, parts = repeating(5)
    reads = []
    for draft in (0, 15):
        engine = ServingEngine(llama, Loading(threads=1, draft=draft))
        engine.reserve(3 * 600, 3)
        if engine.drafting is not None:
            engine.drafting.costs = FREE
        count = sum(map(len, parts))
        waiting = [Request(prompt, script(*parts), count), Request(prompt, script(*parts), count)]
        reads.append(
            [
                logits
                for _, answer in engine.serve(lambda wait, left=waiting: left.pop() if left else None, 1)
                for logits in answer
            ]
        )
        drafting = engine.drafting
        engine.close()
    assert drafting is not None and 0 < drafting.accepted < drafting.drafted
    assert all(alike(a, b) for a, b in zip(*reads, strict=True))


def test_costs_are_measured_after_some_passes_and_change_nothing(llama: Path) -> None:
    prompt, parts = repeating(7)
    reads = []
    for draft in (0, 15):
        engine = Engine(llama, Loading(threads=1, draft=draft))
        engine.reserve(600, 3)
        reads.append(next(engine.run([Job(prompt, script(*parts), sum(map(len, parts)))]))[1])
        drafting = engine.drafting
        engine.close()
    assert drafting is not None and drafting.costs is not None
    assert drafting.costs.points[0][0] == 4 and all(cost > 0 for _, cost in drafting.costs.points)
    assert all(alike(a, b) for a, b in zip(*reads, strict=True))


def test_a_hybrid_drafts_nothing(tiny_q4: Path) -> None:
    engine = Engine(tiny_q4, Loading(threads=1, draft=15))
    assert engine.drafting is None
    engine.close()


@pytest.mark.slow
def test_the_grammar_cuts_drafts_and_each_answer_is_an_action(smollm2_q4: Path) -> None:
    with Runner.open(smollm2_q4, Loading(threads=1, draft=15)) as runner:
        drafting = runner.engine.drafting
        assert drafting is not None
        drafting.costs = FREE
        for seed, task in enumerate(("List the files.", "List the files.", "Show the date.")):
            messages = [{"role": "user", "content": task}]
            prompt = runner.encode(runner.render(messages).text)
            action = runner.act_on(prompt, Answering(60, Sampling(temperature=0.7, seed=seed)))
            assert action.commands is not None
        assert drafting.accepted


@pytest.mark.slow
def test_fitting_tokens_are_those_that_are_accepted_one_after_another(smollm2_q4: Path) -> None:
    with Runner.open(smollm2_q4, Loading(threads=1)) as runner:
        vocabulary = runner.vocabulary
        text = '{"analysis": "a", "plan": "b", "commands": [], "task_complete": false}'
        tokens = vocabulary.encode(text)
        for begin in range(0, len(tokens), 4):
            for draft in (tokens[begin:], [*tokens[begin : begin + 3], *tokens[:2]], [-1], [10**9], []):
                constraint = Constraint(vocabulary.matcher_tokens())
                for token in tokens[:begin]:
                    constraint.consume(token)
                accepted = 0
                one_by_one = Constraint(vocabulary.matcher_tokens())
                for token in tokens[:begin]:
                    one_by_one.consume(token)
                for token in draft:
                    if not one_by_one.accepts(token):
                        break
                    one_by_one.consume(token)
                    accepted += 1
                assert constraint.fitting(draft) == accepted
        assert Guide().fitting([1, 2]) == 2
