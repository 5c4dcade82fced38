"""Read replay rows: recorded steps of terminal sessions, each with the messages for the model and a reference answer.

JSON Lines in UTF-8, one row a step, in the published format. The reader is strict: a damaged row raises ReplayError
with the file and the line, before the evaluation starts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import orjson

from edge.errors import PromptError, ReplayError
from edge.prompt import Message, check_messages
from edge.replay.stored_result import KeyFields
from edge.system.typed_json import check

Key = tuple[str, int, int]
"""(task_id, sample_idx, step_idx): identifies a step in rows, predictions and results."""


class _RowFields(KeyFields):
    """The fields of a row that edge reads."""

    total_steps: NotRequired[int | None]
    source: NotRequired[str | None]
    source_group: NotRequired[str | None]
    messages: NotRequired[object]
    prompt: NotRequired[object]
    ref_raw: str


class _Prompt(TypedDict):
    prompt: str


@dataclass(frozen=True)
class Row:
    """One step. edge reads no `ref_*` field except `ref_raw`: the scorer parses `ref_raw` itself."""

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
    """SHA-256, in hexadecimal, of the content of a row: its messages and `ref_raw`.

    It is the hash of JSON text in UTF-8 with sorted keys and without white space, so the spelling in the file does not
    matter.
    """
    value = {"messages": row.messages, "ref_raw": row.ref_raw}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(key: Key) -> str:
    """A step for people: `task-000 step 3`, with the sample if it is not sample 0."""
    task_id, sample_idx, step_idx = key
    return f"{task_id} step {step_idx}" + (f" sample {sample_idx}" if sample_idx else "")


def read_rows(path: Path | str, limit: int | None = None, *, torn: bool = False) -> list[Row]:
    """The rows of a file, in file order. With `limit`, only the first rows; the rest of the file is not read.

    The `prompt` of a row without `messages` becomes a single user message; otherwise `prompt` is ignored. Defaults:
    `sample_idx` 0, `source_group` the `source`. `torn` is as in `read_lines`. Raises ReplayError.
    """
    if limit is not None and limit < 1:
        raise ReplayError(f"{path}: the limit is {limit}; it must be at least 1")
    rows: list[Row] = []
    seen: dict[Key, int] = {}
    for line, value in read_lines(path, torn=torn):
        where = f"{path}:{line}"
        fields = check(value, _RowFields, where, ReplayError)
        key = step_key(fields)
        if key in seen:
            raise ReplayError(f"{where}: duplicate row for {describe(key)}; the first is in line {seen[key]}")
        seen[key] = line
        source = fields.get("source") or ""
        rows.append(
            Row(
                *key,
                total_steps=fields.get("total_steps"),
                source=source,
                source_group=fields.get("source_group") or source or "unknown",
                messages=_messages(fields, where),
                ref_raw=fields["ref_raw"],
            )
        )
        if len(rows) == limit:
            break
    if not rows:
        raise ReplayError(f"{path}: contains no rows")
    return rows


def read_lines(
    path: Path | str, *, strict: bool = True, torn: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number (from 1) and the JSON object of each line that is not blank. Raises ReplayError.

    `strict` False permits NaN and half surrogate pairs, which Python's json module writes. `torn` leaves out a damaged
    last line without a line break: its writer was interrupted.
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


def step_key(fields: KeyFields) -> Key:
    """The key of the step that checked fields belong to; sample 0 where sample_idx is missing."""
    return (fields["task_id"], fields.get("sample_idx") or 0, fields["step_idx"])


def by_step(keys: Iterable[Key]) -> dict[tuple[str, int], list[Key]]:
    """Keys by (task_id, step_idx); several keys where a task was sampled several times."""
    steps: dict[tuple[str, int], list[Key]] = {}
    for key in keys:
        steps.setdefault((key[0], key[2]), []).append(key)
    return steps


def without_sample(key: Key, steps: Mapping[tuple[str, int], list[Key]]) -> Key:
    """The key of a step that was given without its sample_idx: the only sample in `steps`, else sample 0."""
    samples = steps.get((key[0], key[2]), [])
    return samples[0] if len(samples) == 1 else key


def _messages(fields: _RowFields, where: str) -> list[Message]:
    messages = fields.get("messages")
    if messages is None:
        if "prompt" not in fields:
            raise ReplayError(f"{where}: messages is missing, and there is no prompt either")
        messages = [{"role": "user", "content": check(fields, _Prompt, where, ReplayError)["prompt"]}]
    try:
        return check_messages(messages)
    except PromptError as error:
        raise ReplayError(f"{where}: {error}") from None


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256, in hexadecimal, of rows in their order. It does not depend on file names or white space."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json_bytes(asdict(row)) + b"\n")
    return digest.hexdigest()


def json_bytes(value: object) -> bytes:
    """A value as compact JSON in UTF-8; half surrogate pairs become three bytes each."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
