"""Compare results with a reference, figure by figure and step by step (`edge compare`).

If both sides have steps, edge compares only the steps that both have, and computes the figures of both sides again from
these steps. The 95 % interval of a difference is over tasks, since steps of one task share their history (paired.py).
Published figures have no steps to pair: they get a plain difference, and each side gets the interval that can be
computed for it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from edge.compare import patterns
from edge.compare.by_task import Steps, rounded, side_interval, step_term, task_differences
from edge.compare.findings import Agreement, Comparison, Figure, Group, Part, Worse
from edge.compare.intervals import (
    FEW_TASKS,
    effective_trials,
    mcnemar,
    wilson,
)
from edge.compare.labels import file_notes, model_hash, same_file, shared_files, stated_type
from edge.compare.notes import run_notes, switch_notes
from edge.compare.paired import LEAST_DIFFERING, detectable_loss, paired_interval
from edge.compare.pairing import keyed, pair_steps
from edge.compare.verdict import (
    NONE_DIFFERS,
    half_range,
    looks_whole,
    places,
    sentence,
    unpaired_sentence,
    verdict,
    within_range,
)
from edge.errors import EdgeError, ResultError
from edge.metrics import FIGURES, Aggregate, GroupFigures, aggregate, headline
from edge.replay.known import KnownModel, find_known
from edge.replay.result import read_result
from edge.replay.rows import Key
from edge.replay.stored_result import Head, Result, Step, whole_text
from edge.system.text import counted

_TESTED = ("valid_json_pct", "first_cmd_exact_pct")  # each step is right or wrong: McNemar's test

# Upper limits of the groups of `prompt_length`, in prompt tokens; 1k is 1,000.
_LENGTHS = ((1000, "< 1k"), (2000, "1–2k"), (4000, "2–4k"), (8000, "4–8k"), (16000, "8–16k"))
_LONGEST = "≥ 16k"
_BUCKETS = ("early", "mid", "late")


@dataclass(frozen=True)
class _Reference:
    """A result with steps, or published figures only. For published figures, `result` has only `sampling`."""

    name: str
    model: str
    steps: list[Step]
    figures: Aggregate
    result: Result


def compare(results: Sequence[Path | str], reference: Path | str) -> Comparison:
    """Compare results with a reference: a result JSON, or the name of a known model for its published figures.

    Raises ResultError for a file that is not a result, an unknown reference, results without a common step, and steps
    with different rows or prompts.
    """
    if not results:
        raise ResultError("no result to compare; give at least one result JSON")
    check_once(results)
    base = _read_reference(reference)
    read = [(str(path), read_result(path)) for path in results]
    parts = [
        _paired(path, result, base) if base.steps else _unpaired(path, result, base) for path, result in read
    ]
    shared = shared_files(read)
    return Comparison(
        base.name,
        base.model,
        bool(base.steps),
        tuple(replace(part, notes=(*shared.get(part.result, ()), *part.notes)) for part in parts),
    )


def check_once(results: Sequence[Path | str]) -> None:
    """Raise ResultError if a file is given twice."""
    seen: set[Path] = set()
    for path in results:
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)


def compare_pair(path: Path | str, result: Result, reference_path: Path | str, reference: Result) -> Part:
    """Compare one result with another; both must have steps. Raises ResultError."""
    return _paired(path, result, _of_result(reference_path, reference))


def model_label(result: Head, path: Path | str) -> str:
    """The name of the model, and whether its answers were constrained, if the result says so."""
    constrained = result.get("sampling", {}).get("constrained")
    label = "" if constrained is None else ", constrained" if constrained else ", unconstrained"
    return (result.get("model") or Path(path).stem) + label


def _read_reference(reference: Path | str) -> _Reference:
    if Path(reference).exists() or isinstance(reference, Path):
        return _of_result(reference, read_result(reference))
    known = published_model(reference)
    name = f"published figures of {known.name} ({known.reference_source})"
    return _Reference(
        name, known.name, [], known.reference, {"sampling": known.reference_run, "per_step": []}
    )


def published_model(name: str) -> KnownModel:
    """The known model of that name, which has published figures. Raises ResultError for another name or a path."""
    if name.startswith((".", "/", "~", "\\")) or name.endswith(".json") or Path(name).is_absolute():
        raise ResultError(f"{name}: no such file")
    try:
        known = find_known(name)
    except EdgeError as error:
        raise ResultError(f"{name}: no such file, and {str(error).removeprefix(f'{name}: ')}") from None
    if not known.reference:
        raise ResultError(f"{name}: no figures were published for this model; give a result JSON")
    return known


def _of_result(path: Path | str, result: Result) -> _Reference:
    figures = result.get("aggregate", {})
    return _Reference(str(path), model_label(result, path), result["per_step"], figures, result)


def _paired(path: Path | str, result: Result, base: _Reference) -> Part:
    if not result["per_step"]:
        raise ResultError(f"{path}: contains no steps")
    pairing = pair_steps(
        result["per_step"],
        base.steps,
        str(path),
        base.name,
        other_prompts=bool(switch_notes(result, base.result)),
    )
    ours, theirs = pairing.ours, pairing.reference
    tasks = len({key[0] for key in pairing.keys})
    same = _same(path, result, base)
    notes = [
        *([same] if same else []),
        *file_notes(result, path, "Our result"),
        *file_notes(base.result, base.name, "The reference"),
        *run_notes(result, base.result),
        *pairing.notes,
    ]
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
    agreement = _agreement(ours, theirs)
    return Part(
        result=str(path),
        model=model_label(result, path),
        type=stated_type(result),
        model_sha256=model_hash(result),
        joined=len(ours),
        only_ours=pairing.only_ours,
        only_reference=pairing.only_reference,
        tasks=tasks,
        figures=tuple(
            replace(figure, sentence=patterns.SAME_SIDES())
            if patterns.SAME_FILE.matches(same) and figure.verdict == NONE_DIFFERS
            else figure
            for figure in _paired_figures(ours, theirs)
        ),
        groups=_paired_groups(ours, theirs),
        agreement=agreement,
        agreement_intervals=_agreement_intervals(agreement, ours),
        better=sum(change > 0 for change in changes),
        same=sum(change == 0 for change in changes),
        worse=tuple(worse),
        notes=tuple(notes),
    )


def _unpaired(path: Path | str, result: Result, base: _Reference) -> Part:
    ours = list(keyed(result["per_step"], ()).values())
    if not ours:
        raise ResultError(f"{path}: contains no steps")
    tasks = len({step["task_id"] for step in ours})
    notes = [
        _unpaired_note(len(ours), base.figures),
        *file_notes(result, path, "Our result"),
        *run_notes(result, base.result),
    ]
    if tasks < FEW_TASKS:
        notes.append(_few(tasks))
    return Part(
        result=str(path),
        model=model_label(result, path),
        type=stated_type(result),
        model_sha256=model_hash(result),
        joined=0,
        only_ours=len(ours),
        only_reference=0,
        tasks=tasks,
        figures=_published_figures(ours, base.figures),
        groups=_published_groups(ours, base.figures),
        agreement={},
        agreement_intervals={},
        better=0,
        same=0,
        worse=(),
        notes=tuple(notes),
    )


def _same(path: Path | str, result: Result, base: _Reference) -> str:
    """What to say if there is nothing to compare; empty if there is."""
    if result == base.result:
        same = Path(path).resolve() == Path(base.name).resolve()
        return patterns.SAME_FILE(are="are the same file" if same else "have the same content")
    if result.get("run") and result.get("run") == base.result.get("run"):
        return patterns.SAME_RUN()
    return same_file(result, base.result)


def _few(tasks: int) -> str:
    if tasks == 1:
        return patterns.ONLY_TASKS()
    return (patterns.FEW_TASKS if tasks < LEAST_DIFFERING else patterns.ROUGH)(tasks=counted(tasks, "task"))


def _unpaired_note(steps: int, figures: Aggregate) -> str:
    published = f" of {counted(figures['steps'], 'step')}" if "steps" in figures else ""
    return patterns.UNPAIRED(steps=published, ours=counted(steps, "step"))


def _worse(key: Key, ours: Step, base: Step) -> Worse:
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


def _agreement(ours: Steps, base: Steps) -> Agreement:
    pairs = list(zip(ours, base, strict=True))
    units = [(a["pred_command_units"], b["pred_command_units"]) for a, b in pairs]
    agreement: Agreement = {
        "same_first_command_pct": _share([a[:1] == b[:1] for a, b in units]),
        "same_commands_pct": _share([a == b for a, b in units]),
    }
    texts = [(whole_text(a), whole_text(b)) for a, b in pairs]
    if all(text is not None for pair in texts for text in pair):
        agreement["same_text_pct"] = _share([a == b for a, b in texts])
    return agreement


def _share(same: Sequence[bool]) -> float:
    """Per cent, with one decimal place unless that would be 100 although one differs."""
    share = 100 * sum(same) / len(same)
    return share if looks_whole(share) else round(share, 1)


def _agreement_intervals(agreement: Agreement, ours: Steps) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each percentage of the agreement."""
    trials = effective_trials(Counter(step["task_id"] for step in ours).values())
    shares = {name: float(str(value)) / 100 for name, value in agreement.items()}
    spans = {name: wilson(share, trials) for name, share in shares.items()}
    return {name: (round(100 * low, 1), round(100 * high, 1)) for name, (low, high) in spans.items()}


