"""Prepare an evaluation: choose the rows, render and tokenize their prompts, and check that they fit the context."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edge.errors import ContextError, EdgeWarning, ReplayError
from edge.formats.checkpoint import read_json
from edge.formats.gguf import read_model_file
from edge.llama.encode import encoder
from edge.prompt import CHAT_TEMPLATE, Rendered, is_gemma4, prompt_source
from edge.replay.asking import DEFAULT_ASKING, Asking
from edge.replay.check import reference_notes
from edge.replay.result import read_result
from edge.replay.rows import Row, describe, read_rows, step_key
from edge.replay.stored_result import PromptTemplate
from edge.system.hashes import text_sha256
from edge.system.text import counted


@dataclass(frozen=True)
class Asked:
    """Rows and their prompts. `rendered`, `prompts` and `hashes` are empty if a server renders the messages itself."""

    replay: Path | str
    rows: list[Row]
    rendered: list[Rendered]
    prompts: list[list[int]]
    """Token ids."""
    hashes: list[str]
    """SHA-256 of the text of each prompt."""
    skipped: int
    """Number of rows that were left out because they were too long."""
    asking: Asking = DEFAULT_ASKING
    stripped: int = 0
    """Number of thoughts that were removed from past answers."""
    thinking: bool | None = None
    """The value of enable_thinking that the chat template got; None where it was not set."""

    @cached_property
    def places(self) -> list[int]:
        """The indices of the rows to answer: all, or those of the shard. Raises EdgeError for too few tasks."""
        shard = self.asking.shard
        if shard is None:
            return list(range(len(self.rows)))
        return shard.places([row.task_id for row in self.rows], str(self.replay))

    @property
    def prompts_sha256(self) -> str | None:
        """One hash for all prompts in their order; None if edge rendered no prompts."""
        return text_sha256("\n".join(self.hashes)) if self.hashes else None


def chosen_rows(replay: Path | str, limit: int | None, rows_of: Path | str | None) -> list[Row]:
    """The rows of a file: only the steps of the result `rows_of`, if given, and of these only the first `limit`.

    Issues an EdgeWarning if references of these rows are not actions. Raises ReplayError, also if the file lacks a step
    of `rows_of`, and ResultError.
    """
    rows = _chosen(replay, limit, rows_of)
    for line in reference_notes(replay, rows):
        warnings.warn(line, EdgeWarning, stacklevel=3)
    return rows


def _chosen(replay: Path | str, limit: int | None, rows_of: Path | str | None) -> list[Row]:
    if rows_of is None:
        return read_rows(replay, limit)
    wanted = set(map(step_key, read_result(rows_of)["per_step"]))
    rows = [row for row in read_rows(replay) if row.key in wanted]
    if len(rows) < len(wanted):
        raise ReplayError(f"{replay}: contains only {len(rows)} of the {len(wanted)} steps of {rows_of}")
    return rows[:limit]


def model_context(model: Path) -> int | None:
    """The context length of a GGUF or a checkpoint folder, in tokens; None if config.json does not state it.

    Raises ModelFileError, CheckpointError.
    """
    if not model.is_dir():
        return read_model_file(model).context_length
    config = read_json(model / "config.json", missing_ok=True)
    for part in (config.get("text_config"), config):
        length = part.get("max_position_embeddings") if isinstance(part, dict) else None
        if type(length) is int and length > 0:
            return length
    return None


def prepare(
    model: Path,
    replay: Path | str,
    rows: Sequence[Row],
    *,
    context: int | None,
    max_tokens: int,
    skip_too_long: bool,
    asking: Asking = DEFAULT_ASKING,
) -> Asked:
    """Render rows with the chat template of a model and tokenize them. It reads no weights.

    `model` is a GGUF or a folder. `context` is the context length in tokens, None for no limit. If a prompt and
    `max_tokens` together exceed it, the row is left out with `skip_too_long`; otherwise ContextError is raised. Also
    raises ModelFileError, CheckpointError and PromptError.
    """
    source = prompt_source(model)
    written = [asking.render(row.messages, source) for row in rows]
    rendered = [prompt for prompt, _ in written]
    with encoder(model) as encode:
        prompts = [encode(prompt.text) for prompt in rendered]
    most = float("inf") if context is None else context
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + max_tokens <= most]
    if len(fitting) < len(rows) and not skip_too_long:
        lengths = zip(rows, map(len, prompts), strict=True)
        row, length = next((row, n) for row, n in lengths if n + max_tokens > most)
        raise ContextError(
            f"{replay}: {describe(row.key)} has a prompt of {counted(length, 'token')}; with {max_tokens} for the "
            f"answer it does not fit into a context of {context} (use a smaller --max-tokens, or --skip-too-long to "
            "leave such rows out)"
        )
    if not fitting:
        raise ContextError(f"{replay}: no row fits into a context of {context} tokens")
    return Asked(
        replay,
        [rows[i] for i in fitting],
        [rendered[i] for i in fitting],
        [prompts[i] for i in fitting],
        [str(text_sha256(rendered[i].text)) for i in fitting],
        len(rows) - len(fitting),
        asking,
        sum(written[i][1] for i in fitting),
        False if asking.thinking is None and is_gemma4(source) else asking.thinking,
    )


def template_summary(statuses: Sequence[str], prompt_tokens: Sequence[int]) -> PromptTemplate:
    """The `prompt_template` of a result, from the template status and the prompt length in tokens of each row.

    `template_status` is the status of all rows, or `mixed`. A run is rank-eligible only if the chat template rendered
    all rows. Percentiles are lengths that occur (nearest rank).
    """
    counts = dict(sorted(Counter(statuses).items()))
    lengths = sorted(prompt_tokens)

    def percentile(share: float) -> int:
        rank = max(math.ceil(share * len(lengths)), 1)
        return lengths[rank - 1] if lengths else 0

    return {
        "template_status": next(iter(counts)) if len(counts) == 1 else "mixed" if counts else "none",
        "template_status_counts": counts,
        "rank_eligible": bool(counts) and set(counts) == {CHAT_TEMPLATE},
        "row_count": len(statuses),
        "prompt_tokens_min": percentile(0.0),
        "prompt_tokens_p50": percentile(0.5),
        "prompt_tokens_p95": percentile(0.95),
        "prompt_tokens_p99": percentile(0.99),
        "prompt_tokens_max": percentile(1.0),
    }
