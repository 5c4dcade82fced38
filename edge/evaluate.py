"""Replay recorded steps with a model: one step after the other, scored as the published runs are."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge.engine import common_length
from edge.errors import ContextError, ReplayError
from edge.modelfile import sha256
from edge.prompt import template_summary
from edge.replay import Row, describe, read_rows
from edge.result import check_place, read_result, step_key, step_result, write_result
from edge.runner import DEFAULT_MAX_TOKENS, DEFAULT_TEXT_SHARE, GREEDY, Runner
from edge.sampling import Sampling


def evaluate(
    model: Path | str,
    replay: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    rows_of: Path | str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    constrained: bool = True,
    skip_too_long: bool = False,
    n_ctx: int | None = None,
    sampling: Sampling = GREEDY,
    think: int | None = None,
    text_share: float = DEFAULT_TEXT_SHARE,
    gpu_layers: int = -1,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Answer every row of `replay` and write the result JSON to `out`; returns what was written.

    `rows_of` keeps the steps that another result holds; `limit` the first N after that. A row whose prompt and
    `max_tokens` do not fit into `n_ctx` tokens (default: the model's context) raises ContextError, before
    anything is answered, unless `skip_too_long`. Constrained answers are scored by the action alone,
    unconstrained ones by the raw text, as vLLM's are. Raises ModelFileError, ReplayError, ResultError,
    PromptError.
    """
    check_place(out)
    rows = _chosen(replay, limit, rows_of)
    began = time.perf_counter()
    with Runner.load(model, gpu_layers=gpu_layers, threads=threads) as runner:
        rendered = [runner.render(row.messages) for row in rows]
        prompts = [runner.encode(text.text) for text in rendered]
        context = n_ctx or runner.engine.context_length
        if context > runner.engine.context_length:
            raise ContextError(
                f"{model}: has a context of {runner.engine.context_length} tokens, not {context}"
            )
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + max_tokens <= context]
        if len(fitting) < len(rows) and not skip_too_long:
            lengths = zip(rows, map(len, prompts), strict=True)
            row, length = next((row, n) for row, n in lengths if n + max_tokens > context)
            raise ContextError(
                f"{replay}: {describe(row.key)} has {length} prompt tokens; with {max_tokens} for the "
                f"answer it does not fit into {context} (--skip-too-long leaves such rows out)"
            )
        if not fitting:
            raise ContextError(f"{replay}: no row fits into a context of {context} tokens")
        skipped = len(rows) - len(fitting)
        rows = [rows[i] for i in fitting]
        rendered = [rendered[i] for i in fitting]
        prompts = [prompts[i] for i in fitting]
        runner.engine.reserve(max(map(len, prompts)) + max_tokens)
        load_seconds = time.perf_counter() - began

        steps: list[dict[str, Any]] = []
        valid = 0
        counters = dict.fromkeys(("completion_tokens", "forced_tokens", "thought_tokens"), 0)
        began = time.perf_counter()
        with _bar(progress) as bar:
            line = bar.add_task("steps", total=len(rows), valid=0)
            for row, prompt in zip(rows, prompts, strict=True):
                if constrained:
                    answer: Any = runner.act_on(
                        prompt, max_tokens, sampling=sampling, think=think, text_share=text_share
                    )
                else:
                    answer = runner.write_on(prompt, max_tokens, sampling=sampling)
                for name in counters:
                    counters[name] += getattr(answer, name)
                steps.append(
                    step_result(
                        row,
                        answer.text,
                        thought=answer.thought,
                        finish_reason=answer.finish_reason,
                        prompt_tokens=len(prompt),
                        completion_tokens=answer.completion_tokens,
                        closed_at_budget=answer.closed_at_budget,
                    )
                )
                valid += steps[-1]["valid_json"]
                bar.update(line, advance=1, valid=valid)
        seconds = time.perf_counter() - began
        file = runner.model_file
        head = {
            "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "model_path": str(model),
            "model_sha256": sha256(file.path),
            "lora_path": None,
            "model_short": file.path.stem,
            "gpu": "llama.cpp offload" if runner.engine.offloads else "cpu",
            "eval_path": str(replay),
            "load_time_sec": round(load_seconds, 1),
            "gen_time_sec": round(seconds, 1),
            "avg_sec_per_step": round(seconds / len(rows), 3),
            "sampling": {
                **asdict(sampling),
                "max_tokens": max_tokens,
                "dtype": file.file_type,
                "backend": "edge",
                "max_model_len": context,
                "limit": limit,
                "constrained": constrained,
                "think": think,
                "text_share": text_share if constrained else None,
                "skipped_too_long": skipped,
            },
            "prompt_template": template_summary([r.status for r in rendered], [len(p) for p in prompts]),
            "engine": {
                "prompt_tokens": sum(map(len, prompts)),
                "prompt_tokens_distinct": distinct_tokens(prompts),
                "prompt_tokens_decoded": runner.engine.prompt_tokens_decoded,
                **counters,
                "threads": runner.engine.threads,
            },
        }
    return write_result(out, head, steps)


def distinct_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Nodes of the prefix tree of all prompts: the fewest tokens that any engine must read."""
    ordered = sorted(map(list, prompts))
    count, before = 0, list[int]()
    for prompt in ordered:  # neighbours in order share the most
        count += len(prompt) - common_length(before, prompt)
        before = prompt
    return count


def _chosen(replay: Path | str, limit: int | None, rows_of: Path | str | None) -> list[Row]:
    if rows_of is None:
        return read_rows(replay, limit)
    wanted = set(map(step_key, read_result(rows_of)["per_step"]))
    rows = [row for row in read_rows(replay) if row.key in wanted]
    if len(rows) < len(wanted):
        raise ReplayError(f"{replay}: holds {len(rows)} of the {len(wanted)} steps of {rows_of}")
    return rows[:limit]


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[valid]} valid"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown or not sys.stderr.isatty(),
        transient=True,
    )
