"""What the commands share: the option --threads, notes, tables, lines of progress."""

import contextlib
import opcode
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from edge.errors import ContextError, PromptError
from edge.system.machine import address_space_left
from edge.system.tables import columns, fitted
from edge.system.text import printable, safe_json

if TYPE_CHECKING:
    from edge.llama.devices import Device
    from edge.llama.loading import Loading
    from edge.llama.placement import Placement
    from edge.prompt import Message, Rendered

_PACKAGES = {"llama_cpp": "llama-cpp-python"}  # those whose module has another name

_COMMAND = re.compile(r": ((?:cd .+ && )?edge agent .+)$")
STDIN = Path("-")
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=512, help="Maximum number of CPU threads. Default: the number of physical cores."
    ),
]


def note(text: str) -> None:
    """Print a note on stderr: not an error."""
    say(f"note: {printable(text, lines=True)}")


def note_unless(quiet: bool) -> Callable[[str], None]:
    """`note`; with `quiet`, a function that prints nothing."""
    return (lambda text: None) if quiet else note


@contextlib.contextmanager
def noting_replaced(*outputs: Path | None, quiet: bool = False) -> Iterator[None]:
    """Print a note for each of these files that was there before and was written again."""
    before = {path: path.stat() for path in outputs if path is not None and path.is_file()}
    yield
    for path, old in before.items():
        new = path.stat()
        if old.st_size and (new.st_ino, new.st_mtime_ns) != (old.st_ino, old.st_mtime_ns):
            note_unless(quiet)(f"{path}: replaced the file that was there")


def warn(text: str) -> None:
    """Print a warning on stderr: something that can do harm."""
    say(f"warning: {printable(text, lines=True)}")


def fail(text: str) -> None:
    """Print an error on stderr. The caller ends the command."""
    say(f"error: {printable(text)}")


