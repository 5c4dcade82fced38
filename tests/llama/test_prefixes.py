"""The prefix tree of prompts agrees with its definition.

pytest tests/llama/test_prefixes.py
"""

from hypothesis import given
from hypothesis import strategies as st

from edge.llama.prefixes import branch_points, common_length, depth_held, distinct_tokens, reading_order

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=14)


def ordered(prompts: list[list[int]]) -> list[list[int]]:
    return [prompts[i] for i in reading_order(prompts)]


@given(PROMPTS)
def test_distinct_tokens_are_the_nodes_of_the_tree(prompts: list[list[int]]) -> None:
    nodes = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}
    assert distinct_tokens(prompts) == len(nodes)


@given(PROMPTS)
def test_the_order_finishes_each_branch_before_the_next(prompts: list[list[int]]) -> None:
    order = reading_order(prompts)
    assert sorted(order) == list(range(len(prompts)))
    for node in {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}:
        places = [k for k, i in enumerate(order) if tuple(prompts[i][: len(node)]) == node]
        assert places == list(range(places[0], places[-1] + 1))
        ends = [k for k in places if len(prompts[order[k]]) == len(node)]
        assert ends == places[: len(ends)]  # a prompt stands before those that extend it
        assert [order[k] for k in ends] == sorted(order[k] for k in ends)


@given(PROMPTS)
def test_of_two_branches_the_earlier_prompt_comes_first(prompts: list[list[int]]) -> None:
    roots = [prompts[i][0] for i in reading_order(prompts)]
    assert list(dict.fromkeys(roots)) == list(dict.fromkeys(prompt[0] for prompt in prompts))


@given(PROMPTS)
def test_branch_points_are_what_each_prompt_shares_with_the_others(prompts: list[list[int]]) -> None:
    prompts = ordered(prompts)
    for i, points in enumerate(branch_points(prompts)):
        others = prompts[:i] + prompts[i + 1 :]
        assert points == sorted({common_length(prompts[i], other) for other in others} - {0})


@given(PROMPTS)
def test_depth_held_is_the_most_that_later_prompts_go_on_from(prompts: list[list[int]]) -> None:
    prompts = ordered(prompts)
    needed = [
        {common_length(prompts[i], later) for later in prompts[i + 1 :]} - {0} for i in range(len(prompts))
    ]
    assert depth_held(prompts) == max(map(len, needed))


def test_an_empty_replay_has_an_empty_tree() -> None:
    assert reading_order([]) == [] == branch_points([])
    assert distinct_tokens([]) == depth_held([]) == 0
