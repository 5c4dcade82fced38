"""The two passes of a measurement: the base model's distributions into a file, then the model compared with them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, Interrupted, ModelFileError, ResultError
from edge.formats.gguf import ModelFile, model_sha256
from edge.llama import library
from edge.llama.loading import ONE_DEVICE, Adapter, Loading, Spread
from edge.llama.memory import BATCH
from edge.llama.reader import Reader, Walk, places
from edge.measure.base_file import BaseFile, BaseFileWriter
from edge.measure.divergence import KeptDistribution, divergence, keep, log_normalizer, log_probability
from edge.measure.figures import Predictions
from edge.measure.identity import identity, other_vocabulary
from edge.measure.positions import END, Plan
from edge.system.files import whole_file
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.progress import bar

Say = Callable[[str], None] | None
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """The options of a pass, all chosen."""

    threads: int
    gpu_layers: int
    batch: int
    adapters: tuple[Adapter, ...] = ()
    """Of the model; the base is read without."""
    spread: Spread = ONE_DEVICE

    @property
    def offloads(self) -> bool:
        """Whether a GPU may compute. llama.cpp then decides about flash attention."""
        return library.can_offload() and self.gpu_layers != 0

    @classmethod
    def checked(cls, loading: Loading) -> "Settings":
        """Raises EdgeError for an option that a measurement does not have, or a value outside its range."""
        if loading.kv_type != "f16" or loading.flash_attention is not None or loading.parallel is not None:
            raise EdgeError("a measurement takes no --kv-type, --flash-attention or --parallel")
        gpu_layers = -1 if loading.gpu_layers is None else loading.gpu_layers
        settings = cls(
            loading.threads or physical_cores(),
            gpu_layers,
            loading.batch or BATCH,
            loading.adapters,
            loading.spread,
        )
        for name, value, least, most in (
            ("threads", settings.threads, 1, MAX_THREADS),
            ("gpu_layers", settings.gpu_layers, -1, 1 << 16),
            ("batch", settings.batch, 1, 1 << 16),
        ):
            if not least <= value <= most:
                raise EdgeError(f"{name} is {value}; it must be from {least} to {most:,}")
        return settings


class LogitsReader(Reader):
    """A reader that computes logits only after the positions in `wanted`."""

    wanted: frozenset[int] = frozenset()

    def read(self, tokens: Sequence[int], position: int, sequence: int, *, counts: bool = True) -> None:
        """Read at most a batch of tokens, which follow `position` others in `sequence`."""
        flags = [counts and position + i in self.wanted for i in range(len(tokens))]
        self.decode(tokens, position, sequence, flags)


def _nodes(
    reader: LogitsReader, plan: Plan, progress: Callable[[int, int], None]
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The logits of each node, valid until the next one, and the log of the sum of their exponentials.

    Raises ModelFileError if they are not finite.
    """
    walk, done, total = Walk(reader, plan.corpus), 0, plan.tokens
    for index, wanted in enumerate(plan.wanted):
        if plan.reads is not None and index not in plan.reads:
            continue
        reader.wanted = frozenset(wanted)
        at = 0
        for begin, end in walk.read(index):
            while at < len(wanted) and wanted[at] < end:
                logits = reader.logits(wanted[at] - begin)
                log_norm = log_normalizer(logits)
                if not (np.isfinite(log_norm) and np.isfinite(logits.min())):
                    raise ModelFileError(
                        f"{reader.path}: its logits are not finite: the model is damaged; convert it again"
                    )
                yield logits, log_norm
                at += 1
            done += end - begin
            progress(done, total)


def opened_reader(
    file: ModelFile,
    plan: Plan,
    settings: Settings,
    adapters: Sequence[Adapter] = (),
    *,
    mmap: bool = True,
) -> LogitsReader:
    """A reader with room for the sequences of a plan. `mmap`: map the file into memory instead of reading it.

    Raises what Reader raises.
    """
    return LogitsReader(
        file.path,
        cells=max(map(len, plan.corpus.sequences)),
        sequences=1 + places(plan.corpus),
        batch=settings.batch,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
        adapters=adapters,
        spread=settings.spread,
        mmap=mmap,
    )


