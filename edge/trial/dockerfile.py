"""Reads the instructions of a Dockerfile that a trial can follow.

FROM is not used: the programs are those of this system, or of the root. WORKDIR, COPY, ENV and ARG are obeyed, and RUN
without a network. What changes nothing in a trial is ignored. Every other instruction refuses the task.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edge.system.confined import PATH
from edge.trial.network import network_program

DEFAULT_WORKDIR = "/app"  # that of the base images of Terminal-Bench, as of the sandbox
# They say what the image's own program is, or describe the image: a trial starts a shell, and opens no port.
_IGNORED = frozenset("LABEL MAINTAINER CMD EXPOSE STOPSIGNAL".split())
# Folders at the root of the sandbox that are its own, or those of Harbor.
_TAKEN = frozenset("usr bin sbin lib lib32 lib64 libx32 etc proc dev sys tmp run tests solution logs".split())
_OWN_VARIABLES = frozenset("WORK HOME USER LOGNAME SHELL PS1 PS2 PROMPT_COMMAND HISTFILE INPUTRC".split())


class NotRunnableError(Exception):
    """The task cannot run here. The message is the reason, in one line."""


@dataclass(frozen=True)
class Copied:
    """COPY: paths in the folder environment/, and an absolute path. `into`: the target is a folder."""

    sources: tuple[str, ...]
    target: str
    into: bool


@dataclass(frozen=True)
class Ran:
    """RUN: a command of the shell, the absolute folder in which it runs, and its further variables."""

    command: str
    folder: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Environment:
    """What a Dockerfile says. `base`: the image of FROM, which edge does not use."""

    base: str = ""
    workdir: str = DEFAULT_WORKDIR
    """Where the shell starts."""
    root: str = DEFAULT_WORKDIR
    """The work folder: /app if WORKDIR is in it, else the first WORKDIR above the last."""
    copied: tuple[Copied, ...] = ()
    """COPY before the first RUN."""
    built: tuple[Ran | Copied, ...] = ()
    """The first RUN and all RUN and COPY after it, in order."""
    variables: Mapping[str, str] = field(default_factory=dict)

    def inside(self, path: str) -> str | None:
        """A path relative to the work folder; None for a path outside it."""
        given, work = PurePosixPath(path), PurePosixPath(self.root)
        return given.relative_to(work).as_posix() if given.is_relative_to(work) else None


def read_dockerfile(text: str) -> Environment:
    """Read a Dockerfile. Raises NotRunnableError for one that a trial cannot obey."""
    reader = _Reader()
    for word, rest in _instructions(text):
        reader.read(word, rest)
    return reader.environment()


def root_of(workdir: str, before: Sequence[str] = ()) -> str:
    """The work folder for a last WORKDIR and those before it. Raises NotRunnableError if the sandbox cannot have it."""
    for place in (DEFAULT_WORKDIR, *before, workdir):
        if PurePosixPath(workdir).is_relative_to(place):
            _check_root(place)
            return place
    raise AssertionError(workdir)


def _check_root(workdir: str) -> None:
    parts = PurePosixPath(workdir).parts
    if len(parts) < 2 or parts[1] in _TAKEN or ".." in parts or re.search(r"[\s\0]", workdir):
        raise NotRunnableError(f"its work folder is {workdir}, which the sandbox cannot have")
    if workdir == "/home" or PurePosixPath(workdir).is_relative_to("/home/agent"):
        raise NotRunnableError(f"its work folder is {workdir}, which is the sandbox's own home folder")


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction: its name in upper case, and the rest with its lines joined."""
    joined = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        joined += line.strip() if not joined else " " + line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip()
            continue
        word, _, rest = joined.partition(" ")
        yield word.upper(), rest.strip()
        joined = ""
    if joined:
        raise NotRunnableError("its Dockerfile ends in the middle of an instruction")


