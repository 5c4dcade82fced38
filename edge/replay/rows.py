"""Replay rows: recorded steps of terminal sessions, each with the messages the model sees and a reference answer.

JSON Lines in UTF-8, one row a step, in the published format. Read strictly: a row that is damaged stops the
evaluation before it begins, in one line that names the file and the line.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from edge.errors import PromptError, ReplayError
from edge.prompt import Message, check_messages

Key = tuple[str, int, int]
"""(task_id, sample_idx, step_idx): what names a step in rows, predictions and results."""


@dataclass(frozen=True)
class Row:
    """One step. The `ref_*` fields other than `ref_raw` are not read: the scorer parses `ref_raw` itself."""

    task_id: str
    sample_idx: int
    step_idx: int
    total_steps: int | None
    source: str
    source_group: str
    messages: list[Message]
    ref_raw: str

    @property
    def key(self) -> Key:
        return (self.task_id, self.sample_idx, self.step_idx)


def row_sha256(row: Row) -> str:
    """SHA-256 in hexadecimal of what a row asks and what it expects: its messages and `ref_raw`.

    Of JSON text in UTF-8 with sorted keys and without white space, so that a file's own spelling is not in it.
    """
    value = {"messages": row.messages, "ref_raw": row.ref_raw}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(key: Key) -> str:
    """A step for people: `task-000 step 3`, with the sample where there is more than one."""
    task_id, sample_idx, step_idx = key
    return f"{task_id} step {step_idx}" + (f" sample {sample_idx}" if sample_idx else "")


def read_rows(path: Path | str, limit: int | None = None, *, torn: bool = False) -> list[Row]:
    """The rows of a file, in its order; with `limit` the first so many (the rest is not looked at). `torn`: as in
    `read_lines`.

    A row without `messages` has its `prompt` as a single user message; with them its `prompt` is never used.
    `sample_idx` is 0 and `source_group` the `source` where missing. Raises ReplayError.
    """
    if limit is not None and limit < 1:
        raise ReplayError(f"{path}: a limit of {limit} leaves no rows: give at least 1")
    rows: list[Row] = []
    seen: dict[Key, int] = {}
    for line, fields in read_lines(path, torn=torn):
        where = f"{path}:{line}"
        key = read_key(fields, where)
        if key in seen:
            raise ReplayError(f"{where}: {describe(key)} is there twice, first in line {seen[key]}")
        seen[key] = line
        source = _optional(fields, "source", str, where) or ""
        rows.append(
            Row(
                *key,
                total_steps=_optional(fields, "total_steps", int, where),
                source=source,
                source_group=_optional(fields, "source_group", str, where) or source or "unknown",
                messages=_messages(fields, where),
                ref_raw=text_field(fields, "ref_raw", where),
            )
        )
        if len(rows) == limit:
            break
    if not rows:
        raise ReplayError(f"{path}: holds no rows")
    return rows


def read_lines(
    path: Path | str, *, strict: bool = True, torn: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number (from 1) and JSON object; blank lines are left out. Raises ReplayError.

    Not `strict`: NaN and half surrogate pairs are let through, as Python's own json module writes them. `torn`: a last
    line that was not written whole, and so has no line break, is left out.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                try:
                    text = line.decode("utf-8")
                    fields = orjson.loads(text) if strict else json.loads(text)
                except (ValueError, RecursionError) as error:
                    if torn and not line.endswith(b"\n"):
                        return
                    if isinstance(error, UnicodeDecodeError):
                        raise ReplayError(f"{path}:{number}: is not UTF-8 text") from None
                    raise ReplayError(f"{path}:{number}: not JSON: {error}") from None
                if not isinstance(fields, dict):
                    raise ReplayError(f"{path}:{number}: not a JSON object")
                yield number, fields
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror}") from None


def read_key(fields: dict[str, Any], where: str) -> Key:
    """The step that a row or prediction is about. `where` is file:line. Raises ReplayError."""
    task_id = fields.get("task_id")
    if not isinstance(task_id, str) or not task_id:
        raise ReplayError(f"{where}: {_state(fields, 'task_id')}: it must be a text")
    numbers = []
    for name in ("sample_idx", "step_idx"):
        number = fields.get(name)
        if number is None and name == "sample_idx":
            number = 0
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ReplayError(f"{where}: {_state(fields, name)}: it must be a whole number from 0")
        numbers.append(number)
    return (task_id, numbers[0], numbers[1])


def by_step(keys: Iterable[Key]) -> dict[tuple[str, int], list[Key]]:
    """Keys by (task_id, step_idx): more than one where a task was sampled several times."""
    steps: dict[tuple[str, int], list[Key]] = {}
    for key in keys:
        steps.setdefault((key[0], key[2]), []).append(key)
    return steps


def without_sample(key: Key, steps: Mapping[tuple[str, int], list[Key]]) -> Key:
    """What a step that was given without its sample_idx means: the only sample of it in `steps`, else sample 0."""
    found = steps.get((key[0], key[2]), [])
    return found[0] if len(found) == 1 else key


def text_field(fields: dict[str, Any], name: str, where: str) -> str:
    """The text under `name`, which must be there. Raises ReplayError."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise ReplayError(f"{where}: {_state(fields, name)}: it must be a text")
    return value


def _state(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return f"{name} is missing"
    return f"{name} is null" if fields[name] is None else f"{name} is {str(fields[name])[:40]!r}"


def _optional(fields: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = fields.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        what = "text" if kind is str else "whole number"
        raise ReplayError(f"{where}: {_state(fields, name)}: it must be a {what} or left out")
    return value


def _messages(fields: dict[str, Any], where: str) -> list[Message]:
    messages = fields.get("messages")
    if messages is None:
        if "prompt" not in fields:
            raise ReplayError(f"{where}: messages is missing, and there is no prompt either")
        messages = [{"role": "user", "content": text_field(fields, "prompt", where)}]
    try:
        return check_messages(messages)
    except PromptError as error:
        raise ReplayError(f"{where}: {error}") from None


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256 in hexadecimal of rows as they were read, in their order: file names and white space are not in it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json_bytes(asdict(row)) + b"\n")
    return digest.hexdigest()


def json_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
