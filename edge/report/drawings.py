"""The plots that a report has: the values, labels and alternative texts of each one."""

from collections.abc import Sequence

from edge.compare.causes import Cause
from edge.report import plots, words
from edge.report.contents import MAIN, Entry, Report
from edge.report.measurements import Band, CheckedMeasurement
from edge.report.plots import Bar, Drawing, Pair, Point, Spread
from edge.report.trial_words import both
from edge.system.text import visible


def draw(report: Report, *, png: bool = False) -> list[Drawing]:
    """All plots that the files of a report have values for, in the page's order. `png`: also as PNG."""
    return [
        *_solved(report, png),
        *_sizes(report, png),
        *_differences(report, png),
        *_causes(report, png),
        *_divergences(report, png),
    ]


def with_bands(report: Report) -> list[tuple[Entry, CheckedMeasurement]]:
    """Each measurement that has bands to draw, once. A model measured against itself is left out."""
    found: dict[str, tuple[Entry, CheckedMeasurement]] = {}
    for entry in report.entries:
        for m in entry.measurements:
            if (m.by_position or m.by_field) and m.aggregate.get("kl_max") != 0:
                found.setdefault(m.path, (entry, m))
    return list(found.values())


def beaten_files(report: Report) -> dict[str, str]:
    """The files that another one beats, by label, and the label of the other: it is not larger, and nearer to the base.

    Nearer: its mean KL divergence is lower, and the 95 % intervals of both, where they are known, do not overlap.
    """
    measured = [
        (entry, entry.n_bytes, entry.measured)
        for entry in report.files
        if entry.n_bytes is not None and entry.measured and "kl_mean" in entry.measured.aggregate
    ]
    found: dict[str, str] = {}
    for entry, n_bytes, m in measured:
        low = m.intervals.get("kl_mean", (m.aggregate["kl_mean"],) * 2)[0]
        for other, other_bytes, better in sorted(measured, key=lambda each: each[1]):
            high = better.intervals.get("kl_mean", (better.aggregate["kl_mean"],) * 2)[1]
            if other_bytes <= n_bytes and high < low:
                found.setdefault(entry.label, other.label)
    return found


def other_causes(report: Report) -> list[Cause]:
    """The causes, without the quantizations that the differences from the reference show."""
    files = {entry.run.path for entry in report.files if entry.run}
    base = report.reference.run.path if report.reference and report.reference.run else None
    return [
        cause
        for cause in report.causes
        if not (cause.kind == "quantization" and cause.first == base and cause.second in files)
    ]


def run_labels(report: Report) -> dict[str, str]:
    """The label of each result, by its path."""
    return {entry.run.path: entry.label for entry in report.entries if entry.run}


def _solved(report: Report, png: bool) -> list[Drawing]:
    pairs = []
    for entry in both(report):
        found = entry.tried.figures["solved_share"] if entry.tried else None
        if found is not None and entry.score is not None:
            low, high = 100 * found["low"], 100 * found["high"]
            score = entry.score, entry.score_interval
            pairs.append(Pair(visible(entry.label), *score, 100 * found["value"], (low, high)))
    if len(pairs) < 2:
        return []
    alt = "; ".join(f"{pair.label}: score {pair.x:.2f}, {pair.y:.1f} % solved" for pair in pairs)
    units = "score of the replay", "tasks solved, %"
    return [plots.scatter("score-solved", "Tasks solved by score", alt, pairs, units=units, png=png)]


