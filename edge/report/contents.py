"""The contents of a report: its entries, their comparison with the reference, and the causes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.compare.causes import Cause, causes
from edge.compare.findings import Comparison, Figure, Part
from edge.compare.intervals import interval, resampled_means
from edge.compare.run import compare
from edge.errors import EdgeError, ResultError
from edge.metrics import Aggregate, aggregate, headline
from edge.replay.known import find_known
from edge.replay.stored_result import Step
from edge.report.evidence import Measurement, Run, number, read_runs, short_labels
from edge.report.worse import WorseStep, read_replay, worse_steps

MAIN = ("score", "first_cmd_exact_pct", "valid_json_pct")
"""The figures that stand in the table and the plots; the other ones stand in the tables of differences."""


WORSE = 20  # steps that got worse, shown for each result


@dataclass(frozen=True)
class Entry:
    """One row of the table of quantizations; None and () where the file does not tell."""

    label: str
    run: Run | None
    """None for figures that were published without a result."""
    published: bool
    """Not measured by edge: its figures get a mark wherever they stand."""
    is_reference: bool
    backend: str
    constrained: bool | None
    n_bytes: float | None
    bits_per_weight: float | None
    steps: int
    tasks: int | None
    score: float | None
    score_interval: tuple[float, float] | None
    """95 %, bootstrap over tasks."""
    figures: Mapping[str, float]
    """Those of the aggregate, under its names."""
    tokens_per_second: float | None
    """Answer tokens by the whole run's seconds, reading the prompts included."""
    peak_bytes: float | None
    part: Part | None
    """Its comparison with the reference."""
    measurements: tuple[Measurement, ...]
    worse: tuple[WorseStep, ...]

    @property
    def measured(self) -> Measurement | None:
        """The measurement that the table shows: on reference answers before plain text, with a base before without."""
        ranked = sorted(self.measurements, key=lambda m: ("kl_mean" not in m.aggregate, m.kind != "rows"))
        return ranked[0] if ranked else None

    def figure(self, name: str) -> Figure | None:
        """One figure of its comparison."""
        return next((f for f in self.part.figures if f.name == name), None) if self.part else None


@dataclass(frozen=True)
class Report:
    """Everything that a report tells, before it is a page."""

    title: str
    """The heading that was asked for, or ""."""
    subject: str
    """The model that was quantized, or "" where the files do not agree on one."""
    entries: tuple[Entry, ...]
    """The reference first, where there is one."""
    comparison: Comparison | None
    causes: tuple[Cause, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.is_reference), None)

    @property
    def compared(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.part is not None]


