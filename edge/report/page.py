"""A report as one HTML page. The page loads nothing and runs no script; all text from files is escaped and visible."""

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edge.compare.findings import Figure, Group
from edge.report import words
from edge.report.contents import MAIN, Entry, Report
from edge.report.drawings import run_labels, with_bands
from edge.report.measurements import CheckedMeasurement
from edge.report.origin import origin
from edge.report.plots import Drawing
from edge.report.words import KINDS, LABELS
from edge.system.outputs import Run
from edge.system.text import counted, visible
from edge.version import __version__

_FOLD = 12  # a table of more groups is folded


class CauseRow(NamedTuple):
    """One row of the table of causes; `figures` are those of MAIN."""

    kind: str
    what: str
    pair: str
    steps: int
    figures: list[Figure]


class GroupRow(NamedTuple):
    """One row of a table of groups: the reference's F1, and the group in each compared result that has it."""

    name: str
    steps: int
    reference: float | None
    cells: list[Group | None]


def stored_page(path: Path) -> tuple[Run | None, list[str]]:
    """The run that a page names (None for a page of edge 0.2.0 and older), and the SHA-256 of the files beside it.

    Raises ValueError for another file.
    """
    text = path.read_text(encoding="utf-8")
    if '<meta name="generator" content="edge' not in text:
        raise ValueError("not a report")
    match = re.search('<meta name="edge-run" content="([^"]*)">', text)
    stored = json.loads(html.unescape(match[1])) if match else None
    if not isinstance(stored, dict) or not isinstance(stored.get("run"), dict):
        return None, []
    return stored["run"], [str(digest) for digest in stored.get("beside") or []]


def to_html(report: Report, drawings: Sequence[Drawing], run: Run, beside: Sequence[str]) -> str:
    """The page. `drawings`: those of the same report. `run`, `beside`: what `stored_page` reads again."""
    by_name = {drawing.name: drawing for drawing in drawings}
    runs = [entry.run for entry in report.entries if entry.run]
    return (
        _environment(report)
        .get_template("report.html")
        .render(
            report=report,
            title=words.title(report),
            scope=words.scope(report),
            verdict=words.verdict(report),
            definitions=words.DEFINITIONS,
            labels=LABELS,
            main=MAIN,
            plot={name: Markup(drawing.svg) for name, drawing in by_name.items()},
            drawings=by_name,
            measured=[
                (entry, m, f"kl-position-{number + 1}", f"kl-field-{number + 1}")
                for number, (entry, m) in enumerate(with_bands(report))
            ],
            all_measurements=_measurements(report),
            columns=_columns(report),
            any_published=any(entry.published for entry in report.entries),
            has_worse=any(entry.worse for entry in report.entries),
            causes=_cause_rows(report),
            groups=_grouped(report),
            groups_paired=any(
                g.reference is not None for e in report.compared if e.part for g in e.part.groups
            ),
            fold=_FOLD,
            origin=origin(runs),
            runs=runs,
            run=json.dumps({"run": run, "beside": list(beside)}),
            version=__version__,
        )
    )


def _environment(report: Report) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,  # for every value that the template writes, so that none is forgotten
    )
    filters: Mapping[str, Callable[..., str]] = {
        name: getattr(words, name)
        for name in ("figure", "fixed", "percent", "interval", "kl", "size", "p_value", "engine", "base_name")
    }
    environment.filters.update(filters, counted=counted, cut=_cut, without_paths=_without_paths(report))
    return environment


def _columns(report: Report) -> dict[str, bool]:
    """The optional columns of the first table: those for which a result has a value."""
    entries = report.entries
    return {
        "size": any(e.n_bytes is not None or e.bits_per_weight is not None for e in entries),
        "difference": bool(report.compared),
        "kl": any(e.measured is not None and "kl_mean" in e.measured.aggregate for e in entries),
        "speed": any(e.tokens_per_second is not None for e in entries),
        "memory": any(e.peak_bytes is not None for e in entries),
    }


def _measurements(report: Report) -> list[tuple[Entry, CheckedMeasurement]]:
    """Each measurement once, with the first result of its model."""
    found = {m.path: (entry, m) for entry in reversed(report.entries) for m in entry.measurements}
    return sorted(found.values(), key=lambda pair: report.entries.index(pair[0]))


def _cause_rows(report: Report) -> list[CauseRow]:
    labels = run_labels(report)
    rows = []
    for cause in report.causes:
        figures = {f.name: f for f in cause.part.figures}
        pair = f"{labels[cause.first]} → {labels[cause.second]}"
        rows.append(
            CauseRow(cause.kind, cause.what, pair, cause.part.joined, [figures[name] for name in MAIN])
        )
    return rows


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _without_paths(report: Report) -> Callable[[str], str]:
    """A function that replaces the paths of results in a note by their labels."""
    labels = sorted(run_labels(report).items(), key=lambda pair: -len(pair[0]))

    def replaced(note: str) -> str:
        for path, label in labels:
            note = note.replace(path, label)
        return note

    return replaced


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _grouped(report: Report) -> list[tuple[str, list[GroupRow]]]:
    """The tables of groups, by the kind of group. A kind with a single group has no table."""
    table: dict[str, dict[str, list[Group | None]]] = {}
    compared = report.compared
    for column, entry in enumerate(compared):
        for group in entry.part.groups if entry.part else ():
            row = table.setdefault(group.kind, {}).setdefault(group.name, [None] * len(compared))
            row[column] = group
    tables = []
    for kind in ("bucket", "prompt_length", "source_group"):
        rows = []
        for name, cells in table.get(kind, {}).items():
            there = [group for group in cells if group is not None]
            rows.append(GroupRow(name, max(g.steps for g in there), there[0].reference, cells))
        if len(rows) > 1:
            tables.append((KINDS[kind], rows))
    return tables
