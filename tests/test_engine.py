"""Reusing the trunk of the last prompt changes no answer.

pytest tests/test_engine.py
"""

from pathlib import Path

import numpy as np
import pytest

from edge.engine import Engine
from edge.errors import ContextError, EdgeError


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


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """The same but for rounding: other batch sizes take other kernels. A wrong position or state is far off this."""
    return float(np.corrcoef(a, b)[0, 1]) > 0.998


def test_reuse_gives_the_logits_of_an_undisturbed_run(engine: Engine) -> None:
    tokens = [20 + (i * i) % 301 for i in range(500)]
    logits_of(engine, [7, 8, 9])
    fresh = logits_of(engine, tokens)
    written = engine.extend([30, 31, 32]).copy()
    for detour in (tokens[:200], [*tokens[:350], 25, 26], [5, 6, 7]):
        logits_of(engine, detour)
        engine.extend([40, 41])
        assert alike(logits_of(engine, tokens), fresh)
        assert alike(engine.extend([30, 31, 32]), written)
    assert not alike(logits_of(engine, [*tokens[:-2], 25, 26]), fresh)


def test_writing_together_or_one_by_one_is_the_same_answer(engine: Engine) -> None:
    prompt = list(range(50, 90))
    engine.start(prompt)
    together = engine.extend([60, 61, 62, 63]).copy()
    engine.start(prompt)
    for token in (60, 61, 62, 63):
        single = engine.extend([token])
    assert alike(together, single)


def test_an_interrupted_prompt_leaves_nothing_behind(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two chunks of a prompt: the next prompt is read as by a new engine."""
    tokens = [20 + (i * 7) % 299 for i in range(700)]
    logits_of(engine, [5, 6, 7])
    fresh = logits_of(engine, tokens)
    decode = Engine._decode

    def interrupted(self: Engine, part: list[int], position: int, sequence: int) -> None:
        if position >= 512:
            raise KeyboardInterrupt
        decode(self, part, position, sequence)

    logits_of(engine, [8, 9, 10])
    monkeypatch.setattr(Engine, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.start(tokens)
    monkeypatch.undo()
    assert alike(logits_of(engine, tokens), fresh)


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


def test_a_closed_engine_and_too_many_threads_are_refused(tiny_bf16: Path) -> None:
    with pytest.raises(EdgeError, match="513 threads"):
        Engine(tiny_bf16, threads=513)
    engine = Engine(tiny_bf16, threads=1)
    engine.close()
    engine.close()
    for call in (lambda: engine.reserve(10), lambda: engine.start([20])):
        with pytest.raises(EdgeError, match="closed"):
            call()
