"""Reads task folders in Harbor's format: task.toml, instruction.md, environment/, tests/test.sh, solution/solve.sh.

Harbor describes the format at https://www.harborframework.com/docs/tasks. docs/trials.md says what edge takes of it.
"""

import difflib
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import ReplayError
from edge.trial.dockerfile import (
    Environment,
    NotRunnableError,
    read_dockerfile,
    root_of,
)
from edge.trial.network import network_program

DEFAULT_SECONDS = 600  # for the tests, as in Harbor
_LARGEST = 256 << 20  # bytes of all files of a task
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")


@dataclass(frozen=True)
class Task:
    """A task that can run here. `folder` holds its files."""

    name: str
    folder: Path
    instruction: str
    level: str
    """[metadata] level, or else difficulty; empty if the task has none."""
    may_change: tuple[str, ...] | None
    """[metadata] may_change: paths below the work folder that an answer may make, change or delete; `*` also matches
    slashes. None: the task does not say it."""
    environment: Environment
    test_variables: Mapping[str, str]
    solution_variables: Mapping[str, str]
    test_seconds: int
    sha256: str
    """Of the names and contents of all files of the task."""

    def script(self, name: str) -> Path | None:
        """The script solution/NAME.sh; None if there is none."""
        path = self.folder / "solution" / f"{name}.sh"
        return path if path.is_file() else None


@dataclass(frozen=True)
class Refused:
    """A task that cannot run here, and the reason in one line."""

    name: str
    reason: str


