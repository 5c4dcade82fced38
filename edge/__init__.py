"""edge: quantize a terminal agent's checkpoint, run it offline with guaranteed JSON, measure what it cost.

from edge import Runner, task_messages

with Runner.load("models/tiny-terminal-Q4_K_M.gguf") as runner:
    action = runner.act(task_messages("List the Python files here."))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.version import __version__

if TYPE_CHECKING:
    from edge.answer.action import Action, Command
    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.llama.loading import Adapter, Loading, States
    from edge.prompt import task_messages
    from edge.runner import Runner, Session

__all__ = [
    "Action",
    "Adapter",
    "Answering",
    "Command",
    "EdgeError",
    "Loading",
    "Runner",
    "Sampling",
    "Session",
    "States",
    "__version__",
    "task_messages",
]

_HOMES = {
    "Action": "answer.action",
    "Adapter": "llama.loading",
    "Answering": "answer.answering",
    "Command": "answer.action",
    "Loading": "llama.loading",
    "Runner": "runner",
    "Sampling": "answer.sampling",
    "Session": "runner",
    "States": "llama.loading",
    "task_messages": "prompt",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for, so that `edge --help` does not load llama.cpp."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    return getattr(import_module(f"edge.{_HOMES[name]}"), name)
