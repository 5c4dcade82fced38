"""`edge measure`: how far a model's distributions are from its base's, on reference answers or on a text.

Two passes, one model in memory at a time: the base's distributions go to a file (edge/measure/base_file.py),
then the model reads
the same and is held against them, position by position. docs/measure.md says what the figures mean.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, Interrupted, ModelFileError, ResultError
from edge.formats.gguf import ModelFile, read_array, read_model_file, sha256
from edge.llama import library
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.memory import BATCH
from edge.llama.reader import Reader, Walk, places
from edge.measure.base_file import Scores, ScoresWriter, is_scores
from edge.measure.divergence import (
    CLASS_WIDTH,
    LUMPED,
    TOP,
    divergence,
    keep,
    log_normalizer,
    log_probability,
)
from edge.measure.figures import Found, figures
from edge.measure.positions import END, Plan, rows_plan, text_plan
from edge.replay.provenance import gguf_provenance, llama_cpp_provenance, provenance
from edge.system.files import temporary_file, whole_file
from edge.system.hashes import file_sha256
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.places import check_place, place_of, write_json
from edge.system.progress import bar
from edge.version import __version__

VERSION = 1
"""Of the measurement's format; that it is there tells a measurement from a result."""


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
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure a GGUF on the reference answers of `replay` or on a plain `text`, write a measurement JSON, return it.

    `base`: the GGUF to hold it against, or the file that `base_scores` made of one with the same rows or text and the
    same arguments; without it there are only likelihoods. `limit`: the maximum number of rows or chunks.
    `loading.context`: the maximum number of tokens of a row with its answer, by default the model's context length; a
    longer row raises ContextError unless `skip_too_long`. By default all layers are offloaded where there is a GPU.
    kv_type, flash_attention and parallel must be the defaults.

    A base's scores lie beside `out` meanwhile, and go at the end. With `keep_base` they stay as OUT.base-scores, and
    what stands there already of the same base and data is used. Raises ModelFileError, ReplayError, PromptError,
    ContextError, ResultError; KeyboardInterrupt with a line that tells how far it came.
    """
    _check_places(out, model, base, replay, text)
    settings = _Settings.checked(loading)
    file = read_model_file(model)
    given = None if base is None else Path(base)
    base_file = read_model_file(given) if given is not None and not is_scores(given) else None
    vocabulary = vocabulary_sha256(file)
    if base_file is not None and vocabulary_sha256(base_file) != vocabulary:
        raise _other_vocabulary(file.path, base_file.path)
    plan = _plan(file, replay, text, chunk, limit, skip_too_long, loading.context, settings.batch)
    place, through = place_of(out)
    if through:  # nothing can lie beside it
        place = Path(tempfile.gettempdir()) / "edge-measure"
    kept = place.with_name(f"{place.name}.base-scores")
    # Entered even if it stays empty: what a killed run has left under such a name goes.
    with temporary_file(kept) as (temporary, descriptor):
        scores = None
        if base_file is not None:
            if keep_base and not through:
                if not _is_of(kept, base_file, plan, vocabulary):
                    _base_pass(base_file, kept, None, plan, vocabulary, settings, say)
                scores = Scores.read(kept)
            else:
                _base_pass(base_file, temporary, descriptor, plan, vocabulary, settings, say)
                scores = Scores.read(temporary)
        elif given is not None:
            scores = Scores.read(given)
            _check_identity(scores, file.path, _identity(plan, vocabulary))
        stays = scores is not None and scores.path != temporary
        after = f"the base's scores are kept in {scores.path}; run the same again" if scores and stays else ""
        found, decoded, load_time, read_time = _model_pass(file, plan, scores, settings, say, after)
        head: dict[str, Any] = {
            "measurement": VERSION,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "model_path": str(model),
            "model_sha256": sha256(file.path),
        }
        if scores is not None:
            told = scores.head["base"]
            head |= {"base": told["name"], "base_path": told["path"], "base_sha256": told["sha256"]}
        # Of a pipe there is no second reading.
        data = plan.corpus.path
        head |= {
            "eval_path": str(data),
            "provenance": provenance(
                {
                    "backend": "edge",
                    "backend_version": __version__,
                    **llama_cpp_provenance(),
                    **gguf_provenance(file.path),
                    "rows_sha256": plan.corpus.sha256,
                    "rows_file_sha256": file_sha256(data),
                    "threads": settings.threads,
                }
            ),
            "kind": plan.corpus.kind,
            "method": {
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
                "intervals": "95 %, bootstrap over tasks"
                if plan.chunk is None
                else "95 %, bootstrap over chunks",
                "notes": list(plan.corpus.notes),
            },
            "load_time_sec": round(load_time, 3),
            "measure_time_sec": round(read_time, 3),
        }
        result = head | figures(plan, found)
        write_json(out, result)
    return result


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
    """Read a base once for many measurements: write to `out` what `measure` takes as its `base`, and return its path.

    The arguments are measure's. In the file stand the SHA-256 of the base, of its vocabulary and of all that was read;
    measure refuses it with another vocabulary, other rows, texts or settings. Raises what measure raises.
    """
    _check_places(out, model, replay, text)
    place, through = place_of(out)
    if through:
        raise ResultError(f"{out}: is not a regular file; choose another name")
    settings = _Settings.checked(loading)
    file = read_model_file(model)
    plan = _plan(file, replay, text, chunk, limit, skip_too_long, loading.context, settings.batch)
    _base_pass(file, place, None, plan, vocabulary_sha256(file), settings, say)
    return Path(out)


def vocabulary_sha256(file: ModelFile) -> str:
    """Of a GGUF's tokens, in their order, their types and merges, and of what ends an answer."""
    digest = hashlib.sha256()
    for key in ("tokens", "token_type", "merges"):
        for item in read_array(file.path, f"tokenizer.ggml.{key}"):
            digest.update(item if isinstance(item, bytes) else str(item).encode())
            digest.update(b"\0")
        digest.update(b"\0\0")
    digest.update(repr(sorted(file.end_ids)).encode())
    return digest.hexdigest()


