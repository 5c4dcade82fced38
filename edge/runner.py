"""The one public door: load a model, ask it for an action.

runner = edge.Runner.load("models/tiny-terminal-Q4_K_M.gguf")
action = runner.act(edge.task_messages("List the Python files here."))
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from types import TracebackType

from edge.answer.action import Action, parse_action
from edge.answer.sampling import Sampling
from edge.answer.style import STYLE_NAMES, StyleName
from edge.answer.writer import Answer, action_answer, free_answer
from edge.errors import ContextError, EdgeError
from edge.formats.gguf import ModelFile, read_model_file
from edge.llama.devices import devices
from edge.llama.engine import Engine, Job, Writer
from edge.llama.memory import BATCH
from edge.llama.placement import place
from edge.llama.prefixes import branch_points, common_length, depth_held, reading_order
from edge.llama.vocabulary import Vocabulary
from edge.prompt import Message, Rendered, prompt_source, render_prompt
from edge.system.machine import memory

GREEDY = Sampling()
DEFAULT_MAX_TOKENS = 1024
DEFAULT_TEXT_SHARE = 0.6
SEQUENCES = 8  # of a single conversation: the prompt read, the answer, and what earlier turns have left
MOST_HELD = 32  # states held for later prompts of a replay; a deeper tree is read in part again


class Runner:
    """A loaded model that answers messages with actions. Make it with `load`; use it in one thread."""

    def __init__(self, engine: Engine, model_file: ModelFile) -> None:
        self.engine = engine
        self.model_file = model_file
        self.vocabulary = Vocabulary(engine.vocab, model_file.end_ids)
        self._source = prompt_source(model_file.path)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        gpu_layers: int | None = None,
        threads: int | None = None,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        batch: int = BATCH,
        mmap: bool = True,
        trusted: bool = False,
        engine_class: Callable[..., Engine] = Engine,
    ) -> "Runner":
        """Load a GGUF; the options are those of `edge.llama.engine.Engine`, or of what `engine_class` makes.

        `gpu_layers`: by default as many as fit into the free memory of a GPU with a context of 8,192 tokens (all
        is -1). `threads` defaults to the physical cores.

        Raises ModelFileError for a file that is missing, damaged or of no known kind.
        """
        model_file = read_model_file(Path(path))
        found = devices() if gpu_layers is None else []
        if gpu_layers is None and any("GPU" in device.kind for device in found):
            with contextlib.suppress(ContextError):  # it may still run on the CPU, slowly
                gpu_layers = place(
                    model_file,
                    None,
                    DEFAULT_MAX_TOKENS,
                    memory=memory(),
                    devices=found,
                    parallel=1,
                    kv_type=kv_type,
                    flash_attention=flash_attention,
                ).gpu_layers
        engine = engine_class(
            model_file.path,
            gpu_layers=gpu_layers or 0,
            threads=threads,
            kv_type=kv_type,
            flash_attention=flash_attention,
            batch=batch,
            mmap=mmap,
            trusted=trusted,
        )
        return cls(engine, model_file)

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
        style: StyleName = "auto",
        emit: Callable[[str], None] | None = None,
    ) -> Action:
        """The next action for these messages: always valid, at any budget and temperature.

        `max_tokens` counts every token decoded or forced, a thought included. `think` is the most tokens a
        thought may take (default: a quarter of max_tokens; 0: none). `text_share` is the part of the rest that
        analysis and plan may fill together. `style` is the action's white space: auto (the model's own, once it
        shows), compact, indented or free. `emit` is called with the action's text as it becomes certain; an
        open command never is.
        Raises PromptError, ContextError.
        """
        return self.act_on(
            self.encode(self.render(messages).text),
            max_tokens,
            sampling=sampling,
            think=think,
            text_share=text_share,
            style=style,
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
        style: StyleName = "auto",
        emit: Callable[[str], None] | None = None,
    ) -> Action:
        """As `act`, for a prompt in token ids."""
        writer = self._action_writer(prompt, max_tokens, sampling, think, text_share, style, emit)
        return _action(self._answer(prompt, writer, max_tokens))

    def session(self, messages: Sequence[Message] = ()) -> "Session":
        """A conversation that begins with these messages and is read only once, however long it grows."""
        return Session(self, messages)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        *,
        wanted: Collection[int] | None = None,
        parallel: int = 1,
        cells: int | None = None,
        constrained: bool = True,
        sampling: Sampling = GREEDY,
        think: int | None = None,
        text_share: float = DEFAULT_TEXT_SHARE,
        style: StyleName = "auto",
    ) -> Generator[tuple[int, Answer], None, None]:
        """Answer many prompts in one pass over their prefix tree; (a prompt's index, its answer) as they end.

        Only the `wanted` indices are answered (default: all), but the others count for where reading stops, so
        that a run that goes on after an interruption reads in the same chunks. `parallel` answers are written
        at once. `cells`: tokens that the cache can hold, by default enough for two of the longest prompts.
        """
        order = reading_order(prompts)
        ordered = [prompts[i] for i in order]
        points = dict(zip(order, branch_points(ordered), strict=True))
        chosen = [i for i in order if wanted is None or i in wanted]
        if not chosen:
            return
        longest = max(len(prompts[i]) for i in chosen)
        self.engine.reserve(
            cells or 2 * longest + parallel * max_tokens,
            parallel + 1 + min(depth_held(ordered), MOST_HELD),
        )
        jobs = []
        for i in chosen:
            prompt = prompts[i]
            writer = (
                self._action_writer(prompt, max_tokens, sampling, think, text_share, style, None)
                if constrained
                else self._free_writer(prompt, max_tokens, sampling)
            )
            jobs.append(Job(prompt, writer, max_tokens, points[i]))
        for index, answer in self.engine.run(jobs, parallel):
            yield chosen[index], answer

    def _action_writer(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        think: int | None,
        text_share: float,
        style: StyleName,
        emit: Callable[[str], None] | None,
    ) -> Writer[Answer]:
        _check_budget(max_tokens)
        if not 0 <= text_share <= 1:
            raise EdgeError(f"text_share is {text_share}; it must be from 0 to 1")
        if think is not None and think < 0:
            raise EdgeError(f"think is {think}; it must be 0 (off) or more tokens")
        if style not in STYLE_NAMES:
            raise EdgeError(f"style is {style}; it must be one of {', '.join(STYLE_NAMES)}")
        return action_answer(
            self.vocabulary,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            think=max_tokens // 4 if think is None else think,
            text_share=text_share,
            style=style,
            emit=emit,
        )

    def _free_writer(self, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> Writer[Answer]:
        _check_budget(max_tokens)
        return free_answer(self.vocabulary, prompt, max_tokens=max_tokens, sampling=sampling)

    def _answer(
        self,
        prompt: Sequence[int],
        writer: Writer[Answer],
        max_tokens: int,
        owner: object = None,
        held: Sequence[int] = (),
    ) -> Answer:
        needed = len(prompt) + max_tokens
        if needed > self.engine.context_length:
            raise ContextError(
                f"{self.engine.path}: {needed} tokens do not fit into this model's context of "
                f"{self.engine.context_length}"
            )
        needed += self.engine.held_by_others(owner)
        engine = self.engine
        if needed > engine.cells or engine.sequences < SEQUENCES:
            # Up to twice what was there: a conversation that grows moves to a larger cache only a few times.
            most = engine.context_length + engine.held_by_others(owner)
            try:
                engine.reserve(max(needed, engine.cells, min(2 * engine.cells, most)), SEQUENCES)
            except ContextError:
                engine.reserve(needed, SEQUENCES)
        return next(self.engine.run([Job(prompt, writer, max_tokens, held=held)], owner=owner))[1]

    def close(self) -> None:
        """Free the model's memory."""
        self.engine.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """A conversation with one model: `messages` is what was said so far, the answers among it.

    Of each prompt only what is new is read: it goes on from the last answer, or, where the chat template has
    dropped that answer's thought, from the end of the prompt before it. Sessions of one runner may take turns.
    """

    def __init__(self, runner: Runner, messages: Sequence[Message]) -> None:
        self.runner = runner
        self.messages = list(messages)
        self._owner = object()  # of what the engine holds; not the session, so that one not closed can end
        weakref.finalize(self, runner.engine.forget, self._owner).atexit = False

    def act(
        self,
        messages: Sequence[Message] = (),
        max_tokens: int = DEFAULT_MAX_TOKENS,
        *,
        sampling: Sampling = GREEDY,
        think: int | None = None,
        text_share: float = DEFAULT_TEXT_SHARE,
        style: StyleName = "auto",
        emit: Callable[[str], None] | None = None,
    ) -> Action:
        """Add these messages, such as what the terminal shows now, and answer; see `Runner.act`.

        On an error the conversation stays as it was.
        """
        asked = [*self.messages, *messages]
        prompt = self.runner.encode(self.runner.render(asked).text)
        writer = self.runner._action_writer(prompt, max_tokens, sampling, think, text_share, style, emit)
        answer = self.runner._answer(
            prompt, writer, max_tokens, owner=self._owner, held=self._parting(asked, prompt)
        )
        self.messages = [*asked, {"role": "assistant", "content": answer.raw}]
        return _action(answer)

    def _parting(self, asked: Sequence[Message], prompt: Sequence[int]) -> list[int]:
        """Where the next turn's prompt will part from this one, if that is before its end: a template may drop the
        last thought but one, or open a turn in another way than it writes it down."""
        later = [*asked, {"role": "assistant", "content": "{}"}, {"role": "user", "content": ""}]
        length = common_length(prompt, self.runner.encode(self.runner.render(later).text))
        return [length] if 0 < length < len(prompt) else []

    def close(self) -> None:
        """Let go of what the engine holds of this conversation."""
        self.runner.engine.forget(self._owner)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _action(answer: Answer) -> Action:
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


def _check_budget(max_tokens: int) -> None:
    if max_tokens < 1:
        raise EdgeError(f"max_tokens is {max_tokens}; it must be at least 1")
