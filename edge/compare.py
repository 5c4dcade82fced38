"""`edge compare`: what a model lost or gained against a reference, figure by figure and step by step.

Where both sides hold steps, only the steps that both hold are compared, and both sides' figures are made anew from
those. A difference's 95 % interval is a paired bootstrap over tasks: steps of one task share their history, so whole
tasks are drawn, both sides by the same draw. Published figures alone cannot be paired; they get a plain difference.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import EdgeError, ResultError
from edge.known import find_known
from edge.markdown import clean, code, table
from edge.metrics import FIGURES, TERMS, aggregate, headline
from edge.replay import Key, by_step, describe, without_sample
from edge.result import read_result, step_key, whole_text, write_json

RESAMPLES = 10_000
SEED = 20260604  # fixed, so that the same files give the same intervals
FEW_TASKS = 10  # below this many a bootstrap over tasks gives intervals that are too narrow

_LABELS = {
    "score": "score (100 × F1)",
    "next_action_score": "next-action score",
    "avg_command_f1": "command F1",
    "avg_command_precision": "command precision",
    "avg_command_recall": "command recall",
    "first_cmd_exact_pct": "first command exact %",
    "valid_json_pct": "valid JSON %",
    "has_analysis_pct": "has analysis %",
    "has_plan_pct": "has plan %",
    "empty_commands_pct": "empty commands %",
    "avg_ref_cmds": "reference commands a step",
    "avg_pred_cmds": "predicted commands a step",
    "complete_true_recall_pct": "complete recall %",
    "premature_complete_rate_pct": "premature complete %",
}
_LESS_IS_BETTER = ("empty_commands_pct", "premature_complete_rate_pct")
_NEITHER_IS_BETTER = ("avg_ref_cmds", "avg_pred_cmds")


@dataclass(frozen=True)
class Figure:
    """One metric: percent for `*_pct` and the scores, shares of 1 for F1 and its parts, else a count a step.

    `low` and `high` bound the difference (ours less the reference) at 95 %; None where nothing can be paired.
    """

    name: str
    reference: float | None
    ours: float
    difference: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Worse:
    """A step whose command F1 fell; the first commands are "" where there was none."""

    task_id: str
    sample_idx: int
    step_idx: int
    reference_f1: float
    our_f1: float
    wanted: str
    reference_first: str
    our_first: str


@dataclass(frozen=True)
class Part:
    """One result against the reference. Counts are steps; `agreement` holds percentages of the joined ones."""

    result: str
    model: str
    joined: int
    only_ours: int
    only_reference: int
    other_rows: int
    """Steps of the same name whose reference answers differ: they are left out."""
    tasks: int
    figures: tuple[Figure, ...]
    agreement: dict[str, float]
    better: int
    same: int
    worse: tuple[Worse, ...]
    """Most first."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Results against one reference; `paired` where the reference holds steps."""

    reference: str
    model: str
    paired: bool
    parts: tuple[Part, ...]

    def to_json(self) -> str:
        """Everything that was found, every step that got worse included."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def write_json(self, path: Path | str) -> None:
        """Write it to a file, whole or not at all. Raises ResultError."""
        write_json(path, asdict(self))

    def to_markdown(self, worse: int = 10) -> str:
        """Tables that read well in a terminal too, with up to `worse` steps that got worse for each result."""
        lines = [f"# Compared with {clean(self.model)}", "", f"Reference: {clean(self.reference)}", ""]
        if len(self.parts) > 1:
            lines += [*_overview(self.parts), ""]
        for part in self.parts:
            lines += [*_section(part, self.paired, worse), ""]
        return "\n".join(lines).rstrip() + "\n"


@dataclass(frozen=True)
class _Reference:
    name: str
    model: str
    steps: dict[Key, dict[str, Any]]
    figures: Mapping[str, Any]
    sampling: Mapping[str, Any]


def compare(results: Sequence[Path | str], reference: Path | str) -> Comparison:
    """Compare results with a reference: a result JSON, or a known model's name for its published figures.

    Raises ResultError for a file that is no result, a reference that is neither, and results without a common step.
    """
    if not results:
        raise ResultError("no result to compare: give at least one result JSON")
    base = _read_reference(reference)
    parts = tuple(_part(path, read_result(path), base) for path in results)
    return Comparison(base.name, base.model, bool(base.steps), parts)


def _read_reference(reference: Path | str) -> _Reference:
    if Path(reference).exists() or isinstance(reference, Path):
        result = read_result(reference)
        steps = {step_key(step): step for step in result["per_step"]}
        figures = _mapping(result.get("aggregate"))
        return _Reference(
            str(reference), _model(result, reference), steps, figures, _mapping(result.get("sampling"))
        )
    try:
        known = find_known(reference)
    except EdgeError as error:
        raise ResultError(f"{reference}: no such file; {str(error).removeprefix(f'{reference}: ')}") from None
    if not known.reference:
        raise ResultError(f"{reference}: no figures were published for this model: give a result JSON")
    name = f"published figures of {known.name} ({known.reference_source})"
    return _Reference(name, known.name, {}, known.reference, known.reference_run)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _model(result: Mapping[str, Any], path: Path | str) -> str:
    return str(result.get("model") or Path(path).stem)


def _part(path: Path | str, result: dict[str, Any], base: _Reference) -> Part:
    ours = _keyed(result["per_step"], base.steps)
    if not ours:
        raise ResultError(f"{path}: holds no steps")
    notes = _run_notes(result, base)
    if not base.steps:
        figures = _published_figures(aggregate(ours.values()), base.figures)
        notes = [_unpaired_note(len(ours), base.figures), *notes]
        tasks = len({key[0] for key in ours})
        return Part(
            str(path), _model(result, path), 0, len(ours), 0, 0, tasks, figures, {}, 0, 0, (), tuple(notes)
        )

    base_by_key = _keyed(base.steps.values(), ours)
    common = [key for key in ours if key in base_by_key]
    joined = [
        key for key in common if ours[key]["ref_command_units"] == base_by_key[key]["ref_command_units"]
    ]
    if not joined:
        why = "their reference answers differ" if common else "they hold different steps"
        raise ResultError(f"{path}: no step can be joined with {base.name}: {why}")
    our_steps, base_steps = [ours[key] for key in joined], [base_by_key[key] for key in joined]
    tasks = len({key[0] for key in joined})
    if tasks < FEW_TASKS:
        notes.append(
            f"Only {tasks} task{'s' * (tasks > 1)}: intervals over so few are rough, and too narrow."
        )
    changes = [a["command_f1"] - b["command_f1"] for a, b in zip(our_steps, base_steps, strict=True)]
    worse = [
        _worse(key, ours[key], base_by_key[key])
        for key, change in zip(joined, changes, strict=True)
        if change < 0
    ]
    worse.sort(
        key=lambda step: (step.our_f1 - step.reference_f1, step.task_id, step.sample_idx, step.step_idx)
    )
    return Part(
        result=str(path),
        model=_model(result, path),
        joined=len(joined),
        only_ours=len(ours) - len(common),
        only_reference=len(base.steps) - len(common),
        other_rows=len(common) - len(joined),
        tasks=tasks,
        figures=_paired_figures(our_steps, base_steps),
        agreement=_agreement(our_steps, base_steps),
        better=sum(change > 0 for change in changes),
        same=sum(change == 0 for change in changes),
        worse=tuple(worse),
        notes=tuple(notes),
    )


def _keyed(steps: Iterable[dict[str, Any]], others: Iterable[Key]) -> dict[Key, dict[str, Any]]:
    """Steps by their key; one without a sample_idx is the other side's only sample of it, else sample 0."""
    known = by_step(others)
    keyed = {}
    for step in steps:
        key = step_key(step)
        keyed[without_sample(key, known) if step.get("sample_idx") is None else key] = step
    return keyed


