"""`edge report --verify`: make a page again from its files, and compare the two."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

from edge.compare.labels import contradicted, stated_type
from edge.compare.trials import is_trials
from edge.errors import EdgeError, ResultError
from edge.replay.result import read_result
from edge.report import patterns
from edge.report.collect import collect
from edge.report.embedded import Embedded, programs, read_embedded
from edge.report.evidence import Named
from edge.system.hashes import file_sha256

_WIDTH = 60  # characters of a text that are shown
_MESSAGE = re.compile(
    r'(<div class="body">\s*)<h4>Last message of the task(?: \(its end\))?</h4><pre class="message">[^<]*</pre>'
)
_Text = tuple[str, str]
"""A text or an attribute of a page, after its place in words."""
_VOID = ("meta", "br", "link", "img", "input", "hr")


@dataclass(frozen=True)
class Verified:
    """What the check of a page found. The page is that of its files if there are no faults."""

    faults: tuple[str, ...]
    """A changed or missing file, or a place of the page that the files do not give: one line each."""
    notes: tuple[str, ...]
    """What was not checked."""
    texts: int
    """Number of texts of the page that have a digit; all of them were compared."""


def verify(page: Path, results: Sequence[Path], replay: Path | None = None) -> Verified:
    """Compute every figure of a page again from its files.

    `results`: the result, measurement and trial JSONs of the page, with any names, in any order. `replay`: its rows, if
    the page shows messages. Raises ResultError if `page` does not name its files, or cannot be read.
    """
    embedded = read_embedded(page)
    paths, faults = _matched(embedded, results)
    notes = []
    if (rows := embedded["rows"]) is not None and replay is None:
        notes.append(patterns.NOT_CHECKED_ROWS(digest=_short(rows)))
    elif replay is not None and file_sha256(replay) != rows:
        wanted = "none" if rows is None else _short(rows)
        faults.append(patterns.OTHER_ROWS(name=replay, digest=_short(file_sha256(replay)), wanted=wanted))
    own = programs()
    others = [name for name in own if embedded["made_by"].get(name) != own[name]]
    for name in others:
        was = embedded["made_by"].get(name, "unknown")
        notes.append(patterns.OTHER_PROGRAM(name=name, was=was, now=own[name]))
    if "matplotlib" in others:
        notes.append(patterns.NOT_CHECKED_LINES())
    if embedded["title"] or embedded["notes"]:
        notes.append(patterns.NOT_CHECKED_AUTHOR())
    text = page.read_text(encoding="utf-8", errors="replace")
    if faults:
        return Verified(tuple(faults), tuple(notes), 0)
    try:
        again = _again(embedded, paths, replay)
    except EdgeError as error:
        return Verified((patterns.CANNOT_BE_MADE(why=error),), tuple(notes), 0)
    if replay is None and rows is not None:
        text = _without_messages(text)
    found, texts = _compared(text, again, plots="matplotlib" not in others)
    return Verified(tuple(found), tuple(notes), texts)


def _without_messages(page: str) -> str:
    """The page without the last messages of the tasks, which only the rows give: one in each step that got worse."""
    before, section, steps = page.partition('<h2 id="worse">')
    return before + section + _MESSAGE.sub(r"\1", steps)


def _matched(embedded: Embedded, results: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The given files in the page's order, and what is wrong with them."""
    given: dict[str, list[Path]] = {}
    for path in results:
        digest = file_sha256(path)
        if digest is None:
            raise ResultError(f"{path}: cannot be read")
        given.setdefault(digest, []).append(path)
    paths, faults, missing = [], [], []
    for file in embedded["files"]:
        if found := given.get(file["sha256"]):
            paths.append(found.pop(0))
        else:
            missing.append(file)
    left = {path: digest for digest, rest in given.items() for path in rest}
    for file in missing:
        same = next((path for path in left if path.name == file["name"]), None)
        if same is None:
            faults.append(patterns.MISSING(name=file["name"], digest=_short(file["sha256"])))
        else:
            digest = left.pop(same)
            faults.append(patterns.CHANGED(name=same, digest=_short(digest), wanted=_short(file["sha256"])))
    faults += [patterns.NOT_OF_PAGE(name=path) for path in left]
    return paths, faults


