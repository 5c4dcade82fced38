"""One session of an agent, from its options to its end: resume, sandbox, gates, loop, and bringing changes back.

`edge agent` calls `run_session`. Everything that a person sees goes through the `Interface` of the caller.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.text import Text

from edge.agent.allow import Allowlist, is_name, read_allowlist
from edge.agent.bring_back import Consent, Return, hidden_files
from edge.agent.gate import Gate, all_of, allow_gate, closed_gate, open_gate
from edge.agent.kept import archive_path, command, commits_path, first_path, remove_old, sessions_folder
from edge.agent.loop import Agent, Outcome
from edge.agent.options import Ending, Interface, Permission, SessionOptions
from edge.agent.proposal import Proposal
from edge.agent.record import ModelFacts, Record, SessionFacts, new_record_path
from edge.agent.review import ask_gate, review_gate
from edge.agent.rules import Place
from edge.agent.show import Screen, continued, highlighted, shown_facts, shown_proposal, shown_screen, time_of
from edge.agent.source import Source, find_source
from edge.agent.wording import read_template
from edge.agent.workplace import Workplace, open_workplace
from edge.errors import AgentError
from edge.system.text import counted
from edge.terminal.check import WORK
from edge.terminal.tmux import check_terminal

if TYPE_CHECKING:
    from edge.terminal.sandbox import Sandbox

_OUTCOMES: dict[Outcome, str] = {
    "complete": "the model says that the task is complete",
    "stopped": "stopped",
    "steps": "the step limit was reached",
    "time": "the time limit was reached",
    "refusals": "too many actions in a row were refused",
    "repeated": "the model gave one action five times, and its output was the same",
    "invalid": "three answers in a row were not valid actions",
    "failed": "the model could not answer",
    "ended": "the terminal has ended",
    "interrupted": "interrupted",
}
_SETTLE = 5.0  # seconds
_DRY_RUN = "dry run: edge typed nothing. Choose a gate: --review, --allow FILE, or --sandbox --yes"


@dataclass(frozen=True)
class _Paths:
    """The files of a session. `folder`: the work folder. `archive`: the sandbox's copy of it."""

    record: Path
    archive: Path
    folder: Path
    source: Source


def run_session(options: SessionOptions, interface: Interface) -> Ending:
    """Run one session, or bring back what a complete session held back.

    Check the options with `option_conflict` first. Raises EdgeError: a file cannot be read or written, the model cannot
    be loaded, or the sandbox or the terminal does not start or fails.
    """
    check_terminal()
    template = None if options.template is None else read_template(options.template)
    allowlist = _allowlist(options.permission, interface)
    with ExitStack() as stack:
        resumed = None if options.resume is None else stack.enter_context(_resume(options.resume, options))
        paths = _paths(options, resumed, interface)
        gate = make_gate(options.permission, interface, allowlist, paths.folder)
        if resumed is not None and resumed.outcome == "complete":
            whole = _return(options, paths, resumed, interface).run()
            return Ending("complete", undecided=not whole)
        model = stack.enter_context(paths.source.open(options, interface))
        record = resumed or stack.enter_context(_new_record(options, paths, paths.source.facts(model)))
        paths = replace(paths, record=record.path, archive=archive_path(record.path))
        if options.permission.sandbox:
            _remove_old(interface)
        _show_header(options, paths, interface)
        lost = options.permission.sandbox and _lost_action(resumed, paths.archive)
        show = _show(options, interface)
        workplace = stack.enter_context(_start(options, paths, record, interface, show))
        agent = Agent(
            model=model,
            workplace=workplace,
            gate=gate,
            record=record,
            show=show,
            limits=options.limits,
            template=template,
            lost=lost,
            settle=_SETTLE,
            waiting=interface.waiting,
        )
        outcome = agent.run()
        if gate is closed_gate and outcome == "stopped":
            return Ending(outcome, _DRY_RUN)
        whole = True
        if workplace.sandbox is not None and record.rows:
            if outcome != "ended":
                workplace.save_commits(commits_path(paths.record))
            if outcome in ("interrupted", "ended", "failed", "invalid"):
                _keep_archive(paths, interface)
            else:
                whole = _return(options, paths, record, interface).run() and workplace.unsaved is None
            if workplace.unsaved is not None:
                interface.say(f"the work of the last actions was not saved: {workplace.unsaved}")
        processes = workplace.terminal.close()
    for process in processes:
        interface.say(f"still running: {process}")
    return Ending(outcome, _summary(outcome, record, agent.failure), undecided=not whole)


