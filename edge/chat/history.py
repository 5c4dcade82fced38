"""The lines that a person typed in earlier sessions, for the arrow keys: a file in the user's state folder."""

import contextlib
import json
import os
from pathlib import Path

from edge.system.files import BINARY, make_private, whole_file, write_at
from edge.system.paths import state_folder

MOST_ENTRIES = 1000


class History:
    """The entries of earlier sessions; a file that cannot be read or written is not an error.

    The file has one JSON string on each line. Each entry is added when it is typed, so sessions may run in parallel.
    Only the user may read the file: each session takes the rights of others away.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = state_folder() / "chat_history" if path is None else path
        self.entries = self._read()

    def add(self, entry: str) -> None:
        """Remember an entry, unless it is empty or the same as the one before."""
        if not entry.strip() or self.entries[-1:] == [entry]:
            return
        self.entries.append(entry)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY
            descriptor = os.open(self.path, flags, 0o600)
            try:
                make_private(descriptor)  # the file may have been there before
                os.write(descriptor, _line(entry))
            finally:
                os.close(descriptor)

    def _read(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                with contextlib.suppress(OSError):  # a file of another user
                    make_private(file.fileno())
                lines = file.read().splitlines()
        except OSError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):  # a torn line, or a file of another program
                entry = json.loads(line)
                if isinstance(entry, str):
                    entries.append(entry)
        if len(lines) > 2 * MOST_ENTRIES:
            entries = entries[-MOST_ENTRIES:]
            with contextlib.suppress(OSError), whole_file(self.path) as (_, descriptor):
                make_private(descriptor)
                write_at(descriptor, memoryview(b"".join(map(_line, entries))), 0)
        return entries[-MOST_ENTRIES:]


def _line(entry: str) -> bytes:
    return json.dumps(entry).encode() + b"\n"
