"""Put the shards of a replay together: check that they are of one run and complete, and write the whole result.

The checks of `Part` and the functions on it also serve the shards of measurements (edge/measure/join.py).
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edge.errors import EdgeWarning, ResultError
from edge.replay.prepare import template_summary
from edge.replay.result import read_result, stored_run, write_result
from edge.replay.rows import describe, step_key
from edge.replay.shards import ShardFields
from edge.replay.stored_result import EngineCounters, Head, PromptTemplate, Provenance, Result, Step
from edge.system.outputs import Run, check_output, check_replaced, differences

# Counters of `engine` that count work: the whole's is the sum. The others describe how a machine worked.
_WORK = (
    "steps_done_before",
    "prompt_tokens",
    "prompt_tokens_distinct",
    "prompt_tokens_decoded",
    "prompt_tokens_restored",
    "completion_tokens",
    "answer_passes",
    "forced_tokens",
    "thought_tokens",
)
# What may differ between the machines of one run.
_MACHINE = ("platform", "cpu", "threads", "rows_file_sha256", "llama_cpp")
_COMPARED = "model_sha256", "edge", "backend_version", "llama_cpp_python", "grammar_sha256"


@dataclass(frozen=True)
class Part:
    """A shard: its file, the field `shard`, its run, provenance, and the number of its steps."""

    path: str
    shard: ShardFields
    run: Run
    provenance: Provenance
    steps: int

    @property
    def name(self) -> str:
        """`shard 2 of 3`."""
        return f"shard {self.shard['index']} of {self.shard['count']}"

    @property
    def build(self) -> str:
        """Version and commit of llama.cpp; what follows in the field depends on the machine."""
        return (self.provenance.get("llama_cpp") or "").partition(";")[0]


def part_of(path: Path | str, content: Mapping[str, Any]) -> Part:
    """The shard in a file's content. Raises ResultError if it is not a shard, or a damaged one."""
    shard, run = content.get("shard"), content.get("run")
    if not shard:
        raise ResultError(f"{path}: is not a shard: it was written without --shard")
    if not isinstance(run, dict):
        raise ResultError(f"{path}: does not say which run it is of; make the shard again")
    places, steps = shard["places"], len(content["per_step"])
    whole = all(0 <= place < shard["rows"] for place in places) and places == sorted(set(places))
    if not whole or not 1 <= shard["index"] <= shard["count"]:
        raise ResultError(f"{path}: its field shard is damaged; make the shard again")
    if len(places) != steps:
        raise ResultError(
            f"{path}: has {steps} of the {len(places)} steps of its shard; make the shard again"
        )
    return Part(str(path), shard, run, content.get("provenance", {}), steps)


def check_parts(parts: Sequence[Part]) -> None:
    """Check that shards are all shards of one run. Raises ResultError that names the file that does not fit."""
    first = parts[0]
    by_index: dict[int, Part] = {}
    owner: dict[int, Part] = {}
    for part in parts:
        if (why := _disagreement(first, part)) is not None:
            raise ResultError(f"{part.path}: cannot be joined with {first.path}: {why}")
        twin = by_index.setdefault(part.shard["index"], part)
        if twin is not part:
            raise ResultError(f"{part.path}: is {part.name}, and so is {twin.path}; give each shard once")
        for place in part.shard["places"]:
            if (other := owner.setdefault(place, part)) is not part:
                raise ResultError(f"{part.path}: has row {place + 1}, which {other.path} has too")
    count = first.shard["count"]
    if missing := [str(index) for index in range(1, count + 1) if index not in by_index]:
        word = "shard" if len(missing) == 1 else "shards"
        raise ResultError(f"{first.path}: is {first.name}; {word} {', '.join(missing)} of {count} not given")
    if len(owner) < first.shard["rows"]:
        place = next(place for place in range(first.shard["rows"]) if place not in owner)
        raise ResultError(
            f"{first.path}: the shards lack row {place + 1} of {first.shard['rows']}; make them again"
        )


def _disagreement(first: Part, part: Part) -> str | None:
    """Why two files are not shards of one run; None if they are."""
    for name in ("model_sha256", "rows_sha256"):
        was, is_ = (each.run.get(name) for each in (first, part))
        if was != is_:
            return "another model" if name == "model_sha256" else "another set of rows"
    for name in ("count", "rows"):
        a, b = (each.shard["count"] if name == "count" else each.shard["rows"] for each in (first, part))
        if a != b:
            return f"it is of {b} {'shards' if name == 'count' else 'rows'}, not {a}"
    if changes := differences(_whole_run(first.run), _whole_run(part.run)):
        return f"another run ({changes})"
    stated = [{name: each.provenance.get(name) for name in _COMPARED} for each in (first, part)]
    if changes := differences(*stated):
        return f"another run ({changes})"
    if first.build != part.build:
        return f"another build of llama.cpp (was {first.build or 'unknown'}, is {part.build or 'unknown'})"
    return None


