"""Every error that edge raises.

EdgeError
├── CheckpointError   a Hugging Face checkpoint cannot be read
│   └── HubError      a repository of the Hugging Face hub cannot be read or downloaded
│       └── UnknownRepositoryError   there is no such repository, or it is private
├── ConversionError   a checkpoint cannot be converted to a GGUF
├── ModelFileError    a GGUF is missing, damaged or of an unknown kind
├── ReplayError       replay rows or predictions cannot be read
├── PromptError       messages or a chat template cannot be rendered
├── GrammarError      the grammar of an action refuses a text or a token
├── BackendError      a server or an engine cannot answer rows, or no longer can
├── ContextError      a prompt does not fit into the context
├── ResultError       a result file cannot be read or compared
├── AgentError        the terminal, a gate or the record of a session cannot be used
├── AllowError        an allowlist cannot be read
├── ServeError        a model cannot be served with these options
├── SandboxError      the sandbox does not start, or it ended
├── ConfigError       the file of settings or a variable has a wrong value
├── PackageError      a package index or its wheel cannot be read
└── BundleError       a bundle cannot be made, read or installed

KeyboardInterrupt
└── Interrupted       long work was interrupted: the message says what is kept

UserWarning
└── EdgeWarning       input that edge accepts, but that makes figures misleading

Each message is one line that names the file, what is wrong and what to do. The command line prints it and exits with 1,
or with 2 if the value of an option is wrong. It prints a warning as a note, once.
"""

from edge.system.text import printable

_LONGEST = 2000  # characters of a message


class EdgeError(Exception):
    """Base of all errors below; catch this to catch them all.

    The message is one printable line, whatever the names and values in a file contain. `option`: the option of the
    command line whose value is wrong, if it is one; the command then exits with 2.
    """

    def __init__(self, *args: object, option: str | None = None) -> None:
        super().__init__(*args)
        self.option = option

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        return printable(text)


class CheckpointError(EdgeError):
    """A Hugging Face checkpoint cannot be read."""


class HubError(CheckpointError):
    """A repository of the Hugging Face hub cannot be read or downloaded."""


class UnknownRepositoryError(HubError):
    """The Hugging Face hub has no such repository, or only for other accounts."""


class ConversionError(EdgeError):
    """A checkpoint cannot be converted to a GGUF."""


class ModelFileError(EdgeError):
    """A GGUF is missing, damaged or of an unknown kind."""


class ReplayError(EdgeError):
    """Replay rows or predictions cannot be read."""


class PromptError(EdgeError):
    """Messages or a chat template cannot be rendered."""


class GrammarError(EdgeError):
    """The grammar of an action refuses a text or a token."""


class BackendError(EdgeError):
    """A server or an engine cannot answer rows, or no longer can."""


class ContextError(EdgeError):
    """A prompt does not fit into the context."""


class ResultError(EdgeError):
    """A result file cannot be read or compared."""


class AgentError(EdgeError):
    """The terminal, a gate or the record of a session cannot be used."""


class AllowError(EdgeError):
    """An allowlist cannot be read."""


class SandboxError(EdgeError):
    """The sandbox does not start, or it ended. Nothing runs outside the sandbox instead."""


class ServeError(EdgeError):
    """A model cannot be served with these options."""


class ConfigError(EdgeError):
    """The file of settings cannot be read, or it or an environment variable has a wrong value."""


class PackageError(EdgeError):
    """A package index cannot be read, or the wheel that it lists cannot be downloaded or read."""


class BundleError(EdgeError):
    """A bundle cannot be made, read or installed."""


class EdgeWarning(UserWarning):
    """Input that edge accepts, but that makes figures misleading, such as a reference that is not an action."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during long work. The message says what is kept and how to resume."""
