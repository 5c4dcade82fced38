"""Read replay rows: recorded steps of terminal sessions, each with the messages for the model and a reference answer.

JSON Lines in UTF-8, one row a step, in the published format. The reader is strict: a damaged row raises ReplayError
with the file and the line, before the evaluation starts. docs/formats.md describes the format for people.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import orjson

from edge.errors import ReplayError
from edge.prompt import Message, Messages
from edge.replay.stored_result import KeyFields
from edge.system.text import counted
from edge.system.typed_json import Rule, problems

Key = tuple[str, int, int]
"""(task_id, sample_idx, step_idx): identifies a step in rows, predictions and results."""


class RowFields(KeyFields):
    """A line of a --replay file: a recorded step, with the messages for the model and the reference answer.

    edge ignores other fields, also the published `ref_*` fields: it parses `ref_raw` itself.
    """

    messages: NotRequired[Messages | None]
    """What the model reads. Each task's messages begin with those of its step before."""
    prompt: NotRequired[object]
    """A text that becomes one user message. edge reads it only if there are no messages."""
    ref_raw: str
    """The reference answer: an action as JSON text, possibly after a thought in <think>…</think>."""
    total_steps: NotRequired[int | None]
    """Number of steps of the task; only shown to people."""
    source: NotRequired[str | None]
    """Where the row comes from."""
    source_group: NotRequired[str | None]
    """Group for by_source_group of a result. Default: the source, else "unknown"."""


RowLine = Annotated[
    RowFields,
    Rule(
        "an object with messages, or with a prompt that is a string",
        lambda row: row.get("messages") is not None or isinstance(row.get("prompt"), str),
        {
            "anyOf": [
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
            ]
        },
    ),
]
"""A line of a --replay file with all its rules."""


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
        """What is unique in a file: task, sample and step."""
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


def read_rows(
    path: Path | str, limit: int | None = None, *, torn: bool = False, schema: str = "replay-row"
) -> list[Row]:
    """The rows of a file, in file order. With `limit`, only the first rows; the rest of the file is not read.

    The `prompt` of a row without `messages` becomes a single user message; otherwise `prompt` is ignored. Defaults:
    `sample_idx` 0, `source_group` the `source`. `torn` and `schema` are as in `read_lines`. Raises ReplayError.
    """
    if limit is not None and limit < 1:
        raise ReplayError(f"{path}: the limit is {limit}; it must be at least 1")
    rows: list[Row] = []
    for line in row_lines(path, torn=torn, schema=schema):
        if line.row is None:
            raise ReplayError(f"{path}:{line.number}: {line.problems[0]} ({see(schema)})")
        rows.append(line.row)
        if len(rows) == limit:
            break
    if not rows:
        raise ReplayError(f"{path}: contains no rows ({see(schema)})")
    return rows


@dataclass(frozen=True)
class ReadLine:
    """A line of a --replay file that is not blank: its number from 1, and its row, or what is wrong with it."""

    number: int
    row: Row | None
    problems: tuple[str, ...]
    fields: Mapping[str, Any]
    """All fields of the line; empty if it is not a JSON object."""


def row_lines(
    path: Path | str, lines: Iterable[bytes] | None = None, *, torn: bool = False, schema: str = "replay-row"
) -> Iterator[ReadLine]:
    """Each line of a --replay file that is not blank, with all its problems.

    `lines`: those of an open stream, which `path` only names. `torn` and `schema` are as in `read_lines`. Raises
    ReplayError if the file cannot be read.
    """
    seen: dict[Key, int] = {}
    for number, fields in _lines(path, schema, lines, strict=True, torn=torn):
        if isinstance(fields, str):
            yield ReadLine(number, None, (fields,), {})
            continue
        found = tuple(problems(fields, RowLine))
        if found:
            yield ReadLine(number, None, found, fields)
            continue
        row = _row(fields)
        first = seen.setdefault(row.key, number)
        if first != number:
            twice = f"duplicate row for {describe(row.key)}; the first is in line {first}"
            yield ReadLine(number, None, (twice,), fields)
            continue
        yield ReadLine(number, row, (), fields)


