"""The KL divergence from a kept distribution, compared with the sum over the whole vocabulary.

pytest tests/measure/test_divergence.py
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.measure.divergence import LUMPED, TOP, divergence, entropy, keep, log_normalizer, log_probability


def exact(p: np.ndarray, q: np.ndarray) -> float:
    log_p, log_q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64)) for x in (p, q))
    return float((np.exp(log_p) * (log_p - log_q)).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 200, 3000, 5000, 20000]),
    sharpness=st.floats(0.01, 20),
    noise=st.floats(0, 8),
    peak=st.floats(0, 40),
)
def test_the_error_is_within_the_bound(
    seed: int, size: int, sharpness: float, noise: float, peak: float
) -> None:
    rng = np.random.default_rng(seed)
    p = (sharpness * rng.standard_normal(size)).astype(np.float32)
    p[rng.integers(size)] += np.float32(peak)
    q = (p + noise * rng.standard_normal(size)).astype(np.float32)
    value, error = divergence(keep(p), q, log_normalizer(q))
    assert value >= 0
    assert abs(value - exact(p, q)) <= error + 1e-9 * (1 + value)


@pytest.mark.parametrize(("sharpness", "share"), [(0.5, 0.4), (2, 0.3), (12, 0.01)])
def test_the_bound_says_something_and_the_error_is_far_below_it(sharpness: float, share: float) -> None:
    # As in a quantization: small noise on a large vocabulary. The first distribution is almost flat.
    rng = np.random.default_rng(1)
    p = (sharpness * rng.standard_normal(50000)).astype(np.float32)
    q = (p + 0.2 * rng.standard_normal(50000)).astype(np.float32)
    value, error = divergence(keep(p), q, log_normalizer(q))
    assert error <= share * value
    assert value == pytest.approx(exact(p, q), rel=0.01)


@pytest.mark.parametrize("size", [5, 3000, 20000])
@pytest.mark.parametrize("peak", [0.0, 15.0, 60.0])
def test_a_distribution_against_itself_is_exactly_0(size: int, peak: float) -> None:
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    logits[3] += np.float32(peak)
    assert divergence(keep(logits), logits, log_normalizer(logits))[0] == 0


@pytest.mark.parametrize(("size", "peak"), [(100, 3.0), (9000, 3.0), (9000, 30.0)])
def test_the_entropy_is_that_of_all_tokens(size: int, peak: float) -> None:
    """For each of the three forms in which a distribution is kept."""
    logits = np.random.default_rng(3).normal(0, 2, size).astype(np.float32)
    logits[5] += peak
    logs = logits.astype(np.float64) - log_normalizer(logits)
    assert entropy(keep(logits)) == pytest.approx(-float((np.exp(logs) * logs).sum()), rel=1e-3)
    assert entropy(keep(np.array([0.0, -2000.0], np.float32))) == 0


def test_what_is_kept_depends_on_the_rest() -> None:
    logits = np.zeros(20000, np.float32)
    assert keep(logits).codes is not None
    logits[7] = 100
    kept = keep(logits)
    assert kept.best == 7 and kept.codes is None and kept.log_rest < np.log(LUMPED)
    assert kept.ids is not None and len(kept.ids) == len(kept.logits) == TOP and kept.ids[0] == 7
    assert keep(np.zeros(TOP, np.float32)).ids is None


def test_log_probability_of_several_tokens_is_that_of_their_sum() -> None:
    logits = np.log(np.array([1, 2, 5], np.float32))
    log_norm = log_normalizer(logits)
    assert log_probability(logits, log_norm, (1,)) == pytest.approx(np.log(2 / 8))
    assert log_probability(logits, log_norm, (0, 2)) == pytest.approx(np.log(6 / 8))
