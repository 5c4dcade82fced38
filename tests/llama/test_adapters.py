"""Adapters in both engines: what was read with one is never used for another, and each request gets its own answer.

pytest tests/llama/test_adapters.py
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from make_adapter import make_adapter
from scripted import greedy

from edge.convert import convert, convert_adapter
from edge.errors import EdgeError, ModelFileError
from edge.formats.adapter import read_adapter
from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Adapter, Loading, parse_adapters
from edge.llama.memory import buffers, read_shape
from edge.llama.placement import place
from edge.llama.serving import Request, ServingEngine
from edge.system.machine import Memory

pytestmark = pytest.mark.slow
PROMPT = [(7 * i) % 900 + 20 for i in range(60)]
Written = list[int]


@pytest.fixture(scope="module", params=["random_llama_folder", "random_small_moe_folder"])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Adapter]]:
    """A transformer and a hybrid in F32, each with three adapters that change the answers."""
    folder = request.getfixturevalue(request.param)
    place = tmp_path_factory.mktemp("adapters")
    base = convert(folder, quant="F32", out=place / "base.gguf", threads=1).path
    adapters = []
    for seed in range(3):
        made = make_adapter(folder, place / f"ad{seed}", seed=seed, size=1.5)
        adapters.append(Adapter(convert_adapter(made, folder, out=place / f"ad{seed}.gguf").path))
    return base, adapters


def alone(base: Path, adapter: Adapter | None, prompt: Sequence[int], count: int) -> Written:
    """The answer of an engine that knows only this adapter."""
    engine = Engine(base, Loading(gpu_layers=0, threads=1, adapters=() if adapter is None else (adapter,)))
    try:
        engine.reserve(len(prompt) + count, 2)
        return next(engine.run([Job(prompt, greedy(count), count)]))[1]
    finally:
        engine.close()


def served(engine: ServingEngine, requests: Sequence[Request[Written]], parallel: int) -> dict[int, Written]:
    """The answers, by the index of the request. All requests wait from the start."""
    waiting = list(requests)
    answers = engine.serve(lambda wait: waiting.pop(0) if waiting else None, parallel)
    return {requests.index(request): answer for request, answer in answers}


def serving(base: Path, adapters: Sequence[Adapter]) -> ServingEngine:
    engine = ServingEngine(base, Loading(gpu_layers=0, threads=1, adapters=tuple(adapters)))
    engine.reserve(4 * 256, 4)
    return engine


@pytest.fixture
def engine(files: tuple[Path, list[Adapter]]) -> Iterator[ServingEngine]:
    made = serving(*files)
    yield made
    made.close()


@pytest.mark.parametrize("parallel", [1, 4])
def test_each_request_gets_the_answer_of_its_adapter(
    parallel: int, files: tuple[Path, list[Adapter]], engine: ServingEngine
) -> None:
    """The same prompt for the base and three adapters, twice, in one line and at the same time."""
    base, adapters = files
    wanted = {adapter: alone(base, adapter, PROMPT, 24) for adapter in (None, *adapters)}
    assert len({tuple(answer) for answer in wanted.values()}) == 4, "the adapters change nothing"
    order = [None, *adapters, *reversed(adapters), None]
    requests = [Request(PROMPT, greedy(24), 24, adapter=adapter) for adapter in order]
    for index, answer in served(engine, requests, parallel).items():
        assert answer == wanted[order[index]]


def test_what_was_read_is_kept_for_its_adapter_alone(
    files: tuple[Path, list[Adapter]], engine: ServingEngine
) -> None:
    """A prompt is read once for each adapter; a longer one continues from its own adapter's state."""
    base, adapters = files
    longer = [*PROMPT, *range(30, 60)]
    for adapter in (adapters[0], adapters[1], None):
        before = engine.prompt_tokens_decoded
        served(engine, [Request(PROMPT, greedy(4), 4, adapter=adapter)], 1)
        assert engine.prompt_tokens_decoded - before == len(PROMPT)
    for adapter in (None, adapters[1], adapters[0]):
        before = engine.prompt_tokens_decoded
        [answer] = served(engine, [Request(longer, greedy(8), 8, adapter=adapter)], 1).values()
        assert engine.prompt_tokens_decoded - before <= len(longer) - len(PROMPT)
        assert answer == alone(base, adapter, longer, 8)
    before = engine.prompt_tokens_decoded
    served(engine, [Request(PROMPT, greedy(4), 4, adapter=adapters[2])], 1)
    assert engine.prompt_tokens_decoded - before == len(PROMPT)