def _figures_with_score(figures: Aggregate) -> dict[str, float]:
    named: dict[str, float] = {name: float(figures[name]) for name in FIGURES if name in figures}
    return ({"score": headline(figures)} if "avg_command_f1" in figures else {}) | named


def _paired_figures(ours: Steps, base: Steps) -> tuple[Figure, ...]:
    our_figures, base_figures = _figures_with_score(aggregate(ours)), _figures_with_score(aggregate(base))
    return tuple(
        _paired_figure(name, base_figures[name], value, ours, base) for name, value in our_figures.items()
    )


def _paired_figure(name: str, reference: float, value: float, ours: Steps, base: Steps) -> Figure:
    term, digits = step_term(name), places(name)
    sides = [term(step) for step in ours], [term(step) for step in base]
    tasks, changes = [], []
    for step, mine, theirs in zip(ours, *sides, strict=True):
        if mine is not None and theirs is not None:
            tasks.append(step["task_id"])
            changes.append(mine - theirs)
    by_task = task_differences(tasks, changes, half_range(name)) if changes else None
    bounds = size = None
    if by_task and (found := paired_interval(by_task)):
        bounds = within_range(name, reference, found)
        if bounds[0] <= 0 <= bounds[1]:
            size = detectable_loss(by_task)
    counts = (sum(c < 0 for c in changes), sum(c > 0 for c in changes)) if name in _TESTED else None
    p = mcnemar(*counts) if counts else None
    mean, base_mean = map(_mean, sides)
    # Not of the rounded figures: 20 of 36 after 21 of 36 is -2.8, although 55.6 - 58.3 is -2.7.
    exact = value - reference if mean is None or base_mean is None else mean - base_mean
    difference = round(exact, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    value, reference = _below_100(name, value, mean), _below_100(name, reference, base_mean)
    word = verdict(name, bounds, sum(map(bool, changes)), len(changes))
    shown = rounded(name, bounds)
    return Figure(
        name=name,
        reference=reference,
        ours=value,
        difference=difference,
        low=shown[0] if shown else None,
        high=shown[1] if shown else None,
        verdict=word,
        sentence=sentence(name, word, reference, difference, bounds, size, p, by_task),
        detectable=None if size is None else round(size, digits),
        p=p,
        counts=counts,
        reference_interval=side_interval(name, base),
        our_interval=side_interval(name, ours),
    )


def _mean(parts: Sequence[float | None]) -> float | None:
    """The mean of those that count; None if none does."""
    counted_parts = [part for part in parts if part is not None]
    return fmean(counted_parts) if counted_parts else None


def _below_100(name: str, value: float, exact: float | None) -> float:
    """The rounded figure; the exact one if rounding made it 100 %."""
    return (
        exact if exact is not None and name.endswith("_pct") and looks_whole(exact, places(name)) else value
    )


def _published_figures(ours: Steps, published: Aggregate) -> tuple[Figure, ...]:
    theirs = _figures_with_score(published)
    steps = published.get("steps")
    figures = []
    for name, value in _figures_with_score(aggregate(ours)).items():
        reference = theirs.get(name)
        our_interval = side_interval(name, ours)
        reference_interval = None
        if name.endswith("_pct"):
            values = [x for x in map(step_term(name), ours) if x is not None]
            our_interval = _binomial(sum(values), len(values))
            # The number of steps that the completion figures count was not published.
            if reference is not None and steps is not None and "complete" not in name:
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
    """Wilson's interval in percent, from the sum of the percentages of the steps (0 or 100 each)."""
    if steps < 1:
        return None
    low, high = wilson(min(1.0, total / 100 / steps), steps)
    return round(100 * low, 1), round(100 * high, 1)


def _grouped(ours: Steps, base: Steps | None) -> dict[tuple[str, str], list[int]]:
    """The indices of steps by (kind, name) of their groups, in display order.

    A step without `prompt_tokens` on either side is in no group of that kind.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, step in enumerate(ours):
        groups.setdefault(("source_group", step["source_group"]), []).append(index)
        groups.setdefault(("bucket", step["bucket"]), []).append(index)
        tokens = step.get("prompt_tokens") or (base[index].get("prompt_tokens") if base else None)
        if tokens is not None:
            length = next((name for below, name in _LENGTHS if tokens < below), _LONGEST)
            groups.setdefault(("prompt_length", length), []).append(index)
    lengths = [*(name for _, name in _LENGTHS), _LONGEST]
    kinds = ("source_group", "bucket", "prompt_length")

    def order(group: tuple[str, str]) -> tuple[int, int, str]:
        kind, name = group
        known = _BUCKETS if kind == "bucket" else lengths if kind == "prompt_length" else ()
        return kinds.index(kind), known.index(name) if name in known else len(known), name

    return {group: groups[group] for group in sorted(groups, key=order)}


def _f1(steps: Steps) -> float:
    return round(sum(step["command_f1"] for step in steps) / len(steps), 4)


def _paired_groups(ours: Steps, base: Steps) -> tuple[Group, ...]:
    groups = []
    for (kind, name), indexes in _grouped(ours, base).items():
        a, b = [ours[i] for i in indexes], [base[i] for i in indexes]
        tasks = [step["task_id"] for step in a]
        changes = [x["command_f1"] - y["command_f1"] for x, y in zip(a, b, strict=True)]
        by_task = task_differences(tasks, changes, half_range("avg_command_f1"))
        reference, value = _f1(b), _f1(a)
        found = paired_interval(by_task)
        inside = within_range("avg_command_f1", reference, found) if found else None
        bounds = rounded("avg_command_f1", inside) or (None, None)
        difference = round(fmean(changes), 4) + 0.0
        groups.append(
            Group(kind, name, len(a), len(set(tasks)), reference, value, difference, bounds[0], bounds[1])
        )
    return tuple(groups)


def _published_groups(ours: Steps, published: Aggregate) -> tuple[Group, ...]:
    figures: dict[str, dict[str, GroupFigures]] = {
        "source_group": published.get("by_source_group", {}),
        "bucket": published.get("by_bucket", {}),
    }
    groups = []
    for (kind, name), indexes in _grouped(ours, None).items():
        steps = [ours[i] for i in indexes]
        f1 = _f1(steps)
        group = figures.get(kind, {}).get(name)
        reference = group.get("avg_command_f1") if group else None
        difference = None if reference is None else round(f1 - reference, 4) + 0.0
        tasks = len({step["task_id"] for step in steps})
        groups.append(Group(kind, name, len(steps), tasks, reference, f1, difference, None, None))
    return tuple(groups)
