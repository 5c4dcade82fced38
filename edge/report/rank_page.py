"""A ranking as one HTML page. The page loads nothing and runs no script; all text from files is escaped and visible."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from edge.compare.findings import interval_text, number
from edge.compare.ranking import Entry, Ranking
from edge.compare.ranking_text import heading, place, scope, seconds, spans
from edge.errors import ResultError
from edge.report.templates import page_environment
from edge.system.files import whole_file, write_at
from edge.system.outputs import Run, check_output, check_replaced
from edge.system.places import place_of
from edge.version import __version__


def check_page(out: Path, inputs: Sequence[Path | str | None], run: Run, *, force: bool) -> None:
    """Check that the page may be written: not over an input, over another ranking only with `force`.

    Raises ResultError.
    """
    check_output(out, inputs, option="--html")
    check_replaced(out, run, _stored, kind="a ranking", force=force, option="--html")


def write_page(out: Path, ranking: Ranking, run: Run, title: str = "") -> None:
    """Write the page, complete or not at all. Raises ResultError."""
    data = rank_html(ranking, run, title).encode("utf-8", "backslashreplace")
    place_, through = place_of(out)
    try:
        if through:
            with place_.open("ab") as file:
                file.write(data)
            return
        with whole_file(place_) as (_, descriptor):
            write_at(descriptor, memoryview(data), 0)
    except OSError as error:
        raise ResultError(f"{out}: cannot be written: {error.strerror or error}") from None


def rank_html(ranking: Ranking, run: Run, title: str = "") -> str:
    """The page."""
    environment = page_environment()
    environment.filters.update(
        place=place,
        seconds=seconds,
        spans=spans,
        score=lambda value: number("score", value),
        change=lambda value: number("score", value, sign=True),
        percent=lambda value: number("valid_json_pct", value),
        bounds=lambda entry: interval_text("score", entry.low, entry.high),
        bar=lambda entry: _bar(entry, ranking.entries),
    )
    return environment.get_template("rank.html").render(
        ranking=ranking,
        title=title or heading(ranking),
        scope=scope(ranking),
        run=json.dumps(run),
        version=__version__,
    )


def _bar(entry: Entry, entries: Sequence[Entry]) -> Markup:
    """The score and its interval as a small drawing, on a scale that all entries share."""
    every = [one.score_interval or (one.score, one.score) for one in entries]
    low, high = min(low for low, _ in every), max(high for _, high in every)
    width = max(high - low, 1e-9)

    def at(value: float) -> float:
        return round(4 + 92 * (value - low) / width, 1)

    bounds = entry.score_interval or (entry.score, entry.score)
    line = f'<line x1="{at(bounds[0])}" x2="{at(bounds[1])}" y1="8" y2="8"/>'
    words = f"{entry.score:.2f}, 95 % interval {bounds[0]:.2f} to {bounds[1]:.2f}"
    return Markup(
        f'<svg viewBox="0 0 100 16" width="100" height="16" role="img" aria-label="{words}">{line}'
        f'<circle cx="{at(entry.score)}" cy="8" r="3.2"/></svg>'
    )


def _stored(path: Path) -> Run | None:
    """The run that a page names. Raises ValueError for another file."""
    match = re.search('<meta name="edge-rank" content="([^"]*)">', path.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError("not a ranking")
    run = json.loads(html.unescape(match[1]))
    return run if isinstance(run, dict) else None
