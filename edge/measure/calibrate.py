"""`edge imatrix`: compute the importance matrix of a model from replay rows or plain text (docs/calibration.md).

Rows: the prompt of a row, rendered with the model's chat template, and its reference answer form one sequence of
tokens. All sequences form a prefix tree. Each node of the tree is read once and counts once.

Text: cut into chunks as llama-imatrix does. Each chunk is read in an empty cache, and all its tokens count.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edge.errors import EdgeError, Interrupted
from edge.formats.gguf import ModelFile, model_sha256, read_model_file, read_tensors, recall, remember
from edge.formats.imatrix import Imatrix, Sums, read_imatrix, write_imatrix
from edge.llama.activations import CountingReader, Stopped, interrupts_noted
from edge.llama.loading import DEFAULT_LOADING, Loading, Spread
from edge.llama.memory import BATCH
from edge.llama.prefixes import Corpus
from edge.llama.reader import Walk, places
from edge.measure.corpus import from_rows, from_text
from edge.measure.experts import LayerExperts, experts_text, layer_experts
from edge.measure.partial_file import PartialFile
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.outputs import Run, check_output, check_replaced
from edge.system.places import place_of
from edge.system.text import counted
from edge.version import __version__

Progress = Callable[[int, int], None]
"""Receives the number of tokens counted so far, and of all tokens to count."""


@dataclass(frozen=True)
class Calibration:
    """A finished calibration. As a string, it is the text for the user.

    `kind`: "rows" or "text". `tokens`: the tokens that count, each once. `tokens_given`: the sum of the lengths of all
    sequences. `sequences`: the rows or chunks that were used. `skipped`: the rows that were left out. `tokens_before`:
    the tokens that an interrupted run had counted already.
    """

    path: Path
    data: Path
    kind: str
    tokens: int
    tokens_given: int
    sequences: int
    skipped: int
    chunk_count: int
    chunk_size: int
    tensors: int
    experts: tuple[LayerExperts, ...]
    tokens_before: int
    seconds: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        what = "rows" if self.kind == "rows" else f"chunks of {self.chunk_size}"
        lines = [
            f"{self.path}: {counted(self.tensors, 'tensor')}, "
            f"from {counted(self.tokens, 'token')} of {self.sequences:,} {what}",
            *(f"note: {note}" for note in self.notes),
            *experts_text(self.experts),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Settings:
    """How the sequences are read. `save_every`: seconds between two writes of the partial file."""

    threads: int
    gpu_layers: int
    spread: Spread
    process_output: bool
    save_every: float


def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    rows: str | Path | None = None,
    text: str | Path | None = None,
    chunk: int = 512,
    loading: Loading = DEFAULT_LOADING,
    process_output: bool = False,
    save_every: float = 30.0,
    force: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Compute the importance matrix of a GGUF from replay `rows` or plain `text`, and write it to `out`.

    `chunk`: the tokens of a chunk of text. For rows it is only the unit of `imatrix.chunk_count` in the file.
    Of `loading`, only these count: `context`, the largest number of tokens of a row (longer rows are left out, and a
    note says so), `threads`, `gpu_layers` (by default all layers if there is a GPU), and `spread`. `process_output`:
    include an output matrix that is separate from the embeddings, like the option of llama-imatrix.

    The sums are saved beside `out` every `save_every` seconds and on Ctrl-C. The same call resumes from them, and
    refuses the sums of other arguments. With the same number of threads, the finished file is the same to the last bit.
    A matrix of another run at `out` is replaced only with `force`.

    Raises EdgeError, ModelFileError, ReplayError, PromptError, ContextError, ResultError. On Ctrl-C it raises
    Interrupted; the message says how many tokens are done.
    """
    if (rows is None) == (text is None):
        raise EdgeError("an importance matrix is computed from rows or from a text: give one of them")
    context = loading.context
    settings = _Settings(
        loading.threads or physical_cores(),
        -1 if loading.gpu_layers is None else loading.gpu_layers,
        loading.spread,
        process_output,
        save_every,
    )
    _check_numbers(chunk, context, settings)
    check_output(out, [model, rows, text], streams=False)
    place, _ = place_of(out)
    begin = time.monotonic()
    file = read_model_file(model)
    corpus = from_text(file, Path(text), chunk) if text else from_rows(file, Path(rows or ""), context)
    identity = _identity(file, corpus, chunk if text else None, context, settings)
    run: Run = {"data": str(corpus.path), "chunk": chunk, "model": file.path.name}
    # The format has no place for the rest; edge remembers it as long as the file does not change.
    if place.is_file() and (known := recall(place, "calibration")) is not None:
        check_replaced(out, identity, lambda _: _loaded(known), kind="an importance matrix", force=force)
        run = {name: value for name, value in run.items() if name != "data"}  # it is the same, under any path
    kind = "an importance matrix"
    check_replaced(out, run, lambda path: _stored_run(path, file, corpus.path, run), kind=kind, force=force)
    partial = PartialFile.read(place.with_name(place.name + ".partial"), identity)
    before = corpus.tokens_until(partial.done)
    with interrupts_noted() as stopped:
        try:
            _read(file, corpus, partial, settings, progress, stopped)
        except Stopped:
            partial.write()
            raise Interrupted(_how_far(corpus, partial)) from None
    imatrix = _imatrix(corpus, partial, chunk)
    write_imatrix(out, imatrix)
    remember(place, "calibration", json.dumps(identity))
    partial.remove()
    return _calibration(Path(out), corpus, partial, imatrix, chunk, before, time.monotonic() - begin)


