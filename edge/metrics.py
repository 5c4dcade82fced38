"""The replay scorer: pure functions on text that give one step's row and the aggregate of many rows.

The rules are those of the published TB2-lite evaluation, so that a quantized model's figures stand beside a
vLLM run's to the last digit. Nothing here raises on any text: a model's output is scored, however broken it
is.

Text that looks wrong is sometimes right by those rules: braces inside a thought before the JSON make the
JSON invalid, and a command read from broken JSON has its non-ASCII characters garbled. Both are part of the
published numbers.
"""

import json
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, get_args

WAIT = "<WAIT>"  # the unit of a command without keystrokes

# The figures of an aggregate that are one number each, in the order reports show them.
FigureName = Literal[
    "next_action_score",
    "avg_command_f1",
    "avg_command_precision",
    "avg_command_recall",
    "first_cmd_exact_pct",
    "valid_json_pct",
    "has_analysis_pct",
    "has_plan_pct",
    "empty_commands_pct",
    "avg_ref_cmds",
    "avg_pred_cmds",
    "complete_true_recall_pct",
    "premature_complete_rate_pct",
]
FIGURES: tuple[FigureName, ...] = get_args(FigureName)


class StepScores(TypedDict):
    """The metric fields of one answer."""

    bucket: str
    valid_json: bool
    has_analysis: bool
    has_plan: bool
    ref_task_complete: bool | None
    pred_task_complete: bool | None
    pred_task_complete_true: bool
    ref_command_units: list[str]
    pred_command_units: list[str]
    first_cmd_exact: float
    command_precision: float
    command_recall: float
    command_f1: float


class ScoredStep(StepScores):
    """What `aggregate` needs of a step."""

    task_id: str
    source_group: str


class GroupFigures(TypedDict, total=False):
    """The figures of one group of steps; only source groups have `first_cmd_exact_pct`."""

    steps: int
    avg_command_f1: float
    first_cmd_exact_pct: float


class Aggregate(TypedDict, total=False):
    """The figures over many steps. Those that `aggregate` makes have all fields, published ones may lack some."""

    steps: int
    tasks: int
    avg_ref_cmds: float
    avg_pred_cmds: float
    valid_json_pct: float
    has_analysis_pct: float
    has_plan_pct: float
    first_cmd_exact_pct: float
    avg_command_precision: float
    avg_command_recall: float
    avg_command_f1: float
    complete_true_recall_pct: float
    premature_complete_rate_pct: float
    empty_commands_pct: float
    by_bucket: dict[str, GroupFigures]
    by_source_group: dict[str, GroupFigures]
    next_action_score: float


_FENCE_OPENS = re.compile(r"```(?:json)?\s*(?=\{)")
_FENCE_CLOSES = re.compile(r"\}(?=\s*```)")
_KEYSTROKES = re.compile(r'"keystrokes"\s*:\s*"((?:\\.|[^"\\])*)"', re.DOTALL)


def json_text(text: str) -> str:
    """The part of an answer that is read as JSON.

    What a fence wraps, else from the first `{` to the last `}`, else all of it.
    """
    text = text.strip()
    opened = _FENCE_OPENS.search(text)
    if opened:
        # Only the first fence matters: whatever closes a later one closes this one too.
        ends = [closed.end() for closed in _FENCE_CLOSES.finditer(text, opened.end())]
        if ends:
            return text[opened.end() : ends[-1]]
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def payload(text: str) -> dict[str, Any] | None:
    """The JSON object in an answer, or None where there is none."""
    try:
        value = json.loads(json_text(text))
    except (
        ValueError,
        RecursionError,
    ):  # ValueError: bad JSON, or an integer of more digits than Python reads
        return None
    return value if isinstance(value, dict) else None


def _lines(keystrokes: str) -> list[str]:
    lines = keystrokes.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in (line.strip() for line in lines) if line]


def _unescape(text: str) -> str:
    try:
        with (
            warnings.catch_warnings()
        ):  # Python warns of escapes it does not know, such as \d, and keeps them
            warnings.simplefilter("ignore", DeprecationWarning)
            return text.encode("utf-8").decode("unicode_escape")
    except UnicodeError:
        return text


