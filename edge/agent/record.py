"""The session record: a file of replay rows, one for each action, written before edge types the action.

`edge eval`, `edge imatrix` and `edge report` read these rows. `messages` is what the model saw, `ref_raw` is what edge
typed. The field `session` holds what other replay rows do not have: the facts of the session in the first row, and the
facts of the step in each row. A refused action does not become a row; it is in the messages of the next row.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, cast

from edge.agent.kept import sessions_folder
from edge.agent.proposal import ActionFields, CommandFields
from edge.agent.seal import lines_are_sealed, seal_line, session_key
from edge.errors import AgentError
from edge.metrics import command_units
from edge.prompt import Message
from edge.replay.rows import read_lines, read_rows
from edge.system.files import BINARY, NO_LINK, make_private, whole_file, write_all
from edge.system.locks import try_lock

SOURCE = "edge agent"
SCHEMA_VERSION = 1
"""Version of the record's schema. A record without the field is of edge 0.2.0 or older, and has the same fields."""


class ModelFacts(TypedDict, total=False):
    """Which model a session uses: a GGUF, or a model behind a server."""

    model: str
    """Absolute path of the GGUF."""
    adapters: list[str]
    """LoRA adapters of the model, each FILE or FILE:SCALE with an absolute path."""
    server: str
    """URL of the server, if the model is behind one."""
    served_model: str
    """Name of the model on that server."""


class SessionFacts(ModelFacts):
    """The facts of a whole session; the first row holds them. `workdir` is an absolute path."""

    task: str
    """The task that the person gave."""
    workdir: NotRequired[str]
    """Absolute path of the work folder."""
    sandbox: NotRequired[bool]
    """Whether the session ran in the sandbox."""
    own_files: NotRequired[list[str]]
    """Absolute paths of the session's other files: edge never brings them back."""
    id: NotRequired[str]
    """Random name of the session. The seals of its rows and of its archive contain it."""
    schema_version: NotRequired[int]
    """Version of the record's schema."""


class StepFacts(TypedDict, total=False):
    """The facts of one step.

    `model_answer`: the model's version of an action that the person edited. `waited`: added when the session ends.
    """

    time: str
    """When edge typed the action (ISO 8601)."""
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens of the answer."""
    waited: list[float]
    """Seconds that edge waited after each command; the durations are what the model said. Absent after a crash."""
    model_answer: str
    """The model's version of an action that the person edited."""


class SessionField(StepFacts, total=False):
    """The field `session` of a row.

    The first row also has the SessionFacts. The last row has `outcome`, and in `output` the last text of the terminal.
    """

    task: str
    """The task that the person gave; first row."""
    model: str
    """Absolute path of the GGUF; first row."""
    adapters: list[str]
    """LoRA adapters of the model, each FILE or FILE:SCALE with an absolute path; first row."""
    server: str
    """URL of the server, if the model is behind one; first row."""
    served_model: str
    """Name of the model on that server; first row."""
    workdir: str
    """Absolute path of the work folder; first row."""
    sandbox: bool
    """Whether the session ran in the sandbox; first row."""
    own_files: list[str]
    """Absolute paths of the session's other files, such as its allowlist; first row."""
    id: str
    """Random name of the session, which its seals contain; first row."""
    schema_version: int
    """Version of the record's schema; first row."""
    outcome: str
    """How the session ended; last row."""
    output: str
    """The last text of the terminal; last row."""


class RecordRow(TypedDict):
    """One row of a session record."""

    task_id: str
    """Name of the record."""
    sample_idx: int
    """Always 0."""
    step_idx: int
    """Number of the action, from 0."""
    total_steps: int | None
    """Number of actions; null until the session ends."""
    is_final_step: bool
    """Whether this is the last action."""
    source: str
    """Always edge agent."""
    source_group: str
    """Always edge agent."""
    messages: list[Message]
    """What the model read."""
    ref_raw: str
    """The action that edge typed, as JSON text."""
    ref_parse_ok: bool
    """Always true."""
    ref_analysis: str
    """Its analysis."""
    ref_plan: str
    """Its plan."""
    ref_task_complete: bool
    """Its task_complete."""
    ref_commands: list[CommandFields]
    """Its commands."""
    ref_command_units: list[str]
    """Its command lines, as the scorer reads them."""
    session: SessionField
    """Facts of the session and of the step."""
    seal: NotRequired[str]
    """HMAC-SHA256 of the row and of the seal before it, with a key of this account: `--resume` checks it."""


