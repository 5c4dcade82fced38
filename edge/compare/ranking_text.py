"""A ranking as Markdown, also readable in a terminal, and as the JSON of `edge rank --json`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

from edge.compare.board import LeftOut
from edge.compare.findings import interval_text, number
from edge.compare.ranking import Entry, Ranking
from edge.replay.result import run_digest
from edge.system.outputs import Run, check_output, check_replaced, named_run
from edge.system.places import write_json
from edge.system.tables import clean, table
from edge.system.text import counted

SCHEMA_VERSION = 1
NONE = "–"


class StoredRanking(TypedDict):
    """The JSON of `edge rank --json`."""

    ranking: int
    """Version of this format. No other JSON of edge has this field."""
    run: dict[str, object]
    """What was ranked: the results, by SHA-256. edge replaces only a file of the same run."""
    rows: str
    """Name of the rows' file."""
    steps: int
    """Number of ranked steps."""
    tasks: int
    """Number of tasks."""
    rule: str
    """When two results are told apart."""
    entries: list[Entry]
    """The ranked results, the best score first."""
    left_out: list[LeftOut]
    """The results that are not ranked, and why."""
    notes: list[str]
    """What a reader of the ranking must know."""
    title: NotRequired[str]
    """Heading that the user gave."""


def ranking_run(results: Sequence[Path | str], rows_of: Path | str | None) -> Run:
    """What a ranking depends on."""
    return {
        "results": {f"{i + 1} {Path(path).name}": run_digest(path) for i, path in enumerate(results)},
        "rows_of": None if rows_of is None else run_digest(rows_of),
    }


def check_ranking(out: Path, inputs: Sequence[Path | str | None], run: Run, *, force: bool) -> None:
    """Check that the JSON may be written: not over an input, over another ranking only with `force`.

    Raises ResultError.
    """
    check_output(out, inputs, option="--json")
    check_replaced(
        out, run, lambda path: named_run(path, "ranking"), kind="a ranking", force=force, option="--json"
    )


def write_ranking(out: Path, ranking: Ranking, run: Run, title: str = "") -> None:
    """Write a ranking as JSON, complete or not at all. Raises ResultError."""
    write_json(
        out,
        {
            "ranking": SCHEMA_VERSION,
            "run": run,
            **({"title": title} if title else {}),
            **asdict(ranking),
        },
    )


def ranking_markdown(ranking: Ranking, title: str = "") -> str:
    """The table of the ranked results, the notes, and the results that are not ranked."""
    lines = [f"# {clean(title) if title else heading(ranking)}", "", scope(ranking), "", ranking.rule, ""]
    for note in ranking.notes:
        lines += [clean(note), ""]
    lines += _table(ranking)
    noted = [(i, entry) for i, entry in enumerate(ranking.entries, 1) if entry.notes]
    if noted:
        lines += ["", *(f"- {i}: {clean('; '.join(entry.notes))}" for i, entry in noted)]
    if ranking.left_out:
        lines += ["", "## Not ranked", ""]
        rows = [
            (
                clean(one.result),
                clean(one.model) or NONE,
                number("score", one.score),
                str(one.steps),
                clean(one.why),
            )
            for one in ranking.left_out
        ]
        lines += table(("result", "model", "own score", "steps", "why"), rows, right=(2, 3))
    return "\n".join(lines) + "\n"


def heading(ranking: Ranking) -> str:
    """`Ranking of 31 results`."""
    return f"Ranking of {counted(len(ranking.entries), 'result')}"


def scope(ranking: Ranking) -> str:
    """On what the results are ranked, in one sentence."""
    rows = f" of {clean(ranking.rows)}" if ranking.rows else ""
    return f"Ranked by score (100 × F1) on {counted(ranking.steps, 'step')} of {counted(ranking.tasks, 'task')}{rows}."


def place(entry: Entry) -> str:
    """The places that a result can have: `2`, `3–7`."""
    return spans(range(entry.first_place, entry.last_place + 1))


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in a short form: `2–5, 7`; a dash for none."""
    groups: list[list[int]] = []
    for one in numbers:
        if groups and one == groups[-1][1] + 1:
            groups[-1][1] = one
        else:
            groups.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in groups) or NONE


def seconds(value: float | None) -> str:
    """Seconds for people; a dash for None."""
    return NONE if value is None else f"{value:.3f}"


def _table(ranking: Ranking) -> list[str]:
    header = (
        "#",
        "place",
        "model",
        "result",
        "type",
        "score",
        "its 95 % interval",
        "to the first",
        "95 % interval of that",
        "first command exact %",
        "valid JSON %",
        "grammar",
        "s/step",
        "not distinguishable from",
    )
    names = Counter(Path(entry.result).name for entry in ranking.entries)
    files = {
        entry.result: name if names[name := Path(entry.result).name] == 1 else entry.result
        for entry in ranking.entries
    }
    rows = []
    for i, entry in enumerate(ranking.entries, 1):
        span = entry.score_interval
        rows.append(
            (
                str(i),
                place(entry),
                clean(entry.model),
                clean(files[entry.result]),
                clean(entry.type or NONE),
                number("score", entry.score),
                NONE if span is None else f"{span[0]:.2f} … {span[1]:.2f}",
                number("score", entry.difference, sign=True) if i > 1 else NONE,
                interval_text("score", entry.low, entry.high),
                number("first_cmd_exact_pct", entry.first_cmd_exact_pct),
                number("valid_json_pct", entry.valid_json_pct),
                "yes" if entry.grammar else "no",
                seconds(entry.sec_per_step),
                spans(entry.not_distinguishable),
            )
        )
    return table(header, rows, right=(0, 1, *range(5, 11), 12))