def _show_header(options: SessionOptions, paths: _Paths, interface: Interface) -> None:
    """Say what a person must know before the first question; without a person, only the model and its adapters."""
    permission, limits, sandbox = options.permission, options.limits, options.sandbox
    if permission.yes or not permission.person:
        if not interface.quiet:
            for name, value in paths.source.shown().items():
                found = name == "model" and options.model is None and options.resume is None
                if value and not found:  # interface.find_model names the one that it finds
                    interface.say(f"{name}: {value}")
        return
    place = "your own shell: what edge types runs as you, in this folder"
    if permission.sandbox:
        size = f"{sandbox.memory >> 20:,} MiB of memory, {sandbox.disk >> 20:,} MiB of files"
        place = f"the sandbox: a copy of the folder, no network, {size}"
    facts = {
        **paths.source.shown(),
        "folder": paths.folder,
        "runs in": place,
        "allowlist": permission.allow or "",
        "record": paths.record,
        "limits": f"{counted(limits.steps, 'step')}, {time_of(limits.seconds)}; your own time does not count",
    }
    interface.console.print(shown_facts(facts))


def _allowlist(permission: Permission, interface: Interface) -> Allowlist | None:
    """The list of --allow, with its warnings said. Raises AllowError."""
    if permission.allow is None:
        return None
    allowlist = read_allowlist(permission.allow)
    for warning in allowlist.warnings:
        interface.say(warning)
    return allowlist


def make_gate(
    permission: Permission, interface: Interface, allowlist: Allowlist | None, folder: Path
) -> Gate:
    """The gate that these permissions describe; `closed_gate` without any. `folder`: the work folder."""
    gates: list[Gate] = []
    if allowlist is not None:
        place = Place(folder, WORK if permission.sandbox else None)
        if permission.asks:  # the review asks in any case
            gates.append(allow_gate(allowlist, place, lambda proposal, why: open_gate(proposal)))
        else:
            asking = ask_gate(interface.console, permission.sandbox, show=interface.quiet)
            alone = permission.yes or not permission.person
            gates.append(allow_gate(allowlist, place, None if alone else asking))
    if permission.asks:
        gates.append(review_gate(interface.console, permission.sandbox))
    if permission.yes and not gates:
        gates.append(open_gate)
    return all_of(gates) if gates else closed_gate


def _resume(path: Path, options: SessionOptions) -> Record:
    """Open the record of a session to continue it, with or without a sandbox as before."""
    wants_sandbox = options.permission.sandbox
    record = Record.resume(path, completed=wants_sandbox and archive_path(path).exists())
    had_sandbox = bool(record.facts.get("sandbox"))
    if had_sandbox != wants_sandbox:
        record.close()
        how, change = ("in", "add") if had_sandbox else ("without", "remove")
        raise AgentError(f"{path}: this session began {how} a sandbox: {change} --sandbox")
    return record


def _paths(options: SessionOptions, resumed: Record | None, interface: Interface) -> _Paths:
    folder = options.workdir
    if resumed is not None:
        folder = Path(resumed.facts.get("workdir", ""))
    folder = folder or Path()
    if not folder.is_dir():
        raise AgentError(f"{folder}: is not a folder: choose another --workdir")
    if options.permission.sandbox and options.resume is None and options.workdir is None:
        _check_place(folder)
    record = options.resume or options.record or new_record_path(options.task or "")
    source = find_source(options, resumed, interface)
    return _Paths(record, archive_path(record), folder.resolve(), source)


def _check_place(folder: Path) -> None:
    """Raises AgentError for the home folder, and for a folder that contains it: the person has to name it."""
    try:
        home = Path.home().resolve()
    except RuntimeError:  # this user has none
        return
    if home.is_relative_to(folder.resolve()):
        raise AgentError(
            f"{folder.resolve()}: holds your home folder, and the session would change all of it: go to a project's "
            "folder, or name a folder with --workdir"
        )


def _new_record(options: SessionOptions, paths: _Paths, model: ModelFacts) -> Record:
    """Begin the record. A name that edge chose is chosen again if another session has taken it since."""
    task, sandbox = options.task or "", options.permission.sandbox
    facts = cast(SessionFacts, {"task": task, **model, "workdir": str(paths.folder), "sandbox": sandbox})
    if sandbox:
        facts["own_files"] = [str(file.absolute()) for file in _own_files(options, paths)]
    while True:
        record = options.record or new_record_path(task)
        try:
            for path in (archive_path(record), first_path(record), commits_path(record)):
                if sandbox and os.path.lexists(path):
                    raise AgentError(
                        f"{path}: already exists, and is of another session, which may be running: choose another "
                        "--record"
                    )
            return Record.create(record, facts)
        except AgentError:
            if options.record is not None or not os.path.lexists(record):
                raise


