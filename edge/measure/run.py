"""`edge measure`: how far the distributions of a model are from those of its base, on reference answers or a text.

Two passes, with one model in memory at a time: the distributions of the base go to a file, then the model reads the
same tokens and is compared position by position. docs/measure.md explains the figures.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from edge.errors import EdgeError, ResultError
from edge.formats.gguf import ModelFile, model_sha256, read_model_file
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.measure.base_file import BaseFile, is_base_file
from edge.measure.divergence import CLASS_WIDTH, LUMPED, TOP
from edge.measure.figures import figures, position_values
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
from edge.replay.shards import Shard, ShardFields
from edge.system.files import temporary_file
from edge.system.hashes import file_sha256
from edge.system.outputs import check_output, check_replaced, named_run
from edge.system.places import place_of, write_json
from edge.version import __version__

_STAY = "the distributions of the base stay in {}; run the same command again"


@dataclass(frozen=True)
class Chosen:
    """Which of the rows or chunks are read."""

    skip_too_long: bool = False
    """Leave out rows that do not fit into the context."""
    shard: Shard | None = None
    """Only this shard of them."""


ALL = Chosen()


def measure(
    model: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    replay: Path | str | None = None,
    text: Path | str | None = None,
    chunk: int = 512,
    limit: int | None = None,
    chosen: Chosen = ALL,
    loading: Loading = DEFAULT_LOADING,
    keep_base: bool = False,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure a GGUF on the reference answers of `replay` or on a plain `text`; write and return the measurement JSON.

    `base`: the GGUF to compare it with, or the file that `base_scores` made of one with the same rows or text and the
    same arguments; without it there are only likelihoods. `limit`: the maximum number of rows or chunks.
    `loading.context`: the maximum number of tokens of a row with its answer, by default the model's context length; a
    longer row raises ContextError unless `chosen.skip_too_long`. By default all layers are offloaded if there is a GPU.
    kv_type, flash_attention and parallel must be the defaults. The adapters of `loading` change the model, not the
    base.

    With `chosen.shard`, only the rows or chunks of that shard are measured, in the batches of all of them. `edge join`
    puts the measurements of all shards together.

    The distributions of the base are in a temporary file beside `out`. With `keep_base` they stay as OUT.base-scores,
    and such a file of the same base and data is used again. A measurement of another run at `out` is replaced only with
    `force`. Raises ModelFileError, ReplayError, PromptError, ContextError, ResultError, and Interrupted with the number
    of finished positions.
    """
    inputs = (model, base, replay, text, *(adapter.path for adapter in loading.adapters))
    check_output(out, inputs)
    settings = Settings.checked(loading)
    file = read_model_file(model)
    vocabulary = vocabulary_sha256(file)
    base_model, read = (None, None) if base is None else _base(Path(base), file, vocabulary)
    shard = chosen.shard
    whole = _plan(file, replay, text, chunk, limit, chosen.skip_too_long, loading.context, settings.batch)
    plan, of_shard = _part(whole, shard)
    kept, keep_base = _place_of_scores(out, keep_base, inputs)
    of_models = {"model_sha256": model_sha256(file.path), "base_sha256": _base_sha256(base_model, read)}
    run = {
        **identity(whole, vocabulary),
        **({} if shard is None else {"shard": str(shard)}),
        **of_models,
        "adapters": adapter_identity(loading.adapters),
        "gpu_layers": loading.gpu_layers,
        **loading.spread.identity(),
    }
    check_replaced(out, run, lambda path: named_run(path, "measurement"), kind="a measurement", force=force)
    # Opened even if it stays empty: this removes what a killed run left under such a name.
    with temporary_file(kept) as (temporary, descriptor):
        scores = read
        if base_model is not None:
            target = (kept, None) if keep_base else (temporary, descriptor)
            scores = _scores(base_model, target, plan, vocabulary, settings, say, force=force)
        elif read is not None:
            full = read.head["nodes"] == len(whole.targets)
            check_identity(read, file.path, identity(whole if full else plan, vocabulary))
        stay = "" if scores is None or scores.path == temporary else _STAY.format(scores.path)
        predictions, decoded, *times = model_pass(file, plan, scores, settings, say, stay)
        result: Measurement = {
            **_head(str(model), file, plan, scores, settings),
            **of_shard,
            "run": run,
            "method": _method(plan, settings, loading, limit, decoded),
            "load_time_sec": round(times[0], 3),
            "measure_time_sec": round(times[1], 3),
            **figures(plan, predictions),
        }
        if shard is not None:
            for row, step in zip(plan.rows, result["per_step"], strict=True):
                step["positions"] = position_values(row, predictions)
        write_json(out, result)
    return result


class _OfShard(TypedDict, total=False):
    shard: ShardFields


def _part(whole: Plan, shard: Shard | None) -> tuple[Plan, _OfShard]:
    """The plan of a shard, and the field that names it. Raises EdgeError for too few tasks."""
    if shard is None:
        return whole, {}
    places = shard.places([row.key[0] for row in whole.rows], str(whole.corpus.path))
    return whole.part(places), {"shard": shard.fields(places, len(whole.rows))}


def _scores(
    model: ModelFile,
    target: tuple[Path, int | None],
    plan: Plan,
    vocabulary: str,
    settings: Settings,
    say: Callable[[str], None] | None,
    *,
    force: bool,
) -> BaseFile:
    """The distributions of a base, in a file that has a descriptor if it is a temporary one.

    A file that stays is used again if it is of the same base and data.
    """
    path, descriptor = target
    if descriptor is not None or not is_of(path, model, plan, vocabulary, force=force):
        base_pass(model, path, descriptor, plan, vocabulary, settings, say)
    return BaseFile.read(path)


def _place_of_scores(out: Path | str, keep: bool, inputs: Sequence[Path | str | None]) -> tuple[Path, bool]:
    """Where the distributions of the base are, and whether they stay: not beside a device or a FIFO."""
    place, through = place_of(out)
    if through:
        place = Path(tempfile.gettempdir()) / "edge-measure"
    kept, keep = place.with_name(f"{place.name}.base-scores"), keep and not through
    if keep:
        check_output(kept, inputs)
    return kept, keep


def _base(path: Path, file: ModelFile, vocabulary: str) -> tuple[ModelFile, None] | tuple[None, BaseFile]:
    """The base: a model, or the distributions of one in a file. Raises ResultError for another vocabulary."""
    if is_base_file(path):
        return None, BaseFile.read(path)
    model = read_model_file(path)
    if vocabulary_sha256(model) != vocabulary:
        raise other_vocabulary(file.path, model.path)
    return model, None


def _base_sha256(model: ModelFile | None, scores: BaseFile | None) -> str | None:
    """The SHA-256 of the base: a model, or one whose distributions are in a file."""
    if model is not None:
        return model_sha256(model.path)
    return None if scores is None else scores.head["base"]["sha256"]


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
        "model_sha256": model_sha256(file.path),
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
    chosen: Chosen = ALL,
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
    whole = _plan(file, replay, text, chunk, limit, chosen.skip_too_long, loading.context, settings.batch)
    plan, _ = _part(whole, chosen.shard)
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
