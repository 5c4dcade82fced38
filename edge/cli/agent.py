"""The commands `edge agent` and `edge replay`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edge.cli.common import Threads, is_given, is_terminal, note, note_unless, progress_line
from edge.cli.options import (
    ApiKeyFile,
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
from edge.errors import Interrupted

if TYPE_CHECKING:
    from edge.agent.options import SessionOptions


# Options that only a model on this machine has, and those that only a server has.
_LOCAL = (
    "lora think text_share style gpu_layers rpc tensor_split main_gpu split_mode threads batch kv_type "
    "flash_attention draft mmap state_cache no_state_cache"
).split()
_SERVER = ["api_key_file", "timeout"]


def agent(
    command: typer.Context,
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="What the model must do.")] = None,
    workdir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to work in. Default: the current folder.")
    ] = None,
    model: ModelOption = None,
    lora: Lora = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="Server with the OpenAI API, for example http://localhost:8000/v1, whose model answers. --model is "
            "its name there.",
        ),
    ] = None,
    api_key_file: ApiKeyFile = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="With --base-url: maximum seconds to wait for an answer.")
    ] = 600.0,
    review: Annotated[
        bool, typer.Option("--review", help="Ask before each action. Default on a terminal.")
    ] = False,
    allow: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Type only what this allowlist allows: a TOML file, or reading, git, pytest or make.",
        ),
    ] = None,
    sandboxed: Annotated[
        bool,
        typer.Option(
            "--sandbox",
            help="Work in a sandbox (bubblewrap): no network, a copy of the folder, limits.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Ask nothing, and bring the changes back at the end. Only with --sandbox.",
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Session record to write. Default: in the user's state folder."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue this session record in a new terminal.")
    ] = None,
    bring_back: Annotated[
        str | None,
        typer.Option(
            metavar="SESSION",
            help="Bring back what this sandboxed session changed, by its record or its name.",
        ),
    ] = None,
    undo: Annotated[
        str | None,
        typer.Option(metavar="SESSION", help="Undo what edge brought back from this session the last time."),
    ] = None,
    prompt_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="First prompt to use, with {instruction} and {terminal_state}, such as Harbor's.",
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Maximum number of model answers.")] = 50,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Maximum time in seconds; your own decisions do not count.")
    ] = 1800.0,
    full_waits: Annotated[
        bool,
        typer.Option(
            "--full-waits",
            help="Wait as long as the model says, also if its commands have ended, as Terminus-2 does.",
        ),
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=256,
            help="Maximum tokens of a prompt and its answer. Default: the model's, at most 32,768.",
        ),
    ] = None,
    memory: Annotated[
        int, typer.Option(min=16, help="Sandbox: maximum memory of all its processes in MiB.")
    ] = 2048,
    disk: Annotated[int, typer.Option(min=1, help="Sandbox: maximum size of the work folder in MiB.")] = 1024,
    processes: Annotated[int, typer.Option(min=16, help="Sandbox: maximum number of processes.")] = 128,
    dot_files: Annotated[
        bool,
        typer.Option(
            "--dot-files",
            help="Sandbox: also bring back names that begin with a dot (.git) and instructions for agents.",
        ),
    ] = False,
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only how the session ended.")] = False,
    verbose: Verbose = False,
) -> None:
    """Let a model work on a task in a terminal. edge types nothing without permission.

    Without a gate, edge only shows the first action.
    """
    if bring_back is not None or undo is not None:
        return _later(bring_back, undo, task, _Answers(yes, dot_files))
    from edge.agent.loop import Limits
    from edge.agent.options import Permission, ServerOptions, SessionOptions
    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.llama.loading import Loading, parse_adapters
    from edge.terminal.check import Limits as SandboxLimits

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    options = SessionOptions(
        task=task,
        permission=Permission(_has_person(), review, allow, sandboxed, yes),
        workdir=workdir,
        model=model,
        server=ServerOptions(base_url, api_key_file, timeout),
        local_options=_given(command, _LOCAL),
        server_options=_given(command, _SERVER),
        record=record,
        resume=resume,
        template=prompt_template,
        limits=Limits(max_steps, time_limit),
        sandbox=SandboxLimits(memory << 20, disk << 20, processes=processes),
        full_waits=full_waits,
        dot_files=dot_files,
        loading=Loading(
            *(gpu_layers, threads, context, None, batch, kv_type, flash_attention, mmap),
            draft=draft,
            adapters=parse_adapters(lora or ()),
            spread=spread_of(rpc, tensor_split, main_gpu, split_mode),
            states=chosen_states(state_cache, no_state_cache, whole=True),
        ),
        answering=Answering(max_tokens, sampling, think_tokens(think, max_tokens), text_share, style),
    )
    _run(options, quiet)


def _given(command: typer.Context, names: list[str]) -> tuple[str, ...]:
    """Those of these options that were given."""
    return tuple("--" + name.replace("_", "-") for name in names if is_given(command, name))


class _Answers(NamedTuple):
    yes: bool
    dot_files: bool


def _later(bring_back: str | None, undo: str | None, task: str | None, answers: _Answers) -> None:
    """Bring back or undo the changes of an earlier session; exit with 1 if not all of it was done."""
    from rich.console import Console

    from edge.agent.bring_back import Consent
    from edge.agent.bring_back import bring_back as bring_back_session
    from edge.agent.bring_back import undo as undo_session

    if task is not None or None not in (bring_back, undo):
        raise typer.BadParameter("give one of TASK, --bring-back and --undo", param_hint="TASK")
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    person, yes = _has_person(), answers.yes
    if undo is not None:
        if not undo_session(undo, Consent(person, yes), console, note):
            raise typer.Exit(1)
        return
    if not (person or yes):
        raise typer.BadParameter(
            "this is not a terminal, so edge cannot ask: add --yes", param_hint="--bring-back"
        )
    consent = Consent(person, yes, losses=yes)
    if not bring_back_session(bring_back or "", consent, console, note, dot_files=answers.dot_files):
        raise typer.Exit(1)


def _has_person() -> bool:
    """Whether somebody is at the terminal and can answer."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def _run(options: "SessionOptions", quiet: bool) -> None:
    """Run the session and print how it ended; exit with 1 if the task is not complete and nobody stopped it."""
    from functools import partial

    from rich.console import Console

    from edge.agent.options import Interface, option_conflict
    from edge.agent.session import run_session
    from edge.cli.defaults import agent_model, chosen_model
    from edge.system.progress import waiting

    if conflict := option_conflict(options):
        raise typer.BadParameter(conflict.reason, param_hint=conflict.option)
    person = options.permission.person and not options.permission.yes

    def find_model(given: str | None) -> Path:
        named = note_unless(quiet)
        return agent_model(named, person=person) if given is None else chosen_model(given, named)

    interface = Interface(
        console=Console(highlight=False, soft_wrap=True, emoji=False),
        say=note,
        waiting=partial(waiting, "The model reads and writes", None if quiet else progress_line),
        find_model=find_model,
        quiet=quiet,
    )
    ending = run_session(options, interface)
    if ending.outcome == "interrupted":
        raise Interrupted(ending.text or "interrupted")
    if ending.text is not None:
        note(ending.text)
    if ending.undecided or ending.outcome not in ("complete", "stopped"):
        raise typer.Exit(1)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Session record, or other replay rows.")],
    task_id: Annotated[str | None, typer.Option("--task", help="Show only this task_id.")] = None,
    delay: Annotated[
        float | None, typer.Option(min=0, help="Seconds between steps. Default: 1 on a terminal, else 0.")
    ] = None,
) -> None:
    """Show a recorded session again: the screens and the keystrokes."""
    from rich.console import Console

    from edge.agent.playback import play

    seconds = (1.0 if is_terminal(sys.stdout) else 0.0) if delay is None else delay
    play(file, Console(highlight=False, soft_wrap=True, emoji=False), task_id=task_id, delay=seconds)
