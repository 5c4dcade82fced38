"""The models of a run of trials: a file on this machine, one behind a server, or a script instead of a model."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

from edge.agent.answerer import DEFAULT_CONTEXT, LocalAnswerer
from edge.agent.record import ModelFacts
from edge.answer.answering import Answering
from edge.answer.style import load_grammar
from edge.formats.gguf import model_sha256, read_model_file
from edge.llama.loading import Loading, with_own_adapter
from edge.llama.tuned import with_tuned
from edge.replay.openai import Service
from edge.replay.provenance import (
    adapter_identity,
    adapter_provenance,
    gguf_provenance,
    llama_cpp_provenance,
)
from edge.replay.result import sampling_fields
from edge.replay.stored_result import Provenance
from edge.system.hashes import text_sha256
from edge.system.outputs import Run
from edge.trial.workers import Counted, Script
from edge.version import __version__

Workers = Callable[[int | None], Counted | Script]
"""Makes the worker of one trial, from the seed of its answers: a new conversation."""
Say = Callable[[str], None]


def _answering_fields(answering: Answering) -> dict[str, object]:
    fields = {name: value for name, value in sampling_fields(answering.sampling).items() if name != "seed"}
    return {
        **fields,
        "max_tokens": answering.max_tokens,
        "think": answering.think,
        "text_share": answering.text_share,
        "style": answering.style,
    }


def _seeded(answering: Answering, seed: int | None) -> Answering:
    return replace(answering, sampling=replace(answering.sampling, seed=seed))


@dataclass(frozen=True)
class LocalModel:
    """A GGUF on this machine. `given`: as the command named it."""

    path: Path
    given: str
    loading: Loading
    answering: Answering

    @property
    def name(self) -> str:
        """The name of the result's file."""
        return self.path.stem

    @property
    def label(self) -> str:
        """The name for people."""
        file = read_model_file(self.path)
        return f"{file.name or self.path.stem} ({file.file_type}, edge)"

    @property
    def _loading(self) -> Loading:
        return with_tuned(self.path, with_own_adapter(self.path, self.loading), measures=True)

    @property
    def sampling(self) -> dict[str, object]:
        """The settings of the answers."""
        return _answering_fields(self.answering)

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other. Raises ModelFileError."""
        loading = self._loading
        return {
            "edge": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "model_sha256": model_sha256(self.path),
            "adapters": adapter_identity(loading.adapters),
            "grammar_sha256": text_sha256(load_grammar()),
            **self.sampling,
            "gpu_layers": loading.gpu_layers,
            "context": loading.context,
            "batch": loading.batch,
            "kv_type": loading.kv_type,
            "flash_attention": loading.flash_attention,
        }

    def provenance(self) -> Provenance:
        """Where the trials come from. Raises ModelFileError."""
        return {
            "backend": "edge",
            "backend_version": __version__,
            **llama_cpp_provenance(),
            **gguf_provenance(self.path),
            "adapters": adapter_provenance(self._loading.adapters),
            "grammar_sha256": text_sha256(load_grammar()),
            "threads": self.loading.threads,
        }

    def facts(self) -> ModelFacts:
        """What the session records say about the model."""
        facts: ModelFacts = {"model": str(self.path.absolute())}
        if adapters := self._loading.adapters:
            facts["adapters"] = [str(replace(one, path=one.path.absolute())) for one in adapters]
        return facts

    @contextlib.contextmanager
    def open(self, say: Say) -> Iterator[Workers]:
        """Load the model. Trials take turns on it. Raises ModelFileError."""
        from edge.runner import Runner

        turn = threading.Lock()
        last: list[
            LocalAnswerer
        ] = []  # its states stay, so that the next trial of a task reads only what is new
        with Runner.open(self.path, self._loading) as runner:

            def worker(seed: int | None) -> Counted:
                answering = _seeded(self.answering, seed)
                answerer = LocalAnswerer(runner, answering, self.loading.context or DEFAULT_CONTEXT)
                last[:] = [*last[-1:], answerer]
                return Counted(answerer, turn)

            yield worker
            last.clear()


@dataclass(frozen=True)
class ServedModel:
    """A model behind an OpenAI-compatible server."""

    url: str
    service: Service
    answering: Answering
    context: int | None = None

    @property
    def name(self) -> str:
        """The name of the result's file."""
        text = self.service.served_model or "served"
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip(".-") or "served"

    @property
    def label(self) -> str:
        """The name for people."""
        return f"{self.service.served_model or 'the only model'} of {self.url}"

    @property
    def given(self) -> str:
        """The model as the command named it."""
        return self.service.served_model or self.url

    @property
    def sampling(self) -> dict[str, object]:
        """The settings of the answers."""
        return _answering_fields(self.answering)

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other."""
        return {
            "edge": __version__,
            "server": self.url,
            "served_model": self.service.served_model,
            "context": self.context,
            **self.sampling,
        }

    def provenance(self) -> Provenance:
        """Where the trials come from."""
        return {"backend": "openai"}

    def facts(self) -> ModelFacts:
        """What the session records say about the model."""
        return {"server": self.url, "served_model": self.service.served_model or ""}

    @contextlib.contextmanager
    def open(self, say: Say) -> Iterator[Workers]:
        """Connect to the server. Raises BackendError."""
        from edge.agent.remote import RemoteAnswerer, open_remote

        with open_remote(self.url, self.service, self.answering, self.context, say) as first:

            def worker(seed: int | None) -> Counted:
                answering = _seeded(self.answering, seed)
                model = RemoteAnswerer(
                    first.server, first.served_model, first.kind, answering, first.context, say
                )
                return Counted(model)

            yield worker


@dataclass(frozen=True)
class ScriptedModel:
    """A script of each task instead of a model, or nobody."""

    script: Script

    @property
    def name(self) -> str:
        """The name of the result's file."""
        return self.script

    @property
    def label(self) -> str:
        """The name for people."""
        return self.script

    @property
    def given(self) -> str | None:
        """No model was named."""
        return None

    @property
    def sampling(self) -> dict[str, object]:
        """A script has no settings."""
        return {}

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other."""
        return {"edge": __version__, "agent": self.script}

    def provenance(self) -> Provenance:
        """Where the trials come from."""
        return {"backend": "edge", "backend_version": __version__}

    def facts(self) -> ModelFacts:
        """A script has no session record."""
        return cast(ModelFacts, {})

    @contextlib.contextmanager
    def open(self, say: Say) -> Iterator[Workers]:
        """Nothing is loaded."""
        yield lambda seed: self.script


Engine = LocalModel | ServedModel | ScriptedModel
