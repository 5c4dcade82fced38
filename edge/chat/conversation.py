"""A conversation with one loaded model: messages, answers, and the part of it that fits into the context."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.answer.answering import DEFAULT_TEXT_SHARE, AnswerKind
from edge.answer.writer import Answer, action_answer, chat_answer
from edge.chat.settings import Settings
from edge.errors import ContextError
from edge.llama.jobs import Writer
from edge.prompt import SYSTEM_PROMPT, Message, Rendered, task_messages
from edge.runner import Runner

Emit = Callable[[str], None]


class _StoppedError(Exception):
    """The person ended the answer."""


@dataclass(frozen=True)
class Reply:
    """What one message led to."""

    text: str
    """The answer without its thought, as far as it was written."""
    answer: Answer | None
    """None if the person stopped it."""
    kept: bool
    """Whether the message and the answer are part of the conversation."""
    dropped: int
    """Messages that the model does not see any more from this one on."""
    rendered: Rendered
    prompt_tokens: int
    read: int
    """Prompt tokens that the model read now; it had the others from earlier messages."""
    written: int
    """Tokens of the answer, its thought included."""
    read_seconds: float
    write_seconds: float


@dataclass(eq=False)
class Conversation:
    """The messages of a person and a model. Use it in one thread.

    `context`: maximum number of tokens of the prompt and the answer together, at most the model's context length.
    `messages` has all messages except the system prompt, also those that do not fit any more.
    """

    runner: Runner
    answers: AnswerKind
    context: int
    settings: Settings
    system: str | None = None
    """None: the system prompt of `edge run` for actions, no system prompt for text."""
    messages: list[Message] = field(default_factory=list)
    screen: str | None = None
    """The text of a terminal, for the next message."""
    file: Path | None = None
    """The file of this conversation, which `/save` may replace."""
    prompt_tokens: int = 0
    """Of the last prompt and its answer together."""
    _owner: object = field(default_factory=object)
    _first: int = 0  # of `messages`: earlier ones do not fit into the context any more

    @property
    def system_prompt(self) -> str:
        """The system prompt that the model gets; empty for none."""
        default = SYSTEM_PROMPT if self.answers == "action" else ""
        return default if self.system is None else self.system

    def replace(self, messages: Sequence[Message], system: str | None) -> None:
        """Continue from other messages."""
        self.clear()
        self.messages, self.system = list(messages), system

    def clear(self) -> None:
        """Forget all messages; the system prompt and the settings stay."""
        self.messages, self._first, self.screen, self.file, self.prompt_tokens = [], 0, None, None, 0
        self.runner.engine.forget(self._owner)

    def ask(
        self,
        text: str,
        emit: Emit | None = None,
        emit_thought: Emit | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Add a message with the screen, if there is one, and answer it.

        `emit` receives the answer in pieces, `emit_thought` the thought, token by token. `stopped` is asked before
        each batch of tokens; True ends the answer. The conversation keeps a stopped text as far as it was written, and
        nothing of a stopped action or thought. After an error the conversation is unchanged. Raises ContextError if
        the message alone does not fit into the context, and PromptError.
        """
        conversation = [*self.messages, task_messages(text, self.screen)[-1]]
        first, rendered, prompt = self._fitted(conversation)
        budget = self.settings.budget(self.answers, self.context - len(prompt))
        engine = self.runner.engine
        before = engine.prompt_tokens_decoded, engine.answer_tokens_decoded
        begin = time.monotonic()
        began: list[float] = []
        parts: list[str] = []

        def shown(piece: str) -> None:
            parts.append(piece)
            if emit is not None:
                emit(piece)

        seen = self._seen(conversation[first:])
        lengths = self.runner.branch_points(seen, prompt), self.runner.instructions(seen, prompt)
        writer = _timed(self._writer(prompt, budget, shown, emit_thought), began)
        answer = self._answer(prompt, writer, budget, lengths, stopped)
        end = time.monotonic()
        dropped = first - self._first
        kept = self._keep(conversation, answer, "".join(parts))
        if kept:
            self._first = first
            self.runner.keep(self._owner, self._seen(self.messages[first:]))
            self.prompt_tokens = len(prompt) + (answer.completion_tokens if answer else 0)
        written = engine.answer_tokens_decoded - before[1]
        return Reply(
            text="".join(parts),
            answer=answer,
            kept=kept,
            dropped=dropped,
            rendered=rendered,
            prompt_tokens=len(prompt),
            read=engine.prompt_tokens_decoded - before[0],
            written=written if answer is None else answer.completion_tokens,
            read_seconds=(began[0] if began else end) - begin,
            write_seconds=end - (began[0] if began else end),
        )

    def _answer(
        self,
        prompt: list[int],
        writer: Writer[Answer],
        budget: int,
        lengths: tuple[Sequence[int], int],
        stopped: Callable[[], bool],
    ) -> Answer | None:
        """The whole answer; None if the person stopped it. `lengths`: `held` and `instructions` of `Runner.write`."""

        def check() -> None:
            if stopped():
                raise _StoppedError

        try:
            with self.runner.before_each_batch(check):
                return self.runner.write(prompt, writer, budget, self._owner, *lengths)
        except _StoppedError:
            return None
        except KeyboardInterrupt:  # inside a batch, which then ends early
            if not stopped():
                raise
            return None

    def _keep(self, conversation: list[Message], answer: Answer | None, text: str) -> bool:
        """Make the message and its answer part of the conversation. False for a stopped action, or no text at all."""
        if answer is None and (self.answers == "action" or not text):
            return False
        content = text if answer is None else answer.raw
        self.messages, self.screen = [*conversation, {"role": "assistant", "content": content}], None
        return True

    def _writer(
        self, prompt: Sequence[int], budget: int, emit: Emit, emit_thought: Emit | None
    ) -> Writer[Answer]:
        vocabulary, sampling = self.runner.vocabulary, self.settings.sampling
        think = self.settings.thought(self.answers, budget)
        if self.answers == "text":
            return chat_answer(
                vocabulary,
                prompt,
                max_tokens=budget,
                sampling=sampling,
                think=think,
                emit=emit,
                emit_thought=emit_thought,
            )
        return action_answer(
            vocabulary,
            prompt,
            max_tokens=budget,
            sampling=sampling,
            think=think,
            text_share=DEFAULT_TEXT_SHARE,
            emit=emit,
            emit_thought=emit_thought,
        )

    def _seen(self, messages: Sequence[Message]) -> list[Message]:
        system: list[Message] = []
        if self.system_prompt:
            system = [{"role": "system", "content": self.system_prompt}]
        return [*system, *messages]

    def _encoded(self, messages: Sequence[Message]) -> tuple[Rendered, list[int]]:
        rendered = self.runner.render(self._seen(messages))
        return rendered, self.runner.encode(rendered.text)

    def _fitted(self, messages: Sequence[Message]) -> tuple[int, Rendered, list[int]]:
        """The first message that the model sees, and the prompt from there.

        If the answer would have less than a quarter of the context, and less than its maximum, the oldest turns go
        until the prompt has at most half of the context. So the model does not have to read the rest again soon.
        """
        first = self._first
        rendered, prompt = self._encoded(messages[first:])
        least = max(1, self.settings.budget(self.answers, self.context // 4))
        if len(prompt) + least <= self.context:
            return first, rendered, prompt
        while len(prompt) > self.context // 2:
            turns = (i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user")
            following = next(turns, None)
            if following is None:
                break
            first = following
            rendered, prompt = self._encoded(messages[first:])
        if len(prompt) + least > self.context:
            larger = ", or start edge chat with a larger --context"
            raise ContextError(
                f"the message and what belongs to it have {len(prompt):,} tokens, and the answer needs {least:,}; the "
                f"context has {self.context:,}: shorten the message"
                + (larger if self.context < self.runner.context_length else "")
            )
        return first, rendered, prompt


def _timed(writer: Writer[Answer], began: list[float]) -> Writer[Answer]:
    """The writer; notes when the prompt was read."""
    try:
        tokens = next(writer)
        while True:
            logits = yield tokens
            if not began:
                began.append(time.monotonic())
            tokens = writer.send(logits)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
