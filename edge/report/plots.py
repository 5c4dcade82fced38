"""Draw the plots of a report with matplotlib, as SVG in the colors of the page and as PNG.

A drawing is at most 400 points wide, so that its text is large enough on a phone.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

FLOOR = 1e-6  # nats; a logarithmic scale shows smaller divergences here

# Colors of the PNG on white. In the SVG each becomes the page's variable of the same name, for dark mode.
_COLORS = {"ink": "#1c2126", "muted": "#59636d", "rule": "#dde2e6", "accent": "#0b6a82", "paper": "#ffffff"}
_INK, _MUTED, _RULE, _ACCENT, _PAPER = _COLORS.values()
_WIDTH, _NARROW = 400 / 72, 340 / 72  # inches
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "font.family": ["DejaVu Sans"],
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 11,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": _PAPER,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "butt",
}


@dataclass(frozen=True)
class Drawing:
    """One plot: `svg` for a page, `png` (b"" unless requested), and `alt`, which says in words what it shows."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Point:
    """The size and the quality of a file. `low` and `high` bound the quality; None where there is no interval."""

    label: str
    megabytes: float
    value: float
    low: float | None
    high: float | None
    hollow: bool = False
    """edge did not measure it."""


@dataclass(frozen=True)
class Bar:
    """A difference and its interval; None where there is no interval."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Spread:
    """The KL divergence of some tokens, in nats."""

    label: str
    median: float
    p90: float
    p99: float


def front(points: Sequence[Point], *, less_is_better: bool = False) -> list[Point]:
    """The Pareto front, smallest first: no other point is as small and better, or as good and smaller."""
    best: list[Point] = []
    sign = -1 if less_is_better else 1
    for point in sorted(points, key=lambda p: (p.megabytes, -sign * p.value)):
        twin = best and (point.megabytes, point.value) == (best[-1].megabytes, best[-1].value)
        if not best or twin or sign * point.value > sign * best[-1].value:
            best.append(point)
    return best


def tradeoff(
    name: str,
    title: str,
    alt: str,
    points: Sequence[Point],
    *,
    unit: str,
    reference: tuple[str, float] | None = None,
    log: bool = False,
    png: bool = False,
) -> Drawing:
    """Size against quality with the Pareto front. `log`: lower values are better, on a logarithmic scale.

    `reference`: the label and value of a horizontal line.
    """
    with _figure(name, 3.3) as (figure, axes):
        shown = [_floored(p) for p in points] if log else list(points)
        scale, size_unit = (1000, "GB") if max(p.megabytes for p in shown) >= 1000 else (1, "MB")
        if log:
            axes.set_yscale("log")
        _draw_points(axes, shown, front(shown, less_is_better=log), scale)
        if reference is not None:
            _draw_reference(axes, *reference)
        axes.set_xlabel(f"file size, {size_unit}")
        axes.set_title(unit, loc="left", fontsize=11, color=_MUTED, pad=10)
        axes.grid(True, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if log:
            _log_ticks(axes, [v for p in shown for v in (p.value, p.low, p.high) if v])
            _name_points(axes, [(p.megabytes / scale, p.value, p.label) for p in shown])
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y <= 100 else ""))
            _name_bars(axes, [(p.megabytes / scale, p.high or p.value, p.label) for p in shown])
        return _drawing(figure, name, title, alt, png)


def _draw_points(axes: Axes, points: Sequence[Point], best: Sequence[Point], scale: int) -> None:
    """Points with their intervals, and a line over the `best` ones. `scale`: megabytes of a unit of the axis."""
    xs = [p.megabytes / scale for p in best]
    axes.step(xs, [p.value for p in best], where="post", color=_ACCENT, linewidth=1.4, alpha=0.55, zorder=2)
    for point in points:
        x, color = point.megabytes / scale, _ACCENT if point in best else _MUTED
        if point.low is not None and point.high is not None:
            axes.plot([x, x], [point.low, point.high], color=color, linewidth=1.4, zorder=3)
        face = _PAPER if point.hollow else color
        axes.plot([x], [point.value], "o", color=color, markerfacecolor=face, markersize=6.5, zorder=4)
    axes.margins(x=0.16, y=0.1)


def _draw_reference(axes: Axes, label: str, value: float) -> None:
    axes.axhline(value, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 10}
    paper = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5}
    axes.text(0.995, value, _short(label, 32), place, color=_MUTED, bbox=paper, zorder=5)


def forest(
    name: str, title: str, alt: str, bars: Sequence[Bar], *, unit: str, wide: bool = False, png: bool = False
) -> Drawing:
    """Differences with their intervals, one in each row, and a line at zero. `wide`: with space for long labels."""
    with _figure(name, 0.85 + 0.36 * len(bars), _WIDTH if wide else _NARROW) as (figure, axes):
        for row, bar in enumerate(bars):
            clear = bar.low is not None and bar.high is not None and not bar.low <= 0 <= bar.high
            color = _ACCENT if clear else _MUTED
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color=color, linewidth=2, zorder=3)
                for end in (bar.low, bar.high):
                    axes.plot([end, end], [row - 0.13, row + 0.13], color=color, linewidth=2, zorder=3)
            face = color if clear else _PAPER
            axes.plot([bar.value], [row], "o", color=color, markerfacecolor=face, markersize=7, zorder=4)
        axes.axvline(0, color=_INK, linewidth=1, zorder=2)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(range(len(bars)), [_short(bar.label, 34 if wide else 20) for bar in bars])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.spines["left"].set_visible(False)
        reach = max([abs(v) for b in bars for v in (b.value, b.low, b.high) if v is not None], default=0) or 1
        left = min([v for b in bars for v in (b.value, b.low) if v is not None] + [-reach * 0.15])
        right = max([v for b in bars for v in (b.value, b.high) if v is not None] + [reach * 0.15])
        axes.set_xlim(left - 0.06 * (right - left), right + 0.06 * (right - left))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x)))
        axes.grid(True, axis="x")
        axes.set_xlabel(unit)
        return _drawing(figure, name, title, alt, png)


def spread(
    name: str,
    title: str,
    alt: str,
    spreads: Sequence[Spread],
    *,
    limits: tuple[float, float],
    by_position: bool,
    png: bool = False,
) -> Drawing:
    """KL divergence on one logarithmic scale: `by_position` as bands over an axis, else with one row for each field."""
    floored = [
        Spread(s.label, max(s.median, limits[0]), max(s.p90, limits[0]), max(s.p99, limits[0]))
        for s in spreads
    ]
    with _figure(name, 2.7 if by_position else 0.95 + 0.3 * len(spreads)) as (figure, axes):
        (_draw_bands if by_position else _draw_rows)(axes, floored, limits)
        return _drawing(figure, name, title, alt, png)


def _draw_bands(axes: Axes, spreads: Sequence[Spread], limits: tuple[float, float]) -> None:
    rows = list(range(len(spreads)))
    medians, p90, p99 = [s.median for s in spreads], [s.p90 for s in spreads], [s.p99 for s in spreads]
    axes.set_yscale("log")
    axes.fill_between(rows, medians, p99, color=_ACCENT, alpha=0.13, linewidth=0)
    axes.fill_between(rows, medians, p90, color=_ACCENT, alpha=0.22, linewidth=0)
    for values, style, what in ((p99, ":", "p99"), (p90, "--", "p90"), (medians, "-", "median")):
        axes.plot(rows, values, color=_ACCENT, linewidth=1.8 if style == "-" else 1.1, linestyle=style)
        axes.annotate(
            what,
            (rows[-1], values[-1]),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=_ACCENT,
        )
    axes.set_ylim(*limits)
    step = max(1, -(-len(rows) // 7))
    axes.set_xticks(rows[::step], [s.label for s in spreads][::step])
    axes.set_xlim(rows[0], max(rows[-1], 1))
    axes.set_xlabel("index of the token in the answer")
    axes.grid(True, axis="y")
    _log_ticks(axes, limits)
    axes.set_title("KL, nats per token", loc="left", fontsize=11, color=_MUTED, pad=10)


def _draw_rows(axes: Axes, spreads: Sequence[Spread], limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    for row, s in enumerate(spreads):
        axes.plot([s.median, s.p99], [row, row], color=_ACCENT, alpha=0.3, linewidth=5)
        axes.plot([s.median, s.p90], [row, row], color=_ACCENT, alpha=0.55, linewidth=5)
        axes.plot([s.median], [row], "o", color=_ACCENT, markersize=6)
        axes.plot([s.p99], [row], "|", color=_ACCENT, markersize=10)
    axes.set_xlim(*limits)
    axes.set_ylim(len(spreads) - 0.4, -0.6)
    axes.set_yticks(range(len(spreads)), [_short(s.label) for s in spreads])
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    _log_ticks(axes, limits, axis="x")
    axes.set_xlabel("KL, nats per token: ● median, bars to p90 and p99")


def kl_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits in whole powers of ten that include all values above FLOOR: the same for several plots."""
    positive = [max(value, FLOOR) for value in values] or [FLOOR]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return 10.0**low, 10.0 ** max(high, low + 1)


