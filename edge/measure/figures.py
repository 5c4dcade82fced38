"""The figures of a measurement, computed from the values at each position (docs/measure.md says what each one means).

All figures are means over positions, so a long answer has more weight than a short one. A node that several rows share
counts for each of them. Intervals come from the bootstrap over whole tasks that a comparison uses
(edge/compare/intervals.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edge.compare.intervals import interval, resampled_means
from edge.measure.positions import MeasuredRow, Plan
from edge.measure.schema import (
    FieldFigures,
    Figures,
    MeasurementAggregate,
    PositionFigures,
    PositionValues,
    RowFigures,
    TokenFigures,
)
from edge.measure.spans import FIELDS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What a model predicted. `log_probs`: the log probability of each slot of the plan, in nats.

    With a base: `base_log_probs` of each slot; and of each node the divergence `kl` from the base, the largest possible
    error of that divergence, and whether both models have the same most probable token.
    """

    log_probs: Floats
    base_log_probs: Floats | None = None
    kl: Floats | None = None
    errors: Floats | None = None
    same_top: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class BasePositions:
    """The comparison with the base at some positions; `same` is 1 where the most probable tokens are the same."""

    nll: Floats
    kl: Floats
    errors: Floats
    same: Floats


@dataclass(frozen=True)
class Positions:
    """Some positions, and their comparison with the base if there is one."""

    nll: Floats
    base: BasePositions | None

    def where(self, chosen: NDArray[np.bool_]) -> "Positions":
        """The positions for which `chosen`, shape (n,), is true."""
        base = self.base
        if base is not None:
            base = BasePositions(base.nll[chosen], base.kl[chosen], base.errors[chosen], base.same[chosen])
        return Positions(self.nll[chosen], base)


def figures(plan: Plan, found: Predictions) -> Figures:
    """`aggregate`, `intervals`, `by_position`, `by_field` and `per_step` of a measurement JSON."""
    return joint_figures(plan.rows, [_of_row(row, found) for row in plan.rows], plan.chunk)


def joint_figures(rows: Sequence[MeasuredRow], parts: Sequence[Positions], chunk: int | None) -> Figures:
    """The figures of rows, from the values at the positions of each. `chunk`: as in a plan."""
    everything = _joined(parts)
    steps = [_row_figures(row, part) for row, part in zip(rows, parts, strict=True)]
    tasks = sorted({row.key[0] for row in rows})
    aggregate = _aggregate(len(rows), len(tasks), everything, steps)
    intervals = _intervals(tasks, rows, parts, steps)
    if chunk is not None:
        return {"aggregate": aggregate, "intervals": intervals, "per_step": steps}
    return {
        "aggregate": aggregate,
        "intervals": intervals,
        "by_position": _by_position(rows, everything),
        "by_field": _by_field(rows, everything),
        "per_step": steps,
    }


def _of_row(row: MeasuredRow, found: Predictions) -> Positions:
    base = None
    if (
        found.base_log_probs is not None
        and found.kl is not None
        and found.errors is not None
        and found.same_top is not None
    ):
        base = BasePositions(
            -found.base_log_probs[row.slots] + 0.0,
            found.kl[row.nodes],
            found.errors[row.nodes],
            found.same_top[row.nodes].astype(np.float64),
        )
    return Positions(-found.log_probs[row.slots] + 0.0, base)


def position_values(row: MeasuredRow, found: Predictions) -> PositionValues:
    """The values at each position of a row, as a shard keeps them for `edge join`."""
    part = _of_row(row, found)
    values: PositionValues = {"nll": part.nll.tolist()}
    if (base := part.base) is not None:
        values["base_nll"], values["kl"] = base.nll.tolist(), base.kl.tolist()
        values["kl_error"], values["same_top"] = base.errors.tolist(), base.same.tolist()
    if row.fields is not None:
        values["fields"] = list(row.fields)
    if row.command is not None:
        values["command"] = [row.command.start, row.command.stop]
    return values


def positions_of(values: PositionValues) -> Positions:
    """The reverse of `position_values`."""
    base = None
    if "kl" in values:
        base = BasePositions(*(np.array(values[name]) for name in ("base_nll", "kl", "kl_error", "same_top")))
    return Positions(np.array(values["nll"]), base)


def _joined(parts: Sequence[Positions]) -> Positions:
    bases = [part.base for part in parts if part.base is not None]
    base = None
    if bases:
        base = BasePositions(
            np.concatenate([part.nll for part in bases]),
            np.concatenate([part.kl for part in bases]),
            np.concatenate([part.errors for part in bases]),
            np.concatenate([part.same for part in bases]),
        )
    return Positions(np.concatenate([part.nll for part in parts]), base)


def _exp(value: float) -> float | None:
    """e to the power of `value`; None where that is too large for a float."""
    return math.exp(value) if value < 700 else None


def _means(part: Positions) -> TokenFigures:
    """The figures that exist for any set of positions, at least one."""
    means: TokenFigures = {"tokens": len(part.nll), "nll": float(part.nll.mean())}
    if (base := part.base) is not None:
        median, p90, p99 = np.quantile(base.kl, [0.5, 0.9, 0.99])
        means["base_nll"] = float(base.nll.mean())
        means["kl_mean"] = float(base.kl.mean())
        means["kl_median"] = float(median)
        means["kl_p90"] = float(p90)
        means["kl_p99"] = float(p99)
        means["top1_agreement_pct"] = 100 * float(base.same.mean())
    return means


