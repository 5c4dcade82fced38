"""Sequences that branch, share batches, and come and go change no answer, and no token is read twice.

pytest tests/llama/test_engine.py
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scripted import Read, greedy, script

from edge.errors import ContextError, EdgeError
from edge.llama import library
from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Loading
from edge.llama.prefixes import branch_points, distinct_tokens, reading_order

pytestmark = pytest.mark.slow

CELLS, SEQUENCES = 1536, 12


@pytest.fixture(scope="module", params=["tiny_q4", "smollm2_q4"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def engine(path: Path):
    engine = Engine(path, Loading(threads=1))
    engine.reserve(CELLS, SEQUENCES)
    yield engine
    engine.close()


def ask(engine: Engine, prompt: Sequence[int], *parts: Sequence[int], owner: object = None) -> Read:
    return next(engine.run([Job(prompt, script(*parts), sum(map(len, parts)))], owner=owner))[1]


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal except for rounding: other batch sizes use other kernels. A wrong position or state differs much more."""
    return float(np.corrcoef(a, b)[0, 1]) > 0.998


def random_tree(seed: int) -> list[list[int]]:
    """Prompts of several tasks: common instructions, steps that extend each other, forks, a prompt twice."""
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(20, 400) for _ in range(count)]

    prompts = []
    instructions = tokens(60)
    for _ in range(3):
        prompt = instructions + tokens(40)
        for _ in range(3):
            prompts.append(prompt)
            if rng.random() < 0.4:
                prompts.append(prompt + tokens(rng.randrange(1, 30)))
            prompt = prompt + tokens(rng.randrange(1, 60))
    prompts.append(prompts[2])
    prompts.append(prompts[4][:-1] + tokens(1))
    rng.shuffle(prompts)
    return [prompts[i] for i in reading_order(prompts)]


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_reads_each_token_once_and_answers_as_an_empty_cache_does(path: Path, seed: int) -> None:
    """Exact mode: the logits are equal to the last bit."""
    prompts = random_tree(seed)
    cuts = branch_points(prompts)
    engine = Engine(path, Loading(threads=1))
    engine.reserve(CELLS, SEQUENCES)
    jobs = [
        Job(prompt, script([30], [31, 32]), 3, points) for prompt, points in zip(prompts, cuts, strict=True)
    ]
    read = dict(engine.run(jobs))
    assert engine.prompt_tokens_decoded == distinct_tokens(prompts)
    assert engine.answer_tokens_decoded == 3 * len(prompts)
    engine.close()
    for i in random.Random(seed).sample(range(len(prompts)), 4):
        alone = Engine(path, Loading(threads=1))
        alone.reserve(len(prompts[i]) + 3, 2)
        [(_, fresh)] = alone.run([Job(prompts[i], script([30], [31, 32]), 3, cuts[i])])
        alone.close()
        assert all(np.array_equal(a, b) for a, b in zip(read[i], fresh, strict=True))


def test_going_on_after_an_interruption_gives_the_same_bits(path: Path) -> None:
    """Finished rows are not read again; where reading stops depends on all rows."""
    prompts = random_tree(7)
    cuts = branch_points(prompts)

    def answers(indices: list[int]) -> dict[int, Read]:
        engine = Engine(path, Loading(threads=1))
        engine.reserve(CELLS, SEQUENCES)
        jobs = [Job(prompts[i], script([30, 31], [40]), 3, cuts[i]) for i in indices]
        found = {indices[k]: read for k, read in engine.run(jobs)}
        engine.close()
        return found

    whole = answers(list(range(len(prompts))))
    rest = answers([i for i in range(len(prompts)) if i % 3])
    for i, read in rest.items():
        assert all(np.array_equal(a, b) for a, b in zip(read, whole[i], strict=True))


