"""`edge compare --causes`: which of the given results differ in exactly one thing, and what that one thing did."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from edge.compare.findings import LABELS, Figure, Part, interval_text, number, test_text
from edge.compare.pairing import thought_budget
from edge.compare.run import check_once, compare_pair, model_label
from edge.errors import ResultError
from edge.replay.result import mapping, read_result, whole_text
from edge.system.tables import clean, table

KINDS = ("quantization", "engine", "grammar", "thought", "noise floor")

_TOLD = ("score", "first_cmd_exact_pct", "valid_json_pct")  # figures with a sentence of their own
_FLOATS = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}
_BITS = {"F32": 32.0, "BF16": 16.0, "F16": 16.0}
_ENGINES = ("vllm", "openai", "edge")  # the earlier one is the baseline of the later one
_ENGINE_NAMES = {"vllm": "vLLM", "openai": "an OpenAI-compatible server", "edge": "edge"}

# What must be the same for anything else to be told apart, with the value that a missing one stands for.
_SETTINGS: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": None,
}
# What should change nothing but does, a little: where answers are computed, how many at once, and by chance if sampled.
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
    """Two results that differ in one thing alone. `part` is `second` against `first`, the baseline."""

    kind: str
    """One of KINDS."""
    first: str
    second: str
    first_model: str
    second_model: str
    what: str
    """What differs, in words, from the first to the second: `BF16 → Q4_K_M, constrained`."""
    part: Part


@dataclass(frozen=True)
class _Run:
    """What a result tells of its making; None where it does not tell."""

    path: str
    result: dict[str, Any]
    backend: str | None
    version: str | None
    file: str | None
    """SHA-256 of the model's file."""
    source: str | None
    revision: str | None
    name: str
    type: str | None
    """BF16, Q4_K_M, …"""
    bits: float
    constrained: bool | None
    grammar: tuple[Any, ...]
    think: int | None
    """The most tokens of a thought, 0 for none; None where nothing holds it."""
    thought: bool | None
    """Whether any answer holds one."""
    settings: tuple[Any, ...]
    batching: dict[str, Any]


