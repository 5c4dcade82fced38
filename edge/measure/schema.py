"""The fields of a measurement JSON and their types. docs/measure.md says what each figure means.

Likelihoods and divergences are in nats a token. The fields `base_*`, `kl_*`, `nll_difference` and `top1_agreement_pct`
exist only where the model was compared with a base.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from edge.replay.shards import ShardFields
from edge.replay.stored_result import Provenance

FORMAT = 1
"""The value of the field `measurement`: the version of this format. No other JSON of edge has that field."""


class TokenFigures(TypedDict):
    """The figures of a set of tokens: means and quantiles over its `tokens`, at least one."""

    tokens: int
    nll: float
    base_nll: NotRequired[float]
    kl_mean: NotRequired[float]
    kl_median: NotRequired[float]
    kl_p90: NotRequired[float]
    kl_p99: NotRequired[float]
    top1_agreement_pct: NotRequired[float]


class MeasurementAggregate(TokenFigures):
    """The figures of the whole measurement. A perplexity is None where it is too large for a float."""

    rows: int
    tasks: int
    perplexity: float | None
    base_perplexity: NotRequired[float | None]
    nll_difference: NotRequired[float]
    kl_max: NotRequired[float]
    kl_error_bound: NotRequired[float]
    first_commands: NotRequired[int]
    first_command_prob: NotRequired[float]
    base_first_command_prob: NotRequired[float]


_Bounds = TypedDict("_Bounds", {"from": int, "to": int})


class PositionFigures(TokenFigures, _Bounds):
    """The tokens whose index in their answer is in `from` to `to`, both included."""


class FieldFigures(TokenFigures):
    """The tokens of one field of the answers (edge.measure.spans.FIELDS)."""

    field: str


class PositionValues(TypedDict):
    """The values at each position of a row, in a shard only: `edge join` computes the figures of all rows from them."""

    nll: list[float]
    """Negative log-likelihood of the reference's token at each position, in nats."""
    base_nll: NotRequired[list[float]]
    """The same for the base."""
    kl: NotRequired[list[float]]
    kl_error: NotRequired[list[float]]
    same_top: NotRequired[list[float]]
    fields: NotRequired[list[str]]
    command: NotRequired[list[int]]


class RowFigures(TypedDict):
    """The figures of one row or one chunk. Rows of a text have no hashes and no `prompt_tokens`."""

    task_id: str
    sample_idx: int
    step_idx: int
    source_group: str
    bucket: str
    prompt_tokens: int | None
    tokens: int
    nll: float
    base_nll: NotRequired[float]
    kl_mean: NotRequired[float]
    kl_max: NotRequired[float]
    top1_agreement_pct: NotRequired[float]
    first_command_logprob: NotRequired[float]
    base_first_command_logprob: NotRequired[float]
    row_sha256: NotRequired[str | None]
    prompt_sha256: NotRequired[str | None]
    positions: NotRequired[PositionValues]


class Figures(TypedDict):
    """All figures of a measurement. `intervals`: the 95 % interval of each mean, as [low, high]."""

    aggregate: MeasurementAggregate
    intervals: dict[str, list[float | None]]
    by_position: NotRequired[list[PositionFigures]]
    by_field: NotRequired[list[FieldFigures]]
    per_step: list[RowFigures]


class Method(TypedDict):
    """How a measurement was made: the limits of what is kept of the base, and the options."""

    top: int
    lumped_below: float
    class_width: float
    chunk: int | None
    context: int | None
    limit: int | None
    batch: int
    gpu_layers: int
    flash_attention: bool | str
    kv_type: str
    skipped_too_long: int
    tokens_decoded: int
    first_command: str
    intervals: str
    notes: list[str]


class MeasurementHead(TypedDict):
    """Which model was measured on which data. `kind`: "rows" or "text". `run`: all that the figures depend on."""

    measurement: int
    shard: NotRequired[ShardFields]
    run: NotRequired[Mapping[str, object]]
    timestamp: str
    model: str
    model_path: str
    model_sha256: str
    base: NotRequired[str]
    base_path: NotRequired[str]
    base_sha256: NotRequired[str]
    eval_path: str
    provenance: Provenance
    kind: str


class Measurement(MeasurementHead, Figures):
    """A measurement JSON. Times are in seconds."""

    method: Method
    load_time_sec: float
    measure_time_sec: float
