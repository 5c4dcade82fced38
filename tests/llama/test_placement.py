"""Placement: the memory estimate agrees with llama.cpp's allocations, the choices follow the memory, and the options
that an error offers really fit.

.venv/bin/pytest tests/llama/test_placement.py
"""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from allocate import ALLOCATE
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.convert import convert
from edge.errors import ContextError, EdgeError
from edge.formats.gguf import read_metadata
from edge.llama.devices import Device
from edge.llama.loading import Loading
from edge.llama.memory import Shape, buffers, kv_bytes, read_shape, shape_of
from edge.llama.placement import Placement, place
from edge.system.machine import Memory

PLENTY = Memory(None, 10**12)


@pytest.fixture(scope="module")
def smol(smollm2_q4: Path) -> Shape:
    return read_shape(smollm2_q4)


@pytest.fixture(scope="module")
def tiny(tiny_q4: Path) -> Shape:
    return read_shape(tiny_q4)


def gpu(free: float, name: str = "CUDA0", kind: str = "GPU") -> Device:
    return Device(name, "a GPU", kind, int(free), 12 * 10**9)


# Cells, sequences, tokens at once, type of the cache, flash attention, whether each sequence has its own part.
CASES = [
    (1024, 2, 512, "f16", 0, 0),
    (4096, 9, 512, "f16", 0, 0),
    (8192, 17, 512, "f16", 0, 0),
    (8192, 9, 128, "f16", 0, 0),
    (8192, 17, 512, "f16", 1, 0),
    (24576, 9, 512, "f16", 1, 0),
    (1024, 2, 512, "q8_0", 1, 0),
    (8192, 40, 512, "q8_0", 1, 0),
    (8192, 9, 512, "q4_0", 1, 0),
    (32768, 4, 512, "f16", 0, 1),
    (4096, 2, 512, "f16", 0, 1),
    (24576, 3, 128, "f16", 0, 1),
    (32768, 8, 512, "q8_0", 1, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2_q4", "tiny_q4"])
def test_estimates_agree_with_what_llama_cpp_allocates(model: str, request: pytest.FixtureRequest) -> None:
    import llama_cpp

    kinds = {name: getattr(llama_cpp, f"GGML_TYPE_{name.upper()}") for name in ("f16", "q8_0", "q4_0")}
    path = request.getfixturevalue(model)
    cases = [
        f"{cells},{n},{batch},{kinds[kind]},{flash},{int(not apart)}"
        for cells, n, batch, kind, flash, apart in CASES
    ]
    # In a process of its own: the log callback is one for the whole library.
    command = [sys.executable, "-c", ALLOCATE, str(path), *cases]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shape = read_shape(path)
    assert len(lines) == len(CASES)
    for (cells, sequences, batch, kind, flash, apart), line in zip(CASES, lines, strict=True):
        kv_cache, state, compute, output = (float(number) * 2**20 for number in line.split())
        need = buffers(
            shape,
            cells,
            sequences=sequences,
            batch=batch,
            kv_type=kind,
            flash_attention=bool(flash),
            apart=bool(apart),
        )
        rounding = 2**20 / 100  # the log has two digits
        assert need.kv_cache == pytest.approx(kv_cache, abs=rounding)
        assert need.state == pytest.approx(state, abs=rounding)
        assert need.output == pytest.approx(output, abs=rounding)
        assert compute * 0.998 <= need.compute <= max(compute * 1.05, compute + 2.2e6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["qwen3", "qwen3moe", "qwen35moe", "gemma3", "gemma4-e2b", "gemma4-26b-a4b"]
)
def test_estimates_agree_for_other_families(family: str, tmp_path: Path) -> None:
    """`edge doctor` tells this sum: within 10 % of what llama.cpp allocates, the cache to the byte."""
    import make_random

    make_random.FAMILIES[family](tmp_path / "checkpoint")
    path = tmp_path / "model.gguf"
    convert(tmp_path / "checkpoint", quant="Q8_0", out=path, threads=1)
    cases = [(8192, 2, True), (32768, 9, True), (8192, 4, False)]
    words = [f"{cells},{n},512,1,0,{int(unified)}" for cells, n, unified in cases]
    command = [sys.executable, "-c", ALLOCATE, str(path), *words]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shape = read_shape(path)
    for (cells, sequences, unified), line in zip(cases, lines, strict=True):
        parts = [float(number) * 2**20 for number in line.split()]
        need = buffers(shape, cells, sequences=sequences, apart=not unified)
        assert need.kv_cache == pytest.approx(parts[0], abs=2**20 / 100)
        assert need.state == pytest.approx(parts[1], abs=2**20 / 100)
        assert need.total == pytest.approx(sum(parts), rel=0.1)


def test_a_machine_with_plenty(smol: Shape) -> None:
    plan = place(smol, [1000] * 19 + [4000], 128, memory=PLENTY, loading=Loading(threads=2))
    assert (plan.gpu_layers, plan.threads, plan.batch, plan.mmap) == (0, 2, 512, True)
    assert (plan.kv_type, plan.flash_attention) == ("f16", False)
    assert plan.parallel == 8
    assert 4000 + 1000 + 8 * 128 <= plan.cells < 4000 + 1000 + 8 * 128 + 256
    assert plan.cells % 256 == 0
    assert "\n" not in str(plan)
    assert str(plan).startswith(
        f"placement: CPU, 2 threads, 8 answers at a time, cache of {plan.cells:,} tokens (f16, "
    )
    assert str(plan).endswith(" of 1,000.0 GB free")
    assert place(smol, [500] * 3, 128, memory=PLENTY).parallel == 3  # no more answers than rows


def test_answers_that_have_their_part_of_the_cache_to_themselves(smol: Shape) -> None:
    plan = place(smol, None, 128, memory=PLENTY, apart=True, loading=Loading(context=1000, parallel=4))
    assert (plan.parallel, plan.sequences, plan.cells) == (4, 4, 4 * 1024)
    assert (
        place(smol, None, 128, memory=PLENTY, apart=True, loading=Loading(context=1000, parallel=1)).cells
        == 2 * 1024
    )


def test_what_is_named_stays(tiny: Shape) -> None:
    plan = place(
        tiny,
        [300, 200],
        100,
        memory=PLENTY,
        branches=7,
        loading=Loading(context=600, parallel=5, threads=3, batch=64, kv_type="q8_0", mmap=False),
    )
    assert (plan.parallel, plan.threads, plan.batch, plan.kv_type) == (5, 3, 64, "q8_0")
    assert plan.flash_attention  # a quantized cache needs it
    assert not plan.mmap and "no mmap" in str(plan)
    assert plan.cells == 768  # the context bounds the cache
    assert plan.sequences == 5 + 1 + 7
    on = place(tiny, [300], 100, memory=PLENTY, loading=Loading(flash_attention=True))
    assert on.flash_attention and "flash attention on" in str(on)


def test_where_nothing_is_known(tiny: Shape) -> None:
    plan = place(tiny, None, 1024, memory=Memory(None, None))
    assert plan.cells == 8192
    assert plan.parallel == 8
    assert "unknown memory" in str(plan)
    assert place(tiny, None, 1024, memory=PLENTY, loading=Loading(context=1000)).cells == 1024


def needed(plan: Placement) -> int:
    (use,) = plan.uses
    return use.needed


def test_less_memory_takes_less_and_keeps_its_order(smol: Shape) -> None:
    prompts = [1500, 2000, *[1000] * 20]

    def plan(available: float) -> Placement:
        return place(smol, prompts, 512, memory=Memory(None, int(available)))

    full = plan(10**12)
    plans = [plan(available) for available in range(10**9, 305 * 10**6, -5 * 10**6)]
    assert all(needed(small) <= needed(large) for large, small in pairwise(plans))
    wanted = 2000 + 8 * 512
    assert full.cells >= wanted + 1500 - 256
    # First the second prompt goes, then attention scores, then answers at once.
    order = [(p.cells >= wanted + 1000, not p.flash_attention, p.parallel) for p in plans]
    assert order[0] == (True, True, 8)
    without_room = [i for i, (room, *_) in enumerate(order) if not room]
    with_flash = [i for i, (_, off, _) in enumerate(order) if not off]
    fewer = [i for i, (*_, parallel) in enumerate(order) if parallel < 8]
    assert 0 < without_room[0] < with_flash[0] < fewer[0]
    for small in plans:
        assert small.cells >= 2000 + small.parallel * 512


def test_named_answers_at_once_share_a_smaller_cache(smol: Shape) -> None:
    free = Memory(None, 330 * 10**6)
    plan = place(smol, [2000] * 20, 512, memory=free, loading=Loading(parallel=16))
    assert plan.parallel == 16
    assert 2000 + 512 <= plan.cells < 2000 + 16 * 512


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    available=st.integers(110, 900),
    lengths=st.lists(st.integers(1, 8000), min_size=1, max_size=30),
    max_tokens=st.integers(1, 190),
    parallel=st.none() | st.integers(1, 64),
    flash=st.none() | st.booleans(),
    batch=st.none() | st.integers(1, 4096),
    known=st.booleans(),
)
def test_what_is_offered_fits(
    smol: Shape,
    available: int,
    lengths: list[int],
    max_tokens: int,
    parallel: int | None,
    flash: bool | None,
    batch: int | None,
    known: bool,
) -> None:
    named: dict[str, Any] = {"parallel": parallel, "flash_attention": flash, "batch": batch}
    memory = Memory(None, available * 10**6)
    prompts = lengths if known else None
    try:
        plan = place(smol, prompts, max_tokens, memory=memory, loading=Loading(**named))
    except ContextError as error:
        message = str(error)
    else:
        assert needed(plan) <= memory.available  # type: ignore[operator]
        return
    assert "\n" not in message and message.startswith(f"{smol.path}: needs ")
    offers = message.partition("What would fit: ")[2]
    if not offers:
        assert "Take a smaller quantization" in message
        # Indeed: nothing helps the shortest row in the smallest cache.
        with pytest.raises(ContextError):
            place(
                smol,
                [min(lengths)],
                max_tokens,
                memory=memory,
                loading=Loading(parallel=1, batch=64, kv_type="q4_0", context=min(lengths) + max_tokens),
            )
        return
    for offer in offers.split(" or "):
        changed, rows = dict(named), prompts
        for option, number in re.findall(r"--([a-z-]+)(?: (\w+))?", offer):
            if option == "skip-too-long":
                assert rows is not None
                rows = [n for n in rows if n + max_tokens <= changed["context"]]
                assert f"({len(rows)} of {len(lengths)} rows)" in offer
            elif option == "flash-attention":
                changed["flash_attention"] = True
            elif option == "kv-type":
                changed["kv_type"] = number
            else:
                changed[{"ctx": "context"}.get(option, option)] = int(number)
        assert changed != named
        place(smol, rows, max_tokens, memory=memory, loading=Loading(**changed))


def test_layers_follow_the_gpu(smol: Shape) -> None:
    host = Memory(None, 10**10)
    prompts = [1000] * 20
    whole = place(smol, prompts, 128, memory=host, devices=[gpu(8e9)])
    assert (whole.gpu_layers, whole.parallel, whole.flash_attention) == (-1, 16, True)
    assert whole.device == "CUDA0 (31 of 31 layers)"
    on_gpu, on_host = whole.uses
    weights = smol.output_weights + sum(smol.layer_weights)
    assert on_gpu.needed > weights + whole.kv_cache
    assert on_host.needed < 0.5 * smol.weights
    part = place(smol, prompts, 128, memory=host, devices=[gpu(2e8)])
    assert 0 < part.gpu_layers < 31
    assert part.uses[0].needed <= 0.9 * 2e8 < part.uses[0].needed + max(smol.layer_weights) + part.kv_cache
    none = place(smol, prompts, 128, memory=host, devices=[gpu(1e8)])
    assert (none.gpu_layers, none.device, none.parallel, none.flash_attention) == (0, "CPU", 8, False)
    assert (
        place(smol, prompts, 128, memory=host, devices=[gpu(8e9)], loading=Loading(gpu_layers=0)).device
        == "CPU"
    )
    with pytest.raises(ContextError, match=r"free on CUDA0.*What would fit: --gpu-layers 0"):
        place(smol, prompts, 128, memory=host, devices=[gpu(2e8)], loading=Loading(gpu_layers=-1))


def test_one_memory_for_both(smol: Shape) -> None:
    metal = place(smol, [1000], 128, memory=Memory(None, 10**9), devices=[gpu(8e8, "MTL0")])
    (use,) = metal.uses
    assert (metal.gpu_layers, use.where, use.free) == (-1, "MTL0", 8 * 10**8)
    assert use.needed > smol.weights
    small = place(
        smol, [1000], 128, memory=Memory(None, 10**9), devices=[gpu(8e8), gpu(8e9, "iGPU", "integrated GPU")]
    )
    assert small.device.startswith("CUDA0 (")  # llama.cpp leaves integrated ones alone beside others


def test_a_hybrid_pays_for_its_sequences(tiny: Shape) -> None:
    few, many = (place(tiny, [1000], 64, memory=PLENTY, branches=n) for n in (0, 50))
    states = 3 * 256 * 2 * 4  # three convolutions of width 256 that look back two tokens
    assert buffers(tiny, 1024, sequences=52).state - buffers(tiny, 1024, sequences=2).state == 50 * states
    assert needed(many) > needed(few)
    assert place(tiny, [1000], 64, memory=PLENTY, branches=1000).sequences == 256


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"kv_type": "q5_0"}, "q5_0 is not a type of the KV cache: choose one of f16, q8_0, q4_0"),
        ({"kv_type": "q8_0", "flash_attention": False}, "--kv-type q8_0 needs flash attention"),
        ({"parallel": 65}, "--parallel is 65; it must be from 1 to 64"),
        ({"parallel": 0}, "--parallel is 0"),
        ({"batch": 0}, "--batch is 0"),
        ({"context": 9000}, "has a context length of 8192 tokens, less than 9000"),
        ({"context": 500}, "a prompt of 1000 tokens and an answer of 128 do not fit into a context of 500"),
    ],
)
def test_what_no_memory_makes_right(smol: Shape, named: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgeError, match=re.escape(says)) as caught:
        place(smol, [1000], 128, memory=PLENTY, loading=Loading(**named))
    assert "\n" not in str(caught.value)


def test_a_quantized_cache_needs_whole_blocks(smol: Shape) -> None:
    odd = replace(smol, head_widths=(80, 80))
    with pytest.raises(EdgeError, match="whose width is a multiple of 32; these have 80 and 80: take f16"):
        place(odd, [1000], 128, memory=PLENTY, loading=Loading(kv_type="q8_0"))
    with pytest.raises(ContextError) as caught:
        place(odd, [4000], 128, memory=Memory(None, 270 * 10**6))
    assert "--kv-type" not in str(caught.value)
    assert [kv_bytes(64, 256, kind) for kind in ("f16", "q8_0", "q4_0")] == [32768, 17408, 9216]


def test_missing_metadata_are_an_error(smollm2_q4: Path) -> None:
    metadata = read_metadata(smollm2_q4)
    for missing in ("block_count", "embedding_length", "attention.head_count"):
        kept = {key: value for key, value in metadata.items() if key != f"llama.{missing}"}
        with pytest.raises(EdgeError, match=f"do not contain {re.escape(missing)}"):
            shape_of(kept, 49152)
    with pytest.raises(EdgeError, match="for 2 of 30 layers"):
        shape_of({**metadata, "llama.attention.head_count_kv": [3, 3]}, 49152)
