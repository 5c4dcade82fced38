"""Files that a command writes: never one of its inputs, and the output of another run only if the user says so."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edge.errors import ConfigError, EdgeError, ResultError
from edge.system.changes import Run, differences
from edge.system.config import config_file
from edge.system.places import check_place, place_of

__all__ = ["Run", "check_output", "check_replaced", "differences", "named_run"]

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # as llama.cpp names the parts of a model
_CHECKPOINT = frozenset((".json", ".jinja", ".safetensors"))  # what a checkpoint's SHA-256 counts
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

    The user's file of settings is always an input, and so are all parts of a split model. Inputs that are None or do
    not exist are ignored. A folder is a checkpoint or an adapter: no file of it is replaced, and no file is added that
    would become a part of it. Raises `error`.
    """
    check_place(out, error=error, streams=streams)
    place, through = place_of(out)
    if through:
        return
    for path in (*inputs, _settings_file()):
        if path is None:
            continue
        if any(_same_file(place, file) for file in _files(Path(path))):
            raise error(f"{out}: is an input of this command; choose another name with {option}")
        if place.suffix in _CHECKPOINT and _is_folder_of(Path(path), place):
            raise error(
                f"{out}: would become a part of {path}, which is an input of this command; choose another folder "
                f"with {option}"
            )


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


def _settings(run: Run) -> Run:
    return {name: value for name, value in run.items() if name not in _PROGRAMS}


def _settings_file() -> Path | None:
    try:
        return config_file()
    except ConfigError:  # no home folder
        return None


def _files(path: Path) -> Iterator[Path]:
    """The files that an input consists of: itself, the parts of a split model, the files of a folder.

    A GGUF in a checkpoint's folder is not part of the checkpoint: people write it there.
    """
    yield path
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            yield from (file for file in path.iterdir() if file.suffix != ".gguf")
        elif (part := _PART.search(path.name)) is not None:
            for number in range(1, int(part[2]) + 1):
                yield path.with_name(f"{path.name[: part.start()]}-{number:05}-of-{part[2]}.gguf")


def _is_folder_of(path: Path, place: Path) -> bool:
    try:
        return place.parent == Path(os.path.realpath(path))
    except ValueError:  # a NUL
        return False


def _same_file(place: Path, path: Path) -> bool:
    """Whether both names are one file (links followed, hard links too), or `place` is a file deep in a folder."""
    try:
        if path.is_dir():
            return (
                place.is_file() and place.suffix != ".gguf" and place.is_relative_to(os.path.realpath(path))
            )
        return os.path.realpath(path) == str(place) or os.path.samefile(path, place)
    except (OSError, ValueError):  # one of them does not exist
        return False