def agreed(question: str) -> bool:
    """Ask a person on the terminal. No is the default."""
    while True:
        answer = typer.prompt(f"{question} [y/N]", default="", show_default=False, err=True).strip().lower()
        if answer in ("y", "yes", "n", "no", ""):
            return answer in ("y", "yes")
        typer.echo("answer y or n", err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout, on a terminal in its width. Off a terminal no cell has line breaks.

    The first column has names, which stay on one line.
    """
    for line in columns(header, rows, _width(sys.stdout), named=True):
        typer.echo(line)


def show(text: object) -> None:
    """Print a report on stdout; on a terminal, its lines and Markdown tables are wrapped to the width."""
    typer.echo(fitted(str(text), _width(sys.stdout)))


def _width(stream: TextIO | None) -> int | None:
    """The columns of a terminal: $COLUMNS, else what the terminal says. None for another stream."""
    if stream is None or not is_terminal(stream):
        return None
    given = os.environ.get("COLUMNS", "")
    wanted = int(given) if re.fullmatch("[0-9]{1,6}", given) else 0
    return wanted or os.get_terminal_size(stream.fileno()).columns or None


def progress_line(text: str) -> None:
    """Print a line of progress on stderr."""
    say(printable(text))


def say(text: str) -> None:
    """Print text that is safe to show on stderr; on a terminal, its lines are wrapped to the width.

    A command of edge at the end of the text stays in one line, for a person to copy.
    """
    width = _width(sys.stderr)
    fit = fitted(text, width)
    if fit != text and (command := _COMMAND.search(text)):
        fit = f"{fitted(text[: command.start() + 1], width)}\n{command[1]}"
    typer.echo(fit, err=True)


def note_fallback(model: Path, rendered: "Rendered") -> None:
    """Print a note if the prompt does not come from the model's own chat template."""
    if rendered.status != "chat_template":
        why = (
            f"its chat template cannot be rendered ({rendered.reason})"
            if rendered.reason
            else "it has no chat template"
        )
        note(f"{model}: {why}; the prompt uses {rendered.status}")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal. A stream that was closed before the start is None."""
    return stream is not None and not stream.closed and stream.isatty()


def echo_json(text: str) -> None:
    """Print JSON of edge on stdout. JSON's escapes replace the characters that may steer a terminal."""
    typer.echo(safe_json(text))


def one_line(text: str) -> str:
    """JSON text on one line with json.dumps's white space. Strings and numbers stay as they are written."""
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|[^"\s]+', text, re.DOTALL)
    return "".join(part if part.startswith('"') else re.sub("[:,]", r"\g<0> ", part) for part in parts)


def standard_input() -> str:
    """All of stdin as text. Raises PromptError if it is not UTF-8, typer.BadParameter if it is a terminal."""
    try:
        return b"".join(input_lines()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 text (byte {error.start})") from None


def input_lines() -> Iterable[bytes]:
    """The lines of stdin, as they are read. Raises typer.BadParameter if it is a terminal."""
    if sys.stdin is None or is_terminal(sys.stdin):
        raise typer.BadParameter("standard input is a terminal; give a file, or send text to edge")
    return sys.stdin.buffer


def input_text(path: Path) -> str:
    """The text of a file, or of stdin for `-`. Raises ReplayError, or as `standard_input`."""
    from edge.system.places import read_text

    return standard_input() if path == STDIN else read_text(path)


def no_gpu_note(loading: "Loading", devices: "Sequence[Device]") -> None:
    """Print a note if layers must go to a GPU, and none of these devices is one."""
    if loading.gpu_layers and not any("GPU" in device.kind for device in devices):
        note("llama.cpp finds no GPU here; --gpu-layers has no effect")


def placement(place: "Callable[[], Placement]") -> "Placement | None":
    """Where the model runs; None if it does not fit, with a note."""
    try:
        return place()
    except ContextError as error:
        if address_space_left() is None:  # otherwise the cache is refused if it does not fit
            note(f"{error}; it may be slow or run out of memory")
        return None


def conversation(messages: Path) -> "list[Message]":
    """The messages in a JSON file; `-` is standard input. Raises PromptError."""
    from edge.prompt import parse_messages, read_messages

    return (
        parse_messages(standard_input(), "standard input") if messages == STDIN else read_messages(messages)
    )


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user wrote a parameter of the command on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def broken_package(error: BaseException) -> str | None:
    """A line about a package that is missing or cannot be imported; None if `error`, caught in main, is another one."""
    if isinstance(error, MemoryError):
        return None
    frames = [
        (frame, frame.f_code.co_code[frame.f_lasti]) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    # A module that cannot be compiled has no frame: then the last frame is that of the import.
    importing = [
        frame.f_globals["__name__"]
        for frame, instruction in frames
        if frame.f_code.co_name == "<module>"
        or (frame is frames[-1][0] and instruction == opcode.opmap["IMPORT_NAME"])
    ]
    if not (importing or isinstance(error, ImportError)):
        return None
    if isinstance(error, ImportError) and error.name:
        module = error.name
    else:  # an old package lacks a name that edge needs
        module = getattr(getattr(error, "obj", None), "__name__", None) or importing[-1]
    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name)
    install = f"{sys.executable} -m pip install"
    if isinstance(error, ModuleNotFoundError) and name != "edge":
        return f"the package {package} is missing; install it with: {install} {package}"
    why = printable(" ".join(str(error).split()))[-300:]
    if name == "edge":  # a package lacks a name that this module needs
        return f"a package that edge needs is too old or too new ({why}): run pip install for edge again"
    again = f"{install} --force-reinstall {package}"
    return f"the package {package} does not work here ({why}); install it again with: {again}"


def written_stream(error: OSError) -> str:
    """The standard stream that could not be written, for an error that names no file; empty for another error."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if error.filename or last.f_globals["__name__"].partition(".")[0] not in ("click", "typer", "rich"):
        return ""
    return "standard error" if last.f_locals.get("err") else "standard output"
