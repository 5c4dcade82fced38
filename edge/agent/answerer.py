"""Who answers in a session: a model in this process, or one behind a server. The loop knows only `Answerer`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.agent.proposal import Proposal
from edge.agent.wording import opening
from edge.answer.answering import Answering
from edge.errors import ContextError
from edge.prompt import Message
from edge.runner import Runner, Session

DEFAULT_CONTEXT = 32_768


class TimeUpError(Exception):
    """The time limit was reached while the model wrote an answer."""


class InvalidAnswerError(Exception):
    """An answer is not an action. `answer`: its text; the model reads the message."""

    def __init__(self, why: str, answer: str) -> None:
        super().__init__(why)
        self.answer = answer


@dataclass(frozen=True)
class Answer:
    """An answer with its action. `raw`: the text as the model wrote it; a token count is None if nobody counted."""

    proposal: Proposal
    raw: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut: bool = False
    """edge closed the answer at its budget."""


class Answerer(Protocol):
    """What answers a conversation."""

    @property
    def name(self) -> str:
        """The name of one of edge's own models, which get the words of their training; any other text else."""
        ...

    @property
    def served_model(self) -> str | None:
        """The model's name on its server; None for a model in this process."""
        ...

    def answer(self, messages: Sequence[Message], end: float) -> Answer:
        """The answer to a conversation, before time.monotonic() reaches `end`.

        Raises ContextError if the conversation is too long, InvalidAnswerError, TimeUpError, and other EdgeErrors if
        there is no answer.
        """
        ...


class LocalAnswerer:
    """A model in this process. `context`: maximum number of tokens of a prompt and its answer.

    `template`: another first prompt; see `wording.read_template`.
    """

    served_model = None

    def __init__(
        self,
        runner: Runner,
        answering: Answering | None = None,
        context: int = DEFAULT_CONTEXT,
        template: str | None = None,
    ) -> None:
        self._runner = runner
        self._answering = answering or Answering()
        self._session: Session | None = None
        self._opening = opening(runner.model_name, template)
        self.context = min(context, runner.context_length)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._runner.model_name

    def keep(self) -> None:
        """Let the state of the conversation go to disk, for a later `--resume`."""
        if self._session is not None:
            self._session.keep(now=True)

    def answer(self, messages: Sequence[Message], end: float) -> Answer:
        """As in `Answerer`; every answer is an action. The model reads only the new tokens of a conversation."""

        def check_time() -> None:
            if time.monotonic() > end:
                raise TimeUpError

        options = self._answering
        prompt = self._runner.encode(self._runner.render(messages).text)
        if len(prompt) + options.max_tokens > self.context:
            raise ContextError(
                f"a prompt of {len(prompt)} tokens and an answer of {options.max_tokens} exceed the context "
                f"length of {self.context}: use a larger --context or a smaller --max-tokens"
            )
        if self._session is None:
            self._session = self._runner.session(opening=self._opening)
        self._session.messages = []
        with self._runner.before_each_batch(check_time):
            action = self._session.act(
                messages,
                options.max_tokens,
                sampling=options.sampling,
                think=options.think,
                text_share=options.text_share,
                style=options.style,
            )
        raw = self._session.messages[-1]["content"]
        proposal = Proposal(action.analysis, action.plan, action.commands, action.task_complete)
        return Answer(proposal, raw, action.prompt_tokens, action.completion_tokens, action.closed_at_budget)
