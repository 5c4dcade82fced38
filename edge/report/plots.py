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
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

FLOOR = 1e-6  # nats; a logarithmic scale shows smaller divergences here

# Colors of the PNG on white. In the SVG each becomes the page's variable of the same name, for dark mode.
_COLORS = {"ink": "#1c2126", "muted": "#59636d", "rule": "#dde2e6", "accent": "#0b6a82", "paper": "#ffffff"}
_INK, _MUTED, _RULE, _ACCENT, _PAPER = _COLORS.values()
_WIDTH, _NARROW = 400 / 72, 340 / 72  # inches
_LABEL = 10.5  # points; font size of the labels of points
_GAP = 20.0  # points between slanted labels; across them this is 14.1, more than a line of text is high
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
    beaten: bool = False
    """A file that is not larger is nearer to the base, by its KL divergence."""


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


@dataclass(frozen=True)
class Pair:
    """Two figures of a file, each with its interval; None where there is no interval."""

    label: str
    x: float
    across: tuple[float, float] | None
    y: float
    up: tuple[float, float] | None


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
    """Size against quality. `log`: lower values are better, on a logarithmic scale, with a line over the front.

    `reference`: the label and value of a horizontal line. The labels of the points stand above the axes, in the order
    of the sizes, with equal distances where they would overlap.
    """
    with _figure(name, 1, constrained=False) as (figure, axes):
        shown = [_floored(p) for p in points] if log else list(points)
        scale, size_unit = (1000, "GB") if max(p.megabytes for p in shown) >= 1000 else (1, "MB")
        if log:
            axes.set_yscale("log")
            best = front(shown, less_is_better=True)
            xs = [p.megabytes / scale for p in best]
            axes.step(xs, [p.value for p in best], where="post", color=_ACCENT, linewidth=1.2, alpha=0.5)
        _draw_points(axes, shown, scale)
        label = f"file size, {size_unit}"
        if reference is not None:
            axes.axhline(reference[1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            label += f"\ndashed: {_short(reference[0], 40)}"
        axes.set_xlabel(label, loc="left")
        axes.set_ylabel(unit)
        axes.grid(True, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if log:
            _log_ticks(axes, [v for p in shown for v in (p.value, p.low, p.high) if v])
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y <= 100 else ""))
        _name_points(figure, axes, [(p.megabytes / scale, p.high or p.value, p.label) for p in shown])
        return _drawing(figure, name, title, alt, png)


def _draw_points(axes: Axes, points: Sequence[Point], scale: int) -> None:
    """Points, with their intervals as bands. `scale`: megabytes of a unit of the axis."""
    for point in points:
        x, color = point.megabytes / scale, _MUTED if point.beaten else _ACCENT
        if point.low is not None and point.high is not None:
            axes.plot([x, x], [point.low, point.high], color=color, linewidth=7, alpha=0.25, zorder=3)
        face = _PAPER if point.hollow else color
        axes.plot([x], [point.value], "o", color=color, markerfacecolor=face, markersize=6, zorder=4)
    axes.margins(x=0.08, y=0.1)


def scatter(
    name: str, title: str, alt: str, pairs: Sequence[Pair], *, units: tuple[str, str], png: bool = False
) -> Drawing:
    """One figure against another, with the intervals of both as bands. `units`: of the two axes."""
    with _figure(name, 1, constrained=False) as (figure, axes):
        for pair in pairs:
            if pair.across is not None:
                axes.plot(pair.across, [pair.y] * 2, color=_ACCENT, linewidth=5, alpha=0.2, zorder=3)
            if pair.up is not None:
                axes.plot([pair.x] * 2, pair.up, color=_ACCENT, linewidth=5, alpha=0.2, zorder=3)
            axes.plot([pair.x], [pair.y], "o", color=_ACCENT, markersize=6, zorder=4)
        axes.margins(x=0.08, y=0.1)
        axes.set_xlabel(units[0], loc="left")
        axes.set_ylabel(units[1])
        axes.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        tops = [(pair.x, pair.y if pair.up is None else pair.up[1], pair.label) for pair in pairs]
        _name_points(figure, axes, tops)
        return _drawing(figure, name, title, alt, png)


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
    curves = ((p99, ":", "p99"), (p90, "--", "p90"), (medians, "-", "median"))
    for values, style, _ in curves:
        axes.plot(rows, values, color=_ACCENT, linewidth=1.8 if style == "-" else 1.1, linestyle=style)
    axes.set_ylim(*limits)
    # The labels keep their distance where the curves end at nearly one place. The axes are about 120 points high.
    ends = [
        120 * math.log(values[-1] / limits[0]) / math.log(limits[1] / limits[0]) for values, _, _ in curves
    ]
    lowest = 0.0
    upwards = sorted(zip(ends, curves, strict=True), key=lambda pair: (pair[0], pair[1][2]))
    for end, (values, _, what) in upwards:
        at = max(end, lowest)
        lowest = at + 13
        axes.annotate(
            what,
            (rows[-1], values[-1]),
            (5, at - end),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=_ACCENT,
        )
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
def _figure(
    name: str, height: float, width: float = _WIDTH, *, constrained: bool = True
) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _drawing(figure: Figure, name: str, title: str, alt: str, png: bool) -> Drawing:
    with warnings.catch_warnings():
        # A label may contain characters that the font does not have. The PNG shows boxes for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        # Each drawing moves a constrained layout a little. Fixed after one, the SVG is the same with and without a PNG.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
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
        point.beaten,
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


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Set the size of the figure, and write a slanted label above the axes for each point, joined to it by a line.

    `points`: the place of the top of each point in data units, and its label. All labels are parallel and at least
    _GAP apart, so that none overlaps another, in any font.
    """
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    labels = [_short(label, 26) for _, _, label in ordered]
    lengths = [TextPath((0, 0), text, size=_LABEL).get_extents().width for text in labels]
    slant = math.sqrt(0.5)
    left, right, bottom = 66.0, 10.0, 40.0 + 14 * axes.get_xlabel().count("\n")
    overhang = [max(0.0, slant * length - right) for length in lengths]
    width = max(72 * _WIDTH, left + right + _GAP * len(labels) + max(overhang))
    top = slant * max(lengths) + 30
    height = bottom + 165 + top
    figure.set_size_inches(width / 72, height / 72)
    axes.set_position((left / width, bottom / height, (width - left - right) / width, 165 / height))
    limits, ceiling = axes.get_xlim(), axes.get_ylim()[1]
    across = (width - left - right) / (limits[1] - limits[0])
    places = [left + (x - limits[0]) * across for x, _, _ in ordered]
    most = [width - right - over for over in overhang]
    edge = (height - top) / height
    for place, at, text, (x, y, _) in zip(places, _apart(places, left, most), labels, ordered, strict=True):
        axes.plot([x, x], [y, ceiling], color=_MUTED, alpha=0.4, linewidth=0.7, zorder=1)
        ends = [edge, edge + 14 / height]
        joint = Line2D([place / width, at / width], ends, color=_MUTED, alpha=0.4, linewidth=0.7)
        figure.add_artist(joint)
        figure.text(
            at / width,
            edge + 18 / height,
            text,
            rotation=45,
            rotation_mode="anchor",
            fontsize=_LABEL,
        )
    axes.set_xlim(limits)
    axes.set_ylim(top=ceiling)


def _apart(places: Sequence[float], least: float, most: Sequence[float]) -> list[float]:
    """Sorted places moved as little as possible, so that they are at least _GAP apart, from `least` to `most` of each.

    Pool adjacent violators: places that are too near share their mean (Barlow et al., Statistical Inference under Order
    Restrictions, 1972). The space must be enough.
    """
    pools: list[tuple[float, int]] = []  # mean and number of the places without their gaps
    for index, place in enumerate(places):
        mean, count = place - _GAP * index, 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean = (before * number + mean * count) / (number + count)
            count += number
        pools.append((mean, count))
    spread = [mean for mean, count in pools for _ in range(count)]
    found = [max(least, mean) + _GAP * index for index, mean in enumerate(spread)]
    limit = math.inf
    for index in reversed(range(len(found))):
        limit = min(limit - _GAP, most[index])
        found[index] = min(found[index], limit)
    return found


def _short(label: str, most: int = 24) -> str:
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-most // 2 + 1 :]}"


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if abs(value) > 1e-9 else "0"
