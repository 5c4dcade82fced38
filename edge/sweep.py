"""`edge sweep`: several quantizations of one checkpoint, each converted, evaluated and measured, and a report of them.

    DIR/NAME-bf16.gguf, .json          the base, the checkpoint in its own dtype, and its answers
    DIR/NAME-base.scores               what measuring needs of the base
    DIR/NAME.imatrix                   the importance matrix, where rows to calibrate on were given
    DIR/NAME-Q4_K_M.gguf, .json        a quantization and its answers
    DIR/NAME-Q4_K_M.measure.json       what it lost on the reference answers
    DIR/report.html, report.md         the page, and in short
    DIR/sweep.json                     what is done, and of what

GGUFs and the base's scores are removed after their use. Started again with the same arguments a sweep goes on where it
was, inside an evaluation too; with more types it does those.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge.compare.intervals import LEAST_TASKS
from edge.compare.run import compare
from edge.convert import check_quant, convert
from edge.errors import ConversionError, ResultError
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.gguf import sha256
from edge.measure.calibrate import calibrate
from edge.measure.run import base_scores, measure
from edge.replay.journal import differences
from edge.replay.provenance import folder_provenance
from edge.replay.rows import read_rows, rows_sha256
from edge.replay.run import evaluate
from edge.report.build import report
from edge.report.choice import Candidate, Choice, choose
from edge.report.contents import find_reference
from edge.system.machine import forget_peak_memory, free_disk
from edge.system.places import check_place, write_json
from edge.system.progress import bar
from edge.system.text import size
from edge.version import __version__

_FLOATS = ("f32", "f16", "bf16")
# No type has more bits a weight than the number in its name and this: Q4_K_M has 4.9, more where rows do not divide.
_MORE_BITS = 1.5


@dataclass(frozen=True)
class Swept:
    """A finished sweep. `results`: the base's first, then the others' in the order given. `chosen`: the chosen file,
    which stays; None where no choice was asked for or none fits.
    """

    page: Path
    results: tuple[Path, ...]
    choice: Choice | None
    chosen: Path | None


def sweep(
    source: str | Path,
    quants: Sequence[str],
    replay: Path | str,
    out: Path | str,
    *,
    reference: str | None = None,
    calibrate_on: Path | str | None = None,
    keep: bool = False,
    budget: int | None = None,
    max_loss: float | None = None,
    revision: str | None = None,
    offline: bool = False,
    max_tokens: int = 1024,
    constrained: bool = True,
    skip_too_long: bool = False,
    parallel: int | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    quiet: bool = True,
) -> Swept:
    """Convert a checkpoint to each of `quants`, answer and measure `replay`'s rows with each, and report into `out`.

    Losses and KL divergences are against the base, the checkpoint in its own dtype. `reference`: what the report
    compares with instead, a result JSON or a known model's name. `calibrate_on`: replay rows to make an importance
    matrix from, once, for all types. `budget` (bytes) and `max_loss` (points of score) choose a file as
    `edge.report.choice.choose` does. `keep` keeps every GGUF.

    The disk space needed is said before anything is done. Raises what converting, evaluating, measuring and reporting
    raise, and ResultError where `out` holds a sweep of something else; KeyboardInterrupt with a line that says how to
    go on.
    """
    names = list(dict.fromkeys(check_quant(name, has_imatrix=calibrate_on is not None) for name in quants))
    if not names:
        raise ConversionError("no type to convert to: name at least one")
    rows = read_rows(replay)
    calibration = None if calibrate_on is None else rows_sha256(read_rows(calibrate_on))
    if reference is not None:
        find_reference(reference)
    checkpoint = open_checkpoint(source, revision=revision, offline=offline)
    base = checkpoint.dtype.lower()
    names = [name for name in names if name != base]
    folder = Path(out)
    check_place(folder / "sweep.json")
    told = _disk_needed(checkpoint, names, folder, keep)
    if not quiet:
        print(told, file=sys.stderr)
    state = _State.open(
        folder / "sweep.json",
        {
            "edge": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "checkpoint_sha256": folder_provenance(checkpoint.folder)["model_sha256"],
            "rows_sha256": rows_sha256(rows),
            "calibration_sha256": calibration,
            "max_tokens": max_tokens,
            "constrained": constrained,
            "skip_too_long": skip_too_long,
            "parallel": parallel,
            "gpu_layers": gpu_layers,
        },
    )
    work = _Sweep(
        source,
        base,
        folder / checkpoint.name,
        Path(replay),
        None if calibrate_on is None else Path(calibrate_on),
        state,
        {"revision": revision, "offline": offline},
        {"max_tokens": max_tokens, "constrained": constrained, "parallel": parallel},
        {"skip_too_long": skip_too_long, "threads": threads, "gpu_layers": gpu_layers, "quiet": quiet},
    )
    try:
        pairs = work.run(names, keep)
        results = [work.result(base), *(result for result, _ in pairs)]
        measurements = [measurement for _, measurement in pairs]
        page = folder / "report.html"
        report(
            [*results, *measurements],
            page,
            reference or results[0],
            markdown=folder / "report.md",
            plots=folder / "plots",
            replay=replay,
        )
        choice = chosen = None
        if budget is not None or max_loss is not None:
            choice = choose(work.candidates(names), budget=budget, max_loss=max_loss)
            chosen = None if choice.quant is None else work.converted(choice.quant)
        return Swept(page, tuple(results), choice, chosen)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "interrupted; run the same command again to go on") from None


@dataclass(frozen=True)
class _Sweep:
    """The stages, each done once: what is there already, as `state` tells, is not made again."""

    source: str | Path
    base: str
    place: Path  # what each file's name begins with
    replay: Path
    calibrate_on: Path | None
    state: "_State"
    fetching: dict[str, Any]
    answering: dict[str, Any]
    everywhere: dict[str, Any]

    def run(self, names: Sequence[str], keep: bool) -> list[tuple[Path, Path]]:
        """Each type's result and measurement."""
        missing = [name for name in names if not self.measured(name)]
        if missing or not self.answered(self.base):
            self.answer(self.base)
            if missing:
                self.scores()
                self.matrix()
        pairs = []
        for name in names:
            if not keep:
                self._remove(*(self.file(other) for other in [self.base, *names] if other != name))
            pairs.append((self.answer(name), self.measure(name)))
        if not keep:
            self._remove(*(self.file(name) for name in [self.base, *names]), self._scores)
        return pairs

    def file(self, name: str) -> Path:
        return self._named(f"-{name}.gguf")

    def result(self, name: str) -> Path:
        return self._named(f"-{name}.json")

    def measurement(self, name: str) -> Path:
        return self._named(f"-{name}.measure.json")

    def answered(self, name: str) -> bool:
        return self.state.has(name, "answered") and self.result(name).is_file()

    def measured(self, name: str) -> bool:
        return self.answered(name) and self.state.has(name, "measured") and self.measurement(name).is_file()

    def converted(self, name: str) -> Path:
        """The GGUF of a type."""
        path = self.file(name)
        if path.is_file() and self.state.has(name, "sha256") == sha256(path):
            return path
        matrix = None if name in _FLOATS else self.matrix()
        self._say(f"{path}: converting")
        done = convert(
            self.source,
            quant=name,
            out=path,
            imatrix=matrix,
            threads=self.everywhere["threads"],
            say=None if self.everywhere["quiet"] else self._say,
            **self.fetching,
        )
        for warning in done.warnings:
            self._say(f"note: {warning}")
        self.state.note(name, sha256=done.sha256, n_bytes=done.n_bytes)
        return path

    def answer(self, name: str) -> Path:
        """The result of a type."""
        result = self.result(name)
        if not self.answered(name):
            model = self.converted(name)
            self._say(f"{result}: answering")
            forget_peak_memory()  # of what this process did before
            evaluate(model, self.replay, result, **self.answering, **self.everywhere)
            self.state.note(name, answered=True)
        return result

    def scores(self) -> Path:
        """What measuring needs of the base."""
        if not self._scores.is_file():
            model = self.converted(self.base)
            self._say(f"{self._scores}: reading the base's distributions")
            base_scores(model, self._scores, replay=self.replay, **self.everywhere)
        return self._scores

    def matrix(self) -> Path | None:
        """The importance matrix, of the base; None where there are no rows for it."""
        if self.calibrate_on is None:
            return None
        path = self._named(".imatrix")
        if not (self.state.has(self.base, "calibrated") and path.is_file()):
            model = self.converted(self.base)
            with bar("calibrating", show=not self.everywhere["quiet"], unit="tokens") as watch:
                calibrate(
                    model,
                    path,
                    rows=self.calibrate_on,
                    threads=self.everywhere["threads"],
                    gpu_layers=self.everywhere["gpu_layers"] or 0,
                    progress=watch,
                )
            self.state.note(self.base, calibrated=True)
        return path

    def measure(self, name: str) -> Path:
        """The measurement of a type against the base."""
        found = self.measurement(name)
        if not self.measured(name):
            scores, model = self.scores(), self.converted(name)
            self._say(f"{found}: measuring")
            measure(model, found, base=scores, replay=self.replay, **self.everywhere)
            self.state.note(name, measured=True)
        return found

    def candidates(self, names: Sequence[str]) -> list[Candidate]:
        """What a file is chosen by."""
        found = []
        for name, part in zip(
            names, compare(list(map(self.result, names)), self.result(self.base)).parts, strict=True
        ):
            score = next(figure for figure in part.figures if figure.name == "score")
            enough = part.tasks >= LEAST_TASKS
            kl = json.loads(self.measurement(name).read_text(encoding="utf-8"))["aggregate"]["kl_mean"]
            found.append(
                Candidate(
                    name,
                    self.state.has(name, "n_bytes"),
                    score.ours,
                    -(score.difference or 0.0),
                    -score.high if enough and score.high is not None else None,
                    -score.low if enough and score.low is not None else None,
                    kl,
                )
            )
        return found

    @property
    def _scores(self) -> Path:
        return self._named("-base.scores")

    def _named(self, ending: str) -> Path:
        return self.place.with_name(self.place.name + ending)

    def _say(self, text: str) -> None:
        if not self.everywhere["quiet"]:
            print(text, file=sys.stderr)

    def _remove(self, *paths: Path) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


