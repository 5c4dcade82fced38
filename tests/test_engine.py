"""Reusing the trunk of the last prompt changes no answer.

pytest tests/test_engine.py
"""

import numpy as np
import pytest

from edge.engine import Engine
from edge.errors import ContextError


@pytest.fixture(scope="module", params=["tiny_bf16", "smollm2_q4"])
def engine(request: pytest.FixtureRequest):
    engine = Engine(request.getfixturevalue(request.param), threads=1)
    engine.reserve(1024)
    yield engine
    engine.close()


def logits_of(engine: Engine, prompt: list[int]) -> np.ndarray:
    return engine.start(prompt).copy()


def test_a_longer_prompt_reads_only_what_is_new(engine: Engine) -> None:
    tokens = [20 + i % 300 for i in range(600)]
    logits_of(engine, tokens[:400])
    before = engine.prompt_tokens_decoded
    logits_of(engine, tokens)
    assert engine.prompt_tokens_decoded - before == 200
    logits_of(engine, tokens)
    assert engine.prompt_tokens_decoded - before == 200


def test_reuse_gives_the_logits_of_an_undisturbed_run(engine: Engine) -> None:
    tokens = [20 + (i * i) % 301 for i in range(500)]
    logits_of(engine, [7, 8, 9])
    fresh = logits_of(engine, tokens)
    written = engine.extend([30, 31, 32]).copy()
    for detour in (tokens[:200], [*tokens[:350], 25, 26], [5, 6, 7]):
        logits_of(engine, detour)
        engine.extend([40, 41])
        again = logits_of(engine, tokens)
        spread = float(fresh.max() - fresh.min())
        assert np.abs(again - fresh).max() < 0.02 * spread and again.argmax() == fresh.argmax()
        rewritten = engine.extend([30, 31, 32])
        assert np.abs(rewritten - written).max() < 0.02 * spread


def test_writing_together_or_one_by_one_is_the_same_answer(engine: Engine) -> None:
    prompt = list(range(50, 90))
    engine.start(prompt)
    together = engine.extend([60, 61, 62, 63]).copy()
    engine.start(prompt)
    for token in (60, 61, 62, 63):
        single = engine.extend([token])
    assert np.abs(together - single).max() < 0.02 * float(together.max() - together.min())


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(ContextError):
        engine.reserve(engine.context_length + 1)
    with pytest.raises(ContextError):
        engine.start(list(range(20, 20 + engine.n_ctx + 1)))
    with pytest.raises(ContextError):
        engine.start([])
    prompt = list(range(20, 20 + engine.n_ctx - 2))
    engine.start(prompt)
    with pytest.raises(ContextError):
        for _ in range(5):
            engine.extend([30])
    assert np.isfinite(engine.start([20, 21])).all()