@contextmanager
def _figure(name: str, height: float, width: float = _WIDTH) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _drawing(figure: Figure, name: str, title: str, alt: str, png: bool) -> Drawing:
    with warnings.catch_warnings():
        # A label may contain characters that the font does not have. The PNG shows boxes for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        raster = io.BytesIO()
        if png:
            figure.savefig(raster, format="png", dpi=200, metadata={"Software": None})
        text = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    return Drawing(name, title, alt, _page_svg(text.getvalue(), name), raster.getvalue())


def _page_svg(svg: str, name: str) -> str:
    """An SVG file as part of a page: no header, unique names, and the colors and the font of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # only clips and markers are referenced
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"; font-family: [^;\"]*(?:'[^']*'[^;\"]*)*", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    for variable, color in _COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    # A hundredth of a point is enough. Text between tags stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag[0]), svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _floored(point: Point) -> Point:
    def floor(value: float | None) -> float | None:
        return None if value is None else max(value, FLOOR)

    return Point(
        point.label,
        point.megabytes,
        max(point.value, FLOOR),
        floor(point.low),
        floor(point.high),
        point.hollow,
    )


def _log_ticks(axes: Axes, values: Sequence[float], axis: str = "y") -> None:
    """A tick at each power of ten, and ticks between them if there are few powers."""
    positive = [value for value in values if value > 0]
    powers = math.log10(max(positive) / min(positive)) if positive else 1
    scale = axes.yaxis if axis == "y" else axes.xaxis
    if powers < 1.2:
        scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        scale.set_major_locator(LogLocator(numticks=9))
    scale.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-3 else _power(v)))
    scale.set_minor_locator(NullLocator())
    scale.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}·10{raised}"


def _name_bars(axes: Axes, tops: Sequence[tuple[float, float, str]]) -> None:
    """A slanted label above each bar. Bars at one place share the first one's label and the number of the others."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.34 * (high - low))
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    columns: list[tuple[float, list[tuple[float, float, str]]]] = []
    for top in sorted(tops, key=lambda top: top[0]):
        place = float(axes.transData.transform((top[0], 0))[0])
        if columns and place - columns[-1][0] < 9:
            columns[-1][1].append(top)
        else:
            columns.append((place, [top]))
    for _, column in columns:
        first = next(label for _, _, label in tops if label in {label for _, _, label in column})
        more = f" +{len(column) - 1}" if len(column) > 1 else ""
        axes.annotate(
            _short(first, 16) + more,
            (column[0][0], max(top for _, top, _ in column)),
            (3, 5),
            textcoords="offset points",
            rotation=45,
            rotation_mode="anchor",
            fontsize=10.5,
        )


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """A label beside each point, at a place where it covers no point and no other label if possible."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    taken: list[tuple[float, ...]] = []
    for x, y in (axes.transData.transform((x, y)) for x, y, _ in points):
        taken.append((x - 4, y - 4, x + 4, y + 4))
    frame = axes.get_window_extent()
    heights = (5, -11, 17, -23, 29, -35)
    spots = [(dx, dy, align) for dy in heights for dx, align in ((8, "left"), (-8, "right"))]
    for x, y, label in points:
        best: tuple[int, Annotation, tuple[float, ...]] | None = None
        for dx, dy, align in spots:
            text = axes.annotate(
                _short(label), (x, y), (dx, dy), textcoords="offset points", ha=align, fontsize=10.5, zorder=5
            )
            box = text.get_window_extent().extents
            clashes = sum(_overlap(box, other) for other in taken)
            clashes += 3 * bool(box[2] > frame.x1 + 4 or box[0] < frame.x0)
            clashes += 3 * bool(box[1] < frame.y0 or box[3] > frame.y1 + 8)
            if best is not None and clashes >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (clashes, text, tuple(box))
            if not clashes:
                break
        if best is not None:
            taken.append(best[2])


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _short(label: str, most: int = 24) -> str:
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-most // 2 + 1 :]}"


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if abs(value) > 1e-9 else "0"
