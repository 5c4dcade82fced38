"""The files that a trial begins with: what COPY makes, and the script that obeys RUN and the COPY after it."""

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.terminal.check import BESIDE
from edge.terminal.saved import Saved
from edge.trial.dockerfile import Copied, NotRunnableError, Ran
from edge.trial.tasks import Task

BUILD = f"{BESIDE}/build"
"""The script in the sandbox, if the task needs one."""
_COPIED = "copied"  # the folder beside that script with the sources of COPY
_TIMES = (1_700_000_000, 1_700_000_000)  # of every copied file: the screens of two runs show the same date


@dataclass(frozen=True)
class Files:
    """The files of one trial, in a private folder outside the sandbox.

    `work`: what COPY makes before the first RUN. `beside`: the script, with the sources of the further COPY. `saved`:
    the archives of the work folder, as it was first and as it is now. `root`: the file system that takes the place of
    this system's programs; None for these.
    """

    work: Path
    beside: Path
    saved: Saved
    root: Path | None = None


def make_files(task: Task, folder: Path, saved: Saved, root: Path | None = None) -> Files:
    """Copy the files of a task's environment to a new folder, over what `root` has in the work folder.

    Raises NotRunnableError, OSError.
    """
    work, beside = folder / "work", folder / "beside"
    environment, context = task.environment, task.folder / "environment"
    start = environment.inside(environment.workdir)
    (work / (start or "")).mkdir(parents=True)
    beside.mkdir()
    if root is not None and (there := root / environment.root.lstrip("/")).is_dir():
        _copy(there, work, work)
    for copied in environment.copied:
        inside = environment.inside(copied.target)
        assert inside is not None  # the reader checked it
        for source, folder_like in _sources(context, copied):
            into = not folder_like and (copied.into or (work / inside).is_dir())
            _copy(source, work / inside / source.name if into else work / inside, work)
    if environment.built:
        (beside / "build").write_text(_build_script(task, beside), encoding="utf-8")
        (beside / "build").chmod(0o755)
    for place, folders, files in (*os.walk(work, topdown=False), *os.walk(beside / _COPIED, topdown=False)):
        for name in (*folders, *files):
            os.utime(Path(place, name), _TIMES, follow_symlinks=False)
    return Files(work, beside, saved, root)


def _sources(context: Path, copied: Copied) -> Iterator[tuple[Path, bool]]:
    """The sources of a COPY, and whether each is a folder. Raises NotRunnableError for one that is not there."""
    for pattern in copied.sources:
        try:
            found = [context] if pattern in (".", "") else sorted(context.glob(pattern))
        except ValueError:
            found = []
        if not found:
            raise NotRunnableError(f"COPY of {pattern}, which environment/ does not have")
        for source in found:
            yield source, source.is_dir() and not source.is_symlink()


def _copy(source: Path, to: Path, work: Path) -> None:
    """Copy a file, a link or a folder, never through a link that was copied before: it can lead out of `work`.

    Raises NotRunnableError.
    """
    for place in (to, *to.parents):
        if place == work:
            break
        if place.is_symlink():
            raise NotRunnableError(f"COPY through the link {place.relative_to(work)}")
    try:
        if source.is_dir() and not source.is_symlink():
            to.mkdir(parents=True, exist_ok=True)
            for one in sorted(source.iterdir()):
                _copy(one, to / one.name, work)
            shutil.copystat(source, to)
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.exists():
            to.unlink()
        shutil.copy2(source, to, follow_symlinks=False)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise NotRunnableError(f"COPY of a file and a folder to {to.relative_to(work)}") from None


def _build_script(task: Task, beside: Path) -> str:
    """A script of the RUN instructions, and of each COPY after one. It ends at the first that fails.

    It removes itself and what it copied. Puts the sources of COPY into the folder `beside`.
    """
    lines = ["#!/bin/bash", f"rm -f {BUILD}", f"rmdir {BESIDE} 2> /dev/null", "set -e"]
    for number, step in enumerate(task.environment.built):
        if isinstance(step, Ran):
            lines.append(_run_line(step))
            continue
        for index, (source, folder_like) in enumerate(_sources(task.folder / "environment", step)):
            name = source.name if not folder_like else "folder"
            place = Path(_COPIED, f"{number}.{index}")
            (beside / place).mkdir(parents=True)
            _copy(source, beside / place / name, beside)
            lines += _copy_lines(f"{BESIDE}/{place}/{name}", step, folder=folder_like)
    lines += [f"rm -rf {BESIDE}/{_COPIED}", f"rmdir {BESIDE} 2> /dev/null || true"]
    return "\n".join(lines) + "\n"


def _run_line(ran: Ran) -> str:
    variables = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in ran.environment.items())
    folder = shlex.quote(ran.folder)
    script = f"{variables}\nmkdir -p {folder}\ncd {folder}\n{ran.command}"
    return f"/bin/sh -ec {shlex.quote(script)}"


def _copy_lines(source: str, copied: Copied, *, folder: bool) -> list[str]:
    """Commands that copy as Docker does: the content of a folder; a file into a folder that is there."""
    given, target = shlex.quote(source), shlex.quote(copied.target)
    if folder:
        return [f"mkdir -p -- {target}", f"cp -af -- {given}/. {target}/"]
    if copied.into:
        return [f"mkdir -p -- {target}", f"cp -af -- {given} {target}/"]
    above = shlex.quote(copied.target.rpartition("/")[0] or "/")
    return [f"mkdir -p -- {above}", f"cp -af -- {given} {target}"]
