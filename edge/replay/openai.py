"""Replay recorded steps through an OpenAI-compatible server: a reference from the engine that serves a model.

With a tokenizer and a chat template, edge renders and tokenizes the prompts and sends token ids, so that the server
adds nothing to them. Without them, the server gets the messages and renders them itself.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from edge.answer.answering import FREE, Answering
from edge.answer.sampling import Sampling
from edge.answer.schema import Api, schema_request, schema_sha256
from edge.errors import BackendError, ContextError
from edge.prompt import prompt_source
from edge.replay.asking import DEFAULT_ASKING, Asking
from edge.replay.client import Refused, Request, Server, Written
from edge.replay.prepare import Asked, chosen_rows, model_context, prepare
from edge.replay.recorder import Recorder, carry_out
from edge.replay.result import sampling_fields
from edge.replay.stored_result import EngineCounters, Head, Result, SamplingFields
from edge.system.hashes import text_sha256
from edge.system.outputs import Run, check_output
from edge.version import __version__

EDGE_KIND = "edge serve"
_KINDS = {
    "llamacpp": "llama-server",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "edge": EDGE_KIND,
    "me": "llama-cpp-python",
}  # by the models' `owned_by`


@dataclass(frozen=True)
class Service:
    """How a server is asked. Raises BackendError for a concurrency below 1."""

    served_model: str | None = None
    """The model's name on the server, by default the only one there."""
    concurrency: int = 8
    """Requests at the same time."""
    timeout: float = 600.0
    """Seconds for an answer."""
    pause: float = 0.5
    """Seconds before a second try."""
    key_file: Path | None = None
    """The file of the server's key; by default OPENAI_API_KEY."""
    context: int | None = None
    """Maximum number of tokens of a row with its answer; by default what the model that writes the prompts says."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise BackendError(f"a concurrency of {self.concurrency}: it must be at least 1")


DEFAULT_SERVICE = Service()


def evaluate_server(
    base_url: str,
    replay: Path | str,
    out: Path | str,
    *,
    model: Path | str | None = None,
    service: Service = DEFAULT_SERVICE,
    limit: int | None = None,
    rows_of: Path | str | None = None,
    skip_too_long: bool = False,
    answering: Answering = FREE,
    asking: Asking = DEFAULT_ASKING,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Result:
    """As `edge.replay.run.evaluate`, with the answers of the server at `base_url`.

    `model`: a GGUF or a Hugging Face folder whose chat template and tokenizer write the prompts; without one, or where
    the server has no `completions`, it gets the messages as a chat. `answering.constrained` asks the server to keep to
    the JSON schema of an action. `force`: replace the result of another run.

    Raises BackendError if the server cannot be reached, refuses a request or keeps failing; the journal keeps the
    answers until then. Raises ContextError, ReplayError, ResultError, ModelFileError, CheckpointError, PromptError.
    """
    check_output(out, [model, replay, rows_of, service.key_file])
    rows = chosen_rows(replay, limit, rows_of)
    asked = Asked(replay, rows, [], [], [], 0, asking, thinking=asking.thinking)
    if model is not None:
        context_length = _context_length(Path(model), service.context)
        asked = prepare(
            Path(model),
            replay,
            rows,
            context=context_length,
            max_tokens=answering.max_tokens,
            skip_too_long=skip_too_long,
            asking=asking,
        )
    with Server(
        base_url,
        timeout=service.timeout,
        pause=service.pause,
        key_file=service.key_file,
    ) as server:
        name, kind = served_model(server, service.served_model)
        completes = model is not None and _completes(server, name, asked.prompts[0])
        if not completes:
            stripped = sum(asking.messages(row.messages)[1] for row in asked.rows)
            asked = Asked(replay, asked.rows, [], [], [], asked.skipped, asking, stripped, asking.thinking)
        source = prompt_source(model).template if model is not None and completes else None
        api: Api = "completions" if completes else "chat"
        run = _Run(server, name, kind, api, source, service, answering, limit, say)
        return carry_out(out, asked, run.identity(), run.answer, run.head, force=force, keep_complete=False)


def _context_length(model: Path, wanted: int | None) -> int | None:
    """The wanted context length, else that of the model. Raises ContextError if the model's is less."""
    most = model_context(model)
    if wanted is not None and most is not None and wanted > most:
        raise ContextError(f"{model}: has a context length of {most} tokens, less than {wanted}")
    return wanted or most


