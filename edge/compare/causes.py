"""Find pairs of results that differ in exactly one thing, and measure what it changed (`edge compare --causes`)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from edge.compare import patterns
from edge.compare.findings import LABELS, Figure, Part, interval_text, number, test_text
from edge.compare.notes import thought_budget
from edge.compare.run import check_once, compare_pair, model_label
from edge.errors import ResultError
from edge.replay.result import adapter_key, read_result
from edge.replay.stored_result import EngineCounters, Result, SamplingFields, Step, whole_text
from edge.system.tables import clean, table

KINDS = ("quantization", "engine", "grammar", "thought", "noise floor")

_SHOWN = ("score", "first_cmd_exact_pct", "valid_json_pct")  # figures that get a sentence
_FLOATS = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}
_BITS = {"F32": 32.0, "BF16": 16.0, "F16": 16.0}
_ENGINES = ("vllm", "openai", "edge")  # an earlier one is the baseline of a later one
_ENGINE_NAMES = {"vllm": "vLLM", "openai": "an OpenAI-compatible server", "edge": "edge"}

# Settings that must be equal in a pair, with the value that a missing one has.
_Setting = Literal["temperature", "top_p", "min_p", "repetition_penalty", "max_tokens"]
_SETTINGS: dict[_Setting, float | None] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": None,
}
# Things that should change nothing but do change answers a little: the machine, the number of parallel answers, the
# seed. The first four order the runs of a noise floor.
_BATCHING = (
    "parallel",
    "concurrency",
    "batch",
    "threads",
    "gpu_layers",
    "flash_attention",
    "tp",
    "seed",
    "edge",
    "cpu",
    "gpu",
)


@dataclass(frozen=True)
class Cause:
    """Two results that differ in exactly one thing. `part` compares `second` with the baseline, `first`."""

    kind: str
    """What differs, such as quantization or engine."""
    first: str
    """The result that is the baseline."""
    second: str
    """The other result."""
    first_model: str
    """Name of the model of the baseline for people."""
    second_model: str
    """The same for the other result."""
    what: str
    """The difference in words, from the first to the second: `BF16 → Q4_K_M, constrained`."""
    part: Part
    """The second result compared with the first."""


@dataclass(frozen=True)
class _Run:
    """How a result was made; None for what it does not record."""

    path: str
    result: Result
    backend: str | None
    version: str | None
    file: str | None
    """SHA-256 of the model file."""
    source: str | None
    revision: str | None
    name: str
    type: str | None
    """BF16, Q4_K_M, …"""
    bits: float
    constrained: bool | None
    grammar: tuple[object, ...]
    think: int | None
    """Maximum number of tokens of a thought, 0 for none; None if nothing limits it."""
    thought: bool | None
    """Whether any answer has a thought."""
    settings: tuple[object, ...]
    batching: Mapping[str, object]


def causes(results: Sequence[Path | str]) -> tuple[Cause, ...]:
    """Every pair of the given results that differs in exactly one thing, by kind, with the baseline first.

    A quantized file is compared only with the least quantized one. A different batching is a difference, the noise
    floor, only if nothing else differs. Results of other rows or prompts, and results that do not record enough, are
    in no pair. Raises ResultError for a file that is not a result or contains no steps.
    """
    check_once(results)
    runs = []
    for path in results:
        result = read_result(path)
        if not result["per_step"]:
            raise ResultError(f"{path}: contains no steps; --causes compares results step by step")
        runs.append(_run(path, result))
    pairs = list(_pairs(runs))
    found = []
    for kind, first, second, what in pairs:
        if kind == "quantization" and any(
            other.bits > first.bits and b is second and k == kind for k, other, b, _ in pairs
        ):
            continue
        try:
            part = compare_pair(second.path, second.result, first.path, first.result)
        except ResultError:  # different steps, rows or prompts: a second difference
            continue
        if (note := _by_name(first, second)) is not None:
            part = replace(part, notes=(note, *part.notes))
        found.append(
            Cause(
                kind,
                first.path,
                second.path,
                model_label(first.result, first.path),
                model_label(second.result, second.path),
                what,
                part,
            )
        )
    return tuple(sorted(found, key=lambda cause: KINDS.index(cause.kind)))


def causes_json(found: Sequence[Cause]) -> list[dict[str, object]]:
    """The causes as JSON values, with every figure."""
    return [asdict(cause) for cause in found]


def causes_markdown(found: Sequence[Cause]) -> str:
    """A table of the causes and the sentences of each, also readable in a terminal."""
    if not found:
        return f"# Causes\n\n{patterns.NO_CAUSES()}\n"
    header = ("cause", "from → to", "steps", "tasks", "score", "95 % interval", "same commands %")
    rows = []
    for cause in found:
        score = _figures(cause.part)["score"]
        rows.append(
            (
                cause.kind,
                clean(cause.what),
                str(cause.part.joined),
                str(cause.part.tasks),
                number("score", score.difference, sign=True),
                interval_text("score", score.low, score.high),
                number("valid_json_pct", cause.part.agreement["same_commands_pct"]),
            )
        )
    lines = ["# Causes", "", patterns.CAUSES(), ""]
    lines += table(header, rows, right=range(2, len(header)))
    noted: set[str] = set()  # a note of several pairs is printed once
    for cause in found:
        lines += ["", f"## {cause.kind}: {clean(cause.what)}", ""]
        lines += [patterns.CAUSE_PAIR(second=clean(cause.second), first=clean(cause.first)), ""]
        for note in cause.part.notes:
            if note not in noted:
                lines += [clean(note), ""]
                noted.add(note)
        figures = [_figures(cause.part)[name] for name in _SHOWN]
        lines += [f"- {LABELS[figure.name]}: {figure.sentence}{test_text(figure)}" for figure in figures]
    return "\n".join(lines) + "\n"


def _figures(part: Part) -> dict[str, Figure]:
    return {figure.name: figure for figure in part.figures}


def _pairs(runs: Sequence[_Run]) -> Iterator[tuple[str, _Run, _Run, str]]:
    """(kind, baseline, other, in words) of each pair with one difference.

    If two pairs are equal except for their batching, a pair with the same batching on both sides replaces the others.
    """
    found = []
    for a, b in combinations(runs, 2):
        kind = _kind(a, b)
        if kind:
            first, second = (a, b) if _rank(kind, a) <= _rank(kind, b) else (b, a)
            found.append((kind, first, second))
    even = {
        (kind, _same_but_batching(a), _same_but_batching(b)) for kind, a, b in found if not _batching(a, b)
    }
    for kind, first, second in found:
        batching = _batching(first, second)
        same = (kind, _same_but_batching(first), _same_but_batching(second))
        if kind == "noise floor" or not batching or kind == "engine" or same not in even:
            yield kind, first, second, _what(kind, first, second, batching)


def _same_but_batching(run: _Run) -> tuple[object, ...]:
    # A thought budget that no answer used counts as no budget.
    think = run.think if run.thought is not False else 0
    return run.backend, run.version, run.file, run.type, run.constrained, think, run.settings


def _kind(a: _Run, b: _Run) -> str | None:
    """The one thing that differs; None for several, for a thing without a kind, or if too little is recorded."""
    if not _same_model(a, b) or a.settings != b.settings or None in (a.backend, b.backend):
        return None
    if a.constrained is None or b.constrained is None:
        return None
    different = []
    engine = a.backend != b.backend or (a.version != b.version and None not in (a.version, b.version))
    if engine:
        different.append("engine")
    if a.type is None or b.type is None:
        if engine or a.file is None or a.file != b.file:
            return None
    elif a.type != b.type:
        different.append("quantization")
    elif not engine and None not in (a.file, b.file) and a.file != b.file:
        if a.type in _BITS:  # nothing was quantized, so the weights differ
            return None
        different.append("quantization")
    if a.constrained != b.constrained:
        different.append("grammar")
    elif a.constrained and (a.backend != b.backend or a.grammar != b.grammar):
        return None  # two grammars; two engines never have exactly the same one
    thinks = _thinks(a, b)
    if thinks is None:
        return None
    if thinks:
        different.append("thought")
    if len(different) > 1:
        return None
    return different[0] if different else "noise floor"


def _thinks(a: _Run, b: _Run) -> bool | None:
    """Whether one run allows a thought and the other does not; None for two budgets, or if too little is recorded.

    If no answer of either run has a thought, the budgets changed nothing.
    """
    if a.thought is False and b.thought is False:
        return False
    if a.think is None or b.think is None:  # nothing limits the thought of an unconstrained answer
        held, free = (a, b) if b.think is None else (b, a)
        if held.think is None or held.think or free.thought is False:
            return False
        return True if free.thought else None
    return None if a.think and b.think and a.think != b.think else bool(a.think) != bool(b.think)


def _same_model(a: _Run, b: _Run) -> bool:
    """Whether both come from one checkpoint: by their sources, else by names where one begins with the other."""
    if adapter_key(a.result) != adapter_key(b.result):
        return False
    if a.source and b.source:
        revisions = {a.revision, b.revision} - {None}
        return _plain(a.source) == _plain(b.source) and len(revisions) < 2
    if a.file and a.file == b.file:
        return True
    # A folder can have any name: `smollm2` for SmolLM2-135M-Instruct. The pair then gets a note (_by_name).
    one, other = sorted((_plain(a.name), _plain(b.name)), key=len)
    return bool(one) and other.startswith(one)


def _by_name(a: _Run, b: _Run) -> str | None:
    """A note for a pair that is one model only by two different names; None for other pairs."""
    if (a.source and b.source) or (a.file and a.file == b.file) or _plain(a.name) == _plain(b.name):
        return None
    return patterns.BY_NAME(first=a.name, second=b.name)


def _plain(name: str) -> str:
    """A hub id, folder or model name without its owner or parents, case and punctuation."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]", "", last.lower())


