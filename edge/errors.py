"""Every error that edge raises for bad input.

EdgeError
├── CheckpointError   a Hugging Face checkpoint cannot be read
├── ConversionError   a checkpoint cannot be turned into a GGUF
├── ModelFileError    a GGUF is missing, damaged or of no known kind
├── ReplayError       replay rows or predictions cannot be read
├── PromptError       messages or a chat template cannot be rendered
├── GrammarError      a text or token that the action's grammar refuses
├── BackendError      a server or engine that answers rows cannot, or not any more
├── ContextError      a prompt does not fit into the context
├── ResultError       a result file cannot be read or compared
├── AgentError        a session's terminal, gate or record cannot be had
├── AllowError        a list of allowed commands cannot be read
├── ServeError        a model cannot be served as asked
├── SandboxError      the sandbox does not start, or has ended
└── BundleError       a bundle cannot be made, read or installed

KeyboardInterrupt
└── Interrupted       long work was interrupted: the message says what is kept

Each message is one line that names the file, what is wrong and what to do. The command line prints it and exits with 1.
"""

from edge.system.text import printable

_LONGEST = 2000  # characters of a message


class EdgeError(Exception):
    """Base of all errors below; catch this to catch them all.

    Whatever a file's names and values hold, the message is one line that cannot steer a terminal.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        return printable(text)


class CheckpointError(EdgeError):
    """A Hugging Face checkpoint cannot be read."""


class ConversionError(EdgeError):
    """A checkpoint cannot be turned into a GGUF."""


class ModelFileError(EdgeError):
    """A GGUF is missing, damaged or of no known kind."""


class ReplayError(EdgeError):
    """Replay rows or predictions cannot be read."""


class PromptError(EdgeError):
    """Messages or a chat template cannot be rendered."""


class GrammarError(EdgeError):
    """A text or token that the action's grammar refuses."""


class BackendError(EdgeError):
    """A server or engine that answers rows cannot, or not any more."""


class ContextError(EdgeError):
    """A prompt does not fit into the context."""


class ResultError(EdgeError):
    """A result file cannot be read or compared."""


class AgentError(EdgeError):
    """A session's terminal, gate or record cannot be had."""


class AllowError(EdgeError):
    """A list of allowed commands cannot be read."""


class SandboxError(EdgeError):
    """The sandbox does not start, or has ended; nothing runs outside of it instead."""


class ServeError(EdgeError):
    """A model cannot be served as asked."""


class BundleError(EdgeError):
    """A bundle cannot be made, read or installed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during long work. The message says what is kept and how to resume."""