# --- what is given ---


@dataclass(frozen=True)
class _Settings:
    threads: int
    gpu_layers: int
    batch: int

    @property
    def offloads(self) -> bool:
        """Whether a GPU may compute: flash attention is then llama.cpp's choice."""
        return library.can_offload() and self.gpu_layers != 0

    @classmethod
    def checked(cls, loading: Loading) -> "_Settings":
        """Raises EdgeError for an option that a measurement does not have, or a value outside its range."""
        if loading.kv_type != "f16" or loading.flash_attention is not None or loading.parallel is not None:
            raise EdgeError("a measurement takes no --kv-type, --flash-attention or --parallel")
        gpu_layers = -1 if loading.gpu_layers is None else loading.gpu_layers
        settings = cls(loading.threads or physical_cores(), gpu_layers, loading.batch or BATCH)
        for name, value, least, most in (
            ("threads", settings.threads, 1, MAX_THREADS),
            ("gpu_layers", settings.gpu_layers, -1, 1 << 16),
            ("batch", settings.batch, 1, 1 << 16),
        ):
            if not least <= value <= most:
                raise EdgeError(f"{name} is {value}; it must be from {least} to {most:,}")
        return settings


def _check_places(out: Path | str, *sources: Path | str | None) -> None:
    check_place(out)
    place, through = place_of(out)
    if not through and any(os.path.realpath(path) == str(place) for path in sources if path is not None):
        raise ResultError(f"{out}: is what it would be made from; choose another name with --out")


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
        raise EdgeError("a model is measured on replay rows or on a text: give one of them")
    if text is not None:
        return text_plan(file, Path(text), chunk, limit=limit, batch=batch)
    return rows_plan(
        file, Path(replay or ""), context=context, limit=limit, skip_too_long=skip_too_long, batch=batch
    )


# --- which scores are of what ---


def _identity(plan: Plan, vocabulary: str) -> dict[str, Any]:
    """All that a base's scores must share with a measurement; the names are what errors call them by."""
    return {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "vocabulary": vocabulary,
        plan.corpus.kind: plan.corpus.sha256,
        "chunk": plan.chunk,
        "batch": plan.corpus.batch,
        "tokens": plan.sha256,
    }


def _check_identity(scores: Scores, model: Path, wanted: dict[str, Any]) -> None:
    held = scores.head["identity"]
    if held.get("vocabulary") != wanted["vocabulary"]:
        raise _other_vocabulary(model, scores.path)
    changed = [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]
    if changed:
        raise ResultError(
            f"{scores.path}: these scores are not of what is measured here; they differ in {', '.join(changed)}: "
            "measure with the same rows and options, or read the base again"
        )


def _is_of(path: Path, base: ModelFile, plan: Plan, vocabulary: str) -> bool:
    """Whether there are scores already. Raises ResultError where there is something else."""
    if not path.exists():
        return False
    scores = Scores.read(path)
    _check_identity(scores, base.path, _identity(plan, vocabulary))
    if scores.head["base"]["sha256"] != sha256(base.path):
        raise ResultError(
            f"{path}: these scores are of another base: move the file away, or choose another --out"
        )
    return True


def _other_vocabulary(model: Path, base: Path) -> ModelFileError:
    return ModelFileError(
        f"{model}: its vocabulary is another than that of {base}: give two files of one model"
    )


# --- the passes ---


class _LogitsReader(Reader):
    """A reader that computes logits where they are wanted: after the places in `wanted`, of what counts."""

    wanted: frozenset[int] = frozenset()

    def read(self, tokens: Sequence[int], position: int, sequence: int, *, counts: bool = True) -> None:
        """Read tokens, at most a batch, that follow `position` others in `sequence`."""
        flags = [counts and position + i in self.wanted for i in range(len(tokens))]
        self.decode(tokens, position, sequence, flags)


