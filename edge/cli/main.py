"""The command line: the order of the commands, errors and exit codes."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from edge.cli.agent import agent, replay
from edge.cli.allow import allow_app
from edge.cli.bundle import bundle, unbundle
from edge.cli.chat import chat
from edge.cli.command import App
from edge.cli.common import (
    broken_package,
    conversation,
    fail,
    is_terminal,
    note,
    note_fallback,
    say,
    written_stream,
)
from edge.cli.config import apply_settings, config_app
from edge.cli.eval import evaluate
from edge.cli.formats import rows, schema
from edge.cli.imatrix import imatrix
from edge.cli.join import join
from edge.cli.measure import measure
from edge.cli.models import convert, doctor, inspect
from edge.cli.options import Verbose
from edge.cli.pull import pull
from edge.cli.rank import rank
from edge.cli.report import report
from edge.cli.results import compare, score
from edge.cli.run import run
from edge.cli.serve import serve
from edge.cli.store import models_app
from edge.cli.sweep import sweep
from edge.cli.trial import trial
from edge.cli.tune import tune
from edge.errors import EdgeError, EdgeWarning
from edge.llama.log import at_abort
from edge.system.machine import address_space_left
from edge.system.streams import terminal_settings, tolerant_streams, unencodable
from edge.system.text import counted, printable
from edge.version import __version__

app = App(
    name="edge",
    help="Quantize the checkpoint of a terminal agent, run it offline with valid JSON, and measure the loss.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def prompt(
    messages: Annotated[Path, typer.Option(help="JSON file with the messages; - for standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="FILE", help="GGUF or Hugging Face folder.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print the token ids instead of the text.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Print the prompt that a model gets for given messages."""
    from edge.cli.defaults import chosen_model
    from edge.prompt import prompt_source, render_prompt

    path = chosen_model(model, note)
    chat = conversation(messages)
    rendered = render_prompt(chat, prompt_source(path))
    note_fallback(path, rendered)
    if tokens:
        from edge.llama.encode import encode_with

        typer.echo(json.dumps(encode_with(path, rendered.text)))
    else:
        typer.echo(rendered.text, nl=is_terminal(sys.stdout))
        if escaped := unencodable(rendered.text, sys.stdout):
            note(
                f"standard output is not UTF-8: {counted(escaped, 'character')} of the prompt printed as an escape "
                "such as \\u00e9; for the exact text set PYTHONIOENCODING=utf-8"
            )


def show_help(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Command. Default: edge itself.")
    ] = None,
) -> None:
    """Show the help of a command."""
    found: Any = context.parent
    for word in words or ():
        name, command, _ = found.command.resolve_command(found, [word])
        found = command.make_context(name, [], parent=found, resilient_parsing=True)
        if not hasattr(command, "resolve_command"):
            break
    typer.echo(found.get_help())


_MORE_MEMORY = "raise the limit, or close other programs"

# `edge --help` lists them in this order.
app.command()(pull)
app.command()(convert)
app.command()(run)
app.command()(chat)
app.command()(agent)
app.command()(serve)
app.command(name="eval")(evaluate)
app.command()(trial)
app.command()(compare)
app.command()(report)
app.command()(rank)
app.command()(sweep)
app.command()(measure)
app.command()(score)
app.command()(join)
app.command()(replay)
app.command()(prompt)
app.command()(imatrix)
app.command()(inspect)
app.command()(schema)
app.add_typer(rows, name="rows")
app.add_typer(allow_app, name="allow")
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.command()(doctor)
app.command()(tune)
app.command()(bundle)
app.command()(unbundle)
app.command(name="help")(show_help)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge {__version__}")
        raise typer.Exit


@app.callback()
def _edge(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    apply_settings(context)


def _interruption(stop: BaseException) -> str:
    """The text of the KeyboardInterrupt (edge.errors.Interrupted has one) that Typer turned into `stop`."""
    cause: BaseException | None = stop
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return str(cause or "") or "interrupted; nothing was written"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print edge's own warnings as notes, and other warnings as Python does."""
    if issubclass(category, EdgeWarning):
        note(str(message))
    else:
        typer.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _explained(error: Exception, limited: bool) -> str | None:
    """One line for an error that is not edge's own; None for a fault of edge. `limited`: memory has a limit."""
    package = broken_package(error)
    if package and not limited:
        return package
    if isinstance(error, OSError):
        where = error.filename or written_stream(error)
        return f"{where}: {error.strerror or error}" if where else error.strerror or str(error)
    # With too little memory, an import can fail with any exception, and a thread cannot start.
    if isinstance(error, MemoryError | ImportError) or package or "start new thread" in str(error):
        why = " ".join(str(error).split())[-200:] or "an allocation failed"
        return f"not enough memory ({why}): {_MORE_MEMORY}"
    return None


def _end_at_once(restore_terminal: Callable[[], None], text: str) -> NoReturn:
    """Print an error and end the process, inside llama.cpp, which would stop it: nothing can be raised there."""
    try:
        restore_terminal()
        fail(text)
    finally:
        os._exit(1)


def _forget_lost_output() -> None:
    """Drop what standard output did not take: each write was flushed, so an error line told it. Python tries again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def main() -> NoReturn:
    """The program `edge`. Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    # Exit by exception, so that temporary files are removed. Windows has no SIGHUP.
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    tolerant_streams()
    limited = address_space_left() is not None
    if limited:
        # Each thread of OpenBLAS takes 32 MB at its start. If it gets less, OpenBLAS raises SIGINT.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.filterwarnings("once", category=EdgeWarning)
    warnings.showwarning = _show_warning
    at_abort(partial(_end_at_once, terminal_settings()))
    reserve: list[bytearray] = []  # given back where no memory is left for an error line
    try:
        if limited:
            reserve.append(bytearray(2 << 20))
        app(prog_name="python -m edge" if Path(sys.argv[0]).name == "__main__.py" else "edge")
    except EdgeError as error:
        if error.option:
            fail(f"{error.option}: {error}")
            sys.exit(2)
        fail(str(error))
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # Typer turns KeyboardInterrupt into this
            say(printable(_interruption(stop)))
        raise
    except Exception as error:
        reserve.clear()
        try:
            line = _explained(error, limited)
        except MemoryError:
            error.__traceback__ = None  # frees what the failed call held
            line = f"not enough memory (an allocation failed): {_MORE_MEMORY}"
        if line is None:
            raise
        fail(line)
        sys.exit(1)
    finally:
        _forget_lost_output()
    sys.exit(0)
