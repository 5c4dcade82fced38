"""`edge compare`: what a model lost or gained against a reference, figure by figure and step by step.

Where both sides hold steps, only the steps that both hold are compared, and both sides' figures are made anew from
those. A difference's 95 % interval is a paired bootstrap over tasks: steps of one task share their history, so whole
tasks are drawn, both sides by the same draw. Published figures alone cannot be paired: they get a plain difference,
and each side the interval that can be known of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.compare.findings import Comparison, Figure, Group, Part, Worse
from edge.compare.intervals import (
    FEW_TASKS,
    LEAST_TASKS,
    detectable,
    interval,
    mcnemar,
    resampled_means,
    standard_error,
    wilson,
)
from edge.compare.pairing import keyed, pair_steps, run_notes
from edge.compare.verdict import places, sentence, unpaired_sentence, verdict
from edge.errors import EdgeError, ResultError
from edge.metrics import FIGURES, TERMS, aggregate, headline
from edge.replay.known import find_known
from edge.replay.result import mapping, read_result, whole_text
from edge.replay.rows import Key

_TESTED = ("valid_json_pct", "first_cmd_exact_pct")  # right or wrong in each step: McNemar's test

# Prompt tokens up to which each group of `prompt_length` goes; 1k is 1,000.
_LENGTHS = ((1000, "< 1k"), (2000, "1–2k"), (4000, "2–4k"), (8000, "4–8k"), (16000, "8–16k"))
_LONGEST = "≥ 16k"
_BUCKETS = ("early", "mid", "late")

Steps = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Reference:
    """A result with steps, or published figures alone; `result` is of the former, or the latter's `sampling`."""

    name: str
    model: str
    steps: list[dict[str, Any]]
    figures: Mapping[str, Any]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class _Spread:
    """What the bootstrap tells of one mean: its interval, its standard error, over how many tasks."""

    low: float
    high: float
    error: float
    tasks: int


def compare(results: Sequence[Path | str], reference: Path | str) -> Comparison:
    """Compare results with a reference: a result JSON, or a known model's name for its published figures.

    Raises ResultError for a file that is no result, a reference that is neither, results without a common step, and
    steps whose rows or prompts differ between the sides.
    """
    if not results:
        raise ResultError("no result to compare: give at least one result JSON")
    check_once(results)
    base = _read_reference(reference)
    parts = []
    for path in results:
        result = read_result(path)
        parts.append(_paired(path, result, base) if base.steps else _unpaired(path, result, base))
    return Comparison(base.name, base.model, bool(base.steps), tuple(parts))


def check_once(results: Sequence[Path | str]) -> None:
    """Raises ResultError where a file is given twice."""
    seen: set[Path] = set()
    for path in results:
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)


def compare_pair(
    path: Path | str, result: dict[str, Any], reference_path: Path | str, reference: dict[str, Any]
) -> Part:
    """One result against another, both with steps and as `read_result` gives them. Raises ResultError."""
    return _paired(path, result, _of_result(reference_path, reference))


def model_label(result: Mapping[str, Any], path: Path | str) -> str:
    """The model's name, and whether a grammar held its answers, where the result tells."""
    constrained = mapping(result.get("sampling")).get("constrained")
    label = (
        {True: ", constrained", False: ", unconstrained"}[constrained]
        if isinstance(constrained, bool)
        else ""
    )
    return str(result.get("model") or Path(path).stem) + label


def _read_reference(reference: Path | str) -> _Reference:
    if Path(reference).exists() or isinstance(reference, Path):
        return _of_result(reference, read_result(reference))
    try:
        known = find_known(reference)
    except EdgeError as error:
        raise ResultError(f"{reference}: no such file; {str(error).removeprefix(f'{reference}: ')}") from None
    if not known.reference:
        raise ResultError(f"{reference}: no figures were published for this model: give a result JSON")
    name = f"published figures of {known.name} ({known.reference_source})"
    return _Reference(name, known.name, [], known.reference, {"sampling": known.reference_run})


def _of_result(path: Path | str, result: dict[str, Any]) -> _Reference:
    figures = mapping(result.get("aggregate"))
    return _Reference(str(path), model_label(result, path), result["per_step"], figures, result)