def _rank(kind: str, run: _Run) -> tuple[float, ...]:
    """Sort key that puts the baseline first; runs of equal rank stay in the given order."""
    if kind == "quantization":
        return (-run.bits,)
    if kind == "engine":
        return (_ENGINES.index(run.backend) if run.backend in _ENGINES else len(_ENGINES),)
    if kind == "grammar":
        return (bool(run.constrained),)
    if kind == "thought":
        return (bool(run.think),)
    sizes = (run.batching.get(name) for name in _BATCHING[:4])
    return tuple(size if isinstance(size, int) else 0 for size in sizes)


def _what(kind: str, first: _Run, second: _Run, batching: str) -> str:
    if kind == "noise floor":
        return f"{_type(first)} twice: {batching or 'the same settings'}"
    words = {
        "quantization": (_type(first), _type(second)),
        "engine": (_engine(first, second), _engine(second, first)),
        "grammar": ("unconstrained", "constrained"),
        "thought": ("no thought", f"thought of up to {second.think} tokens" if second.think else "thought"),
    }[kind]
    what = f"{words[0]} → {words[1]}"
    if kind == "quantization":
        what += ", constrained" if first.constrained else ", unconstrained"
    elif kind == "grammar":
        what = f"{_type(first)} {what}"
    elif kind in ("engine", "thought"):
        what += f", {_type(first)}"
    if batching and kind != "engine":
        what += f" (batching differs too: {batching})"
    return what


