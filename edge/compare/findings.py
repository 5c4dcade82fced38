"""What `edge compare` found: its figures, groups and steps, and how they read as Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.compare.verdict import p_text, places
from edge.replay.rows import describe
from edge.system.places import write_json
from edge.system.tables import clean, code, table

LABELS = {
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


PUBLISHED = "†"  # marks each published figure in a table


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
    sentence: str
    """The verdict for people."""
    detectable: float | None = None
    """The smallest loss that would have been detected with 80 % probability at the 5 % level; None where not paired,
    where there is one task, and where nothing varies."""
    p: float | None = None
    """Of McNemar's exact test, for `valid_json_pct` and `first_cmd_exact_pct` of paired steps."""
    counts: tuple[int, int] | None = None
    """For the same: steps that only the reference has right, and that only ours has."""
    reference_interval: tuple[float, float] | None = None
    """95 % interval of that side alone: Wilson's for a published percentage, else the bootstrap over its tasks."""
    our_interval: tuple[float, float] | None = None
    """Likewise; beside published figures our percentages have Wilson's too."""


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
class Group:
    """The command F1 of one group of steps; the reference's is None where it was not published."""

    kind: str
    """What the steps share: `source_group`, `bucket`, or `prompt_length` in tokens (k: 1,000)."""
    name: str
    steps: int
    tasks: int
    reference: float | None
    ours: float
    difference: float | None
    low: float | None
    """Of the difference, as in `Figure`; None also for a group of one task."""
    high: float | None


@dataclass(frozen=True)
class Part:
    """One result against the reference. Counts are steps; `agreement` holds percentages of the joined ones."""

    result: str
    model: str
    joined: int
    only_ours: int
    only_reference: int
    tasks: int
    figures: tuple[Figure, ...]
    groups: tuple[Group, ...]
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

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found as JSON values, every step that got worse included."""
        return asdict(self)

    def to_json(self) -> str:
        """The same as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def write_json(self, path: Path | str) -> None:
        """Write it to a file, whole or not at all. Raises ResultError."""
        write_json(path, self.to_dict())

    def to_markdown(self, worse: int = 10) -> str:
        """Tables that read well in a terminal too, with up to `worse` steps that got worse for each result."""
        same = any(part.model == self.model for part in self.parts)  # then only the file tells them apart
        heading = f"{Path(self.reference).name}: {self.model}" if same else self.model
        lines = [f"# Compared with {clean(heading)}", "", f"Reference: {clean(self.reference)}", ""]
        if len(self.parts) > 1:
            lines += [*_overview(self.parts), ""]
        for part in self.parts:
            lines += [*_section(part, self.paired, worse), ""]
        return "\n".join(lines).rstrip() + "\n"


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
                number("score", score.ours),
                number("score", score.difference, sign=True),
                interval_text(score.name, score.low, score.high),
                number("valid_json_pct", figures["valid_json_pct"].ours),
                number("valid_json_pct", same),
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
            )
            if count
        ]
        lines += [
            f"{part.joined} steps of {part.tasks} tasks joined; not joined: {', '.join(left_out) or 'none'}.",
            "",
        ]
    for note in part.notes:
        lines += [clean(note), ""]
    lines += [*_sentences(part, paired), ""]
    lines += _paired_table(part.figures) if paired else _published_table(part.figures)
    for kind, what in _KINDS.items():
        lines += _groups_table([group for group in part.groups if group.kind == kind], what, paired)
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


def _sentences(part: Part, paired: bool) -> list[str]:
    """A line a metric, those with the same sentence together, and how to read them."""
    alike = [figure for figure in part.figures if figure.verdict == "no difference"]
    told = [
        figure
        for figure in part.figures
        if figure.verdict not in ("no difference", "no such steps", "not published")
    ]
    names: dict[str, list[str]] = {}
    for figure in [*told, *alike]:
        names.setdefault(figure.sentence + test_text(figure), []).append(LABELS[figure.name])
    lines = [f"- {', '.join(labels)}: {text}" for text, labels in names.items()]
    if any(figure.detectable is not None for figure in part.figures):
        lines += [
            "",
            "“Would have been”: with 80 % probability, at the 5 % level, by as many tasks of this spread.",
        ]
    if any(figure.counts and any(figure.counts) for figure in part.figures):
        lines += [
            "",
            "McNemar's test takes all steps as independent, which those of one task are not: the verdict rests on the "
            "interval, which is over tasks.",
        ]
    if not paired:
        lines += [
            "",
            "Intervals of percentages are Wilson's for independent steps, too narrow where those of a task are alike; "
            "our others are a bootstrap over tasks. Where a published figure lies is no test.",
        ]
    return lines


