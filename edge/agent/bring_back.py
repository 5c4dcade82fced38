"""Brings the changes of a sandboxed session back into the work folder, and undoes that."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from edge.agent.kept import (
    archive_path,
    command,
    commits_path,
    find_session,
    first_path,
    new_undo_path,
    sessions_folder,
    undo_paths,
)
from edge.agent.listing import shown_changes, shown_diff, shown_name
from edge.agent.record import Record
from edge.agent.review import ask, discard_typed_ahead, print_wrapped
from edge.agent.show import continued
from edge.errors import AgentError, SandboxError
from edge.system.keys import key_path
from edge.system.text import counted, printable
from edge.terminal.commits import Commits, check_commits, fetch_commits
from edge.terminal.workfolder import Changes, Comparison, compare

_MOST_LOST = 20  # files that an unattended session may delete
_MOST_SHARE = 5  # or one file of this many
_KEYS = """\
y       bring the changes back; edge keeps the old state, and says how to undo this
n       bring nothing back now; edge says how to do it later
d       show what changes in the files, line by line; d NAME: in this file or folder, in full
l       list all changes, and leave nothing out
A line that begins with > continues the line above it."""
_MANY = "too many files would be deleted, emptied or cut short for an unattended session"


@dataclass(frozen=True)
class Consent:
    """What the person has agreed to. `person`: somebody is at the terminal and can answer."""

    person: bool
    yes: bool = False
    """Ask nothing."""
    losses: bool = False
    """Also delete many files without a question."""
    named: bool = False
    """The person named the folder on the command line."""


@dataclass(frozen=True)
class Return:
    """A session whose changes come back. `show` is for the list of changes, `say` for notes of one line."""

    record: Record
    folder: Path
    protected: tuple[Path, ...]
    """The session's own files and folders, besides its record: they are never brought back."""
    dot_files: bool
    consent: Consent
    console: Console
    say: Callable[[str], None]

    def run(self) -> bool:
        """Show what changed in the sandbox, and bring it back if the person, or `yes`, agrees.

        Returns whether all that `yes` stands for was done: False if a person must decide. Raises AgentError,
        SandboxError.
        """
        try:
            return self._run()
        except OSError as error:
            place = error.filename or self.folder
            raise AgentError(
                f"{place}: cannot be brought back: {error.strerror or error}{_kept(self.record)}"
            ) from None

    def _run(self) -> bool:
        archive = archive_path(self.record.path)
        if not archive.exists():
            self.say("nothing was brought back: the work folder could not be saved")
            return False
        comparison = compare(
            self.folder,
            archive,
            dot_files=self.dot_files,
            protected=[*self.protected, *hidden_files(self.record.path), *self._own_files()],
            key=self.record.key("work folder"),
        )
        unattended = self.consent.yes and not self.consent.losses
        held = unattended and _loses_much(comparison)
        if held:
            comparison = comparison.without_losses(_MANY)
        commits, lost = self._commits()
        self._show(shown_changes(comparison))
        if commits is not None:
            self.console.print(str(commits), markup=False)
        if (comparison.changes or commits is not None) and not self._agrees(comparison):
            self._say_how(f"nothing was brought back; the agent's work folder is in {archive}")
            return not self.consent.yes
        if commits is not None:
            lost = not self._fetch(commits)
        self._apply(comparison, archive)
        if held:
            self._say_how(f"no file was deleted, because {_MANY}")
        return not (held or lost)

    def _commits(self) -> tuple[Commits | None, bool]:
        """The commits of the session, and whether it has some that git cannot read or finds wrong."""
        bundle = commits_path(self.record.path)
        if self.dot_files or not bundle.exists():  # with --dot-files, .git itself comes back
            return None, False
        try:
            return check_commits(self.folder, bundle, self.record.path.stem), False
        except SandboxError as error:
            self.say(f"the commits are not brought back: {printable(str(error))}; they are in {bundle}")
            return None, True

    def _fetch(self, commits: Commits) -> bool:
        """Put the commits into their branches. Returns whether git took them."""
        names = commits.names
        try:
            fetch_commits(self.folder, commits)
        except SandboxError as error:
            self.say(
                f"the commits are not brought back: {printable(str(error))}; they are in {commits.bundle}"
            )
            return False
        self.say(f"the commits are in {names}; nothing of it is checked out")
        if commits.left_out:
            left_out = f"{commits.left_out:,} branches with other names, or too many"
            self.say(f"not brought back: {left_out}; they are in {commits.bundle}")
            return False
        commits.bundle.unlink(missing_ok=True)
        return True

    def _own_files(self) -> list[Path]:
        return [Path(file) for file in self.record.facts.get("own_files", [])]

    def _apply(self, comparison: Comparison, archive: Path) -> None:
        done = comparison.changes
        if comparison.changes:
            undo = new_undo_path(self.record.path)
            try:
                comparison.keep_undo(undo, self.record.key("undo"))
            except SandboxError:  # a file changed after the list was shown
                self._say_how(f"nothing was brought back; the agent's work folder is in {archive}")
                raise
            done = comparison.apply()
            for place, why in _more(done, comparison.changes):
                self.say(f"{shown_name(place)}: not brought back: {why}")
            if done:
                self.say(f"to undo this: {command('--undo', self.record.path)}")
            else:
                undo.unlink(missing_ok=True)
        if done.withheld:
            if done:
                comparison.keep_rest(done)
            self.say(f"what was not brought back is in {archive}, the agent's work folder")
        else:
            archive.unlink(missing_ok=True)
            first_path(self.record.path).unlink(missing_ok=True)

    def _say_how(self, what: str) -> None:
        more = ["--dot-files"] * self.dot_files + ["--yes"] * (not self.consent.person)
        self.say(what)
        self.say(f"to bring it back: {command('--bring-back', self.record.path, *more, folder=self.folder)}")

    def _agrees(self, comparison: Comparison) -> bool:
        if self.consent.yes:
            return self._is_here() or self._refuses_elsewhere()
        if lost := len(comparison.lost):
            files = f"{counted(lost, 'file')} of {comparison.n_files:,}"
            self.console.print(f"This deletes, empties or cuts short {files}.", markup=False)
        if not self._decides(comparison):
            return False
        return self._is_here() or _elsewhere(self.console, self.folder)

    def _decides(self, comparison: Comparison) -> bool:
        """The answer of the person, who may look at the changes first."""
        question = f"Bring these changes back into {printable(str(self.folder))}? [y/N/d/l/?] "
        discard_typed_ahead()
        while True:
            try:
                answer = ask(self.console, question)
            except KeyboardInterrupt:
                return False
            if answer is None:
                self.console.print()
                return False
            word, _, name = answer.partition(" ")
            if word in ("?", "h", "help"):
                print_wrapped(self.console, _KEYS)
            elif word in ("l", "list"):
                self._show(shown_changes(comparison, whole=True))
            elif word in ("d", "diff"):
                self._show(shown_diff(comparison, name.strip()))
            else:
                return answer.lower() in ("y", "yes")

    def _show(self, what: Text) -> None:
        self.console.print(continued(what, self.console))

    def _is_here(self) -> bool:
        return self.consent.named or is_current(self.folder)

    def _refuses_elsewhere(self) -> bool:
        self.say(f"{printable(str(self.folder))}: is not the current folder, and nobody is asked")
        return False


