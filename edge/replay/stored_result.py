"""The types of a result JSON, as edge writes it and as vLLM runs are published.

edge writes every field of its backend. A published result lacks many, so most fields are optional here. A field of
type `object` is only shown to people, so the reader accepts any value.

This module imports nothing heavy: the command line reads the known models with it.
"""

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

from edge.metrics import Aggregate, StepScores
from edge.replay.shards import ShardFields
from edge.system.typed_json import Amount, Index, Name


class KeyFields(TypedDict):
    """The fields that identify a step in rows, predictions and results."""

    task_id: Name
    """Name of the task."""
    step_idx: Index
    """Number of the step in its task, from 0."""
    sample_idx: NotRequired[Index | None]
    """Number of the sample if a task was recorded several times, from 0. Default: 0."""


class Reported(TypedDict, total=False):
    """How the answer of a step was made, as far as any engine may report it."""

    prompt_sha256: str | None
    """SHA-256 of the rendered prompt; null where a server rendered it."""
    finish_reason: str | None
    """Why the answer ended: "stop", or "length" at the token limit."""
    prompt_tokens: Index | None
    """Tokens of the prompt."""
    completion_tokens: Index | None
    """Tokens of the answer, its thought included."""
    closed_at_budget: bool | None
    """Whether the answer reached its token limit and edge closed it."""
    error: str | None
    """Error message of a server that gave no answer. Only other programs write it."""


class Making(Reported, total=False):
    """How the answer of a step was made."""

    thought: str | None
    """The thought that edge cut from a constrained answer."""
    forced_tokens: Index | None
    """Tokens for which the grammar left no choice."""


class Prediction(KeyFields, Reported):
    """A line of a predictions file for `edge score`: the answer of another engine to one row."""

    pred_text: str
    """The whole text that the model wrote."""


class Step(KeyFields, StepScores, Making):
    """One row of per_step: an answer and its score. A published step has no pred_text, only its beginning."""

    source_group: str
    """Group of the row, for by_source_group."""
    pred_text: NotRequired[str | None]
    """The answer that was scored."""
    pred_preview: NotRequired[str | None]
    """Its first 1,200 characters."""
    row_sha256: NotRequired[str | None]
    """SHA-256 of the row's messages and ref_raw."""


SHARES: tuple[Literal["first_cmd_exact", "command_precision", "command_recall", "command_f1"], ...] = (
    "first_cmd_exact",
    "command_precision",
    "command_recall",
    "command_f1",
)
"""The fields of a step that must be from 0 to 1."""


PREVIEW = 1200
"""Characters of an answer in `pred_preview`, as published."""


def whole_text(step: Step) -> str | None:
    """The whole answer of a step, or None where only its beginning was published."""
    text = step.get("pred_text")
    if text is not None:
        return text
    preview = step.get("pred_preview")
    return preview if preview is not None and len(preview) < PREVIEW else None


class SamplingFields(TypedDict, total=False):
    """`sampling`: the settings and limits of a run. A setting that does not apply is None."""

    temperature: float | None
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float | None
    """Probability mass to sample from; 1 is off."""
    top_k: int | None
    """Number of most likely tokens to sample from; 0 is off."""
    min_p: float | None
    """Smallest share of the highest probability; 0 is off."""
    repetition_penalty: float | None
    """Above 1, repetition is less likely; 1 is off."""
    seed: int | None
    """Seed of the sampling."""
    max_tokens: Index | None
    """Maximum tokens of an answer."""
    max_model_len: int | None
    """Maximum tokens of a prompt and its answer."""
    constrained: bool | None
    """Whether edge's grammar guided the answers."""
    structured: str | bool | None
    """How another engine was asked for the JSON schema of the action."""
    think: int | None
    """Maximum tokens of a thought; null for the default."""
    text_share: float | None
    """Share of max_tokens for the analysis and the plan together."""
    style: str | None
    """White space in the JSON: auto, compact, indented or free."""
    dtype: str | None
    """Number type, or quantization type of the GGUF."""
    tp: int | None
    """GPUs that the model was split over."""
    gpu_memory_utilization: object
    """Share of the GPU memory that vLLM used."""
    backend: str | None
    """edge, vllm, openai or predictions."""
    server: object
    """Name and version of the server."""
    prompt: object
    """What the server got: token ids, or messages."""
    limit: object
    """--limit: only the first N rows."""
    skipped_too_long: Index | None
    """Rows that did not fit into the context and were left out."""
    thinking_mode: str | None
    """enable_thinking of the chat template: on, off, or auto (not set)."""
    strip_thinking_history: str | bool | None
    """Whether thoughts were removed from past answers in the prompts: on, off or auto."""


