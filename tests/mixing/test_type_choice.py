"""The choice of types under a size, and the groups: pure functions."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats.gguf import TensorInfo
from edge.mixing.choice import (
    Option,
    choose_fast_types,
    choose_types,
    priced,
    steady_sum,
    usual_shares,
)
from edge.mixing.groups import make_groups

OPTIONS = st.lists(
    st.tuples(st.integers(1, 300), st.floats(0, 10)).map(
        lambda pair: Option("t", pair[0], 1.0, cost=pair[1])
    ),
    min_size=1,
    max_size=4,
)


@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(1, 1500))
def test_no_choice_that_fits_is_better(groups: list[list[Option]], room: int) -> None:
    """With sizes below the knapsack's steps, it is exact: compared with every combination."""
    chosen = choose_types({str(i): options for i, options in enumerate(groups)}, room)
    fitting = [each for each in product(*groups) if sum(option.n_bytes for option in each) <= room]
    if not fitting:
        assert chosen is None
        return
    assert chosen is not None
    assert sum(option.n_bytes for option in chosen.values()) <= room
    best = min(sum(option.cost for option in each) for each in fitting)
    assert sum(option.cost for option in chosen.values()) == pytest.approx(best)


def test_a_large_choice_fits_and_fills_the_room() -> None:
    """Of 60 groups with rounded sizes, the choice is never too large, and leaves at most 0.5 %."""
    rng = np.random.default_rng(5)
    groups = {}
    for i in range(60):
        size = int(rng.integers(10**6, 10**8))
        bits = (2.6, 3.4, 4.5, 5.5, 6.6, 8.5)
        scale = float(rng.lognormal(0, 2))
        groups[str(i)] = [Option(f"{b}", int(size * b / 8), 1, cost=scale * 4.0**-b) for b in bits]
    for share in (3.0, 4.8, 7.5):
        room = sum(int(options[0].n_bytes / 2.6 * share) for options in groups.values())
        chosen = choose_types(groups, room)
        assert chosen is not None
        used = sum(option.n_bytes for option in chosen.values())
        assert 0.995 * room <= used <= room


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(1, 1200), st.floats(0.1, 3))
def test_a_fast_choice_is_fast_and_fits(groups: list[list[Option]], room: int, share: float) -> None:
    """Larger options take longer here. A choice keeps both limits; without the limit of time it is the best one."""
    options = {
        str(i): [replace(each, type=str(j), seconds=each.n_bytes % 7 + 0.5) for j, each in enumerate(some)]
        for i, some in enumerate(groups)
    }
    fitting = [each for each in product(*options.values()) if sum(one.n_bytes for one in each) <= room]
    limit = share * 4 * len(groups)
    fast = [each for each in fitting if sum(one.seconds for one in each) <= limit]
    chosen = choose_fast_types(options, room, limit)
    if not fast:
        assert chosen is None
    if chosen is not None:
        assert tuple(chosen.values()) in fast
    if fitting:
        best = choose_fast_types(options, room, 1e9)
        assert best is not None
        least = min(sum(one.cost for one in each) for each in fitting)
        assert sum(one.cost for one in best.values()) == pytest.approx(least)


def test_unmeasured_costs_follow_the_errors() -> None:
    options = [Option("a", 1, 8.0), Option("b", 2, 4.0, 0.5), Option("c", 3, 1.0, 0.2), Option("d", 9, 0.0)]
    assert [each.cost for each in priced(options)] == [1.0, 0.5, 0.2, 0.0]
    assert [each.cost for each in priced(options, 2.0)] == [2.0, 1.0, 0.4, 0.0]


def test_a_row_that_flips_says_nothing_about_a_type() -> None:
    """One row of 20 jumps by 30 times the largest cost in a quarter of the measurements, whatever was changed.

    It then adds at most what four usual shares of it would have; the other measurements stay as they are.
    """
    rng = np.random.default_rng(7)
    costs = np.geomspace(1, 30, 40)
    usual = rng.dirichlet(np.full(20, 2.0))
    parts = costs[:, None] * usual * rng.lognormal(0, 0.3, (40, 20))
    calm = parts.sum(axis=1)
    parts[::4, 3] += 900
    shares = usual_shares(parts.tolist())
    found = np.array([steady_sum(each, shares) for each in parts.tolist()])
    jump = 4 * shares[3] / (1 - 4 * shares[3])  # the most that the row can add to the others
    assert 0 < jump < 0.6 and shares.sum() == pytest.approx(1)
    assert np.all(found[::4] <= 1.01 * (1 + jump) * calm[::4])
    rest = np.delete(np.arange(40), np.s_[::4])
    assert found[rest] == pytest.approx(calm[rest], rel=0.05)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=8), st.integers(1, 5))
def test_a_steady_sum_is_never_larger_and_scales(parts: list[float], factor: int) -> None:
    shares = usual_shares([[1.0] * len(parts)])
    found = steady_sum(parts, shares)
    assert 0 <= found <= sum(parts) * (1 + 1e-9)
    assert steady_sum([factor * part for part in parts], shares) == pytest.approx(factor * found, abs=1e-6)
    if len(parts) <= 4:  # each may have all of it
        assert found == pytest.approx(sum(parts))
    assert steady_sum(parts, usual_shares([])) == pytest.approx(sum(parts))
    assert usual_shares([[0.0] * len(parts)]).size == 0


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, shape, "BF16", 0, 2 * int(np.prod(shape)))


def test_groups_of_many_layers_have_first_and_last_apart() -> None:
    tensors = [tensor("token_embd.weight", 256, 1000), tensor("output.weight", 256, 1000)]
    tensors += [tensor(f"blk.{i}.ffn_down_exps.weight", 256, 256, 4) for i in range(24)]
    tensors += [tensor(f"blk.{i}.attn_q.weight", 256, 256) for i in (2, 9, 23)]
    groups = {group.name: group for group in make_groups(tensors)}
    assert list(groups) == [
        "token_embd",
        "output",
        "ffn_down_exps 0",
        "ffn_down_exps 1–6",
        "ffn_down_exps 7–11",
        "ffn_down_exps 12–16",
        "ffn_down_exps 17–22",
        "ffn_down_exps 23",
        "attn_q 2",
        "attn_q 9",
        "attn_q 23",
    ]
    assert groups["ffn_down_exps 1–6"].pattern == r"^blk\.(1|2|3|4|5|6)\.ffn_down_exps\.weight$"
    assert sum(len(group.tensors) for group in groups.values()) == len(tensors)
    assert {group.kind for group in groups.values()} == {"embedding", "experts", "attention"}
