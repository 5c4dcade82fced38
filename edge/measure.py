"""`edge measure`: what a model loses on given text, teacher-forced: likelihoods, and divergence from its base.

Both models read the same tokens, one after the other, so that they are never in memory together; of the first, the
base, only what `edge.divergence.keep` keeps is stored (docs/measure.md).
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import __version__
from edge.base_scores import begin_scores, is_base_scores, read_identity, read_records, write_record
from edge.divergence import TOP, divergence, keep, log_normalizer, log_probability
from edge.errors import EdgeError, ModelFileError, ResultError
from edge.footprint import BATCH
from edge.forced import END, Plan, rows_plan, text_plan
from edge.machine import MAX_THREADS, peak_memory, physical_cores
from edge.measurement import Figures, aggregate, bands_by_field, bands_by_position, per_step
from edge.modelfile import ModelFile, read_array, read_model_file, sha256
from edge.output import temporary_file, whole_file
from edge.progress import bar
from edge.provenance import file_sha256, gguf_provenance, llama_cpp_provenance, provenance, text_sha256
from edge.reader import Reader, Walk, places
from edge.result import check_place, place_of, write_json

Look = Callable[[int, NDArray[np.float32]], None]
"""Called with a node's number and the logits after it, float32 of shape (n_vocab,), valid during the call."""


def measure(
    model: Path | str,
    out: Path | str,
    *,
    replay: Path | str | None = None,
    text: Path | str | None = None,
    base: Path | str | None = None,
    keep_base: Path | str | None = None,
    limit: int | None = None,
    chunk: int = 512,
    context: int | None = None,
    skip_too_long: bool = False,
    top: int = TOP,
    threads: int | None = None,
    gpu_layers: int = 0,
    batch: int = BATCH,
    quiet: bool = True,
) -> dict[str, Any]:
    """Measure a GGUF on the reference answers of `replay` rows or on a `text`, and write a measurement JSON.

    `base`: a GGUF to compare with, or the scores that `base_scores` has made of one; without it there is no divergence.
    `keep_base`: where to keep the scores of a base GGUF, for further models. `limit`: the first rows only. `chunk`:
    tokens of a chunk of text. `context`: the most tokens of a row with its answer, by default the model's context; a
    longer row is refused, or left out with `skip_too_long`. `top`: log-probabilities kept of each distribution of the
    base. `gpu_layers` of -1 is all.

    Raises ModelFileError, ReplayError, PromptError, ContextError, ResultError: scores of another base, other rows or
    another vocabulary; KeyboardInterrupt with a line that says what is kept.
    """
    check_place(out)
    file = read_model_file(model)
    plan = _plan(file, replay, text, limit, chunk, context, skip_too_long, batch)
    how = _How(threads, gpu_layers, batch, quiet)
    _check_outputs([path for path in (model, replay, text, base) if path is not None], [out, keep_base])
    try:
        with contextlib.ExitStack() as stack:
            scores = None
            if base is not None:
                scores = Path(base)
                if not is_base_scores(scores):
                    base_file = read_model_file(base)
                    _check_vocabularies(file, base_file)
                    if keep_base is not None:
                        scores = Path(keep_base)
                        _write_scores(base_file, plan, scores, top, how)
                    else:
                        place, through = place_of(out)
                        beside = Path.cwd() / "measure" if through else place
                        hidden = beside.with_name(f"{beside.name}.base")
                        scores = stack.enter_context(temporary_file(hidden))[0]
                        with scores.open("wb") as stream:
                            _read_base(base_file, plan, stream, top, how)
                identity = read_identity(scores)
                _check_identity(scores, identity, file, plan)
            else:
                identity = {}
            figures, load, seconds, decoded = _compare(file, plan, scores, how)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "interrupted; nothing was written") from None
    result = {
        "measurement": 1,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": f"{file.name or file.path.stem} ({file.file_type})",
        "model_path": str(model),
        "model_sha256": sha256(file.path),
        **({"base": identity["base"], "base_path": identity["base_path"]} if identity else {}),
        **({"base_sha256": identity["base_sha256"]} if identity else {}),
        "eval_path": str(replay or text),
        "kind": plan.corpus.kind,
        "method": {
            "top": identity.get("top"),
            "chunk": plan.chunk,
            "context": context,
            "limit": limit,
            "skipped_too_long": plan.corpus.skipped,
            "batch": batch,
            "notes": list(plan.corpus.notes),
            "first_command_prob": "mean over rows of the product of its tokens' probabilities",
        },
        "load_time_sec": round(load, 3),
        "measure_time_sec": round(seconds, 3),
        "engine": {
            "tokens_given": sum(map(len, plan.corpus.sequences)),
            "tokens_distinct": plan.corpus.tokens,
            "tokens_decoded": decoded,
            "base_tokens_decoded": identity.get("tokens_decoded"),
            "threads": how.threads or physical_cores(),
            "gpu_layers": gpu_layers,
            "peak_memory_bytes": peak_memory(),
        },
        "provenance": provenance(
            backend="edge",
            backend_version=__version__,
            **llama_cpp_provenance(),
            **gguf_provenance(file.path),
            rows_sha256=plan.corpus.sha256,
            rows_file_sha256=file_sha256(Path(replay or text or "")),
            threads=how.threads or physical_cores(),
        ),
        "aggregate": aggregate(plan, figures),
        "by_position": bands_by_position(plan, figures),
        "by_field": bands_by_field(plan, figures),
        "per_step": per_step(plan, figures),
    }
    write_json(out, result)
    return result


