"""The figures of a measurement, from what was found at each position (docs/measure.md says what each one means).

All are means over positions, so that a long answer weighs more than a short one; a node that several rows share counts
for each of them. Intervals come from the same bootstrap over whole tasks as a comparison's (edge/compare/intervals.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import interval, resampled_means
from edge.measure.positions import Plan, Scored
from edge.measure.spans import FIELDS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a pass has found: `log_probs` of each slot of the plan, in nats; with a base also the base's, and of each
    node the divergence from it, the most that is wrong with that, and whether both have the same token on top.
    """

    log_probs: Floats
    base_log_probs: Floats | None = None
    kl: Floats | None = None
    errors: Floats | None = None
    same_top: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class _Positions:
    """Some positions. Without a base, all but `nll` are None."""

    nll: Floats
    base_nll: Floats | None
    kl: Floats | None
    errors: Floats | None
    same: Floats | None

    def where(self, chosen: NDArray[np.bool_]) -> "_Positions":
        parts = (self.nll, self.base_nll, self.kl, self.errors, self.same)
        nll, *others = (None if part is None else part[chosen] for part in parts)
        assert nll is not None
        return _Positions(nll, *others)


def figures(plan: Plan, found: Found) -> dict[str, Any]:
    """`aggregate`, `intervals`, `by_position`, `by_field` and `per_step` of a measurement JSON."""
    rows = plan.rows
    parts = [_of_row(row, found) for row in rows]
    everything = _joined(parts)
    steps = [_step(row, part, found) for row, part in zip(rows, parts, strict=True)]
    commands = [step["first_command_logprob"] for step in steps if "first_command_logprob" in step]
    tasks = sorted({row.key[0] for row in rows})
    aggregate: dict[str, Any] = {"rows": len(rows), "tasks": len(tasks), **_means(everything)}
    aggregate["perplexity"] = _exp(aggregate["nll"])
    if everything.base_nll is not None and everything.errors is not None:
        aggregate["base_perplexity"] = _exp(aggregate["base_nll"])
        aggregate["nll_difference"] = float((everything.nll - everything.base_nll).mean())
        aggregate["kl_max"] = float(_some(everything.kl).max())
        aggregate["kl_error_bound"] = float(everything.errors.mean())
    if commands:
        aggregate["first_commands"] = len(commands)
        for name in ("", "base_"):
            logs = [
                step[f"{name}first_command_logprob"]
                for step in steps
                if f"{name}first_command_logprob" in step
            ]
            if logs:
                aggregate[f"{name}first_command_prob"] = float(np.exp(logs).mean())
    told: dict[str, Any] = {"aggregate": aggregate, "intervals": _intervals(tasks, rows, parts, steps)}
    if plan.chunk is None:
        told["by_position"] = _by_position(rows, everything)
        told["by_field"] = _by_field(rows, everything)
    return told | {"per_step": steps}


def _some(values: Floats | None) -> Floats:
    assert values is not None
    return values


def _exp(value: float) -> float | None:
    """e to the power of it; None where no float is as large."""
    return math.exp(value) if value < 700 else None


def _of_row(row: Scored, found: Found) -> _Positions:
    base, same = found.base_log_probs, found.same_top
    return _Positions(
        -found.log_probs[row.slots] + 0.0,
        None if base is None else -base[row.slots] + 0.0,
        None if found.kl is None else found.kl[row.nodes],
        None if found.errors is None else found.errors[row.nodes],
        None if same is None else same[row.nodes].astype(np.float64),
    )


def _joined(parts: Sequence[_Positions]) -> _Positions:
    def joined(name: str) -> Floats | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    nll = joined("nll")
    assert nll is not None
    return _Positions(nll, joined("base_nll"), joined("kl"), joined("errors"), joined("same"))


def _means(some: _Positions) -> dict[str, Any]:
    """The figures that there are of any positions, at least one."""
    told: dict[str, Any] = {"tokens": len(some.nll), "nll": float(some.nll.mean())}
    if some.base_nll is not None and some.kl is not None and some.same is not None:
        median, p90, p99 = np.quantile(some.kl, [0.5, 0.9, 0.99])
        told |= {
            "base_nll": float(some.base_nll.mean()),
            "kl_mean": float(some.kl.mean()),
            "kl_median": float(median),
            "kl_p90": float(p90),
            "kl_p99": float(p99),
            "top1_agreement_pct": 100 * float(some.same.mean()),
        }
    return told


