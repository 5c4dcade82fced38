"""`edge imatrix`: the importance matrix of a model, from replay rows or from plain text (docs/calibration.md).

Rows: each row's prompt, rendered with the model's chat template, and its reference answer behind it are one sequence
of tokens. All sequences make up a prefix tree, and every node of it is read once and counts once: what the rows share
counts as one text, as it is computed once where prompts are kept.

Text: cut into chunks as llama-imatrix cuts it, each read in an empty cache and counted whole.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from edge.errors import EdgeError, ModelFileError
from edge.formats.gguf import ModelFile, read_model_file, sha256
from edge.formats.imatrix import Imatrix, Sums, replacing, write_imatrix
from edge.llama.activations import Activation, CountingReader, Stopped, interrupts_noted
from edge.llama.memory import BATCH
from edge.llama.prefixes import Corpus
from edge.llama.reader import Walk, places
from edge.measure.corpus import from_rows, from_text
from edge.system.machine import MAX_THREADS, physical_cores
from edge.system.places import check_place, place_of
from edge.system.tables import table
from edge.version import __version__

RARE = 64
"""An expert that fewer tokens were routed to is reported: the mean of the squares of so many normally distributed
values is off by sqrt(2 / 64) = 18 % (one standard deviation), of activations, whose tails are heavier, by more."""

_MAGIC = b"edge calibration 1 "

Progress = Callable[[int, int], None]
"""Called with the tokens counted so far and all that will be."""


@dataclass(frozen=True)
class LayerExperts:
    """How often the experts of a layer were at work: `counts` in tokens, one of each expert."""

    layer: int
    counts: tuple[int, ...]

    @property
    def never(self) -> tuple[int, ...]:
        """The experts that no token was routed to."""
        return tuple(i for i, count in enumerate(self.counts) if not count)

    @property
    def rare(self) -> tuple[int, ...]:
        """The experts that some tokens were routed to, but fewer than RARE."""
        return tuple(i for i, count in enumerate(self.counts) if 0 < count < RARE)


@dataclass(frozen=True)
class Calibration:
    """A finished calibration; as a text, what to tell its user.

    `tokens` were counted, each once; `tokens_given` is what the sequences hold one by one. `sequences` rows or
    chunks were used, `skipped` rows left out. `tokens_before` were counted by the run that this one went on from.
    """

    path: Path
    data: Path
    kind: str  # "rows" or "text"
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
            f"{self.path}: {self.tensors} tensors, from {self.tokens:,} tokens of {self.sequences:,} {what}",
            *(f"note: {note}" for note in self.notes),
        ]
        poor = [layer for layer in self.experts if layer.never or layer.rare]
        if self.experts and not poor:
            least = min(min(layer.counts) for layer in self.experts)
            lines.append(f"experts: each one was at work on at least {least:,} tokens")
        elif poor:
            never, rare = (sum(len(getattr(layer, kind)) for layer in poor) for kind in ("never", "rare"))
            of = sum(len(layer.counts) for layer in self.experts)
            lines.append(
                f"experts: of {of}, {rare} were at work on fewer than {RARE} tokens, {never} on none"
            )
            if never:
                lines.append(
                    "An expert that was never at work has all its columns weigh the same, as in llama-quantize; "
                    "its tensor and the other experts keep what was measured."
                )
            header = ("layer", "experts", "never", f"under {RARE}", "least tokens", "median")
            lines += ["", *table(header, [_cells(layer) for layer in poor], right=(0, 1, 4, 5))]
        return "\n".join(lines)


def _cells(layer: LayerExperts) -> list[str]:
    numbers = (str(layer.layer), str(len(layer.counts)))
    lists = (_ranges(layer.never), _ranges(layer.rare))
    return [*numbers, *lists, f"{min(layer.counts):,}", f"{int(np.median(layer.counts)):,}"]


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers for people: `0–3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    rows: str | Path | None = None,
    text: str | Path | None = None,
    chunk: int = 512,
    context: int | None = None,
    threads: int | None = None,
    gpu_layers: int = -1,
    process_output: bool = False,
    save_every: float = 30.0,
    progress: Progress | None = None,
) -> Calibration:
    """Compute the importance matrix of a GGUF from a file of replay `rows` or of plain `text`, and write it to `out`.

    `chunk`: tokens of a chunk of text; for rows only the unit in which the file tells how much was read. `context`:
    the longest row that is read, by default the model's context; longer ones are left out, and a note says so.
    `process_output` takes in an output matrix of its own, as llama-imatrix's option does. `threads` defaults to the
    physical cores; `gpu_layers` of -1 is all, where there is a GPU.

    What was added up is saved beside `out` every `save_every` seconds and on Ctrl-C; started again with the same
    model, data and arguments it goes on from there, and with the same number of threads the file is the same to the
    last bit. With others it is refused. Raises ModelFileError, ReplayError, PromptError, ContextError, ResultError;
    KeyboardInterrupt with a line that tells how far it came.
    """
    if (rows is None) == (text is None):
        raise EdgeError("an importance matrix is computed from rows or from a text: give one of them")
    threads = threads or physical_cores()
    for name, value, least, most in (
        ("chunk", chunk, 2, 1 << 30),
        ("threads", threads, 1, MAX_THREADS),
        ("context", context or 2, 2, 1 << 30),
    ):
        if not least <= value <= most:
            raise EdgeError(f"{name} is {value}; it must be from {least} to {most:,}")
    check_place(out)
    place, through = place_of(out)
    if through:
        raise ModelFileError(f"{out}: is not a regular file; choose another name with --out")
    if any(os.path.realpath(path) == str(place) for path in (model, rows, text) if path is not None):
        raise ModelFileError(f"{out}: is what it would be made from; choose another name with --out")
    begin = time.monotonic()
    file = read_model_file(model)
    work = from_text(file, Path(text), chunk) if text else from_rows(file, Path(rows or ""), context)
    identity = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "model_sha256": sha256(file.path),
        f"{work.kind}_sha256": work.sha256,
        "chunk": chunk if text else None,
        "context": context,
        "gpu_layers": gpu_layers,
        "process_output": process_output,
    }
    saved = _Saved.read(place.with_name(place.name + ".partial"), identity)
    before = work.tokens_until(saved.done)
    with interrupts_noted() as stopped:
        try:
            _run(file, work, saved, threads, gpu_layers, process_output, save_every, progress, stopped)
        except Stopped:
            saved.write()
            raise KeyboardInterrupt(_how_far(work, saved)) from None
    most = max(int(activation.counts.max()) for activation in saved.sums.values())
    imatrix = Imatrix(
        {
            name: Sums(activation.sums.astype(np.float32), activation.counts)
            for name, activation in saved.sums.items()
        },
        datasets=(str(work.path),),
        chunk_count=max(1, most // chunk),
        chunk_size=chunk,
    )
    write_imatrix(out, imatrix)
    saved.remove()
    return Calibration(
        path=Path(out),
        data=work.path,
        kind=work.kind,
        tokens=work.tokens,
        tokens_given=sum(map(len, work.sequences)),
        sequences=len(work.sequences),
        skipped=work.skipped,
        chunk_count=imatrix.chunk_count,
        chunk_size=chunk,
        tensors=len(imatrix.entries),
        experts=_experts(saved.sums),
        tokens_before=before,
        seconds=time.monotonic() - begin,
        notes=work.notes,
    )


def _how_far(work: Corpus, saved: "_Saved") -> str:
    if not saved.done:
        return "interrupted before anything was done; nothing was written"
    return (
        f"interrupted after {work.tokens_until(saved.done):,} of {work.tokens:,} tokens, which are kept in "
        f"{saved.path}; run the same command again to go on"
    )


def _experts(sums: Mapping[str, Activation]) -> tuple[LayerExperts, ...]:
    """Of each layer with experts, the counts; its tensors have the same, since one routing holds for all."""
    layers: dict[int, tuple[int, ...]] = {}
    for name, activation in sums.items():
        parts = name.split(".")
        if len(activation.counts) > 1 and parts[0] == "blk" and parts[1].isdigit():
            layers.setdefault(int(parts[1]), tuple(map(int, activation.counts)))
    return tuple(LayerExperts(layer, layers[layer]) for layer in sorted(layers))


# --- reading it ---


def _run(
    file: ModelFile,
    work: Corpus,
    saved: "_Saved",
    threads: int,
    gpu_layers: int,
    process_output: bool,
    save_every: float,
    progress: Progress | None,
    stopped: Callable[[], bool],
) -> None:
    """Read the sequences that are not done yet; `saved` is up to date after each of them."""
    total, counted = work.tokens, work.tokens_until(saved.done)
    if saved.done == len(work.sequences):  # it ended between the last save and the file
        return
    with CountingReader(
        file.path,
        cells=max(map(len, work.sequences)),
        sequences=1 + places(work),
        batch=BATCH,
        threads=threads,
        gpu_layers=gpu_layers,
        # As llama-imatrix has it: it moves single columns by up to some percent.
        flash_attention=work.kind == "text",
        process_output=process_output,
        stopped=stopped,
    ) as reader:
        walk = Walk(reader, work)
        written = time.monotonic()
        for index in range(saved.done, len(work.sequences)):
            for first, end in walk.read(index):
                counted += end - first
                if progress is not None:
                    progress(counted, total)
            saved.add(reader.take())
            if time.monotonic() - written >= save_every:
                saved.write()
                written = time.monotonic()


# --- kept for the next start ---


@dataclass
class _Saved:
    """What was added up over the first `done` sequences, and the file that keeps it while the work lasts.

    The file is a line with the SHA-256 of what follows, a line of JSON with what it is of and the tensors' names and
    shapes, then their sums (float64) and counts (int64), little-endian. It takes its name when it is whole.
    """

    path: Path
    identity: Mapping[str, Any]
    done: int
    sums: dict[str, Activation]

    @classmethod
    def read(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """Go on from the file, or begin anew where there is none. Raises ModelFileError: damaged, or of others."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(path, identity, 0, {})
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
        first, _, rest = data.partition(b"\n")
        if not first.startswith(_MAGIC):
            raise ModelFileError(f"{path}: is no calibration of edge: move it away, or choose another --out")
        if first != _MAGIC + hashlib.sha256(rest).hexdigest().encode():
            raise ModelFileError(f"{path}: is damaged: delete it to begin anew")
        head, _, values = rest.partition(b"\n")
        fields = json.loads(head)
        changed = [
            f"{name} was {_short(fields['identity'].get(name))}, is {_short(identity.get(name))}"
            for name in {**fields["identity"], **identity}
            if fields["identity"].get(name) != identity.get(name)
        ]
        if changed:
            raise ModelFileError(
                f"{path}: belongs to another calibration ({'; '.join(changed)}): run it as before to go on, choose "
                "another --out, or delete this file"
            )
        sums, at = {}, 0
        for name, rows, columns, counts in fields["tensors"]:
            ends = at + 8 * rows * columns, at + 8 * (rows * columns + counts)
            sums[name] = Activation(
                np.frombuffer(values[at : ends[0]], "<f8").reshape(rows, columns).copy(),
                np.frombuffer(values[ends[0] : ends[1]], "<i8").copy(),
            )
            at = ends[1]
        return cls(path, identity, fields["done"], sums)

    def add(self, new: Mapping[str, Activation]) -> None:
        """One more sequence is done: what it has added up, nothing if all of it had been read before."""
        for name, activation in new.items():
            if name in self.sums:
                self.sums[name].sums += activation.sums
                self.sums[name].counts += activation.counts
            else:
                self.sums[name] = activation
        self.done += 1

    def write(self) -> None:
        """Raises ModelFileError where it cannot be written."""
        if not self.done:
            return
        tensors = [
            (name, *activation.sums.shape, len(activation.counts)) for name, activation in self.sums.items()
        ]
        head = {"identity": dict(self.identity), "done": self.done, "tensors": tensors}
        values = b"".join(
            activation.sums.astype("<f8").tobytes() + activation.counts.astype("<i8").tobytes()
            for activation in self.sums.values()
        )
        rest = json.dumps(head).encode() + b"\n" + values
        with replacing(self.path) as file:
            file.write(_MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def _short(value: object) -> str:
    """A value for people: a checksum by its beginning."""
    text = "unset" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