def find_tasks(place: Path, names: Sequence[str] = (), shown: str = "") -> list[Path]:
    """The task folders in a folder, by name, or the folder itself if it is a task.

    `names`: only these tasks. `shown`: the folder's name for people, if it is another one. Raises ReplayError if there
    is none.
    """
    if not place.is_dir():
        raise ReplayError(f"{place}: is not a folder: name a task folder, or a folder of them")
    try:
        if (place / "task.toml").is_file():
            found = [place]
        else:
            found = sorted(path for path in place.iterdir() if (path / "task.toml").is_file())
    except OSError as error:
        raise ReplayError(f"{place}: cannot be read: {error.strerror}") from None
    if not found:
        raise ReplayError(f"{place}: has no task: a task is a folder with task.toml and instruction.md")
    if names:
        known = {path.name for path in found}
        if missing := [name for name in names if name not in known]:
            near = difflib.get_close_matches(missing[0], sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ReplayError(f"{shown or place}: has no task {missing[0]}{hint}")
        found = [path for path in found if path.name in names]
    return found


def read_tasks(folders: Sequence[Path]) -> tuple[list[Task], list[Refused]]:
    """Read task folders: those that can run here, and those that cannot, each with the reason."""
    tasks, refused = [], []
    for folder in folders:
        try:
            tasks.append(read_task(folder))
        except NotRunnableError as error:
            refused.append(Refused(folder.resolve().name, " ".join(str(error).split())[:300]))
    return tasks, refused


def read_task(folder: Path) -> Task:
    """Read one task folder. Raises NotRunnableError if it cannot run here."""
    folder = folder.resolve()
    if not _NAME.fullmatch(folder.name):
        raise NotRunnableError("its name has other characters than letters, digits, dots, dashes and _")
    digest = _digest(folder)
    _check_links(folder)
    fields = _toml(folder / "task.toml")
    _check_fields(folder, fields)  # first: such a task has other files, and can need a network for it
    instruction = _text(folder, "instruction.md")
    if not instruction.strip():
        raise NotRunnableError("its instruction.md is empty")
    tests = _text(folder, "tests/test.sh")
    if (program := network_program(tests)) is not None:
        raise NotRunnableError(f"tests/test.sh needs a network ({program})")
    environment = read_dockerfile(_text(folder, "environment/Dockerfile"))
    settings, metadata = _table(fields, "environment"), _table(fields, "metadata")
    if isinstance(workdir := settings.get("workdir"), str):
        environment = replace(environment, workdir=workdir, root=root_of(workdir, [environment.root]))
    variables = {**environment.variables, **_variables(settings, "environment")}
    level = metadata.get("level", metadata.get("difficulty", ""))
    return Task(
        folder.name,
        folder,
        instruction.strip(),
        level if isinstance(level, str) else "",
        _globs(metadata.get("may_change")),
        replace(environment, variables=variables),
        _variables(_table(fields, "verifier"), "verifier"),
        _variables(_table(fields, "solution"), "solution"),
        _seconds(_table(fields, "verifier")),
        digest,
    )


def _check_links(folder: Path) -> None:
    """Raises NotRunnableError if a link is in the place of what edge reads or makes executable."""
    parts = ["task.toml", "instruction.md", "environment", "environment/Dockerfile", "tests", "tests/test.sh"]
    for path in (*(folder / part for part in (*parts, "solution")), *(folder / "solution").glob("*.sh")):
        if path.is_symlink():
            raise NotRunnableError(f"{path.relative_to(folder)} is a link")


def _check_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Raises NotRunnableError for what edge does not do."""
    environment = _table(fields, "environment")
    reasons = {
        "it has several steps": fields.get("steps"),
        "it is for Windows": environment.get("os") == "windows",
        "it needs several containers (docker-compose)": any(
            (folder / "environment" / f"docker-compose.{ending}").exists() for ending in ("yaml", "yml")
        ),
        "it needs a GPU": environment.get("gpus") or environment.get("tpu"),
        "it needs MCP servers": environment.get("mcp_servers"),
        "it waits for a health check": environment.get("healthcheck"),
        "its tests run in another environment": (
            _table(fields, "verifier").get("environment_mode") == "separate"
            or _table(fields, "verifier").get("environment")
        ),
        f"it uses the ready image {environment.get('docker_image')}, without a Dockerfile": (
            environment.get("docker_image") and not (folder / "environment" / "Dockerfile").is_file()
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise NotRunnableError(reason)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotRunnableError(f"task.toml cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NotRunnableError(f"task.toml is not TOML: {error}") from None


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotRunnableError(f"it has no {name}") from None
    except OSError as error:
        raise NotRunnableError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NotRunnableError(f"{name} is not UTF-8 text") from None


def _table(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise NotRunnableError(f"task.toml: {name} is not a table")
    return value


def _variables(table: Mapping[str, Any], name: str) -> dict[str, str]:
    """The `env` of a table. Harbor fills `${NAME}` with values of the machine outside, which edge does not give."""
    given = table.get("env") or {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise NotRunnableError(f"task.toml: {name}.env is not a table of texts")
    for key, value in given.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", key) or "\0" in value:
            raise NotRunnableError(f"task.toml: {name}.env has {key[:40]}, which is not a variable")
        if "${" in value:
            raise NotRunnableError(f"task.toml: {name}.env takes {key} from the machine outside")
    return dict(given)


def _globs(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise NotRunnableError("task.toml: metadata.may_change is not a list of texts")
    return tuple(value)


def _seconds(verifier: Mapping[str, Any]) -> int:
    value = verifier.get("timeout_sec", DEFAULT_SECONDS)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400:
        raise NotRunnableError("task.toml: verifier.timeout_sec is not a number of seconds")
    return max(1, round(value))


def _digest(folder: Path) -> str:
    """SHA-256 of a line `PATH SHA256` for each file and link of a task, sorted.

    Raises NotRunnableError if the files are too large, and for a link that leads out of the task folder: what it shows
    are files of this system.
    """
    lines, total = [], 0
    try:
        for root, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted([*files, *(one for one in folders if Path(root, one).is_symlink())]):
                path = Path(root, name)
                state = path.lstat()
                if stat.S_ISLNK(state.st_mode):
                    if not Path(os.path.realpath(path)).is_relative_to(folder):
                        shown = path.relative_to(folder)
                        raise NotRunnableError(f"{shown} is a link that leads out of the task folder")
                    content = os.readlink(path).encode(errors="surrogateescape")
                elif stat.S_ISREG(state.st_mode):
                    total += state.st_size
                    if total > _LARGEST:
                        raise NotRunnableError(f"it has more than {_LARGEST >> 20} MiB of files")
                    content = path.read_bytes()
                else:
                    raise NotRunnableError(f"{path.relative_to(folder)} is not a file")
                lines.append(f"{path.relative_to(folder).as_posix()} {hashlib.sha256(content).hexdigest()}\n")
    except OSError as error:
        raise NotRunnableError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()