def _nodes(
    reader: _LogitsReader, plan: Plan, progress: Callable[[int, int], None]
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Each node's logits, valid until the next, and the log of their sum. Raises ModelFileError: not finite."""
    walk, done, total = Walk(reader, plan.corpus), 0, plan.corpus.tokens
    for index, wanted in enumerate(plan.wanted):
        reader.wanted = frozenset(wanted)
        at = 0
        for begin, end in walk.read(index):
            while at < len(wanted) and wanted[at] < end:
                logits = reader.logits(wanted[at] - begin)
                log_norm = log_normalizer(logits)
                if not (np.isfinite(log_norm) and np.isfinite(logits.min())):
                    raise ModelFileError(
                        f"{reader.path}: gives logits that are not finite: the model is damaged; convert it again"
                    )
                yield logits, log_norm
                at += 1
            done += end - begin
            progress(done, total)


def _opened(file: ModelFile, plan: Plan, settings: _Settings) -> _LogitsReader:
    return _LogitsReader(
        file.path,
        cells=max(map(len, plan.corpus.sequences)),
        sequences=1 + places(plan.corpus),
        batch=settings.batch,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
    )


def _log_probabilities(
    logits: NDArray[np.float32], log_norm: float, targets: Sequence[int], ends: tuple[int, ...]
) -> list[float]:
    return [log_probability(logits, log_norm, ends if target == END else (target,)) for target in targets]


def _base_pass(
    file: ModelFile,
    place: Path,
    descriptor: int | None,
    plan: Plan,
    vocabulary: str,
    settings: _Settings,
    say: Callable[[str], None] | None,
) -> None:
    """Write the base's scores: to an open file, or whole to `place`."""
    if descriptor is None:
        with _told(place), whole_file(place) as (_, opened):
            _base_pass(file, place, opened, plan, vocabulary, settings, say)
        return
    head = {
        "identity": _identity(plan, vocabulary),
        "base": {
            "name": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "path": str(file.path),
            "sha256": sha256(file.path),
        },
        "n_vocab": file.n_vocab,
        "nodes": len(plan.targets),
    }
    ends, count = tuple(sorted(file.end_ids)), 0
    try:
        with (
            _told(place),
            _opened(file, plan, settings) as reader,
            bar("reading the base", show=say is not None, unit="tokens") as progress,
        ):
            writer = ScoresWriter(descriptor, {**head, "n_vocab": reader.n_vocab})
            for logits, log_norm in _nodes(reader, plan, progress):
                targets = _log_probabilities(logits, log_norm, plan.targets[count], ends)
                writer.add(keep(logits), targets)
                count += 1
            writer.finish()
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in the base, after {count:,} of {len(plan.targets):,} positions; nothing was written"
        ) from None


def _model_pass(
    file: ModelFile,
    plan: Plan,
    scores: Scores | None,
    settings: _Settings,
    say: Callable[[str], None] | None,
    after: str,
) -> tuple[Found, int, float, float]:
    """What was found, the tokens decoded, and the seconds of loading and of reading."""
    nodes, slots = len(plan.targets), sum(map(len, plan.targets))
    found = Found(np.zeros(slots))
    if scores is not None:
        found = replace(
            found,
            base_log_probs=np.zeros(slots),
            kl=np.zeros(nodes),
            errors=np.zeros(nodes),
            same_top=np.zeros(nodes, bool),
        )
    ends, count, slot = tuple(sorted(file.end_ids)), 0, 0
    decoded = 0
    began = loaded = time.perf_counter()
    try:
        with (
            _opened(file, plan, settings) as reader,
            bar("reading the model", show=say is not None, unit="tokens") as progress,
        ):
            loaded = time.perf_counter()
            records = None if scores is None else scores.records()
            if scores is not None and reader.n_vocab != scores.head["n_vocab"]:
                raise _other_vocabulary(file.path, scores.path)
            for logits, log_norm in _nodes(reader, plan, progress):
                targets = plan.targets[count]
                here = slice(slot, slot + len(targets))
                found.log_probs[here] = _log_probabilities(logits, log_norm, targets, ends)
                if records is not None and scores is not None:
                    kept, base_log_probs = next(records, (None, None))
                    if kept is None or base_log_probs is None or len(base_log_probs) != len(targets):
                        raise ResultError(f"{scores.path}: is damaged: delete it and read the base again")
                    assert found.base_log_probs is not None and found.kl is not None
                    assert found.errors is not None and found.same_top is not None
                    found.base_log_probs[here] = base_log_probs
                    found.kl[count], found.errors[count] = divergence(kept, logits, log_norm)
                    found.same_top[count] = kept.best == int(logits.argmax())
                count, slot = count + 1, here.stop
            decoded = reader.tokens_decoded
            # The trailer behind the last record is checked where a further one is asked for.
            if records is not None and scores is not None and next(records, None) is not None:
                raise ResultError(f"{scores.path}: holds more positions than there are: read the base again")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in the model, after {count:,} of {nodes:,} positions; {after or 'nothing was written'}"
        ) from None
    return found, decoded, loaded - began, time.perf_counter() - loaded


class _told:
    """Turns an OSError of writing into a ResultError that names the place."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ResultError(
                f"{self._place}: the base's scores cannot be written: {error.strerror or error}"
            ) from None
