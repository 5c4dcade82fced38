"""The files that edge keeps beside a session record: the work folder of its sandbox, and what undoes its changes."""

import contextlib
import os
import re
import shlex
import stat
import time
from pathlib import Path

from edge.errors import AgentError
from edge.system.files import NO_LINK
from edge.system.locks import try_lock
from edge.system.paths import state_folder
from edge.terminal.packed import SESSION_FILE

MOST_DAYS = 30
"""Days that archives of the sessions in the state folder are kept."""
MOST_BYTES = 4 << 30
"""Bytes of all these archives together."""


def sessions_folder() -> Path:
    """Where records are by default."""
    return state_folder() / "sessions"


def archive_path(record: Path) -> Path:
    """Where a sandboxed session keeps its work folder as a tar archive until edge brings it back."""
    return record.with_name(record.name + ".work.tar")


def first_path(record: Path) -> Path:
    """Where a sandboxed session keeps the work folder as it was when the session began, while it has an archive."""
    return record.with_name(record.name + ".first.tar")


def commits_path(record: Path) -> Path:
    """Where a sandboxed session keeps the commits that were made in it, as a git bundle, until edge fetches them."""
    return record.with_name(record.name + ".commits.bundle")


def undo_paths(record: Path) -> list[Path]:
    """The archives that undo what the session brought back, the oldest first."""
    found = [(int(number[1]), path) for path in record.parent.iterdir() if (number := _undo(record, path))]
    return [path for _, path in sorted(found)]


def new_undo_path(record: Path) -> Path:
    """The place of the next archive that undoes something."""
    last = undo_paths(record)[-1:]
    number = 1 + max((int(found[1]) for path in last if (found := _undo(record, path))), default=0)
    return record.with_name(f"{record.name}.undo-{number}.tar")


def _undo(record: Path, path: Path) -> re.Match[str] | None:
    return re.fullmatch(re.escape(record.name) + r"\.undo-([1-9][0-9]{0,5})\.tar", path.name)


def remove_old(now: float | None = None) -> int:
    """Remove archives of the sessions in the state folder that are too old, and the oldest of too many bytes.

    Leaves the records, and what belongs to a running session. Returns how many it removed. `now`: by time.time().
    """
    now = time.time() if now is None else now
    kept: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in sessions_folder().iterdir():
            with contextlib.suppress(OSError):
                state = path.lstat()
                if (found := SESSION_FILE.fullmatch(path.name)) and stat.S_ISREG(state.st_mode):
                    written = state.st_mtime
                    if path == first_path(path.with_name(found[1])):  # it is of use as long as the other one
                        with contextlib.suppress(FileNotFoundError):
                            written = archive_path(path.with_name(found[1])).stat().st_mtime
                    kept.append((written, state.st_size, path))
    removed, total = 0, sum(size for _, size, _ in kept)
    for written, size, path in sorted(kept):
        old = written < now - MOST_DAYS * 86_400
        if (old or total > MOST_BYTES) and _remove_unused(path):
            removed += 1
            total -= size
    return removed


def _remove_unused(path: Path) -> bool:
    """Remove an archive if no process has the record of its session open."""
    found = SESSION_FILE.fullmatch(path.name)
    assert found is not None
    try:
        descriptor = os.open(path.with_name(found[1]), os.O_RDWR | NO_LINK)
    except FileNotFoundError:
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    try:
        if try_lock(descriptor) is False:
            return False
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def find_session(session: str) -> Path:
    """The record that a path means, or a name in the folder of the records. Raises AgentError."""
    for place in (Path(session), sessions_folder() / session, sessions_folder() / f"{session}.jsonl"):
        if place.is_file():
            return place
    raise AgentError(f"{session}: there is no such session record; the records are in {sessions_folder()}")


def command(option: str, record: Path, *more: str, folder: Path | None = None) -> str:
    """The command line that does something with a session, for a person to copy; in `folder` if it is given."""
    words = ["edge", "agent", option, str(record.absolute()), *more]
    begin = "" if folder is None else f"cd {shlex.quote(str(folder))} && "
    return begin + shlex.join(words)