def _remove_old(interface: Interface) -> None:
    if removed := remove_old():
        interface.say(f"removed {counted(removed, 'old archive')} of sessions from {sessions_folder()}")


def _lost_action(resumed: Record | None, archive: Path) -> bool:
    """Whether the archive misses the last action: a session writes the row first, and the archive after the action."""
    if resumed is None or resumed.outcome is not None:
        return False
    return not archive.exists() or archive.stat().st_mtime_ns < resumed.last_written


@contextlib.contextmanager
def _start(
    options: SessionOptions,
    paths: _Paths,
    record: Record,
    interface: Interface,
    say: Callable[[str], None],
) -> Iterator[Workplace]:
    """Start the sandbox and the terminal. If they do not start, remove a new record.

    At the end, remove the archive of the first state if the session typed nothing.
    """

    def remove_unused() -> None:
        if options.permission.sandbox and not record.rows:
            first_path(paths.record).unlink(missing_ok=True)

    with ExitStack() as stack:
        stack.callback(remove_unused)
        try:
            sandbox = None
            if options.permission.sandbox:
                sandbox = stack.enter_context(_make_sandbox(options, paths, record, interface))
            line_by_line = options.permission.allow is not None
            secrets = paths.source.secrets
            workplace = open_workplace(
                paths.folder,
                sandbox,
                line_by_line=line_by_line,
                say=say,
                without=secrets,
                full_waits=options.full_waits,
            )
            started = stack.enter_context(workplace)
        except BaseException:
            if not record.rows:
                record.finish("ended", "")
            raise
        yield started


def _make_sandbox(options: SessionOptions, paths: _Paths, record: Record, interface: Interface) -> "Sandbox":
    """Prepare the sandbox. It does not see the records of sessions and their archives."""
    from edge.terminal.sandbox import Sandbox, Saved  # it needs Linux

    saved = Saved(paths.archive, first_path(paths.record), record.key("work folder"))
    hidden = hidden_files(paths.record)
    if options.server.key_file is not None:
        hidden.append(options.server.key_file.absolute())
    sandbox = Sandbox.prepare(paths.folder, options.sandbox, saved, hidden=hidden)
    if sandbox.left_out:
        more = " …" if len(sandbox.left_out) > 5 else ""
        interface.say(
            "not in the sandbox, because unreadable, files of sessions or not regular files: "
            f"{', '.join(sandbox.left_out[:5])}{more}"
        )
    return sandbox


def _own_files(options: SessionOptions, paths: _Paths) -> list[Path]:
    files = (options.permission.allow, options.template, *paths.source.files)
    return [file for file in files if file is not None and not is_name(file)]


def _return(options: SessionOptions, paths: _Paths, record: Record, interface: Interface) -> Return:
    """How the changes of this session come back. The session's own files never do, even from the work folder."""
    return Return(
        record=record,
        folder=paths.folder,
        protected=tuple(_own_files(options, paths)),
        dot_files=options.dot_files,
        consent=Consent(options.permission.person, options.permission.yes, named=options.resume is None),
        console=interface.console,
        say=interface.say,
    )


def _show(options: SessionOptions, interface: Interface) -> Callable[[Proposal | str | Text], None]:
    """Shows actions and screens on the console; nothing if the session is quiet and the person does not decide."""

    def show(what: Proposal | str | Text) -> None:
        if interface.quiet and not options.permission.asks:
            return
        if isinstance(what, Text):
            interface.console.print(what, end="")
        else:
            interface.console.print(_drawn(what, interface.console))

    return show


def _drawn(what: Proposal | str, console: Console) -> Text:
    if isinstance(what, Proposal):
        return shown_proposal(what, console)
    return shown_screen(what, console) if isinstance(what, Screen) else continued(highlighted(what), console)


def _keep_archive(paths: _Paths, interface: Interface) -> None:
    """Say that edge does not bring back the work of a session that did not end by itself."""
    if not paths.archive.exists():
        interface.say("nothing was brought back")
        return
    interface.say(
        f"nothing was brought back; the work folder after the last whole step is in {paths.archive}"
    )
    interface.say(f"to bring it back: {command('--bring-back', paths.record, folder=paths.folder)}")


def _summary(outcome: Outcome, record: Record, failure: str) -> str:
    text = f"{_OUTCOMES[outcome]}: {failure}" if failure else _OUTCOMES[outcome]
    if not record.rows:
        return text
    text += f"; session record: {record.path}"
    if outcome in ("failed", "invalid"):
        return f"{text}; continue it with --resume {record.path}"
    return f"{text}; continue it with --resume" if outcome == "interrupted" else text