def command_units(text: str, value: dict[str, Any] | None) -> list[str]:
    """The commands of an answer, a line each, from its payload or, if that gives none, from its raw text.

    `value` is `payload(text)`.
    """
    commands = value.get("commands") if value is not None else None
    units: list[str] = []
    for command in commands if isinstance(commands, list) else []:
        if isinstance(command, dict):
            try:
                keystrokes = str(command.get("keystrokes", ""))
            except RecursionError:  # a list nested as deep as json.loads can read but str() cannot write
                keystrokes = ""
            units += _lines(keystrokes) or [WAIT]
    if not units:
        for found in _KEYSTROKES.finditer(text):
            units += _lines(_unescape(found[1]))
    return units


def _normalize(unit: str) -> str:
    return " ".join(unit.split()) or WAIT


def _tokens(unit: str) -> Counter[str]:
    unit = unit.lower().strip()
    if unit == WAIT.lower():
        return Counter([unit])
    try:
        return Counter(shlex.split(unit))
    except ValueError:  # an open quote
        return Counter(unit.split())


def _overlap_f1(a: Counter[str], b: Counter[str]) -> float:
    if not a and not b:
        return 1.0
    shared = (a & b).total()
    if not shared:
        return 0.0
    precision, recall = shared / b.total(), shared / a.total()
    return 2 * precision * recall / (precision + recall)


def token_f1(a: str, b: str) -> float:
    """Overlap F1 of two units' shell words as multisets, 0 to 1; 1 where both have none."""
    return _overlap_f1(_tokens(_normalize(a)), _tokens(_normalize(b)))


def compare_units(predicted: Sequence[str], reference: Sequence[str]) -> tuple[float, float, float, float]:
    """How well predicted units match reference units.

    Returns (first_exact, precision, recall, f1), each 0 to 1 and not rounded.
    """
    if not predicted or not reference:
        return 0.0, 0.0, 0.0, 0.0
    ours, theirs = [_normalize(unit) for unit in predicted], [_normalize(unit) for unit in reference]
    first = 1.0 if ours[0].lower() == theirs[0].lower() else 0.0
    # A model that repeats itself writes the same unit hundreds of times: compare each distinct pair once.
    words = {unit: _tokens(unit) for unit in {*ours, *theirs}}
    distinct_ours, distinct_theirs = set(ours), set(theirs)
    pairs = {(a, b): _overlap_f1(words[a], words[b]) for a in distinct_theirs for b in distinct_ours}
    best_of_theirs = {a: max(pairs[a, b] for b in distinct_ours) for a in distinct_theirs}
    best_of_ours = {b: max(pairs[a, b] for a in distinct_theirs) for b in distinct_ours}
    recall = sum(best_of_theirs[unit] for unit in theirs) / len(theirs)
    precision = sum(best_of_ours[unit] for unit in ours) / len(ours)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return first, precision, recall, f1


def _complete(value: dict[str, Any] | None) -> bool | None:
    flag = value.get("task_complete") if value is not None else None
    return flag if isinstance(flag, bool) else None


def bucket(step_idx: int) -> str:
    """How far into its task a step is: early (0, 1), mid (2 to 4) or late."""
    return "early" if step_idx <= 1 else "mid" if step_idx <= 4 else "late"


def score_step(pred_text: str, ref_raw: str, step_idx: int) -> StepScores:
    """Score one answer against the reference answer: the metric fields of a result's `per_step` row.

    Both texts are raw (a thought or a fence may stand around the JSON). Precision, recall and F1 have 4
    places.
    """
    predicted, reference = payload(pred_text), payload(ref_raw)
    pred_units, ref_units = command_units(pred_text, predicted), command_units(ref_raw, reference)
    first, precision, recall, f1 = compare_units(pred_units, ref_units)
    pred_complete, ref_complete = _complete(predicted), _complete(reference)
    return {
        "bucket": bucket(step_idx),
        "valid_json": predicted is not None,
        "has_analysis": predicted is not None and bool(predicted.get("analysis")),
        "has_plan": predicted is not None and bool(predicted.get("plan")),
        "ref_task_complete": ref_complete,
        "pred_task_complete": pred_complete,
        "pred_task_complete_true": pred_complete is True and ref_complete is True,
        "ref_command_units": ref_units,
        "pred_command_units": pred_units,
        "first_cmd_exact": first,
        "command_precision": round(precision, 4),
        "command_recall": round(recall, 4),
        "command_f1": round(f1, 4),
    }