def _type(run: _Run) -> str:
    return run.type or "model"


def _engine(run: _Run, other: _Run) -> str:
    name = _ENGINE_NAMES.get(run.backend or "", run.backend or "")
    if run.backend != other.backend:
        return name
    return f"{'llama-cpp-python' if run.backend == 'edge' else name} {run.version}"


def _batching(a: _Run, b: _Run) -> str:
    """The known differences of the batching, in words; an empty string if there are none."""
    names = [name for name in _BATCHING if a.batching.get(name) != b.batching.get(name)]
    shown = [name for name in names if None not in (a.batching.get(name), b.batching.get(name))]
    words = [f"{name.replace('_', ' ')} {_value(a, name)} and {_value(b, name)}" for name in shown]
    if None not in (a.think, b.think) and a.think != b.think and a.thought is False and b.thought is False:
        words.append(f"thought of up to {a.think} and {b.think} tokens, but no thought was written")
    return ", ".join(words)


def _value(run: _Run, name: str) -> str:
    value = run.batching[name]
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _run(path: Path | str, result: Result) -> _Run:
    sampling, engine = result.get("sampling", {}), result.get("engine", {})
    origin = result.get("provenance", {})
    backend = origin.get("backend") or sampling.get("backend") or None
    backend = backend.lower() if backend else None
    kind = _type_name(origin.get("quantization") or sampling.get("dtype") or None)
    bits = origin.get("bits_per_weight")
    constrained = is_constrained(sampling, backend)
    version = origin.get("llama_cpp_python") if backend == "edge" else origin.get("backend_version")
    grammar = (origin.get("grammar_sha256"), sampling.get("text_share"), sampling.get("style"))
    return _Run(
        path=str(path),
        result=result,
        backend=backend,
        version=version or None,
        file=origin.get("model_sha256") or result.get("model_sha256") or None,
        source=origin.get("source") or None,
        revision=origin.get("source_revision") or None,
        name=re.sub(r"\s*\([^()]*\)\s*$", "", result.get("model") or Path(path).stem),
        type=kind,
        bits=_bits(kind) if bits is None else float(bits),
        constrained=constrained,
        grammar=grammar if constrained else (),
        think=thought_budget(sampling),
        thought=_thought(result["per_step"]),
        settings=_settings(sampling, engine),
        batching={
            "parallel": engine.get("parallel"),
            "concurrency": engine.get("concurrency"),
            "batch": engine.get("batch"),
            "threads": engine.get("threads"),
            "gpu_layers": engine.get("gpu_layers"),
            "flash_attention": engine.get("flash_attention"),
            "tp": sampling.get("tp"),
            "seed": sampling.get("seed") if sampling.get("temperature") else None,
            "edge": origin.get("edge"),
            "cpu": origin.get("cpu"),
            "gpu": result.get("gpu"),
        },
    )


