"""An agent's session on disk: replay rows, one for each action, written before the action is typed.

The rows are those of `edge eval`, `edge imatrix` and `edge report`: `messages` is what the model saw, `ref_raw` what
was typed. What only a session knows stands under `session`: in the first row the whole of it, then each step's own.
Actions that were refused are no rows; they stand in the next row's messages.
"""

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge.errors import AgentError
from edge.metrics import command_units
from edge.prompt import Message
from edge.replay.rows import read_lines, read_rows
from edge.system.files import BINARY, NO_LINK, make_private, whole_file
from edge.system.locks import try_lock
from edge.system.paths import state_folder

SOURCE = "edge agent"


def new_record_path(task: str) -> Path:
    """Where a session is kept if no place is named: the user's state folder, by its time and its task's first words."""
    words = "-".join(re.findall("[a-z0-9]+", task.lower())[:6])[:40]
    return state_folder() / "sessions" / f"{time.strftime('%Y%m%d-%H%M%S')}-{words or 'task'}.jsonl"


@dataclass
class Record:
    """A session's file, open for this process alone. Made by `create` or `resume`, closed at the end of its `with`."""

    path: Path
    facts: dict[str, Any]
    """Of the whole session: task, model, work folder, how it was begun."""
    rows: list[dict[str, Any]]
    _descriptor: int
    last_written: int = 0
    """When the last row of a resumed session was, in nanoseconds; 0 where the next one was begun, too."""

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> Self:
        """Begin a record. Raises AgentError where one is there already, or the place cannot be written."""
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | NO_LINK | BINARY
            descriptor = os.open(path, flags, 0o600)
        record = cls(path, dict(facts), [], descriptor)
        record._lock()
        return record

    @classmethod
    def resume(cls, path: Path, *, completed: bool = False) -> Self:
        """Go on with a record. A row that was being written when the process ended is cut off.

        Raises AgentError where it is no record of an agent, another process is writing it, or its task is done: unless
        that is `completed`.
        """
        with _told(path, "cannot be read"):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | NO_LINK | BINARY)
        record = cls(path, {}, [], descriptor)
        try:
            record._lock()
            with _told(path, "cannot be read"):
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode):
                    raise AgentError(f"{path}: is no file")
                data = Path(path).read_bytes()
            record.facts = _facts(path, data)  # before anything is cut: it may be any file
            read_rows(path, torn=True)  # each row is one
            record.rows = [fields for _, fields in read_lines(path, torn=True)]
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                with _told(path):
                    os.truncate(descriptor, whole)
            else:
                record.last_written = state.st_mtime_ns
            if record.outcome == "complete" and not completed:
                raise AgentError(f"{path}: its task was completed; begin a new session")
        except BaseException:
            record.close()
            raise
        return record

    @property
    def outcome(self) -> str | None:
        """How the session ended; None where it did not, as after a crash."""
        last = self.rows[-1]["session"] if self.rows else {}
        return last.get("outcome") if isinstance(last, dict) else None

    def append(
        self, messages: Sequence[Message], raw: str, action: Mapping[str, Any], step: Mapping[str, Any]
    ) -> None:
        """Keep what the model saw, and what is about to be typed: `raw`, whose parsed fields are `action`.

        `step`: what else is to be known of it. It is on disk on return. Raises AgentError where the disk is full.
        """
        own = dict(step) if self.rows else self.facts | dict(step)
        row = {
            "task_id": self.path.stem,
            "sample_idx": 0,
            "step_idx": len(self.rows),
            "total_steps": None,
            "is_final_step": False,
            "source": SOURCE,
            "source_group": SOURCE,
            "messages": list(messages),
            "ref_raw": raw,
            "ref_parse_ok": True,
            "ref_analysis": action["analysis"],
            "ref_plan": action["plan"],
            "ref_task_complete": action["task_complete"],
            "ref_commands": action["commands"],
            "ref_command_units": command_units(raw, dict(action)),
            "session": own,
        }
        line = _line(row)
        begin = os.fstat(self._descriptor).st_size
        with _told(self.path):
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self._descriptor, begin)
                raise
        self.rows.append(row)

    def finish(self, outcome: str, output: str) -> None:
        """Write down how it ended and what the terminal showed last; rows then know how many they are.

        Without a row the file is removed. Raises AgentError.
        """
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        for row in self.rows:
            row["total_steps"] = len(self.rows)
            row["is_final_step"] = row is self.rows[-1]
            row["session"].pop("outcome", None)
        self.rows[-1]["session"] |= {"outcome": outcome, "output": output}
        with _told(self.path), whole_file(self.path) as (_, descriptor):
            make_private(descriptor)
            for row in self.rows:
                line = _line(row)
                while line:
                    line = line[os.write(descriptor, line) :]

    def close(self) -> None:
        """Let others at it."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        if try_lock(self._descriptor) is False:
            raise AgentError(f"{self.path}: another edge agent is at this session")


def _facts(path: Path, data: bytes) -> dict[str, Any]:
    """What the first row of a session's file tells of the whole session. Raises AgentError where it is none."""
    if not data:
        raise AgentError(
            f"{path}: is empty, its session ended before it typed anything: remove it, and begin anew"
        )
    line, end, _ = data.partition(b"\n")
    try:
        row = json.loads(line) if end else None
    except (ValueError, RecursionError):
        row = None
    facts = row.get("session") if isinstance(row, dict) and row.get("source") == SOURCE else None
    if not isinstance(facts, dict) or not isinstance(facts.get("task"), str):
        raise AgentError(f"{path}: holds no session to go on with: begin a new one")
    return facts


@contextlib.contextmanager
def _told(path: Path, what: str = "cannot be written") -> Any:
    try:
        yield
    except FileExistsError:
        raise AgentError(
            f"{path}: is there already: go on with it by --resume, or choose another --record"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AgentError(f"{path}: is a symbolic link: name the file itself") from None
        raise AgentError(f"{path}: {what}: {error.strerror or error}") from None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