def _whole_run(run: Run) -> Run:
    return {name: value for name, value in run.items() if name != "shard"}


def joined_provenance(parts: Sequence[Part]) -> Provenance:
    """The provenance of the whole: that of the shards. What differs by machine is listed, or None.

    Issues an EdgeWarning if the shards were made on different machines: equal answers are promised only on equal ones.
    """
    first = parts[0].provenance
    merged: dict[str, Any] = dict(first)
    for name in _MACHINE:
        values = list(dict.fromkeys(cast(Mapping[str, Any], part.provenance).get(name) for part in parts))
        if len(values) > 1:
            texts = [value for value in values if isinstance(value, str)]
            merged[name] = (
                "; ".join(texts) if len(texts) == len(values) and name in ("platform", "cpu") else None
            )
            if name in ("cpu", "llama_cpp"):
                warnings.warn(
                    f"{parts[0].path}: the shards were made on machines with different {_WORDS[name]}: their answers "
                    "can differ in rounding from those of one machine",
                    EdgeWarning,
                    stacklevel=3,
                )
    merged["shards"] = len(parts)
    return cast(Provenance, merged)


_WORDS = {"cpu": "CPUs", "llama_cpp": "instruction sets or devices"}


def in_order(parts: Sequence[Part], steps: Sequence[Sequence[Any]]) -> list[Any]:
    """The steps of all shards in the order of the rows."""
    placed = [
        pair
        for part, some in zip(parts, steps, strict=True)
        for pair in zip(part.shard["places"], some, strict=True)
    ]
    return [step for _, step in sorted(placed, key=lambda pair: pair[0])]


def join(shards: Sequence[Path | str], out: Path | str, *, force: bool = False) -> Result:
    """Put the shards of one `edge eval` together, write the whole result to `out` and return it.

    In exact mode its steps and figures are byte for byte those of a run without shards. Times are sums over the
    machines, except `load_time_sec`, the longest. A result of another run at `out` is replaced only with `force`.
    Raises ResultError for a file that is not a shard, shards that are missing, given twice, or of different runs.
    """
    check_output(out, shards)
    results = [read_result(path) for path in shards]
    parts = [part_of(path, result) for path, result in zip(shards, results, strict=True)]
    check_parts(parts)
    run = dict(_whole_run(parts[0].run))
    check_replaced(out, run, stored_run, kind="a result", force=force)
    steps: list[Step] = in_order(parts, [result["per_step"] for result in results])
    _check_keys(parts, results)
    first = results[0]
    seconds = sum(result.get("gen_time_sec") or 0.0 for result in results)
    answered = len(steps) - sum(result.get("engine", {}).get("steps_done_before", 0) for result in results)
    left_out = ("shard", "schema_version", "timestamp", "aggregate", "per_step")
    head = cast(Head, {name: value for name, value in first.items() if name not in left_out})
    head["run"] = run
    head["load_time_sec"] = max(result.get("load_time_sec") or 0.0 for result in results)
    head["gen_time_sec"] = round(seconds, 3)
    head["avg_sec_per_step"] = round(seconds / answered, 3) if answered else 0.0
    if len({str(result.get("gpu")) for result in results}) > 1:
        head["gpu"] = "; ".join(dict.fromkeys(str(result.get("gpu")) for result in results))
    head["prompt_template"] = _template(first.get("prompt_template", {}), steps)
    head["engine"] = _engine([result.get("engine", {}) for result in results])
    head["provenance"] = joined_provenance(parts)
    return write_result(out, head, steps)


def _check_keys(parts: Sequence[Part], results: Iterable[Result]) -> None:
    """Raises ResultError if two shards answer the same step."""
    owner: dict[object, str] = {}
    for part, result in zip(parts, results, strict=True):
        for step in result["per_step"]:
            key = step_key(step)
            if (other := owner.setdefault(key, part.path)) != part.path:
                raise ResultError(f"{part.path}: has {describe(key)}, which {other} has too")


def _template(template: PromptTemplate, steps: Sequence[Step]) -> PromptTemplate:
    """That of the shards, which describes the prompts of all rows; counted from the steps if a server wrote them."""
    if template.get("template_status") != "server_chat":
        return template
    lengths = [tokens for step in steps if (tokens := step.get("prompt_tokens"))]
    return {**template, **template_summary(["server_chat"] * len(steps), lengths)}


def _engine(engines: Sequence[EngineCounters]) -> EngineCounters:
    merged: dict[str, Any] = dict(engines[0])
    for name in merged:
        values = [cast(Mapping[str, Any], engine).get(name) for engine in engines]
        numbers = [value for value in values if isinstance(value, int)]
        if name in _WORK:
            merged[name] = sum(numbers)
        elif name == "peak_memory_bytes":
            merged[name] = max(numbers, default=None)
        elif any(value != values[0] for value in values):
            merged[name] = None
    return cast(EngineCounters, merged)