# What each figure is the mean of: (factor, places, value of a row or None where the row does not count).
# compare.py resamples these same terms, so that its intervals belong to these figures.
TERMS: dict[str, tuple[int, int, Callable[[StepScores], float | None]]] = {
    "avg_ref_cmds": (1, 2, lambda row: len(row["ref_command_units"])),
    "avg_pred_cmds": (1, 2, lambda row: len(row["pred_command_units"])),
    "valid_json_pct": (100, 1, lambda row: row["valid_json"]),
    "has_analysis_pct": (100, 1, lambda row: row["has_analysis"]),
    "has_plan_pct": (100, 1, lambda row: row["has_plan"]),
    "first_cmd_exact_pct": (100, 1, lambda row: row["first_cmd_exact"]),
    "avg_command_precision": (1, 4, lambda row: row["command_precision"]),
    "avg_command_recall": (1, 4, lambda row: row["command_recall"]),
    "avg_command_f1": (1, 4, lambda row: row["command_f1"]),
    "complete_true_recall_pct": (
        100,
        1,
        lambda row: row["pred_task_complete"] is True if row["ref_task_complete"] is True else None,
    ),
    "premature_complete_rate_pct": (
        100,
        1,
        lambda row: row["pred_task_complete"] is True if row["ref_task_complete"] is not True else None,
    ),
    "empty_commands_pct": (
        100,
        1,
        lambda row: not row["pred_command_units"] and row["pred_task_complete"] is not True,
    ),
}


def _mean(rows: Sequence[StepScores], name: FigureName) -> float:
    factor, places, term = TERMS[name]
    values = [value for value in map(term, rows) if value is not None]
    return round(factor * (sum(values) / len(values)), places) if values else 0.0


def _groups(
    rows: Sequence[ScoredStep], field: Literal["bucket", "source_group"]
) -> dict[str, list[ScoredStep]]:
    groups: dict[str, list[ScoredStep]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return dict(sorted(groups.items()))


def aggregate(rows: Iterable[ScoredStep]) -> Aggregate:
    """The figures over many rows: percentages to 1 place, F1 and its parts to 4, counts to 2.

    A row is what `score_step` returns plus `task_id` and `source_group`. Without rows every figure is 0.
    `empty_commands_pct` (no command, and the task not called complete) is ours; the rest is the published
    aggregate.
    """
    rows = list(rows)
    f1, first = _mean(rows, "avg_command_f1"), _mean(rows, "first_cmd_exact_pct")
    return {
        "steps": len(rows),
        "tasks": len({row["task_id"] for row in rows}),
        "avg_ref_cmds": _mean(rows, "avg_ref_cmds"),
        "avg_pred_cmds": _mean(rows, "avg_pred_cmds"),
        "valid_json_pct": _mean(rows, "valid_json_pct"),
        "has_analysis_pct": _mean(rows, "has_analysis_pct"),
        "has_plan_pct": _mean(rows, "has_plan_pct"),
        "first_cmd_exact_pct": first,
        "avg_command_precision": _mean(rows, "avg_command_precision"),
        "avg_command_recall": _mean(rows, "avg_command_recall"),
        "avg_command_f1": f1,
        "complete_true_recall_pct": _mean(rows, "complete_true_recall_pct"),
        "premature_complete_rate_pct": _mean(rows, "premature_complete_rate_pct"),
        "empty_commands_pct": _mean(rows, "empty_commands_pct"),
        "by_bucket": {
            name: {"steps": len(group), "avg_command_f1": _mean(group, "avg_command_f1")}
            for name, group in _groups(rows, "bucket").items()
        },
        "by_source_group": {
            name: {
                "steps": len(group),
                "avg_command_f1": _mean(group, "avg_command_f1"),
                "first_cmd_exact_pct": _mean(group, "first_cmd_exact_pct"),
            }
            for name, group in _groups(rows, "source_group").items()
        },
        "next_action_score": next_action_score(f1, first),
    }


def next_action_score(avg_command_f1: float, first_cmd_exact_pct: float) -> float:
    """70 parts F1 and 30 parts first command, 0 to 100, from the rounded means."""
    return round(100 * (0.7 * avg_command_f1 + 0.3 * first_cmd_exact_pct / 100), 2)


def headline(figures: Aggregate) -> float:
    """The score that ranks models ("corrected TB2-lite"), 0 to 100, from an aggregate."""
    return round(100 * figures["avg_command_f1"], 2)