@dataclass
class _State:
    """What is done of a sweep, on disk: of each type, by its name, what is known of its stages."""

    path: Path
    identity: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any]) -> "_State":
        """Go on with the state at `path`, or begin one. Raises ResultError: it is of another sweep, or damaged."""
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            state = cls(path, identity, dict(before["stages"]))
            changes = differences(dict(before["sweep"]), identity)
        except FileNotFoundError:
            state, changes = cls(path, identity), ""
            state.note()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ResultError(
                f"{path}: is not the state of a sweep ({' '.join(str(error).split())[:80]}): choose another --out"
            ) from None
        if changes:
            raise ResultError(
                f"{path}: holds another sweep ({changes}): run it as before to go on, or choose another --out"
            )
        return state

    def has(self, name: str, what: str) -> Any:
        return self.stages.get(name, {}).get(what)

    def note(self, name: str | None = None, **what: Any) -> None:
        if name is not None:
            self.stages.setdefault(name, {}).update(what)
        write_json(self.path, {"sweep": self.identity, "stages": self.stages})


def _disk_needed(checkpoint: Checkpoint, names: Sequence[str], folder: Path, keep: bool) -> str:
    """What a sweep takes of the disk at most, in one line. Raises ConversionError where there is less."""
    weights = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    bits = {"F32": 32, "F16": 16, "BF16": 16}[checkpoint.dtype]
    files = [weights]
    for name in names:
        number = re.search(r"\d+", name)
        assert number is not None, name
        files.append(round(weights * (int(number[0]) + (0 if name in _FLOATS else _MORE_BITS)) / bits))
    needed = sum(files) if keep else max(files)
    free = free_disk(folder)
    told = (
        f"disk: at most about {size(needed)} of {size(free)} free for the GGUFs"
        f"{'' if keep else ', each removed after its use'}; all {len(files)} together are about {size(sum(files))}"
    )
    if needed > free:
        raise ConversionError(f"{folder}: {told.removeprefix('disk: ')}: choose another --out")
    return told