def _step(row: Scored, part: _Positions, found: Found) -> dict[str, Any]:
    task_id, sample_idx, step_idx = row.key
    step: dict[str, Any] = {
        "task_id": task_id,
        "sample_idx": sample_idx,
        "step_idx": step_idx,
        "source_group": row.source_group,
        "bucket": row.bucket,
        "prompt_tokens": row.prompt_tokens,
        "tokens": len(part.nll),
        "nll": float(part.nll.mean()),
    }
    if part.base_nll is not None and part.kl is not None and part.same is not None:
        step |= {
            "base_nll": float(part.base_nll.mean()),
            "kl_mean": float(part.kl.mean()),
            "kl_max": float(part.kl.max()),
            "top1_agreement_pct": 100 * float(part.same.mean()),
        }
    if row.command:
        inside = slice(row.command.start, row.command.stop)
        step["first_command_logprob"] = -float(part.nll[inside].sum()) + 0.0
        if part.base_nll is not None:
            step["base_first_command_logprob"] = -float(part.base_nll[inside].sum()) + 0.0
    return step | {"row_sha256": row.row_sha256, "prompt_sha256": row.prompt_sha256}


def _intervals(
    tasks: Sequence[str], rows: Sequence[Scored], parts: Sequence[_Positions], steps: Sequence[dict[str, Any]]
) -> dict[str, list[float | None]]:
    """Of each mean its 95 % interval; none with fewer than two tasks."""
    values: dict[str, tuple[list[float], list[int], list[str]]] = {}
    for row, part, step in zip(rows, parts, steps, strict=True):
        sums = {
            "nll": part.nll,
            "base_nll": part.base_nll,
            "kl_mean": part.kl,
            "top1_agreement_pct": part.same,
        }
        if part.base_nll is not None:
            sums["nll_difference"] = part.nll - part.base_nll
        for name, array in sums.items():
            if array is not None:
                _append(values, name, float(array.sum()), len(array), row.key[0])
        for name in ("first_command", "base_first_command"):
            if f"{name}_logprob" in step:
                _append(values, f"{name}_prob", math.exp(step[f"{name}_logprob"]), 1, row.key[0])
    told: dict[str, list[float | None]] = {}
    for name, (sums_of, counts_of, tasks_of) in values.items():
        known = [task for task in tasks if task in set(tasks_of)]
        if len(known) < 2:
            continue
        place = {task: i for i, task in enumerate(known)}
        at = np.array([place[task] for task in tasks_of])
        by_task = [np.bincount(at, np.array(some)).astype(np.float64) for some in (sums_of, counts_of)]
        low, high = interval(resampled_means(by_task[0], by_task[1]), len(known))
        scale = 100 if name == "top1_agreement_pct" else 1
        told[name] = [scale * low, scale * high]
        if name in ("nll", "base_nll"):
            told[name.replace("nll", "perplexity")] = [_exp(low), _exp(high)]
    return told


def _append(
    values: dict[str, tuple[list[float], list[int], list[str]]],
    name: str,
    total: float,
    count: int,
    task: str,
) -> None:
    sums, counts, tasks = values.setdefault(name, ([], [], []))
    sums.append(total)
    counts.append(count)
    tasks.append(task)


def _by_position(rows: Sequence[Scored], everything: _Positions) -> list[dict[str, Any]]:
    """Bands of the token's index in its answer, each twice as wide as the one before: 0, 1, 2–3, 4–7, …"""
    index = np.concatenate([np.arange(len(row.nodes)) for row in rows])
    last, bands, begin = int(index.max()), list[dict[str, Any]](), 0
    while begin <= last:
        end = max(2 * begin, 1)
        band = everything.where((index >= begin) & (index < end))
        bands.append({"from": begin, "to": min(end - 1, last), **_means(band)})
        begin = end
    return bands


def _by_field(rows: Sequence[Scored], everything: _Positions) -> list[dict[str, Any]]:
    """The fields that there are, in the order of an answer; without the answers whose text is not known by token."""
    names = np.concatenate([row.fields if row.fields is not None else [""] * len(row.nodes) for row in rows])
    return [
        {"field": field, **_means(everything.where(names == field))}
        for field in FIELDS
        if (names == field).any()
    ]
