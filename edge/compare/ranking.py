"""Rank many results by score, with groups of results that cannot be told apart (`edge rank`).

A place is a span: the first place that a result can have, and the last. docs/rank.md explains the rule.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.compare.board import (
    COMPARED,
    NOT_SET,
    Board,
    Candidate,
    LeftOut,
    named_settings,
    read_board,
    written_with_grammar,
)
from edge.compare.by_task import side_interval
from edge.compare.intervals import FEW_TASKS
from edge.compare.labels import file_notes, model_hash, same_model, stated_type
from edge.compare.notes import may_differ
from edge.compare.paired import LEAST_DIFFERING, TaskDifferences, Values, paired_interval
from edge.compare.verdict import half_range, within_range
from edge.errors import ResultError
from edge.metrics import aggregate, headline
from edge.system.text import counted

RULE = (
    "Two results are told apart only if the 95 % interval of their paired difference over the shared tasks excludes 0. "
    f"It needs {LEAST_DIFFERING} tasks that differ."
)


@dataclass(frozen=True)
class Entry:
    """A ranked result. Figures are over the ranked steps: the score from 0 to 100, percentages, seconds."""

    result: str
    """The file, as the command named it."""
    model: str
    """Name of the model for people."""
    type: str | None
    """Quantization or number type, as the model file says; null if unknown."""
    model_sha256: str | None
    """SHA-256 of the model file; null if unknown."""
    engine: str
    """edge, vllm, openai or predictions; unknown if the result does not say."""
    grammar: bool
    """Whether a grammar or a JSON schema guided the answers, as far as the result says."""
    timestamp: str
    """When the result was written; "" if it does not say."""
    steps: int
    """Number of ranked steps."""
    first_place: int
    """1 + the number of results that are better by the rule."""
    last_place: int
    """The number of results, less those that are worse by the rule."""
    score: float
    """100 × mean command F1."""
    score_interval: tuple[float, float] | None
    """95 % interval of the score alone; null with one task."""
    difference: float
    """Score minus that of the first result of the list."""
    low: float | None
    """Lower bound of that difference at 95 %; null if fewer than 6 tasks differ, and for the first result."""
    high: float | None
    """Upper bound of the difference."""
    first_cmd_exact_pct: float
    """Percent of the steps whose first command is exact."""
    valid_json_pct: float
    """Percent of the steps with valid JSON."""
    sec_per_step: float | None
    """avg_sec_per_step of the result; null if it does not say. Machines differ."""
    not_distinguishable: tuple[int, ...]
    """Numbers in the list, from 1, of the results that the rule cannot tell apart from this one."""
    notes: tuple[str, ...]
    """What a reader of the figures must know."""


@dataclass(frozen=True)
class Ranking:
    """Results by score, and those that are not ranked."""

    rows: str
    """Name of the rows' file."""
    steps: int
    """Number of ranked steps."""
    tasks: int
    """Number of tasks."""
    rule: str
    """When two results are told apart."""
    entries: tuple[Entry, ...]
    """By score, the best first."""
    left_out: tuple[LeftOut, ...]
    """Results that are not ranked, and why."""
    notes: tuple[str, ...]
    """What differs among the ranked results, and what limits the ranking."""


def rank(results: Sequence[Path | str], rows_of: Path | str | None = None) -> Ranking:
    """Rank results. `rows_of`: rank the steps of this result; default: the rows that most results have.

    Raises ResultError for a file that cannot be read, a file that is given twice, and where no result can be ranked.
    """
    if not results:
        raise ResultError("no result to rank; give at least one result JSON")
    board = read_board(results, rows_of)
    if not board.candidates:
        first = board.left_out[0]
        raise ResultError(f"{first.result}: {first.why}; no result can be ranked")
    tasks = {task: number for number, task in enumerate(dict.fromkeys(key[0] for key in board.keys))}
    places = np.array([tasks[key[0]] for key in board.keys])
    counts = np.bincount(places).astype(float)
    scored = []
    for one in board.candidates:
        f1 = np.array([step["command_f1"] for step in one.steps])
        scored.append((headline(aggregate(one.steps)), one, np.bincount(places, 100 * f1).astype(float)))
    scored.sort(key=lambda item: (-item[0], item[1].path))
    pairs = _Pairs([sums for _, _, sums in scored], counts)
    best, _, most = scored[0]
    behind = [float((sums - most).sum()) / len(board.keys) for _, _, sums in scored]  # not of rounded scores
    entries = tuple(
        _entry(number, one, (score, best, behind[number]), pairs)
        for number, (score, one, _) in enumerate(scored)
    )
    candidates = [one for _, one, _ in scored]
    notes = [*_differing(candidates), *_shared(candidates), *_limits(len(entries), len(tasks))]
    return Ranking(
        board.name,
        len(board.keys),
        len(tasks),
        RULE,
        entries,
        board.left_out,
        (*notes, *_all_left_out(board)),
    )


