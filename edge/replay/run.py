"""Replay recorded steps with a GGUF: one pass over all prompts, scored as the published runs are.

Each finished step goes to a journal beside the output; what is there already is not done again.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from edge.answer.answering import DEFAULT_ANSWERING, Answering
from edge.answer.style import load_grammar
from edge.errors import ContextError
from edge.formats.gguf import ModelFile, model_sha256, read_model_file
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.placement import Placement, place
from edge.llama.prefixes import common_length, depth_held, distinct_tokens, reading_order
from edge.llama.remote import devices_for
from edge.llama.restore import LEAST
from edge.replay.asking import DEFAULT_ASKING, Asking
from edge.replay.prepare import Asked, chosen_rows, prepare
from edge.replay.provenance import (
    adapter_identity,
    adapter_provenance,
    gguf_provenance,
    llama_cpp_provenance,
)
from edge.replay.recorder import Recorder, carry_out
from edge.replay.result import sampling_fields
from edge.replay.stored_result import EngineCounters, Head, Result, SamplingFields
from edge.runner import MOST_HELD, Runner
from edge.system.hashes import text_sha256
from edge.system.machine import memory, peak_memory
from edge.system.outputs import Run, check_output
from edge.version import __version__


def evaluate(
    model: Path | str,
    replay: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    rows_of: Path | str | None = None,
    skip_too_long: bool = False,
    answering: Answering = DEFAULT_ANSWERING,
    asking: Asking = DEFAULT_ASKING,
    loading: Loading = DEFAULT_LOADING,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Answer every row of `replay` and write the result JSON to `out`; returns what was written.

    `rows_of` keeps the steps that another result holds; `limit` the first N after that. A row whose prompt and answer
    do not fit into `loading.context` tokens (default: the model's context length) raises ContextError before anything
    is answered, unless `skip_too_long`. Constrained answers are scored by the action alone, unconstrained ones by the
    raw text, as those of vLLM are. With `loading.parallel` 1 (exact mode), unless flash attention or a quantized cache
    is named, each answer is byte for byte that of its prompt alone in an empty cache. `say` receives the lines of
    progress; None is silent. A result of another run at `out` is replaced only with `force`. With `asking.shard`, only
    the rows of that shard are answered; the plan is that of all rows, so the shards of exact mode have the answers of
    the whole run.

    Started again with the same arguments after an interruption, it continues from the journal beside `out`.
    Raises ModelFileError, ReplayError, ResultError, PromptError, and Interrupted with the number of finished steps.
    """
    check_output(out, [model, replay, rows_of, *(adapter.path for adapter in loading.adapters)])
    rows = chosen_rows(replay, limit, rows_of)
    file = read_model_file(Path(model))
    context = loading.context or file.context_length
    if context > file.context_length:
        raise ContextError(
            f"{file.path}: has a context length of {file.context_length} tokens, less than {context}"
        )
    asked = prepare(
        file.path,
        replay,
        rows,
        context=context,
        max_tokens=answering.max_tokens,
        skip_too_long=skip_too_long,
        asking=asking,
    )
    if loading.parallel == 1 and loading.flash_attention is None and loading.kv_type == "f16":
        loading = replace(loading, flash_attention=False)  # exact mode
    placement = place(
        file,
        list(map(len, asked.prompts)),
        answering.max_tokens,
        memory=memory(),
        devices=devices_for(loading),
        loading=loading,
        branches=min(depth_held([asked.prompts[i] for i in reading_order(asked.prompts)]), MOST_HELD),
    )
    if say is not None:
        say(str(placement))
    run = _Run(file, str(model), answering, loading, placement, context, limit, say)
    return carry_out(out, asked, run.identity(), run.answer, run.head, force=force, say=say)