def _sizes(report: Report, png: bool) -> list[Drawing]:
    drawings = []
    beaten = beaten_files(report)
    scored = [
        Point(visible(e.label), e.n_bytes / 1e6, e.score, low, high, e.published, e.label in beaten)
        for e in report.files
        for low, high in [e.score_interval or (None, None)]
        if e.n_bytes is not None and e.score is not None
    ]
    if len(scored) > 1:
        reference, line = report.reference, None
        if reference is not None and reference.n_bytes is None and reference.score is not None:
            mark = ", published" if reference.published else ""
            line = (
                f"{visible(reference.label)}{mark}, {words.figure('score', reference.score)}",
                reference.score,
            )
        alt = "; ".join(f"{p.label}: {p.megabytes:,.1f} MB, score {p.value:.2f}" for p in scored)
        unit = "score"
        drawings.append(
            plots.tradeoff("size-score", "Score by size", alt, scored, unit=unit, reference=line, png=png)
        )
    distant: dict[str, Point] = {}
    for entry in report.files:
        m = entry.measured
        if m is not None and entry.n_bytes is not None and m.aggregate.get("kl_mean", 0) > 0:
            low, high = m.intervals.get("kl_mean", (None, None))
            mean, is_beaten = m.aggregate["kl_mean"], entry.label in beaten
            point = Point(visible(entry.label), entry.n_bytes / 1e6, mean, low, high, beaten=is_beaten)
            distant.setdefault(m.path, point)
    if len(distant) > 1:
        points = list(distant.values())
        alt = "; ".join(f"{p.label}: {p.megabytes:,.1f} MB, mean KL {words.kl(p.value)}" for p in points)
        unit = "mean KL, nats per token"
        drawings.append(
            plots.tradeoff("size-kl", "KL divergence by size", alt, points, unit=unit, log=True, png=png)
        )
    return drawings


def _differences(report: Report, png: bool) -> list[Drawing]:
    drawings = []
    reference = visible(report.reference.label) if report.reference else ""
    for name in MAIN:
        bars = []
        for entry in report.files:
            figure = entry.figure(name)
            if figure is not None and figure.difference is not None and figure.low is not None:
                bars.append(Bar(visible(entry.label), figure.difference, figure.low, figure.high))
        if bars:
            drawings.append(
                plots.forest(
                    f"difference-{name.removesuffix('_pct').replace('_', '-')}",
                    words.LABELS[name].removesuffix(" %"),
                    _bars(bars, name),
                    bars,
                    unit=f"difference from {reference}, points",
                    png=png,
                )
            )
    return drawings


def _causes(report: Report, png: bool) -> list[Drawing]:
    labels = run_labels(report)
    bars = []
    for cause in other_causes(report):
        score = next((f for f in cause.part.figures if f.name == "score"), None)
        if score is not None and score.difference is not None:
            label = visible(f"{cause.kind}: {labels[cause.first]} → {labels[cause.second]}")
            bars.append(Bar(label, score.difference, score.low, score.high))
    if not bars:
        return []
    if not any(bar.low is not None for bar in bars):
        return []
    bars = [bar for bar in bars if bar.low is not None]
    title, unit = "Difference of the score by cause", "points of score"
    return [plots.forest("causes", title, _bars(bars, "score"), bars, unit=unit, wide=True, png=png)]


def _divergences(report: Report, png: bool) -> list[Drawing]:
    measured = with_bands(report)
    limits = {
        name: plots.kl_limits(
            [value for band in bands for value in (band.kl_median, band.kl_p90, band.kl_p99)]
        )
        for name, bands in (
            ("position", [band for _, m in measured for band in m.by_position]),
            ("field", [band for _, m in measured for band in m.by_field]),
        )
    }
    drawings = []
    for number, (entry, m) in enumerate(measured):
        for name, bands, title in (
            ("position", m.by_position, "position in the answer"),
            ("field", m.by_field, "field of the answer"),
        ):
            if not bands:
                continue
            drawings.append(
                plots.spread(
                    f"kl-{name}-{number + 1}",
                    f"KL divergence of {visible(entry.label)} by {title}",
                    _spread_text(bands),
                    [Spread(visible(band.name), band.kl_median, band.kl_p90, band.kl_p99) for band in bands],
                    limits=limits[name],
                    by_position=name == "position",
                    png=png,
                )
            )
    return drawings


def _bars(bars: Sequence[Bar], name: str) -> str:
    return "; ".join(
        f"{bar.label}: {words.figure(name, bar.value, sign=True)} "
        f"({words.interval(name, (bar.low, bar.high), sign=True)})"
        for bar in bars
    )


def _spread_text(bands: Sequence[Band]) -> str:
    return "; ".join(
        f"{visible(b.name)} median {words.kl(b.kl_median)}, p99 {words.kl(b.kl_p99)}" for b in bands
    )
