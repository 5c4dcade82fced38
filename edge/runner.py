"""The public interface: load a model and ask it for an action.

runner = edge.Runner.load("models/tiny-terminal-Q4_K_M.gguf")
action = runner.act(edge.task_messages("List the Python files here."))
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.answer.action import Action, parse_action
from edge.answer.answering import (
    DEFAULT_ANSWERING,
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEXT_SHARE,
    GREEDY,
    Answering,
)
from edge.answer.sampling import Sampling
from edge.answer.style import StyleName
from edge.answer.writer import Answer, action_answer, free_answer
from edge.errors import ContextError, EdgeError, PromptError
from edge.formats.gguf import ModelFile, read_model_file
from edge.llama.engine import Engine
from edge.llama.jobs import Guide, Job, Writer
from edge.llama.loading import DEFAULT_LOADING, Adapter, Loading, with_own_adapter
from edge.llama.placement import place
from edge.llama.prefixes import branch_points, common_length, depth_held, reading_order
from edge.llama.remote import devices_for
from edge.llama.restore import LEAST
from edge.llama.vocabulary import Vocabulary
from edge.prompt import Message, Rendered, prompt_source, render_prompt
from edge.system.machine import memory
from edge.system.paths import DEFAULT_NAME
from edge.system.text import counted

SEQUENCES = 8  # of one conversation: the prompt, the answer, and the states of earlier turns
MOST_HELD = 32  # states held for later prompts of a replay; parts of a deeper tree are read again


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
        batch: int | None = None,
        mmap: bool = True,
        adapters: Sequence[Adapter] = (),
    ) -> "Runner":
        """Load a GGUF; the options are those of `Loading`, see `open`. The default model gets its own adapter."""
        loading = Loading(
            gpu_layers=gpu_layers,
            threads=threads,
            kv_type=kv_type,
            flash_attention=flash_attention,
            batch=batch,
            mmap=mmap,
            adapters=tuple(adapters),
        )
        return cls.open(path, with_own_adapter(Path(path), loading))

    @classmethod
    def open(
        cls,
        path: Path | str,
        loading: Loading = DEFAULT_LOADING,
        engine_class: Callable[[Path, Loading], Engine] = Engine,
    ) -> "Runner":
        """Load a GGUF into an engine.

        `loading.gpu_layers`: by default as many as fit into the free memory of a GPU with a context of 8,192 tokens.
        Raises ModelFileError for a file that is missing, damaged or of an unknown kind.
        """
        model_file = read_model_file(Path(path))
        gpu_layers = loading.gpu_layers
        if gpu_layers is None:
            gpu_layers = fitting_layers(model_file, loading)
        return cls(engine_class(model_file.path, replace(loading, gpu_layers=gpu_layers)), model_file)

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> Rendered:
        """The text of the prompt for these messages, and how it was made.

        `variables`: further ones of the chat template, such as `tools`. Raises PromptError.
        """
        return render_prompt(list(messages), self._source, variables)

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a rendered prompt. No BOS is added: the chat template writes it."""
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
        """The next action for these messages: valid at any budget and temperature.

        `max_tokens` counts every token that is decoded or forced, also those of a thought. `think` is the maximum
        number of tokens of a thought (default: a quarter of max_tokens; 0: none). `text_share` is the share of the rest
        that analysis and plan together may fill. `style` is the white space of the action: auto (the model's own),
        compact, indented or free. `emit` receives the text of the action in pieces that cannot change any more; it
        never receives an open command.
        Raises PromptError, ContextError.
        """
        answering = Answering(max_tokens, sampling, think, text_share, style)
        prompt = self.encode(self.render(messages).text)
        return self.act_on(prompt, answering, emit, self.instructions(messages, prompt))

    def act_on(
        self,
        prompt: Sequence[int],
        answering: Answering = DEFAULT_ANSWERING,
        emit: Callable[[str], None] | None = None,
        instructions: int = 0,
    ) -> Action:
        """As `act`, for a prompt in token ids; `instructions` as in `write`."""
        return _action(self.answer(prompt, answering, emit, instructions=instructions))

    def session(self, messages: Sequence[Message] = (), opening: str = "") -> "Session":
        """A conversation that begins with these messages. The model reads each token of it only once."""
        return Session(self, messages, opening)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        answering: Answering = DEFAULT_ANSWERING,
        *,
        wanted: Collection[int] | None = None,
        parallel: int = 1,
        cells: int | None = None,
        instructions: int = 0,
    ) -> Generator[tuple[int, Answer], None, None]:
        """Answer many prompts in one pass over their prefix tree; yields (index of a prompt, its answer) as they end.

        Only the `wanted` indices are answered (default: all). The others still decide where reading stops, so that a
        run that continues after an interruption reads in the same chunks. `parallel` answers are written
        at the same time. `cells`: tokens that the cache can hold, by default enough for two of the longest prompts.
        `instructions`: a length that all prompts share; where it is a branch of the tree, its state may go to disk.
        """
        order = reading_order(prompts)
        ordered = [prompts[i] for i in order]
        points = dict(zip(order, branch_points(ordered), strict=True))
        chosen = [i for i in order if wanted is None or i in wanted]
        if not chosen:
            return
        longest = max(len(prompts[i]) for i in chosen)
        self.engine.reserve(
            cells or 2 * longest + parallel * answering.max_tokens,
            parallel + 1 + min(depth_held(ordered), MOST_HELD),
        )
        jobs = []
        for i in chosen:
            guide = Guide()
            writer = self._writer(prompts[i], answering, None, guide)
            stored = [instructions] if instructions in points[i] else []
            jobs.append(Job(prompts[i], writer, answering.max_tokens, points[i], stored=stored, guide=guide))
        for index, answer in self.engine.run(jobs, parallel):
            yield chosen[index], answer

    def _writer(
        self,
        prompt: Sequence[int],
        answering: Answering,
        emit: Callable[[str], None] | None,
        guide: Guide,
    ) -> Writer[Answer]:
        if not answering.constrained:
            return free_answer(
                self.vocabulary, prompt, max_tokens=answering.max_tokens, sampling=answering.sampling
            )
        return action_answer(
            self.vocabulary,
            prompt,
            max_tokens=answering.max_tokens,
            sampling=answering.sampling,
            think=answering.thought_tokens,
            text_share=answering.text_share,
            style=answering.style,
            emit=emit,
            guide=guide,
        )

    def branch_points(
        self,
        messages: Sequence[Message],
        prompt: Sequence[int],
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Where the prompt of the next turn will part from this one, if that is before its end: lengths in tokens.

        A chat template may drop the thought of an earlier turn, or open a turn in another way than it closes it.
        `variables`: as in `render`. Raises PromptError.
        """
        later = [*messages, {"role": "assistant", "content": "{}"}, {"role": "user", "content": ""}]
        length = common_length(prompt, self.encode(self.render(later, variables).text))
        return [length] if 0 < length < len(prompt) else []

    def instructions(
        self,
        messages: Sequence[Message],
        prompt: Sequence[int],
        variables: Mapping[str, Any] | None = None,
        opening: str = "",
    ) -> int:
        """How many tokens of a prompt come before the task: what other conversations of the same kind begin with.

        That is all before the text of the first user message, and its `opening`, if it begins so. 0 for fewer than
        64 tokens, which are not worth a state on disk. `variables`: as in `render`.
        """
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            return 0
        content = messages[first].get("content")
        kept = opening if isinstance(content, str) and content.startswith(opening) else ""
        length = len(prompt) - 1
        for task in ("0", "?"):  # the task may begin like one of them
            other = [*messages[:first], {"role": "user", "content": kept + task}]
            try:
                rendered = self.render(other, variables)
            except PromptError:  # the template wants more of the conversation
                return 0
            length = min(length, common_length(prompt, self.encode(rendered.text)))
        return length if length >= LEAST else 0

    @property
    def model_name(self) -> str:
        """The name in the model file, or that of the default model if its adapter is loaded."""
        if any(loaded.adapter.is_default for loaded in self.engine.adapters):
            return DEFAULT_NAME
        return self.model_file.name

    @property
    def context_length(self) -> int:
        """The maximum number of tokens of a prompt and its answer together."""
        return self.engine.context_length

    @property
    def flash_attention(self) -> bool:
        """Whether the engine uses flash attention."""
        return self.engine.flash_attention

    @property
    def n_vocab(self) -> int:
        """The number of token ids."""
        return self.engine.n_vocab

    @contextlib.contextmanager
    def before_each_batch(self, check: Callable[[], None]) -> Generator[None]:
        """Call `check` before each batch of tokens; what it raises ends the answer, and the runner stays usable."""
        self.engine.before_batch = check
        try:
            yield
        finally:
            self.engine.before_batch = None

    def answer(
        self,
        prompt: Sequence[int],
        answering: Answering = DEFAULT_ANSWERING,
        emit: Callable[[str], None] | None = None,
        owner: object = None,
        held: Sequence[int] = (),
        instructions: int = 0,
    ) -> Answer:
        """One answer to a prompt in token ids; the last three as in `write`. Raises ContextError."""
        guide = Guide()
        writer = self._writer(prompt, answering, emit, guide)
        return self.write(prompt, writer, answering.max_tokens, owner, held, instructions, guide)

    def write(
        self,
        prompt: Sequence[int],
        writer: Writer[Answer],
        max_tokens: int,
        owner: object = None,
        held: Sequence[int] = (),
        instructions: int = 0,
        guide: Guide | None = None,
    ) -> Answer:
        """Read a prompt in token ids and run the writer of its answer, which takes at most `max_tokens` tokens.

        `owner`: whose conversation the engine's states belong to. `held`: lengths of the prompt at which a state is
        kept for the owner's next turn. `instructions`: the length at which the state may go to disk, from the
        method of this name; reading always stops there, so that a restored state changes no bit of the answer.
        `guide`: that of the writer. Raises ContextError.
        """
        needed = len(prompt) + max_tokens
        if needed > self.engine.context_length:
            raise ContextError(
                f"{self.engine.path}: a prompt of {counted(len(prompt), 'token')} and an answer of up to "
                f"{max_tokens:,} do not fit into the context length of this model, {self.engine.context_length}: "
                "use a smaller --max-tokens"
            )
        needed += self.engine.held_by_others(owner)
        engine = self.engine
        if needed > engine.cells or engine.sequences < SEQUENCES:
            # Up to twice the size: a conversation that grows moves to a larger cache only a few times.
            most = engine.context_length + engine.held_by_others(owner)
            try:
                engine.reserve(max(needed, engine.cells, min(2 * engine.cells, most)), SEQUENCES)
            except ContextError:
                engine.reserve(needed, SEQUENCES)
        cuts = [instructions] if instructions else []
        # A conversation goes to disk as a whole, see `keep`.
        whole = [len(prompt)] if engine.writes_whole_prompts and owner is None else []
        job = Job(prompt, writer, max_tokens, cuts, held, [*cuts, *whole], guide)
        return next(self.engine.run([job], owner=owner))[1]

    def keep(self, owner: object, messages: Sequence[Message], *, now: bool = False) -> None:
        """Let the state of a conversation go to disk, if `Loading.states` is for whole prompts.

        `messages`: the conversation so far. It is written when it has grown by a quarter since the last time, or `now`.
        """
        if self.engine.writes_whole_prompts:
            with contextlib.suppress(PromptError):  # a template may refuse the next message
                following = self.render([*messages, {"role": "user", "content": ""}])
                self.engine.keep_conversation(owner, self.encode(following.text), now=now)

    def close(self) -> None:
        """Free the model's memory."""
        self.engine.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fitting_layers(model_file: ModelFile, loading: Loading = DEFAULT_LOADING) -> int:
    """How many layers fit into the free memory of a GPU with a context of 8,192 tokens; -1 for all, 0 without a GPU."""
    found = devices_for(loading)
    if any("GPU" in device.kind for device in found):
        with contextlib.suppress(ContextError):  # it may still run on the CPU, slowly
            wanted = replace(loading, gpu_layers=None, context=None, parallel=1, threads=None, batch=None)
            return place(
                model_file, None, DEFAULT_MAX_TOKENS, memory=memory(), devices=found, loading=wanted
            ).gpu_layers
    return 0


def reading_layers(loading: Loading, *files: Path | None) -> int:
    """Layers to offload in a pass that only reads texts: those of `loading`, else what fits of each of these GGUFs.

    -1 for all, also without a GPU. A file that is not a GGUF is left out: the pass itself reports it.
    """
    if loading.gpu_layers is not None:
        return loading.gpu_layers
    if not any("GPU" in device.kind for device in devices_for(loading)):
        return -1
    layers = []
    for file in files:
        with contextlib.suppress(EdgeError):
            layers += [] if file is None else [fitting_layers(read_model_file(file), loading)]
    return min((n for n in layers if n >= 0), default=-1)


class Session:
    """A conversation with one model: `messages` holds all messages so far, answers included.

    The model reads only the new tokens of each prompt. It continues from the last answer, or, if the chat template
    drops the thought of that answer, from the end of the prompt before it. Sessions of one runner may take turns.
    `opening`: the words before the task in the first user message; see `Runner.instructions`.
    """

    def __init__(self, runner: Runner, messages: Sequence[Message], opening: str = "") -> None:
        self.runner = runner
        self.messages = list(messages)
        self.opening = opening
        self._owner = (
            object()
        )  # owns the states in the engine; not the session itself, so that it can be collected
        weakref.finalize(self, runner.engine.forget_later, self._owner).atexit = False

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
        """Add these messages, for example the screen of the terminal, and answer; see `Runner.act`.

        After an error the conversation is unchanged.
        """
        conversation = [*self.messages, *messages]
        prompt = self.runner.encode(self.runner.render(conversation).text)
        answer = self.runner.answer(
            prompt,
            Answering(max_tokens, sampling, think, text_share, style),
            emit,
            owner=self._owner,
            held=self.runner.branch_points(conversation, prompt),
            instructions=self.runner.instructions(conversation, prompt, opening=self.opening),
        )
        self.messages = [*conversation, {"role": "assistant", "content": answer.raw}]
        self.keep()
        return _action(answer)

    def keep(self, *, now: bool = False) -> None:
        """Let the conversation's state go to disk; see `Runner.keep`."""
        self.runner.keep(self._owner, self.messages, now=now)

    def close(self) -> None:
        """Free the states of this conversation in the engine."""
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
