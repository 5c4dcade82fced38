"""Put the shards of a replay together: check that they are of one run and complete, and write the whole result.

The checks of `Part` and the functions on it also serve the shards of measurements (edge/measure/join.py).
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edge.errors import EdgeError, EdgeWarning, ResultError
from edge.replay.prepare import template_summary
from edge.replay.result import adapter_key, read_result, stored_run, write_result
from edge.replay.rows import describe, step_key
from edge.replay.shards import MOST, Shard, ShardFields
from edge.replay.stored_result import EngineCounters, Head, PromptTemplate, Provenance, Result, Step
from edge.system.hashes import text_sha256
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
# What a shard says in more than one place: the field of its run, and where else.
_TWICE = (
    ("model_sha256", "model_sha256", "model file"),
    ("rows_sha256", "rows_sha256", "set of rows"),
    ("rows", "rows_sha256", "set of rows"),
    ("grammar_sha256", "grammar_sha256", "grammar"),
)
_COMPARED = "model_sha256", "edge", "backend_version", "llama_cpp_python", "grammar_sha256"


@dataclass(frozen=True)
class Part:
    """A shard: its file, the field `shard`, its run, provenance, and the task of each of its steps."""

    path: str
    shard: ShardFields
    run: Run
    provenance: Provenance
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """`shard 2 of 3`."""
        return f"shard {self.shard['index']} of {self.shard['count']}"

    @property
    def build(self) -> str:
        """Version and commit of llama.cpp; what follows in the field depends on the machine."""
        return (self.provenance.get("llama_cpp") or "").partition(";")[0]


def part_of(path: Path | str, content: Mapping[str, Any], tasks: Sequence[str]) -> Part:
    """The shard in a file's content; `tasks`: the task of each step.

    Raises ResultError if it is not a shard, a damaged one, or one that contradicts itself.
    """
    shard, run = content.get("shard"), content.get("run")
    if not shard:
        raise ResultError(f"{path}: is not a shard: it was written without --shard")
    if not isinstance(run, dict):
        raise ResultError(f"{path}: does not say which run it is of; make the shard again")
    places, steps = shard["places"], len(tasks)
    whole = all(0 <= place < shard["rows"] for place in places) and places == sorted(set(places))
    if not whole or not 1 <= shard["index"] <= shard["count"] or not 2 <= shard["count"] <= MOST:
        raise ResultError(f"{path}: its field shard is damaged; make the shard again")
    if run.get("shard") != (own := f"{shard['index']}/{shard['count']}"):
        raise ResultError(f"{path}: says that it is shard {own}, and that its run was {run.get('shard')}")
    provenance = content.get("provenance", {})
    for in_run, elsewhere, what in _TWICE:
        stated = {run.get(in_run), provenance.get(elsewhere), content.get(elsewhere)} - {None}
        if in_run in run and len(stated) > 1:
            raise ResultError(f"{path}: names more than one {what} ({elsewhere}); make the shard again")
    if len(places) != steps:
        raise ResultError(
            f"{path}: has {steps} of the {len(places)} steps of its shard; make the shard again"
        )
    return Part(str(path), shard, run, provenance, tuple(tasks))


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
    _check_plan(parts)


def _check_plan(parts: Sequence[Part]) -> None:
    """Raise ResultError if a shard does not have the rows that `--shard` gives it."""
    tasks = in_order(parts, [part.tasks for part in parts])
    wrong: dict[str, int] = {}
    for part in parts:
        try:
            own = Shard(part.shard["index"], part.shard["count"]).places(tasks, part.path)
        except EdgeError as error:
            raise ResultError(f"{error}; make the shards again") from None
        if others := set(own) ^ set(part.shard["places"]):
            wrong[part.path] = min(others)
    if wrong:
        place = min(wrong.values())
        raise ResultError(
            f"{', '.join(wrong)}: not the rows that --shard gives, from row {place + 1} ({tasks[place]}) on: a file "
            "was changed; make the shards again"
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
    parts = []
    for path, result in zip(shards, results, strict=True):
        parts.append(part_of(path, result, [step["task_id"] for step in result["per_step"]]))
        _check_content(parts[-1], result)
    check_parts(parts)
    _check_alike(parts, results)
    run = dict(_whole_run(parts[0].run))
    check_replaced(out, run, stored_run, kind="a result", force=force)
    steps: list[Step] = in_order(parts, [result["per_step"] for result in results])
    _check_keys(parts, results)
    _check_prompts(parts, steps)
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


def _check_content(part: Part, result: Result) -> None:
    """Raise ResultError if a shard contradicts itself: its settings, its counters, or the figures of its steps."""
    if any(name in result for name in ("rescored", "reread", "stated_steps")):
        raise ResultError(
            f"{part.path}: has figures that do not follow from its answers: the file was changed; make the shard again"
        )
    if result.get("complete") is False:
        raise ResultError(f"{part.path}: is unfinished; make the shard again")
    engine = result.get("engine", {})
    made: list[Mapping[str, Any]] = [result.get("sampling", {}), {"kv_type": engine.get("kv_type")}]
    for fields in made:
        for name, value in fields.items():
            if value is not None and part.run.get(name, value) != value:
                raise ResultError(
                    f"{part.path}: says that {name} was {part.run[name]}, and that it was {value}; make the shard again"
                )
    stated = part.run.get("adapters")
    of_run = (
        tuple((one["sha256"], one["scale"]) for one in stated.values()) if isinstance(stated, dict) else None
    )
    if "adapters" in part.run and part.provenance.get("backend") == "edge" and adapter_key(result) != of_run:
        raise ResultError(f"{part.path}: names other adapters than its run; make the shard again")
    template = result.get("prompt_template", {})
    rows = template.get("row_count", part.shard["rows"])
    if rows != (len(part.tasks) if template.get("template_status") == "server_chat" else part.shard["rows"]):
        raise ResultError(f"{part.path}: describes the prompts of {rows} rows; make the shard again")
    before, steps = engine.get("steps_done_before", 0), result["per_step"]
    written = [step.get("completion_tokens") for step in steps]
    counted_tokens = sum(tokens or 0 for tokens in written)
    too_many = None not in written and engine.get("completion_tokens", 0) > counted_tokens
    if not 0 <= before <= len(steps) or too_many:
        raise ResultError(f"{part.path}: counts more work than its steps have; make the shard again")


def _check_alike(parts: Sequence[Part], results: Sequence[Result]) -> None:
    """Raise ResultError if shards of one run record other settings or other prompts of all rows."""
    for part, result in zip(parts, results, strict=True):
        for name in ("sampling", "prompt_template"):
            theirs, ours = (
                dict(cast(Mapping[str, Any], each).get(name, {})) for each in (results[0], result)
            )
            if theirs.get("template_status") == "server_chat":
                continue  # its lengths are those of the shard's own steps
            if theirs != ours:
                field = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
                raise ResultError(
                    f"{part.path}: cannot be joined with {parts[0].path}: {name}.{field} was {theirs.get(field)}, "
                    f"is {ours.get(field)}"
                )


def _check_prompts(parts: Sequence[Part], steps: Sequence[Step]) -> None:
    """Raise ResultError if the prompts of the steps, in their order, are not those of the run."""
    hashes = [digest for step in steps if (digest := step.get("prompt_sha256"))]
    stated = parts[0].run.get("prompts_sha256")
    if stated and len(hashes) == len(steps) and text_sha256("\n".join(hashes)) != stated:
        raise ResultError(
            f"{', '.join(part.path for part in parts)}: the prompts of their steps are not those of the run: a file "
            "was changed; make the shards again"
        )


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