@dataclass(frozen=True)
class _Run:
    """One evaluation: what is answered, by which model, where and how."""

    file: ModelFile
    model: str
    answering: Answering
    loading: Loading
    placement: Placement
    context: int
    limit: int | None
    say: Callable[[str], None] | None

    @property
    def sampling(self) -> SamplingFields:
        answering = self.answering
        return {
            **sampling_fields(answering.sampling),
            "max_tokens": answering.max_tokens,
            "max_model_len": self.context,
            "constrained": answering.constrained,
            "think": answering.think,
            "text_share": answering.text_share if answering.constrained else None,
            "style": answering.style if answering.constrained else None,
        }

    @property
    def grammar_sha256(self) -> str | None:
        return text_sha256(load_grammar()) if self.answering.constrained else None

    def identity(self) -> Run:
        """What two runs must share so that one may continue the other."""
        return {
            "edge": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "model_sha256": model_sha256(self.file.path),
            "adapters": adapter_identity(self.loading.adapters),
            "grammar_sha256": self.grammar_sha256,
            **self.sampling,
            "parallel": self.loading.parallel,
            "gpu_layers": self.loading.gpu_layers,
            "batch": self.placement.batch,
            "kv_type": self.placement.kv_type,
            # As given: what `place` chooses may change with the free memory.
            "flash_attention": self.loading.flash_attention,
            **self.loading.spread.identity(),
        }

    def answer(self, recorder: Recorder) -> EngineCounters:
        """Answer the rows that the journal lacks; the counters of this run's work."""
        loading = replace(self.placement.loading, states=self.loading.states)
        return _answer(self.file, recorder, (self.placement, loading), self.answering, self.say)

    def head(self, work: EngineCounters) -> Head:
        """The fields of the result before its steps."""
        file, placement = self.file, self.placement
        return {
            "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "model_path": self.model,
            "model_sha256": model_sha256(file.path),
            "lora_path": ",".join(map(str, self.loading.adapters)) or None,
            "model_short": file.path.stem,
            "gpu": placement.device if placement.gpu_layers else "cpu",
            "sampling": {**self.sampling, "dtype": file.file_type, "backend": "edge", "limit": self.limit},
            "engine": {
                **_NO_WORK,
                **work,
                "gpu_layers": placement.gpu_layers,
                "threads": placement.threads,
                "cells": placement.cells,
                "parallel": placement.parallel,
                "batch": placement.batch,
                "kv_type": placement.kv_type,
                "flash_attention": placement.flash_attention,
                "peak_memory_bytes": peak_memory(),
            },
            "provenance": {
                "backend": "edge",
                "backend_version": __version__,
                **llama_cpp_provenance(),
                **gguf_provenance(file.path),
                "adapters": adapter_provenance(self.loading.adapters),
                "grammar_sha256": self.grammar_sha256,
                "threads": placement.threads,
            },
        }


# The counters of one run's work. `prompt_tokens_distinct` counts the nodes of the prefix tree of the answered rows'
# prompts, `prompt_tokens_decoded` the tokens that the model really read.
_NO_WORK: EngineCounters = {
    "prompt_tokens": 0,
    "prompt_tokens_distinct": 0,
    "prompt_tokens_decoded": 0,
    "prompt_tokens_restored": 0,
    "completion_tokens": 0,
    "answer_passes": 0,
    "forced_tokens": 0,
    "thought_tokens": 0,
}


def _instructions(asked: Asked) -> int:
    """The tokens with which the prompts of all tasks begin; 0 if there is only one task, or for very few tokens."""
    if len({row.task_id for row in asked.rows}) < 2:
        return 0
    length = min(common_length(asked.prompts[0], prompt) for prompt in asked.prompts)
    return length if length >= LEAST else 0


def _answer(
    file: ModelFile,
    recorder: Recorder,
    placed: tuple[Placement, Loading],
    answering: Answering,
    say: Callable[[str], None] | None,
) -> EngineCounters:
    """Answer the rows that the journal lacks; the counters of this run's work."""
    placement, loading = placed
    prompts, wanted = recorder.asked.prompts, recorder.wanted
    with Runner.open(file.path, loading) as runner:
        engine = runner.engine
        engine.reserve(placement.cells, placement.sequences)
        if answering.constrained:
            runner.vocabulary.prepare()

        def counters() -> tuple[int, int]:
            return engine.prompt_tokens_decoded, engine.answer_tokens_decoded

        answers = runner.answers(
            prompts,
            answering,
            wanted=set(wanted),
            parallel=placement.parallel,
            cells=placement.cells,
            instructions=_instructions(recorder.asked),
        )
        with contextlib.closing(answers), recorder.watched(counters, say=say):
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
            "prompt_tokens": recorder.totals["prompt_tokens"],
            "prompt_tokens_distinct": distinct_tokens([prompts[i] for i in wanted]),
            "prompt_tokens_decoded": engine.prompt_tokens_decoded,
            "prompt_tokens_restored": engine.prompt_tokens_restored,
            "completion_tokens": recorder.totals["completion_tokens"],
            "answer_passes": engine.answer_passes,
            "forced_tokens": recorder.totals["forced_tokens"],
            "thought_tokens": recorder.totals["thought_tokens"],
        }