def test_adapters_take_turns(files: tuple[Path, list[Adapter]], engine: ServingEngine) -> None:
    """No adapter waits until another one has finished, and none gets more turns than the others."""
    _, adapters = files
    log: list[str] = []
    order = [None, *adapters]
    requests = [
        Request(PROMPT[:20], greedy(48, log, str(i)), 48, adapter=adapter) for i, adapter in enumerate(order)
    ]
    served(engine, requests, 4)
    assert sorted(log) == sorted("0123" * 48)
    middle = log[60:120]  # all four are being written
    assert all(middle.count(name) >= 8 for name in "0123")


def test_a_client_that_goes_away_disturbs_no_other_adapter(
    files: tuple[Path, list[Adapter]], engine: ServingEngine
) -> None:
    base, adapters = files
    gone = threading.Event()

    def leaves() -> Writer[Written]:
        logits = yield []
        for _ in range(5):
            logits = yield [int(logits.argmax())]
        gone.set()
        while True:
            logits = yield [int(logits.argmax())]

    requests = [
        Request(PROMPT, leaves(), 100, cancelled=gone, adapter=adapters[0]),
        Request(PROMPT, greedy(16), 16, adapter=adapters[1]),
        Request(PROMPT, greedy(16), 16, adapter=adapters[0]),
    ]
    answers = served(engine, requests, 2)
    assert answers == {
        1: alone(base, adapters[1], PROMPT, 16),
        2: alone(base, adapters[0], PROMPT, 16),
    }


def test_a_larger_cache_has_the_same_adapters(files: tuple[Path, list[Adapter]]) -> None:
    base, adapters = files
    wanted = alone(base, adapters[0], PROMPT, 12)
    engine = Engine(base, Loading(gpu_layers=0, threads=1, adapters=(adapters[0],)))
    owner = object()
    engine.reserve(256, 2)
    first = next(engine.run([Job(PROMPT, greedy(12), 12)], owner=owner))[1]
    engine.reserve(1024, 4)
    longer = [*PROMPT, *first, 40, 41]
    second = next(engine.run([Job(longer, greedy(12), 12)], owner=owner))[1]
    engine.close()
    assert first == wanted
    assert second == alone(base, adapters[0], longer, 12)


def test_memory_counts_the_adapters(files: tuple[Path, list[Adapter]]) -> None:
    base, adapters = files
    plain, shape = read_shape(base), read_shape(base, [adapter.path for adapter in adapters])
    n_bytes = sum(tensor.n_bytes for adapter in adapters for tensor in read_adapter(adapter.path).tensors)
    assert shape.weights - plain.weights == n_bytes > 0
    assert sum(shape.layer_weights) - sum(plain.layer_weights) == n_bytes
    assert buffers(shape, 512).total >= buffers(plain, 512).total
    assert shape.adapter_width > 0
    free = Memory(total=1 << 34, available=1 << 33)
    without = place(base, None, 64, memory=free)
    loading = Loading(adapters=tuple(adapters))
    within = place(base, None, 64, memory=free, loading=loading)
    assert within.uses[0].needed - without.uses[0].needed >= n_bytes
    assert within.loading.adapters == loading.adapters


