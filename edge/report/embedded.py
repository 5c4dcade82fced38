"""What a page says about itself, in its head: the run, its files with their SHA-256, and the programs that made it."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from edge.errors import EdgeError, ResultError
from edge.report.contents import Report, Tried
from edge.report.evidence import Run as Evidence
from edge.system.hashes import file_sha256, package_version
from edge.system.outputs import Run
from edge.system.typed_json import check
from edge.version import __version__

_META = re.compile('<meta name="edge-run" content="([^"]*)">')


class EmbeddedFile(TypedDict):
    """A result, a measurement or a result of trials of a page."""

    name: str
    """Its name, without folders."""
    label: str
    """How the page names a result or trials; "" for a measurement."""
    sha256: str
    """SHA-256 of the file."""


class EmbeddedFiles(TypedDict):
    """The files of a page, and the programs that made it."""

    made_by: Mapping[str, str]
    """Versions of the programs that made the page, by name."""
    files: list[EmbeddedFile]
    """The results, measurements and trials, in their order."""
    reference: int | str | None
    """The reference: its place among the files, or the name of a known model; null without one."""


class Embedded(EmbeddedFiles):
    """What `edge report --verify` needs to make a page again."""

    run: dict[str, object]
    """The run: edge replaces only a page of the same run."""
    beside: list[str]
    """SHA-256 of the files that were written beside the page."""
    rows: str | None
    """SHA-256 of the replay rows; null without them."""
    worse: int
    """Maximum number of steps that got worse, for each result."""
    title: str
    """The heading that the author gave."""
    notes: list[str]
    """The paragraphs that the author gave."""


def programs() -> dict[str, str]:
    """The versions of the programs that decide the bytes of a page."""
    return {"edge": __version__, "matplotlib": package_version("matplotlib") or ""}


def embedded_files(
    report: Report, paths: Sequence[Path | str], reference: Path | str | None
) -> EmbeddedFiles:
    """The files of a page: `paths`, those of the results, measurements and trials, and which one is the reference."""
    named: dict[str, Evidence | Tried] = {
        str(run.path): run for entry in report.entries if (run := entry.run)
    }
    named |= {one.path: one for one in report.tried}
    files: list[EmbeddedFile] = []
    for path in paths:
        own = named.get(str(path))
        files.append(
            {
                "name": own.name if own else Path(path).name,
                "label": own.label if own else "",
                "sha256": file_sha256(path) or "",
            }
        )
    where: int | str | None = None
    if reference is not None:
        places = [Path(path).resolve() for path in paths]
        resolved = Path(reference).resolve()
        where = places.index(resolved) if resolved in places else str(reference)
    return {"made_by": programs(), "files": files, "reference": where}


def stored_page(path: Path) -> tuple[Run | None, list[str]]:
    """The run that a page names (None for a page of edge 0.2.0 and older), and the SHA-256 of the files beside it.

    Raises ValueError for another file.
    """
    stored = _stored(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not isinstance(stored.get("run"), dict):
        return None, []
    return stored["run"], [str(digest) for digest in stored.get("beside") or []]


def read_embedded(path: Path) -> Embedded:
    """What a page says about itself. Raises ResultError if it is not a page, or names no files."""
    try:
        stored = _stored(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise ResultError(f"{path}: is not a page of edge report, or its head is damaged") from None
    if not isinstance(stored, dict) or "files" not in stored:
        raise ResultError(f"{path}: does not name its files: make it again with this version of edge")
    try:
        return check(stored, Embedded, "the head")
    except EdgeError as error:
        raise ResultError(f"{path}: its head is damaged: {error}") from None


def _stored(text: str) -> object:
    """The JSON in the head of a page; None if it has none. Raises ValueError for another file."""
    if '<meta name="generator" content="edge' not in text:
        raise ValueError("not a report")
    match = _META.search(text)
    found: object = json.loads(html.unescape(match[1])) if match else None
    return found
