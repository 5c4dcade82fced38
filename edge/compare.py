"""`edge compare`: what a model lost or gained against a reference, figure by figure and step by step.

Where both sides hold steps, only the steps that both hold are compared, and both sides' figures are made anew from
those. A difference's 95 % interval is a paired bootstrap over tasks: steps of one task share their history, so whole
tasks are drawn, both sides by the same draw. Published figures alone cannot be paired; they get a plain difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.comparison import Comparison, Figure, Group, Part, Worse, places
from edge.errors import EdgeError, ResultError
from edge.known import find_known
from edge.metrics import FIGURES, TERMS, aggregate, headline
from edge.replay import Key, by_step, without_sample
from edge.result import read_result, step_key, whole_text

RESAMPLES = 10_000
SEED = 20260604  # fixed, so that the same files give the same intervals
FEW_TASKS = 10  # below this many a bootstrap over tasks gives intervals that are too narrow

_LESS_IS_BETTER = ("empty_commands_pct", "premature_complete_rate_pct")
_NEITHER_IS_BETTER = ("avg_ref_cmds", "avg_pred_cmds")


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
    seen: set[Path] = set()
    for path in results:
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)
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
    """Its name, and whether a grammar held its answers, where the result tells."""
    constrained = _mapping(result.get("sampling")).get("constrained")
    label = (
        {True: ", constrained", False: ", unconstrained"}[constrained]
        if isinstance(constrained, bool)
        else ""
    )
    return str(result.get("model") or Path(path).stem) + label


def _part(path: Path | str, result: dict[str, Any], base: _Reference) -> Part:
    ours = _keyed(result["per_step"], base.steps)
    if not ours:
        raise ResultError(f"{path}: holds no steps")
    notes = _run_notes(result, base)
    if not base.steps:
        total = aggregate(ours.values())
        figures, groups = _published_figures(total, base.figures), _groups(total, base.figures)
        notes = [_unpaired_note(len(ours), base.figures), *notes]
        tasks = len({key[0] for key in ours})
        return Part(
            str(path),
            _model(result, path),
            0,
            len(ours),
            0,
            0,
            tasks,
            figures,
            groups,
            {},
            0,
            0,
            (),
            tuple(notes),
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
        groups=_groups(aggregate(our_steps), aggregate(base_steps)),
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


def _published_figures(ours: Mapping[str, Any], published: Mapping[str, Any]) -> tuple[Figure, ...]:
    theirs = _figures_with_score(published)
    figures = []
    for name, value in _figures_with_score(ours).items():
        reference = theirs.get(name)
        difference = None if reference is None else round(value - reference, places(name)) + 0.0
        verdict = "not published" if reference is None else "not paired"
        figures.append(Figure(name, reference, value, difference, None, None, verdict))
    return tuple(figures)


def _paired_figures(ours: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> tuple[Figure, ...]:
    our_figures, base_figures = _figures_with_score(aggregate(ours)), _figures_with_score(aggregate(base))
    intervals = _intervals(ours, base)
    figures = []
    for name, value in our_figures.items():
        digits = places(name)
        difference = round(value - base_figures[name], digits) + 0.0  # + 0.0 turns -0.0 into 0.0
        low, high = intervals[name] if intervals else (None, None)
        counted = name not in TERMS or any(TERMS[name][2](step) is not None for step in ours)
        figures.append(
            Figure(
                name,
                base_figures[name],
                value,
                difference,
                None if low is None else round(low, digits) + 0.0,
                None if high is None else round(high, digits) + 0.0,
                _verdict(name, low, high, counted),
            )
        )
    return tuple(figures)


def _groups(ours: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Group, ...]:
    groups = []
    for kind in ("source_group", "bucket"):
        theirs = _mapping(base.get(f"by_{kind}"))
        for name, group in ours[f"by_{kind}"].items():
            f1, reference = group["avg_command_f1"], _mapping(theirs.get(name)).get("avg_command_f1")
            reference = reference if isinstance(reference, int | float) else None
            difference = None if reference is None else round(f1 - reference, 4) + 0.0
            groups.append(Group(kind, name, group["steps"], reference, f1, difference))
    return tuple(groups)


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