def base_scores(
    base: Path | str,
    out: Path | str,
    *,
    replay: Path | str | None = None,
    text: Path | str | None = None,
    limit: int | None = None,
    chunk: int = 512,
    context: int | None = None,
    skip_too_long: bool = False,
    top: int = TOP,
    threads: int | None = None,
    gpu_layers: int = 0,
    batch: int = BATCH,
    quiet: bool = True,
) -> Path:
    """Read a base once and keep what measuring others against it needs, in a file for `measure(base=…)`.

    The arguments are those of `measure`, and must be the same there. Raises as `measure` does.
    """
    check_place(out)
    file = read_model_file(base)
    plan = _plan(file, replay, text, limit, chunk, context, skip_too_long, batch)
    _check_outputs([path for path in (base, replay, text) if path is not None], [out])
    try:
        _write_scores(file, plan, Path(out), top, _How(threads, gpu_layers, batch, quiet))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "interrupted; nothing was written") from None
    return Path(out)


@dataclass(frozen=True)
class _How:
    """Where and how a model reads."""

    threads: int | None
    gpu_layers: int
    batch: int
    quiet: bool


def _plan(
    file: ModelFile,
    replay: Path | str | None,
    text: Path | str | None,
    limit: int | None,
    chunk: int,
    context: int | None,
    skip_too_long: bool,
    batch: int,
) -> Plan:
    if (replay is None) == (text is None):
        raise EdgeError("a model is measured on replay rows or on a text: give one of them")
    if not 1 <= batch <= 1 << 20:
        raise EdgeError(f"batch is {batch}; it must be from 1 to {1 << 20:,}")
    if text is not None:
        return text_plan(file, Path(text), chunk, batch=batch)
    return rows_plan(
        file, Path(replay or ""), context=context, limit=limit, skip_too_long=skip_too_long, batch=batch
    )


def _check_outputs(inputs: Sequence[Path | str], outputs: Sequence[Path | str | None]) -> None:
    """Raises ResultError where an output is an input, or both are one."""
    taken = [os.path.realpath(path) for path in inputs]
    for path in outputs:
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise ResultError(f"{path}: is already used for something else here: give another name")
        taken.append(os.path.realpath(path))


def _vocabulary_sha256(file: ModelFile) -> str:
    tokens = read_array(file.path, "tokenizer.ggml.tokens")
    return text_sha256(repr([tokens, sorted(file.end_ids)])) or ""


def _check_vocabularies(file: ModelFile, base: ModelFile) -> None:
    if _vocabulary_sha256(file) != _vocabulary_sha256(base):
        raise ModelFileError(
            f"{file.path}: has another vocabulary than {base.path}: only models with the same tokens can be compared"
        )


def _check_identity(scores: Path, identity: dict[str, Any], file: ModelFile, plan: Plan) -> None:
    """Raises ResultError for scores that are not of these tokens."""
    if identity.get("vocabulary_sha256") != _vocabulary_sha256(file):
        raise ResultError(f"{scores}: is of a base with another vocabulary than {file.path}")
    if identity.get("plan_sha256") != plan.sha256:
        raise ResultError(
            f"{scores}: is of other rows, prompts or settings than {file.path} would be measured with now: make the "
            "base scores with the same arguments"
        )


def _write_scores(base: ModelFile, plan: Plan, out: Path, top: int, how: _How) -> None:
    place, _ = place_of(out)
    try:
        with whole_file(place) as (temporary, _), temporary.open("wb") as stream:
            _read_base(base, plan, stream, top, how)
    except OSError as error:
        raise ResultError(f"{out}: cannot be written: {error.strerror or error}") from None


