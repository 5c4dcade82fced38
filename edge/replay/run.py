"""Replay recorded steps with a GGUF: one pass over all prompts, scored as the published runs are.

Each finished step goes to a journal beside the output; what is there already is not done again.
"""

import contextlib
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge.answer.sampling import Sampling
from edge.answer.style import StyleName, load_grammar
from edge.errors import ContextError
from edge.formats.gguf import ModelFile, read_model_file, sha256
from edge.llama.devices import devices
from edge.llama.placement import Placement, place
from edge.llama.prefixes import depth_held, distinct_tokens, reading_order
from edge.replay.prepare import chosen_rows, prepare
from edge.replay.provenance import gguf_provenance, llama_cpp_provenance
from edge.replay.recorder import Recorder, carry_out
from edge.runner import DEFAULT_MAX_TOKENS, DEFAULT_TEXT_SHARE, GREEDY, MOST_HELD, Runner
from edge.system.hashes import text_sha256
from edge.system.machine import memory, peak_memory
from edge.system.places import check_place
from edge.version import __version__


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
    rows = chosen_rows(replay, limit, rows_of)
    file = read_model_file(Path(model))
    context = n_ctx or file.context_length
    if context > file.context_length:
        raise ContextError(f"{file.path}: has a context of {file.context_length} tokens, not {context}")
    asked = prepare(
        file.path, replay, rows, context=context, max_tokens=max_tokens, skip_too_long=skip_too_long
    )
    if parallel == 1 and flash_attention is None and kv_type in (None, "f16"):
        flash_attention = False  # exact mode
    placement = place(
        file,
        list(map(len, asked.prompts)),
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
        branches=min(depth_held([asked.prompts[i] for i in reading_order(asked.prompts)]), MOST_HELD),
    )
    if not quiet:
        print(placement, file=sys.stderr)
    how = {
        **asdict(sampling),
        "max_tokens": max_tokens,
        "max_model_len": context,
        "constrained": constrained,
        "think": think,
        "text_share": text_share if constrained else None,
        "style": style if constrained else None,
    }
    grammar = text_sha256(load_grammar()) if constrained else None
    identity = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "model_sha256": sha256(file.path),
        "grammar_sha256": grammar,
        **how,
        "parallel": parallel,
        "gpu_layers": gpu_layers,
        "batch": placement.batch,
        "kv_type": placement.kv_type,
        "flash_attention": flash_attention,  # as asked for: what is chosen may change with the free memory
    }

    def answer(recorder: Recorder) -> dict[str, Any]:
        return _answer(file, recorder, placement, how, sampling, quiet)

    def head(work: dict[str, Any]) -> dict[str, Any]:
        none = dict.fromkeys(_COUNTERS, 0)
        return {
            "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "model_path": str(model),
            "model_sha256": identity["model_sha256"],
            "lora_path": None,
            "model_short": file.path.stem,
            "gpu": placement.device if placement.gpu_layers else "cpu",
            "sampling": {**how, "dtype": file.file_type, "backend": "edge", "limit": limit},
            "engine": {
                **none,
                **work,
                **_placement_fields(placement),
                "peak_memory_bytes": peak_memory(),
            },
            "provenance": {
                "backend": "edge",
                "backend_version": __version__,
                **llama_cpp_provenance(),
                **gguf_provenance(file.path),
                "grammar_sha256": grammar,
                "threads": placement.threads,
            },
        }

    return carry_out(out, asked, identity, answer, head)


# Of one run's work. The prompts' tokens: of the rows answered, the nodes of their prefix tree, those really read.
_COUNTERS = (
    *("prompt_tokens", "prompt_tokens_distinct", "prompt_tokens_decoded"),
    *("completion_tokens", "forced_tokens", "thought_tokens"),
)


def _answer(
    file: ModelFile,
    recorder: Recorder,
    placement: Placement,
    how: dict[str, Any],
    sampling: Sampling,
    quiet: bool,
) -> dict[str, Any]:
    """Answer the rows that the journal lacks; the counters of this run's work."""
    prompts, wanted = recorder.asked.prompts, recorder.wanted
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
        with contextlib.closing(answers), recorder.watched(counters, quiet=quiet):
            for i, answer in answers:
                recorder.finished(
                    i,
                    answer.text,
                    thought=answer.thought,
                    finish_reason=answer.finish_reason,
                    prompt_tokens=answer.prompt_tokens,
                    completion_tokens=answer.completion_tokens,
                    forced_tokens=answer.forced_tokens,
                    closed_at_budget=answer.closed_at_budget,
                    thought_tokens=answer.thought_tokens,
                )
        return {
            **{name: recorder.totals[name] for name in _COUNTERS},
            "prompt_tokens_distinct": distinct_tokens([prompts[i] for i in wanted]),
            "prompt_tokens_decoded": engine.prompt_tokens_decoded,
        }


def _placement_fields(placement: Placement) -> dict[str, Any]:
    names = ("gpu_layers", "threads", "cells", "parallel", "batch", "kv_type", "flash_attention")
    return {name: getattr(placement, name) for name in names}