def _paired(path: Path | str, result: dict[str, Any], base: _Reference) -> Part:
    if not result["per_step"]:
        raise ResultError(f"{path}: holds no steps")
    pairing = pair_steps(result["per_step"], base.steps, str(path), base.name)
    ours, theirs = pairing.ours, pairing.reference
    tasks = len({key[0] for key in pairing.keys})
    notes = [*run_notes(result, base.result), *pairing.notes]
    if tasks < FEW_TASKS:
        notes.append(_few(tasks))
    changes = [a["command_f1"] - b["command_f1"] for a, b in zip(ours, theirs, strict=True)]
    worse = [
        _worse(key, a, b)
        for key, a, b, change in zip(pairing.keys, ours, theirs, changes, strict=True)
        if change < 0
    ]
    worse.sort(
        key=lambda step: (step.our_f1 - step.reference_f1, step.task_id, step.sample_idx, step.step_idx)
    )
    return Part(
        result=str(path),
        model=model_label(result, path),
        joined=len(ours),
        only_ours=pairing.only_ours,
        only_reference=pairing.only_reference,
        tasks=tasks,
        figures=_paired_figures(ours, theirs),
        groups=_paired_groups(ours, theirs),
        agreement=_agreement(ours, theirs),
        better=sum(change > 0 for change in changes),
        same=sum(change == 0 for change in changes),
        worse=tuple(worse),
        notes=tuple(notes),
    )


def _unpaired(path: Path | str, result: dict[str, Any], base: _Reference) -> Part:
    ours = list(keyed(result["per_step"], ()).values())
    if not ours:
        raise ResultError(f"{path}: holds no steps")
    tasks = len({step["task_id"] for step in ours})
    notes = [_unpaired_note(len(ours), base.figures), *run_notes(result, base.result)]
    if tasks < FEW_TASKS:
        notes.append(_few(tasks))
    return Part(
        result=str(path),
        model=model_label(result, path),
        joined=0,
        only_ours=len(ours),
        only_reference=0,
        tasks=tasks,
        figures=_published_figures(ours, base.figures),
        groups=_published_groups(ours, base.figures),
        agreement={},
        better=0,
        same=0,
        worse=(),
        notes=tuple(notes),
    )


def _few(tasks: int) -> str:
    if tasks == 1:
        return "Only 1 task: its steps are not independent, so there are no intervals."
    if tasks < LEAST_TASKS:
        return (
            f"Only {tasks} tasks: intervals are too narrow, and a difference outside of them is no finding."
        )
    return f"Only {tasks} tasks: intervals are widened for so few, and still are rough."