def see(schema: str) -> str:
    """The words of an error line that name the description of a format (edge/schemas.py)."""
    return f"see `edge schema {schema}`"


def read_lines(
    path: Path | str, *, schema: str = "replay-row", strict: bool = True, torn: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number (from 1) and the JSON object of each line that is not blank. Raises ReplayError.

    `schema`: the name of the format, for error lines. `strict` False permits NaN and half surrogate pairs, which
    Python's json module writes. `torn` leaves out a damaged last line without a line break: its writer was interrupted.
    """
    for number, fields in _lines(path, schema, strict=strict, torn=torn):
        if isinstance(fields, str):
            raise ReplayError(f"{path}:{number}: {fields} ({see(schema)})")
        yield number, fields


def _lines(
    path: Path | str, schema: str, lines: Iterable[bytes] | None = None, *, strict: bool, torn: bool
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number and the JSON object of each line that is not blank, or what is wrong with the line."""
    try:
        with Path(path).open("rb") if lines is None else contextlib.nullcontext(lines) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                    fields = orjson.loads(text) if strict else json.loads(text)
                except (ValueError, RecursionError) as error:
                    if torn and not line.endswith(b"\n"):
                        return
                    if number == 1 and line.strip() in (b"[", b"{") and _is_one_value(Path(path)):
                        yield (
                            1,
                            "not JSON Lines: the file is one JSON value over several lines; write each row on one",
                        )
                        return
                    yield number, _not_json(error)
                    continue
                yield number, fields if isinstance(fields, dict) else _no_object(fields)
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror or error} ({see(schema)})") from None


def _not_json(error: ValueError | RecursionError) -> str:
    """What is wrong with a line that is not JSON, with its place in the line."""
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start + 1} of the line)"
    if isinstance(error, json.JSONDecodeError):  # also orjson's
        return f"not JSON at column {error.pos + 1}: {error.msg}"
    return "not JSON: " + ("nested too deeply" if isinstance(error, RecursionError) else str(error))


def _no_object(value: object) -> str:
    kind = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
    return f"not a JSON object but {kind}"


def _is_one_value(path: Path) -> bool:
    """Whether a whole file is one JSON list or object: a common mistake. Does not read pipes a second time."""
    try:
        return path.is_file() and isinstance(orjson.loads(path.read_bytes()), list | dict)
    except (OSError, ValueError):
        return False


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


def _row(fields: Mapping[str, Any]) -> Row:
    """The row of a line without problems."""
    source = fields.get("source") or ""
    messages = fields.get("messages")
    return Row(
        fields["task_id"],
        fields.get("sample_idx") or 0,
        fields["step_idx"],
        total_steps=fields.get("total_steps"),
        source=source,
        source_group=fields.get("source_group") or source or "unknown",
        messages=[{"role": "user", "content": fields["prompt"]}] if messages is None else messages,
        ref_raw=fields["ref_raw"],
    )


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256, in hexadecimal, of rows in their order. It does not depend on file names or white space."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json_bytes(asdict(row)) + b"\n")
    return digest.hexdigest()


def json_bytes(value: object) -> bytes:
    """A value as compact JSON in UTF-8; half surrogate pairs become three bytes each."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def same_rows(rows: Sequence[Row], calibrated_on: Path | str) -> str | None:
    """In words, how many of `rows` are also in the file that a model was calibrated on; None if none is.

    Raises ReplayError if the file cannot be read.
    """
    known = {row_sha256(row) for row in read_rows(calibrated_on)}
    same = sum(row_sha256(row) in known for row in rows)
    if not same:
        return None
    return f"{calibrated_on}: {same} of the {counted(len(rows), 'row')} to judge by are also in these calibration rows"