@pytest.mark.parametrize("parallel", [2, 5])
def test_answers_written_together_are_alike_and_read_once(engine: Engine, parallel: int) -> None:
    prompts = random_tree(11)
    cuts = branch_points(prompts)
    parts = [[[50 + i], [60, 61 + i], [70]][: 1 + i % 3] for i in range(len(prompts))]
    jobs = [Job(p, script(*w), 5, c) for p, w, c in zip(prompts, parts, cuts, strict=True)]
    read = dict(engine.run(jobs, parallel))
    assert len(read) == len(prompts)
    assert engine.prompt_tokens_decoded == distinct_tokens(prompts)
    for i in range(0, len(prompts), 3):
        fresh = ask(engine, prompts[i], *parts[i])
        assert all(alike(a, b) for a, b in zip(read[i], fresh, strict=True))


@pytest.mark.parametrize(
    ("cells", "sequences", "parallel"), [(512, 3, 2), (512, 12, 8), (1536, 2, 1), (1536, 4, 3)]
)
def test_little_room_costs_reading_and_no_answer(
    path: Path, cells: int, sequences: int, parallel: int
) -> None:
    prompts = random_tree(5)
    engine = Engine(path, Loading(threads=1))
    engine.reserve(cells, sequences)
    jobs = [
        Job(prompt, script([30]), 40, points)
        for prompt, points in zip(prompts, branch_points(prompts), strict=True)
    ]
    read = dict(engine.run(jobs, parallel))
    least, most = distinct_tokens(prompts), sum(map(len, prompts))
    assert least <= engine.prompt_tokens_decoded < (least + most) / 2
    for i in range(0, len(prompts), 4):
        assert alike(read[i][1], ask(engine, prompts[i], [30])[1])
    engine.close()


def test_a_finished_answer_is_replaced_at_once(engine: Engine) -> None:
    """Two at a time: while the first is written, the others come and go beside it."""
    prompt = list(range(30, 80))
    lengths = [40, 3, 3, 3, 3]
    jobs = [Job([*prompt, 90 + i], greedy(n), n) for i, n in enumerate(lengths)]
    order = [index for index, _ in engine.run(jobs, 2)]
    assert order == [1, 2, 3, 4, 0]


def test_a_longer_prompt_reads_only_what_is_new(engine: Engine) -> None:
    tokens = [20 + i % 300 for i in range(600)]
    ask(engine, tokens[:400])
    assert engine.prompt_tokens_decoded == 400
    ask(engine, tokens)
    assert engine.prompt_tokens_decoded == 600
    ask(engine, tokens)
    assert engine.prompt_tokens_decoded == 600


def test_a_prompt_goes_on_from_an_answer_or_from_before_it(engine: Engine) -> None:
    """A conversation: the next prompt contains the answer, or omits it as chat templates omit thoughts."""
    prompt = [20 + (i * 3) % 307 for i in range(300)]
    ask(engine, prompt, [40, 41], [42], owner="talk")
    before = engine.prompt_tokens_decoded
    on = ask(engine, [*prompt, 40, 41, 42, 50, 51], owner="talk")[0]
    assert engine.prompt_tokens_decoded == before + 2
    without = ask(engine, [*prompt, 60, 61], owner="talk")[0]
    assert engine.prompt_tokens_decoded == before + 4
    engine.forget("talk")
    assert alike(on, ask(engine, [*prompt, 40, 41, 42, 50, 51])[0])
    assert alike(without, ask(engine, [*prompt, 60, 61])[0])


def test_conversations_take_turns(engine: Engine) -> None:
    first, second = list(range(20, 220)), list(range(220, 420))
    ask(engine, first, [7], owner="a")
    ask(engine, second, [7], owner="b")
    before = engine.prompt_tokens_decoded
    ask(engine, [*first, 7, 8], owner="a")
    ask(engine, [*second, 7, 8, 9], owner="b")
    assert engine.prompt_tokens_decoded == before + 3


def test_a_larger_cache_takes_along_what_was_held(path: Path) -> None:
    engine = Engine(path, Loading(threads=1))
    engine.reserve(512, 4)
    prompt = [20 + (i * 5) % 311 for i in range(400)]
    ask(engine, prompt, [33], owner="talk")
    engine.reserve(2048, 4)
    on = ask(engine, [*prompt, 33, 34], owner="talk")[0]
    assert engine.prompt_tokens_decoded == 401
    engine.forget("talk")
    assert alike(on, ask(engine, [*prompt, 33, 34])[0])
    assert engine.prompt_tokens_decoded == 803
    engine.close()


