"""The command line: parse options, call one function, print. Heavy modules are imported where used."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from edge.cli.agent import agent, replay
from edge.cli.bundle import bundle, unbundle
from edge.cli.common import Interrupted, Threads, note
from edge.cli.eval import evaluate
from edge.cli.measure import measure
from edge.cli.models import convert, doctor, imatrix, inspect, models
from edge.cli.options import (
    Batch,
    FlashAttention,
    GpuLayers,
    KvType,
    MaxTokens,
    MinP,
    Mmap,
    ModelOption,
    Penalty,
    Seed,
    Style,
    Temperature,
    TextShare,
    Think,
    TopK,
    TopP,
    think_tokens,
)
from edge.cli.report import report
from edge.cli.results import compare, score
from edge.cli.serve import serve
from edge.cli.sweep import sweep
from edge.errors import ContextError, EdgeError, PromptError
from edge.system.machine import address_space_left
from edge.system.text import printable
from edge.version import __version__

if TYPE_CHECKING:
    from edge.prompt import Rendered

app = typer.Typer(
    name="edge",
    help="Quantize a terminal agent's checkpoint, run it offline with guaranteed JSON, measure what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(convert)
app.command()(imatrix)
app.command()(inspect)


@app.command()
def run(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="What to do. Default: standard input.")
    ] = None,
    model: ModelOption = None,
    screen: Annotated[Path | None, typer.Option(help="A file with what the terminal shows now.")] = None,
    messages: Annotated[
        Path | None, typer.Option(help="A JSON file with the whole conversation, instead of a task.")
    ] = None,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    think: Think = None,
    text_share: TextShare = 0.6,
    style: Style = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="The action with its metadata, as one JSON object.")
    ] = False,
    gpu_layers: GpuLayers = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not tell where the model is placed.")] = False,
) -> None:
    """Ask for the next action. It is only printed: review it before you run any of it."""
    thought = think_tokens(think)
    if messages is not None and (task is not None or screen is not None):
        raise typer.BadParameter("--messages takes the place of TASK and --screen", param_hint="--messages")
    if messages is None and task is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise typer.BadParameter(
                "give a task, --messages FILE, or a task on standard input", param_hint="TASK"
            )
        task = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip()
        if not task:
            raise typer.BadParameter("standard input is empty", param_hint="TASK")
    elif task is not None and not task.strip():
        raise typer.BadParameter("the task is empty", param_hint="TASK")
    if task is not None and any("\ud800" <= c <= "\udfff" for c in task):
        raise PromptError("the task is not UTF-8 text")

    from edge.answer.sampling import Sampling
    from edge.cli.defaults import default_model
    from edge.llama.devices import devices
    from edge.llama.memory import BATCH
    from edge.llama.placement import place
    from edge.prompt import read_messages, task_messages
    from edge.runner import Runner
    from edge.system.machine import memory
    from edge.system.places import read_text

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    if messages is not None:
        chat = read_messages(messages)
    else:
        chat = task_messages(task or "", None if screen is None else read_text(screen))
    path = model or default_model(note)
    free, found = memory(), devices()
    if gpu_layers and not any("GPU" in device.kind for device in found):
        note("llama.cpp sees no GPU here; --gpu-layers has no effect")
    with Runner.load(
        path,
        gpu_layers=gpu_layers,
        threads=threads,
        batch=batch or BATCH,
        kv_type=kv_type,
        flash_attention=flash_attention,
        mmap=mmap,
    ) as runner:
        stream = sys.stdout is not None and sys.stdout.isatty() and not as_json
        emit: Callable[[str], None] | None = (
            (lambda text: typer.echo(_shown(text), nl=False)) if stream else None
        )
        rendered = runner.render(chat)
        _note_fallback(path, rendered)
        prompt_ids = runner.encode(rendered.text)
        if len(prompt_ids) + max_tokens <= runner.engine.context_length:
            try:
                placement = place(
                    runner.model_file,
                    [len(prompt_ids)],
                    max_tokens,
                    memory=free,
                    devices=found,
                    parallel=1,
                    gpu_layers=gpu_layers,
                    threads=threads,
                    batch=batch,
                    kv_type=kv_type,
                    flash_attention=runner.engine.flash_attention,
                    mmap=mmap,
                )
                if not quiet:
                    typer.echo(placement, err=True)
            except ContextError as error:
                if address_space_left() is None:  # else the cache is refused where it does not fit
                    note(f"{error}; it may be slow, or end for want of memory")
        action = runner.act_on(
            prompt_ids,
            max_tokens,
            sampling=sampling,
            think=thought,
            text_share=text_share,
            style=style,
            emit=emit,
        )
    typer.echo("" if stream else action.to_json() if as_json else action.text)
    if action.closed_at_budget and not as_json:
        note(f"the budget of {max_tokens} tokens ended before the answer did; it was closed validly")


app.command()(agent)
app.command()(replay)
app.command()(serve)
app.command(name="eval")(evaluate)
app.command()(score)
app.command()(compare)
app.command()(measure)
app.command()(sweep)
app.command()(report)


@app.command()
def prompt(
    messages: Annotated[Path, typer.Option(help="A JSON file with the messages.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="A GGUF or a Hugging Face folder.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print the token ids instead of the text.")
    ] = False,
) -> None:
    """Print the prompt that a model gets for some messages."""
    from edge.prompt import prompt_source, read_messages, render_prompt

    chat = read_messages(messages)
    rendered = render_prompt(chat, prompt_source(model))
    _note_fallback(model, rendered)
    if tokens:
        from edge.llama.encode import encode_with

        typer.echo(json.dumps(encode_with(model, rendered.text)))
    else:
        typer.echo(rendered.text, nl=sys.stdout is not None and sys.stdout.isatty())


app.command()(models)
app.command()(doctor)
app.command()(bundle)
app.command()(unbundle)


def _note_fallback(model: Path, rendered: "Rendered") -> None:
    if rendered.status != "chat_template":
        why = (
            f"its chat template cannot be rendered ({rendered.reason})"
            if rendered.reason
            else "no chat template"
        )
        note(f"{model}: {why}; the prompt is the {rendered.status}")


def _shown(text: str) -> str:
    """The action's JSON with the control characters that it may hold raw, and a terminal may obey, as escapes."""
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge {__version__}")
        raise typer.Exit


@app.callback()
def _edge(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """The `edge` command: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    # So that temporary files are removed; Windows has no SIGHUP.
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the one of a terminal that is closed
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    limited = address_space_left() is not None
    if limited:
        # Each of OpenBLAS's threads takes 32 MB at its start, and it raises SIGINT where it gets none.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(prog_name="edge")
    except EdgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code == 130:
            typer.echo("interrupted; nothing was written", err=True)
        raise
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not limited:
            raise
        why = " ".join(str(error).split())[-200:] or "an allocation failed"
        typer.echo(f"error: not enough memory ({why}): raise the limit, or close other programs", err=True)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {printable(where)}{error.strerror or error}", err=True)
        sys.exit(1)
    sys.exit(0)
