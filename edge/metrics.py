"""The replay scorer: score the text of one step, and aggregate the scores of many steps.

The rules are those of the published TB2-lite evaluation, so that the figures can be compared with its vLLM results to
the last digit. All functions are pure, and none raises an exception for any text of a model.

How one step is scored:
1. `json_text` and `payload` find the JSON object in each of the two answers.
2. `command_units` splits the keystrokes of each answer into units, one for each line.
3. `compare_units` computes precision, recall and F1 from the best match of each unit (`token_f1`).

Two rules look like errors, but the published figures depend on them. Braces in a thought before the JSON make the JSON
invalid. A command read from invalid JSON has garbled non-ASCII characters.
"""

import json
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, get_args

WAIT = "<WAIT>"  # the unit of a command without visible keystrokes

# The figures of an aggregate that are single numbers, in the order of reports.
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
    """early (steps 0 and 1), mid (2 to 4) or late (5 and more)."""
    valid_json: bool
    """Whether the answer has a JSON object."""
    has_analysis: bool
    """Whether its analysis is not empty."""
    has_plan: bool
    """Whether its plan is not empty."""
    ref_task_complete: bool | None
    """task_complete of the reference; null if it has none."""
    pred_task_complete: bool | None
    """task_complete of the answer; null if it has none."""
    pred_task_complete_true: bool
    """Whether both are true."""
    ref_command_units: list[str]
    """The command lines of the reference."""
    pred_command_units: list[str]
    """The command lines of the answer."""
    first_cmd_exact: float
    """1 if the first lines are equal, otherwise 0."""
    command_precision: float
    """Mean over the answer's lines of the best match in the reference."""
    command_recall: float
    """Mean over the reference's lines of the best match in the answer."""
    command_f1: float
    """Harmonic mean of the two. All four are 0 to 1."""


class ScoredStep(StepScores):
    """What `aggregate` needs of a step."""

    task_id: str
    source_group: str


class GroupFigures(TypedDict, total=False):
    """The figures of one group of steps; only source groups have `first_cmd_exact_pct`."""

    steps: int
    """Number of steps of the group."""
    avg_command_f1: float
    """Mean command_f1."""
    first_cmd_exact_pct: float
    """Percent of steps whose first command line is equal."""


class Aggregate(TypedDict, total=False):
    """The figures over many steps. Those that `aggregate` makes have all fields, published ones may lack some."""

    steps: int
    """Number of scored steps."""
    tasks: int
    """Number of tasks."""
    avg_ref_cmds: float
    """Mean number of command lines of a reference."""
    avg_pred_cmds: float
    """Mean number of command lines of an answer."""
    valid_json_pct: float
    """Percent of answers with a JSON object."""
    has_analysis_pct: float
    """Percent of answers with an analysis."""
    has_plan_pct: float
    """Percent of answers with a plan."""
    first_cmd_exact_pct: float
    """Percent of steps whose first command line is equal."""
    avg_command_precision: float
    """Mean command_precision, 0 to 1."""
    avg_command_recall: float
    """Mean command_recall, 0 to 1."""
    avg_command_f1: float
    """Mean command_f1, 0 to 1. The score is 100 times this figure."""
    complete_true_recall_pct: float
    """Percent of completed references whose answer also completes the task."""
    premature_complete_rate_pct: float
    """Percent of the other references whose answer completes the task."""
    empty_commands_pct: float
    """Percent of answers without a command line that do not complete the task. Only edge writes it."""
    by_bucket: dict[str, GroupFigures]
    """Figures of early, mid and late steps."""
    by_source_group: dict[str, GroupFigures]
    """Figures of each source_group."""
    next_action_score: float
    """100 * (0.7 * avg_command_f1 + 0.3 * first_cmd_exact_pct / 100)."""


_FENCE_OPENS = re.compile(r"```(?:json)?\s*(?=\{)")
_FENCE_CLOSES = re.compile(r"\}(?=\s*```)")
# As published, without DOTALL: a backslash before a real line break is not an escape: such keystrokes are not found.
_KEYSTROKES = re.compile(r'"keystrokes"\s*:\s*"((?:\\.|[^"\\])*)"')


def json_text(text: str) -> str:
    """The part of an answer that is read as JSON, the first of these that exists:

    1. The text from the first opening fence that is followed by `{` to the last `}` that is followed by a fence.
    2. The text from the first `{` to the last `}`.
    3. The whole text without white space at its ends.
    """
    text = text.strip()
    opened = _FENCE_OPENS.search(text)
    if opened:
        # Only the first opening fence counts: the last closing fence closes it too.
        ends = [closed.end() for closed in _FENCE_CLOSES.finditer(text, opened.end())]
        if ends:
            return text[opened.end() : ends[-1]]
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def payload(text: str) -> dict[str, Any] | None:
    """The JSON object in an answer; None if `json_text` is not valid JSON or not an object."""
    try:
        value = json.loads(json_text(text))
    except (ValueError, RecursionError):  # ValueError: invalid JSON, or an integer with too many digits
        return None
    return value if isinstance(value, dict) else None


