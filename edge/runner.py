"""The one public door: load a model, ask it for an action.

runner = edge.Runner.load("models/tiny-terminal-Q4_K_M.gguf")
action = runner.act(edge.task_messages("List the Python files here."))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from edge.action import Action, parse_action
from edge.engine import Engine
from edge.errors import EdgeError
from edge.generate import Answer, action_answer, free_answer
from edge.modelfile import ModelFile, read_model_file
from edge.prompt import Message, Rendered, prompt_source, render_prompt
from edge.sampling import Sampling
from edge.tokens import Vocabulary

GREEDY = Sampling()
DEFAULT_MAX_TOKENS = 1024
DEFAULT_TEXT_SHARE = 0.6


class Runner:
    """A loaded model that answers messages with actions. Make it with `load`; use it in one thread."""

    def __init__(self, engine: Engine, model_file: ModelFile) -> None:
        self.engine = engine
        self.model_file = model_file
        self.vocabulary = Vocabulary(engine.vocab, model_file.end_ids)
        self._source = prompt_source(model_file.path)

    @classmethod
    def load(cls, path: Path | str, *, gpu_layers: int = -1, threads: int | None = None) -> "Runner":
        """Load a GGUF. `gpu_layers` -1 offloads every layer where llama.cpp can.

        `threads` defaults to the physical cores.
        Raises ModelFileError for a file that is missing, damaged or of no known kind.
        """
        model_file = read_model_file(Path(path))
        return cls(Engine(model_file.path, gpu_layers=gpu_layers, threads=threads), model_file)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The prompt's text for these messages, and how it was made. Raises PromptError."""
        return render_prompt(list(messages), self._source)

    def encode(self, prompt: str) -> list[int]:
        """A rendered prompt's token ids; the template has written the BOS itself, none is added."""
        self.engine.check_open()
        return self.vocabulary.encode(prompt)

    def act(
        self,
        messages: Sequence[Message],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        *,
        sampling: Sampling = GREEDY,
        think: int | None = None,
        text_share: float = DEFAULT_TEXT_SHARE,
        emit: Callable[[str], None] | None = None,
    ) -> Action:
        """The next action for these messages: always valid, at any budget and temperature.

        `max_tokens` counts every token decoded or forced, a thought included. `think` is the most tokens a
        thought may take (default: a quarter of max_tokens; 0: none). `text_share` is the part of the rest that
        analysis and plan may fill together. `emit` is called with the action's text as it becomes certain; an
        open command never is.
        Raises PromptError, ContextError.
        """
        return self.act_on(
            self.encode(self.render(messages).text),
            max_tokens,
            sampling=sampling,
            think=think,
            text_share=text_share,
            emit=emit,
        )

    def act_on(
        self,
        prompt: Sequence[int],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        *,
        sampling: Sampling = GREEDY,
        think: int | None = None,
        text_share: float = DEFAULT_TEXT_SHARE,
        emit: Callable[[str], None] | None = None,
    ) -> Action:
        """As `act`, for a prompt in token ids."""
        _check_budget(max_tokens)
        if not 0 <= text_share <= 1:
            raise EdgeError(f"text_share is {text_share}; it must be from 0 to 1")
        if think is not None and think < 0:
            raise EdgeError(f"think is {think}; it must be 0 (off) or more tokens")
        self.engine.reserve(len(prompt) + max_tokens)
        answer = action_answer(
            self.engine,
            self.vocabulary,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            think=max_tokens // 4 if think is None else think,
            text_share=text_share,
            emit=emit,
        )
        return Action(
            **parse_action(answer.text),
            text=answer.text,
            thought=answer.thought,
            finish_reason=answer.finish_reason,
            closed_at_budget=answer.closed_at_budget,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            forced_tokens=answer.forced_tokens,
            thought_tokens=answer.thought_tokens,
        )

    def write_on(
        self, prompt: Sequence[int], max_tokens: int = DEFAULT_MAX_TOKENS, *, sampling: Sampling = GREEDY
    ) -> Answer:
        """Free text for a prompt in token ids, no grammar: what the model says when nothing is guaranteed."""
        _check_budget(max_tokens)
        self.engine.reserve(len(prompt) + max_tokens)
        return free_answer(self.engine, self.vocabulary, prompt, max_tokens=max_tokens, sampling=sampling)

    def close(self) -> None:
        """Free the model's memory."""
        self.engine.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_budget(max_tokens: int) -> None:
    if max_tokens < 1:
        raise EdgeError(f"max_tokens is {max_tokens}; it must be at least 1")