@dataclass(frozen=True)
class _Run:
    """One evaluation: what is asked, of which server and how."""

    server: Server
    name: str  # of the model on the server
    kind: str  # of the server; "" if it is not known
    api: Api
    template: str | None  # the chat template that wrote the prompts; None where the server writes them
    service: Service
    answering: Answering
    limit: int | None
    say: Callable[[str], None] | None

    @property
    def sampling(self) -> SamplingFields:
        structured = self.answering.constrained
        return {
            **sampling_fields(self.answering.sampling),
            "max_tokens": self.answering.max_tokens,
            "max_model_len": self.service.context,
            "constrained": structured,
            "structured": "json_schema" if structured else None,
            "prompt": "token ids" if self.api == "completions" else "messages",
        }

    @property
    def grammar_sha256(self) -> str | None:
        return schema_sha256() if self.answering.constrained else None

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other."""
        return {
            "edge": __version__,
            "backend": "openai",
            "url": self.server.url,
            "served_model": self.name,
            "grammar_sha256": self.grammar_sha256,
            **self.sampling,
        }

    def request(self) -> Request:
        """The fields that all requests share."""
        request: Request = {"model": self.name, "max_tokens": self.answering.max_tokens}
        request.update(request_fields(self.answering.sampling, self.kind))
        if self.answering.constrained:
            request = {**request, **schema_request(self.api, self.kind)}
        return request

    def answer(self, recorder: Recorder) -> EngineCounters:
        """Answer the rows that the journal lacks; the counters of this run's work."""
        request, asked = self.request(), recorder.asked
        thinking = asked.asking.thinking
        # vLLM, SGLang, llama-server and edge serve pass these on to the chat template.
        switch: Request = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}

        def ask(index: int) -> Written:
            if self.api == "completions":
                return self.server.complete({**request, "prompt": asked.prompts[index]})
            messages, _ = asked.asking.messages(asked.rows[index].messages)
            return self.server.chat({**request, **switch, "messages": messages})

        return _answer(recorder, ask, self.server, self.service.concurrency, self.say)

    def head(self, work: EngineCounters) -> Head:
        """The fields of the result before its steps."""
        return {
            "model": f"{self.name} ({self.kind or 'OpenAI-compatible server'})",
            "model_path": self.server.url,
            "lora_path": None,
            "model_short": Path(self.name).name or self.name,
            "gpu": None,
            "sampling": {
                **self.sampling,
                "dtype": None,
                "backend": "openai",
                "server": self.kind or None,
                "limit": self.limit,
            },
            "engine": {
                "prompt_tokens": 0,
                "completion_tokens": 0,
                **work,
                "concurrency": self.service.concurrency,
            },
            "provenance": {
                "backend": "openai",
                "backend_version": self.server.version(),
                "grammar_sha256": self.grammar_sha256,
                "prompt_template_sha256": text_sha256(self.template),
                "platform": None,
                "cpu": None,
            },
        }


def served_model(server: Server, wanted: str | None, option: str = "--served-model") -> tuple[str, str]:
    """The model's name on the server, and the server's kind ("" for one that is not known).

    `option`: the option that names a model. Raises BackendError.
    """
    try:
        models = server.models()
    except Refused as error:
        if wanted is None or not error.absent:
            raise
        return _sendable(server, wanted), ""
    if wanted is None:
        # edge serve has a second name for each model, for its other form of answers.
        twins = {f"{name}-{answers}" for name in models for answers in ("text", "action")}
        models = {name: kind for name, kind in models.items() if name not in twins}
        if len(models) != 1:
            names = _listed(server, models) or "none"
            raise BackendError(f"{server.url}: serves {len(models)} models ({names}): name one with {option}")
        wanted = next(iter(models))
    elif models and wanted not in models:
        raise BackendError(f"{server.url}: does not serve {wanted}; it serves {_listed(server, models)}")
    return _sendable(server, wanted), _KINDS.get(models.get(wanted, ""), "")


def _sendable(server: Server, name: str) -> str:
    """The model's name. Raises BackendError for half of a surrogate pair, which JSON can hold but no request."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = server.without_key(ascii(name))
        raise BackendError(
            f"{server.url}: the name of its model has a character that edge cannot send: {shown}"
        ) from None
    return name


def _listed(server: Server, models: Mapping[str, str]) -> str:
    """The names of the first 20 models, as a part of a message."""
    return server.without_key(", ".join(sorted(models)[:20]))


def _completes(server: Server, name: str, prompt: list[int]) -> bool:
    """Whether the server completes a prompt of token ids. A server with only chats answers "not found".

    Raises Refused if it has completions but takes no ids: as a text the same prompt might get a second BOS.
    """
    try:
        server.complete({"model": name, "prompt": prompt[:1], "max_tokens": 1, "temperature": 0})
    except Refused as error:
        if error.absent:
            return False
        raise Refused(
            f"{error}; it must take prompts as token ids, or leave --model out to let it render the messages itself",
            error.status,
        ) from None
    return True


def request_fields(sampling: Sampling, kind: str) -> Request:
    """The sampling fields of a request to a server of this kind.

    Servers have their own defaults. So a server that is known to read a field gets it, also if it is off; other servers
    get only what differs from the default.
    """
    fields: Request = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    llama = kind in ("llama-server", "llama-cpp-python")
    off = 0 if llama else -1
    if kind or sampling.top_k:
        fields["top_k"] = sampling.top_k or off
    if kind or sampling.min_p:
        fields["min_p"] = sampling.min_p
    if llama:
        fields["repeat_penalty"] = sampling.repetition_penalty
    elif kind or sampling.repetition_penalty != 1.0:
        fields["repetition_penalty"] = sampling.repetition_penalty
    return fields


def _answer(
    recorder: Recorder,
    ask: Callable[[int], Written],
    server: Server,
    concurrency: int,
    say: Callable[[str], None] | None,
) -> EngineCounters:
    """Answer the rows that the journal lacks, in their order and several at a time; the run's counters."""
    waiting = iter(recorder.wanted)
    running: dict[Future[Written], int] = {}
    pool = ThreadPoolExecutor(concurrency)
    try:
        with recorder.watched(say=say):
            while True:
                while len(running) < concurrency and (index := next(waiting, None)) is not None:
                    running[pool.submit(ask, index)] = index
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                # First all that came, then what failed: an answer that is there is kept.
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    written = future.result()
                    recorder.finished(
                        running.pop(future),
                        written.text,
                        thought=written.thought,
                        finish_reason=written.finish_reason,
                        prompt_tokens=written.prompt_tokens,
                        completion_tokens=written.completion_tokens,
                    )
    finally:
        server.close() if running else None
        pool.shutdown(wait=True, cancel_futures=True)
    return {
        "prompt_tokens": recorder.totals["prompt_tokens"],
        "completion_tokens": recorder.totals["completion_tokens"],
    }
