"""What an evaluation asks: the chosen rows, their prompts as text and as token ids, and what fits into the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ContextError, ReplayError
from edge.formats.checkpoint import read_json
from edge.formats.gguf import read_model_file
from edge.llama.encode import encoder
from edge.prompt import Rendered, prompt_source, render_prompt
from edge.replay.result import read_result, step_key
from edge.replay.rows import Row, describe, read_rows
from edge.system.hashes import text_sha256


@dataclass(frozen=True)
class Asked:
    """Rows and what is sent for each. Where a server renders the messages itself, `rendered`, `prompts` and `hashes`
    are empty."""

    replay: Path | str
    rows: list[Row]
    rendered: list[Rendered]
    prompts: list[list[int]]
    hashes: list[str]
    """The SHA-256 of each prompt's text."""
    skipped: int
    """Rows that were too long and left out."""

    @property
    def prompts_sha256(self) -> str | None:
        """One hash for all prompts in their order, None where there are none of ours."""
        return text_sha256("\n".join(self.hashes)) if self.hashes else None


def chosen_rows(replay: Path | str, limit: int | None, rows_of: Path | str | None) -> list[Row]:
    """The rows of a file, of them those that the result `rows_of` holds, of them the first `limit`.

    Raises ReplayError, ResultError.
    """
    if rows_of is None:
        return read_rows(replay, limit)
    wanted = set(map(step_key, read_result(rows_of)["per_step"]))
    rows = [row for row in read_rows(replay) if row.key in wanted]
    if len(rows) < len(wanted):
        raise ReplayError(f"{replay}: holds {len(rows)} of the {len(wanted)} steps of {rows_of}")
    return rows[:limit]


def model_context(model: Path) -> int | None:
    """Most tokens that a GGUF or a checkpoint folder says it takes; None for a folder that does not tell.

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
) -> Asked:
    """Render the rows by a model's template and tokenizer (a GGUF or a folder; no weights are read).

    A row whose prompt and `max_tokens` do not fit into `context` tokens (None: no bound) raises ContextError, unless
    `skip_too_long`. Raises ModelFileError, CheckpointError, PromptError.
    """
    source = prompt_source(model)
    rendered = [render_prompt(row.messages, source) for row in rows]
    with encoder(model) as encode:
        prompts = [encode(prompt.text) for prompt in rendered]
    most = float("inf") if context is None else context
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + max_tokens <= most]
    if len(fitting) < len(rows) and not skip_too_long:
        lengths = zip(rows, map(len, prompts), strict=True)
        row, length = next((row, n) for row, n in lengths if n + max_tokens > most)
        raise ContextError(
            f"{replay}: {describe(row.key)} has {length} prompt tokens; with {max_tokens} for the "
            f"answer it does not fit into {context} (--skip-too-long leaves such rows out)"
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
    )
