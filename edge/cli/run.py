"""`edge run`: ask a model for one action and print it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.common import Threads, note, note_fallback, shown_json
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
from edge.errors import ContextError, PromptError
from edge.system.machine import address_space_left

if TYPE_CHECKING:
    from edge.llama.placement import Placement
    from edge.prompt import Message


def run(
    task: Annotated[
        str | None,
        typer.Argument(metavar="TASK", help="What the model must do. Default: read it from standard input."),
    ] = None,
    model: ModelOption = None,
    screen: Annotated[
        Path | None, typer.Option(help="File with the current text of the terminal's screen.")
    ] = None,
    messages: Annotated[
        Path | None, typer.Option(help="JSON file with the whole conversation, instead of TASK and --screen.")
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
        bool, typer.Option("--json", help="Print the action and its metadata as one JSON object.")
    ] = False,
    gpu_layers: GpuLayers = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print where the model is placed.")] = False,
) -> None:
    """Ask a model for the next action and print it.

    edge does not run the action. Review it before you run any part of it.
    """
    thought = think_tokens(think)
    task = _task(task, screen, messages)

    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.cli.defaults import chosen_model
    from edge.llama.devices import devices
    from edge.llama.loading import Loading
    from edge.llama.placement import place
    from edge.runner import Runner
    from edge.system.machine import memory

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    answering = Answering(max_tokens, sampling, thought, text_share, style)
    loading = Loading(gpu_layers, threads, None, 1, batch, kv_type, flash_attention, mmap)
    chat = _conversation(task, screen, messages)
    path = chosen_model(model, note)
    free, found = memory(), devices()
    if gpu_layers and not any("GPU" in device.kind for device in found):
        note("llama.cpp finds no GPU here; --gpu-layers has no effect")
    with Runner.open(path, loading) as runner:
        rendered = runner.render(chat)
        note_fallback(path, rendered)
        prompt = runner.encode(rendered.text)
        if len(prompt) + max_tokens <= runner.context_length:
            used = replace(loading, flash_attention=runner.flash_attention)
            _print_placement(
                lambda: place(
                    runner.model_file, [len(prompt)], max_tokens, memory=free, devices=found, loading=used
                ),
                quiet,
            )
        stream = sys.stdout is not None and sys.stdout.isatty() and not as_json
        action = runner.act_on(prompt, answering, _print_piece if stream else None)
    typer.echo("" if stream else action.to_json() if as_json else action.text)
    if action.closed_at_budget and not as_json:
        note(f"the budget of {max_tokens} tokens ended before the answer; edge closed the action validly")


def _task(task: str | None, screen: Path | None, messages: Path | None) -> str | None:
    """The task, from the command line or from standard input; None if there are messages instead."""
    if messages is not None and (task is not None or screen is not None):
        raise typer.BadParameter("--messages replaces TASK and --screen", param_hint="--messages")
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
    return task


def _conversation(task: str | None, screen: Path | None, messages: Path | None) -> "list[Message]":
    from edge.prompt import read_messages, task_messages
    from edge.system.places import read_text

    if messages is not None:
        return read_messages(messages)
    return task_messages(task or "", None if screen is None else read_text(screen))


def _print_placement(place: "Callable[[], Placement]", quiet: bool) -> None:
    """Where the model runs, in one line on stderr; a note if it does not fit."""
    try:
        placement = place()
    except ContextError as error:
        if address_space_left() is None:  # otherwise the cache is refused if it does not fit
            note(f"{error}; it may be slow or run out of memory")
        return
    if not quiet:
        typer.echo(placement, err=True)


def _print_piece(text: str) -> None:
    typer.echo(shown_json(text), nl=False)