def divergences(reader: LogitsReader, plan: Plan, scores: BaseFile) -> Floats:
    """The KL divergence from the base at each node of a plan, in nats. The reader's sequences are emptied first.

    Raises ResultError for a damaged base file, ModelFileError for logits that are not finite, and KeyboardInterrupt.
    """
    reader.clear()
    found = np.zeros(len(plan.targets))
    records = _records(scores, plan)
    for node, (logits, log_norm) in enumerate(_nodes(reader, plan, lambda done, total: None)):
        kept, _ = next(records)
        found[node], _ = divergence(kept, logits, log_norm)
    if next(records, None) is not None:
        raise ResultError(f"{scores.path}: has more positions than its plan: read the base again")
    return found


def _log_probabilities(
    logits: NDArray[np.float32], log_norm: float, targets: Sequence[int], ends: tuple[int, ...]
) -> list[float]:
    return [log_probability(logits, log_norm, ends if target == END else (target,)) for target in targets]


def base_pass(
    file: ModelFile,
    place: Path,
    descriptor: int | None,
    plan: Plan,
    vocabulary: str,
    settings: Settings,
    say: Say,
) -> None:
    """Write the distributions of the base to an open file, or as a whole file to `place`.

    Raises ResultError if they cannot be written, Interrupted after Ctrl-C.
    """
    if descriptor is None:
        with _write_errors(place), whole_file(place) as (_, opened):
            base_pass(file, place, opened, plan, vocabulary, settings, say)
        return
    head = {
        "identity": identity(plan, vocabulary),
        "base": {
            "name": f"{file.name or file.path.stem} ({file.file_type}, edge)",
            "path": str(file.path),
            "sha256": model_sha256(file.path),
        },
        "n_vocab": file.n_vocab,
        "nodes": len(plan.targets),
    }
    ends, count = tuple(sorted(file.end_ids)), 0
    try:
        with (
            _write_errors(place),
            opened_reader(file, plan, settings) as reader,
            bar("reading the base", say, unit="tokens") as progress,
        ):
            writer = BaseFileWriter(descriptor, {**head, "n_vocab": reader.n_vocab})
            for logits, log_norm in _nodes(reader, plan, progress):
                targets = _log_probabilities(logits, log_norm, plan.targets[count], ends)
                writer.add(keep(logits), targets)
                count += 1
            writer.finish()
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in the base after {count:,} of {len(plan.targets):,} positions; nothing was written"
        ) from None


def model_pass(
    file: ModelFile,
    plan: Plan,
    scores: BaseFile | None,
    settings: Settings,
    say: Say,
    after: str,
) -> tuple[Predictions, int, float, float]:
    """The predictions, the number of decoded tokens, and the seconds of loading and of reading.

    `after`: what an interruption keeps, for its message. Raises ResultError for a damaged base file.
    """
    nodes, slots = len(plan.targets), sum(map(len, plan.targets))
    found = Predictions(np.zeros(slots))
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
            opened_reader(file, plan, settings, settings.adapters) as reader,
            bar("reading the model", say, unit="tokens") as progress,
        ):
            loaded = time.perf_counter()
            records = None if scores is None else _records(scores, plan)
            if scores is not None and reader.n_vocab != scores.head["n_vocab"]:
                raise other_vocabulary(file.path, scores.path)
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
            # The trailer after the last record is checked when one more record is read.
            if records is not None and scores is not None and next(records, None) is not None:
                raise ResultError(
                    f"{scores.path}: has more positions than this measurement: read the base again"
                )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in the model after {count:,} of {nodes:,} positions; {after or 'nothing was written'}"
        ) from None
    return found, decoded, loaded - began, time.perf_counter() - loaded


def _records(scores: BaseFile, plan: Plan) -> Iterator[tuple[KeptDistribution, Floats]]:
    """The records of the plan's nodes. A file of the whole plan has more than a part of it needs."""
    records = scores.records()
    if plan.nodes is None or scores.head["nodes"] == len(plan.nodes):
        return records
    chosen = frozenset(plan.nodes.tolist())
    return (record for node, record in enumerate(records) if node in chosen)


class _write_errors:
    """Turns an OSError of writing into a ResultError that names the file."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ResultError(
                f"{self._place}: the distributions of the base cannot be written: {error.strerror or error}"
            ) from None