class _Pairs:
    """The 95 % intervals of the differences of all pairs. `sums[i]`: the score of result i, summed by task."""

    def __init__(self, sums: Sequence[Values], counts: Values) -> None:
        self.bounds: dict[tuple[int, int], tuple[float, float] | None] = {}
        for i, mine in enumerate(sums):
            for j in range(i):
                by_task = TaskDifferences(mine - sums[j], counts, half_range("score"))
                found = paired_interval(by_task)
                self.bounds[i, j] = found
                self.bounds[j, i] = None if found is None else (-found[1] + 0.0, -found[0] + 0.0)
        self.count = len(sums)

    def better(self, i: int, j: int) -> bool:
        """Whether result i is better than j by the rule."""
        bounds = self.bounds[i, j]
        return bounds is not None and bounds[0] > 0

    def alike(self, i: int) -> list[int]:
        """The results that cannot be told apart from result i."""
        others = (j for j in range(self.count) if j != i)
        return [j for j in others if not self.better(i, j) and not self.better(j, i)]

    def span(self, i: int) -> tuple[int, int]:
        """The first and the last place that result i can have."""
        others = [j for j in range(self.count) if j != i]
        better = sum(self.better(j, i) for j in others)
        worse = sum(self.better(i, j) for j in others)
        return 1 + better, self.count - worse


def _entry(number: int, one: Candidate, scores: tuple[float, float, float], pairs: _Pairs) -> Entry:
    """`scores`: its score, the best one, and the difference."""
    score, best, difference = scores
    figures, result = aggregate(one.steps), one.result
    found = pairs.bounds[number, 0] if number else None
    bounds = within_range("score", best, found) if found else None
    places = pairs.span(number)
    provenance, sampling = result.get("provenance", {}), result.get("sampling", {})
    return Entry(
        result=one.path,
        model=result.get("model") or Path(one.path).stem,
        type=stated_type(result),
        model_sha256=model_hash(result),
        engine=str(provenance.get("backend") or sampling.get("backend") or "unknown"),
        grammar=written_with_grammar(result),
        timestamp=str(result.get("timestamp") or ""),
        steps=len(one.steps),
        first_place=places[0],
        last_place=places[1],
        score=score,
        score_interval=side_interval("score", one.steps),
        difference=round(difference, 2) + 0.0,
        low=None if bounds is None else round(bounds[0], 2) + 0.0,
        high=None if bounds is None else round(bounds[1], 2) + 0.0,
        first_cmd_exact_pct=figures["first_cmd_exact_pct"],
        valid_json_pct=figures["valid_json_pct"],
        sec_per_step=result.get("avg_sec_per_step"),
        not_distinguishable=tuple(j + 1 for j in pairs.alike(number)),
        notes=(*one.notes, *(note[len("It: ") : -1] for note in file_notes(result, one.path, "It"))),
    )


def _differing(candidates: Sequence[Candidate]) -> list[str]:
    """A note for each setting that is not the same in all ranked results, with the results of the rarer values."""
    notes = []
    settings = [named_settings(one.result) for one in candidates]
    for name in dict.fromkeys(name for each in settings for name in each):
        if name in COMPARED:
            notes += _setting_note(name, candidates, settings)
    guided = [one.path for one in candidates if written_with_grammar(one.result)]
    if guided and len(guided) < len(candidates):
        verb = "was" if len(guided) == 1 else "were"
        notes.append(
            f"{len(guided)} of {len(candidates)} results {verb} written with a grammar, which alone can raise valid "
            "JSON and the score."
        )
    return notes


def _setting_note(
    name: str, candidates: Sequence[Candidate], settings: Sequence[Mapping[str, object]]
) -> list[str]:
    values = [each.get(name) for each in settings]
    named = Counter(value for value in values if value not in (None, NOT_SET))
    if len(named) < 2 and not (named and None in values and may_differ(name, named)):
        return []
    most = named.most_common(1)[0][0]
    # Other values first: the list is cut.
    pairs = sorted(zip(candidates, values, strict=True), key=lambda pair: pair[1] in (None, NOT_SET))
    others = [
        f"{'not named' if value is None else value} in {one.path}" for one, value in pairs if value != most
    ]
    shown = [*others[:3], f"{len(others) - 3} more"] if len(others) > 3 else others
    verb = "differ" if len(named) > 1 else "may differ"
    return [f"The results {verb} in {name}: {most} in {named[most]}, {', '.join(shown)}."]


def _shared(candidates: Sequence[Candidate]) -> list[str]:
    """A note for results of one model file, which differ in settings only."""
    notes, seen = [], set[str]()
    for one in candidates:
        same = [other.path for other in candidates if same_model(one.result, other.result)]
        if len(same) > 1 and one.path not in seen:
            seen.update(same)
            digest = str(model_hash(one.result))[:12]
            notes.append(f"Of the same model file (SHA-256 {digest}…): {', '.join(same)}.")
    return notes


def _limits(entries: int, tasks: int) -> list[str]:
    notes = []
    if tasks < LEAST_DIFFERING:
        notes.append(f"Only {counted(tasks, 'task')}: too few to tell any two results apart.")
    elif tasks < FEW_TASKS:
        notes.append(f"Only {counted(tasks, 'task')}: the intervals are rough.")
    pairs = entries * (entries - 1) // 2
    if pairs > 1:
        notes.append(
            f"The rule is applied to {counted(pairs, 'pair')}. Of pairs that do not differ in truth, up to 5 % are "
            "told apart by chance."
        )
    return notes


def _all_left_out(board: Board) -> list[str]:
    count = len(board.left_out)
    if not count:
        return []
    return [f"{counted(count, 'result')} {'is' if count == 1 else 'are'} not ranked; the reasons are below."]
