"""The figures of a measurement, from what both models said at each position: means, percentiles, intervals, bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.forced import Plan, Scored
from edge.intervals import interval, resampled_means
from edge.spans import FIELDS

_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # where the bands by position begin
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Against:
    """The base's side: of each slot its log-probability; of each node the divergence, how far it may be off, and
    whether both models prefer the same token.
    """

    log_probs: Floats
    kl: Floats
    error: Floats
    same: NDArray[np.bool_]


@dataclass(frozen=True)
class Figures:
    """What a model says: of each slot, a node and what comes next, its log-probability in nats."""

    log_probs: Floats
    base: Against | None

    @classmethod
    def empty(cls, nodes: int, slots: int, *, with_base: bool) -> "Figures":
        """To be filled in."""
        base = Against(np.zeros(slots), np.zeros(nodes), np.zeros(nodes), np.zeros(nodes, bool))
        return cls(np.zeros(slots), base if with_base else None)


def aggregate(plan: Plan, figures: Figures) -> dict[str, Any]:
    """The figures over all positions: log-likelihoods and divergences in nats a token.

    `intervals` are at 95 %, by drawing whole tasks (of a text: chunks); none for a single one.
    """
    rows = plan.rows
    log_probs = [figures.log_probs[row.slots] for row in rows]
    found: dict[str, Any] = {
        "rows": len(rows),
        "tasks": len({row.key[0] for row in rows}),
        "tokens": sum(map(len, log_probs)),
    }
    told: dict[str, list[NDArray[Any]]] = {"nll": [-some for some in log_probs]}
    if figures.base is not None:
        told["base_nll"] = [-figures.base.log_probs[row.slots] for row in rows]
    commands = {"first_command_prob": _commands(rows, figures.log_probs)}
    if figures.base is not None:
        commands["base_first_command_prob"] = _commands(rows, figures.base.log_probs)
    for name, values in told.items():
        found[name] = float(np.concatenate(values).mean())
        found[name.replace("nll", "perplexity")] = float(np.exp(found[name]))
    if figures.base is not None:
        kl = np.concatenate([figures.base.kl[row.nodes] for row in rows])
        found |= _percentiles(kl)
        found["kl_max"] = float(kl.max())
        found["kl_error_bound"] = float(
            np.concatenate([figures.base.error[row.nodes] for row in rows]).mean()
        )
        told["kl_mean"] = [figures.base.kl[row.nodes] for row in rows]
        told["top1_agreement_pct"] = [100.0 * figures.base.same[row.nodes] for row in rows]
        found["top1_agreement_pct"] = float(np.concatenate(told["top1_agreement_pct"]).mean())
    for name, probs in commands.items():
        known = [prob for prob in probs if prob is not None]
        if known:
            found[name] = float(np.mean(known))
            told[name] = [np.array([] if prob is None else [prob]) for prob in probs]
    intervals = {}
    for name, values in told.items():
        if (bounds := _interval(rows, values)) is not None:
            intervals[name] = list(bounds)
            if name in ("nll", "base_nll"):
                intervals[name.replace("nll", "perplexity")] = [float(np.exp(bound)) for bound in bounds]
    return {**found, "intervals": intervals}


def bands_by_position(plan: Plan, figures: Figures) -> list[dict[str, Any]]:
    """The divergence by a token's place in its answer (of a text: behind the first half of its chunk)."""
    if figures.base is None:
        return []
    places = np.concatenate([np.arange(len(row.nodes)) for row in plan.rows])
    nodes = np.concatenate([row.nodes for row in plan.rows])
    bands = []
    for i, begin in enumerate(_EDGES):
        end = _EDGES[i + 1] if i + 1 < len(_EDGES) else None
        inside = nodes[(places >= begin) & (places < (places.max() + 1 if end is None else end))]
        if len(inside):
            bands.append(
                {"from": begin, "to": None if end is None else end - 1, **_band(figures.base, inside)}
            )
    return bands


def bands_by_field(plan: Plan, figures: Figures) -> list[dict[str, Any]]:
    """The divergence by what a token belongs to, as of edge.spans."""
    if figures.base is None:
        return []
    bands = []
    for name in FIELDS:
        nodes = [
            row.nodes[np.array([field == name for field in row.fields])]
            for row in plan.rows
            if row.fields is not None
        ]
        inside = np.concatenate(nodes) if nodes else np.empty(0, np.int64)
        if len(inside):
            bands.append({"field": name, **_band(figures.base, inside)})
    return bands


def per_step(plan: Plan, figures: Figures) -> list[dict[str, Any]]:
    """The figures of each row or chunk."""
    steps = []
    commands = _commands(plan.rows, figures.log_probs, log=True)
    base_commands = None if figures.base is None else _commands(plan.rows, figures.base.log_probs, log=True)
    for i, row in enumerate(plan.rows):
        step: dict[str, Any] = dict(zip(("task_id", "sample_idx", "step_idx"), row.key, strict=True))
        step |= {"source_group": row.source_group, "bucket": row.bucket, "prompt_tokens": row.prompt_tokens}
        step |= {"tokens": len(row.slots), "nll": _mean(-figures.log_probs[row.slots])}
        if figures.base is not None:
            kl = figures.base.kl[row.nodes]
            step |= {
                "base_nll": _mean(-figures.base.log_probs[row.slots]),
                "kl_mean": _mean(kl),
                "kl_max": float(kl.max()),
                "top1_agreement_pct": _mean(100.0 * figures.base.same[row.nodes]),
            }
        step["first_command_logprob"] = commands[i]
        if base_commands is not None:
            step["base_first_command_logprob"] = base_commands[i]
        steps.append({**step, "row_sha256": row.row_sha256, "prompt_sha256": row.prompt_sha256})
    return steps


def _commands(rows: Sequence[Scored], log_probs: Floats, *, log: bool = False) -> list[float | None]:
    """Of each row the (log-)probability of the first command's tokens; None where it has none."""
    sums = [
        None if not row.command else float(log_probs[row.slots[row.command.start : row.command.stop]].sum())
        for row in rows
    ]
    return [value if value is None or log else float(np.exp(value)) for value in sums]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())


def _percentiles(kl: Floats) -> dict[str, float]:
    median, p90, p99 = np.quantile(kl, [0.5, 0.9, 0.99])
    return {
        "kl_mean": float(kl.mean()),
        "kl_median": float(median),
        "kl_p90": float(p90),
        "kl_p99": float(p99),
    }


def _band(base: Against, nodes: NDArray[np.int64]) -> dict[str, Any]:
    same = 100.0 * float(base.same[nodes].mean())
    return {"tokens": len(nodes), **_percentiles(base.kl[nodes]), "top1_agreement_pct": same}


def _interval(rows: Sequence[Scored], values: Sequence[NDArray[Any]]) -> tuple[float, float] | None:
    tasks: dict[str, tuple[float, int]] = {}
    for row, some in zip(rows, values, strict=True):
        if len(some):
            total, count = tasks.get(row.key[0], (0.0, 0))
            tasks[row.key[0]] = total + float(some.sum()), count + len(some)
    if len(tasks) < 2:
        return None
    sums, counts = (np.array(column, float) for column in zip(*tasks.values(), strict=True))
    return interval(resampled_means(sums, counts), len(tasks))
