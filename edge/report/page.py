"""A report as one HTML page: nothing is loaded, no script runs, every text of a file is escaped and made visible."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edge.compare.findings import Group
from edge.report import plots, words
from edge.report.contents import MAIN, Entry, Report
from edge.report.evidence import Band, Measurement
from edge.report.origin import origin
from edge.report.plots import Bar, Drawing, Point, Spread
from edge.report.words import KINDS, LABELS
from edge.system.text import visible
from edge.version import __version__

_FOLD = 12  # groups of a kind from which on its table is folded


def draw(report: Report, *, png: bool = False) -> list[Drawing]:
    """All plots of a report that its files hold something for, in the page's order."""
    drawings = [*_sizes(report, png), *_differences(report, png), *_causes(report, png)]
    measured = _spreads(report)
    limits = {
        name: plots.kl_limits(
            [value for band in bands for value in (band.kl_median, band.kl_p90, band.kl_p99)]
        )
        for name, bands in (
            ("position", [band for _, m in measured for band in m.by_position]),
            ("field", [band for _, m in measured for band in m.by_field]),
        )
    }
    for number, (entry, m) in enumerate(measured):
        for name, bands, joined in (("position", m.by_position, True), ("field", m.by_field, False)):
            if not bands:
                continue
            label = visible(entry.label)
            drawings.append(
                plots.spread(
                    f"kl-{name}-{number + 1}",
                    f"KL divergence of {label} by {_by(name)}",
                    _told(bands),
                    [Spread(visible(band.name), band.kl_median, band.kl_p90, band.kl_p99) for band in bands],
                    axis="token of the answer",
                    limits=limits[name],
                    joined=joined,
                    png=png,
                )
            )
    return drawings


def _by(name: str) -> str:
    return "position in the answer" if name == "position" else "what the token belongs to"


def _told(bands: Sequence[Band]) -> str:
    return "; ".join(
        f"{visible(b.name)} median {words.kl(b.kl_median)}, p99 {words.kl(b.kl_p99)}" for b in bands
    )


def _spreads(report: Report) -> list[tuple[Entry, Measurement]]:
    """What has bands to draw: each measurement against another model, once."""
    found: dict[str, tuple[Entry, Measurement]] = {}
    for entry in report.entries:
        for m in entry.measurements:
            if (m.by_position or m.by_field) and m.aggregate.get("kl_max") != 0:
                found.setdefault(m.path, (entry, m))
    return list(found.values())


def _sizes(report: Report, png: bool) -> list[Drawing]:
    reference = report.reference
    scored = [
        Point(visible(e.label), e.n_bytes / 1e6, e.score, low, high, e.published)
        for e in report.entries
        for low, high in [e.score_interval or (None, None)]
        if e.n_bytes is not None and e.score is not None
    ]
    drawings = []
    if len(scored) > 1:
        line = None
        if reference is not None and reference.n_bytes is None and reference.score is not None:
            mark = ", published" if reference.published else ""
            line = (f"{visible(reference.label)}{mark}", reference.score)
        alt = "; ".join(f"{p.label}: {p.megabytes:,.1f} MB, score {p.value:.2f}" for p in scored)
        drawings.append(
            plots.tradeoff(
                "size-score",
                "Score by size",
                alt,
                scored,
                unit="score, 95 % interval",
                reference=line,
                png=png,
            )
        )
    distant: dict[str, Point] = {}
    for entry in report.entries:
        m = entry.measured
        if m is not None and entry.n_bytes is not None and m.aggregate.get("kl_mean", 0) > 0:
            low, high = m.intervals.get("kl_mean", (None, None))
            point = Point(visible(entry.label), entry.n_bytes / 1e6, m.aggregate["kl_mean"], low, high)
            distant.setdefault(m.path, point)
    if len(distant) > 1:
        points = list(distant.values())
        alt = "; ".join(f"{p.label}: {p.megabytes:,.1f} MB, mean KL {words.kl(p.value)}" for p in points)
        unit = "mean KL, nats a token; less is better"
        drawings.append(
            plots.tradeoff("size-kl", "KL divergence by size", alt, points, unit=unit, log=True, png=png)
        )
    return drawings


def _differences(report: Report, png: bool) -> list[Drawing]:
    drawings = []
    reference = visible(report.reference.label) if report.reference else ""
    for name in MAIN:
        bars = []
        for entry in report.compared:
            told = entry.figure(name)
            if told is not None and told.difference is not None and told.low is not None:
                bars.append(Bar(visible(entry.label), told.difference, told.low, told.high))
        if bars:
            drawings.append(
                plots.forest(
                    f"difference-{name.removesuffix('_pct').replace('_', '-')}",
                    LABELS[name].removesuffix(" %"),
                    _bars(bars, name),
                    bars,
                    unit=f"points more or less than {reference}",
                    png=png,
                )
            )
    return drawings