def collect(
    results: Sequence[Path | str],
    reference: Path | str | None = None,
    *,
    worse: int = WORSE,
    replay: Path | str | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Report:
    """Read and compare what a report tells. Raises ResultError, ReplayError."""
    is_file = reference is not None and (isinstance(reference, Path) or Path(reference).exists())
    paths = list(results)
    if is_file and Path(str(reference)).resolve() not in {Path(path).resolve() for path in paths}:
        paths.append(str(reference))
    runs = read_runs(paths)
    told_notes = list(notes)
    base: Run | None = None
    if is_file:
        base = next((run for run in runs if Path(run.path).resolve() == Path(str(reference)).resolve()), None)
        if base is None:
            raise ResultError(f"{reference}: is a measurement: the reference must be a result")
    elif reference is None:
        base = _default_reference(runs, told_notes)
    others = [run for run in runs if run is not base]
    if base is not None and not others:
        raise ResultError(f"{base.path}: is the reference, and there is no other result to report")
    entries: list[Entry] = []
    comparison = None
    if base is not None or reference is not None:
        joined = [run for run in others if run.steps]
        against = base.path if base else str(reference)
        if joined:
            comparison = compare([run.path for run in joined], Path(against) if base else against)
        elif base is None:
            find_reference(against)
    parts = {part.result: part for part in comparison.parts} if comparison else {}
    rows = read_replay(replay) if replay is not None else None
    entries = [_entry(base, None, True, ())] if base else []
    if base is None and reference is not None:
        entries = [_published(str(reference))]
    for run in others:
        part = parts.get(run.path)
        found = worse_steps(part, run, base, rows, worse) if part and base else ()
        entries.append(_entry(run, part, False, found))
    told: tuple[Cause, ...] = ()
    if len(with_steps := [run.path for run in runs if run.steps]) > 1:
        told = causes(with_steps)
    return Report(title, _subject(entries), tuple(entries), comparison, told, tuple(told_notes))


def find_reference(name: str) -> None:
    """Raises ResultError where `name` is neither a file nor a known model with published figures."""
    try:
        known = find_known(name)
    except EdgeError as error:
        raise ResultError(f"{name}: no such file; {str(error).removeprefix(f'{name}: ')}") from None
    if not known.reference:
        raise ResultError(f"{name}: no figures were published for this model: give a result JSON")


def _default_reference(runs: Sequence[Run], notes: list[str]) -> Run | None:
    candidates = [run for run in runs if run.unquantized and run.steps]
    if len(candidates) == 1 and len(runs) > 1:
        return candidates[0]
    if len(runs) > 1:
        why = (
            f"{len(candidates)} of the results are unquantized" if candidates else "no result is unquantized"
        )
        notes.append(f"No reference was named and {why}, so nothing is compared: --reference names one.")
    return None


def _entry(run: Run, part: Part | None, is_reference: bool, worse: tuple[WorseStep, ...]) -> Entry:
    result, provenance = run.result, run.provenance
    engine = result.get("engine", {})
    figures = result.get("aggregate") or aggregate(run.steps)
    seconds, written = number(result.get("gen_time_sec")), number(engine.get("completion_tokens"))
    constrained = run.sampling.get("constrained")
    return Entry(
        label=run.label,
        run=run,
        published=not run.measured_here,
        is_reference=is_reference,
        backend=str(provenance.get("backend") or run.sampling.get("backend") or "unknown"),
        constrained=constrained if isinstance(constrained, bool) else None,
        n_bytes=number(provenance.get("model_bytes")),
        bits_per_weight=number(provenance.get("bits_per_weight")),
        steps=len(run.steps) or figures.get("steps", 0),
        tasks=len({step["task_id"] for step in run.steps}) or None,
        score=headline(figures) if "avg_command_f1" in figures else None,
        score_interval=score_interval(run.steps),
        figures=_numbers(figures),
        tokens_per_second=written / seconds if written and seconds else None,
        peak_bytes=number(engine.get("peak_memory_bytes")),
        part=part,
        measurements=run.measurements,
        worse=worse,
    )


def _published(name: str) -> Entry:
    known = find_known(name)
    return Entry(
        label=known.name,
        run=None,
        published=True,
        is_reference=True,
        backend=str(known.reference_run.get("backend") or "unknown"),
        constrained=None,
        n_bytes=None,
        bits_per_weight=None,
        steps=known.reference.get("steps", 0),
        tasks=None,
        score=headline(known.reference) if "avg_command_f1" in known.reference else None,
        score_interval=None,
        figures=_numbers(known.reference),
        tokens_per_second=None,
        peak_bytes=None,
        part=None,
        measurements=(),
        worse=(),
    )


def _numbers(figures: Aggregate) -> dict[str, float]:
    """The figures of an aggregate that are one number each."""
    return {name: value for name, figure in figures.items() if (value := number(figure)) is not None}


def score_interval(steps: Sequence[Step]) -> tuple[float, float] | None:
    """The 95 % interval of the score of some steps, 0 to 100, by drawing their tasks anew; None for one task."""
    tasks = {task: index for index, task in enumerate(dict.fromkeys(step["task_id"] for step in steps))}
    if len(tasks) < 2:
        return None
    sums, counts = np.zeros(len(tasks)), np.zeros(len(tasks))
    for step in steps:
        sums[tasks[step["task_id"]]] += 100 * step["command_f1"]
        counts[tasks[step["task_id"]]] += 1
    low, high = interval(resampled_means(sums, counts), len(tasks))
    return max(0.0, low), min(100.0, high)


def _subject(entries: Iterable[Entry]) -> str:
    """The checkpoint's name, where all runs that tell of one tell of the same; else what their model names share."""
    runs = [entry.run for entry in entries if entry.run]
    sources = {str(run.provenance["source"]).rstrip("/") for run in runs if run.provenance.get("source")}
    if len(sources) == 1:
        return sources.pop().rpartition("/")[2]
    if sources:
        return ""
    names = [re.sub(r"\s*\([^()]*\)\s*$", "", str(run.result.get("model") or "")) for run in runs]
    if len(set(names)) == 1:
        return names[0]
    labels = short_labels(names)
    return names[0].removesuffix(labels[0]).rstrip("-_. ") if names else ""
