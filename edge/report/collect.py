"""Read the files of a report, compare the results with the reference, and gather the contents of the report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.compare.causes import causes
from edge.compare.findings import Comparison, Part
from edge.compare.intervals import mean_interval
from edge.compare.run import compare, published_model
from edge.compare.trials import is_trials
from edge.errors import ResultError
from edge.metrics import Aggregate, aggregate, headline
from edge.replay.known import find_known
from edge.replay.stored_result import Step
from edge.report import patterns
from edge.report.contents import Entry, Report
from edge.report.evidence import Named, Run, read_runs, short_labels
from edge.report.group import Made, others
from edge.report.measurements import number
from edge.report.tried import with_trials
from edge.report.worse import WorseStep, read_replay, worse_steps

WORSE = 20
"""The default maximum number of steps that got worse, for each result."""


def collect(
    results: Sequence[Path | str],
    reference: Path | str | None = None,
    *,
    worse: int = WORSE,
    replay: Path | str | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    named: Mapping[str, Named] | None = None,
) -> Report:
    """Read and compare what a report shows. The parameters are those of `report`; `named` is that of `read_runs`.

    Raises ResultError, ReplayError.
    """
    file = published = None
    if reference is not None:
        if isinstance(reference, Path) or Path(reference).exists():
            file = Path(reference)
        else:
            published = reference
    paths = all_paths(results, reference)
    trials = [str(path) for path in paths if is_trials(path)]
    rest = [path for path in paths if str(path) not in trials]
    if trials and not rest:
        raise ResultError(
            f"{trials[0]}: is a result of edge trial: give the result of edge eval of the same model too"
        )
    runs = read_runs(rest, named)
    all_notes = list(notes)
    base = None
    if file is not None:
        base = _run_of(file, runs)
    elif published is None:
        base, note = _default_reference(runs)
        all_notes += [note] if note else []
    others = [run for run in runs if run is not base]
    if base is not None and not others:
        raise ResultError(f"{base.path}: is the reference, and there is no other result: give one to report")
    comparison = _compared(base, published, others)
    parts = {part.result: part for part in comparison.parts} if comparison else {}
    rows = read_replay(replay) if replay is not None else None
    entries = [_entry(base, None, True, ())] if base else []
    if published is not None:
        entries = [_published(published)]
    for run in others:
        part = parts.get(run.path)
        got_worse = worse_steps(part, run, base, rows, worse) if part and base else ()
        entries.append(_entry(run, part, False, got_worse))
    with_steps = [run.path for run in runs if run.steps]
    found = causes(with_steps) if len(with_steps) > 1 else ()
    sorted_out = _sorted_out(entries, base, published)
    kept, tried = with_trials(sorted_out, trials, named)
    return Report(title, _subject(entries), kept, comparison, found, tuple(all_notes), tried)


def all_paths(results: Sequence[Path | str], reference: Path | str | None) -> list[Path | str]:
    """The results, and the reference if it is a file that is not among them."""
    paths = list(results)
    is_file = reference is not None and (isinstance(reference, Path) or Path(reference).exists())
    if is_file and Path(str(reference)).resolve() not in {Path(path).resolve() for path in paths}:
        paths.append(str(reference))
    return paths


def _sorted_out(entries: Sequence[Entry], base: Run | None, published: str | None) -> list[Entry]:
    """The entries, each with how it differs from the runs that compare with the reference."""
    if base is not None:
        reference = Made(base.sampling, base)
    elif published is not None:
        reference = Made(find_known(published).reference_run, None)
    else:
        return list(entries)
    runs = [(entry.run, entry.part is not None) for entry in entries if entry.run and not entry.is_reference]
    words = others(reference, runs)
    return [replace(e, other=words.get(e.run.path, "")) if e.run else e for e in entries]


def score_interval(steps: Sequence[Step]) -> tuple[float, float] | None:
    """The 95 % interval of the score of some steps (0 to 100), from bootstrap draws of tasks; None for one task."""
    tasks = {task: index for index, task in enumerate(dict.fromkeys(step["task_id"] for step in steps))}
    if len(tasks) < 2:
        return None
    sums, counts = np.zeros(len(tasks)), np.zeros(len(tasks))
    for step in steps:
        sums[tasks[step["task_id"]]] += 100 * step["command_f1"]
        counts[tasks[step["task_id"]]] += 1
    low, high = mean_interval(sums, counts)
    return max(0.0, low), min(100.0, high)


def _run_of(file: Path, runs: Sequence[Run]) -> Run:
    for run in runs:
        if Path(run.path).resolve() == file.resolve():
            return run
    raise ResultError(f"{file}: is not a result of edge eval or edge score, and the reference must be one")


def _default_reference(runs: Sequence[Run]) -> tuple[Run | None, str]:
    """The only unquantized one of several results; if there is no such result, None and a note that says why."""
    candidates = [run for run in runs if run.unquantized and run.steps]
    if len(runs) == 1:
        return None, ""
    if len(candidates) == 1:
        return candidates[0], ""
    why = f"{len(candidates)} of the results are unquantized" if candidates else "no result is unquantized"
    return None, patterns.NO_DEFAULT_REFERENCE(why=why)


def _compared(base: Run | None, published: str | None, others: Sequence[Run]) -> Comparison | None:
    """The comparison of all results that have steps with the reference; None if there is nothing to compare."""
    with_steps = [run.path for run in others if run.steps]
    if base is not None:
        return compare(with_steps, Path(base.path)) if with_steps else None
    if published is not None:
        if with_steps:
            return compare(with_steps, published)
        published_model(published)
    return None


def _entry(run: Run, part: Part | None, is_reference: bool, worse: tuple[WorseStep, ...]) -> Entry:
    result, provenance = run.result, run.provenance
    engine = result.get("engine", {})
    figures = result.get("aggregate") or aggregate(run.steps)
    seconds, written = result.get("gen_time_sec"), engine.get("completion_tokens")
    return Entry(
        label=run.label,
        run=run,
        published=not run.measured_here,
        is_reference=is_reference,
        backend=str(provenance.get("backend") or run.sampling.get("backend") or "unknown"),
        constrained=run.sampling.get("constrained"),
        n_bytes=provenance.get("model_bytes"),
        bits_per_weight=provenance.get("bits_per_weight"),
        steps=len(run.steps) or figures.get("steps", 0),
        tasks=len({step["task_id"] for step in run.steps}) or None,
        score=headline(figures) if "avg_command_f1" in figures else None,
        score_interval=score_interval(run.steps),
        figures=_numbers(figures),
        tokens_per_second=written / seconds if written and seconds else None,
        peak_bytes=engine.get("peak_memory_bytes"),
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


def _subject(entries: Iterable[Entry]) -> str:
    """The checkpoint's name, if all runs that name a source name the same one; else what their model names share."""
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