def test_writing_together_or_one_by_one_is_the_same_answer(engine: Engine) -> None:
    prompt = list(range(50, 90))
    together = ask(engine, prompt, [60, 61, 62, 63])[-1]
    assert alike(together, ask(engine, prompt, [60], [61], [62], [63])[-1])
    assert not alike(together, ask(engine, prompt, [60, 61, 62, 99])[-1])


def test_an_interrupted_run_leaves_nothing_behind(engine: Engine) -> None:
    """If the consumer stops or a writer fails, all sequences are free again."""
    prompts = random_tree(3)
    fresh = ask(engine, prompts[0], [30])

    def failing() -> Writer[Read]:
        yield []
        raise RuntimeError("the writer failed")

    for _ in range(SEQUENCES + 1):  # one sequence lost in each round would leave none
        answers = engine.run([Job(prompt, script([30]), 3) for prompt in prompts], 4)
        next(answers)
        answers.close()
        with pytest.raises(RuntimeError, match="the writer failed"):
            list(engine.run([Job(prompts[1], script([30]), 3), Job(prompts[2], failing(), 3)], 2))
    assert alike(ask(engine, prompts[0], [30])[1], fresh[1])


def test_a_run_can_be_ended_before_each_batch(engine: Engine) -> None:
    prompt = list(range(20, 200))
    fresh = ask(engine, prompt, [30], [31], [32])
    batches = 0

    def end() -> None:
        nonlocal batches
        batches += 1
        if batches == most:
            raise TimeoutError

    for most in range(1, 5):  # in the middle of the prompt, and of the answer
        engine.before_batch, batches = end, 0
        try:
            with pytest.raises(TimeoutError):
                ask(engine, [most, *prompt], [30], [31], [32])
        finally:
            engine.before_batch = None
        assert batches == most
        assert alike(ask(engine, prompt, [30], [31], [32])[-1], fresh[-1])


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(engine: Engine) -> None:
    for prompt, room in ((list(range(20, 20 + engine.cells + 1)), 0), ([20], engine.cells), ([], 3)):
        with pytest.raises(ContextError):
            list(engine.run([Job(prompt, greedy(1), room)]))
    prompt = [20 + i % 300 for i in range(engine.cells - 5)]
    assert len(next(engine.run([Job(prompt, greedy(5), 5)]))[1]) == 5
    with pytest.raises(ContextError, match="outgrew"):
        list(engine.run([Job(prompt, greedy(40), 5)]))  # writes more than it said
    assert np.isfinite(ask(engine, [20, 21])[0]).all()


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantized_cache_answers_alike(path: Path, engine: Engine, kv_type: str) -> None:
    small = Engine(path, Loading(threads=1, kv_type=kv_type))
    small.reserve(CELLS, SEQUENCES)
    assert small.flash_attention and not engine.flash_attention
    prompt = list(range(50, 250))
    a, b = ask(small, prompt, [30])[1], ask(engine, prompt, [30])[1]
    small.close()
    assert not np.array_equal(a, b)
    assert float(np.corrcoef(a, b)[0, 1]) > (0.99 if kv_type == "q8_0" else 0.8)


def test_bad_settings_and_a_closed_engine_are_refused(tiny_bf16: Path) -> None:
    with pytest.raises(EdgeError, match="513 threads"):
        Engine(tiny_bf16, Loading(threads=513))
    with pytest.raises(EdgeError, match="q5_0"):
        Engine(tiny_bf16, Loading(kv_type="q5_0"))
    with pytest.raises(EdgeError, match="flash attention"):
        Engine(tiny_bf16, Loading(kv_type="q8_0", flash_attention=False))
    with pytest.raises(EdgeError, match="batch"):
        Engine(tiny_bf16, Loading(batch=0))
    engine = Engine(tiny_bf16, Loading(threads=1))
    engine.close()
    engine.close()
    for call in (lambda: engine.reserve(10, 2), lambda: ask(engine, [20])):
        with pytest.raises(EdgeError, match="closed"):
            call()
    library.forget_errors()