def causes(results: Sequence[Path | str]) -> tuple[Cause, ...]:
    """Every pair of the given results that differs in exactly one thing, by kind, the baseline first in each.

    A quantized file is set against the least quantized one alone. That runs were batched otherwise counts as a
    difference of its own, the noise floor, only where there is no other. Results of other rows or prompts, and results
    that do not tell enough, are in no pair. Raises ResultError for a file that is no result or holds no steps.
    """
    check_once(results)
    runs = []
    for path in results:
        result = read_result(path)
        if not result["per_step"]:
            raise ResultError(f"{path}: holds no steps: causes are told apart step by step")
        runs.append(_run(path, result))
    found = list(_pairs(runs))
    told = []
    for kind, first, second, what in found:
        if kind == "quantization" and any(
            other.bits > first.bits and b is second and k == kind for k, other, b, _ in found
        ):
            continue
        try:
            part = compare_pair(second.path, second.result, first.path, first.result)
        except ResultError:  # other steps, rows or prompts: one more difference
            continue
        if (note := _by_name(first, second)) is not None:
            part = replace(part, notes=(note, *part.notes))
        told.append(
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
    return tuple(sorted(told, key=lambda cause: KINDS.index(cause.kind)))


def causes_json(found: Sequence[Cause]) -> list[dict[str, Any]]:
    """The causes as JSON values, every figure included."""
    return [asdict(cause) for cause in found]


def causes_markdown(found: Sequence[Cause]) -> str:
    """A table of the causes, and each one's sentences; reads well in a terminal too."""
    if not found:
        return "# Causes\n\nNo two of these results differ in one thing alone: no cause can be told from another.\n"
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
    lines = ["# Causes", "", "Each line is two runs that differ in one thing alone.", ""]
    lines += table(header, rows, right=range(2, len(header)))
    noted: set[str] = set()  # what is said of one pair is not said again of the next
    for cause in found:
        lines += ["", f"## {cause.kind}: {clean(cause.what)}", ""]
        lines += [f"{clean(cause.second)} against {clean(cause.first)}.", ""]
        for note in cause.part.notes:
            if note not in noted:
                lines += [clean(note), ""]
                noted.add(note)
        figures = [_figures(cause.part)[name] for name in _TOLD]
        lines += [f"- {LABELS[figure.name]}: {figure.sentence}{test_text(figure)}" for figure in figures]
    return "\n".join(lines) + "\n"


def _figures(part: Part) -> dict[str, Figure]:
    return {figure.name: figure for figure in part.figures}


def _pairs(runs: Sequence[_Run]) -> Iterator[tuple[str, _Run, _Run, str]]:
    """(kind, baseline, other, in words) of each pair with one difference.

    Of pairs that are alike but for their batching, only those without that difference are kept, where there are any.
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


def _same_but_batching(run: _Run) -> tuple[Any, ...]:
    # A budget of which no answer made use is none.
    think = run.think if run.thought is not False else 0
    return run.backend, run.version, run.file, run.type, run.constrained, think, run.settings


def _kind(a: _Run, b: _Run) -> str | None:
    """The one thing that differs; None for several, for a thing that has no kind, and where too little is told."""
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
        if a.type in _BITS:  # nothing was quantized: other weights
            return None
        different.append("quantization")
    if a.constrained != b.constrained:
        different.append("grammar")
    elif a.constrained and (a.backend != b.backend or a.grammar != b.grammar):
        return None  # two grammars; on two engines never quite the same one
    thinks = _thinks(a, b)
    if thinks is None:
        return None
    if thinks:
        different.append("thought")
    if len(different) > 1:
        return None
    return different[0] if different else "noise floor"


def _thinks(a: _Run, b: _Run) -> bool | None:
    """Whether one may think and the other may not; None for two budgets, and where one may by too little told.

    A model without thoughts, or one that was asked for none, answers alike whatever it is allowed.
    """
    if a.thought is False and b.thought is False:
        return False
    if a.think is None or b.think is None:  # an unconstrained answer thinks as it likes
        held, free = (a, b) if b.think is None else (b, a)
        if held.think is None or held.think or free.thought is False:
            return False
        return True if free.thought else None
    return None if a.think and b.think and a.think != b.think else bool(a.think) != bool(b.think)


def _same_model(a: _Run, b: _Run) -> bool:
    """Of one checkpoint, as far as both tell: by their sources, or else by one's name beginning with the other's."""
    if a.result.get("lora_path") != b.result.get("lora_path"):
        return False
    if a.source and b.source:
        revisions = {a.revision, b.revision} - {None}
        return _plain(a.source) == _plain(b.source) and len(revisions) < 2
    if a.file and a.file == b.file:
        return True
    # A folder has any name: `smollm2` for SmolLM2-135M-Instruct. The pair gets a note (_by_name).
    one, other = sorted((_plain(a.name), _plain(b.name)), key=len)
    return bool(one) and other.startswith(one)


def _by_name(a: _Run, b: _Run) -> str | None:
    """What a reader should check of a pair that unequal names alone make one model; None for others."""
    if (a.source and b.source) or (a.file and a.file == b.file) or _plain(a.name) == _plain(b.name):
        return None
    return f"That {a.name} and {b.name} are of one checkpoint is taken from their names alone."


def _plain(name: str) -> str:
    """A hub id, folder or model's name, less its owner or parents, case and punctuation."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]", "", last.lower())


def _rank(kind: str, run: _Run) -> tuple[float, ...]:
    """What puts the baseline first; runs of equal rank stay in the order given."""
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
    told = f"{words[0]} → {words[1]}"
    if kind == "quantization":
        told += ", constrained" if first.constrained else ", unconstrained"
    elif kind == "grammar":
        told = f"{_type(first)} {told}"
    elif kind in ("engine", "thought"):
        told += f", {_type(first)}"
    if batching and kind != "engine":
        told += f" (batching differs too: {batching})"
    return told


def _type(run: _Run) -> str:
    return run.type or "model"


def _engine(run: _Run, other: _Run) -> str:
    name = _ENGINE_NAMES.get(run.backend or "", run.backend or "")
    if run.backend != other.backend:
        return name
    return f"{'llama-cpp-python' if run.backend == 'edge' else name} {run.version}"


def _batching(a: _Run, b: _Run) -> str:
    """What differs in the batching, in words; empty where nothing is known to."""
    names = [name for name in _BATCHING if a.batching.get(name) != b.batching.get(name)]
    shown = [name for name in names if None not in (a.batching.get(name), b.batching.get(name))]
    told = [f"{name.replace('_', ' ')} {_value(a, name)} and {_value(b, name)}" for name in shown]
    if None not in (a.think, b.think) and a.think != b.think and a.thought is False and b.thought is False:
        told.append(f"thought of up to {a.think} and {b.think} tokens, though none was written")
    return ", ".join(told)


def _value(run: _Run, name: str) -> str:
    value = run.batching[name]
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _run(path: Path | str, result: dict[str, Any]) -> _Run:
    sampling, told = mapping(result.get("sampling")), mapping(result.get("provenance"))
    backend = _text(told.get("backend")) or _text(sampling.get("backend"))
    backend = backend.lower() if backend else None
    kind = _type_name(_text(told.get("quantization")) or _text(sampling.get("dtype")))
    bits = told.get("bits_per_weight")
    model = re.sub(r"\s*\([^()]*\)\s*$", "", str(result.get("model") or Path(path).stem))
    constrained = _constrained(sampling, backend)
    version = told.get("llama_cpp_python" if backend == "edge" else "backend_version")
    engine = mapping(result.get("engine"))
    return _Run(
        path=str(path),
        result=result,
        backend=backend,
        version=_text(version),
        file=_text(told.get("model_sha256")) or _text(result.get("model_sha256")),
        source=_text(told.get("source")),
        revision=_text(told.get("source_revision")),
        name=model,
        type=kind,
        bits=float(bits) if isinstance(bits, int | float) else _bits(kind),
        constrained=constrained,
        grammar=tuple(
            [_text(told.get("grammar_sha256")), sampling.get("text_share"), sampling.get("style")]
            if constrained
            else []
        ),
        think=thought_budget(sampling),
        thought=_thought(result["per_step"]),
        settings=_settings(sampling, engine),
        batching={
            **{name: sampling.get(name, engine.get(name)) for name in _BATCHING},
            "seed": sampling.get("seed") if sampling.get("temperature") else None,
            **{name: told.get(name) for name in ("edge", "cpu")},
            "gpu": result.get("gpu"),
        },
    )


def _thought(steps: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether any answer holds a thought: cut from it by edge, or within it; None where beginnings do not tell."""
    if any(step.get("thought") is not None or "</think>" in _beginning(step) for step in steps):
        return True
    return False if all(whole_text(step) is not None for step in steps) else None


def _beginning(step: Mapping[str, Any]) -> str:
    return str(step.get("pred_text") or step.get("pred_preview") or "")


def _settings(sampling: Mapping[str, Any], engine: Mapping[str, Any]) -> tuple[Any, ...]:
    values = {name: sampling.get(name, default) for name, default in _SETTINGS.items()}
    values = {name: _SETTINGS[name] if value is None else value for name, value in values.items()}
    values["top_k"] = max(0, _count(values["top_k"]))  # vLLM's -1 is off too
    # Another precision of the cache is a cause that has no kind: it is nobody's noise.
    return *values.values(), engine.get("kv_type", "f16")


def _constrained(sampling: Mapping[str, Any], backend: str | None) -> bool | None:
    """Whether a grammar or schema held the answers; a published vLLM run that does not tell had none."""
    told = [sampling[name] for name in ("constrained", "structured") if isinstance(sampling.get(name), bool)]
    if told:
        return any(told)
    return None if backend in (None, "edge") else False


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _type_name(text: str | None) -> str | None:
    if text is None or text.lower() == "auto":
        return None
    plain = text.removeprefix("torch.")
    return _FLOATS.get(plain.lower(), plain.upper())


def _bits(kind: str | None) -> float:
    """About how many bits a weight of a type has, by its name."""
    if kind is None:
        return 0.0
    digits = re.search(r"\d+", kind)
    return _BITS.get(kind, float(digits[0]) if digits else 0.0)