class PromptTemplate(TypedDict, total=False):
    """`prompt_template`: how the prompts were rendered, and percentiles of their lengths in tokens."""

    template_status: str | None
    """chat_template, gemma4_patched, chatml_fallback, gemma_fallback, server_chat, mixed or unknown."""
    template_status_counts: Mapping[str, object]
    """Number of rows of each status."""
    rank_eligible: bool | None
    """Whether the model's own chat template rendered every row, or for Gemma 4 its format without past thoughts."""
    row_count: int | None
    """Number of rows."""
    prompt_tokens_min: float | None
    """Shortest prompt."""
    prompt_tokens_p50: float | None
    """Median length of a prompt."""
    prompt_tokens_p95: float | None
    """95 % of the prompts are at most this long."""
    prompt_tokens_p99: float | None
    """99 % of the prompts are at most this long."""
    prompt_tokens_max: float | None
    """Longest prompt."""
    chat_template_kwargs: Mapping[str, object] | None
    """Variables of the template that the run set."""
    prompt_options: Mapping[str, object] | None
    """strip_thinking_history: whether thoughts were removed from past answers."""
    stripped_thinking_blocks: int | None
    """How many thoughts were removed."""


class EngineCounters(TypedDict, total=False):
    """`engine`: what one run did and used. Token counts are of the steps that this run answered."""

    rows_missing: Index
    """Rows without a prediction (`edge score --partial`)."""
    steps_done_before: int
    """Steps that an interrupted run had answered."""
    prompt_tokens: int
    """Tokens of the prompts."""
    prompt_tokens_distinct: int
    """Prompt tokens after shared prefixes are counted once."""
    prompt_tokens_decoded: int
    """Prompt tokens that the model really read."""
    prompt_tokens_restored: int
    """Prompt tokens that were not read because a state on disk has them."""
    completion_tokens: Index
    """Tokens of the answers."""
    answer_passes: int
    """Passes of the model in which tokens of answers were decoded."""
    forced_tokens: int
    """Tokens for which the grammar left no choice."""
    thought_tokens: int
    """Tokens of thoughts."""
    gpu_layers: int | None
    """Layers on the GPU."""
    threads: int | None
    """CPU threads."""
    cells: int | None
    """Size of the KV cache in tokens."""
    parallel: int | None
    """Maximum number of answers written at the same time."""
    concurrency: int | None
    """Maximum number of requests at the same time."""
    batch: int | None
    """Tokens decoded in one batch."""
    kv_type: str | None
    """Number type of the KV cache."""
    flash_attention: bool | None
    """Whether flash attention was used."""
    enforce_eager: bool | None
    """Whether vLLM ran without graphs."""
    peak_memory_bytes: Index | None
    """Largest memory of the process."""


class TensorShare(TypedDict):
    """The tensors of one type."""

    tensors: int
    """Number of tensors."""
    bytes: int
    """Their size."""


class AdapterFacts(TypedDict):
    """A LoRA adapter that changed the model."""

    name: str
    """Name of the file."""
    sha256: str
    """SHA-256 of the file."""
    scale: float
    """Factor of its change."""
    base: str | None
    """Model that it was trained on, as the file says."""


