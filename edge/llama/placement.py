"""Choose where a model goes: layers on GPUs, the size of the KV cache, the number of answers at the same time.

`place` chooses from the free memory and the lengths of the prompts. It changes nothing that the caller names. It does
not call llama.cpp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edge.errors import ContextError, EdgeError
from edge.formats.gguf import ModelFile
from edge.llama.devices import Device, offload_devices, usable_memory
from edge.llama.loading import DEFAULT_LOADING, ONE_DEVICE, Adapter, Loading, Spread
from edge.llama.memory import (
    BATCH,
    CELLS_STEP,
    KV_BLOCKS,
    MAX_SEQUENCES,
    Buffers,
    Shape,
    buffers,
    kv_bytes,
    padded,
    read_shape,
    with_adapters,
)
from edge.system.machine import Memory, physical_cores
from edge.system.text import counted, size

Lever = tuple[str, Callable[[Loading], Loading]]
"""An option that needs less memory, as text and as a change."""

DEFAULT_CONTEXT = 8192  # if no lengths are known
_CPU_PARALLEL, _GPU_PARALLEL, _MAX_PARALLEL = 8, 16, 64
_SMALL_BATCH = 64  # offered if memory is short
_USABLE = 0.9  # share of the free memory that is used; the rest is for the system and for edge itself


@dataclass(frozen=True)
class Use:
    """Bytes that a placement needs in one memory, and how many are free there (None: unknown)."""

    where: str
    needed: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.needed <= _USABLE * self.free


@dataclass(frozen=True)
class Placement:
    """How a model is loaded and run.

    - gpu_layers: layers on the GPUs, the output head counted as the last one; -1: all, 0: none
    - cells: tokens that all sequences together can hold (llama.cpp's n_ctx)
    - parallel: answers written at the same time
    - sequences: those of the answers, of the prompt that is read, and of the states held beside them
    - batch: tokens decoded in one batch (n_batch and n_ubatch)
    - kv_type: number type of the KV cache, a key of KV_BLOCKS
    - kv_cache: bytes of the KV cache
    """

    gpu_layers: int
    threads: int
    cells: int
    parallel: int
    sequences: int
    batch: int
    kv_type: str
    flash_attention: bool
    mmap: bool
    kv_cache: int
    device: str
    uses: tuple[Use, ...]
    adapters: tuple[Adapter, ...] = ()
    spread: Spread = ONE_DEVICE

    @property
    def loading(self) -> Loading:
        """The options that load the model with this placement."""
        return Loading(
            gpu_layers=self.gpu_layers,
            threads=self.threads,
            parallel=self.parallel,
            batch=self.batch,
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
            mmap=self.mmap,
            adapters=self.adapters,
            spread=self.spread,
        )

    def __str__(self) -> str:
        answers = counted(self.parallel, "answer")
        memory = ", ".join(
            f"{size(use.needed)} of {'unknown memory' if use.free is None else size(use.free) + ' free'}"
            + (f" on {use.where}" if len(self.uses) > 1 or use.where != "CPU" else "")
            for use in self.uses
        )
        return (
            f"placement: {self.device}, {counted(self.threads, 'thread')}, {answers} at a time, "
            f"cache of {self.cells:,} tokens ({self.kv_type}, {size(self.kv_cache)}), batch {self.batch}, "
            f"flash attention {'on' if self.flash_attention else 'off'}, {'' if self.mmap else 'no mmap, '}{memory}"
        )


@dataclass(frozen=True)
class _Wish:
    """The arguments of `place`; what is None in `loading` may be chosen."""

    prompts: tuple[int, ...] | None  # lengths, ascending
    max_tokens: int
    loading: Loading
    branches: int
    apart: bool

    @property
    def threads(self) -> int:
        return self.loading.threads or physical_cores()

    @property
    def batch(self) -> int:
        return BATCH if self.loading.batch is None else self.loading.batch

    def but(self, loading: Loading) -> "_Wish":
        """The same with other options."""
        return replace(self, loading=loading)


def place(
    model: ModelFile | Path | Shape,
    prompts: Sequence[int] | None,
    max_tokens: int,
    *,
    memory: Memory,
    devices: Sequence[Device] = (),
    loading: Loading = DEFAULT_LOADING,
    branches: int = 0,
    apart: bool = False,
) -> Placement:
    """Choose what is None in `loading`; what it names stays.

    `prompts`: their lengths in tokens; None where they are not known, the cache then holds `loading.context` tokens
    (default 8,192, or the model's maximum). `max_tokens`: of an answer. No row may be longer than `loading.context`,
    nor the cache larger. `branches`: the maximum number of states held beside the answers, so that no token is read
    twice. `apart`: each answer has its own `loading.context` tokens of the cache.
    `memory` and `devices` are those before the model was loaded.

    The cache holds the longest prompt and its answers, and the second longest prompt too (for two tasks in progress) if
    that leaves half of the memory. If memory is short, it gives up in this order: the second prompt, the attention
    scores (flash attention is turned on), the number of answers at the same time. If that number is named, the answers
    share a smaller cache. On CPUs flash attention is off otherwise: answers are written faster without it, and exact
    mode needs it off.

    Raises ContextError if the model cannot fit; the message says what would fit. Raises ModelFileError as
    read_model_file does.
    """
    shape = model if isinstance(model, Shape) else read_shape(model)
    shape = with_adapters(shape, [adapter.path for adapter in loading.adapters])
    wish = _Wish(
        prompts=None if prompts is None else tuple(sorted(prompts)),
        max_tokens=max_tokens,
        loading=loading,
        branches=branches,
        apart=apart,
    )
    _check(shape, wish)
    found = _choose(shape, wish, memory, devices)
    if found is None:
        raise ContextError(f"{shape.path}: {_advice(shape, wish, memory, devices)}")
    return found


def _check(shape: Shape, wish: _Wish) -> None:
    """Raises EdgeError for an option that is wrong whatever the memory."""
    if wish.loading.kv_type not in KV_BLOCKS:
        raise EdgeError(
            f"{wish.loading.kv_type} is not a type of the KV cache: choose one of {', '.join(KV_BLOCKS)}"
        )
    if wish.loading.kv_type != "f16" and wish.loading.flash_attention is False:
        raise EdgeError(
            f"--kv-type {wish.loading.kv_type} needs flash attention: remove --no-flash-attention"
        )
    if not _divides(shape, wish.loading.kv_type):
        key, value = shape.head_widths
        raise EdgeError(
            f"{shape.path}: --kv-type {wish.loading.kv_type} needs heads whose width is a multiple of 32; these have "
            f"{key} and {value}: take f16"
        )
    for name, given, most in (
        ("--parallel", wish.loading.parallel, _MAX_PARALLEL),
        ("--batch", wish.loading.batch, 1 << 20),
    ):
        if given is not None and not 1 <= given <= most:
            raise EdgeError(f"{name} is {given}; it must be from 1 to {most}")
    context, most = wish.loading.context, shape.context_length
    if context is not None and context > most > 0:
        raise ContextError(f"{shape.path}: has a context length of {most} tokens, less than {context}")
    bound = context or most
    if wish.prompts and wish.prompts[-1] + wish.max_tokens > bound > 0:
        raise ContextError(
            f"{shape.path}: a prompt of {wish.prompts[-1]} tokens and an answer of {wish.max_tokens} do not fit "
            f"into a context of {bound}"
        )


def _divides(shape: Shape, kv_type: str) -> bool:
    block = KV_BLOCKS[kv_type][0]
    return not any(width % block for width in shape.head_widths)


def _choose(shape: Shape, wish: _Wish, memory: Memory, devices: Sequence[Device]) -> Placement | None:
    """The first of the candidates that fits, or None."""
    gpus = [] if wish.loading.gpu_layers == 0 else offload_devices(devices, wish.loading.spread)
    if gpus and wish.loading.gpu_layers is None:
        # All layers first: one layer on the CPU costs more than fewer answers at a time. No layer last: as on a CPU.
        whole = _choose(shape, wish.but(replace(wish.loading, gpu_layers=-1)), memory, devices)
        if whole is not None:
            return whole
    for parallel, flash_attention in _candidates(wish, bool(gpus)):
        found = _sized(shape, wish, memory, gpus, parallel, flash_attention)
        if found is not None:
            return found
    if gpus and wish.loading.gpu_layers is None:
        return _choose(shape, wish.but(replace(wish.loading, gpu_layers=0)), memory, devices)
    return None


def _sized(
    shape: Shape, wish: _Wish, memory: Memory, gpus: list[Device], parallel: int, flash_attention: bool
) -> Placement | None:
    """The placement with the best size of cache for these choices, or None."""

    def trial(cells: int) -> Placement | None:
        return _fitted(shape, wish, memory, gpus, cells, parallel, flash_attention)

    least, wanted, most = _cells(shape, wish, parallel)
    found = trial(wanted)
    if found is None:  # a named number of answers shares the memory
        cells = _largest(least, wanted - CELLS_STEP, lambda cells: trial(cells) is not None)
        return None if cells is None else trial(cells)

    def roomy(cells: int) -> bool:
        larger = trial(cells)
        return larger is not None and larger.gpu_layers == found.gpu_layers and _roomy(shape, larger)

    cells = _largest(wanted, most, roomy)
    return found if cells is None else trial(cells)


def _candidates(wish: _Wish, gpu: bool) -> list[tuple[int, bool]]:
    """Numbers of answers at the same time, with flash attention or not; the best first."""
    if wish.loading.parallel is not None:
        parallels = [wish.loading.parallel]
    else:
        rows = _MAX_PARALLEL if wish.prompts is None else max(1, len(wish.prompts))
        parallels = [min(_GPU_PARALLEL if gpu else _CPU_PARALLEL, rows)]
        while parallels[-1] > 1:
            parallels.append(parallels[-1] // 2)
    if wish.loading.flash_attention is not None:
        flash = [wish.loading.flash_attention]
    else:
        flash = [True] if gpu or wish.loading.kv_type != "f16" else [False, True]
    return [(parallel, on) for parallel in parallels for on in flash]


def _cells(shape: Shape, wish: _Wish, parallel: int) -> tuple[int, int, int]:
    """The minimum number of cells, the wanted one, and the maximum that is useful."""
    if wish.prompts is None:
        context = wish.loading.context or min(DEFAULT_CONTEXT, shape.context_length or DEFAULT_CONTEXT)
        return (padded(context) * (max(2, parallel) if wish.apart else 1),) * 3
    longest = wish.prompts[-1] if wish.prompts else 0
    second = wish.prompts[-2] if len(wish.prompts) > 1 else 0
    least = longest + wish.max_tokens
    wanted = longest + parallel * wish.max_tokens
    bound = wish.loading.context or wanted + second
    least = min(least if wish.loading.parallel is not None else wanted, bound)
    return padded(least), padded(min(wanted, bound)), padded(min(wanted + second, bound))


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest multiple of 256 from `low` to `high` that fits. Requires that smaller ones fit if it fits."""
    if high < low or not fits(low):
        return None
    first, last = low // CELLS_STEP, high // CELLS_STEP
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if fits(middle * CELLS_STEP) else (first, middle - 1)
    return first * CELLS_STEP


def _roomy(shape: Shape, placement: Placement) -> bool:
    """Whether the cache and buffers take at most half of the memory that the weights leave."""
    if any(use.free is None for use in placement.uses):
        return True
    needed = sum(use.needed for use in placement.uses)
    usable = int(_USABLE * sum(use.free or 0 for use in placement.uses))
    return 2 * (needed - shape.weights) <= usable - shape.weights


def _names(devices: Sequence[Device]) -> str:
    return " and ".join(device.name for device in devices)


def _fitted(
    shape: Shape,
    wish: _Wish,
    memory: Memory,
    gpus: list[Device],
    cells: int,
    parallel: int,
    flash_attention: bool,
) -> Placement | None:
    """The placement with these choices, with as many layers on the GPUs as fit; None if it does not fit."""
    if gpus and wish.loading.gpu_layers is None:
        numbers: Sequence[int] = range(len(shape.kv_values), 0, -1)
    else:
        numbers = [wish.loading.gpu_layers if gpus and wish.loading.gpu_layers is not None else 0]
    made = (_laid(shape, wish, memory, gpus, n, cells, parallel, flash_attention) for n in numbers)
    return next((placement for placement in made if all(use.fits for use in placement.uses)), None)


def _laid(
    shape: Shape,
    wish: _Wish,
    memory: Memory,
    gpus: list[Device],
    gpu_layers: int,
    cells: int,
    parallel: int,
    flash_attention: bool,
) -> Placement:
    """The placement with these choices, whether it fits or not."""
    batch = max(wish.batch, parallel)
    sequences = max(2, parallel) if wish.apart else min(MAX_SEQUENCES, parallel + 1 + wish.branches)
    need = buffers(
        shape,
        cells,
        sequences=sequences,
        batch=batch,
        kv_type=wish.loading.kv_type,
        flash_attention=flash_attention,
        apart=wish.apart,
    )
    total = len(shape.kv_values) + 1  # the output head is the last one
    layers = total if gpu_layers == -1 else min(gpu_layers, total)
    return Placement(
        gpu_layers=-1 if layers == total else layers,
        threads=wish.threads,
        cells=cells,
        parallel=parallel,
        sequences=sequences,
        batch=batch,
        kv_type=wish.loading.kv_type,
        flash_attention=flash_attention,
        mmap=wish.loading.mmap,
        kv_cache=need.kv_cache,
        device=f"{_names(gpus)} ({layers} of {total} layers)" if layers else "CPU",
        uses=_uses(shape, wish, memory, gpus, cells, sequences, need, layers),
        adapters=wish.loading.adapters,
        spread=wish.loading.spread,
    )


def _uses(
    shape: Shape,
    wish: _Wish,
    memory: Memory,
    gpus: list[Device],
    cells: int,
    sequences: int,
    need: Buffers,
    layers: int,
) -> tuple[Use, ...]:
    """Bytes needed in each memory, with so many layers on the GPUs: the output head and the last layers before it."""
    if not layers:
        return (Use("CPU", shape.weights + need.total, memory.available),)
    first = len(shape.kv_values) + 1 - layers
    moved = (
        shape.output_weights
        + sum(shape.layer_weights[first:])
        + kv_bytes(sum(shape.kv_values[first:]), cells, wish.loading.kv_type)
        + sum(shape.state_values[first:]) * sequences * 4
    )
    there = moved + need.compute
    here = shape.weights + need.kv_cache + need.state + need.output - moved
    here += shape.output_weights if shape.tied else 0  # a copy went to the GPU
    here += need.compute if first else 0
    free = usable_memory(gpus, wish.loading.spread)
    if any(gpu.kind == "integrated GPU" or gpu.name.startswith(("Metal", "MTL")) for gpu in gpus):
        # One memory for both: free memory of the GPU is part of the free main memory.
        known = [number for number in (free, memory.available) if number is not None]
        return (Use(_names(gpus), there + here, min(known) if known else None),)
    return Use(_names(gpus), there, free), Use("CPU", here, memory.available)


def _advice(shape: Shape, wish: _Wish, memory: Memory, devices: Sequence[Device]) -> str:
    """What does not fit, and which options would make it fit. Each option is tried before it is named."""

    def fits(changed: _Wish) -> bool:
        return _choose(shape, changed, memory, devices) is not None

    gpus = [] if wish.loading.gpu_layers == 0 else offload_devices(devices, wish.loading.spread)
    parallel, flash_attention = _candidates(wish, bool(gpus))[-1]
    cells = _cells(shape, wish, parallel)[0]
    layers = (wish.loading.gpu_layers or 0) if gpus else 0
    smallest = _laid(shape, wish, memory, gpus, layers, cells, parallel, flash_attention)
    use = next(use for use in smallest.uses if not use.fits)
    problem = (
        f"needs {size(use.needed)} with a cache of {cells:,} tokens; {size(use.free or 0)} is free on {use.where}, "
        f"and edge uses at most {_USABLE:.0%} of that"
    )
    levers, smaller_numbers = _levers(wish, bool(gpus)), _kv_levers(shape, wish)
    alone = (
        levers if wish.loading.flash_attention is False else levers + smaller_numbers
    )  # these need flash attention
    options = [text for text, change in alone if fits(wish.but(change(wish.loading)))]
    options += _shorter(shape, wish, memory, devices)
    if options:
        return f"{problem}. What would fit: {' or '.join(options)}"
    together: dict[str, str] = {}  # by the option's name: a later --kv-type replaces the first
    for text, change in levers + smaller_numbers:
        together[text.split()[0]] = text
        wish = wish.but(change(wish.loading))
        if fits(wish):
            return f"{problem}. What would fit: {' '.join(together.values())}"
    if shorter := _shorter(shape, wish, memory, devices):
        return f"{problem}. What would fit: {' '.join([*together.values(), *shorter])}"
    return f"{problem}. Take a smaller quantization or model; the weights alone are {size(shape.weights)}"


def _levers(wish: _Wish, gpu: bool) -> list[Lever]:
    """Options that need less memory, those with the least effect first."""
    levers: list[Lever] = []
    if gpu and wish.loading.gpu_layers not in (None, 0):
        levers.append(("--gpu-layers 0", lambda old: replace(old, gpu_layers=0)))
    if wish.loading.flash_attention is False:
        levers.append(("--flash-attention", lambda old: replace(old, flash_attention=True)))
    if wish.batch > _SMALL_BATCH:
        levers.append((f"--batch {_SMALL_BATCH}", lambda old: replace(old, batch=_SMALL_BATCH)))
    if wish.loading.parallel is not None and wish.loading.parallel > 1:
        levers.append(("--parallel 1", lambda old: replace(old, parallel=1)))
    return levers


def _kv_levers(shape: Shape, wish: _Wish) -> list[Lever]:
    """The types of the KV cache that are smaller than the named one; they need flash attention."""
    types = list(KV_BLOCKS)
    smaller = [name for name in types[types.index(wish.loading.kv_type) + 1 :] if _divides(shape, name)]
    return [(f"--kv-type {name}", partial(_with_kv_type, name)) for name in smaller]


def _with_kv_type(name: str, loading: Loading) -> Loading:
    return replace(loading, kv_type=name)


def _shorter(shape: Shape, wish: _Wish, memory: Memory, devices: Sequence[Device]) -> list[str]:
    """`--context N` with the largest N that fits, if at least one row is left."""

    def bounded(context: int) -> _Wish:
        kept = None
        if wish.prompts is not None:
            kept = tuple(n for n in wish.prompts if n + wish.max_tokens <= context)
        return replace(wish, loading=replace(wish.loading, context=context), prompts=kept)

    if wish.prompts is None:
        top = _cells(shape, wish, 1)[0] - CELLS_STEP
        found = _largest(
            CELLS_STEP, top, lambda cells: _choose(shape, bounded(cells), memory, devices) is not None
        )
        return [] if found is None else [f"--context {found}"]
    lengths = sorted(set(wish.prompts))
    low, high = 0, len(lengths)
    while low < high:  # how many of the lengths fit
        middle = (low + high + 1) // 2
        context = lengths[middle - 1] + wish.max_tokens
        fits = _choose(shape, bounded(context), memory, devices) is not None
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        return []
    context = lengths[low - 1] + wish.max_tokens
    kept = bounded(context).prompts or ()
    if len(kept) == len(wish.prompts):
        return [f"--context {context}"]
    return [f"--context {context} --skip-too-long ({len(kept)} of {len(wish.prompts)} rows)"]
