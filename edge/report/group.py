"""Which runs compare with the reference: one of each file, made as the reference was. The others separate causes."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from edge.compare.causes import is_constrained
from edge.compare.notes import prompt_switches, thought_budget
from edge.replay.result import adapter_key
from edge.replay.stored_result import SamplingFields
from edge.report.evidence import Run

_Setting = Literal[
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "text_share", "style"
]
_SETTINGS: tuple[_Setting, ...] = get_args(_Setting)
_OF_CHANCE = ("top_p", "top_k", "min_p")  # they change nothing at temperature 0
_ENGINE = "engine"


class Made(NamedTuple):
    """How answers were made: the settings, and the run (None for published figures)."""

    sampling: SamplingFields
    run: Run | None


def others(reference: Made, runs: Sequence[tuple[Run, bool]]) -> dict[str, str]:
    """The runs that do not compare with the reference, by path, and in words how they differ from those that do.

    `runs` has each run, and whether it was compared. A run compares if only its model file differs, and how many
    answers were written together. If none is such, all engines compare; if still none, all runs do. Of several runs of
    a file, the one with the reference's batching compares, else the first.
    """
    differences = {run.path: differing(reference, run) for run, _ in runs}
    compared = [run.path for run, is_compared in runs if is_compared]
    if all(differences[path] for path in compared):
        for found in differences.values():
            found.pop(_ENGINE, None)
    if all(differences[path] for path in compared):
        differences = {path: {} for path in differences}
    words = {path: ", ".join(found.values()) for path, found in differences.items() if found}
    chosen: dict[object, Run] = {}
    own = _file(reference.run) if reference.run else None
    for run, _ in sorted(runs, key=lambda pair: _batching(pair[0]) != _batching(reference.run)):
        file = _file(run)
        if run.path in words or file is None:
            continue
        if file in chosen or file == own:
            words[run.path] = _again(run, reference.run)
        else:
            chosen[file] = run
    return {} if all(path in words for path in compared) else words


def _again(run: Run, reference: Run | None) -> str:
    """Another run of a file, in words, with its number of parallel answers if that is another one."""
    ours, theirs = _batching(run)[0], _batching(reference)[0]
    return f"another run of the same file{f', parallel {ours}' if ours and ours != theirs else ''}"


def differing(reference: Made, run: Run) -> dict[str, str]:
    """What differs besides the model file, as far as both record it: by kind, in words about the run."""
    theirs, ours = reference.sampling, run.sampling
    found: dict[str, str] = {}
    engines = (
        _engine(theirs, reference.run),
        _engine(ours, run),
    )
    if None not in engines and engines[0] != engines[1]:
        found[_ENGINE] = f"engine {engines[1]}"
    grammars = [is_constrained(each, engine) for each, engine in zip((theirs, ours), engines, strict=True)]
    if None not in grammars and grammars[0] != grammars[1]:
        found["grammar"] = "with a grammar" if grammars[1] else "no grammar"
    budgets = thought_budget(theirs), thought_budget(ours)
    if None not in budgets and budgets[0] != budgets[1]:
        found["thought"] = f"thought of up to {budgets[1]} tokens" if budgets[1] else "no thought"
    greedy = theirs.get("temperature") == ours.get("temperature") == 0
    for name in _SETTINGS:
        if greedy and name in _OF_CHANCE:
            continue
        values = theirs.get(name), ours.get(name)
        if None not in values and values[0] != values[1]:
            found[name] = f"{name.replace('_', ' ')} {values[1]}"
    if reference.run is not None:
        kinds = [each.result.get("engine", {}).get("kv_type", "f16") for each in (reference.run, run)]
        if kinds[0] != kinds[1]:
            found["cache"] = f"KV cache {kinds[1]}"
        if adapter_key(reference.run.result) != adapter_key(run.result):
            found["adapters"] = "other adapters"
        switches = [prompt_switches(each.result) for each in (reference.run, run)]
        for switch, value in switches[1].items():
            if switches[0].get(switch, value) != value:
                found[switch] = f"{switch.replace('_', ' ')} {value}"
        if _other_checkpoint(reference.run, run):
            found["checkpoint"] = "another checkpoint"
    return found


def _other_checkpoint(a: Run, b: Run) -> bool:
    """Whether both name what they were converted from, and the names or the revisions differ."""
    sources = [
        re.split(r"[/\\]", str(run.provenance.get("source") or "").rstrip("/\\"))[-1] for run in (a, b)
    ]
    revisions = [run.provenance.get("source_revision") for run in (a, b)]
    return any(all(pair) and pair[0] != pair[1] for pair in (sources, revisions))


def _engine(sampling: SamplingFields, run: Run | None) -> str | None:
    name = (run.provenance.get("backend") if run else None) or sampling.get("backend")
    return str(name) if name else None


def _file(run: Run) -> tuple[object, ...] | None:
    digest = run.provenance.get("model_sha256") or run.result.get("model_sha256")
    return (digest, adapter_key(run.result)) if digest else None


def _batching(run: Run | None) -> tuple[object, ...]:
    engine = run.result.get("engine", {}) if run else {}
    return engine.get("parallel"), engine.get("concurrency"), engine.get("batch")
