"""Measure which options are the fastest for a model on this machine: `edge tune` (docs/tune.md).

One option after the other. Each value is compared with the best one so far in the same rounds, one run of each in
turn, because the speed of a machine drifts. A value is taken only if its gain is larger than the spread of its rounds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.answer.style import load_grammar
from edge.formats.gguf import model_sha256, read_model_file
from edge.llama.devices import Device, offload_devices
from edge.llama.jobs import Job, Writer
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.memory import BATCH
from edge.llama.remote import devices_for
from edge.llama.tuned import described, model_bytes, this_machine
from edge.runner import Runner, fitting_layers
from edge.system.machine import physical_cores, thread_counts
from edge.system.tuned import Measured, TunedModel, TunedValues, read_tuned, write_tuned

READ, WRITTEN = 256, 64
"""Tokens of a step: read and written, in the proportion of the recorded steps of SmolLM2 (14,305 and 3,972)."""
_LONG = 512  # tokens read to compare sizes of a batch
_EACH = 24  # tokens of each answer, to compare numbers of answers at a time
_SERVED = 4  # answers at a time of edge serve, by default
_HOPELESS = 1.25  # a value that is so much slower in the first round is not tried again
ROUNDS = 4

Value = int | str | bool


@dataclass(frozen=True)
class _Work:
    """What is timed: a prompt is read, and `answers` answers of `written` tokens each are written after it."""

    read: int = READ
    written: int = WRITTEN
    answers: int = 1


@dataclass(frozen=True)
class _Tuner:
    """One model on one machine. `time`: seconds of a piece of work with these options."""

    time: Callable[[Loading, _Work], float]
    rounds: int
    say: Callable[[str], None]

    def compare(
        self, option: str, before: Loading, values: Sequence[Value], work: Callable[[Value], _Work]
    ) -> list[Measured]:
        """The first of `values` is the present one; what was measured of the others. Each round runs each once."""
        if len(values) < 2:
            return []
        options = [_with(before, option, value) for value in values]
        times: list[list[float]] = [[] for _ in values]
        tried = list(range(len(values)))
        for number in range(self.rounds):
            for index in tried if len(tried) > 1 else ():
                made = work(values[index])
                tokens = made.answers * made.written if option == "parallel" else 1
                times[index].append(self.time(options[index], made) / tokens)
            if number == 0:
                tried = [i for i in tried if times[i][0] <= _HOPELESS * times[0][0]]
        found = [
            _measured(option, value, values[0], own, times[0])
            for value, own in zip(values[1:], times[1:], strict=True)
        ]
        for one in found:
            how = "faster" if one["gain"] >= 0 else "slower"
            self.say(
                f"{option} {one['value']}: {100 * abs(one['gain']):.1f} % {how} than {one['against']}, spread "
                f"{100 * one['spread']:.1f} %"
            )
        return found


def tune(
    model: Path | str,
    *,
    rounds: int = ROUNDS,
    loading: Loading = DEFAULT_LOADING,
    say: Callable[[str], None] = lambda text: None,
) -> TunedModel:
    """Measure a GGUF on this machine, and store what is faster than edge's own choice.

    `rounds`: how often each value is run. `loading`: where the model goes; its `spread` and `adapters` are used.
    `say` receives a line for each value. Raises ModelFileError, ContextError, ConfigError.
    """
    file = read_model_file(Path(model))
    found = devices_for(loading)
    known = [one for one in read_tuned() if one["model_sha256"] != model_sha256(file.path)]
    known += [one for one in read_tuned() if one not in known and one["machine"] != this_machine(found)]
    tuner = _Tuner(_timer(file.path), rounds, say)
    values, suggested, measured = _search(tuner, loading, found, fitting_layers(file, loading))
    entry: TunedModel = {
        "model": str(file.path.absolute()),
        "model_sha256": model_sha256(file.path),
        "model_bytes": model_bytes(file.path),
        "machine": this_machine(found),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "values": values,
        "suggested": suggested,
        "measured": measured,
    }
    write_tuned([*known, entry])
    say(f"stored: {described(values)}")
    return entry


def forget(model: Path | str) -> int:
    """Remove what was measured for a GGUF, on every machine; the number of entries."""
    digest, entries = model_sha256(model), read_tuned()
    kept = [one for one in entries if one["model_sha256"] != digest]
    if len(kept) < len(entries):
        write_tuned(kept)
    return len(entries) - len(kept)


def _search(
    tuner: _Tuner, loading: Loading, found: Sequence[Device], fitting: int
) -> tuple[TunedValues, list[str], list[Measured]]:
    """The values to store, the options to suggest, and all that was measured."""
    gpu = bool(offload_devices(found, loading.spread))
    threads = thread_counts()
    layers: list[Value] = [fitting, *(one for one in (0, fitting // 2) if one >= 0 and one != fitting)]
    values: dict[str, Any] = {"threads": None, "gpu_layers": None, "batch": None, "parallel": None}
    measured: list[Measured] = []
    most = physical_cores()
    best = replace(loading, gpu_layers=fitting, threads=most, batch=BATCH, parallel=_SERVED, steady=True)
    sizes = (BATCH, 128, 256, *((1024, 2048) if gpu else ()))
    longest = max(_LONG, *sizes)
    at_once = (_SERVED, 1, 2, 8, *((16, 32) if gpu else ()))
    stages: list[tuple[str, Sequence[Value], Callable[[Value], _Work]]] = [
        ("gpu_layers", layers if gpu else layers[:1], lambda _: _Work()),
        ("threads", [most, *(n for n in threads if n != most)], lambda _: _Work()),
        ("batch", sizes, lambda _: _Work(longest, 1)),
        ("parallel", at_once, lambda n: _Work(READ, _EACH, int(n))),
    ]
    for option, tried, work in stages:
        rows = tuner.compare(option, best, tried, work)
        measured += rows
        winner = max(rows, key=lambda row: row["gain"], default=None)
        if winner is not None and winner["gain"] > winner["spread"]:
            values[option] = int(winner["value"])
            best = _with(best, option, values[option])
    on = best.flash_attention if best.flash_attention is not None else gpu
    rows = tuner.compare("flash_attention", best, [on, not on], lambda _: _Work())
    rows += tuner.compare("kv_type", replace(best, flash_attention=True), ["f16", "q8_0"], lambda _: _Work())
    return TunedValues(**values), _suggestions(rows), measured + rows  # type: ignore[typeddict-item]


def _suggestions(rows: Sequence[Measured]) -> list[str]:
    options = {"True": "--flash-attention", "False": "--no-flash-attention", "q8_0": "--kv-type q8_0"}
    return [options[row["value"]] for row in rows if row["gain"] > row["spread"]]


def _measured(
    option: str, value: Value, against: Value, own: Sequence[float], other: Sequence[float]
) -> Measured:
    ratios = [a / b for a, b in zip(own, other, strict=False)]
    return {
        "option": option,
        "value": str(value),
        "against": str(against),
        "seconds": round(statistics.median(own), 6),
        "gain": round(1 - statistics.median(ratios), 4),
        "spread": round(max(ratios) - min(ratios), 4),
        "rounds": len(own),
    }


def _with(loading: Loading, option: str, value: Value) -> Loading:
    changes: dict[str, Any] = {option: value}
    return replace(loading, **changes)


def _timer(path: Path) -> Callable[[Loading, _Work], float]:
    """What times a piece of work, in a new engine: the number of threads and the layers belong to one."""
    text = load_grammar()

    def timed(loading: Loading, work: _Work) -> float:
        with Runner.open(path, loading) as runner:
            tokens = runner.encode(text)
            prompt = (tokens * (-(-work.read // len(tokens))))[: work.read]
            engine = runner.engine
            engine.reserve(work.read + work.answers * work.written, work.answers + 2)
            warm = prompt[: work.read // 4][::-1]  # another beginning, so that nothing of it is read already
            list(engine.run([Job(warm, _greedy(2, []), 2)]))
            began: list[float] = []
            jobs = [Job(prompt, _greedy(work.written, began), work.written) for _ in range(work.answers)]
            start = time.perf_counter()
            list(engine.run(jobs, work.answers))
            return time.perf_counter() - (start if work.answers == 1 else began[0])

    return timed


def _greedy(count: int, began: list[float]) -> Writer[None]:
    """Writes the most likely token, `count` times; notes when the prompt was read."""
    logits = yield []
    began.append(time.perf_counter())
    for _ in range(count):
        logits = yield [int(logits.argmax())]
