"""The command line's part about agents: `edge agent` and `edge replay`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli.common import Interrupted, Threads, note
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
from edge.errors import AgentError

if TYPE_CHECKING:
    from edge.agent.gate import Gate
    from edge.agent.loop import Outcome
    from edge.agent.record import Record
    from edge.terminal.sandbox import Limits, Sandbox

_SAYS = {
    "complete": "the model says that the task is complete",
    "stopped": "stopped",
    "steps": "the limit of steps was reached",
    "time": "the time limit was reached",
    "refusals": "the model's actions were refused too often in a row",
    "ended": "the terminal has ended",
    "interrupted": "interrupted",
}


def agent(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="What to do.")] = None,
    workdir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to work in. Default: the current one.")
    ] = None,
    model: ModelOption = None,
    review: Annotated[
        bool, typer.Option("--review", help="Ask before each action. The default on a terminal.")
    ] = False,
    allow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Type only what this TOML list of commands allows.")
    ] = None,
    sandboxed: Annotated[
        bool,
        typer.Option(
            "--sandbox", help="Work in a sandbox (bubblewrap): no network, a copy of the folder, limits."
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Ask nothing, and bring the changes back at the end. Only with --sandbox."
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the session is kept. Default: in the user's state folder."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with this session, in a new terminal.")
    ] = None,
    prompt_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another first prompt, with {instruction} and {terminal_state}, such as Harbor's.",
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Answers of the model at most.")] = 50,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Seconds at most; while you decide, they stand still.")
    ] = 1800.0,
    context: Annotated[
        int | None,
        typer.Option(
            min=256, help="Tokens of a prompt and its answer. Default: the model's, at most 32,768."
        ),
    ] = None,
    memory: Annotated[
        int, typer.Option(min=16, help="sandbox: MiB of memory for all that runs in it.")
    ] = 2048,
    disk: Annotated[int, typer.Option(min=1, help="sandbox: MiB that the work folder may take.")] = 1024,
    processes: Annotated[int, typer.Option(min=8, help="sandbox: processes at once.")] = 128,
    dot_files: Annotated[
        bool,
        typer.Option(
            "--dot-files",
            help="sandbox: bring back names that begin with a dot, such as .git, and agents' instructions, too.",
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
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no actions and no screens, only how it ended.")
    ] = False,
) -> None:
    """Let the model work on a task in a terminal. Nothing is typed unasked: without a gate it is only shown."""
    thought = think_tokens(think)
    person = sys.stdin.isatty() and sys.stdout.isatty()
    _check_gates(review, allow, sandboxed, yes, person)
    if (task is None) == (resume is None):
        raise typer.BadParameter("give a TASK, or a session to go on with by --resume", param_hint="TASK")
    for option, value, what in (
        ("--record", record, "file"),
        ("--workdir", workdir, "folder"),
        ("--prompt-template", prompt_template, "prompt"),
    ):
        if resume is not None and value is not None:
            raise typer.BadParameter(f"--resume goes on with the session's own {what}", param_hint=option)
    if task is not None and (not task.strip() or any("\ud800" <= c <= "\udfff" for c in task)):
        raise typer.BadParameter("the task is empty, or no UTF-8 text", param_hint="TASK")

    from contextlib import ExitStack
    from functools import partial

    from rich.console import Console

    from edge.agent.gate import Proposal
    from edge.agent.loop import Agent, packed_path
    from edge.agent.record import Record, new_record_path
    from edge.agent.show import shown_proposal, visible
    from edge.agent.wording import read_template
    from edge.answer.sampling import Sampling
    from edge.cli.defaults import default_model
    from edge.llama.memory import BATCH
    from edge.runner import Runner
    from edge.system.progress import waiting
    from edge.terminal.sandbox import Limits
    from edge.terminal.tmux import SHELL, Terminal

    console = Console(highlight=False, soft_wrap=True)

    def show(what: Proposal | str) -> None:
        if quiet and not ask:
            return
        console.print(shown_proposal(what) if isinstance(what, Proposal) else visible(what), end="\n")

    template = None if prompt_template is None else read_template(prompt_template)
    ask = review or (person and not yes and allow is None)
    gate = _gate(console, ask, allow, yes)
    with ExitStack() as stack:
        if resume is not None:
            left = sandboxed and packed_path(resume).exists()
            kept = stack.enter_context(Record.resume(resume, completed=left))
            facts = kept.facts
            if bool(facts.get("sandbox")) != sandboxed:
                how = "in" if facts.get("sandbox") else "without"
                raise AgentError(f"{resume}: was begun {how} a sandbox: go on with it the same way")
            workdir = Path(str(facts.get("workdir") or ""))
            model = model or Path(str(facts["model"]))
        folder = workdir or Path()
        if not folder.is_dir():
            raise AgentError(f"{folder}: is no folder to work in")
        folder = folder.resolve()
        place = resume or record or new_record_path(task or "")
        packed = packed_path(place)

        def make_sandbox() -> "Sandbox":
            files = (place, packed, allow, prompt_template, model)
            own = [file for file in files if file is not None]
            return _sandbox(folder, packed, Limits(memory << 20, disk << 20, processes=processes), own)

        if resume is not None and kept.outcome == "complete":  # what was held back may come now
            with make_sandbox() as box:
                _bring_back(console, box, packed, "complete", ask=not yes, dot_files=dot_files)
            return
        model = path = model or default_model(note)
        runner = stack.enter_context(
            Runner.load(
                path,
                gpu_layers=gpu_layers,
                threads=threads,
                batch=batch or BATCH,
                kv_type=kv_type,
                flash_attention=flash_attention,
                mmap=mmap,
            )
        )
        if resume is None:
            facts = {
                "task": task,
                "model": str(path.absolute()),
                "workdir": str(folder),
                "sandbox": sandboxed,
            }
            if sandboxed and os.path.lexists(packed):
                raise AgentError(
                    f"{packed}: is there already, the work folder of another session: "
                    "choose another --record, or remove it"
                )
            kept = stack.enter_context(Record.create(place, facts))
        lost = sandboxed and resume is not None and kept.outcome is None and not _is_newer(packed, kept)
        sandbox: Sandbox | None = None
        try:
            if sandboxed:
                sandbox = stack.enter_context(make_sandbox())
            start = Terminal.start(
                sandbox.argv if sandbox else SHELL, cwd=folder, ready=sandbox.wait_ready if sandbox else None
            )
            terminal = stack.enter_context(start)
        except BaseException:
            if not kept.rows:
                kept.finish("ended", "")
            raise
        session = Agent(
            runner=runner,
            terminal=terminal,
            gate=gate,
            record=kept,
            show=show,
            workdir=folder,
            sandbox=sandbox,
            lost=lost,
            line_by_line=allow is not None,
            template=template,
            context=min(context or 32_768, runner.engine.context_length),
            max_tokens=max_tokens,
            max_steps=max_steps,
            time_limit=time_limit,
            answer_options={
                "sampling": Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed),
                "think": thought,
                "text_share": text_share,
                "style": style,
            },
            waiting=partial(waiting, "The model reads and writes", show=not quiet),
        )
        outcome = session.run()
        typed = bool(kept.rows)
        if gate is _shown_only and outcome == "stopped":
            note("dry run: nothing was typed. Choose a gate: --review, --allow FILE, or --sandbox --yes")
            return
        if sandbox is not None and typed:
            _bring_back(console, sandbox, packed, outcome, ask=not yes, dot_files=dot_files)
        going_on = terminal.close()
    for process in going_on:
        note(f"still running: {process}")
    _end(outcome, kept.path if typed else None)


def _check_gates(review: bool, allow: Path | None, sandboxed: bool, yes: bool, person: bool) -> None:
    """Raises typer.BadParameter for gates that do not go together, or that nobody is there to watch."""
    if yes and not sandboxed:
        raise typer.BadParameter("unattended runs need the sandbox: add --sandbox", param_hint="--yes")
    if yes and review:
        raise typer.BadParameter("--review asks and --yes does not", param_hint="--yes")
    if review and not person:
        raise typer.BadParameter("nobody can be asked: this is no terminal", param_hint="--review")
    if sandboxed and not (yes or person):
        raise typer.BadParameter("nobody can be asked here: add --yes", param_hint="--sandbox")
    if allow is not None and not (sandboxed or person):
        raise typer.BadParameter(
            "a list is no gate for an unattended run: add --sandbox --yes", param_hint="--allow"
        )


def _shown_only(proposal: Any) -> Any:
    from edge.agent.gate import Decision

    return Decision("stop", proposal)


def _gate(console: Any, ask: bool, allow: Path | None, yes: bool) -> "Gate":
    from edge.agent.allow import read_allowlist
    from edge.agent.gate import all_of, allow_gate, open_gate
    from edge.agent.review import review_gate

    gates: list[Gate] = []
    if allow is not None:
        allowlist = read_allowlist(allow)
        for warning in allowlist.warnings:
            note(warning)
        gates.append(allow_gate(allowlist))
    if ask:
        gates.append(review_gate(console))
    if yes and not gates:
        gates.append(open_gate)
    return all_of(gates) if gates else _shown_only


def _sandbox(workdir: Path, packed: Path, limits: "Limits", own: list[Path]) -> "Sandbox":
    """`own`: the session's own files, which the sandbox never changes, should they lie in the work folder."""
    from edge.terminal.sandbox import Sandbox

    sandbox = Sandbox.prepare(workdir, limits, packed if packed.exists() else None, own)
    if sandbox.left_out:
        note(
            f"not in the sandbox, since unreadable or no files: {', '.join(sandbox.left_out[:5])}"
            f"{' …' * (len(sandbox.left_out) > 5)}"
        )
    return sandbox