def _thought(steps: Sequence[Step]) -> bool | None:
    """Whether any answer has a thought, in its text or cut from it by edge; None if the answers are incomplete."""
    if any(step.get("thought") is not None or "</think>" in _known_text(step) for step in steps):
        return True
    return False if all(whole_text(step) is not None for step in steps) else None


def _known_text(step: Step) -> str:
    return step.get("pred_text") or step.get("pred_preview") or ""


def _settings(sampling: SamplingFields, engine: EngineCounters) -> tuple[object, ...]:
    values = []
    for name, default in _SETTINGS.items():
        value = sampling.get(name)
        values.append(default if value is None else value)
    top_k = max(0, sampling.get("top_k") or 0)  # vLLM's -1 is also off
    # A different type of the KV cache is a cause without a kind, not noise.
    return *values, top_k, engine.get("kv_type", "f16")


def is_constrained(sampling: SamplingFields, backend: str | None) -> bool | None:
    """Whether a grammar or schema constrained the answers. A published vLLM run that does not say had none."""
    fields = (sampling.get("constrained"), sampling.get("structured"))
    stated = [
        bool(value) for value in fields if value is not None
    ]  # structured also names how it was asked for
    if stated:
        return any(stated)
    return None if backend in (None, "edge") else False


def _type_name(text: str | None) -> str | None:
    if text is None or text.lower() == "auto":
        return None
    plain = text.removeprefix("torch.")
    return _FLOATS.get(plain.lower(), plain.upper())


def _bits(kind: str | None) -> float:
    """The approximate number of bits per weight of a type, from its name."""
    if kind is None:
        return 0.0
    digits = re.search(r"\d+", kind)
    return _BITS.get(kind, float(digits[0]) if digits else 0.0)