def test_an_adapter_of_another_model_is_refused_before_the_model_is_loaded(
    files: tuple[Path, list[Adapter]], tiny_q4: Path
) -> None:
    _, adapters = files
    with pytest.raises(ModelFileError, match="give its own base with --model"):
        Engine(tiny_q4, Loading(adapters=(adapters[0],)))


def test_at_most_four_add_up(files: tuple[Path, list[Adapter]], tmp_path: Path) -> None:
    """llama.cpp stops the process if a graph has too many nodes. A server has one of them at a time."""
    base, adapters = files
    many = [Adapter(tmp_path / f"{i}.gguf", 0.1) for i in range(9)]
    for adapter in many:
        adapter.path.write_bytes(adapters[0].path.read_bytes())
    engine = Engine(base, Loading(gpu_layers=0, threads=1, adapters=tuple(many[:4])))
    engine.reserve(256, 2)
    assert len(next(engine.run([Job(PROMPT, greedy(3), 3)]))[1]) == 3
    engine.close()
    with pytest.raises(EdgeError, match="5 adapters: at most 4 can be added to a model at the same time"):
        Engine(base, Loading(adapters=tuple(many[:5])))
    server = serving(base, many)
    requests = [Request(PROMPT, greedy(3), 3, adapter=adapter) for adapter in many]
    assert len({tuple(answer) for answer in served(server, requests, 4).values()}) == 1
    server.close()


def test_damage_is_found_by_the_checksums(files: tuple[Path, list[Adapter]], tmp_path: Path) -> None:
    base, adapters = files
    data = bytearray(adapters[0].path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "flipped.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"flipped.gguf: damaged: .* \(CRC-32\)"):
        Engine(base, Loading(adapters=(Adapter(tmp_path / "flipped.gguf"),)))


def test_the_text_of_an_option(files: tuple[Path, list[Adapter]], tmp_path: Path) -> None:
    path = files[1][0].path
    assert parse_adapters([str(path)]) == (Adapter(path, 1.0),)
    assert parse_adapters([f"{path}:0.5"]) == (Adapter(path, 0.5),)
    assert parse_adapters([f"{path}:-2"]) == (Adapter(path, -2.0),)
    colon = tmp_path / "a:0.5"  # the name of a file wins
    colon.write_bytes(path.read_bytes())
    assert parse_adapters([str(colon)]) == (Adapter(colon, 1.0),)
    assert parse_adapters([f"{colon}:3"]) == (Adapter(colon, 3.0),)
    assert [str(adapter) for adapter in parse_adapters([f"{path}:0.5", str(colon)])] == [
        f"{path}:0.5",
        str(colon),
    ]
    for wrong, problem in (
        (f"{path}:x", "the scale 'x' is not a number"),
        (f"{path}:", "the scale '' is not a number"),
        (f"{path}:nan", "the scale nan is not a number from -1000 to 1000"),
        (f"{path}:1e9", "the scale 1e.09 is not a number from -1000 to 1000"),
    ):
        with pytest.raises(EdgeError, match=problem):
            parse_adapters([wrong])
    with pytest.raises(EdgeError, match="is named twice"):
        parse_adapters([str(path), f"{path}:0.5"])
    with pytest.raises(EdgeError, match="is not a number from"):
        Adapter(path, float("inf"))


def test_scales_change_the_logits_in_proportion(files: tuple[Path, list[Adapter]]) -> None:
    """A small scale changes little, twice the scale about twice as much."""
    base, adapters = files

    def logits(scale: float) -> np.ndarray:
        engine = Engine(base, Loading(gpu_layers=0, threads=1, adapters=(Adapter(adapters[0].path, scale),)))

        def first() -> Writer[np.ndarray]:
            return (yield []).copy()

        engine.reserve(64, 2)
        [(_, found)] = engine.run([Job(PROMPT[:3], first(), 1)])
        engine.close()
        return found

    zero, one, two = logits(0), logits(0.001), logits(0.002)
    ratio = float(np.linalg.norm(two - zero) / np.linalg.norm(one - zero))
    assert 1.8 < ratio < 2.2
