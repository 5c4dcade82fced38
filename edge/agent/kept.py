"""The files that edge keeps beside a session record: the work folder of its sandbox, and what undoes its changes."""

import shlex
from pathlib import Path

from edge.errors import AgentError
from edge.system.paths import state_folder


def sessions_folder() -> Path:
    """Where records are by default."""
    return state_folder() / "sessions"


def archive_path(record: Path) -> Path:
    """Where a sandboxed session keeps its work folder as a tar archive until edge brings it back."""
    return record.with_name(record.name + ".work.tar")


def undo_paths(record: Path) -> list[Path]:
    """The archives that undo what the session brought back, the oldest first."""
    found: list[Path] = []
    while (path := _undo_path(record, len(found) + 1)).exists():
        found.append(path)
    return found


def new_undo_path(record: Path) -> Path:
    """The place of the next archive that undoes something."""
    return _undo_path(record, len(undo_paths(record)) + 1)


def _undo_path(record: Path, number: int) -> Path:
    return record.with_name(f"{record.name}.undo-{number}.tar")


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
