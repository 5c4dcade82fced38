"""The steps that got worse, for people to read: recorded commands, both answers, and where they differ."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.compare.findings import Part, Worse
from edge.errors import ReplayError
from edge.metrics import command_units, payload
from edge.replay.rows import Key, Row, by_step, describe, read_rows, step_key, without_sample
from edge.replay.stored_result import PREVIEW, Step, whole_text
from edge.report.evidence import Run

MESSAGE = 1200  # characters of a task's last message that are shown: its end, which has the screen
# How much of an answer is compared and shown: lines, characters of a line, characters of all lines.
LINES, WIDTH, LENGTH = 80, 1000, 8000

Piece = tuple[bool, str]
"""A part of a line: whether it differs from the other side, and its text."""


@dataclass(frozen=True)
class DiffLine:
    """One line of two answers side by side; None if that side has no line here."""

    same: bool
    left: tuple[Piece, ...] | None
    right: tuple[Piece, ...] | None


@dataclass(frozen=True)
class WorseStep:
    """A step whose command F1 is lower than in the reference."""

    name: str
    reference_f1: float
    our_f1: float
    reference_first: str
    our_first: str
    wanted: tuple[str, ...]
    """The commands of the recorded answer."""
    message: str
    """The end of the last message before the answer; "" without replay rows."""
    message_cut: bool
    lines: tuple[DiffLine, ...]
    notes: tuple[str, ...]


def read_replay(path: Path | str) -> dict[Key, Row]:
    """Read replay rows, by their keys. Raises ReplayError."""
    return {row.key: row for row in read_rows(path)}


def worse_steps(
    part: Part, ours: Run, reference: Run, rows: Mapping[Key, Row] | None, limit: int
) -> tuple[WorseStep, ...]:
    """The first `limit` steps of `part.worse`, in its order. Raises ReplayError if the rows are not of these steps."""
    our_steps, base_steps = _keyed(ours.steps), _keyed(reference.steps)
    our_keys, base_keys = by_step(our_steps), by_step(base_steps)
    row_keys = by_step(rows or {})
    found = []
    for worse in part.worse[:limit]:
        key = (worse.task_id, worse.sample_idx, worse.step_idx)
        our_step = our_steps[key if key in our_steps else without_sample(key, our_keys)]
        base_step = base_steps[key if key in base_steps else without_sample(key, base_keys)]
        row = None
        if rows is not None:
            row = rows.get(key) or rows.get(without_sample(key, row_keys))
            _check_row(row, our_step, key)
        found.append(_worse_step(worse, key, our_step, base_step, row))
    return tuple(found)


def _keyed(steps: Sequence[Step]) -> dict[Key, Step]:
    return {step_key(step): step for step in steps}


def _check_row(row: Row | None, step: Step, key: Key) -> None:
    if row is None:
        raise ReplayError(
            f"the rows of --replay do not contain {describe(key)}: give the rows that were answered"
        )
    if command_units(row.ref_raw, payload(row.ref_raw)) != step["ref_command_units"]:
        raise ReplayError(
            f"{describe(key)}: the reference answer in the rows of --replay is not that of the results"
        )


def _worse_step(worse: Worse, key: Key, ours: Step, base: Step, row: Row | None) -> WorseStep:
    notes: list[str] = []
    texts = []
    for side, step in (("reference's", base), ("result's", ours)):
        text = whole_text(step)
        if text is None:
            text = step.get("pred_preview") or ""
            which = f"Only the first {PREVIEW:,} characters" if text else "No part"
            notes.append(f"{which} of the {side} answer {'are' if text else 'is'} published.")
        if step.get("closed_at_budget"):
            notes.append(f"The {side} answer used its token budget and was closed.")
        texts.append(text)
    message = _content(row.messages[-1]) if row else ""
    return WorseStep(
        name=describe(key),
        reference_f1=worse.reference_f1,
        our_f1=worse.our_f1,
        reference_first=worse.reference_first,
        our_first=worse.our_first,
        wanted=tuple(ours["ref_command_units"][:LINES]),
        message=message[-MESSAGE:],
        message_cut=len(message) > MESSAGE,
        lines=diff(*_readable(*texts)),
        notes=tuple(notes),
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _readable(left: str, right: str) -> tuple[list[str], list[str]]:
    """Both answers as lines. If both are JSON, each text value has its own lines; else the answers are unchanged."""
    values = payload(left), payload(right)
    return _lines(left, values[0], values), _lines(right, values[1], values)


def _lines(text: str, value: dict[str, Any] | None, values: tuple[object, object]) -> list[str]:
    if value is None or None in values:
        lines = text.splitlines() or ["(empty)"]
    else:
        lines = []
        for name, item in value.items():
            if name == "commands" and isinstance(item, list):
                lines.append("commands:")
                lines += [line for command in item for line in _command(command)] or ["  (none)"]
            elif isinstance(item, str):
                lines += [f"{name}:", *(f"  {line}" for line in item.splitlines() or [""])]
            else:
                lines.append(f"{name}: {_json(item)}")
    shown: list[str] = []
    for line in lines[:LINES]:
        if sum(map(len, shown)) > LENGTH:
            break
        shown.append(line if len(line) <= WIDTH else f"{line[:WIDTH]}… {len(line) - WIDTH} more characters")
    return shown if len(shown) == len(lines) else [*shown, f"… {len(lines) - len(shown)} more lines"]


def _command(command: object) -> list[str]:
    """A command as lines. A missing Enter at the end is noted, because the command then does not run."""
    keystrokes = command.get("keystrokes") if isinstance(command, dict) else None
    if not isinstance(command, dict) or not isinstance(keystrokes, str):
        return [f"  {_json(command)}"]
    rest = {name: item for name, item in command.items() if name != "keystrokes"}
    lines = keystrokes.removesuffix("\n").split("\n") if keystrokes else ["(wait)"]
    if keystrokes and not keystrokes.endswith("\n"):
        lines[-1] += "  (no Enter)"
    wait = f"  # {_json(rest['duration'])} s" if rest.keys() == {"duration"} else f"  # {_json(rest)}"
    first, *more = lines
    shown = [f"  $ {first}", *(f"    {line}" for line in more)]
    shown[-1] += wait if rest else ""
    return shown


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "(nested too deeply)"


def diff(left: Sequence[str], right: Sequence[str]) -> tuple[DiffLine, ...]:
    """Compare two texts line by line, and replaced lines word by word."""
    lines: list[DiffLine] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [DiffLine(True, ((False, line),), ((False, line),)) for line in left[a:b]]
            continue
        ours, theirs = list(left[a:b]), list(right[c:d])
        for index in range(max(len(ours), len(theirs))):
            before = ours[index] if index < len(ours) else None
            after = theirs[index] if index < len(theirs) else None
            if before is not None and after is not None:
                lines.append(DiffLine(False, *_words(before, after)))
            else:
                lines.append(
                    DiffLine(
                        False,
                        None if before is None else ((True, before),),
                        None if after is None else ((True, after),),
                    )
                )
    return tuple(lines)


def _words(before: str, after: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    ours, theirs = re.findall(r"\s+|\w+|.", before, re.DOTALL), re.findall(r"\s+|\w+|.", after, re.DOTALL)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    if matcher.ratio() < 0.4:  # too few common words: marks on every second word would not help
        return ((True, before),), ((True, after),)
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        left.append((tag != "equal", "".join(ours[a:b])))
        right.append((tag != "equal", "".join(theirs[c:d])))
    return tuple(piece for piece in left if piece[1]), tuple(piece for piece in right if piece[1])