@dataclass
class _Reader:
    base: str = ""
    workdir: str = ""
    workdirs: list[str] = field(default_factory=list)
    steps: list[Ran | Copied] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    """ARG, for the instructions after it and for RUN; a variable of ENV hides one."""
    before_from: dict[str, str] = field(default_factory=dict)

    def read(self, word: str, rest: str) -> None:
        match word:
            case "FROM":
                self._from(rest)
            case "WORKDIR":
                self.workdir = self._absolute(self._expanded(rest.strip("\"'")))
                self.workdirs.append(self.workdir)
            case "ENV":
                self._env(rest)
            case "COPY":
                self._copy(rest)
            case "RUN":
                self._run(rest)
            case "ARG":
                self._arg(rest)
            case _ if word in _IGNORED or (word == "HEALTHCHECK" and rest.upper() == "NONE"):
                pass
            case _:
                raise NotRunnableError(f"its Dockerfile has {word[:20]}, which edge does not read")

    def environment(self) -> Environment:
        if not self.base:
            raise NotRunnableError("its Dockerfile has no FROM")
        workdir = self.workdir or DEFAULT_WORKDIR
        root = root_of(workdir, self.workdirs)
        first = next((n for n, step in enumerate(self.steps) if isinstance(step, Ran)), len(self.steps))
        copied = tuple(step for step in self.steps[:first] if isinstance(step, Copied))
        found = Environment(self.base, workdir, root, copied, tuple(self.steps[first:]), dict(self.variables))
        for step in self.steps:
            what, place = ("COPY to", step.target) if isinstance(step, Copied) else ("RUN in", step.folder)
            if found.inside(place) is None:
                raise NotRunnableError(f"{what} {place}, which is outside the work folder {found.root}")
        return found

    def _from(self, rest: str) -> None:
        if self.base:
            raise NotRunnableError("its Dockerfile has several stages")
        words = [word for word in rest.split() if not word.startswith("--")]
        if not words:
            raise NotRunnableError("its Dockerfile has an empty FROM")
        self.base = words[0]

    def _env(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if "=" not in name:
            given = {name: value.strip()}
        else:
            given = dict(word.partition("=")[::2] for word in _words(rest, "ENV"))
        for name, value in given.items():
            _check_variable("ENV", name, value)
            self.variables[name] = self._expanded(value)

    def _arg(self, rest: str) -> None:
        for word in _words(rest, "ARG"):
            name, equals, value = word.partition("=")
            _check_variable("ARG", name, value)
            if not equals and name not in self.before_from:
                raise NotRunnableError(f"ARG {name} has no default")
            value = self._expanded(value) if equals else self.before_from[name]
            (self.arguments if self.base else self.before_from)[name] = value

    def _copy(self, rest: str) -> None:
        if rest.startswith("--"):
            raise NotRunnableError(f"COPY with {rest.split()[0]}")
        words = _words(rest, "COPY")
        if len(words) < 2:
            raise NotRunnableError("COPY without a target")
        *sources, target = (self._expanded(word) for word in words)
        if any(".." in PurePosixPath(source).parts for source in sources):
            raise NotRunnableError("COPY from outside its folder")
        into = len(sources) > 1 or target.endswith("/") or target == "."
        self.steps.append(
            Copied(tuple(source.lstrip("/") for source in sources), self._absolute(target), into)
        )

    def _run(self, rest: str) -> None:
        if rest.startswith("--"):
            raise NotRunnableError(f"RUN with {rest.split()[0]}")
        if "<<" in rest:
            raise NotRunnableError("RUN with a here-document")
        command = shlex.join(_words(rest, "RUN")) if rest.startswith("[") else rest
        if (program := network_program(command)) is not None:
            raise NotRunnableError(f"RUN needs a network ({program})")
        variables = {**self.arguments, **self.variables}
        self.steps.append(Ran(command, self.workdir or DEFAULT_WORKDIR, variables))

    def _absolute(self, path: str) -> str:
        whole = PurePosixPath(self.workdir or DEFAULT_WORKDIR, path)
        if ".." in whole.parts:
            raise NotRunnableError(f"the path {path} with ..")
        return str(whole)

    def _expanded(self, text: str) -> str:
        """The text with the values of variables: $NAME and ${NAME}."""

        def value(match: re.Match[str]) -> str:
            known = {"PATH": PATH, **(self.arguments if self.base else self.before_from), **self.variables}
            return known.get(match[1] or match[2], "")

        if re.search(r"\$\{(?!\w+\})", text):
            raise NotRunnableError("its Dockerfile has a variable with a rule, such as ${NAME:-value}")
        return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)


def _check_variable(where: str, name: str, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or "\0" in value:
        raise NotRunnableError(f"{where} {name[:40]} is not a variable")
    if name in _OWN_VARIABLES or name.startswith(("BASH", "LD_")):
        raise NotRunnableError(f"{where} {name}, a variable that the sandbox sets itself")


def _words(text: str, where: str) -> list[str]:
    """The words of an instruction: a JSON list, or words as a shell reads them. Raises NotRunnableError."""
    try:
        if text.startswith("["):
            words = json.loads(text)
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError
            return words
        return shlex.split(text)
    except (ValueError, RecursionError):
        raise NotRunnableError(f"its {where} cannot be read") from None
