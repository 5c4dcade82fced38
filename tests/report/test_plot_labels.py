"""The labels of plots never overlap, with any number of files and long names; the front goes by KL.

pytest tests/report/test_plot_labels.py
"""

import html
import math
import re
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from small_results import result

from edge.report.build import report
from edge.report.plots import Bar, Drawing, Point, forest, tradeoff

pytestmark = pytest.mark.slow

Corner = tuple[float, float]
_TEXT = re.compile(r'<text style="([^"]*)"([^>]*)>([^<]*)</text>')
# A generous box of a text, in font sizes: fonts of browsers differ.
_WIDTH, _ABOVE, _BELOW = 0.62, 0.95, 0.24
_USUAL = 0.57  # the usual width of a character


def texts(svg: str, width: float = _WIDTH) -> list[tuple[str, list[Corner]]]:
    """Each text of a drawing with the corners of its box, in points."""
    found = []
    for style, attributes, text in _TEXT.findall(svg):
        size = float(re.search(r"font-size: ([\d.]+)px", style)[1])  # type: ignore[index]
        anchor = re.search(r"text-anchor: (\w+)", style)
        x, y, angle = place(attributes)
        length = width * size * len(html.unescape(text))
        left = {"middle": -length / 2, "end": -length}.get(anchor[1] if anchor else "start", 0.0)
        turned = math.radians(angle)
        box = [
            (
                x + dx * math.cos(turned) - dy * math.sin(turned),
                y + dx * math.sin(turned) + dy * math.cos(turned),
            )
            for dx, dy in (
                (left, -_ABOVE * size),
                (left + length, -_ABOVE * size),
                (left + length, _BELOW * size),
                (left, _BELOW * size),
            )
        ]
        found.append((html.unescape(text), box))
    return found


def place(attributes: str) -> tuple[float, float, float]:
    moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", attributes)
    turned = re.search(r"rotate\(([-\d.]+)", attributes)
    x, y = re.search(r' x="([-\d.]+)"', attributes), re.search(r' y="([-\d.]+)"', attributes)
    where = (
        (float(moved[1]), float(moved[2])) if moved else (float(x[1]), float(y[1])) if x and y else (0.0, 0.0)
    )
    return *where, float(turned[1]) if turned else 0.0


def overlap(a: list[Corner], b: list[Corner]) -> bool:
    """Whether two rectangles overlap: no side of either separates them (separating axis theorem)."""
    for corners in (a, b):
        for (x, y), (u, v) in pairwise(corners[:3]):
            across = (v - y, x - u)
            sides = [[px * across[0] + py * across[1] for px, py in box] for box in (a, b)]
            if max(sides[0]) <= min(sides[1]) or max(sides[1]) <= min(sides[0]):
                return False
    return True


def check(drawing: Drawing, labels: int, *, cut: bool = True) -> None:
    found = texts(drawing.svg)
    assert len([text for text, _ in found if not re.fullmatch(r"[−+]?[\d.⁻⁰-⁹·]+", text)]) >= labels
    for (one, a), (other, b) in combinations(found, 2):
        assert not overlap(a, b), f"{one!r} and {other!r} overlap"
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing.svg).groups())  # type: ignore[union-attr]
    for text, box in texts(drawing.svg, _USUAL) if cut else ():
        assert all(-1 <= x <= width + 8 and -1 <= y <= height + 1 for x, y in box), f"{text!r} is cut"


def points(names: list[str], sizes: list[float], values: list[float]) -> list[Point]:
    return [
        Point(name, size, value, value * 0.97, value * 1.02)
        for name, size, value in zip(names, sizes, values, strict=True)
    ]


LONG = ["LFM2.5-8B-A1B-Terminal-ToolBench-Full-SFT-1Epoch", "a-long-name-with-imatrix-Q4_K_M", "Q8_0"]
FOURTEEN = [f"Q{i}_K_M" for i in range(14)]
CASES = {
    "fourteen files, nine of nearly one size": (
        FOURTEEN,
        [3 + i / 50 if i < 9 else 4.0 + i for i in range(14)],
        [91.5 + i % 3 for i in range(14)],
    ),
    "fourteen of one size": (FOURTEEN, [4.2] * 14, [90.0] * 14),
    "fourteen, the largest together": (FOURTEEN, [1.0] + [900.0 + i for i in range(13)], [50.0] * 14),
    "forty": ([f"file-number-{i}" for i in range(40)], [5000.0 + i for i in range(40)], [50.0] * 40),
    "three": (["Q2_K", "Q8_0", "bf16"], [2.9, 6.9, 12.9], [92.1, 91.8, 91.9]),
    "three long names of one size": (LONG, [5013.0, 5013.0, 5014.0], [51.0, 52.0, 52.2]),
    "long names at both ends": (LONG[::-1], [1.0, 2.0, 9000.0], [10.0, 20.0, 99.9]),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_of_files_never_overlap(case: str) -> None:
    names, sizes, values = CASES[case]
    for log in (False, True):
        given = points(names, sizes, [value / 1000 for value in values] if log else values)
        reference = None if log else ("a published model with a long name, published, 52.30", values[0])
        drawing = tradeoff("plot", "Title", "alt", given, unit="score", reference=reference, log=log)
        check(drawing, len(names))


@pytest.mark.parametrize("names", [FOURTEEN, LONG])
def test_labels_of_differences_never_overlap(names: list[str]) -> None:
    bars = [Bar(name, 0.5 - i, -1.0 - i, 2.0 - i) for i, name in enumerate(names)]
    for wide in (False, True):
        drawing = forest("plot", "Title", "alt", bars, unit="difference from bf16, points", wide=wide)
        check(drawing, len(names), cut=False)  # matplotlib measures these labels


def test_bands_show_intervals_and_only_the_kl_plot_has_a_front() -> None:
    given = points(["a", "b", "c"], [1.0, 2.0, 3.0], [50.0, 49.0, 51.0])
    score = tradeoff("s", "t", "alt", given, unit="score")
    bands = re.findall(r"stroke-width: 7", score.svg)
    assert len(bands) == 3 and "stroke-width: 1.2" not in score.svg
    assert len(re.findall("stroke-width: 1.2", tradeoff("k", "t", "a", given, unit="KL", log=True).svg)) == 1


def test_bars_are_explained_only_where_there_are_bars(tmp_path: Path) -> None:
    paths = {name: result(tmp_path / f"{name}.json", name) for name in ("bf16", "Q8_0", "Q2_K")}
    for name, has_bars in (("Q8_0", False), ("Q2_K", True)):
        page = tmp_path / f"{name}.html"
        report([paths["bf16"], paths[name]], page, paths["bf16"])
        text = page.read_text(encoding="utf-8")
        assert "Paired by step." in text and ("The bars are" in text) == has_bars
