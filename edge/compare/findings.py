"""The findings of `edge compare`: figures, groups and steps, and their form as Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from edge.compare import patterns
from edge.compare.verdict import NONE_DIFFERS, is_few, looks_whole, p_text, places
from edge.replay.rows import describe
from edge.system.places import write_json
from edge.system.tables import clean, code, table
from edge.system.text import counted

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


class Agreement(TypedDict, total=False):
    """Percent of the paired steps with the same first command, commands and text. Empty if nothing is paired."""

    same_first_command_pct: float
    """Percent of the steps with the same first command."""
    same_commands_pct: float
    """Percent of the steps with the same commands."""
    same_text_pct: float
    """Percent of the steps with the same text; missing if the whole answers are not available on both sides."""


@dataclass(frozen=True)
class Figure:
    """One metric: percent for `*_pct` and the scores, 0 to 1 for F1 and its parts, else a count per step.

    `low` and `high` bound the difference (ours minus the reference) at 95 %; None if nothing can be paired.
    """

    name: str
    """Name of the figure, as in the aggregate of a result; also score."""
    reference: float | None
    """The reference's figure; null if it was not published."""
    ours: float
    """The result's figure."""
    difference: float | None
    """ours - reference."""
    low: float | None
    """Lower bound of the difference at 95 %; null if nothing is paired, or if fewer than 6 tasks differ."""
    high: float | None
    """Upper bound of the difference."""
    verdict: str
    """The verdict in a few words."""
    sentence: str
    """The verdict in sentences."""
    detectable: float | None = None
    """The true loss that is detected with 80 % probability at the 5 % level. null if the figure is not paired, if a
    difference was found, if fewer than 6 tasks differ, or if no loss is detected that often."""
    p: float | None = None
    """The p-value of McNemar's exact test, for `valid_json_pct` and `first_cmd_exact_pct` of paired steps."""
    counts: tuple[int, int] | None = None
    """For the same figures: how many steps only the reference has right, and how many only ours has right."""
    reference_interval: tuple[float, float] | None = None
    """95 % interval of the reference alone: Wilson's for a published percentage, else the bootstrap over its tasks."""
    our_interval: tuple[float, float] | None = None
    """The same for ours. Beside published figures, our percentages have Wilson's interval too."""


@dataclass(frozen=True)
class Worse:
    """A step whose command F1 fell. A first command is "" if there is none."""

    task_id: str
    """Name of the task."""
    sample_idx: int
    """Number of the sample."""
    step_idx: int
    """Number of the step."""
    reference_f1: float
    """Command F1 of the reference's answer."""
    our_f1: float
    """Command F1 of the result's answer."""
    wanted: str
    """First command of the row's reference answer."""
    reference_first: str
    """First command that the reference proposed."""
    our_first: str
    """First command that the result proposed."""


@dataclass(frozen=True)
class Group:
    """The command F1 of one group of steps. `reference` is None if it was not published."""

    kind: str
    """What the steps have in common: `source_group`, `bucket`, or `prompt_length` in tokens (k: 1,000)."""
    name: str
    """Name of the group."""
    steps: int
    """Number of steps."""
    tasks: int
    """Number of tasks."""
    reference: float | None
    """Command F1 of the reference; null if it was not published."""
    ours: float
    """Command F1 of the result."""
    difference: float | None
    """ours - reference."""
    low: float | None
    """Lower bound of the difference at 95 %; null also if fewer than 6 tasks of the group differ."""
    high: float | None
    """Upper bound of the difference."""


@dataclass(frozen=True)
class Part:
    """One result compared with the reference. Counts are steps; `joined` steps are on both sides."""

    result: str
    """The result, as the command named it."""
    model: str
    """Name of its model for people."""
    type: str | None
    """Its quantization or number type, as the model file says; null if unknown."""
    model_sha256: str | None
    """SHA-256 of its model file; null if unknown."""
    joined: int
    """Number of steps that both sides have."""
    only_ours: int
    """Number of steps that only the result has."""
    only_reference: int
    """Number of steps that only the reference has."""
    tasks: int
    """Number of tasks."""
    figures: tuple[Figure, ...]
    """The figures of both sides."""
    groups: tuple[Group, ...]
    """Command F1 by group of steps."""
    agreement: Agreement
    """How often both sides answer the same."""
    agreement_intervals: dict[str, tuple[float, float]]
    """95 % interval of each of these: Wilson's, with tasks as trials (Kish's effective number of tasks)."""
    better: int
    """Number of steps whose command F1 is higher than the reference's."""
    same: int
    """Number of steps with the same command F1."""
    worse: tuple[Worse, ...]
    """The steps whose command F1 is lower, the largest loss first."""
    notes: tuple[str, ...]
    """What a reader of the figures must know."""


