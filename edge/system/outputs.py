"""Files that a command writes: never one of its inputs, and the output of another run only if the user says so."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edge.errors import EdgeError, ResultError
from edge.system.places import check_place, place_of

Run = Mapping[str, object]
"""Everything that an output depends on, as JSON values by name: inputs (by SHA-256 or path) and settings."""

# A newer program that repeats the same command may replace what an older one wrote.
_PROGRAMS = frozenset(("edge", "llama-cpp-python", "vllm"))


def check_output(
    out: Path | str,
    inputs: Iterable[Path | str | None] = (),
    *,
    error: type[EdgeError] = ResultError,
    streams: bool = True,
    option: str = "--out",
) -> None:
    """`edge.system.places.check_place`, and the file must not be one of the inputs of the command, whatever its name.

    Inputs that are None or do not exist are ignored. Raises `error`.
    """
    check_place(out, error=error, streams=streams)
    place, through = place_of(out)
    if through:
        return
    for path in inputs:
        if path is not None and _same_file(place, Path(path)):
            raise error(f"{out}: is an input of this command; choose another name with {option}")


def check_replaced(
    out: Path | str,
    run: Run,
    read: Callable[[Path], Run | None],
    *,
    kind: str,
    force: bool,
    error: type[EdgeError] = ResultError,
    option: str = "--out",
) -> None:
    """Check that a file at `out` may be replaced: there is none, it is of the same run, or `force` is True.

    `read` returns the run that a file's content names, or None if it names none; it may raise EdgeError, OSError or
    ValueError for a file of another kind. `kind` names the output in the error line ("a result"). Raises `error`.
    """
    place, through = place_of(out)
    if force or through or not place.exists() or not place.stat().st_size:
        return
    advice = f"choose another name with {option}, or replace it with --force"
    try:
        before = read(place)
    except (EdgeError, OSError, ValueError, RecursionError):
        raise error(f"{out}: exists and is not {kind} that edge wrote; {advice}") from None
    if before is None:
        raise error(f"{out}: exists, and does not say which run wrote it; {advice}")
    if changes := differences(_settings(before), _settings(run)):
        raise error(f"{out}: holds {kind} of another run ({changes}); {advice}")


def named_run(path: Path, kind: str) -> Run | None:
    """The run in a JSON file that has the field `kind`; None if it names none. Raises ValueError for another file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or kind not in value:
        raise ValueError(f"not a {kind}")
    run = value.get("run")
    return run if isinstance(run, dict) else None


def differences(before: Run, now: Run) -> str:
    """How two runs differ, for people; an empty string if they are equal."""
    old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    different = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    changes = [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in different[:4]]
    if len(different) > 4:
        changes.append(f"{len(different) - 4} more differ")
    return "; ".join(changes)


def _settings(run: Run) -> Run:
    return {name: value for name, value in run.items() if name not in _PROGRAMS}


def _same_file(place: Path, path: Path) -> bool:
    """Whether both names are one file (links followed, hard links too), or `place` is a file of a checkpoint folder."""
    try:
        if path.is_dir():
            return (
                place.is_file() and place.suffix != ".gguf" and place.is_relative_to(os.path.realpath(path))
            )
        return os.path.realpath(path) == str(place) or os.path.samefile(path, place)
    except (OSError, ValueError):  # one of them does not exist
        return False


def _flat(values: Run, prefix: str = "") -> Iterable[tuple[str, object]]:
    """(dotted name, value) of everything in nested objects."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: object) -> str:
    """A value for people; a checksum is cut to its first digits."""
    if value is None:
        return "unset"
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"{text[:12]}…"
    return text if re.fullmatch(r"[\w.,+-]+", text) else json.dumps(text)
