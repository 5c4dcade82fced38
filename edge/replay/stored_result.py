"""The types of a result JSON, as edge writes it and as vLLM runs are published.

edge writes every field of its backend. A published result lacks many, so most fields are optional here. A field of
type `object` is only shown to people, so the reader accepts any value.

This module imports nothing heavy: the command line reads the known models with it.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from edge.metrics import Aggregate, StepScores
from edge.system.typed_json import Index, Name


class KeyFields(TypedDict):
    """The fields that identify a step in rows, predictions and results."""

    task_id: Name
    step_idx: Index
    sample_idx: NotRequired[Index | None]


class Reported(TypedDict, total=False):
    """How the answer of a step was made, as far as any engine may report it."""

    prompt_sha256: str | None
    """SHA-256 of the rendered prompt; None where a server rendered it."""
    finish_reason: str | None
    """"stop" or "length"."""
    prompt_tokens: Index | None
    completion_tokens: Index | None
    closed_at_budget: bool | None
    """Whether the answer reached its token limit and edge closed it."""


class Making(Reported, total=False):
    """How the answer of a step was made."""

    thought: str | None
    """The thought that edge cut from a constrained answer."""
    forced_tokens: Index | None
    """Tokens for which the grammar left no choice."""


class Step(KeyFields, StepScores, Making):
    """One row of `per_step`. A published step has no `pred_text`, only its beginning."""

    source_group: str
    pred_text: NotRequired[str | None]
    pred_preview: NotRequired[str | None]
    row_sha256: NotRequired[str | None]


class SamplingFields(TypedDict, total=False):
    """`sampling`: the settings and limits of a run. A setting that does not apply is None."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    max_tokens: int | None
    max_model_len: int | None
    constrained: bool | None
    structured: str | bool | None
    think: int | None
    text_share: float | None
    style: str | None
    dtype: str | None
    tp: int | None
    gpu_memory_utilization: object
    backend: str | None
    server: object
    prompt: object
    limit: object
    skipped_too_long: int | None


class PromptTemplate(TypedDict, total=False):
    """`prompt_template`: how the prompts were rendered, and percentiles of their lengths in tokens."""

    template_status: str | None
    template_status_counts: Mapping[str, object]
    rank_eligible: bool | None
    row_count: int | None
    prompt_tokens_min: float | None
    prompt_tokens_p50: float | None
    prompt_tokens_p95: float | None
    prompt_tokens_p99: float | None
    prompt_tokens_max: float | None


class EngineCounters(TypedDict, total=False):
    """`engine`: what one run did and used. Token counts are of the steps that this run answered."""

    rows_missing: int
    steps_done_before: int
    """Steps that an interrupted run had answered."""
    prompt_tokens: int
    prompt_tokens_distinct: int
    """Prompt tokens after shared prefixes are counted once."""
    prompt_tokens_decoded: int
    """Prompt tokens that the model really read."""
    completion_tokens: int
    forced_tokens: int
    thought_tokens: int
    gpu_layers: int | None
    threads: int | None
    cells: int | None
    parallel: int | None
    concurrency: int | None
    batch: int | None
    kv_type: str | None
    flash_attention: bool | None
    enforce_eager: bool | None
    peak_memory_bytes: int | None


class TensorShare(TypedDict):
    """The tensors of one type."""

    tensors: int
    bytes: int


class Provenance(TypedDict, total=False):
    """`provenance`: where a result comes from. edge writes every field; None where it is unknown."""

    edge: str | None
    backend: str | None
    backend_version: str | None
    llama_cpp_python: str | None
    llama_cpp: str | None
    model_sha256: str | None
    model_bytes: int | None
    n_params: int | None
    bits_per_weight: float | None
    tensor_types: dict[str, TensorShare] | None
    quantization: str | None
    source: str | None
    source_revision: str | None
    imatrix: Mapping[str, object] | None
    grammar_sha256: str | None
    prompt_template_sha256: str | None
    rows_sha256: str | None
    rows_file_sha256: str | None
    platform: str | None
    cpu: str | None
    threads: int | None


class Head(TypedDict, total=False):
    """The top-level fields of a result that are not computed from its steps.

    `run`: all that the answers depend on; a file of another run is not replaced without --force.
    """

    schema_version: int
    timestamp: object
    model: str | None
    model_path: str | None
    model_sha256: str | None
    lora_path: str | None
    model_short: str | None
    gpu: object
    eval_path: str | None
    load_time_sec: float | None
    gen_time_sec: float | None
    avg_sec_per_step: float | None
    sampling: SamplingFields
    prompt_template: PromptTemplate
    engine: EngineCounters
    provenance: Provenance
    run: Mapping[str, object] | None


class Summary(Head, total=False):
    """A result without its steps."""

    aggregate: Aggregate


class Result(Summary):
    """A whole result. `per_step` is empty where only the aggregate was published."""

    per_step: list[Step]
