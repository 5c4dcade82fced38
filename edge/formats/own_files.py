"""Which model files edge loads without a trial: those that edge wrote for this user, and those that it tried before.

A file cannot say this about itself: who makes a hostile file can copy everything that edge writes into its own. So edge
keeps a mark in the user's state folder. It holds the file's `signature`, or the size and SHA-256 of a file that edge
wrote, so that a copy of it is known too. A seal (HMAC-SHA256) with the user's key shows that edge made the mark.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.gguf import signature
from edge.system.files import whole_file
from edge.system.hashes import file_sha256
from edge.system.keys import derived_key
from edge.system.paths import state_folder

_WRITTEN = "written"


def mark_written(path: Path, digest: str | None = None) -> None:
    """Remember a file that edge has just written, if the state folder can be written. `digest`: its SHA-256.

    Raises ModelFileError if the file is missing or cannot be read.
    """
    with contextlib.suppress(_NoMarks):
        marks = _Marks()
        marks.write(signature(path), _WRITTEN)
        if digest is not None:
            marks.write(_content(path, digest), _WRITTEN)


def mark_tried(signatures: Sequence[str], how: str) -> None:
    """Remember files that a trial loaded together, if the state folder can be written. `how`: with what it was done."""
    with contextlib.suppress(_NoMarks):
        _Marks().write("\n".join(signatures), how)


def is_known(files: Sequence[Path], how: str, beside: Sequence[Path] = ()) -> bool:
    """Whether edge wrote `files` for this user, or has tried them as `how` says. False where edge has no marks.

    `files`: those of a model, or one adapter. `beside`: the files with which an adapter was tried.
    A file is read only if it has the size of one that edge wrote and no mark of its own yet. Raises ModelFileError.
    """
    try:
        marks = _Marks()
    except _NoMarks:
        return False
    signatures = [signature(file) for file in files]
    why = marks.read("\n".join([*signatures, *map(signature, beside)]))
    if why == how or (why == _WRITTEN and len(files) == 1):
        return True
    return all(_is_written(file, one, marks) for file, one in zip(files, signatures, strict=True))


def _is_written(path: Path, before: str, marks: "_Marks") -> bool:
    if marks.read(before) == _WRITTEN:
        return True
    if not marks.has_size(path.stat().st_size):
        return False
    digest = file_sha256(path)
    known = digest is not None and marks.read(_content(path, digest)) == _WRITTEN
    if known and signature(path) == before:  # otherwise it changed while it was read
        with contextlib.suppress(_NoMarks):
            marks.write(before, _WRITTEN)
        return True
    return False


def _content(path: Path, digest: str) -> str:
    return f"{path.stat().st_size}-{digest}"


class _NoMarks(Exception):
    """There is no key, or the state folder cannot be written."""


class _Marks:
    """The marks of this user. Raises _NoMarks."""

    def __init__(self) -> None:
        try:
            self._key = derived_key("model files that need no trial")
            self._folder = state_folder() / "model-files"
        except EdgeError:
            raise _NoMarks from None

    def read(self, what: str) -> str | None:
        """What the mark says; None if there is none, or another program wrote it."""
        try:
            mark = json.loads(self._place(what).read_text(encoding="utf-8"))
            why, seal = str(mark["why"]), str(mark["seal"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return why if hmac.compare_digest(seal.encode(), self._seal(what, why).encode()) else None

    def write(self, what: str, why: str) -> None:
        mark = {"what": what, "why": why, "seal": self._seal(what, why)}
        try:
            with whole_file(self._place(what)) as (_, descriptor):
                os.write(descriptor, json.dumps(mark).encode())
        except OSError:
            raise _NoMarks from None

    def has_size(self, n_bytes: int) -> bool:
        """Whether edge wrote a file of this size."""
        try:
            return any(self._folder.glob(f"{n_bytes}-*.json"))
        except OSError:
            return False

    def _place(self, what: str) -> Path:
        size = re.match(r"[0-9]+-|", what)  # a signature begins with a path
        name = hashlib.sha256(os.fsencode(what)).hexdigest()
        return self._folder / f"{size[0] if size else ''}{name}.json"

    def _seal(self, what: str, why: str) -> str:
        text = json.dumps([what, why])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
