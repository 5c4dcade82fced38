"""What `edge compare` found: its figures, groups and steps, and how they read as Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.markdown import clean, code, table
from edge.metrics import TERMS
from edge.replay import describe
from edge.result import write_json

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
class Group:
    """The command F1 of one group of steps; the reference's is None where it was not published."""

    kind: str
    """What the steps share: `source_group` or `bucket`."""
    name: str
    steps: int
    reference: float | None
    ours: float
    difference: float | None


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

    def to_json(self) -> str:
        """Everything that was found, every step that got worse included."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def write_json(self, path: Path | str) -> None:
        """Write it to a file, whole or not at all. Raises ResultError."""
        write_json(path, asdict(self))

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


def places(name: str) -> int:
    """Decimal places that a figure is told with."""
    return 2 if name in ("score", "next_action_score") else TERMS[name][1]


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
    lines += _groups_table(part.groups)
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


def _groups_table(groups: Sequence[Group]) -> list[str]:
    """F1 by group, of each kind that has several; none where the reference tells of none."""
    kinds = [group.kind for group in groups if group.reference is not None]
    rows = [
        (
            clean(group.name),
            str(group.steps),
            *(_number("avg_command_f1", value) for value in (group.reference, group.ours)),
            _number("avg_command_f1", group.difference, sign=True),
        )
        for group in groups
        if kinds.count(group.kind) > 1
    ]
    header = ("command F1 of", "steps", "reference", "ours", "difference")
    return ["", *table(header, rows, right=(1, 2, 3, 4))] if rows else []


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
    return "–" if value is None else f"{value:{'+' if sign and value else ''}.{places(name)}f}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "–"
    return f"{_number(figure.name, figure.low, sign=True)} … {_number(figure.name, figure.high, sign=True)}"
