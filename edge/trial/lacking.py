"""What the tests of a task need and this system does not have: then they say nothing about a model."""

import re
from pathlib import Path

from edge.agent.allow import RUN_OTHERS
from edge.trial.root import has_program
from edge.trial.tasks import Task

_PROGRAM = re.compile(
    r"^/tests/\S+: (?:line )?\d+: (\S+): (?:command )?not found|env: ‘?'?([\w.-]+)'?’?: No such file",
    re.MULTILINE,
)
_MODULE = re.compile(r"No module named '?([\w.]+)")
# The begin of a path at which no answer can make a file.
_SYSTEM = re.compile(r"/(?:usr|opt|bin|sbin|lib\w*|root)/")
# What comes before the name of a file that a command writes.
_WRITES = (
    r"(?:>|\s-o\s?|\bopen\(|\bPath\(|"
    r"(?:^|[;&|(]|\bthen\b|\bdo\b)[ \t]*(?:cp|mv|ln|install|chmod|touch|tee)\b[^\n;&|]*\s)"
)


def missing_program(task: Task, output: str, root: Path | None) -> str:
    """A program or module that the tests need and that is not here; empty if there is none.

    What a program of the model lacks is the model's fault: the name must be in the tests, and the task must not let the
    model make it.
    """
    for pattern in (_PROGRAM, _MODULE):
        for found in pattern.finditer(output):
            name = next(group for group in found.groups() if group)
            lacks = names(task.folder / "tests", name) and not has_program(name, root)
            if lacks and not _is_made(task, name, module=pattern is _MODULE):
                return name
    return ""


def _is_made(task: Task, name: str, *, module: bool) -> bool:
    """Whether the model is to make a program or module: the instruction or the solution has it as a file.

    A solution that only calls it does not make it. If the solution does not have the name at all, a word of the
    instruction is enough. Well-known programs are never made.
    """
    if not module and re.sub(r"[\d.]+$", "", name) in RUN_OTHERS:
        return False
    is_file = _is_module_file if module else _is_file
    solution = [path.read_bytes().decode("latin-1") for path in _files(task.folder / "solution")]
    if any(is_file(text, name) for text in (task.instruction, *solution)):
        return True
    return not names(task.folder / "solution", name) and _word(name).search(task.instruction) is not None


def _is_file(text: str, name: str) -> bool:
    """Whether a text has a program as a file: at the end of a path, or as what a command writes."""
    end = rf"{re.escape(name)}(?![\w/-]|\.\w)"
    if re.search(r"\.[A-Za-z]\w*$", name) and re.search(rf"(?<![\w-]){end}", text):
        return True  # greet.sh is a file wherever it is named
    for found in re.finditer(rf"/{end}", text):
        path = re.search(r"[\w.~+${}/-]*$", text[max(0, found.start() - 200) : found.end()])
        if path is None or not _SYSTEM.match(path[0]):
            return True
    return re.search(rf"{_WRITES}\s*[\"']?{end}", text, re.MULTILINE) is not None


def _is_module_file(text: str, name: str) -> bool:
    """Whether a text has a Python module as a file or a folder."""
    first = re.escape(name.split(".")[0])
    file = rf"(?<![\w-]){first}(?:\.py\b|/[\w/]*\.py\b|/(?![\w-]))"
    return re.search(rf"{file}|\bmkdir\b[^\n;&|]*[\s/]{first}(?![\w-])", text) is not None


def names(folder: Path, name: str) -> bool:
    """Whether a file below a folder has this name in it, as a whole word."""
    return any(_word(name).search(path.read_bytes().decode("latin-1")) for path in _files(folder))


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.ASCII)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