def _again(embedded: Embedded, paths: Sequence[Path], replay: Path | None) -> str:
    """The page that the files give."""
    # matplotlib is slow to import.
    from edge.report.drawings import draw
    from edge.report.page import to_html

    reference: Path | str | None = None
    if isinstance(embedded["reference"], int):
        if not 0 <= embedded["reference"] < len(paths):
            raise ResultError("the head of the page names a reference that is not among its files")
        reference = paths[embedded["reference"]]
    else:
        reference = embedded["reference"]
    named: Mapping[str, Named] = {
        str(path): Named(file["name"], file["label"])
        for path, file in zip(paths, embedded["files"], strict=True)
    }
    for path, file in zip(paths, embedded["files"], strict=True):
        if file["label"] and not is_trials(path):
            result = read_result(path)
            if contradicted(file["label"], result):
                stated = stated_type(result)
                raise ResultError(patterns.WRONG_LABEL(name=file["name"], label=file["label"], stated=stated))
    contents = collect(
        paths,
        reference,
        worse=embedded["worse"],
        replay=replay,
        title=embedded["title"],
        notes=embedded["notes"],
        named=named,
    )
    html = to_html(contents, draw(contents), embedded)
    return html.encode("utf-8", "backslashreplace").decode()


def _compared(page: str, again: str, *, plots: bool) -> tuple[list[str], int]:
    """How a page differs from the one that its files give, and how many of its texts have a digit.

    `plots`: compare the lines of plots too, not only their texts.
    """
    ours, theirs = _Texts(page, plots), _Texts(again, plots)
    count = sum(bool(re.search(r"\d", text)) for _, text in ours.found)
    faults = []
    for before, after in _different(ours.found, theirs.found):
        where = (before or after or ("", ""))[0]
        page_says, files_give = _quoted(before and before[1], after and after[1])
        faults.append(patterns.OTHER_FIGURE(where=where, page=page_says, files=files_give))
    return faults, count


def _different(ours: Sequence[_Text], theirs: Sequence[_Text]) -> list[tuple[_Text | None, _Text | None]]:
    """The texts that differ, side by side; None where a side has none."""
    if len(ours) == len(theirs):
        return [(a, b) for a, b in zip(ours, theirs, strict=True) if a[1] != b[1]]
    start = 0
    while start < min(len(ours), len(theirs)) and ours[start][1] == theirs[start][1]:
        start += 1
    end = 0
    while end < min(len(ours), len(theirs)) - start and ours[-1 - end][1] == theirs[-1 - end][1]:
        end += 1
    left, right = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
    found: list[tuple[_Text | None, _Text | None]] = []
    matcher = difflib.SequenceMatcher(None, [text for _, text in left], [text for _, text in right])
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            found += zip_longest(left[a:b], right[c:d])
    return found


def _quoted(page: str | None, files: str | None) -> tuple[str, str]:
    """Two texts that differ, cut to the part with the first difference; "nothing" for None."""
    pairs = list(zip(page or "", files or "", strict=False))
    first = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    start = max(0, first - _WIDTH // 3)

    def cut(text: str | None) -> str:
        if text is None:
            return "nothing"
        before, after = "…" if start else "", "…" if len(text) > start + _WIDTH else ""
        return f'"{before}{text[start : start + _WIDTH]}{after}"'

    return cut(page), cut(files)


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


class _Texts(HTMLParser):
    """All texts and attributes of a page in order, each with its place in words: section, table row and column."""

    def __init__(self, html: str, plots: bool) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._plots = plots
        self._section, self._row, self._figure = "top of the page", "", ""
        self._columns: list[str] = []
        self._cell = -1
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "table":
            self._columns, self._row = [], ""
        elif tag == "tr":
            self._cell, self._row = -1, ""
        elif tag in ("td", "th"):
            self._cell += 1
            if "thead" in self._open:
                self._columns.append("")
        elif tag == "section":
            self._section, self._figure = "", ""
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        while tag in self._open and self._open.pop() != tag:
            pass
        if tag == "table":
            self._row, self._cell = "", -1

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or (not self._plots and "svg" in self._open and "text" not in self._open):
            return
        if "h2" in self._open:
            self._section = text
        elif "figure" in self._open and "h3" in self._open:
            self._figure = text
        elif "thead" in self._open and self._columns:
            self._columns[-1] = f"{self._columns[-1]} {text}".strip()
        elif "th" in self._open and "tbody" in self._open and not self._row:
            self._row = text
        self.found.append((self._place(), text))

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Attributes can have figures too: labels for screen readers, and the lines of plots."""
        if tag == "meta" and ("name", "edge-run") in attrs:
            return  # what the page is made again from
        inside = "svg" in self._open or tag == "svg"
        if inside and not self._plots:
            return
        self.found += [(self._place(), f"{tag} {name}={value}") for name, value in attrs]

    def _place(self) -> str:
        parts = [self._section]
        if "svg" in self._open or "figure" in self._open:
            parts.append(f"plot {self._figure}".strip())
        if self._row:
            parts.append(f"row {self._row}")
            if 0 < self._cell < len(self._columns):
                parts.append(f"column {self._columns[self._cell]}")
        return ", ".join(part for part in parts if part)
