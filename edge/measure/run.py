"""`edge measure`: how far the distributions of a model are from those of its base, on reference answers or a text.

Two passes, with one model in memory at a time: the distributions of the base go to a file, then the model reads the
same tokens and is compared position by position. docs/measure.md explains the figures.
"""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from edge.errors import EdgeError, ResultError
from edge.formats.gguf import ModelFile, read_model_file, sha256
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.measure.base_file import BaseFile, is_base_file
from edge.measure.divergence import CLASS_WIDTH, LUMPED, TOP
from edge.measure.figures import figures
from edge.measure.identity import check_identity, identity, is_of, other_vocabulary, vocabulary_sha256
from edge.measure.passes import Settings, base_pass, model_pass
from edge.measure.positions import Plan, rows_plan, text_plan
from edge.measure.schema import FORMAT, Measurement, MeasurementHead, Method
from edge.replay.provenance import (
    adapter_identity,
    adapter_provenance,
    gguf_provenance,
    llama_cpp_provenance,
    provenance,
)
from edge.system.files import temporary_file
from edge.system.hashes import file_sha256
from edge.system.outputs import check_output, check_replaced, named_run
from edge.system.places import place_of, write_json
from edge.version import __version__


def measure(
    model: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    replay: Path | str | None = None,
    text: Path | str | None = None,
    chunk: int = 512,
    limit: int | None = None,
    skip_too_long: bool = False,
    loading: Loading = DEFAULT_LOADING,
    keep_base: bool = False,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure a GGUF on the reference answers of `replay` or on a plain `text`; write and return the measurement JSON.

    `base`: the GGUF to compare it with, or the file that `base_scores` made of one with the same rows or text and the
    same arguments; without it there are only likelihoods. `limit`: the maximum number of rows or chunks.
    `loading.context`: the maximum number of tokens of a row with its answer, by default the model's context length; a
    longer row raises ContextError unless `skip_too_long`. By default all layers are offloaded if there is a GPU.
    kv_type, flash_attention and parallel must be the defaults. The adapters of `loading` change the model, not the
    base.

    The distributions of the base are in a temporary file beside `out`. With `keep_base` they stay as OUT.base-scores,
    and such a file of the same base and data is used again. A measurement of another run at `out` is replaced only with
    `force`. Raises ModelFileError, ReplayError, PromptError,
    ContextError, ResultError, and Interrupted with the number of finished positions.
    """
    inputs = (model, base, replay, text, *(adapter.path for adapter in loading.adapters))
    check_output(out, inputs)
    settings = Settings.checked(loading)
    file = read_model_file(model)
    given = None if base is None else Path(base)
    base_model = read_model_file(given) if given is not None and not is_base_file(given) else None
    vocabulary = vocabulary_sha256(file)
    if base_model is not None and vocabulary_sha256(base_model) != vocabulary:
        raise other_vocabulary(file.path, base_model.path)
    plan = _plan(file, replay, text, chunk, limit, skip_too_long, loading.context, settings.batch)
    place, through = place_of(out)
    if through:  # no file can be beside it
        place = Path(tempfile.gettempdir()) / "edge-measure"
    kept = place.with_name(f"{place.name}.base-scores")
    if keep_base and not through:
        check_output(kept, inputs)
    read = BaseFile.read(given) if given is not None and base_model is None else None
    of_base = None
    if base_model is not None:
        of_base = sha256(base_model.path)
    elif read is not None:
        of_base = read.head["base"]["sha256"]
    run = {
        **identity(plan, vocabulary),
        "model_sha256": sha256(file.path),
        "adapters": adapter_identity(loading.adapters),
        "base_sha256": of_base,
        "gpu_layers": loading.gpu_layers,
    }
    check_replaced(out, run, lambda path: named_run(path, "measurement"), kind="a measurement", force=force)
    # Opened even if it stays empty: this removes what a killed run left under such a name.
    with temporary_file(kept) as (temporary, descriptor):
        scores = None
        if base_model is not None and keep_base and not through:
            if not is_of(kept, base_model, plan, vocabulary):
                base_pass(base_model, kept, None, plan, vocabulary, settings, say)
            scores = BaseFile.read(kept)
        elif base_model is not None:
            base_pass(base_model, temporary, descriptor, plan, vocabulary, settings, say)
            scores = BaseFile.read(temporary)
        elif read is not None:
            scores = read
            check_identity(scores, file.path, identity(plan, vocabulary))
        after = ""
        if scores is not None and scores.path != temporary:
            after = f"the distributions of the base stay in {scores.path}; run the same command again"
        predictions, decoded, load_time, read_time = model_pass(file, plan, scores, settings, say, after)
        method = _method(plan, settings, loading, limit, decoded)
        result: Measurement = {
            **_head(str(model), file, plan, scores, settings),
            "run": run,
            "method": method,
            "load_time_sec": round(load_time, 3),
            "measure_time_sec": round(read_time, 3),
            **figures(plan, predictions),
        }
        write_json(out, result)
    return result


def _head(
    model: str, file: ModelFile, plan: Plan, scores: BaseFile | None, settings: Settings
) -> MeasurementHead:
    """Which model was measured on which data."""
    data = plan.corpus.path
    head: MeasurementHead = {
        "measurement": FORMAT,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
        "model_path": model,
        "model_sha256": sha256(file.path),
        "eval_path": str(data),
        "provenance": provenance(
            {
                "backend": "edge",
                "backend_version": __version__,
                **llama_cpp_provenance(),
                **gguf_provenance(file.path),
                "adapters": adapter_provenance(settings.adapters),
                "rows_sha256": plan.corpus.sha256,
                "rows_file_sha256": file_sha256(data),
                "threads": settings.threads,
            }
        ),
        "kind": plan.corpus.kind,
    }
    if scores is not None:
        base = scores.head["base"]
        head["base"], head["base_path"], head["base_sha256"] = base["name"], base["path"], base["sha256"]
    return head


def _method(plan: Plan, settings: Settings, loading: Loading, limit: int | None, decoded: int) -> Method:
    """How it was measured."""
    return {
        "top": TOP,
        "lumped_below": LUMPED,
        "class_width": CLASS_WIDTH,
        "chunk": plan.chunk,
        "context": loading.context,
        "limit": limit,
        "batch": settings.batch,
        "gpu_layers": settings.gpu_layers,
        "flash_attention": "auto" if settings.offloads else False,
        "kv_type": "f16",
        "skipped_too_long": plan.corpus.skipped,
        "tokens_decoded": decoded,
        "first_command": "mean over rows of the probability of the first command's tokens",
        "intervals": "95 %, bootstrap over tasks" if plan.chunk is None else "95 %, bootstrap over chunks",
        "notes": list(plan.corpus.notes),
    }


def base_scores(
    model: Path | str,
    out: Path | str,
    *,
    replay: Path | str | None = None,
    text: Path | str | None = None,
    chunk: int = 512,
    limit: int | None = None,
    skip_too_long: bool = False,
    loading: Loading = DEFAULT_LOADING,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Read a base once for many measurements: write the file that `measure` takes as its `base`, and return its path.

    The arguments are those of `measure`. The file holds the SHA-256 of the base, of its vocabulary and of the data;
    `measure` refuses it with another vocabulary, other rows, texts or settings. Raises what `measure` raises.
    """
    check_output(out, [model, replay, text])
    place, through = place_of(out)
    if through:
        raise ResultError(f"{out}: is not a regular file; choose another name")
    settings = Settings.checked(loading)
    file = read_model_file(model)
    plan = _plan(file, replay, text, chunk, limit, skip_too_long, loading.context, settings.batch)
    base_pass(file, place, None, plan, vocabulary_sha256(file), settings, say)
    return Path(out)


def _plan(
    file: ModelFile,
    replay: Path | str | None,
    text: Path | str | None,
    chunk: int,
    limit: int | None,
    skip_too_long: bool,
    context: int | None,
    batch: int,
) -> Plan:
    if (replay is None) == (text is None):
        raise EdgeError("give either replay rows or a text to measure a model on")
    if text is not None:
        return text_plan(file, Path(text), chunk, limit=limit, batch=batch)
    return rows_plan(
        file, Path(replay or ""), context=context, limit=limit, skip_too_long=skip_too_long, batch=batch
    )
