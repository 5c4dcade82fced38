"""`edge report`: write one page for people, and on request a Markdown card and plots, from results and measurements.

All figures come from the files and from `compare`; the report only arranges them.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ResultError
from edge.replay.result import run_digest
from edge.report.collect import WORSE, all_paths, collect
from edge.report.contents import Report
from edge.report.embedded import Embedded, embedded_files, stored_page
from edge.report.model_card import CardFacts
from edge.system.files import whole_file, write_at
from edge.system.hashes import file_sha256
from edge.system.outputs import Run, check_output, check_replaced
from edge.system.places import check_place, place_of


def report(
    results: Sequence[Path | str],
    out: Path | str,
    reference: Path | str | None = None,
    *,
    markdown: Path | str | None = None,
    card: CardFacts | None = None,
    plots: Path | str | None = None,
    worse: int = WORSE,
    replay: Path | str | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    force: bool = False,
) -> Report:
    """Write a report as one HTML page and return its contents.

    `results`: result JSONs, and measurement JSONs and results of `edge trial` of the same models. `reference`: a
    result JSON or a known model's name. None: the only unquantized one of several results. `markdown`: also write a
    short form. `card`: also write a model card, with these facts. `plots`: also write the plots as PNG into this
    folder. `worse`: the maximum number of steps that got worse, for each result. `replay`: the rows; with them, these
    steps show the task's last message. `notes`: paragraphs for the beginning of the page. `force`: replace the files of
    another report.

    The same files give the same bytes. If anything is wrong, nothing is written. Raises ResultError, ReplayError.
    """
    # matplotlib is slow to import.
    from edge.report.drawings import draw
    from edge.report.model_card import to_card
    from edge.report.page import to_html
    from edge.report.short_form import to_markdown

    outputs = _Outputs(
        _named(out),
        None if markdown is None else _named(markdown),
        None if plots is None else _named(plots),
        None if card is None else _named(card.path),
    )
    inputs = [*results, *(path for path in (replay, reference) if path), *(card.ggufs if card else ())]
    outputs.check(inputs)
    contents = collect(results, reference, worse=worse, replay=replay, title=title, notes=notes)
    run: Run = {
        "results": {f"{i + 1} {Path(path).name}": run_digest(path) for i, path in enumerate(results)},
        "reference": run_digest(reference) if reference and Path(reference).is_file() else reference,
        "rows": None if replay is None else file_sha256(replay),
        "worse": worse,
        "title": title,
        "notes": list(notes),
    }
    check_replaced(outputs.page, run, lambda path: stored_page(path)[0], kind="a report", force=force)
    drawings = draw(contents, png=plots is not None)
    files = [(outputs.plot(drawing.name), drawing.png) for drawing in drawings] if plots is not None else []
    outputs.check_plots([path for path, _ in files], inputs)
    if outputs.markdown is not None:
        links = {drawing.name: outputs.link(drawing.name) for drawing in drawings} if files else {}
        files.append((outputs.markdown, _utf8(to_markdown(contents, drawings, links))))
    if card is not None:
        files.append((_named(card.path), _utf8(to_card(contents, card))))
    if not force:
        outputs.check_beside([path for path, _ in files])
    beside = sorted(hashlib.sha256(data).hexdigest() for _, data in files)
    embedded: Embedded = {
        "run": dict(run),
        "beside": beside,
        **embedded_files(contents, all_paths(results, reference), reference),
        "rows": None if replay is None else file_sha256(replay),
        "worse": worse,
        "title": title,
        "notes": list(notes),
    }
    files.append((outputs.page, _utf8(to_html(contents, drawings, embedded))))
    _write(files)
    return contents


@dataclass(frozen=True)
class _Outputs:
    """Where a report is written; None for a part that is not wanted."""

    page: Path
    markdown: Path | None
    plots: Path | None
    card: Path | None

    def check(self, inputs: Sequence[Path | str]) -> None:
        """Raises ResultError if an output would replace an input or another output, or cannot be written."""
        seen = []
        for path, option in ((self.page, "--out"), (self.markdown, "--markdown"), (self.card, "--card")):
            if path is None:
                continue
            check_output(path, inputs, option=option)
            place, through = place_of(path)
            if not through and place in seen:
                raise ResultError(f"{path}: is given for two outputs: give another name")
            seen.append(place)
        if self.plots is not None and not self.plots.is_dir():
            if self.plots.exists():
                raise ResultError(f"{self.plots}: is not a folder: give a folder with --plots")
            check_place(self.plots)

    def check_plots(self, plots: Sequence[Path], inputs: Sequence[Path | str]) -> None:
        """Raises ResultError if a plot would replace an input or another output, or cannot be written."""
        others = [place_of(path)[0] for path in (self.page, self.markdown, self.card) if path is not None]
        for plot in plots:
            check_output(plot, inputs, option="--plots")
            if place_of(plot)[0] in others:
                raise ResultError(f"{plot}: is given for two outputs: give another name")

    def check_beside(self, files: Sequence[Path]) -> None:
        """Raises ResultError if a file exists that is not, byte for byte, of the page that is at this place."""
        page = place_of(self.page)[0]
        known = stored_page(page)[1] if page.is_file() and page.stat().st_size else []
        for path in files:
            place, through = place_of(path)
            if not through and place.is_file() and file_sha256(place) not in known:
                raise ResultError(
                    f"{path}: exists, and is not as this report wrote it; "
                    "choose another name, or replace it with --force"
                )

    def plot(self, name: str) -> Path:
        return (self.plots or Path()) / f"{name}.png"

    def link(self, name: str) -> str:
        """A plot's path as the Markdown file links to it."""
        start = self.markdown.absolute().parent if self.markdown else Path.cwd()
        return Path(os.path.relpath(self.plot(name).absolute(), start)).as_posix()


def _named(path: Path | str) -> Path:
    if not str(path):
        raise ResultError("the name of an output is empty")
    return Path(path)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _write(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files. None of them gets its name before all of them are on the disk. Raises ResultError."""
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