@dataclass(frozen=True)
class Comparison:
    """Results compared with one reference. `paired` is True if the reference has steps."""

    reference: str
    model: str
    paired: bool
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, object]:
        """All findings as JSON values, including every step that got worse."""
        return asdict(self)

    def to_json(self) -> str:
        """All findings as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def write_json(self, path: Path | str) -> None:
        """Write all findings to a file. The file is complete or is not written. Raises ResultError."""
        write_json(path, self.to_dict())

    def to_markdown(self, worse: int = 10) -> str:
        """Sentences and tables, also readable in a terminal, with up to `worse` steps that got worse per result."""
        same = any(part.model == self.model for part in self.parts)  # then only the file names differ
        heading = f"{Path(self.reference).name}: {self.model}" if same else self.model
        lines = [f"# Compared with {clean(heading)}", "", f"Reference: {clean(self.reference)}", ""]
        if len(self.parts) > 1:
            lines += [*_overview(self.parts), ""]
        for part in self.parts:
            lines += [*_section(part, self.paired, worse), ""]
        return "\n".join(lines).rstrip() + "\n"


def _overview(parts: Sequence[Part]) -> list[str]:
    header = (
        "result",
        "type",
        "steps",
        "score",
        "difference",
        "95 % interval",
        "valid JSON %",
        "same commands %",
    )
    rows = []
    for part in parts:
        figures = {figure.name: figure for figure in part.figures}
        score = figures["score"]
        same = part.agreement.get("same_commands_pct")
        rows.append(
            (
                clean(part.result),
                clean(part.type or "–"),
                str(part.joined or part.only_ours),
                number("score", score.ours),
                number("score", score.difference, sign=True),
                interval_text(score.name, score.low, score.high),
                number("valid_json_pct", figures["valid_json_pct"].ours),
                number("valid_json_pct", same),
            )
        )
    return table(header, rows, right=range(2, len(header)))


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
            patterns.PAIRED(
                steps=counted(part.joined, "step"),
                tasks=counted(part.tasks, "task"),
                left_out=", ".join(left_out) or "none",
            ),
            "",
        ]
    for note in part.notes:
        lines += [clean(note), ""]
    if paired:
        lines += [f"- {agreement_text(part)}"]
    lines += [*_sentences(part, paired), ""]
    lines += _paired_table(part.figures) if paired else _published_table(part.figures)
    for kind, what in _KINDS.items():
        lines += _groups_table([group for group in part.groups if group.kind == kind], what, paired)
    if not paired:
        return lines
    lines += [
        "",
        patterns.F1_BY_STEP(better=part.better, same=part.same, worse=len(part.worse)),
    ]
    if part.worse and shown > 0:
        lines += ["", *_worse_table(part.worse[:shown])]
        if len(part.worse) > shown:
            lines += [
                "",
                patterns.MORE_WORSE(steps=counted(len(part.worse) - shown, "more step")),
            ]
    return lines


def _sentences(part: Part, paired: bool) -> list[str]:
    """One line a metric, metrics with the same sentence together, and how to read the lines."""
    alike = [figure for figure in part.figures if figure.verdict == NONE_DIFFERS]
    others = [
        figure
        for figure in part.figures
        if figure.verdict not in (NONE_DIFFERS, "no such steps", "not published")
    ]
    names: dict[str, list[str]] = {}
    for figure in [*others, *alike]:
        names.setdefault(figure.sentence + test_text(figure), []).append(LABELS[figure.name])
    lines = [f"- {', '.join(labels)}: {text}" for text, labels in names.items()]
    if any(figure.detectable is not None and not is_few(figure.verdict) for figure in part.figures):
        lines += ["", patterns.POWER_LINE()]
    if any(figure.counts and any(figure.counts) for figure in part.figures):
        lines += ["", patterns.MCNEMAR_LINE()]
    if not paired:
        lines += ["", patterns.PUBLISHED_LINE()]
    return lines


def agreement_text(part: Part) -> str:
    """How often both sides answer the same, with intervals, in one sentence."""
    named: dict[str, float | None] = {
        "same_commands_pct": part.agreement.get("same_commands_pct"),
        "same_first_command_pct": part.agreement.get("same_first_command_pct"),
        "same_text_pct": part.agreement.get("same_text_pct"),
    }
    said = []
    for name, share in named.items():
        if share is not None:
            low, high = part.agreement_intervals[name]
            what = name.removesuffix("_pct").replace("_", " ")
            value = number("valid_json_pct", share)
            said.append(patterns.SAME_SHARE(what=what, share=value, low=f"{low:.1f}", high=f"{high:.1f}"))
    return patterns.SAME_SHARES(shares=", ".join(said))


def test_text(figure: Figure) -> str:
    """McNemar's test of a figure in parentheses; an empty string if there is nothing to test."""
    if figure.counts is None or figure.p is None or not any(figure.counts):
        return ""
    theirs, ours = figure.counts
    return f" {patterns.MCNEMAR(theirs=theirs, ours=ours, p=p_text(figure.p))}"


def _paired_table(figures: Sequence[Figure]) -> list[str]:
    header = ("metric", "reference", "ours", "difference", "95 % interval", "detectable", "verdict")
    rows = [
        (
            LABELS[figure.name],
            number(figure.name, figure.reference),
            number(figure.name, figure.ours),
            number(figure.name, figure.difference, sign=True),
            interval_text(figure.name, figure.low, figure.high),
            number(figure.name, None if is_few(figure.verdict) else figure.detectable),
            figure.verdict,
        )
        for figure in figures
    ]
    return table(header, rows, right=range(1, len(header) - 1))


def _published_table(figures: Sequence[Figure]) -> list[str]:
    """The table for published figures, with a mark in each published cell."""
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
        patterns.PUBLISHED_MARK(),
    ]


def _published(name: str, value: float | None) -> str:
    return number(name, value) + f" {PUBLISHED}" * (value is not None)


_KINDS = {"source_group": "source group", "bucket": "steps of a task", "prompt_length": "prompt tokens"}


def _groups_table(groups: Sequence[Group], what: str, paired: bool) -> list[str]:
    """F1 by group of one kind; empty if the reference has fewer than two such groups."""
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
    """A figure in a table with its decimal places; a dash for None. A share that is not 100 never reads 100.0."""
    if value is not None and not sign and name.endswith("_pct") and looks_whole(value, places(name)):
        return "> 99.9"
    return "–" if value is None else f"{value:{'+' if sign and value else ''}.{places(name)}f}"


def interval_text(name: str, low: float | None, high: float | None) -> str:
    """The interval of a difference in a table; a dash for None, and where no task differs: then it has no width."""
    if low is None or high is None or low == high == 0:
        return "–"
    return f"{number(name, low, sign=True)} … {number(name, high, sign=True)}"
