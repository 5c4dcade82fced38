"""`edge trial`: how many tasks a model solves in a real shell."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.cli.common import Threads, is_given, note, note_unless, progress_line
from edge.cli.options import (
    ApiKeyFile,
    Batch,
    FlashAttention,
    Force,
    GpuLayers,
    InstructionCache,
    KvType,
    MainGpu,
    MaxTokens,
    MinP,
    NoStateCache,
    Penalty,
    Quiet,
    Rpc,
    Shard,
    SplitMode,
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
from edge.cli.pull import Yes
from edge.cli.results import print_trials
from edge.system.text import counted

if TYPE_CHECKING:
    from edge.answer.answering import Answering
    from edge.llama.loading import Loading
    from edge.trial.engines import Engine
    from edge.trial.root import Root
    from edge.trial.run import Plan
    from edge.trial.tasks import Refused, Task

_MOST_SHOWN = 20  # refused tasks that are named one by one
_MOST_REASONS = 12  # for which tasks are refused
_MOST_NAMES = 3  # of tasks that a reason names


def trial(
    command: typer.Context,
    tasks: Annotated[
        Path | None,
        typer.Argument(
            metavar="TASKS",
            help="Task folder in Harbor's format, or a folder of them. Default: edge's own suite.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="GGUF to try, as in edge eval. Repeatable. With --base-url: the model's name there.",
        ),
    ] = None,
    agent: Annotated[
        Literal["oracle", "nop", "destructive"] | None,
        typer.Option(
            "--agent",
            metavar="oracle|nop|destructive",
            help="Use no model. oracle: type the task's solution. nop: type nothing. destructive: type the task's "
            "solution/destructive.sh.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="Server with the OpenAI API whose model answers, as in edge agent.",
        ),
    ] = None,
    api_key_file: ApiKeyFile = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="With --base-url: maximum seconds to wait for an answer.")
    ] = 600.0,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for results and session records.")
    ] = Path("trials"),
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="Try only this task. Repeatable.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, max=100, help="Attempts at each task.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the seed of each attempt follows from it.")] = 0,
    max_steps: Annotated[int, typer.Option(min=1, help="Maximum number of model answers in a trial.")] = 20,
    max_tokens: MaxTokens = 1024,
    time_limit: Annotated[
        float,
        typer.Option(min=1, help="Maximum seconds of a session. A trial that reaches it does not count."),
    ] = 3600.0,
    parallel: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Trials at the same time. With 1, the same command gives the same result."
        ),
    ] = 1,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    think: Think = None,
    text_share: TextShare = 0.6,
    style: Style = "auto",
    context: Annotated[
        int | None,
        typer.Option("--context", "--ctx", min=256, help="Maximum tokens of a prompt and its answer."),
    ] = None,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    state_cache: InstructionCache = None,
    no_state_cache: NoStateCache = False,
    memory: Annotated[
        int, typer.Option(min=16, help="Sandbox: maximum memory of all its processes in MiB.")
    ] = 2048,
    disk: Annotated[int, typer.Option(min=1, help="Sandbox: maximum size of the work folder in MiB.")] = 1024,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="TAR",
            help="Tar of a file system, from docker export. Tasks get its programs, not those of this system.",
        ),
    ] = None,
    shard: Shard = None,
    export_solved: Annotated[
        Path | None,
        typer.Option("--export-solved", metavar="ROWS", help="Also write the solved trials as replay rows."),
    ] = None,
    write_suite: Annotated[
        Path | None,
        typer.Option(
            "--write-suite", metavar="FOLDER", help="Write edge's own tasks into this folder, and end."
        ),
    ] = None,
    force: Force = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Count the tasks that a model solves in a sandboxed shell.

    A task's own tests decide, in a fresh sandbox. If it is interrupted, run the same command again to resume.
    """
    if write_suite is not None:
        return _write_suite(write_suite)
    _check(command, model, agent, base_url, attempts, temperature, export_solved)
    from edge.agent.loop import Limits
    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.llama.loading import Loading
    from edge.replay.shards import parse_shard
    from edge.terminal.check import Limits as SandboxLimits
    from edge.trial.run import Plan

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    answering = Answering(max_tokens, sampling, think_tokens(think, max_tokens), text_share, style)
    spread = spread_of(rpc, tensor_split, main_gpu, split_mode)
    loading = Loading(gpu_layers, threads, context, None, batch, kv_type, flash_attention, spread=spread)
    loading = replace(loading, states=chosen_states(state_cache, no_state_cache, whole=False))
    sandbox = SandboxLimits(memory << 20, disk << 20)
    limits, part = Limits(max_steps, time_limit), parse_shard(shard)
    with _read(tasks, task or (), root, quiet=quiet) as (shown, runnable, refused, system):
        plan = Plan(runnable, refused, shown, attempts, seed, limits, max_tokens, sandbox, parallel)
        plan = replace(plan, root=system, shard=part, inputs=(root, api_key_file))
        served = None if base_url is None else (base_url, api_key_file, timeout)
        engines = _engines(model, agent, served, answering, loading, yes=yes, quiet=quiet)
        _run(engines, plan, out, export_solved, force=force, quiet=quiet)