def _identity(
    file: ModelFile, corpus: Corpus, chunk: int | None, context: int | None, settings: _Settings
) -> dict[str, object]:
    """What the sums of a partial file depend on."""
    return {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "model_sha256": model_sha256(file.path),
        f"{corpus.kind}_sha256": corpus.sha256,
        "chunk": chunk,
        "context": context,
        "gpu_layers": settings.gpu_layers,
        **settings.spread.identity(),
        "process_output": settings.process_output,
    }


def _calibration(
    out: Path,
    corpus: Corpus,
    partial: PartialFile,
    imatrix: Imatrix,
    chunk: int,
    before: int,
    seconds: float,
) -> Calibration:
    """What was computed. `before`: the tokens that an interrupted call had read."""
    return Calibration(
        path=out,
        data=corpus.path,
        kind=corpus.kind,
        tokens=corpus.tokens,
        tokens_given=sum(map(len, corpus.sequences)),
        sequences=len(corpus.sequences),
        skipped=corpus.skipped,
        chunk_count=imatrix.chunk_count,
        chunk_size=chunk,
        tensors=len(imatrix.entries),
        experts=layer_experts(partial.sums),
        tokens_before=before,
        seconds=seconds,
        notes=corpus.notes,
    )


def _check_numbers(chunk: int, context: int | None, settings: _Settings) -> None:
    for name, value, least, most in (
        ("chunk", chunk, 2, 1 << 30),
        ("threads", settings.threads, 1, MAX_THREADS),
        ("context", context or 2, 2, 1 << 30),
    ):
        if not least <= value <= most:
            raise EdgeError(f"{name} is {value}; it must be from {least} to {most:,}")


def _stored_run(path: Path, file: ModelFile, data: Path, wanted: Run) -> Run:
    """The fields of `wanted`, as a matrix has them: its data, its chunk size, and whether it fits the model.

    If the matrix names the file `data` by another path, it has the same data. Raises ModelFileError.
    """
    matrix = read_imatrix(path)
    columns = {tensor.name: tensor.shape[0] for tensor in read_tensors(file.path)}
    fits = all(columns.get(name) == sums.in_sum2.shape[1] for name, sums in matrix.entries.items())
    named = matrix.datasets[-1] if matrix.datasets else None
    if named is not None and os.path.exists(named) and os.path.samefile(named, data):
        named = str(data)
    stored = {
        "data": named,
        "chunk": matrix.chunk_size,
        "model": file.path.name if fits else "another model",
    }
    return {name: value for name, value in stored.items() if name in wanted}


def _loaded(text: str) -> Run:
    run: Run = json.loads(text)
    return run


def _how_far(corpus: Corpus, partial: PartialFile) -> str:
    if not partial.done:
        return "interrupted before the first sequence was done; nothing was written"
    return (
        f"interrupted after {corpus.tokens_until(partial.done):,} of {counted(corpus.tokens, 'token')}, "
        "which are kept in "
        f"{partial.path}; run the same command again to resume"
    )


def _imatrix(corpus: Corpus, partial: PartialFile, chunk: int) -> Imatrix:
    most = max(int(activation.counts.max()) for activation in partial.sums.values())
    entries = {
        name: Sums(activation.sums.astype(np.float32), activation.counts)
        for name, activation in partial.sums.items()
    }
    return Imatrix(entries, datasets=(str(corpus.path),), chunk_count=max(1, most // chunk), chunk_size=chunk)


def _read(
    file: ModelFile,
    corpus: Corpus,
    partial: PartialFile,
    settings: _Settings,
    progress: Progress | None,
    stopped: Callable[[], bool],
) -> None:
    """Read the sequences that are not done yet, and add each one to `partial` when it is done."""
    total, counted = corpus.tokens, corpus.tokens_until(partial.done)
    if partial.done == len(corpus.sequences):  # the run ended between the last save and the finished file
        return
    with CountingReader(
        file.path,
        cells=max(map(len, corpus.sequences)),
        sequences=1 + places(corpus),
        batch=BATCH,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
        spread=settings.spread,
        # As in llama-imatrix. It changes single columns by up to a few percent.
        flash_attention=corpus.kind == "text",
        process_output=settings.process_output,
        stopped=stopped,
    ) as reader:
        walk = Walk(reader, corpus)
        written = time.monotonic()
        for index in range(partial.done, len(corpus.sequences)):
            for first, end in walk.read(index):
                counted += end - first
                if progress is not None:
                    progress(counted, total)
            partial.add(reader.take())
            if time.monotonic() - written >= settings.save_every:
                partial.write()
                written = time.monotonic()
