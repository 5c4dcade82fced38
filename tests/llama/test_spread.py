"""Several devices: which of them take layers, in which order, and how much of their memory can be used.

.venv/bin/pytest tests/llama/test_spread.py
"""

from dataclasses import replace
from pathlib import Path

import command_line
import pytest

from edge.errors import EdgeError
from edge.llama.devices import Device, offload_devices, usable_memory
from edge.llama.loading import Loading, Spread
from edge.llama.memory import read_shape
from edge.llama.placement import place
from edge.system.machine import Memory

GB = 10**9
CPU = Device("CPU", "a CPU", "CPU", 8 * GB, 8 * GB)
LOCAL = Device("CUDA0", "a GPU", "GPU", 4 * GB, 4 * GB)
FAR = Device("RPC0", "10.0.0.2:50052", "GPU", 12 * GB, 12 * GB)


def test_devices_of_servers_come_first_as_in_llama_cpp() -> None:
    assert offload_devices([CPU, LOCAL, FAR]) == [FAR, LOCAL]
    assert offload_devices([CPU]) == []


def test_split_mode_none_takes_the_main_device() -> None:
    found = [CPU, LOCAL, FAR]
    assert offload_devices(found, Spread(split_mode="none")) == [FAR]
    assert offload_devices(found, Spread(split_mode="none", main_gpu=1)) == [LOCAL]
    with pytest.raises(EdgeError, match="--main-gpu is 2"):
        offload_devices(found, Spread(split_mode="none", main_gpu=2))


def test_shares_limit_the_memory_that_can_be_used() -> None:
    """Shares 1,1 fill the small device first: 4 GB on each. Shares 3,1 use both whole."""
    gpus = [FAR, LOCAL]
    assert usable_memory(gpus) == 16 * GB
    assert usable_memory(gpus, Spread(tensor_split=(1, 1))) == 8 * GB
    assert usable_memory(gpus, Spread(tensor_split=(3, 1))) == 16 * GB
    assert usable_memory(gpus, Spread(tensor_split=(1,))) == 12 * GB
    assert usable_memory([replace(FAR, memory_total=0), LOCAL]) is None


def test_the_planner_uses_the_shares(tiny_q4: Path) -> None:
    shape = read_shape(tiny_q4)
    small = [replace(FAR, memory_free=4 * 10**6), replace(LOCAL, memory_free=40 * 10**6)]

    def layers(spread: Spread) -> int:
        loading = Loading(threads=1, parallel=1, spread=spread)
        placed = place(shape, [64], 64, memory=Memory(None, GB), devices=small, loading=loading)
        assert placed.loading.spread == spread
        return placed.gpu_layers

    assert layers(Spread()) == layers(Spread(tensor_split=(1, 10))) == -1
    assert 0 <= layers(Spread(tensor_split=(1, 1))) < 7
    assert layers(Spread(split_mode="none", main_gpu=1)) == -1
    assert layers(Spread(split_mode="none")) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tensor-split", "0,0"), "--tensor-split: must be shares such as 3,1"),
        (("--tensor-split", "a"), "must be shares such as 3,1, not a"),
        (("--tensor-split", "nan"), "must be shares such as 3,1"),
        (("--main-gpu", "-1"), "--main-gpu"),
        (("--split-mode", "half"), "--split-mode"),
        (("--rpc", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("--rpc", "a:99999"), "is not HOST:PORT"),
    ],
)
def test_a_wrong_value_is_one_line(tiny_q4: Path, words: tuple[str, ...], text: str) -> None:
    done = command_line.run("run", "--model", tiny_q4, *words, "Show the date.")
    assert done.returncode == 2
    assert text in done.stderr and "Traceback" not in done.stderr
