"""`edge run`: ask a model for one action and print it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.common import (
    STDIN,
    Threads,
    conversation,
    input_text,
    is_terminal,
    no_gpu_note,
    note,
    note_fallback,
    note_unless,
    one_line,
    placement,
    progress_line,
    standard_input,
)
from edge.cli.options import (
    Batch,
    Draft,
    FlashAttention,
    GpuLayers,
    KvType,
    Lora,
    MainGpu,
    MaxTokens,
    MinP,
    Mmap,
    ModelOption,
    NoStateCache,
    Penalty,
    Quiet,
    Rpc,
    Seed,
    SplitMode,
    StateCache,
    Style,
    Temperature,
    TensorSplit,
    TextShare,
    Think,
    TopK,
    TopP,
    Verbose,
    chosen_states,
    spread_of,
    think_tokens,
)
from edge.errors import PromptError
from edge.system.text import counted, safe_json

if TYPE_CHECKING:
    from edge.answer.action import Action
    from edge.answer.answering import Answering
    from edge.llama.loading import Loading
    from edge.prompt import Message
    from edge.runner import Runner


def run(
    command: typer.Context,
    task: Annotated[
        str | None,
        typer.Argument(metavar="TASK", help="What the model must do. Default: read it from standard input."),
    ] = None,
    model: ModelOption = None,
    lora: Lora = None,
    screen: Annotated[
        Path | None,
        typer.Option(help="File with the current text of the terminal's screen; - for standard input."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the whole conversation, instead of TASK and --screen; - for standard input."
        ),
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
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    draft: Draft = None,
    mmap: Mmap = True,
    state_cache: StateCache = None,
    no_state_cache: NoStateCache = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ask a model for the next action and print it.

    edge does not run the action. Review it before you run any part of it. On a terminal, the action has the model's
    own white space; in a pipe or a file it is one line, unless you give --style.
    """
    thought = think_tokens(think, max_tokens)
    task = _task(task, screen, messages)

    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading, parse_adapters, with_own_adapter
    from edge.llama.tuned import with_tuned

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    answering = Answering(max_tokens, sampling, thought, text_share, style)
    adapters = parse_adapters(lora or ())
    spread = spread_of(rpc, tensor_split, main_gpu, split_mode)
    loading = Loading(
        *(gpu_layers, threads, None, 1, batch, kv_type, flash_attention, mmap),
        adapters=adapters,
        draft=draft,
        spread=spread,
        states=chosen_states(state_cache, no_state_cache),
    )
    chat = _conversation(task, screen, messages)
    terminal = is_terminal(sys.stdout)
    stream = terminal and not as_json
    say = None if quiet else progress_line
    path = chosen_model(model, note_unless(quiet))
    loading = with_tuned(path, with_own_adapter(path, loading), measures=False, say=note_unless(quiet))
    action = _action(path, chat, loading, answering, say, stream=stream)
    styled = terminal or command.get_parameter_source("style").name != "DEFAULT"  # type: ignore[union-attr]
    text = action.text if styled else one_line(action.text)
    shown = "" if stream else action.to_json() if as_json else text
    typer.echo(safe_json(shown) if terminal else shown)
    if action.closed_at_budget and not as_json:
        note(
            f"the budget of {counted(max_tokens, 'token')} ended before the answer; edge closed the action validly"
        )


def _action(
    path: Path,
    chat: "list[Message]",
    loading: "Loading",
    answering: "Answering",
    say: Callable[[str], None] | None,
    *,
    stream: bool,
) -> "Action":
    """The model's action. `say` receives the placement and the progress; `stream`: print the text as it is written."""
    from edge.llama.placement import place
    from edge.llama.remote import devices_for
    from edge.system.machine import memory

    free, found, max_tokens = memory(), devices_for(loading), answering.max_tokens
    no_gpu_note(loading, found)
    with _opened(path, loading, say) as runner:
        rendered = runner.render(chat)
        note_fallback(path, rendered)
        prompt = runner.encode(rendered.text)
        if len(prompt) + max_tokens <= runner.context_length:
            used = replace(loading, flash_attention=runner.flash_attention)
            placed = placement(
                lambda: place(
                    runner.model_file, [len(prompt)], max_tokens, memory=free, devices=found, loading=used
                )
            )
            if say is not None and placed is not None:
                say(str(placed))
        return _answer(runner, (prompt, runner.instructions(chat, prompt)), answering, stream, say)


def _task(task: str | None, screen: Path | None, messages: Path | None) -> str | None:
    """The task, from the command line or from standard input; None if there are messages instead."""
    if messages is not None and (task is not None or screen is not None):
        raise typer.BadParameter("replaces TASK and --screen; give one of them", param_hint="--messages")
    if messages is None and task is None:
        if sys.stdin is None or is_terminal(sys.stdin):
            raise typer.BadParameter(
                "give a task, --messages FILE, or a task on standard input", param_hint="TASK"
            )
        if screen == STDIN:
            raise typer.BadParameter("give a task: standard input is the screen", param_hint="TASK")
        task = standard_input().strip()
        if not task:
            raise typer.BadParameter("standard input is empty", param_hint="TASK")
    elif task is not None and not task.strip():
        raise typer.BadParameter("the task is empty", param_hint="TASK")
    if task is not None and any("\ud800" <= c <= "\udfff" for c in task):
        raise PromptError("the task is not UTF-8 text")
    return task


def _conversation(task: str | None, screen: Path | None, messages: Path | None) -> "list[Message]":
    from edge.prompt import task_messages

    if messages is not None:
        return conversation(messages)
    return task_messages(task or "", None if screen is None else input_text(screen))


@contextlib.contextmanager
def _opened(path: Path, loading: "Loading", say: Callable[[str], None] | None) -> "Iterator[Runner]":
    from edge.runner import Runner
    from edge.system.progress import waiting

    with contextlib.ExitStack() as opened:
        with waiting(f"loading {path}", say):
            runner = opened.enter_context(Runner.open(path, loading))
        yield runner


def _answer(
    runner: "Runner",
    asked: tuple[list[int], int],
    answering: "Answering",
    stream: bool,
    say: Callable[[str], None] | None,
) -> "Action":
    """The action; with `stream`, it is printed while the model writes it. `asked`: the prompt, and its instructions."""
    prompt, instructions = asked
    with _progress(runner, len(prompt), answering.max_tokens, say) as end:

        def print_piece(text: str) -> None:
            end()
            typer.echo(safe_json(text), nl=False)

        return runner.act_on(prompt, answering, print_piece if stream else None, instructions)


@contextlib.contextmanager
def _progress(
    runner: "Runner", prompt_tokens: int, max_tokens: int, say: Callable[[str], None] | None
) -> Iterator[Callable[[], None]]:
    """Shows how far the prompt is read, then how far the answer is written, until the yielded function is called."""
    from edge.system.progress import bar

    engine = runner.engine
    before = engine.prompt_tokens_decoded, engine.answer_tokens_decoded
    with contextlib.ExitStack() as shown:
        show = shown.enter_context(bar("reading the prompt", say, unit="tokens"))
        reads = True

        def check() -> None:
            nonlocal show, reads
            written = engine.answer_tokens_decoded - before[1]
            if written and reads:
                shown.close()
                reads, show = (
                    False,
                    shown.enter_context(bar("writing the answer", say, unit="tokens", limit=True)),
                )
            read = engine.prompt_tokens_decoded - before[0]
            show(*((read, prompt_tokens) if reads else (written, max_tokens)))

        def end() -> None:
            nonlocal show, reads
            shown.close()
            reads, show = False, lambda done, total: None

        with runner.before_each_batch(check):
            yield end