def _read_base(base: ModelFile, plan: Plan, stream: Any, top: int, how: _How) -> None:
    """The first pass: a record for each node."""
    if not 1 <= top <= 1 << 20:
        raise EdgeError(f"top is {top}; it must be from 1 to {1 << 20:,}")
    begin_scores(
        stream,
        {
            "base": f"{base.name or base.path.stem} ({base.file_type})",
            "base_path": str(base.path),
            "base_sha256": sha256(base.path),
            "vocabulary_sha256": _vocabulary_sha256(base),
            "plan_sha256": plan.sha256,
            "top": top,
            "tokens_decoded": plan.corpus.tokens,
        },
    )

    def look(node: int, logits: NDArray[np.float32]) -> None:
        _check_numbers(base, logits)
        kept = keep(logits, top)
        tokens = (_tokens(target, base) for target in plan.targets[node])
        write_record(stream, kept, [log_probability(logits, kept.log_norm, some) for some in tokens])

    _pass(base, plan, how, "reading the base", look)


def _compare(
    file: ModelFile, plan: Plan, scores: Path | None, how: _How
) -> tuple[Figures, float, float, int]:
    """The second pass: what the model says at each node, held against the base; seconds to load and to read; tokens."""
    nodes, slots = len(plan.targets), sum(map(len, plan.targets))
    figures = Figures.empty(nodes, slots, with_base=scores is not None)
    records = None if scores is None else read_records(scores)
    slot = 0

    def look(node: int, logits: NDArray[np.float32]) -> None:
        nonlocal slot
        _check_numbers(file, logits)
        log_norm = log_normalizer(logits)
        end = slot + len(plan.targets[node])
        for i, target in enumerate(plan.targets[node], slot):
            figures.log_probs[i] = log_probability(logits, log_norm, _tokens(target, file))
        if records is not None and figures.base is not None:
            found = next(records, None)
            if found is None or len(found[1]) != end - slot:
                raise ResultError(f"{scores}: is cut or damaged: make the base scores anew")
            kept, base_log_probs = found
            figures.base.log_probs[slot:end] = base_log_probs
            figures.base.kl[node], figures.base.error[node] = divergence(kept, logits, log_norm)
            figures.base.same[node] = kept.best == int(logits.argmax())
        slot = end

    load, seconds, decoded = _pass(file, plan, how, "measuring", look)
    return figures, load, seconds, decoded


def _tokens(target: int, file: ModelFile) -> tuple[int, ...]:
    return file.end_ids if target == END else (target,)


def _check_numbers(file: ModelFile, logits: NDArray[np.float32]) -> None:
    if not np.isfinite(logits).all():
        raise ModelFileError(f"{file.path}: computes logits that are no numbers: its weights are damaged")


def _pass(file: ModelFile, plan: Plan, how: _How, what: str, look: Look) -> tuple[float, float, int]:
    """Read the plan's tree once and look at its nodes, in their order."""
    work, threads = plan.corpus, how.threads or physical_cores()
    if not 1 <= threads <= MAX_THREADS:
        raise EdgeError(f"{threads} threads: llama.cpp takes 1 to {MAX_THREADS}")
    began = time.perf_counter()
    with (
        Reader(
            file.path,
            cells=max(map(len, work.sequences)),
            sequences=1 + places(work),
            batch=how.batch,
            threads=threads,
            gpu_layers=how.gpu_layers,
        ) as reader,
        bar(what, show=not how.quiet, unit="tokens") as watch,
    ):
        loaded = time.perf_counter()
        walked = _Looking(reader, look)
        walk = Walk(walked, work)
        done = 0
        try:
            for index, wanted in enumerate(plan.wanted):
                walked.wanted = set(wanted)
                for begin, end in walk.read(index):
                    done += end - begin
                    watch(done, work.tokens)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {done:,} of {work.tokens:,} tokens ({what}); run the same command again"
            ) from None
        if not how.quiet and not sys.stderr.isatty():
            print(f"{what}: {work.tokens:,} tokens of {file.path}", file=sys.stderr)
        return loaded - began, time.perf_counter() - loaded, reader.tokens_decoded


class _Looking:
    """Between `Walk` and a `Reader`: asks for logits where they are wanted, and shows them."""

    def __init__(self, reader: Reader, look: Look) -> None:
        self.wanted: set[int] = set()
        self._reader, self._look = reader, look
        self._node = 0

    def read(self, tokens: Sequence[int], position: int, sequence: int, *, counts: bool = True) -> None:
        wanted = [counts and place in self.wanted for place in range(position, position + len(tokens))]
        self._reader.decode(tokens, position, sequence, wanted)
        for i in self._places(wanted):
            self._look(self._node, self._reader.logits(i))
            self._node += 1

    @staticmethod
    def _places(wanted: Sequence[bool]) -> Iterator[int]:
        return (i for i, one in enumerate(wanted) if one)

    def copy(self, source: int, target: int) -> None:
        self._reader.copy(source, target)

    def drop(self, sequence: int) -> None:
        self._reader.drop(sequence)
