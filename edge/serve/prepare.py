"""From a checked request to work for the model: the prompt in token ids, the room, the writer of the answer."""

from starlette.concurrency import run_in_threadpool

from edge.answer.answering import DEFAULT_TEXT_SHARE
from edge.answer.guided import guided_answer, text_answer
from edge.answer.writer import action_answer
from edge.errors import GrammarError, PromptError
from edge.llama.loading import Adapter
from edge.serve.model import MakeWriter, Ticket
from edge.serve.request import BadRequestError, ClientRequest
from edge.serve.state import Server

_COMPLETION_TOKENS = 16  # OpenAI's default


async def hand_in(server: Server, ticket: Ticket, request: ClientRequest, adapter: Adapter | None) -> None:
    """Queue a checked request for the model. Raises BadRequestError for what only the model's own tokens can tell."""
    async with server.encoding:
        prompt, held = await run_in_threadpool(_encoded, server, request)
    chat = bool(request.messages)
    default = server.max_tokens if chat else _COMPLETION_TOKENS
    left = server.context - len(prompt)
    room = min(default, left) if request.max_tokens is None else request.max_tokens
    if room > left or left < 1:
        raise BadRequestError(
            f"a prompt of {len(prompt)} tokens and an answer of {max(room, 1)} do not fit into the context of "
            f"{server.context}",
            "messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    make_writer = await run_in_threadpool(_writer_maker, server, request, prompt, room)
    server.model.hand_in(ticket, prompt, room, held, make_writer, adapter)


def _encoded(server: Server, request: ClientRequest) -> tuple[list[int], list[int]]:
    """The token ids of the prompt, and the lengths at which the next prompt of the conversation will part from it."""
    runner = server.model.runner
    if not request.messages:
        if isinstance(request.prompt, list):
            if not all(0 <= token < runner.n_vocab for token in request.prompt):
                raise BadRequestError(f"token ids must be from 0 to {runner.n_vocab - 1}", "prompt")
            return request.prompt, []
        _check_size(server, request.prompt, "prompt")
        try:
            return runner.encode(request.prompt), []
        except PromptError as error:
            raise BadRequestError(str(error), "prompt") from None
    try:
        rendered = runner.render(request.messages)
        if rendered.reason:  # another format would be no error, but a worse answer
            raise PromptError(f"the model's chat template refuses these messages: {rendered.reason}")
        text = rendered.text
        _check_size(server, text, "messages")
        prompt = runner.encode(text)
        return prompt, runner.branch_points(request.messages, prompt)
    except PromptError as error:
        raise BadRequestError(str(error), "messages") from None


def _check_size(server: Server, text: str, param: str) -> None:
    """Refuse a text that is certainly too long for the context before the tokenizer takes memory for it."""
    if len(text) > server.context * server.model.longest_token:
        raise BadRequestError(
            f"a prompt of {len(text):,} characters has more tokens than the context of {server.context}",
            param,
            code="context_length_exceeded",
        )


def _writer_maker(server: Server, request: ClientRequest, prompt: list[int], room: int) -> MakeWriter:
    """Makes the writer of an answer of at most `room` tokens. Raises BadRequestError for a bad schema or grammar."""
    vocabulary, sampling, guide = server.model.runner.vocabulary, request.sampling, request.guide
    if guide.kind == "action":
        return lambda emit: action_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            think=room // 4,
            text_share=DEFAULT_TEXT_SHARE,
            emit=emit,
        )
    if guide.kind == "text":
        return lambda emit: text_answer(
            vocabulary,
            prompt,
            max_tokens=room,
            sampling=sampling,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            emit=emit,
        )
    try:
        compiled = server.compiled(guide.kind, guide.text)
        endings = server.model.endings
        ending = endings.first(compiled, room)
    except GrammarError as error:
        raise BadRequestError(f"{guide.param}: {error}", guide.param) from None
    return lambda emit: guided_answer(
        vocabulary, endings, compiled, ending, prompt, max_tokens=room, sampling=sampling, emit=emit
    )