@contextlib.contextmanager
def _read(
    tasks: Path | None, names: "Sequence[str]", root: Path | None, *, quiet: bool
) -> "Iterator[tuple[str, list[Task], list[Refused], Root | None]]":
    """The tasks and the root, and a sandbox tried with it. The first value: the place of the tasks, for people."""
    from edge.trial.place import check_sandbox
    from edge.trial.root import unpacked_root
    from edge.trial.suite import NAME, suite_folder
    from edge.trial.tasks import find_tasks, read_tasks

    shown = str(tasks or NAME)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(suite_folder()) if tasks is None else tasks
        runnable, refused = read_tasks(find_tasks(place, names, shown))
        _show_refused(refused, len(runnable), quiet=quiet)
        system = None if root is None else stack.enter_context(unpacked_root(root))
        check_sandbox(None if system is None else system.folder)
        yield shown, runnable, refused, system


def _run(
    engines: "Sequence[Engine]", plan: "Plan", out: Path, rows: Path | None, *, force: bool, quiet: bool
) -> None:
    """Run all trials, print the figures, and write the rows of the solved ones."""
    from edge.errors import ResultError
    from edge.trial.engines import LocalModel
    from edge.trial.export import check_rows, export_solved, run_of
    from edge.trial.outputs import check_apart
    from edge.trial.run import run_trials, stored_form

    models = [engine.path for engine in engines if isinstance(engine, LocalModel)]
    if rows is not None:  # before the trials, which take long
        check_apart(rows, plan.tasks, [*models, *plan.inputs], option="--export-solved")
        own = [out / f"{engine.name}.json" for engine in engines]
        if os.path.realpath(rows) in map(os.path.realpath, own):
            raise ResultError(f"{rows}: is given for two outputs: give another name")
        run = run_of([stored_form(plan.identity(engine)) for engine in engines])
        check_rows(rows, run, models, force=force)
    say = None if quiet else progress_line
    results = [run_trials(engine, plan, out, force=force, say=say) for engine in engines]
    print_trials(results)
    if rows is not None:
        count = export_solved(results, rows, models, force=force)
        note(f"{rows}: wrote {counted(count, 'row')} of solved trials")


def _check(
    command: typer.Context,
    model: list[str] | None,
    agent: str | None,
    base_url: str | None,
    attempts: int,
    temperature: float,
    export_solved: Path | None,
) -> None:
    """Raises typer.BadParameter for options that do not fit together, ResultError for an output that is a model."""
    from edge.system.outputs import check_output

    if agent is not None and (model or base_url):
        raise typer.BadParameter("a script works instead of a model: leave out --model", param_hint="--agent")
    if base_url is not None and len(model or ()) > 1:
        raise typer.BadParameter("name one model of the server", param_hint="--model")
    if agent is not None and export_solved is not None:
        raise typer.BadParameter("a script writes no rows: name a --model", param_hint="--export-solved")
    if attempts > 1 and temperature == 0 and agent is None:
        raise typer.BadParameter(
            "at temperature 0 all attempts are alike: add --temperature 0.7", param_hint="--attempts"
        )
    if base_url is None and (is_given(command, "api_key_file") or is_given(command, "timeout")):
        raise typer.BadParameter("is for a server: add --base-url", param_hint="--api-key-file, --timeout")
    if export_solved is not None:  # before the trials, which take long
        check_output(export_solved, model or (), option="--export-solved")


def _engines(
    model: list[str] | None,
    agent: Literal["oracle", "nop", "destructive"] | None,
    served: tuple[str, Path | None, float] | None,
    answering: "Answering",
    loading: "Loading",
    *,
    yes: bool,
    quiet: bool,
) -> "list[Engine]":
    """The models to try, or the script. Two models must not have one name."""
    from edge.cli.defaults import chosen_model
    from edge.replay.openai import Service
    from edge.trial.engines import LocalModel, ScriptedModel, ServedModel

    if agent is not None:
        return [ScriptedModel(agent)]
    if served is not None:
        url, key_file, timeout = served
        service = Service(model[0] if model else None, timeout=timeout, key_file=key_file)
        return [ServedModel(url, service, answering, loading.context)]
    named: list[str | None] = [*model] if model else [None]
    paths = [chosen_model(name, note_unless(quiet), yes=yes, measures=True) for name in named]
    for name, count in Counter(path.stem for path in paths).items():
        if count > 1:
            raise typer.BadParameter(f"{count} models have the name {name}", param_hint="--model")
    given = model or [str(path) for path in paths]
    return [LocalModel(path, name, loading, answering) for path, name in zip(paths, given, strict=True)]


def _write_suite(folder: Path) -> None:
    from edge.trial.suite import write_suite

    note(f"{folder}: wrote {counted(len(write_suite(folder)), 'task')}")


def _show_refused(refused: "Sequence[Refused]", runnable: int, *, quiet: bool) -> None:
    """Say which tasks cannot run here. Raises ReplayError if none can."""
    from edge.errors import ReplayError

    reasons: dict[str, list[str]] = {}
    for one in refused:
        reasons.setdefault(one.reason, []).append(one.name)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    if refused and not quiet:
        if runnable and len(refused) <= _MOST_SHOWN:
            for one in refused:
                note(f"not runnable here: {one.name}: {one.reason}")
        elif len(refused) > 1:
            note(f"{len(refused)} of {len(refused) + runnable} tasks are not runnable here:")
            for reason, names in ordered[:_MOST_REASONS]:
                note(f"{counted(len(names), 'time')}: {reason}: {_first(names)}")
            if left := ordered[_MOST_REASONS:]:
                count = sum(len(names) for _, names in left)
                note(f"{counted(count, 'time')}: {counted(len(left), 'further reason')}")
    if not runnable:
        reason, names = ordered[0]
        raise ReplayError(
            f"none of {counted(len(refused), 'task')} can run here, so no result is written; "
            f"{counted(len(names), 'time')}: {reason}"
        )


def _first(names: "Sequence[str]") -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
