"""The options of a session: what may type, where, with which limits; and which of them do not fit together."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from edge.agent.loop import Limits, Outcome
from edge.answer.answering import Answering
from edge.llama.loading import Loading
from edge.terminal.check import Limits as SandboxLimits


@dataclass(frozen=True)
class Permission:
    """What gives edge the permission to type. `person`: somebody is at the terminal and can answer."""

    person: bool
    review: bool = False
    allow: Path | None = None
    sandbox: bool = False
    yes: bool = False

    @property
    def asks(self) -> bool:
        """Whether the person decides on each action."""
        return self.review or (self.person and not self.yes and self.allow is None)


@dataclass(frozen=True)
class ServerOptions:
    """The server of a session whose model is not on this machine."""

    url: str | None = None
    """By default that of the resumed session; a session without one has a model on this machine."""
    key_file: Path | None = None
    """The file of the server's key; by default OPENAI_API_KEY."""
    timeout: float = 600.0
    """Seconds for an answer."""
    pause: float = 0.5
    """Seconds before a second try."""


@dataclass(frozen=True)
class SessionOptions:
    """The options of a session. Exactly one of `task` and `resume` is not None."""

    task: str | None
    permission: Permission
    workdir: Path | None = None
    """By default the current folder."""
    model: str | None = None
    """A path or a name; see `Interface.find_model`. With a server, the model's name there."""
    server: ServerOptions = field(default_factory=ServerOptions)
    local_options: tuple[str, ...] = ()
    """The options that were given and that only a model on this machine has."""
    server_options: tuple[str, ...] = ()
    """The options that were given and that only a server has, without that of its URL."""
    record: Path | None = None
    """By default in the user's state folder."""
    resume: Path | None = None
    """A session record to continue."""
    template: Path | None = None
    """Another first prompt; see `wording.read_template`."""
    limits: Limits = field(default_factory=Limits)
    sandbox: SandboxLimits = field(default_factory=SandboxLimits)
    full_waits: bool = False
    """Wait as long as the model says, also if its commands have ended."""
    dot_files: bool = False
    """Bring back names that begin with a dot, and files that agents read as instructions."""
    loading: Loading = field(default_factory=Loading)
    answering: Answering = field(default_factory=Answering)


@dataclass(frozen=True)
class Interface:
    """How a session reaches a person."""

    console: Console
    """Shows actions, screens, changes and questions, and reads the answers."""
    say: Callable[[str], None]
    """Receives notes of one line."""
    waiting: Callable[[], AbstractContextManager[None]]
    """Makes the context in which the model reads and writes."""
    find_model: Callable[[str | None], Path]
    """The GGUF that a path or a name means. For None, it finds or makes the default model, and says which it is."""
    quiet: bool = False
    """Show no actions and no screens, unless the person decides on them."""


@dataclass(frozen=True)
class Ending:
    """How a session ended. `text`: one line for the person; None if there is nothing to say."""

    outcome: Outcome
    text: str | None = None
    undecided: bool = False
    """A person must decide whether the changes come back, and nobody was asked."""


@dataclass(frozen=True)
class Conflict:
    """An option that does not fit the other options, and the reason."""

    option: str
    reason: str


def option_conflict(options: SessionOptions) -> Conflict | None:
    """The first conflict between the options; None if they fit together."""
    return next(_conflicts(options), None)


def _conflicts(options: SessionOptions) -> Iterator[Conflict]:
    permission, task = options.permission, options.task
    if permission.yes and not permission.sandbox:
        yield Conflict("--yes", "unattended runs need the sandbox: add --sandbox")
    if permission.yes and permission.review:
        yield Conflict("--yes", "--review asks, and --yes does not ask: use one of them")
    if permission.review and not permission.person:
        yield Conflict("--review", "this is not a terminal, so edge cannot ask: use --sandbox --yes")
    if permission.sandbox and not (permission.yes or permission.person):
        yield Conflict("--sandbox", "this is not a terminal, so edge cannot ask: add --yes")
    if permission.allow is not None and not (permission.sandbox or permission.person):
        yield Conflict("--allow", "an allowlist is not enough for an unattended run: add --sandbox --yes")
    if (task is None) == (options.resume is None):
        both = task is not None
        why = "--resume takes the task from the session record: leave out TASK"
        yield Conflict("TASK", why if both else "give a TASK, or a session record with --resume")
    for option, value, what in (
        ("--record", options.record, "record"),
        ("--workdir", options.workdir, "work folder"),
        ("--prompt-template", options.template, "prompt"),
    ):
        if options.resume is not None and value is not None:
            yield Conflict(option, f"--resume uses the {what} of the session: remove {option}")
    if task is not None and (not task.strip() or any("\ud800" <= c <= "\udfff" for c in task)):
        yield Conflict("TASK", "the task is empty, or not UTF-8 text")
