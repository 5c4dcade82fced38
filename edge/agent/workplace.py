"""The place where an agent works: a terminal, with or without a sandbox around its shell."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge.agent.wording import NEW_SHELL, not_saved, not_typed
from edge.answer.action import Command
from edge.errors import AgentError, SandboxError
from edge.terminal.commits import known_commits, repository_of
from edge.terminal.shell import SHELL, shell_environment
from edge.terminal.tmux import MAX_DURATION, Terminal, runs_a_line

if TYPE_CHECKING:
    from edge.terminal.sandbox import Sandbox

STILL_RUNS = "A program still runs in the terminal: it ends with the session."
_GLANCE = 0.1  # seconds


@dataclass
class Workplace:
    """A terminal that runs a shell in a folder. Make it with `open_workplace`.

    `say` receives lines for a person.
    """

    terminal: Terminal
    folder: Path
    say: Callable[[str], None]
    sandbox: "Sandbox | None" = None
    line_by_line: bool = False
    """Type a line only when the shell waits for it, because an allowlist allowed it as a command of the shell."""
    patience: float = 0.0
    """Seconds that a line which runs may take, if the model gave it a shorter duration."""
    notes: list[str] = field(default_factory=list, init=False)
    """Notes for the model about the last `type`, and about the `save` after it."""
    waits: list[float] = field(default_factory=list, init=False)
    """Seconds that edge waited after each command of the last `type`."""
    unsaved: str | None = field(default=None, init=False)
    """Why the last `save` failed; None if it did not."""
    _typed: bool = field(default=False, init=False)
    _had_run: bool = field(default=True, init=False)
    """Whether all that was typed had run at the last `save`."""
    _before: str = field(default="", init=False)
    """What the shell that has ended printed last."""

    def type(self, commands: Sequence[Command], late: Callable[[], bool]) -> bool:
        """Type the commands in order; False if the terminal has ended and cannot continue.

        Stops early when `late` returns True. Raises AgentError if tmux fails.
        """
        self.notes, self.waits = [], []

        def stop() -> bool:
            return late() or self._trouble() is not None

        for number, command in enumerate(commands, 1):
            if stop():
                if late():
                    self.say(
                        f"The time limit was reached: edge did not type command {number} or what follows it."
                    )
                break
            if self.terminal.ended and not self._restart_shell():
                return False
            send = self.terminal.send_lines if self.line_by_line else self.terminal.send
            duration = max(command.duration, self.patience if runs_a_line(command.keystrokes) else 0.0)
            self._typed = True
            typed = send(command.keystrokes, min(duration, MAX_DURATION), stop=stop)
            self.waits.append(round(self.terminal.waited, 2))
            if not typed:
                self.notes.append(not_typed(number))
                self.say(self.notes[-1])
                break
        if trouble := self._trouble():
            self.say(f"The sandbox has ended: {trouble}")
            return False
        return not self.terminal.ended or self._restart_shell()

    def settle(self, seconds: float) -> bool:
        """Wait until what was typed has run, for a limited time. Returns whether `save` came before that.

        Says if a program runs on. Raises AgentError.
        """
        end = time.monotonic() + seconds
        looks = 0
        while looks < 2 and self._typed and not self.terminal.ended and self._trouble() is None:
            looks = looks + 1 if self.terminal.has_run() else 0
            if not looks and time.monotonic() >= end:
                self.say(STILL_RUNS)
                break
            time.sleep(_GLANCE)
        return self._typed and not self._had_run

    def save(self, archive: Path) -> None:
        """Save the work folder of the sandbox to an archive; without a sandbox, do nothing.

        If it cannot be saved, for example because it is too large, the archive stays as it was, and the model is told.
        """
        self._had_run = False
        with contextlib.suppress(AgentError):  # the terminal has just ended
            self._had_run = self.terminal.has_run()
        if self.sandbox is None:
            return
        self.unsaved = None
        try:
            self.sandbox.save(archive)
        except SandboxError as error:
            self.unsaved = str(error)
            self.notes.append(not_saved(self.unsaved))
            self.say(self.notes[-1])

    def save_commits(self, bundle: Path) -> None:
        """Save the commits that were made in the sandbox to a git bundle, if there are new ones."""
        if self.sandbox is None:
            return
        try:
            bundle.unlink(missing_ok=True)
            known = known_commits(self.folder)
            if known or repository_of(self.folder) is not None:
                self.sandbox.commits(known, bundle)
        except (SandboxError, OSError) as error:
            self.say(str(error))

    def output(self) -> str:
        """What is new in the terminal, after what a shell printed before it ended. Raises AgentError."""
        before, self._before = self._before, ""
        return before + self.terminal.output()

    def last_output(self) -> str:
        """What is new in the terminal; empty if tmux has ended."""
        try:
            return self.output()
        except AgentError:
            return ""

    def _trouble(self) -> str | None:
        return None if self.sandbox is None else self.sandbox.trouble()

    def _restart_shell(self) -> bool:
        if self.sandbox is not None:
            self.say(f"The sandbox has ended: {self._trouble() or 'its shell has ended'}")
            return False
        self._before += f"{self.terminal.output()}\n\n"
        self.notes.append(NEW_SHELL)
        self.say(NEW_SHELL)
        self.terminal.restart(SHELL)
        return True


@contextlib.contextmanager
def open_workplace(
    folder: Path,
    sandbox: "Sandbox | None",
    *,
    line_by_line: bool,
    say: Callable[[str], None],
    without: Collection[str] = (),
    full_waits: bool = False,
    patience: float = 0.0,
) -> Iterator[Workplace]:
    """Start a terminal in the folder, or in the sandbox with its copy of the folder.

    `without`: environment variables that its shell does not get; a sandbox gets none of them in any case.
    `full_waits`: wait as long as the model says, also if its commands have ended. `patience`: see `Workplace`.
    Ends what runs in it, but not the sandbox. Raises AgentError or SandboxError if it does not start.
    """
    argv = SHELL if sandbox is None else sandbox.argv
    ready = None if sandbox is None else sandbox.wait_ready
    env = {name: value for name, value in shell_environment().items() if name not in without}
    with Terminal.start(argv, cwd=folder, env=env, ready=ready, full_waits=full_waits) as terminal:
        yield Workplace(terminal, folder, say, sandbox, line_by_line, patience)
