"""Who works on a task in its sandbox: a model, the task's own scripts, or nobody."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from edge.agent.answerer import Answer, Answerer
from edge.errors import BackendError, ContextError, EdgeError, ModelFileError
from edge.prompt import Message

Script = Literal["oracle", "destructive", "nop"]
"""oracle runs solution/solve.sh, destructive solution/destructive.sh, nop nothing."""
SCRIPTS: dict[Script, str] = {"oracle": "solve", "destructive": "destructive"}
"""The name of the script in solution/; nop has none."""


@dataclass
class Counted:
    """An answerer that counts, and that takes turns with others on one engine.

    `turn`: held while the model answers; None where a server takes several requests at a time.
    """

    model: Answerer
    turn: "AbstractContextManager[object] | None" = None
    answers: int = field(default=0, init=False)
    prompt_tokens: int = field(default=0, init=False)
    completion_tokens: int = field(default=0, init=False)
    lost: BackendError | None = field(default=None, init=False)
    """The server did not answer: the trial says nothing about the model."""
    full: bool = field(default=False, init=False)
    """The context was full."""
    broken: str = field(default="", init=False)
    """Why edge itself could not make an answer, for example out of memory: that says nothing about the model."""

    @property
    def name(self) -> str:
        """As in `Answerer`."""
        return self.model.name

    @property
    def served_model(self) -> str | None:
        """As in `Answerer`."""
        return self.model.served_model

    def answer(self, messages: Sequence[Message], end: float) -> Answer:
        """As in `Answerer`."""
        try:
            answer = self._ask(messages, end)
        except ContextError:
            self.full = True
            raise
        except BackendError as error:
            self.lost = error
            raise
        except ModelFileError:  # its values are not finite: that is the model
            raise
        except (EdgeError, MemoryError) as error:
            self.broken = str(error) or "out of memory"
            raise
        self.full = False
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        return answer

    def _ask(self, messages: Sequence[Message], end: float) -> Answer:
        if self.turn is None:
            return self.model.answer(messages, end)
        with self.turn:
            return self.model.answer(messages, end)
