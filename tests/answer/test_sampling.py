"""Sampling agrees with the plain definition of each parameter.

pytest tests/answer/test_sampling.py
"""

from collections import Counter

import numpy as np
import pytest

from edge.answer.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.08, 0.02], np.float32))


def draw(
    sampling: Sampling, allowed: np.ndarray | None = None, prompt: tuple[int, ...] = ()
) -> dict[int, float]:
    sampler = Sampler(sampling, prompt)
    counts = Counter(sampler.pick(LOGITS, allowed) for _ in range(4000))
    return {token: count / 4000 for token, count in counts.items()}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, seed=1), [0.4, 0.3, 0.2, 0.08, 0.02]),
        (Sampling(0.5, seed=1), [0.16, 0.09, 0.04, 0.0064, 0.0004]),
        (Sampling(1.0, top_k=2, seed=1), [0.4, 0.3, 0, 0, 0]),
        (Sampling(1.0, top_p=0.75, seed=1), [0.4, 0.3, 0.2, 0, 0]),
        (Sampling(1.0, top_p=0.1, seed=1), [1, 0, 0, 0, 0]),
        (Sampling(1.0, min_p=0.4, seed=1), [0.4, 0.3, 0.2, 0, 0]),
        (Sampling(0.0), [1, 0, 0, 0, 0]),
    ],
)
def test_shares(sampling: Sampling, expected: list[float]) -> None:
    shares = draw(sampling)
    total = sum(expected)
    for token, weight in enumerate(expected):
        assert shares.get(token, 0.0) == pytest.approx(weight / total, abs=0.03)
        assert (token in shares) == (weight > 0)


def test_only_allowed_tokens_come_out() -> None:
    allowed = np.array([False, False, True, False, True])
    assert set(draw(Sampling(2.0, seed=3), allowed)) == {2, 4}
    assert draw(Sampling(), allowed) == {2: 1.0}


def test_the_repetition_penalty_counts_the_prompt_and_what_was_written() -> None:
    positive = np.array([2.0, 1.9, -1.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.2), prompt=[0])
    assert sampler.pick(positive) == 1
    sampler.saw(1)
    assert sampler.pick(positive) == 0
    negative = np.array([-1.0, -1.1, -9.0], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.2), prompt=[0]).pick(negative) == 1
    for absurd in (1e300, 1e-300):  # a number all the same, and no warning
        assert Sampler(Sampling(repetition_penalty=absurd), prompt=[0]).pick(negative) in range(len(negative))
    assert positive.tolist() == pytest.approx([2.0, 1.9, -1.0])  # the logits themselves are left alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_overflows_still_answers(temperature: float) -> None:
    broken = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert Sampler(Sampling(temperature, seed=1), ()).pick(broken) == 1
    allowed = np.array([True, False, True, False])
    assert Sampler(Sampling(temperature, seed=1), ()).pick(np.full(4, np.nan, np.float32), allowed) in (0, 2)
