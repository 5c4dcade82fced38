"""From a checked request to work for the model: the prompt in token ids, the room, the writer of the answer."""

from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool

from edge.answer.answering import DEFAULT_TEXT_SHARE
from edge.answer.calls import Thinking
from edge.answer.guided import guided_answer
from edge.answer.text import text_answer
from edge.answer.writer import action_answer, thought_is_open
from edge.errors import GrammarError, PromptError
from edge.llama.thought_marks import ThoughtMarks
from edge.serve.chat_writer import chat_writer, chosen, conversation
from edge.serve.model import MakeWriter
from edge.serve.request import BadRequestError, ClientRequest
from edge.serve.state import Server

_COMPLETION_TOKENS = 16  # OpenAI's default


@dataclass(frozen=True)
class Work:
    """One answer to write: the prompt in token ids, the most tokens of the answer, where to keep states, the writer.

    `instructions`: tokens of the prompt before the task; 0 if not known.
    """

    prompt: list[int]
    room: int
    held: list[int]
    instructions: int
    make_writer: MakeWriter


async def prepare(server: Server, request: ClientRequest) -> list[Work]:
    """The work of a checked request: for each prompt, each of its answers.

    Raises BadRequestError for what needs the model's tokens to be checked. After that, the server refuses a request
    only if it has no free place. Raises EdgeError if the model cannot read its own template.
    """
    chat = bool(request.messages)
    count = request.n * (1 if chat else len(request.prompts))
    most = server.model.parallel + server.model.queue_limit
    if count > most:
        raise BadRequestError(
            f"the request wants {count} answers; this server has places for {most}", "n" if chat else "prompt"
        )
    work = []
    for prompt in [None] if chat else request.prompts:
        async with server.encoding:
            ids, held, instructions = await run_in_threadpool(_encoded, server, request, prompt)
        left = server.context - len(ids)
        if left < 1:
            raise too_long(server, f"has {len(ids):,}", "messages" if chat else "prompt")
        default = server.max_tokens if chat else _COMPLETION_TOKENS
        room = min(default if request.max_tokens is None else request.max_tokens, left)
        if request.n > 1:
            held = [*held, len(ids) - 1]  # read once
        for index in range(request.n):
            maker = await run_in_threadpool(_writer_maker, server, _numbered(request, index), ids, room)
            work.append(Work(ids, room, held, instructions, maker))
    return work


def _numbered(request: ClientRequest, index: int) -> ClientRequest:
    """The request for the answer with this number, whose random numbers are its own."""
    seed = request.sampling.seed
    if not index or seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + index))


def too_long(server: Server, has: str, param: str) -> BadRequestError:
    """The error for a prompt that does not fit, in the words that clients such as LiteLLM recognize."""
    return BadRequestError(
        f"This model's maximum context length is {server.context} tokens, and the prompt {has}. Shorten it.",
        param,
        code="context_length_exceeded",
    )


def _encoded(
    server: Server, request: ClientRequest, prompt: str | list[int] | None
) -> tuple[list[int], list[int], int]:
    """The token ids of a prompt, the lengths at which the next prompt of the conversation will part from it, and the
    length of its instructions.

    `prompt`: of a completion; None for a chat.
    """
    if prompt is None:
        return _rendered(server, request)
    return prompt_ids(server, prompt, "prompt"), [], 0


def prompt_ids(server: Server, prompt: str | list[int], param: str) -> list[int]:
    """The token ids of a text, which is not changed, or checked token ids. Raises BadRequestError."""
    runner = server.model.runner
    if isinstance(prompt, list):
        if not all(0 <= token < runner.n_vocab for token in prompt):
            raise BadRequestError(f"token ids must be from 0 to {runner.n_vocab - 1}", param)
        return prompt
    _check_size(server, prompt, param)
    try:
        return runner.encode(prompt)
    except PromptError as error:
        raise BadRequestError(str(error), param) from None


def chat_ids(server: Server, request: ClientRequest) -> list[int]:
    """The token ids of the prompt of a chat. Raises BadRequestError."""
    return _rendered(server, request)[0]


def _rendered(server: Server, request: ClientRequest) -> tuple[list[int], list[int], int]:
    runner = server.model.runner
    try:
        messages, variables = conversation(server, request)
        rendered = runner.render(messages, variables)
        if rendered.reason:  # another format would be no error, but a worse answer
            raise PromptError(f"the model's chat template refuses these messages: {rendered.reason}")
        text = rendered.text
        if request.continued is not None:
            text = _begun(text, runner.vocabulary.thought) + request.continued
        _check_size(server, text, "messages")
        prompt = runner.encode(text)
        if request.continued is not None:
            return prompt, [], 0
        instructions = runner.instructions(messages, prompt, variables)
        return prompt, runner.branch_points(messages, prompt, variables), instructions
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None


def _begun(text: str, marks: ThoughtMarks | None) -> str:
    """A prompt whose answer the client has begun: a thought that the template has opened is empty."""
    if marks is None:
        return text
    if text.rstrip().endswith(marks.opening.rstrip()):
        return f"{text.rstrip()}\n\n{marks.closing}\n\n"
    return text + marks.header


def _check_size(server: Server, text: str, param: str) -> None:
    """Refuse a text that is certainly too long for the context before the tokenizer takes memory for it."""
    if len(text) > server.context * server.model.longest_token:
        raise too_long(server, f"has {len(text):,} characters, so more tokens than that", param)


def _writer_maker(server: Server, request: ClientRequest, prompt: list[int], room: int) -> MakeWriter:
    """Makes the writer of an answer of at most `room` tokens. Raises BadRequestError for a bad schema or grammar."""
    vocabulary, sampling, guide = server.model.runner.vocabulary, request.sampling, request.guide
    if guide.kind == "action":
        return lambda emit: action_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            think=min(room // 4, request.thinking.tokens(room)),
            text_share=DEFAULT_TEXT_SHARE,
            emit=emit,
            emit_thought=lambda text: emit(Thinking(text)),
        )
    if guide.kind == "text" and request.messages and request.continued is None:
        return chat_writer(server, request, prompt, room)
    if guide.kind == "text":
        return lambda emit: text_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            scores=request.scores,
            emit=emit,
        )
    if chosen(server, request) == "required":
        return chat_writer(server, request, prompt, room)
    try:
        compiled = server.compiled(guide.kind, guide.text)
        endings = server.model.endings
        ending = endings.first(compiled, room)
    except GrammarError as error:
        raise BadRequestError(f"{guide.param}: {error}", guide.param) from None
    marks = vocabulary.thought
    thinks = thought_is_open(vocabulary, prompt) or (marks is not None and bool(marks.header))
    if request.messages and (chosen(server, request) == "auto" or thinks):
        return chat_writer(server, request, prompt, room, (compiled, ending))
    return lambda emit: guided_answer(
        vocabulary, endings, compiled, ending, prompt, max_tokens=room, sampling=sampling, emit=emit
    )
