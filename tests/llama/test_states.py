"""States on disk: what one process read, another one need not, and no bit of an answer changes.

pytest tests/llama/test_states.py
"""

import random
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Loading, States
from edge.llama.states import states_folder, stored_files

pytestmark = pytest.mark.slow

Read = list[np.ndarray]


@pytest.fixture(params=["tiny_q4", "smollm2_q4"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


def tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(20, 400) for _ in range(count)]


def script(*parts: Sequence[int]) -> Writer[Read]:
    """Writes these tokens for any logits; returns the logits after the prompt and after each part."""
    read = [(yield []).copy()]
    for part in parts:
        read.append((yield list(part)).copy())
    return read


def ask(
    path: Path,
    prompt: list[int],
    stored: Sequence[int] = (),
    *,
    loading: Loading | None = None,
    cells: int = 0,
) -> tuple[Read, int]:
    """The logits of a new engine, and how many tokens it restored."""
    engine = Engine(path, loading or Loading(threads=1, batch=64, states=States()))
    engine.reserve(max(cells, len(prompt) + 8), 2)
    cuts = [length for length in stored if length < len(prompt)]
    job = Job(prompt, script([30, 31], [32]), 3, cuts, stored=stored)
    [(_, read)] = engine.run([job])
    restored = len(prompt) - engine.prompt_tokens_decoded
    engine.close()
    return read, restored


def same(a: Read, b: Read) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def cold(path: Path, prompt: list[int], stored: Sequence[int] = ()) -> Read:
    read, restored = ask(path, prompt, stored, loading=Loading(threads=1, batch=64))
    assert restored == 0
    return read


def test_a_restored_beginning_changes_no_bit(path: Path) -> None:
    """Another task after the same instructions, with another size of the cache."""
    instructions = tokens(150, 1)
    first, second = instructions + tokens(70, 2), instructions + tokens(90, 3)
    read, restored = ask(path, first, [150])
    assert restored == 0 and same(read, cold(path, first, [150]))
    [file] = stored_files(states_folder())
    assert file.head["kind"] == "instructions" and list(file.tokens) == instructions
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    read, restored = ask(path, second, [150], cells=1000)
    assert restored == 150 and same(read, cold(path, second, [150]))