def new_record_path(task: str) -> Path:
    """The default path of a record: in the user's state folder, named by the time and the first words of the task.

    A number follows if another session began in the same second: its files have names that begin like its record's.
    """
    words = "-".join(re.findall("[a-z0-9]+", task.lower())[:6])[:40] or "task"
    folder, first = sessions_folder(), f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
    names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
    return folder / f"{next(name for name in names if not any(folder.glob(f'{name}.*')))}.jsonl"


@dataclass
class Record:
    """A session record that only this process may write. Make it with `create` or `resume`; `with` closes it."""

    path: Path
    facts: SessionFacts
    rows: list[RecordRow]
    """Without their seals."""
    _descriptor: int
    _seal: bytes = b""  # of the last row
    last_written: int = 0
    """When the last row of a resumed session was written, in nanoseconds; 0 if a torn row followed it."""

    @classmethod
    def create(cls, path: Path, facts: SessionFacts) -> Self:
        """Begin a record. Raises AgentError if the file exists or cannot be written."""
        with _one_line_errors(path, "cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | NO_LINK | BINARY
            descriptor = os.open(path, flags, 0o600)
        record = cls(
            path, {**facts, "id": secrets.token_hex(16), "schema_version": SCHEMA_VERSION}, [], descriptor
        )
        try:
            record._lock()
            record.key("record")  # a key that cannot be read shows before the model works
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return record

    @classmethod
    def resume(cls, path: Path, *, completed: bool = False) -> Self:
        """Open a record to continue it. Cuts off a last row that a killed process did not write whole.

        `completed`: accept a session whose task is complete. Raises AgentError or ReplayError if the file is not a
        session record that edge wrote on this account, another process writes it, or its task is complete.
        """
        with _one_line_errors(path, "cannot be read"):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | NO_LINK | BINARY)
        try:
            record = cls(path, {"task": ""}, [], descriptor)
            record._lock()
            with _one_line_errors(path, "cannot be read"):
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode):
                    raise AgentError(f"{path}: is not a file")
                data = Path(path).read_bytes()
            # Check everything before the file is cut: it may be any file of the user.
            record.facts = _facts(path, data)
            read_rows(path, torn=True)
            record.rows = [_row(fields, f"{path}:{line}") for line, fields in read_lines(path, torn=True)]
            for row in record.rows:
                row.pop("seal", None)
            whole = data.rfind(b"\n") + 1
            record._check_seals(data[:whole])
            if whole < len(data):
                with _one_line_errors(path, "cannot be written"):
                    os.truncate(descriptor, whole)
            else:
                record.last_written = state.st_mtime_ns
            if record.outcome == "complete" and not completed:
                raise AgentError(f"{path}: its task was completed; start a new session")
        except BaseException:
            os.close(descriptor)
            raise
        return record

    @property
    def outcome(self) -> str | None:
        """How the session ended; None if it did not end, for example after a crash."""
        return self.rows[-1]["session"].get("outcome") if self.rows else None

    def append(self, messages: Sequence[Message], raw: str, action: ActionFields, step: StepFacts) -> None:
        """Write what the model saw, and what edge is about to type: `raw`, and its parsed fields `action`.

        The row is on disk when this returns. Raises AgentError if it cannot be written, for example on a full disk;
        the file then is as before.
        """
        row: RecordRow = {
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
            "session": cast(SessionField, {**({} if self.rows else self.facts), **step}),
        }
        begin = os.fstat(self._descriptor).st_size
        line, seal = self._sealed(row, self._seal)
        with _one_line_errors(self.path, "cannot be written"):
            try:
                write_all(self._descriptor, line)
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self._descriptor, begin)
                raise
        self.rows.append(row)
        self._seal = seal

    def add_waits(self, waits: Sequence[float]) -> None:
        """Add to the last row how long edge waited after each command; `finish` writes it."""
        self.rows[-1]["session"]["waited"] = list(waits)

    def key(self, what: str) -> bytes:
        """The key of this session for one kind of its files. Raises AgentError."""
        return session_key(self.facts.get("id", ""), what)

    def _sealed(self, row: RecordRow, before: bytes) -> tuple[bytes, bytes]:
        """The line of a row, and its seal."""
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
        line, seal = seal_line(text, before, self.key("record"))
        return line + b"\n", seal

    def _check_seals(self, lines: bytes) -> None:
        seal = lines_are_sealed(lines.split(b"\n")[:-1], self.key("record")) if self.facts.get("id") else None
        if seal is None:
            raise AgentError(
                f"{self.path}: edge did not write it on this account, or it changed since: start a new session"
            )
        self._seal = seal

    def finish(self, outcome: str, output: str) -> None:
        """Write how the session ended, the last text of the terminal, and the number of steps into the rows.

        Removes a record without rows. Raises AgentError if the file cannot be written.
        """
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        for row in self.rows:
            row["total_steps"] = len(self.rows)
            row["is_final_step"] = row is self.rows[-1]
            row["session"].pop("outcome", None)
        self.rows[-1]["session"] |= {"outcome": outcome, "output": output}
        renamed = self._descriptor
        with _one_line_errors(self.path, "cannot be written"), whole_file(self.path) as (_, descriptor):
            make_private(descriptor)
            seal = b""
            for row in self.rows:
                line, seal = self._sealed(row, seal)
                write_all(descriptor, line)
            if sys.platform != "win32":  # this keeps the lock of the new file
                renamed = os.dup(descriptor)
        if renamed != self._descriptor:
            os.close(self._descriptor)
            self._descriptor = renamed

    def close(self) -> None:
        """Close the file and release its lock."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        """Lock the file. A process that ended since this one opened it may have put another one in its place."""
        locked, mine = try_lock(self._descriptor), os.fstat(self._descriptor)
        with _one_line_errors(self.path, "cannot be read"):
            named = os.stat(self.path)
        if locked is False or (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino):
            raise AgentError(f"{self.path}: Another edge agent is using this session.")


def _facts(path: Path, data: bytes) -> SessionFacts:
    """The facts of the whole session from the first row of its file. Raises AgentError if there are none."""
    if not data:
        raise AgentError(
            f"{path}: is empty: its session ended before edge typed anything; remove it and start a new session"
        )
    line, end, _ = data.partition(b"\n")
    try:
        row = json.loads(line) if end else None
    except (ValueError, RecursionError):
        row = None
    facts = row.get("session") if isinstance(row, dict) and row.get("source") == SOURCE else None
    if not isinstance(facts, dict) or not isinstance(facts.get("task"), str):
        raise AgentError(f"{path}: is not a session record; start a new session")
    for name in ("model", "workdir", "id", "server", "served_model"):
        if not isinstance(facts.get(name, ""), str):
            raise AgentError(f"{path}: is damaged: {name} of its session is not text")
    for name in ("adapters", "own_files"):
        texts = facts.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise AgentError(f"{path}: is damaged: {name} of its session is not a list of texts")
    version = facts.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise AgentError(
            f"{path}: has schema version {str(version)[:20]}; this edge reads up to {SCHEMA_VERSION}: update edge"
        )
    return cast(SessionFacts, facts)


def _row(fields: dict[str, Any], where: str) -> RecordRow:
    """A row that `Record.append` has written. Raises AgentError for another one."""
    if not isinstance(fields.get("session"), dict) or not isinstance(fields.get("messages"), list):
        raise AgentError(f"{where}: is not a row of a session record")
    return cast(RecordRow, fields)


@contextlib.contextmanager
def _one_line_errors(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError into an AgentError of one line."""
    try:
        yield
    except FileExistsError:
        raise AgentError(
            f"{path}: already exists; continue its session with --resume, or choose another --record"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AgentError(f"{path}: is a symbolic link; name the file itself") from None
        raise AgentError(f"{path}: {what}: {error.strerror or error}") from None
