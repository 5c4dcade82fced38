"""A report as one HTML page. The page loads nothing and runs no script; all text from files is escaped and visible."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup, escape

from edge.compare.findings import Figure, Group, Part
from edge.report import trial_words, words
from edge.report.contents import MAIN, Entry, Report
from edge.report.drawings import beaten_files, other_causes, run_labels, with_bands
from edge.report.embedded import Embedded
from edge.report.measurements import CheckedMeasurement
from edge.report.origin import Line, origin
from edge.report.plots import Drawing
from edge.report.templates import page_environment
from edge.report.words import KINDS, LABELS
from edge.system.text import counted, visible
from edge.version import __version__

_FOLD = 12  # a table of more groups is folded
# Characters of a name that fit into a line, with what stands beside it: on 390 px; on wide screens and on paper.
_ON_A_PHONE = 30
_ON_A_SCREEN = 72
_ORIGINS = 4  # results beside each other in a table of how they were made
_GROUPED = 7  # results beside each other in a table of groups
_ONCE = ("avg_command_f1",)  # the score is 100 times this


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


def to_html(report: Report, drawings: Sequence[Drawing], embedded: Embedded) -> str:
    """The page. `drawings`: those of the same report. `embedded`: what `read_embedded` reads again."""
    by_name = {drawing.name: drawing for drawing in drawings}
    runs = [entry.run for entry in report.entries if entry.run]
    return (
        _environment(report)
        .get_template("report.html")
        .render(
            report=report,
            title=words.title(report),
            scope=words.scope(report),
            layman=words.layman(report),
            expert=words.expert(report),
            remarks=words.remarks(report),
            beaten=beaten_files(report),
            verdicts=_verdicts,
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
            one_base=_one_base(report),
            columns=_columns(report),
            trials=_trials(report),
            hollow=any(entry.published and entry.n_bytes for entry in report.files),
            any_published=any(entry.published for entry in report.entries),
            has_bars=any(name.startswith("difference-") for name in by_name),
            has_worse=any(entry.worse for entry in report.entries),
            causes=_cause_rows(report),
            groups=_grouped(report),
            groups_paired=any(
                g.reference is not None for e in report.compared if e.part for g in e.part.groups
            ),
            fold=_FOLD,
            shared_origin=_shared(origin(runs)),
            origins=_origins(report),
            runs=runs,
            run=json.dumps(embedded),
            version=__version__,
        )
    )


def _environment(report: Report) -> Environment:
    environment = page_environment()
    filters: Mapping[str, Callable[..., str]] = {
        name: getattr(words, name)
        for name in ("figure", "fixed", "percent", "interval", "kl", "size", "p_value", "engine", "base_name")
    }
    environment.filters.update(
        filters,
        counted=counted,
        cut=_cut,
        unbroken=_unbroken(report),
        without_paths=_without_paths(report),
    )
    return environment


def _columns(report: Report) -> dict[str, bool]:
    """The optional columns of the first table: those for which a result has a value."""
    entries = report.files
    return {
        "size": any(e.n_bytes is not None or e.bits_per_weight is not None for e in entries),
        "difference": any(e.part is not None for e in entries),
        "kl": any(e.measured is not None and "kl_mean" in e.measured.aggregate for e in entries),
        "speed": any(e.tokens_per_second is not None for e in entries),
        "memory": any(e.peak_bytes is not None for e in entries),
        "solved": any(e.tried is not None for e in entries),
    }


def _trials(report: Report) -> dict[str, Any]:
    """What the section about trials shows."""
    levels = sorted({level for one in report.tried for level in one.result["by_level"]})
    return {
        "settings": [
            (
                one,
                words.base_name(one.result["tasks_path"]),
                len({trial["task"] for trial in one.result["trials"]}),
            )
            for one in report.tried
        ],
        "levels": [(level, [one.result["by_level"].get(level) for one in report.tried]) for level in levels],
        "sentences": trial_words.sentences(report),
        "unmatched": trial_words.unmatched(report),
        "both": trial_words.both(report),
        "prediction": trial_words.prediction(report),
        "share": trial_words.share,
        "bounds": trial_words.bounds,
        "of_how_many": trial_words.of_how_many,
    }


def _measurements(report: Report) -> list[tuple[Entry, CheckedMeasurement]]:
    """Each measurement once, with the first result of its model."""
    found = {m.path: (entry, m) for entry in reversed(report.entries) for m in entry.measurements}
    return sorted(found.values(), key=lambda pair: report.entries.index(pair[0]))


def _one_base(report: Report) -> str:
    """The base of all measurements; "" if there are several."""
    bases = {m.base for entry in report.entries for m in entry.measurements}
    return bases.pop() if len(bases) == 1 else ""


def _cause_rows(report: Report) -> list[CauseRow]:
    labels = run_labels(report)
    rows = []
    for cause in other_causes(report):
        figures = {f.name: f for f in cause.part.figures}
        pair = f"{labels[cause.first]} → {labels[cause.second]}"
        rows.append(
            CauseRow(cause.kind, cause.what, pair, cause.part.joined, [figures[name] for name in MAIN])
        )
    return rows


def _verdicts(part: Part) -> list[tuple[Figure, int]]:
    """The figures of a comparison, each with the rows that its verdict covers; 0 under an equal one.

    The score is 100 times the command F1, which therefore has no separate row.
    """
    figures = [figure for figure in part.figures if figure.name not in _ONCE]
    found: list[tuple[Figure, int]] = []
    for index, figure in enumerate(figures):
        if index and figures[index - 1].sentence == figure.sentence:
            found.append((figure, 0))
            continue
        alike = 1
        while index + alike < len(figures) and figures[index + alike].sentence == figure.sentence:
            alike += 1
        found.append((figure, alike))
    return found


def _origins(report: Report) -> list[tuple[list[Entry], list[Line]]]:
    """How results differ in the way they were made: a few results, and the lines with their values."""
    entries = [entry for entry in report.entries if entry.run]
    lines = [line for _, lines in origin([e.run for e in entries if e.run]) for line in lines]
    found = []
    for at in range(0, len(entries), _ORIGINS):
        end = at + _ORIGINS
        different = [Line(line.name, line.values[at:end], line.is_code) for line in lines if not line.same]
        if different:
            found.append((entries[at:end], different))
    return found


def _shared(table: list[tuple[str, list[Line]]]) -> list[Line]:
    """The lines with one value for all results."""
    return [line for _, lines in table for line in lines if line.same]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _unbroken(report: Report) -> Callable[[str], Markup]:
    """A function that marks what no line may break: names of files; a number and its `%` or `points`; `>` and a number.

    A name that does not fit on the screen of a phone may break there, and one that fits on no screen anywhere.
    """
    bases = [words.base_name(m.base) for entry in report.entries for m in entry.measurements]
    tried = [name for one in report.tried for name in (one.label, one.name)]
    names = {visible(name) for name in (*(entry.label for entry in report.entries), *tried, *bases)}
    kept = [name for name in sorted(names, key=lambda name: (-len(name), name)) if len(name) <= _ON_A_SCREEN]
    expression = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, kept)) or '(?!)'})(?![\w-])")

    def marked(text: str) -> Markup:
        # Every second part is a name.
        parts = expression.split(visible(text))
        return Markup("").join(_whole(part) if i % 2 else _spaced(part) for i, part in enumerate(parts))

    return marked


def _spaced(text: str) -> Markup:
    return escape(re.sub(r"(?<=\d) (?=%|points\b)|(?<=>) (?=\d)", "\u00a0", text))


def _whole(name: str) -> Markup:
    if re.fullmatch(r"[\w.]*", name):  # nothing in it at which a line could break
        return escape(name)
    kind = "whole" if len(name) <= _ON_A_PHONE else "whole long"
    return Markup('<span class="{}">{}</span>').format(kind, name)


def _without_paths(report: Report) -> Callable[[str], str]:
    """A function that replaces the paths of results in a note by their labels."""
    labels = sorted(run_labels(report).items(), key=lambda pair: -len(pair[0]))

    def replaced(note: str) -> str:
        for path, label in labels:
            note = note.replace(path, label)
        return note

    return replaced


def _grouped(report: Report) -> list[tuple[str, list[Entry], list[GroupRow]]]:
    """The tables of groups: kind, results and rows. A kind with a single group has no table."""
    compared = [entry for entry in report.files if entry.part is not None]
    tables = []
    for kind in ("bucket", "prompt_length", "source_group"):
        for at in range(0, len(compared), _GROUPED):
            entries = compared[at : at + _GROUPED]
            if len(rows := _group_rows(kind, entries)) > 1:
                tables.append((KINDS[kind], entries, rows))
    return tables


def _group_rows(kind: str, entries: Sequence[Entry]) -> list[GroupRow]:
    table: dict[str, list[Group | None]] = {}
    for column, entry in enumerate(entries):
        for group in entry.part.groups if entry.part else ():
            if group.kind == kind:
                table.setdefault(group.name, [None] * len(entries))[column] = group
    rows = []
    for name, cells in table.items():
        there = [group for group in cells if group is not None]
        rows.append(GroupRow(name, max(g.steps for g in there), there[0].reference, cells))
    return rows