def _aggregate(
    rows: int, tasks: int, everything: Positions, steps: Sequence[RowFigures]
) -> MeasurementAggregate:
    # mypy refuses ** where keys of the target may be missing, though these are not required.
    aggregate = cast(MeasurementAggregate, {"rows": rows, "tasks": tasks, **_means(everything)})
    aggregate["perplexity"] = _exp(aggregate["nll"])
    if (base := everything.base) is not None:
        aggregate["base_perplexity"] = _exp(aggregate["base_nll"])
        aggregate["nll_difference"] = float((everything.nll - base.nll).mean())
        aggregate["kl_max"] = float(base.kl.max())
        aggregate["kl_error_bound"] = float(base.errors.mean())
    logs = [step["first_command_logprob"] for step in steps if "first_command_logprob" in step]
    if logs:
        aggregate["first_commands"] = len(logs)
        aggregate["first_command_prob"] = float(np.exp(logs).mean())
    logs = [step["base_first_command_logprob"] for step in steps if "base_first_command_logprob" in step]
    if logs:
        aggregate["base_first_command_prob"] = float(np.exp(logs).mean())
    return aggregate


def _row_figures(row: MeasuredRow, part: Positions) -> RowFigures:
    task_id, sample_idx, step_idx = row.key
    step: RowFigures = {
        "task_id": task_id,
        "sample_idx": sample_idx,
        "step_idx": step_idx,
        "source_group": row.source_group,
        "bucket": row.bucket,
        "prompt_tokens": row.prompt_tokens,
        "tokens": len(part.nll),
        "nll": float(part.nll.mean()),
    }
    if (base := part.base) is not None:
        step["base_nll"] = float(base.nll.mean())
        step["kl_mean"] = float(base.kl.mean())
        step["kl_max"] = float(base.kl.max())
        step["top1_agreement_pct"] = 100 * float(base.same.mean())
    if row.command:
        inside = slice(row.command.start, row.command.stop)
        step["first_command_logprob"] = -float(part.nll[inside].sum()) + 0.0
        if base is not None:
            step["base_first_command_logprob"] = -float(base.nll[inside].sum()) + 0.0
    step["row_sha256"] = row.row_sha256
    step["prompt_sha256"] = row.prompt_sha256
    return step


@dataclass
class _ByRow:
    """A figure's sums, counts and tasks, one of each row that has the figure."""

    sums: list[float]
    counts: list[int]
    tasks: list[str]

    def interval(self, tasks: Sequence[str]) -> tuple[float, float] | None:
        """The 95 % interval of the mean, in the bootstrap's order of `tasks`; None with fewer than two tasks."""
        known = [task for task in tasks if task in set(self.tasks)]
        if len(known) < 2:
            return None
        place = {task: i for i, task in enumerate(known)}
        at = np.array([place[task] for task in self.tasks])
        sums = np.bincount(at, np.array(self.sums)).astype(np.float64)
        counts = np.bincount(at, np.array(self.counts)).astype(np.float64)
        return interval(resampled_means(sums, counts), len(known))


def _intervals(
    tasks: Sequence[str],
    rows: Sequence[MeasuredRow],
    parts: Sequence[Positions],
    steps: Sequence[RowFigures],
) -> dict[str, list[float | None]]:
    """The 95 % interval of each mean; no entry for a mean over fewer than two tasks."""
    by_name: dict[str, _ByRow] = {}

    def add(name: str, total: float, count: int, task: str) -> None:
        by_row = by_name.setdefault(name, _ByRow([], [], []))
        by_row.sums.append(total)
        by_row.counts.append(count)
        by_row.tasks.append(task)

    for row, part, step in zip(rows, parts, steps, strict=True):
        values = {"nll": part.nll}
        if (base := part.base) is not None:
            values |= {"base_nll": base.nll, "kl_mean": base.kl, "top1_agreement_pct": base.same}
            values["nll_difference"] = part.nll - base.nll
        for name, array in values.items():
            add(name, float(array.sum()), len(array), row.key[0])
        if "first_command_logprob" in step:
            add("first_command_prob", math.exp(step["first_command_logprob"]), 1, row.key[0])
        if "base_first_command_logprob" in step:
            add("base_first_command_prob", math.exp(step["base_first_command_logprob"]), 1, row.key[0])
    intervals: dict[str, list[float | None]] = {}
    for name, by_row in by_name.items():
        bounds = by_row.interval(tasks)
        if bounds is None:
            continue
        scale = 100 if name == "top1_agreement_pct" else 1
        intervals[name] = [scale * bound for bound in bounds]
        if name in ("nll", "base_nll"):
            intervals[name.replace("nll", "perplexity")] = [_exp(bound) for bound in bounds]
    return intervals


def _by_position(rows: Sequence[MeasuredRow], everything: Positions) -> list[PositionFigures]:
    """Bands of the token's index in its answer, each twice as wide as the one before: 0, 1, 2–3, 4–7, …"""
    index = np.concatenate([np.arange(len(row.nodes)) for row in rows])
    last, bands, begin = int(index.max()), list[PositionFigures](), 0
    while begin <= last:
        end = max(2 * begin, 1)
        band = everything.where((index >= begin) & (index < end))
        bands.append({"from": begin, "to": min(end - 1, last), **_means(band)})
        begin = end
    return bands


def _by_field(rows: Sequence[MeasuredRow], everything: Positions) -> list[FieldFigures]:
    """The fields that occur, in the order of an answer. Answers whose tokens have no known text are left out."""
    names = np.concatenate([row.fields if row.fields is not None else [""] * len(row.nodes) for row in rows])
    return [
        {"field": field, **_means(everything.where(names == field))}
        for field in FIELDS
        if (names == field).any()
    ]