def _causes(report: Report, png: bool) -> list[Drawing]:
    labels = _labels(report)
    bars = []
    for cause in report.causes:
        told = next((f for f in cause.part.figures if f.name == "score"), None)
        if told is not None and told.difference is not None:
            bars.append(
                Bar(
                    visible(f"{cause.kind}: {labels[cause.first]} → {labels[cause.second]}"),
                    told.difference,
                    told.low,
                    told.high,
                )
            )
    if not bars:
        return []
    return [
        plots.forest(
            "causes",
            "Causes kept apart, score",
            _bars(bars, "score"),
            bars,
            unit="points of score",
            wide=True,
            png=png,
        )
    ]


def _bars(bars: Sequence[Bar], name: str) -> str:
    return "; ".join(
        f"{bar.label}: {words.figure(name, bar.value, sign=True)} "
        f"({words.interval(name, (bar.low, bar.high), sign=True)})"
        for bar in bars
    )


def to_html(report: Report, drawings: Sequence[Drawing]) -> str:
    """The page. `drawings`: what `draw` made of the same report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,  # everything that the template writes goes through it: none can be forgotten
    )
    filters: Mapping[str, Callable[..., str]] = {
        name: getattr(words, name)
        for name in ("figure", "fixed", "interval", "kl", "size", "p_value", "count", "engine", "base_name")
    }
    environment.filters.update(filters, cut=_cut, without_paths=_without_paths(report))
    by_name = {drawing.name: drawing for drawing in drawings}
    runs = [entry.run for entry in report.entries if entry.run]
    page = environment.get_template("report.html").render(
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
            for number, (entry, m) in enumerate(_spreads(report))
        ],
        all_measurements=_measurements(report),
        columns=_columns(report),
        any_published=any(entry.published for entry in report.entries),
        has_worse=any(entry.worse for entry in report.entries),
        causes=_cause_rows(report),
        groups=_grouped(report),
        groups_paired=any(g.reference is not None for e in report.compared if e.part for g in e.part.groups),
        fold=_FOLD,
        origin=origin(runs),
        runs=runs,
        version=__version__,
    )
    return page


def _columns(report: Report) -> dict[str, bool]:
    """Which columns the first table has: those that any result fills."""
    entries = report.entries
    return {
        "size": any(e.n_bytes is not None or e.bits_per_weight is not None for e in entries),
        "difference": bool(report.compared),
        "kl": any(e.measured is not None and "kl_mean" in e.measured.aggregate for e in entries),
        "speed": any(e.tokens_per_second is not None for e in entries),
        "memory": any(e.peak_bytes is not None for e in entries),
    }


def _measurements(report: Report) -> list[tuple[Entry, Measurement]]:
    """Each measurement once, with the first result of its model."""
    found = {m.path: (entry, m) for entry in reversed(report.entries) for m in entry.measurements}
    return sorted(found.values(), key=lambda pair: report.entries.index(pair[0]))


def _labels(report: Report) -> dict[str, str]:
    """What each result is called, by its path."""
    return {entry.run.path: entry.label for entry in report.entries if entry.run}


def _cause_rows(report: Report) -> list[dict[str, Any]]:
    labels = _labels(report)
    rows = []
    for cause in report.causes:
        figures = {f.name: f for f in cause.part.figures}
        rows.append(
            {
                "kind": cause.kind,
                "what": cause.what,
                "pair": f"{labels[cause.first]} → {labels[cause.second]}",
                "steps": cause.part.joined,
                "figures": [figures[name] for name in MAIN],
            }
        )
    return rows


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _without_paths(report: Report) -> Callable[[str], str]:
    """Puts labels where notes name files by their paths."""
    labels = _labels(report)

    def told(note: str) -> str:
        for path, label in sorted(labels.items(), key=lambda pair: -len(pair[0])):
            note = note.replace(path, label)
        return note

    return told


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _grouped(report: Report) -> list[tuple[str, list[tuple[str, int, float | None, list[Group | None]]]]]:
    """By kind: each group's name, steps, F1 of the reference, and the group in each compared result."""
    table: dict[str, dict[str, list[Group | None]]] = {}
    compared = report.compared
    for column, entry in enumerate(compared):
        for group in entry.part.groups if entry.part else ():
            row = table.setdefault(group.kind, {}).setdefault(group.name, [None] * len(compared))
            row[column] = group
    found = []
    for kind in ("bucket", "prompt_length", "source_group"):
        rows = []
        for name, groups in table.get(kind, {}).items():
            there = [group for group in groups if group is not None]
            rows.append((name, max(g.steps for g in there), there[0].reference, groups))
        if len(rows) > 1:
            found.append((KINDS[kind], rows))
    return found