def _is_newer(packed: Path, kept: "Record") -> bool:
    """Whether the archive holds what the last action did: it is written after its row."""
    return packed.exists() and packed.stat().st_mtime_ns >= kept.last_written


def _bring_back(
    console: Any, sandbox: "Sandbox", packed: Path, outcome: "Outcome", *, ask: bool, dot_files: bool
) -> None:
    """Show what changed in the sandbox, and bring it back if the person, or --yes, says so."""
    if outcome in ("interrupted", "ended"):
        kept = f"; the work folder as it was after the last whole step: {packed}" if packed.exists() else ""
        note(f"nothing was brought back{kept}")
        return
    from edge.agent.review import forget_typed_ahead

    changes = sandbox.changes(packed, dot_files=dot_files)
    console.print(str(changes), markup=False)
    if changes and ask:
        forget_typed_ahead()
        try:
            answer = console.input("Bring these changes back into the folder? [y/N] ", markup=False)
        except (EOFError, KeyboardInterrupt):
            console.print()
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            note(f"nothing was brought back; the work folder as the agent left it: {packed}")
            return
    withheld = changes.withheld
    if changes:
        withheld = sandbox.bring_back(packed, dot_files=dot_files).withheld
        for place, why in withheld[len(changes.withheld) :]:
            note(f"{place}: not brought back: {why}")
    if withheld:
        note(f"what was not brought back is kept in {packed}, the work folder as the agent left it")
    else:
        packed.unlink(missing_ok=True)


def _end(outcome: "Outcome", path: Path | None) -> None:
    said = f"{_SAYS[outcome]}" + (f"; the session: {path}" if path else "")
    if outcome == "interrupted":
        raise Interrupted(f"{said}; go on with it by --resume" if path else said)
    note(said)
    if outcome not in ("complete", "stopped"):
        raise typer.Exit(1)


def replay(
    file: Annotated[Path, typer.Argument(help="A session, or any replay rows.")],
    task_id: Annotated[str | None, typer.Option("--task", help="Only this task_id.")] = None,
    delay: Annotated[
        float | None, typer.Option(min=0, help="Seconds between steps. Default: 1 on a terminal.")
    ] = None,
) -> None:
    """Show a recorded session again: what the terminal showed, and what was typed."""
    from rich.console import Console

    from edge.agent.playback import play

    seconds = (1.0 if sys.stdout.isatty() else 0.0) if delay is None else delay
    try:
        play(file, Console(highlight=False, soft_wrap=True), task_id=task_id, delay=seconds)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