def test_text(figure: Figure) -> str:
    """McNemar's test of a figure in parentheses, where there was anything to test."""
    if figure.counts is None or figure.p is None or not any(figure.counts):
        return ""
    theirs, ours = figure.counts
    return f" (McNemar: right in the reference alone {theirs}, in ours alone {ours}, {p_text(figure.p)}.)"


def _paired_table(figures: Sequence[Figure]) -> list[str]:
    header = ("metric", "reference", "ours", "difference", "95 % interval", "detectable", "verdict")
    rows = [
        (
            LABELS[figure.name],
            number(figure.name, figure.reference),
            number(figure.name, figure.ours),
            number(figure.name, figure.difference, sign=True),
            interval_text(figure.name, figure.low, figure.high),
            number(figure.name, figure.detectable),
            figure.verdict,
        )
        for figure in figures
    ]
    return table(header, rows, right=range(1, len(header) - 1))


def _published_table(figures: Sequence[Figure]) -> list[str]:
    """Published figures marked in each cell, so that no row can be taken for ours."""
    header = ("metric", f"reference {PUBLISHED}", "95 %", "ours", "95 %", "difference", "verdict")
    rows = []
    for figure in figures:
        spans = [
            "–" if span is None else f"{number(figure.name, span[0])} … {number(figure.name, span[1])}"
            for span in (figure.reference_interval, figure.our_interval)
        ]
        rows.append(
            (
                LABELS[figure.name],
                _published(figure.name, figure.reference),
                spans[0] + f" {PUBLISHED}" * (figure.reference_interval is not None),
                number(figure.name, figure.ours),
                spans[1],
                number(figure.name, figure.difference, sign=True),
                figure.verdict,
            )
        )
    return [
        *table(header, rows, right=range(1, len(header) - 1)),
        "",
        f"{PUBLISHED} published elsewhere or worked out from that; all else is measured here, or compares the two.",
    ]


def _published(name: str, value: float | None) -> str:
    return number(name, value) + f" {PUBLISHED}" * (value is not None)


_KINDS = {"source_group": "source group", "bucket": "steps of a task", "prompt_length": "prompt tokens"}


def _groups_table(groups: Sequence[Group], what: str, paired: bool) -> list[str]:
    """F1 by group of one kind, where there are several; none where the reference tells of none."""
    if sum(group.reference is not None for group in groups) < 2:
        return []
    rows = []
    for group in groups:
        reference = number("avg_command_f1", group.reference)
        rows.append(
            [
                clean(group.name),
                str(group.steps),
                str(group.tasks),
                reference if paired else _published("avg_command_f1", group.reference),
                number("avg_command_f1", group.ours),
                number("avg_command_f1", group.difference, sign=True),
                *([interval_text("avg_command_f1", group.low, group.high)] if paired else []),
            ]
        )
    mark = "" if paired else f" {PUBLISHED}"
    header = [f"command F1 by {what}", "steps", "tasks", f"reference{mark}", "ours", "difference"]
    header += ["95 % interval"] if paired else []
    return ["", *table(header, rows, right=range(1, len(header)))]


def _worse_table(steps: Sequence[Worse]) -> list[str]:
    header = ("got worse", "F1 reference", "F1 ours", "first command of the reference", "our first command")
    rows = [
        (
            clean(describe((step.task_id, step.sample_idx, step.step_idx))),
            number("avg_command_f1", step.reference_f1),
            number("avg_command_f1", step.our_f1),
            code(step.reference_first),
            code(step.our_first),
        )
        for step in steps
    ]
    return table(header, rows, right=(1, 2))


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A figure in a table, with its places; a dash for none."""
    return "–" if value is None else f"{value:{'+' if sign and value else ''}.{places(name)}f}"


def interval_text(name: str, low: float | None, high: float | None) -> str:
    """The interval of a difference in a table; a dash for none."""
    if low is None or high is None:
        return "–"
    return f"{number(name, low, sign=True)} … {number(name, high, sign=True)}"