def bring_back(
    session: str, consent: Consent, console: Console, say: Callable[[str], None], *, dot_files: bool
) -> bool:
    """Bring back what a session has not brought back yet; see `Return.run`. Raises AgentError, SandboxError."""
    with Record.resume(find_session(session), completed=True) as record:
        if not archive_path(record.path).exists():
            raise AgentError(f"{record.path}: there is nothing to bring back: the session has no work folder")
        return Return(record, work_folder(record), (), dot_files, consent, console, say).run()


def undo(session: str, consent: Consent, console: Console, say: Callable[[str], None]) -> bool:
    """Undo the last bring-back of a session. What the user changed since then stays as it is.

    Returns whether all of it was undone. Raises AgentError if there is nothing to undo, SandboxError.
    """
    try:
        return _undo(session, consent, console, say)
    except OSError as error:
        raise AgentError(
            f"{error.filename or session}: cannot be undone: {error.strerror or error}"
        ) from None


def _undo(session: str, consent: Consent, console: Console, say: Callable[[str], None]) -> bool:
    with Record.resume(find_session(session), completed=True) as record:
        folder = work_folder(record)
        archives = undo_paths(record.path)
        if not archives:
            raise AgentError(f"{record.path}: there is nothing to undo: the session brought nothing back")
        comparison = compare(folder, archives[-1], key=record.key("undo"), own=True)
        console.print(f"{printable(str(folder))}, as it was before the session:", markup=False)
        console.print(continued(shown_changes(comparison), console))
        if comparison.changes and not is_current(folder):
            if not consent.person:
                how = command("--undo", record.path, folder=folder)
                raise AgentError(f"{folder}: is not the current folder: use {how}")
            if not _elsewhere(console, folder):
                say("nothing was undone")
                return False
        done = comparison.apply()
        for place, why in done.withheld:
            say(f"{shown_name(place)}: not undone: {why}")
        if not done.withheld:
            archives[-1].unlink(missing_ok=True)
        elif done:
            comparison.keep_rest(done)
        if done.withheld:
            say(f"the old state of what was not undone is in {archives[-1]}")
        return not done.withheld


def hidden_files(record: Path) -> list[Path]:
    """Files and folders of a session, and of all sessions, that no sandbox may see and none may change."""
    return [
        record,
        archive_path(record),
        first_path(record),
        commits_path(record),
        *undo_paths(record),
        key_path(),
        sessions_folder(),
    ]


def work_folder(record: Record) -> Path:
    """The folder of a session. Raises AgentError if it is not there."""
    folder = Path(record.facts.get("workdir", ""))
    if not folder.is_absolute() or not folder.is_dir():
        raise AgentError(f"{folder}: the work folder of this session no longer exists{_kept(record)}")
    return folder


def _kept(record: Record) -> str:
    archive = archive_path(record.path)
    return f"; what the agent changed is in the tar archive {archive}" if archive.exists() else ""


def is_current(folder: Path) -> bool:
    """Whether a folder is the one in which edge runs."""
    try:
        return folder.samefile(Path.cwd())
    except OSError:
        return False


def _loses_much(comparison: Comparison) -> bool:
    lost, files = len(comparison.lost), comparison.n_files
    return lost > _MOST_LOST or (lost * _MOST_SHARE > files and (lost > 1 or lost == files))


def _more(done: Changes, planned: Changes) -> list[tuple[str, str]]:
    return done.withheld[len(planned.withheld) :]


def _elsewhere(console: Console, folder: Path) -> bool:
    place = printable(str(folder))
    return _says_yes(console, f"{place} is not the current folder. Write there all the same? [y/N] ")


def _says_yes(console: Console, question: str) -> bool:
    discard_typed_ahead()
    try:
        answer = ask(console, question)
    except KeyboardInterrupt:
        return False
    if answer is None:
        console.print()
    return (answer or "").lower() in ("y", "yes")
