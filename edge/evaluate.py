"""Replay recorded steps with a model: one pass over all prompts, scored as the published runs are.

Each finished step goes to a journal beside the output; what is there already is not done again.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge import __version__
from edge.errors import ContextError, ReplayError
from edge.journal import Journal, journal_path, rows_sha256
from edge.machine import devices, memory, peak_memory
from edge.modelfile import ModelFile, read_model_file, sha256
from edge.placement import Placement, place
from edge.progress import Watch
from edge.prompt import Rendered, prompt_source, render_prompt, template_summary
from edge.provenance import (
    file_sha256,
    gguf_provenance,
    llama_cpp_provenance,
    provenance,
    text_sha256,
)
from edge.replay import Row, describe, read_rows
from edge.result import check_place, read_result, step_key, step_result, write_result
from edge.runner import DEFAULT_MAX_TOKENS, DEFAULT_TEXT_SHARE, GREEDY, MOST_HELD, Runner
from edge.sampling import Sampling
from edge.style import StyleName, load_grammar
from edge.tokens import file_vocabulary
from edge.tree import depth_held, distinct_tokens, reading_order


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
    sampling: Sampling = GREEDY,
    think: int | None = None,
    text_share: float = DEFAULT_TEXT_SHARE,
    style: StyleName = "auto",
    n_ctx: int | None = None,
    parallel: int | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    kv_type: str | None = None,
    flash_attention: bool | None = None,
    mmap: bool = True,
    quiet: bool = True,
) -> dict[str, Any]:
    """Answer every row of `replay` and write the result JSON to `out`; returns what was written.

    `rows_of` keeps the steps that another result holds; `limit` the first N after that. A row whose prompt and
    `max_tokens` do not fit into `n_ctx` tokens (default: the model's context) raises ContextError, before
    anything is answered, unless `skip_too_long`. Constrained answers are scored by the action alone,
    unconstrained ones by the raw text, as vLLM's are. From `n_ctx` on, the options say where the model goes and
    what it may use; what is None is chosen (`edge.placement`). With `parallel` 1, unless flash attention or a
    quantized cache was asked for, each answer is that of its prompt alone in an empty cache, byte for byte.

    Started again with the same arguments after an interruption, it goes on from the journal beside `out`.
    Raises ModelFileError, ReplayError, ResultError, PromptError. A KeyboardInterrupt is raised again with a line
    that tells how far it came.
    """
    check_place(out)
    rows = _chosen(replay, limit, rows_of)
    file = read_model_file(Path(model))
    rows, rendered, prompts, skipped = _fitting(file, replay, rows, n_ctx, max_tokens, skip_too_long)
    if parallel == 1 and flash_attention is None and kv_type in (None, "f16"):
        flash_attention = False  # exact mode
    placement = place(
        file,
        list(map(len, prompts)),
        max_tokens,
        memory=memory(),
        devices=devices(),
        context=n_ctx,
        parallel=parallel,
        gpu_layers=gpu_layers,
        threads=threads,
        batch=batch,
        kv_type=kv_type,
        flash_attention=flash_attention,
        mmap=mmap,
        branches=min(depth_held([prompts[i] for i in reading_order(prompts)]), MOST_HELD),
    )
    if not quiet:
        print(placement, file=sys.stderr)
    how = {
        **asdict(sampling),
        "max_tokens": max_tokens,
        "max_model_len": n_ctx or file.context_length,
        "constrained": constrained,
        "think": think,
        "text_share": text_share if constrained else None,
        "style": style if constrained else None,
    }
    hashes = [str(text_sha256(prompt.text)) for prompt in rendered]
    identity = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "model_sha256": sha256(file.path),
        "rows_sha256": rows_sha256(rows),
        "prompts_sha256": text_sha256("\n".join(hashes)),
        "grammar_sha256": text_sha256(load_grammar()) if constrained else None,
        **how,
        "parallel": parallel,
        "gpu_layers": gpu_layers,
        "batch": placement.batch,
        "kv_type": placement.kv_type,
        "flash_attention": flash_attention,  # as asked for: what is chosen may change with the free memory
    }
    with Journal.open(journal_path(out), identity) as journal:
        before = len(journal.done)
        try:
            seconds, work = _replay(file, rows, prompts, hashes, placement, journal, how, sampling, quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_far(len(journal.done), len(rows), journal.path)) from None
        head = {
            "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "model_path": str(model),
            "model_sha256": identity["model_sha256"],
            "lora_path": None,
            "model_short": file.path.stem,
            "gpu": placement.device if placement.gpu_layers else "cpu",
            "eval_path": str(replay),
            **seconds,
            "avg_sec_per_step": round(seconds["gen_time_sec"] / max(1, len(rows) - before), 3),
            "sampling": {
                **how,
                "dtype": file.file_type,
                "backend": "edge",
                "limit": limit,
                "skipped_too_long": skipped,
            },
            "prompt_template": template_summary([r.status for r in rendered], [len(p) for p in prompts]),
            "engine": {**work, **_placement_fields(placement), "peak_memory_bytes": peak_memory()},
            "provenance": provenance(
                backend="edge",
                backend_version=__version__,
                **llama_cpp_provenance(),
                **gguf_provenance(file.path),
                grammar_sha256=identity["grammar_sha256"],
                rows_sha256=identity["rows_sha256"],
                rows_file_sha256=file_sha256(replay),
                threads=placement.threads,
            ),
        }
        result = write_result(out, head, [journal.done[row.key] for row in rows])
        journal.remove()
    return result


def _replay(
    file: ModelFile,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    hashes: Sequence[str],
    placement: Placement,
    journal: Journal,
    how: dict[str, Any],
    sampling: Sampling,
    quiet: bool,
) -> tuple[dict[str, float], dict[str, int]]:
    """Answer the rows that the journal lacks; the seconds it took, and the counters of this run's work."""
    wanted = [i for i, row in enumerate(rows) if row.key not in journal.done]
    work = {
        "steps_done_before": len(rows) - len(wanted),
        "prompt_tokens": sum(len(prompts[i]) for i in wanted),
        "prompt_tokens_distinct": distinct_tokens([prompts[i] for i in wanted]),
        "prompt_tokens_decoded": 0,
        **dict.fromkeys(("completion_tokens", "forced_tokens", "thought_tokens"), 0),
    }
    if not wanted:
        return {"load_time_sec": 0.0, "gen_time_sec": 0.0}, work
    began = time.perf_counter()
    with Runner.load(
        file.path,
        gpu_layers=placement.gpu_layers,
        threads=placement.threads,
        kv_type=placement.kv_type,
        flash_attention=placement.flash_attention,
        batch=placement.batch,
        mmap=placement.mmap,
    ) as runner:
        engine = runner.engine
        engine.reserve(placement.cells, placement.sequences)
        if how["constrained"]:
            runner.vocabulary.prepare()
        loaded = time.perf_counter()

        def counters() -> tuple[int, int]:
            return engine.prompt_tokens_decoded, engine.answer_tokens_decoded

        answers = runner.answers(
            prompts,
            how["max_tokens"],
            wanted=set(wanted),
            parallel=placement.parallel,
            cells=placement.cells,
            constrained=how["constrained"],
            sampling=sampling,
            think=how["think"],
            text_share=how["text_share"] or 0.0,
            style=how["style"] or "free",
        )
        finished = len(rows) - len(wanted)
        with contextlib.closing(answers), Watch(len(rows), finished, counters, quiet=quiet) as watch:
            for i, answer in answers:
                step = step_result(
                    rows[i],
                    answer.text,
                    prompt_sha256=hashes[i],
                    thought=answer.thought,
                    finish_reason=answer.finish_reason,
                    prompt_tokens=answer.prompt_tokens,
                    completion_tokens=answer.completion_tokens,
                    forced_tokens=answer.forced_tokens,
                    closed_at_budget=answer.closed_at_budget,
                )
                journal.append(step)
                for name in ("completion_tokens", "forced_tokens", "thought_tokens"):
                    work[name] += getattr(answer, name)
                watch.finished(answer.prompt_tokens, step["valid_json"])
        work["prompt_tokens_decoded"] = engine.prompt_tokens_decoded
    ended = time.perf_counter()
    return {"load_time_sec": round(loaded - began, 3), "gen_time_sec": round(ended - loaded, 3)}, work


def _fitting(
    file: ModelFile,
    replay: Path | str,
    rows: Sequence[Row],
    n_ctx: int | None,
    max_tokens: int,
    skip_too_long: bool,
) -> tuple[list[Row], list[Rendered], list[list[int]], int]:
    """The rows that fit into the context, their prompts as text and as token ids, and how many were left out."""
    source = prompt_source(file.path)
    rendered = [render_prompt(row.messages, source) for row in rows]
    with file_vocabulary(file.path) as vocabulary:
        prompts = [vocabulary.encode(prompt.text) for prompt in rendered]
    context = n_ctx or file.context_length
    if context > file.context_length:
        raise ContextError(f"{file.path}: has a context of {file.context_length} tokens, not {context}")
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
    return (
        [rows[i] for i in fitting],
        [rendered[i] for i in fitting],
        [prompts[i] for i in fitting],
        len(rows) - len(fitting),
    )


def _placement_fields(placement: Placement) -> dict[str, Any]:
    names = ("gpu_layers", "threads", "cells", "parallel", "batch", "kv_type", "flash_attention")
    return {name: getattr(placement, name) for name in names}


def _how_far(done: int, steps: int, journal: Path | None) -> str:
    if journal is None or not done:
        return f"interrupted after {done} of {steps} steps; nothing was written"
    return (
        f"interrupted after {done} of {steps} steps, which are kept in {journal}; "
        "run the same command again to go on"
    )


def _chosen(replay: Path | str, limit: int | None, rows_of: Path | str | None) -> list[Row]:
    if rows_of is None:
        return read_rows(replay, limit)
    wanted = set(map(step_key, read_result(rows_of)["per_step"]))
    rows = [row for row in read_rows(replay) if row.key in wanted]
    if len(rows) < len(wanted):
        raise ReplayError(f"{replay}: holds {len(rows)} of the {len(wanted)} steps of {rows_of}")
    return rows[:limit]
