"""What the endpoints of the server share: the model, the limits of a request, the metrics."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edge.answer.answering import AnswerKind
from edge.answer.call_formats import HARMONY, HARMONY_CHANNEL, CallFormat
from edge.answer.call_schema import Tool
from edge.answer.guided import compile_guide
from edge.answer.tools import CallGuide, compile_calls
from edge.serve.model import ServedModel
from edge.serve.names import ServedNames
from edge.serve.tool_prompt import ToolPrompt, recognize

_ENCODED_IN_PARALLEL = 2  # prompts; llama.cpp's tokenizer takes up to 140 bytes for each byte
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


@dataclass
class Metrics:
    """The metrics of /metrics, in Prometheus' text format. They contain nothing of prompts or answers."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "edge_requests", "Requests by endpoint and status.", ("path", "status"), registry=registry
        )
        self.prompt_tokens = Counter("edge_prompt_tokens", "Tokens of answered prompts.", registry=registry)
        self.decoded = Gauge(
            "edge_prompt_tokens_decoded",
            "Prompt tokens that were read; the rest was kept.",
            registry=registry,
        )
        self.completion_tokens = Counter("edge_completion_tokens", "Tokens of answers.", registry=registry)
        self.gone = Counter(
            "edge_clients_gone", "Clients that went away before their answer ended.", registry=registry
        )
        self.running = Gauge("edge_requests_running", "Requests that are being answered.", registry=registry)
        self.waiting = Gauge("edge_requests_waiting", "Requests that wait for a place.", registry=registry)
        self.kept = Gauge(
            "edge_cache_ram_bytes", "Bytes of prompts and answers that are kept in memory.", registry=registry
        )
        self.seconds = Histogram(
            "edge_request_seconds", "Time until an answer is finished.", buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "edge_first_text_seconds",
            "Time until the first text of an answer.",
            buckets=_SECONDS,
            registry=registry,
        )


@dataclass
class Server:
    """What the endpoints share: the model, and the limits of a request in tokens, bytes and seconds."""

    model: ServedModel
    names: ServedNames
    context: int
    max_tokens: int
    body_limit: int
    body_seconds: float
    api_key: str | None
    log: Callable[[str], None] = lambda text: None
    """Receives a line for each request, except checks of health and metrics."""
    answers: AnswerKind = "action"
    """What a chat request gets that asks for no format."""
    must_call: bool = False
    """Whether a request with tools that leaves it open (auto) must be answered with a call."""
    metrics: Metrics = field(default_factory=Metrics)
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server."""
    silence: float = 10.0
    """Seconds without an event after which a stream tells that the server still works."""
    began: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.encoding = asyncio.Semaphore(_ENCODED_IN_PARALLEL)
        # Compiling takes milliseconds, and agents send the same schema again and again.
        self.compiled = lru_cache(maxsize=64)(
            lambda kind, text: compile_guide(self.model.runner.vocabulary, kind, text)
        )
        self.calls = lru_cache(maxsize=64)(self._compile_calls)

    def kind(self, body: Mapping[str, Any]) -> AnswerKind:
        """What a chat request gets that asks for no format: its model's name can say it."""
        return self.names.kind(body.get("model"), self.answers)

    @cached_property
    def tool_prompt(self) -> ToolPrompt:
        """How the model's chat template shows tools and calls."""
        return recognize(self.model.runner.render)

    @property
    def call_form(self) -> CallFormat:
        """The form in which the model writes calls: that of its template, or for gpt-oss its own."""
        form = self.tool_prompt.form
        return HARMONY_CHANNEL if form.name == HARMONY.name else form

    def _compile_calls(self, tools: str, many: bool) -> CallGuide:
        """`tools`: JSON of their names and parameters. Raises GrammarError."""
        listed = [Tool(name, parameters) for name, parameters in json.loads(tools)]
        vocabulary, endings = self.model.runner.vocabulary, self.model.endings
        return compile_calls(vocabulary, endings, self.call_form, listed, many=many)