def _run_notes(result: Mapping[str, Any], base: _Reference) -> list[str]:
    notes = []
    sampling = _mapping(result.get("sampling"))
    for name in ("temperature", "top_p", "max_tokens", "repetition_penalty"):
        theirs, ours = base.sampling.get(name), sampling.get(name)
        if theirs is not None and ours is not None and theirs != ours:
            notes.append(f"The runs differ: {name} is {theirs} in the reference, {ours} in ours.")
    status = _mapping(result.get("prompt_template"))
    if status.get("rank_eligible") is False and status.get("template_status") != "unknown":
        notes.append(f"Ours is not rank-eligible: its prompts are by {status.get('template_status')}.")
    return notes


def _unpaired_note(steps: int, figures: Mapping[str, Any]) -> str:
    published = f" of {figures['steps']:g} steps" if "steps" in figures else ""
    return (
        f"The reference is published figures{published}, ours are of {steps} steps: with no rows on its side nothing "
        "can be paired, so there are no intervals and no list of steps that got worse."
    )


def _worse(key: Key, ours: Mapping[str, Any], base: Mapping[str, Any]) -> Worse:
    def first(units: list[str]) -> str:
        return units[0] if units else ""

    return Worse(
        *key,
        reference_f1=base["command_f1"],
        our_f1=ours["command_f1"],
        wanted=first(ours["ref_command_units"]),
        reference_first=first(base["pred_command_units"]),
        our_first=first(ours["pred_command_units"]),
    )


