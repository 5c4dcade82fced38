"""Check a replay file before an evaluation: every problem with its line, and references that are not actions.

`edge rows check` prints what `check_rows` finds. eval, score and measure print the short form, `reference_notes`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from edge.answer.action import parse_action
from edge.errors import GrammarError
from edge.metrics import command_units, json_text, payload
from edge.replay.rows import ReadLine, Row, RowFields, describe, row_lines, see
from edge.system.text import counted, did_you_mean
from edge.system.typed_json import problems

ROLES = ("system", "developer", "user", "assistant", "tool")
_PUBLISHED = (
    "is_final_step ref_parse_ok ref_analysis ref_plan ref_task_complete ref_commands ref_command_units session"
).split()
_NAMED = 3  # rows that a note names
_SHOWN = 20  # findings in a text: a file of another kind has one on each line
_THOUGHT_ENDS = "</think>"


class _Command(TypedDict):
    keystrokes: str
    duration: NotRequired[float]


class _Reference(TypedDict):
    """What a reference must have, so that the scorer reads it as an action."""

    analysis: NotRequired[str]
    plan: NotRequired[str]
    commands: list[_Command]
    task_complete: NotRequired[bool]


def reference_problem(ref_raw: str) -> str | None:
    """Why a reference is not an action, in a few words; None if it is one.

    An action is a JSON object, read by the rules of the scorer, whose `commands` are objects with keystrokes. The
    other fields may be missing, but must have their type.
    """
    value = payload(ref_raw)
    if value is None:
        return _no_payload(ref_raw)
    return next(problems(value, _Reference), None)


def _no_payload(ref_raw: str) -> str:
    """Why the scorer finds no JSON object in a text."""
    if not ref_raw.strip():
        return "it is empty"
    text = json_text(ref_raw)
    if not text.startswith("{"):
        return "it has no JSON object"
    if "{" in ref_raw.partition(_THOUGHT_ENDS)[0] and _THOUGHT_ENDS in ref_raw:
        return "braces in the thought before the JSON make it invalid"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"its JSON is invalid at character {error.pos + 1}: {error.msg}"
    except (ValueError, RecursionError):
        pass
    return "its JSON cannot be read"


def _has_command(row: Row) -> bool:
    """Whether the scorer finds a command line in the reference. Without one, every answer scores 0."""
    return bool(command_units(row.ref_raw, payload(row.ref_raw)))


def reference_notes(path: Path | str, rows: Sequence[Row], *, scored: bool = True) -> list[str]:
    """A line about the references that are not actions; no line if there are none.

    It names the first rows and says what follows: `scored` for a score, otherwise for a measurement.
    """
    found = [(row, problem) for row in rows if (problem := reference_problem(row.ref_raw)) is not None]
    if not found:
        return []
    named = ", ".join(f"{describe(row.key)} ({problem})" for row, problem in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    of = f"{len(found)} of {len(rows)} references (ref_raw) " + (
        "is not an action" if len(found) == 1 else "are not actions"
    )
    return [
        f"{path}: {of}: {named}{more}; {_effect(found, scored)}; `edge rows check {path}` shows all problems"
    ]


def _effect(found: Sequence[tuple[Row, str]], scored: bool) -> str:
    if not scored:
        return "edge reads them as plain text"
    zero = sum(not _has_command(row) for row, _ in found)
    if not zero:
        return "the scorer still finds commands in them"
    which = "this row" if len(found) == 1 else "these rows" if zero == len(found) else f"{zero} of these rows"
    return f"every answer to {which} scores 0"


@dataclass(frozen=True)
class Finding:
    """Something wrong with a line. A file with an error is refused by every command that reads rows."""

    line: int | None
    level: Literal["error", "warning"]
    step: str | None
    """The step, such as `task-000 step 3`; None where the line does not name one."""
    text: str


@dataclass(frozen=True)
class CheckedRows:
    """What `edge rows check` found in a file, and counts of its valid rows."""

    path: str
    findings: tuple[Finding, ...]
    rows: int
    tasks: int
    with_system: int
    """Rows with a system message."""
    completed: int
    """Rows whose reference completes the task."""
    without_command: int
    """Rows whose reference has no command line, so every answer to them scores 0."""
    other_form: int
    """Rows whose reference is an action, but not in the exact form that edge's grammar writes."""

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def to_json(self) -> str:
        """Everything as one JSON object."""
        counts = {"errors": self.errors, "warnings": self.warnings}
        fields = asdict(self)
        findings = fields.pop("findings")
        return json.dumps({**fields, **counts, "findings": findings}, ensure_ascii=False)

    def to_text(self) -> str:
        """A line for each of the first findings, in the order of the file, and the counts."""
        lines = []
        for finding in self.findings[:_SHOWN]:
            where = self.path if finding.line is None else f"{self.path}:{finding.line}"
            step = f"{finding.step}: " if finding.step else ""
            lines.append(f"{where}: {finding.level}: {step}{finding.text}")
        if len(self.findings) > _SHOWN:
            lines.append(f"… and {len(self.findings) - _SHOWN:,} more; --json prints all")
        lines.append(
            f"{self.path}: {counted(self.rows, 'valid row')} of {counted(self.tasks, 'task')}, "
            f"{counted(self.errors, 'error')}, {counted(self.warnings, 'warning')}"
        )
        if self.rows:
            lines.append(
                f"{self.with_system:,} of {counted(self.rows, 'row')} with a system message; "
                f"{counted(self.completed, 'reference')} with a completed task"
            )
        if self.without_command:
            lines.append(
                f"{counted(self.without_command, 'reference')} without a command: every answer to such a row scores 0"
            )
        if self.other_form:
            lines.append(
                f"{counted(self.other_form, 'reference')} not in the exact form of edge's grammar (its keys, "
                "their order, or a duration); edge scores such a reference too"
            )
        if self.errors:
            lines.append(f"the format: {see('replay-row')}")
        return "\n".join(lines)