def _lines(keystrokes: str) -> list[str]:
    """The non-empty lines, without white space at their ends. Lines end with \\n, \\r or \\r\\n."""
    lines = keystrokes.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in (line.strip() for line in lines) if line]


def _unescape(text: str) -> str:
    """Resolve escapes. The bytes of non-ASCII characters are read as Latin-1. Unchanged if an escape is invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for unknown escapes such as \d, which stay
            return text.encode("utf-8").decode("unicode_escape")
    except UnicodeError:
        return text


def command_units(text: str, value: dict[str, Any] | None) -> list[str]:
    """The units of an answer: the lines of all keystrokes, in order. `value` is `payload(text)`.

    Each object in `commands` gives the non-empty lines of its `keystrokes`, or the unit `<WAIT>` if it has none.
    Keystrokes that are not text count as Python's str() of them. If `commands` gives no unit, the units are the lines
    of all `"keystrokes": "…"` strings in the raw text, found by a regular expression.
    """
    commands = value.get("commands") if value is not None else None
    units: list[str] = []
    for command in commands if isinstance(commands, list) else []:
        if isinstance(command, dict):
            try:
                keystrokes = str(command.get("keystrokes", ""))
            except RecursionError:  # json.loads reads deeper lists than str() writes
                keystrokes = ""
            units += _lines(keystrokes) or [WAIT]
    if not units:
        for found in _KEYSTROKES.finditer(text):
            units += _lines(_unescape(found[1]))
    return units


def _normalize(unit: str) -> str:
    """The unit with runs of white space as one space; `<WAIT>` if nothing is left."""
    return " ".join(unit.split()) or WAIT


def _tokens(unit: str) -> Counter[str]:
    """The words of a unit in lower case, as a multiset: split by shlex, or at white space if a quote is open."""
    unit = unit.lower().strip()
    if unit == WAIT.lower():
        return Counter([unit])
    try:
        return Counter(shlex.split(unit))
    except ValueError:
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
    """The F1 of the words of two units, 0 to 1: 2 |A ∩ B| / (|A| + |B|), with A and B as multisets of shell words.

    The words are in lower case. The result is 1 if both units have no words.
    """
    return _overlap_f1(_tokens(_normalize(a)), _tokens(_normalize(b)))


def compare_units(predicted: Sequence[str], reference: Sequence[str]) -> tuple[float, float, float, float]:
    """Compare predicted units P with reference units R. Returns (first_exact, precision, recall, f1), not rounded.

    first_exact = 1 if P[0] equals R[0] without regard to case and runs of white space, otherwise 0
    precision   = mean over p in P of max over r in R of token_f1(r, p)
    recall      = mean over r in R of max over p in P of token_f1(r, p)
    f1          = 2 * precision * recall / (precision + recall), or 0 if both are 0

    All are 0 if P or R is empty.
    """
    if not predicted or not reference:
        return 0.0, 0.0, 0.0, 0.0
    ours, theirs = [_normalize(unit) for unit in predicted], [_normalize(unit) for unit in reference]
    first = 1.0 if ours[0].lower() == theirs[0].lower() else 0.0
    # A model can write the same unit hundreds of times: compare each distinct pair once.
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
    """The bucket of a step by its index in the task: early (0, 1), mid (2 to 4) or late (5 and more)."""
    return "early" if step_idx <= 1 else "mid" if step_idx <= 4 else "late"


def score_step(pred_text: str, ref_raw: str, step_idx: int) -> StepScores:
    """Score an answer against the reference answer. Returns the metric fields of a `per_step` row of a result.

    Both texts are raw: a thought or a fence can surround the JSON. `command_precision`, `command_recall` and
    `command_f1` are rounded to 4 places. `*_task_complete` is None if the JSON has no boolean `task_complete`.
    `has_analysis` and `has_plan` are true if the value is not empty.
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


# Each figure is round(factor * mean of the term over the rows, places). A row with the term None does not count.
# The comparison of results resamples the same terms, so that its confidence intervals belong to these figures.
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
    """The figures over many rows: percentages with 1 place, F1, precision and recall with 4, counts with 2.

    A row is the result of `score_step` with `task_id` and `source_group`. Each figure is the mean of its term in TERMS
    over the rows; means use the rounded values of the rows. Without rows every figure is 0.

    complete_true_recall_pct: of the rows whose reference has task_complete true, the share where the answer has too.
    premature_complete_rate_pct: of all other rows, the share where the answer has task_complete true.
    empty_commands_pct: rows without a unit and without task_complete true. edge adds this figure; all others are those
    of the published aggregate.
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
    """100 * (0.7 * avg_command_f1 + 0.3 * first_cmd_exact_pct / 100), 0 to 100, from the rounded means; 2 places."""
    return round(100 * (0.7 * avg_command_f1 + 0.3 * first_cmd_exact_pct / 100), 2)


def headline(figures: Aggregate) -> float:
    """The score that ranks models ("corrected TB2-lite"): 100 * avg_command_f1 of an aggregate, 2 places."""
    return round(100 * figures["avg_command_f1"], 2)
