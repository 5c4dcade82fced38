"""Which model a session uses: a file on this machine or one behind a server, from the options and the record."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge.agent.answerer import DEFAULT_CONTEXT, Answerer, LocalAnswerer
from edge.agent.options import Interface, ServerOptions, SessionOptions
from edge.agent.record import ModelFacts, Record
from edge.agent.wording import read_template
from edge.errors import AgentError
from edge.llama.loading import Adapter, parse_adapters, with_own_adapter
from edge.llama.tuned import with_tuned


@dataclass(frozen=True)
class LocalSource:
    """A GGUF on this machine, with its adapters."""

    path: Path
    adapters: tuple[Adapter, ...]

    secrets: tuple[str, ...] = ()
    """Environment variables that only edge may see."""

    @property
    def files(self) -> list[Path]:
        """The files of the model."""
        return [self.path, *(one.path for one in self.adapters)]

    def shown(self) -> dict[str, str]:
        """What a person reads about it, by name."""
        return {"model": str(self.path), "adapters": ", ".join(map(str, self.adapters))}

    def facts(self, model: Answerer) -> ModelFacts:
        """What the record says about it."""
        facts: ModelFacts = {"model": str(self.path.absolute())}
        if self.adapters:
            facts["adapters"] = [str(replace(one, path=one.path.absolute())) for one in self.adapters]
        return facts

    @contextlib.contextmanager
    def open(self, options: SessionOptions, interface: Interface) -> Iterator[Answerer]:
        """Load the model. Raises ModelFileError."""
        from edge.runner import Runner

        template = None if options.template is None else read_template(options.template)
        states = options.loading.states
        if states is not None and options.resume is not None:
            states = replace(states, continues=True)
        loading = with_own_adapter(self.path, replace(options.loading, adapters=self.adapters, states=states))
        loading = with_tuned(self.path, loading, measures=False)
        with Runner.open(self.path, loading) as runner:
            context = options.loading.context or DEFAULT_CONTEXT
            model = LocalAnswerer(runner, options.answering, context, template)
            yield model
            model.keep()


@dataclass(frozen=True)
class ServerSource:
    """A model behind an OpenAI-compatible server. `name`: its name there, by default that of the only one."""

    server: ServerOptions
    url: str
    name: str | None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables that only edge may see."""
        from edge.replay.client import KEY_VARIABLE

        return (KEY_VARIABLE,)

    @property
    def files(self) -> list[Path]:
        """The file of the server's key."""
        return [] if self.server.key_file is None else [self.server.key_file]

    def shown(self) -> dict[str, str]:
        """What a person reads about it, by name."""
        return {
            "model": self.name or "the only one of the server",
            "server": f"{self.url}: it sees the terminal",
        }

    def facts(self, model: Answerer) -> ModelFacts:
        """What the record says about it."""
        return {"server": self.url, "served_model": model.served_model or ""}

    @contextlib.contextmanager
    def open(self, options: SessionOptions, interface: Interface) -> Iterator[Answerer]:
        """Connect to the server. Raises BackendError."""
        from edge.agent.remote import open_remote  # it imports httpx, which only this needs
        from edge.replay.openai import Service

        given = self.server
        service = Service(self.name, 1, given.timeout, given.pause, given.key_file)
        context = options.loading.context
        with open_remote(self.url, service, options.answering, context, interface.say) as model:
            yield model


Source = LocalSource | ServerSource


def find_source(options: SessionOptions, resumed: Record | None, interface: Interface) -> Source:
    """The model that the options name, else the one of the resumed session.

    Raises AgentError if a record names no model, or an option does not fit the model; ModelFileError.
    """
    facts: ModelFacts = {} if resumed is None else resumed.facts
    url, model, adapters = options.server.url or facts.get("server"), options.model, options.loading.adapters
    if url is not None:
        if options.local_options:
            raise AgentError(
                "is for a model on this machine, and this session uses a server",
                option=options.local_options[0],
            )
        return ServerSource(
            options.server, url, model or (None if options.server.url else facts.get("served_model"))
        )
    if options.server_options:
        raise AgentError("is for a server: add --base-url", option=options.server_options[0])
    if resumed is not None and model is None:
        if "model" not in facts:
            raise AgentError(f"{resumed.path}: does not name its model: add --model FILE")
        adapters = adapters or parse_adapters(facts.get("adapters", []))
        model = facts["model"]
    return LocalSource(interface.find_model(model), adapters)