def _unpaired_note(steps: int, figures: Mapping[str, Any]) -> str:
    published = f" of {figures['steps']:g} steps" if "steps" in figures else ""
    return (
        f"The reference is published figures{published}, ours are of {steps} steps: with no steps on its side nothing "
        "can be paired, so there is no interval of a difference, no test and no list of steps that got worse."
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


def _agreement(ours: Steps, base: Steps) -> dict[str, float]:
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


def _term(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """What a figure is the mean of: a step's part in it, or None where the step does not count."""
    if name == "score":
        return lambda step: 100 * float(step["command_f1"])
    if name == "next_action_score":
        return lambda step: 70 * float(step["command_f1"]) + 30 * float(step["first_cmd_exact"])
    factor, _, term = TERMS[name]

    def scaled(step: Mapping[str, Any]) -> float | None:
        value = term(dict(step))
        return None if value is None else factor * float(value)

    return scaled


def _spread(tasks: Sequence[str], values: Sequence[float]) -> _Spread | None:
    """The bootstrap of the mean of `values`, each of the task beside it; None where all are of one task."""
    numbers = {task: index for index, task in enumerate(dict.fromkeys(tasks))}
    if len(numbers) < 2:
        return None
    where = [numbers[task] for task in tasks]
    samples = resampled_means(
        np.bincount(where, weights=values).astype(float), np.bincount(where).astype(float)
    )
    low, high = interval(samples, len(numbers))
    return _Spread(low, high, standard_error(samples, len(numbers)), len(numbers))


def _rounded(name: str, spread: _Spread | None) -> tuple[float, float] | None:
    digits = places(name)
    return None if spread is None else (round(spread.low, digits) + 0.0, round(spread.high, digits) + 0.0)


def _side(name: str, steps: Steps) -> _Spread | None:
    """The bootstrap of one side's figure alone."""
    term = _term(name)
    counted = [(step["task_id"], value) for step in steps if (value := term(step)) is not None]
    return _spread([task for task, _ in counted], [value for _, value in counted])


def _paired_figures(ours: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> tuple[Figure, ...]:
    our_figures, base_figures = _figures_with_score(aggregate(ours)), _figures_with_score(aggregate(base))
    return tuple(
        _paired_figure(name, base_figures[name], value, ours, base) for name, value in our_figures.items()
    )


def _paired_figure(name: str, reference: float, value: float, ours: Steps, base: Steps) -> Figure:
    term, digits = _term(name), places(name)
    tasks, changes = [], []
    for a, b in zip(ours, base, strict=True):
        mine, theirs = term(a), term(b)
        if mine is not None and theirs is not None:
            tasks.append(str(a["task_id"]))
            changes.append(mine - theirs)
    spread = _spread(tasks, changes)
    low, high = (spread.low, spread.high) if spread else (None, None)
    size = detectable(spread.error, spread.tasks) if spread and spread.error else None
    counts = (sum(c < 0 for c in changes), sum(c > 0 for c in changes)) if name in _TESTED else None
    p = mcnemar(*counts) if counts else None
    difference = round(value - reference, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    word = verdict(name, low, high, sum(map(bool, changes)), len(changes), len(set(tasks)))
    bounds = _rounded(name, spread)
    return Figure(
        name=name,
        reference=reference,
        ours=value,
        difference=difference,
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        verdict=word,
        sentence=sentence(name, word, reference, difference, low, high, size, p, len(set(tasks))),
        detectable=None if size is None else round(size, digits),
        p=p,
        counts=counts,
        reference_interval=_rounded(name, _side(name, base)),
        our_interval=_rounded(name, _side(name, ours)),
    )


def _published_figures(ours: Sequence[dict[str, Any]], published: Mapping[str, Any]) -> tuple[Figure, ...]:
    theirs = _figures_with_score(published)
    steps = published.get("steps")
    figures = []
    for name, value in _figures_with_score(aggregate(ours)).items():
        reference = theirs.get(name)
        our_interval = _rounded(name, _side(name, ours))
        reference_interval = None
        if name.endswith("_pct"):
            values = [x for x in map(_term(name), ours) if x is not None]
            our_interval = _binomial(sum(values), len(values))
            # Of how many steps the completion figures are was not published.
            if reference is not None and isinstance(steps, int) and "complete" not in name:
                reference_interval = _binomial(reference * steps, steps)
        figures.append(
            Figure(
                name=name,
                reference=reference,
                ours=value,
                difference=None if reference is None else round(value - reference, places(name)) + 0.0,
                low=None,
                high=None,
                verdict="not published" if reference is None else "not paired",
                sentence=unpaired_sentence(name, reference, our_interval, reference_interval),
                reference_interval=reference_interval,
                our_interval=our_interval,
            )
        )
    return tuple(figures)


def _binomial(total: float, steps: int) -> tuple[float, float] | None:
    """Wilson's interval in percent, from the sum of the steps' percentages (0 or 100 each)."""
    if steps < 1:
        return None
    low, high = wilson(min(1.0, total / 100 / steps), steps)
    return round(100 * low, 1), round(100 * high, 1)


def _grouped(
    steps: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> dict[tuple[str, str], list[int]]:
    """The indexes of steps by (kind, name) of their groups, in the order to be shown; a step may be in none."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, (ours, base) in enumerate(steps):
        groups.setdefault(("source_group", ours["source_group"]), []).append(index)
        groups.setdefault(("bucket", ours["bucket"]), []).append(index)
        tokens = ours.get("prompt_tokens") or base.get("prompt_tokens")
        if isinstance(tokens, int):
            length = next((name for below, name in _LENGTHS if tokens < below), _LONGEST)
            groups.setdefault(("prompt_length", length), []).append(index)
    lengths = [*(name for _, name in _LENGTHS), _LONGEST]
    kinds = ("source_group", "bucket", "prompt_length")

    def order(group: tuple[str, str]) -> tuple[int, int, str]:
        kind, name = group
        known = _BUCKETS if kind == "bucket" else lengths if kind == "prompt_length" else ()
        return kinds.index(kind), known.index(name) if name in known else len(known), name

    return {group: groups[group] for group in sorted(groups, key=order)}


def _f1(steps: Sequence[Mapping[str, Any]]) -> float:
    return round(float(sum(step["command_f1"] for step in steps)) / len(steps), 4)


def _paired_groups(ours: Steps, base: Steps) -> tuple[Group, ...]:
    groups = []
    for (kind, name), indexes in _grouped(list(zip(ours, base, strict=True))).items():
        a, b = [ours[i] for i in indexes], [base[i] for i in indexes]
        tasks = [str(step["task_id"]) for step in a]
        changes = [x["command_f1"] - y["command_f1"] for x, y in zip(a, b, strict=True)]
        bounds = _rounded("avg_command_f1", _spread(tasks, changes)) or (None, None)
        reference, value = _f1(b), _f1(a)
        difference = round(value - reference, 4) + 0.0
        groups.append(
            Group(kind, name, len(a), len(set(tasks)), reference, value, difference, bounds[0], bounds[1])
        )
    return tuple(groups)


def _published_groups(ours: Steps, published: Mapping[str, Any]) -> tuple[Group, ...]:
    groups = []
    for (kind, name), indexes in _grouped([(step, {}) for step in ours]).items():
        steps = [ours[i] for i in indexes]
        f1 = _f1(steps)
        reference = mapping(mapping(published.get(f"by_{kind}")).get(name)).get("avg_command_f1")
        reference = reference if isinstance(reference, int | float) else None
        difference = None if reference is None else round(f1 - reference, 4) + 0.0
        tasks = len({step["task_id"] for step in steps})
        groups.append(Group(kind, name, len(steps), tasks, reference, f1, difference, None, None))
    return tuple(groups)
