"""A model behind an OpenAI-compatible server, as the answerer of a session."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edge.agent.answerer import Answer, InvalidAnswerError, TimeUpError
from edge.agent.proposal import read_answer
from edge.answer.answering import Answering
from edge.answer.schema import schema_request
from edge.errors import BackendError, ContextError, GrammarError
from edge.prompt import Message
from edge.replay.client import Refused, Request, Server, Written
from edge.replay.openai import EDGE_KIND, Service, request_fields, served_model
from edge.system.paths import EMBEDDED_NAME
from edge.terminal.tmux import SCREEN_BYTES, limit_output

_LONGEST = 200_000  # characters of an answer
_BYTES_PER_TOKEN = 3.0  # until the server has counted
# How servers say that a conversation is too long: OpenAI, vLLM, SGLang, llama.cpp, edge.
_TOO_LONG = re.compile(
    r"context[ _](?:length|size|window)|maximum context|context of \d|too long", re.IGNORECASE
)
_NO_SCHEMA = {400, 404, 415, 422, 500, 501}  # how servers refuse a field


@dataclass
class RemoteAnswerer:
    """A model on a server. Make it with `open_remote`.

    edge asks for the JSON schema of an action, and without it if the server refuses that. It checks each answer.
    `context`: maximum number of tokens of a prompt and its answer; None: what the server takes.
    """

    server: Server
    served_model: str
    """The model's name on the server."""
    kind: str
    """The kind of the server; empty if it is not known."""
    answering: Answering
    context: int | None
    say: Callable[[str], None]
    _schema: bool | None = field(default=None, init=False)  # whether the server takes it; None: not yet known
    _per_token: float = field(default=_BYTES_PER_TOKEN, init=False)

    @property
    def name(self) -> str:
        """The name of one of edge's own models behind `edge serve`; empty for another model."""
        if self.kind != EDGE_KIND:
            return ""
        return EMBEDDED_NAME if self.served_model.startswith(EMBEDDED_NAME) else self.served_model

    def answer(self, messages: Sequence[Message], end: float) -> Answer:
        """As in `Answerer`."""
        size = sum(len(message["content"].encode(errors="replace")) for message in messages)
        self._check_context(size)
        try:
            written = self._ask(list(messages), end)
        except Refused as error:
            if _is_too_long(error):
                raise ContextError(str(error)) from None
            raise
        except BackendError:
            if time.monotonic() >= end:
                raise TimeUpError from None
            raise
        if written.prompt_tokens:
            self._per_token = size / written.prompt_tokens
        return _read(written)

    def _check_context(self, size: int) -> None:
        """Raises ContextError for a conversation of `size` bytes longer than `context`, as edge estimates it."""
        tokens = round(size / self._per_token)
        if self.context is not None and tokens + self.answering.max_tokens > self.context:
            raise ContextError(
                f"a prompt of about {tokens} tokens and an answer of {self.answering.max_tokens} exceed the context "
                f"length of {self.context}: use a larger --context or a smaller --max-tokens"
            )

    def _ask(self, messages: list[Message], end: float) -> Written:
        request: Request = {
            "model": self.served_model,
            "max_tokens": self.answering.max_tokens,
            "messages": messages,
        }
        request.update(request_fields(self.answering.sampling, self.kind))
        if self._schema is False:
            return self.server.chat(request, end)
        try:
            written = self.server.chat({**request, **schema_request("chat", self.kind)}, end)
        except Refused as error:
            if self._schema or error.status not in _NO_SCHEMA or _is_too_long(error):
                raise
            written = self.server.chat(request, end)  # raises the same error if the schema is not the reason
            self.say(f"{error}; edge continues without the JSON schema, and checks each answer")
            self._schema = False
        else:
            self._schema = True
        return written


@contextlib.contextmanager
def open_remote(
    base_url: str,
    service: Service,
    answering: Answering,
    context: int | None,
    say: Callable[[str], None],
) -> Iterator[RemoteAnswerer]:
    """Connect to a server. Raises BackendError if it cannot be reached or does not serve the model."""
    with Server(base_url, timeout=service.timeout, pause=service.pause, key_file=service.key_file) as server:
        name, kind = served_model(server, service.served_model, "--model")
        if server.open_key:
            say(f"{server.url}: the key goes to this server without encryption: use https")
        yield RemoteAnswerer(server, name, kind, answering, context, say)


def _is_too_long(error: Refused) -> bool:
    return error.status == 413 or (error.status in (400, 422) and _TOO_LONG.search(str(error)) is not None)


def _read(written: Written) -> Answer:
    """The action of an answer. Raises InvalidAnswerError."""
    # Half of a surrogate pair is JSON, but no text that edge can send back.
    text = limit_output(written.text.encode(errors="replace").decode(), SCREEN_BYTES)
    if len(written.text) > _LONGEST:
        raise InvalidAnswerError(f"it has {len(written.text):,} characters", text)
    if not written.text.strip():
        raise InvalidAnswerError("it is empty", text)
    try:
        proposal = read_answer(written.text)
    except GrammarError as error:
        cut = "it was cut at the maximum number of tokens" if written.finish_reason == "length" else None
        raise InvalidAnswerError(cut or str(error), text) from None
    return Answer(proposal, written.text, written.prompt_tokens, written.completion_tokens)
