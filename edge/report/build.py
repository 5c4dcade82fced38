"""`edge report`: results, measurements and their comparison, put together as one page for people.

The figures come from the files and from `compare`; here they only find their places.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from edge.errors import ResultError
from edge.report.contents import WORSE, Report, collect
from edge.system.files import whole_file, write_at
from edge.system.places import check_place, place_of


def report(
    results: Sequence[Path | str],
    out: Path | str,
    reference: Path | str | None = None,
    *,
    markdown: Path | str | None = None,
    plots: Path | str | None = None,
    worse: int = WORSE,
    replay: Path | str | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Report:
    """Write a report as one HTML file, and with `markdown` in short for a model card, with `plots` its plots as PNG.

    `results`: result and measurement JSONs. `reference`: a result JSON or a known model's name; without one, the
    only unquantized result among several is it. `worse`: the most steps that got worse to show for each result.
    `replay`: rows, for what the task said at those steps. `notes`: what
    the reader should know beforehand. The same files give the same bytes. Nothing is written
    if anything is wrong. Raises ResultError, ReplayError.
    """
    from edge.report.card import to_markdown
    from edge.report.page import draw, to_html

    inputs = [*results, *([replay] if replay else []), *([reference] if reference else [])]
    _check_outputs(inputs, out, markdown, plots)
    found = collect(results, reference, worse=worse, replay=replay, title=title, notes=notes)
    drawings = draw(found, png=plots is not None)
    files: list[tuple[Path, bytes]] = []
    links: dict[str, str] = {}
    if plots is not None:
        for drawing in drawings:
            place = Path(plots) / f"{drawing.name}.png"
            files.append((place, drawing.png))
            start = Path(markdown).absolute().parent if markdown else Path.cwd()
            links[drawing.name] = Path(os.path.relpath(place.absolute(), start)).as_posix()
    if markdown is not None:
        files.append((Path(markdown), _utf8(to_markdown(found, drawings, links))))
    files.append((Path(out), _utf8(to_html(found, drawings))))
    _write(files)
    return found


def _check_outputs(
    inputs: Sequence[Path | str], out: Path | str, markdown: Path | str | None, plots: Path | str | None
) -> None:
    taken = {Path(path).resolve(): "is one of the files that the report is made of" for path in inputs}
    for path in (out, *([markdown] if markdown is not None else [])):
        check_place(path)
        place, through = place_of(path)
        if place in taken and not through:
            raise ResultError(f"{path}: {taken[place]}: give another name")
        taken[place] = "is given for two outputs"
    if plots is not None and not Path(plots).is_dir():
        if Path(plots).exists() or not str(plots):
            raise ResultError(f"{plots}: is no folder, and --plots wants one")
        check_place(plots)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _write(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files, none of which gets its name before all of them are on the disk. Raises ResultError."""
    path, streams = Path(), []
    try:
        with contextlib.ExitStack() as names:
            for path, data in files:
                place, through = place_of(path)
                if through:
                    streams.append((path, data))
                    continue
                _, descriptor = names.enter_context(whole_file(place))
                write_at(descriptor, memoryview(data), 0)
        for path, data in streams:
            with path.open("ab") as file:
                file.write(data)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror or error}") from None