def _agreement(ours: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    pairs = list(zip(ours, base, strict=True))
    units = [(a["pred_command_units"], b["pred_command_units"]) for a, b in pairs]
    shares = {
        "same_first_command_pct": [a[:1] == b[:1] for a, b in units],
        "same_commands_pct": [a == b for a, b in units],
    }
    texts = [(whole_text(a), whole_text(b)) for a, b in pairs]
    if all(text is not None for pair in texts for text in pair):
        shares["same_text_pct"] = [a == b for a, b in texts]
    return {name: round(100 * sum(same) / len(same), 1) for name, same in shares.items()}


def _figures_with_score(figures: Mapping[str, Any]) -> dict[str, float]:
    named = {name: float(figures[name]) for name in FIGURES if isinstance(figures.get(name), int | float)}
    return ({"score": headline(named)} if "avg_command_f1" in named else {}) | named


def _places(name: str) -> int:
    return 2 if name in ("score", "next_action_score") else TERMS[name][1]


def _published_figures(ours: Mapping[str, Any], published: Mapping[str, Any]) -> tuple[Figure, ...]:
    theirs = _figures_with_score(published)
    figures = []
    for name, value in _figures_with_score(ours).items():
        reference = theirs.get(name)
        difference = None if reference is None else round(value - reference, _places(name)) + 0.0
        verdict = "not published" if reference is None else "not paired"
        figures.append(Figure(name, reference, value, difference, None, None, verdict))
    return tuple(figures)


def _paired_figures(ours: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> tuple[Figure, ...]:
    our_figures, base_figures = _figures_with_score(aggregate(ours)), _figures_with_score(aggregate(base))
    intervals = _intervals(ours, base)
    figures = []
    for name, value in our_figures.items():
        places = _places(name)
        difference = round(value - base_figures[name], places) + 0.0  # + 0.0 turns -0.0 into 0.0
        low, high = intervals[name] if intervals else (None, None)
        counted = name not in TERMS or any(TERMS[name][2](step) is not None for step in ours)
        figures.append(
            Figure(
                name,
                base_figures[name],
                value,
                difference,
                None if low is None else round(low, places) + 0.0,
                None if high is None else round(high, places) + 0.0,
                _verdict(name, low, high, counted),
            )
        )
    return tuple(figures)


def _verdict(name: str, low: float | None, high: float | None, counted: bool) -> str:
    if not counted:
        return "no such steps"
    if low is None or high is None:
        return "one task: no interval"
    if low == high == 0:
        return "no difference"
    if low <= 0 <= high:
        return "no difference detected (interval includes 0)"
    if name in _NEITHER_IS_BETTER:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) != (name in _LESS_IS_BETTER) else "worse"


def _intervals(
    ours: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]
) -> dict[str, tuple[float, float]] | None:
    """Each figure's 95 % interval of the difference, by drawing tasks with replacement; None for one task."""
    tasks = {task: index for index, task in enumerate(dict.fromkeys(step["task_id"] for step in ours))}
    if len(tasks) < 2:
        return None
    shares = np.full(len(tasks), 1 / len(tasks))
    draws = np.random.default_rng(SEED).multinomial(len(tasks), shares, RESAMPLES).astype(float)

    def resampled(steps: Sequence[dict[str, Any]], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        factor, _, term = TERMS[name]
        sums, counts = np.zeros(len(tasks)), np.zeros(len(tasks))
        for step in steps:
            value = term(step)
            if value is not None:
                sums[tasks[step["task_id"]]] += value
                counts[tasks[step["task_id"]]] += 1
        drawn = draws @ counts
        # As in the aggregate, a group without steps counts as 0.
        means: np.ndarray[tuple[int], np.dtype[np.float64]] = factor * (draws @ sums) / np.maximum(drawn, 1)
        return means

    differences = {name: resampled(ours, name) - resampled(base, name) for name in TERMS}
    f1, first = differences["avg_command_f1"], differences["first_cmd_exact_pct"]
    differences |= {"score": 100 * f1, "next_action_score": 70 * f1 + 0.3 * first}
    bounds = {name: np.percentile(values, [2.5, 97.5]) for name, values in differences.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _overview(parts: Sequence[Part]) -> list[str]:
    header = ("result", "steps", "score", "difference", "95 % interval", "valid JSON %", "same commands %")
    rows = []
    for part in parts:
        figures = {figure.name: figure for figure in part.figures}
        score = figures["score"]
        same = part.agreement.get("same_commands_pct")
        rows.append(
            (
                clean(part.result),
                str(part.joined or part.only_ours),
                _number("score", score.ours),
                _number("score", score.difference, sign=True),
                _interval(score),
                _number("valid_json_pct", figures["valid_json_pct"].ours),
                _number("valid_json_pct", same),
            )
        )
    return table(header, rows, right=range(1, len(header)))


def _section(part: Part, paired: bool, shown: int) -> list[str]:
    lines = [f"## {clean(part.result)}", "", f"Model: {clean(part.model)}", ""]
    if paired:
        left_out = [
            f"{count} {what}"
            for count, what in (
                (part.only_ours, "only in ours"),
                (part.only_reference, "only in the reference"),
                (part.other_rows, "with another reference answer"),
            )
            if count
        ]
        lines += [
            f"{part.joined} steps of {part.tasks} tasks joined; not joined: {', '.join(left_out) or 'none'}.",
            "",
        ]
    for note in part.notes:
        lines += [clean(note), ""]
    header = ["metric", "reference", "ours", "difference", *(["95 % interval"] if paired else []), "verdict"]
    rows = [
        (
            _LABELS[figure.name],
            _number(figure.name, figure.reference),
            _number(figure.name, figure.ours),
            _number(figure.name, figure.difference, sign=True),
            *([_interval(figure)] if paired else []),
            figure.verdict,
        )
        for figure in part.figures
    ]
    lines += table(header, rows, right=range(1, len(header) - 1))
    if not paired:
        return lines
    same = ", ".join(
        f"{name.removesuffix('_pct').removeprefix('same_').replace('_', ' ')} {value} %"
        for name, value in part.agreement.items()
    )
    lines += [
        "",
        f"The same on both sides: {same}.",
        "",
        f"F1 by step: {part.better} better, {part.same} the same, {len(part.worse)} worse.",
    ]
    if part.worse and shown > 0:
        lines += ["", *_worse_table(part.worse[:shown])]
        if len(part.worse) > shown:
            lines += ["", f"{len(part.worse) - shown} more got worse; the JSON form lists all."]
    return lines


def _worse_table(steps: Sequence[Worse]) -> list[str]:
    header = ("got worse", "F1 reference", "F1 ours", "first command of the reference", "our first command")
    rows = [
        (
            clean(describe((step.task_id, step.sample_idx, step.step_idx))),
            _number("avg_command_f1", step.reference_f1),
            _number("avg_command_f1", step.our_f1),
            code(step.reference_first),
            code(step.our_first),
        )
        for step in steps
    ]
    return table(header, rows, right=(1, 2))


def _number(name: str, value: float | None, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign and value else ''}.{_places(name)}f}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "–"
    return f"{_number(figure.name, figure.low, sign=True)} … {_number(figure.name, figure.high, sign=True)}"