class Provenance(TypedDict, total=False):
    """`provenance`: where a result comes from. edge writes every field; None where it is unknown."""

    edge: str | None
    """Version of edge."""
    backend: str | None
    """Engine that wrote the answers."""
    backend_version: str | None
    """Its version."""
    llama_cpp_python: str | None
    """Version of llama-cpp-python."""
    llama_cpp: str | None
    """Version of llama.cpp."""
    model_sha256: str | None
    """SHA-256 of the model file."""
    adapters: list[AdapterFacts] | None
    """LoRA adapters that changed the model while it ran; null without one."""
    model_bytes: Index | None
    """Size of the model file."""
    n_params: Index | None
    """Number of parameters."""
    bits_per_weight: Amount | None
    """Mean bits of a weight."""
    tensor_types: dict[str, TensorShare] | None
    """Number and size of the tensors of each type."""
    quantization: str | None
    """Quantization type."""
    recipe: list[str] | None
    """The lines PATTERN=TYPE that chose the types of a mixed-precision file."""
    source: str | None
    """Checkpoint that the GGUF was made from."""
    source_revision: str | None
    """Commit of that checkpoint."""
    imatrix: Mapping[str, object] | None
    """Importance matrix that the GGUF was made with."""
    grammar_sha256: str | None
    """SHA-256 of the grammar, or of the JSON schema."""
    prompt_template_sha256: str | None
    """SHA-256 of the chat template."""
    rows_sha256: str | None
    """SHA-256 of the rows that were scored, whatever the file's spelling."""
    rows_file_sha256: str | None
    """SHA-256 of the --replay file."""
    platform: str | None
    """System and machine type."""
    cpu: str | None
    """Name of the CPU."""
    threads: int | None
    """CPU threads."""
    shards: int | None
    """Number of shards that `edge join` put together; null for a run that one machine made."""


class Head(TypedDict, total=False):
    """The top-level fields of a result that are not computed from its steps."""

    schema_version: int
    """Version of this format; absent in published results and in those of edge 0.2.0 and older."""
    timestamp: object
    """When the result was written (UTC, ISO 8601)."""
    model: str | None
    """Name of the model for people."""
    model_path: str | None
    """The model as the command named it."""
    model_sha256: str | None
    """SHA-256 of the model file."""
    lora_path: str | None
    """LoRA adapters that the engine loaded: FILE, FILE:SCALE, and a comma between several; null without one."""
    model_short: str | None
    """Short name of the model."""
    gpu: object
    """Name of the device, or cpu."""
    eval_path: str | None
    """The --replay file."""
    shard: ShardFields | None
    """Which part of the rows the result holds (`--shard`); absent in a whole result."""
    complete: bool | None
    """Whether the run came to its end. Only other programs write it, with false for an unfinished run."""
    total_input_steps: Index | None
    """Number of rows of the replay file. Only other programs write it."""
    load_time_sec: Amount | None
    """Seconds to load the model."""
    gen_time_sec: Amount | None
    """Seconds to write the answers."""
    avg_sec_per_step: Amount | None
    """gen_time_sec for each step that this run answered."""
    sampling: SamplingFields
    """Settings and limits of the run."""
    prompt_template: PromptTemplate
    """How the prompts were rendered."""
    engine: EngineCounters
    """What the run did and used. Only edge writes it."""
    provenance: Provenance
    """Where the result comes from. Only edge writes it."""
    rescored: int
    """Number of steps that edge scored again when it read the file, because other rules had scored them."""
    reread: dict[str, int]
    """Number of steps whose field edge computed again when it read the file, by field: the stated value does not follow
    from the answer or the number of the step."""
    stated_steps: int
    """Number of steps of the stored aggregate, if it is not that of `per_step`. edge sets it when it reads the file."""
    run: Mapping[str, object] | None
    """All that the answers depend on; without --force, edge does not replace a file of another run."""


class Summary(Head, total=False):
    """A result without its steps."""

    aggregate: Aggregate
    """The figures over all steps."""


class Result(Summary):
    """A result of `edge eval` or `edge score`, or a published one. per_step is empty if only the aggregate is known."""

    per_step: list[Step]
    """One entry for each scored row."""
