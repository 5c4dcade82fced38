"""Fewer threads on a busy machine: how the number follows the load, and that answers stay the same."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import Runner, task_messages
from edge.llama.crowding import BUSY, LONGEST_PAUSE, WINDOW, Pace, free_cores
from edge.llama.reader import Reader

TASK = "Make a folder with the name a."
BUSY_LOOP = "import os\nos.sched_setaffinity(0, {%d})\nprint(flush=True)\nwhile True: pass"


def run_pace(pace: Pace, free: int, seconds: float, begin: float) -> float:
    """Batches of 10 ms where `free` threads get a core: with more of them, all wait. Returns the time at the end."""
    now = begin
    while now < begin + seconds:
        now += 0.01
        share = 1.0 if pace.count <= free else 0.3
        pace.add(0.01, 0.01 * pace.count * share, now)
    return now


@given(most=st.integers(2, 32), data=st.data())
def test_the_number_of_threads_follows_the_free_cores(most: int, data: st.DataObject) -> None:
    cores = data.draw(st.integers(1, most))
    pace = Pace(most, most, 0.0, free=lambda own: cores)
    now = run_pace(pace, cores, 60, 0.0)
    assert pace.count == cores
    cores = most
    now = run_pace(pace, cores, 60, now)
    assert pace.count == most
    cores = 1
    run_pace(pace, cores, 60, now)
    assert pace.count == 1


def test_failed_tries_become_rare() -> None:
    """Where the system's count of what runs is wrong, as in some containers."""
    pace, now, slow = Pace(2, 2, 0.0, free=lambda own: 64), 0.0, 0
    while now < 600:
        slow += pace.count == 2
        now = run_pace(pace, 1, WINDOW, now)
    assert 0.5 * 600 / LONGEST_PAUSE < slow < 0.01 * 600 / WINDOW


def test_an_idle_machine_keeps_all_threads() -> None:
    pace = Pace(8, 8, 0.0)
    for number in range(10_000):
        pace.add(0.01, 0.01 * 8 * (BUSY + 0.01), number / 100)
        assert pace.count == 8


def test_the_system_counts_what_runs() -> None:
    if sys.platform != "linux":
        assert free_cores() == os.cpu_count()
    else:
        assert free_cores() <= (os.cpu_count() or 1) and free_cores(10_000) == os.cpu_count()


@pytest.fixture
def two_busy_cores() -> Iterator[None]:
    """This process may use two cores, and three other programs compute on each of them."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores and Linux")
    allowed = os.sched_getaffinity(0)
    two = sorted(allowed)[:2]
    others = [
        subprocess.Popen([sys.executable, "-c", BUSY_LOOP % core], stdout=subprocess.PIPE) for core in two * 3
    ]
    os.sched_setaffinity(0, two)
    try:
        for other in others:
            assert other.stdout is not None and other.stdout.read(1)
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.communicate()


@pytest.mark.usefixtures("two_busy_cores")
def test_answers_on_a_busy_machine_are_the_same(tiny_q4: Path) -> None:
    with Runner.load(tiny_q4, threads=1) as runner:
        wanted = runner.act(task_messages(TASK)).text
    with Runner.load(tiny_q4, threads=2) as runner:
        end = time.monotonic() + 60
        while True:
            assert runner.act(task_messages(TASK)).text == wanted
            workers = runner.engine.workers
            if workers.single.count == workers.several.count == 1:
                break
            assert time.monotonic() < end, "edge kept two threads on two busy cores"


def test_logits_do_not_depend_on_the_number_of_threads(
    tiny_bf16: Path, tiny_q4: Path, smollm2_q4: Path
) -> None:
    for path in (tiny_bf16, tiny_q4, smollm2_q4):
        found = []
        for threads in (1, 2, 3):
            with Reader(path, cells=256, sequences=1, threads=threads, batch=64) as reader:
                reader.decode(list(range(5, 45)), 0, 0, [False] * 39 + [True])
                logits = [reader.logits(39).copy()]
                for position in range(40, 44):
                    reader.decode([position], position, 0, [True])
                    logits.append(reader.logits(0).copy())
                found.append(np.stack(logits))
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2]), path
