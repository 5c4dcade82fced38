"""`edge chat`: an interactive conversation with a model, in free text or in actions."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from edge.cli.common import (
    STDIN,
    Threads,
    input_text,
    is_terminal,
    no_gpu_note,
    note,
    note_fallback,
    placement,
    say,
)
from edge.cli.keyboard import line_editing, stoppable
from edge.cli.options import (
    Batch,
    ChatMinP,
    ChatPenalty,
    ChatTemperature,
    ChatTopK,
    ChatTopP,
    Draft,
    FlashAttention,
    GpuLayers,
    KvType,
    Lora,
    MainGpu,
    Mmap,
    ModelOption,
    NoStateCache,
    Rpc,
    Seed,
    SplitMode,
    StateCache,
    TensorSplit,
    Verbose,
    chosen_states,
    spread_of,
    think_tokens,
)
from edge.errors import EdgeError, PromptError
from edge.system.text import counted, size

if TYPE_CHECKING:
    from edge.answer.answering import AnswerKind
    from edge.answer.sampling import Sampling
    from edge.chat.conversation import Conversation, Reply
    from edge.chat.entries import Entry
    from edge.llama.loading import Loading
    from edge.runner import Runner

_CONTEXT = 8192  # by default
Value = TypeVar("Value")


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE", help="Answer this message and end. Default: an interactive session."
        ),
    ] = None,
    model: ModelOption = None,
    lora: Lora = None,
    answers: Annotated[
        Literal["action", "text"] | None,
        typer.Option(
            metavar="action|text",
            help="Answer with actions as edge run does, or with text. Default: actions for known terminal models.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt; an empty text for none.")
    ] = None,
    screen: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-",
            help="File with a terminal's screen to put beside the first message. -: standard input.",
        ),
    ] = None,
    load: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue a conversation that /save wrote.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=64,
            help="Maximum tokens of the conversation. Default: the model's, at most 8,192.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum tokens of an answer. Default: 1,024 for actions, the rest of --context for text.",
        ),
    ] = None,
    temperature: ChatTemperature = None,
    top_p: ChatTopP = None,
    top_k: ChatTopK = None,
    min_p: ChatMinP = None,
    repetition_penalty: ChatPenalty = None,
    seed: Seed = None,
    think: Annotated[
        str | None,
        typer.Option(
            metavar="off|N",
            help="Maximum tokens of a thought. Default: a quarter of --max-tokens for actions, no maximum for text.",
        ),
    ] = None,
    show_thoughts: Annotated[
        bool,
        typer.Option("--show-thoughts", help="Print the model's thoughts on stderr, not only their length."),
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print the tokens and the speed of each answer on stderr.")
    ] = False,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands",
            help="In a pipe: read lines that begin with / as commands. Default: they are messages.",
        ),
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
    verbose: Verbose = False,
) -> None:
    """Talk with a model. It reads only what is new in each message.

    Without a terminal, each line of standard input is a message. edge runs no command of an answer.
    """
    thought = think_tokens(think, max_tokens)
    _check_given(message, screen)

    from edge.chat.conversation import Conversation
    from edge.chat.kind import default_answers
    from edge.chat.settings import Settings
    from edge.chat.stored import load as load_file
    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading, parse_adapters, with_own_adapter
    from edge.llama.tuned import with_tuned

    def sampling(kind: "AnswerKind") -> "Sampling":
        return _sampling(kind, temperature, top_p, top_k, min_p, repetition_penalty, seed)

    adapters, spread = parse_adapters(lora or ()), spread_of(rpc, tensor_split, main_gpu, split_mode)
    shown = None if screen is None else input_text(screen)
    path = chosen_model(model, note, check=lambda: _check(sampling, load))
    kind: AnswerKind = answers or default_answers(path)
    loading = Loading(gpu_layers, threads, context, 1, batch, kv_type, flash_attention, mmap)
    states = chosen_states(state_cache, no_state_cache, continues=load is not None)
    loading = with_own_adapter(
        path, replace(loading, draft=draft, adapters=adapters, spread=spread, states=states)
    )
    loading = with_tuned(path, loading, measures=False, say=note)
    interactive = message is None and is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if interactive:
        _say(f"loading {path} ({size(path.stat().st_size)})")
    with _opened(path, loading) as (runner, most):
        settings = Settings(sampling(kind), max_tokens, thought, show_thoughts, stats)
        talk = Conversation(runner, kind, most, settings, system)
        if load is not None:
            load_file(talk, load)
        talk.screen = shown
        session = _Session(talk, interactive, commands or is_terminal(sys.stdin))
        if message is not None:
            session.answer(message)
        else:
            session.run()


def _check_given(message: str | None, screen: Path | None) -> None:
    if message is not None and not message.strip():
        raise typer.BadParameter("the message is empty", param_hint="MESSAGE")
    if screen == STDIN and message is None:
        raise typer.BadParameter("standard input has the messages; give a file", param_hint="--screen")


def _check(sampling: "Callable[[AnswerKind], Sampling]", load: Path | None) -> None:
    """Check the options as far as that needs no model: before a download. Raises EdgeError."""
    from edge.chat.stored import check

    sampling("text")
    if load is not None:
        check(load)


@contextlib.contextmanager
def _opened(path: Path, loading: "Loading") -> "Iterator[tuple[Runner, int]]":
    """The loaded model and the context length of a conversation. Prints a note if the context does not fit."""
    from edge.llama.placement import place
    from edge.llama.remote import devices_for
    from edge.runner import Runner
    from edge.system.machine import memory

    free, found = memory(), devices_for(loading)
    no_gpu_note(loading, found)
    with Runner.open(path, loading) as runner:
        most = min(loading.context or _CONTEXT, runner.context_length)
        used = replace(loading, context=most, flash_attention=runner.flash_attention)
        placement(lambda: place(runner.model_file, None, 1, memory=free, devices=found, loading=used))
        yield runner, most


def _sampling(
    kind: "AnswerKind",
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> "Sampling":
    from edge.answer.sampling import Sampling
    from edge.chat.settings import default_sampling

    default = default_sampling(kind)
    return Sampling(
        _given(temperature, default.temperature),
        _given(top_p, default.top_p),
        _given(top_k, default.top_k),
        _given(min_p, default.min_p),
        _given(repetition_penalty, default.repetition_penalty),
        _given(seed, default.seed),
    )


def _given(value: Value | None, default: Value) -> Value:
    return default if value is None else value


@dataclass
class _Session:
    """Reads messages and commands and prints answers: on a terminal, or line by line."""

    talk: "Conversation"
    interactive: bool
    commands: bool
    """Whether a line that begins with / is a command: it can read and write files."""

    def __post_init__(self) -> None:
        self._fallback_noted = False
        self._remember: Callable[[str], None] = lambda entry: None
        if self.talk.answers == "action":
            self.talk.runner.vocabulary.prepare()  # otherwise the first answer waits for it

    def run(self) -> None:
        """Answer each message until the input ends or a command ends the session."""
        from edge.chat.commands import Commands

        talk = self.talk
        if self.interactive:
            _say(
                f"{talk.answers} answers, context {talk.context:,}. /help lists commands; /bye or Ctrl-D ends."
            )
            self._remember = line_editing()
        commands = Commands(talk, self._read_line, _say, self._confirm if self.interactive else None)
        going_on = True
        while going_on:
            try:
                going_on = self._next(commands.run)
            except EdgeError as error:
                if not self.interactive:
                    raise
                _say(f"error: {error}")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                typer.echo("\nTo end, type /bye or press Ctrl-D.", err=True)

    def _next(self, command: Callable[[str], bool]) -> bool:
        """Read one entry and act on it; False at the end."""
        from edge.chat.entries import read_entry

        try:
            entry: Entry = read_entry(self._read_line)
        except EOFError:
            if self.interactive:
                typer.echo()
            return False
        self._remember(entry.raw)
        if not entry.text.strip():
            return True
        if self.commands and entry.command:
            return command(entry.text)
        self.answer(entry.text)
        return True

    def answer(self, text: str) -> None:
        """Answer one message. On a terminal, Ctrl-C ends only the answer."""
        talk = self.talk
        settings = talk.settings
        view = _View(talk.answers == "action", settings.thoughts, settings.wordwrap, is_terminal(sys.stdout))
        with stoppable(self.interactive) as stopped:
            reply = talk.ask(text, view.text, view.thought, stopped)
        view.end()
        if self.interactive:
            typer.echo()
        for line in _notes(talk, reply):
            _say(f"note: {line}")
        if not self._fallback_noted:
            self._fallback_noted = reply.rendered.status != "chat_template"
            note_fallback(talk.runner.model_file.path, reply.rendered)
        if talk.settings.stats:
            _say(_stats(reply))

    def _read_line(self, prompt: str) -> str:
        try:
            if self.interactive:
                return input(prompt)
            data = b"" if sys.stdin is None else sys.stdin.buffer.readline()
            if not data:
                raise EOFError
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise PromptError("the line is not UTF-8 text") from None

    def _confirm(self, question: str) -> bool:
        from edge.chat.layout import safe_text

        try:
            return input(f"{safe_text(question)} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return False


@dataclass
class _View:
    """Prints one answer while it is written: text or JSON on stdout, thoughts on stderr."""

    actions: bool
    thoughts: bool
    wordwrap: bool
    terminal: bool

    def __post_init__(self) -> None:
        from edge.chat.layout import JsonLayout, WordWrap

        wrapped = self.terminal and self.wordwrap and not self.actions
        self._wrap = WordWrap(shutil.get_terminal_size().columns) if wrapped else None
        self._json = JsonLayout(indented=self.terminal) if self.actions else None
        self._thought_tokens = 0
        self._folded = False
        self._styled = self.terminal and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def thought(self, piece: str) -> None:
        """A token of the thought."""
        from edge.chat.layout import safe_text

        self._thought_tokens += 1
        if self.thoughts:
            self._dim(safe_text(piece))
        elif self._styled and self._thought_tokens % 8 == 1:
            self._dim(f"\rthinking: {self._tokens()}")

    def text(self, piece: str) -> None:
        """A part of the answer."""
        from edge.chat.layout import safe_text

        self._fold()
        shown = safe_text(piece) if self._json is None else self._json.feed(piece)
        typer.echo(shown if self._wrap is None else self._wrap.feed(shown), nl=False)

    def end(self) -> None:
        """End the line of the answer."""
        self._fold()
        typer.echo("" if self._wrap is None else self._wrap.end())

    def _fold(self) -> None:
        if self._folded:
            return
        self._folded = True
        if self._thought_tokens and self.thoughts:
            typer.echo(err=True)
        elif self._thought_tokens and self.terminal:
            begin = "\r" if self._styled else ""
            self._dim(f"{begin}thought: {self._tokens()} ")  # one letter less than the line before
            typer.echo(err=True)

    def _tokens(self) -> str:
        return counted(self._thought_tokens, "token")

    def _dim(self, text: str) -> None:
        dim = self._styled and not os.environ.get("NO_COLOR")
        typer.echo(typer.style(text, dim=True) if dim else text, nl=False, err=True)


def _say(text: str) -> None:
    from edge.chat.layout import safe_text

    say(safe_text(text))


def _notes(talk: "Conversation", reply: "Reply") -> Iterator[str]:
    answer = reply.answer
    if reply.dropped and reply.kept:
        yield (
            f"the conversation does not fit into the context of {talk.context:,} tokens any more: the model does not "
            f"see its oldest {counted(reply.dropped, 'message')} from now on; /clear starts again"
        )
    if answer is None:
        yield (
            "stopped; the conversation keeps the answer so far"
            if reply.kept
            else "stopped; the conversation keeps neither the message nor its answer"
        )
    elif answer.closed_at_budget:
        yield (
            f"the budget of {counted(answer.completion_tokens, 'token')} ended before the answer; "
            "edge closed the action validly"
        )
    elif answer.finish_reason == "length":
        more = (
            "raise the limit with --max-tokens or /set max_tokens"
            if talk.settings.max_tokens is not None
            else "the context is full"
        )
        yield f"the answer was cut after {counted(answer.completion_tokens, 'token')}: {more}"


def _stats(reply: "Reply") -> str:
    speed = reply.written / reply.write_seconds if reply.write_seconds else 0.0
    return (
        f"prompt: {counted(reply.prompt_tokens, 'token')}, {reply.read:,} of them new, "
        f"read in {reply.read_seconds:.2f} s; "
        f"answer: {counted(reply.written, 'token')} in {reply.write_seconds:.2f} s ({speed:.1f} tokens/s)"
    )