def check_rows(path: Path | str, lines: Iterable[bytes] | None = None) -> CheckedRows:
    """Read a whole replay file and collect every problem. Raises ReplayError if the file cannot be read.

    `lines`: those of an open stream, which `path` only names.
    """
    findings: list[Finding] = []
    rows: list[Row] = []
    first: dict[tuple[str, int], Row] = {}  # of each task and sample
    for line in row_lines(path, lines):
        step = _step(line)
        findings += [Finding(line.number, "error", step, problem) for problem in line.problems]
        texts = list(_warnings(line))
        if line.row is not None:
            rows.append(line.row)
            before = first.setdefault((line.row.task_id, line.row.sample_idx), line.row)
            if _has_system(line.row) != _has_system(before):
                has, had = ("a", "none") if _has_system(line.row) else ("no", "one")
                texts.append(f"has {has} system message, but step {before.step_idx} of the task has {had}")
        findings += [Finding(line.number, "warning", step, text) for text in texts]
    if not rows and not findings:
        findings.append(Finding(None, "error", None, "contains no rows"))
    actions = [row for row in rows if reference_problem(row.ref_raw) is None]
    return CheckedRows(
        path=str(path),
        findings=tuple(findings),
        rows=len(rows),
        tasks=len({row.task_id for row in rows}),
        with_system=sum(map(_has_system, rows)),
        completed=sum((payload(row.ref_raw) or {}).get("task_complete") is True for row in rows),
        without_command=sum(not _has_command(row) for row in rows),
        other_form=sum(not _in_grammar(row.ref_raw) for row in actions),
    )


def _step(line: ReadLine) -> str | None:
    """The step of a line, as far as the line names it."""
    if line.row is not None:
        return describe(line.row.key)
    task, step, sample = (line.fields.get(name) for name in ("task_id", "step_idx", "sample_idx"))
    if not isinstance(task, str) or type(step) is not int:
        return None
    return describe((task, sample if type(sample) is int else 0, step))


def _warnings(line: ReadLine) -> Iterator[str]:
    """What edge accepts in a line, but what is probably a mistake."""
    known = [*RowFields.__annotations__, *_PUBLISHED]
    missing = [name for name in known if name not in line.fields]
    for name in line.fields:
        if name not in known and (meant := did_you_mean(name, missing, 0.85, parts=False)):
            yield f"edge does not read the field {name[:40]!r}; {meant}"
    if line.row is None:
        return
    for index, message in enumerate(line.row.messages):
        if message["role"] not in ROLES:
            yield f"messages[{index}].role is {message['role'][:40]!r}; chat templates know {', '.join(ROLES)}"
    if line.row.messages[-1]["role"] == "assistant":
        yield "the last message is the assistant's; the model answers a message of the user or of a tool"
    if (problem := reference_problem(line.row.ref_raw)) is not None:
        effect = (
            "its commands are read from the raw text" if _has_command(line.row) else "every answer scores 0"
        )
        yield f"ref_raw is not an action: {problem}; {effect}"


def _has_system(row: Row) -> bool:
    return any(message["role"] in ("system", "developer") for message in row.messages)


def _in_grammar(ref_raw: str) -> bool:
    """Whether a reference, without its thought, is an action in the exact form of edge's grammar."""
    try:
        parse_action(ref_raw.rpartition(_THOUGHT_ENDS)[2].strip())
    except GrammarError:
        return False
    return True
