"""`edge sweep`: convert a checkpoint to several types, evaluate and measure each, and write a report.

    DIR/NAME-bf16.gguf, .json          the base (the checkpoint in its own dtype) and its answers
    DIR/NAME-base.scores               the base's distributions, for the measurements
    DIR/NAME.imatrix                   the importance matrix, if rows to calibrate on are given
    DIR/NAME-Q4_K_M.gguf, .json        a quantization and its answers
    DIR/NAME-Q4_K_M.measure.json       what it lost on the reference answers
    DIR/report.html, report.md         the page, and its short form
    DIR/sweep.json                     the settings, and the stages that are done

GGUFs and the base's distributions are removed after their use. Started again with the same arguments, a sweep resumes
where it was, also inside an evaluation; with more types it does those too.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edge.answer.answering import DEFAULT_ANSWERING, Answering
from edge.compare.run import compare, published_model
from edge.convert import check_quant, convert
from edge.errors import ConversionError, Interrupted, ResultError
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.gguf import sha256
from edge.formats.hub import HubOptions
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.tuned import with_tuned
from edge.measure.calibrate import calibrate
from edge.measure.run import Chosen, base_scores, measure
from edge.replay.prepare import chosen_rows
from edge.replay.provenance import folder_provenance
from edge.replay.rows import Row, read_rows, rows_sha256, same_rows
from edge.replay.run import evaluate
from edge.report.build import report
from edge.report.choice import Candidate, Choice, choose
from edge.sweep_state import State
from edge.system.locks import sole_user
from edge.system.machine import forget_peak_memory, free_disk
from edge.system.outputs import check_output
from edge.system.progress import bar
from edge.system.text import size
from edge.version import __version__

__all__ = ["SweepOptions", "Swept", "sweep"]

_FLOATS = ("f32", "f16", "bf16")
# No type has more bits a weight than the number in its name and this: Q4_K_M has 4.9, more where rows do not divide.
_MORE_BITS = 1.5


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    `results`: that of the base first, then the others in the order of the types. `chosen`: the chosen file, which
    stays; None if no choice was wanted or no file fits.
    """

    page: Path
    results: tuple[Path, ...]
    choice: Choice | None
    chosen: Path | None


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep does beside converting, evaluating and measuring each type."""

    reference: str | None = None
    """What the report compares with instead of the base: a result JSON or the name of a known model."""
    calibrate_on: Path | str | None = None
    """Replay rows to make one importance matrix from, for all types."""
    same_rows: bool = False
    """Allow rows of the replay among those to calibrate on; the report says so."""
    keep: bool = False
    """Keep every GGUF; otherwise each is removed after its use."""
    budget: int | None = None
    """Choose the best file of at most so many bytes."""
    max_loss: float | None = None
    """Choose the smallest file that is 95 % sure to lose at most so many points of score."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    offline: bool = False
    """Use only the hub's cache."""
    skip_too_long: bool = False
    """Leave out rows that do not fit into the context."""
    force: bool = False
    """Replace files in the folder that another run wrote. The files of another sweep are never replaced."""


DEFAULT_OPTIONS = SweepOptions()


def check_sweep(
    quants: Sequence[str], replay: Path | str, out: Path | str, options: SweepOptions
) -> tuple[list[str], list[Row], str | None]:
    """Check what `sweep` gets, as far as that needs no checkpoint: before a download. Raises what it raises.

    Returns the names of the types, the rows, and the SHA-256 of the rows to calibrate on.
    """
    calibrated = options.calibrate_on is not None
    names = list(dict.fromkeys(check_quant(name, has_imatrix=calibrated) for name in quants))
    if not names:
        raise ConversionError("no quantization type is named: name at least one")
    rows = chosen_rows(replay, None, None)
    calibration = None
    if options.calibrate_on is not None:
        calibration = rows_sha256(read_rows(options.calibrate_on))
        if not options.same_rows and (same := same_rows(rows, options.calibrate_on)):
            raise ResultError(f"{same}; calibrate on other rows, or allow it with --same-rows")
    if options.reference is not None and not Path(options.reference).is_file():
        published_model(options.reference)
    check_output(Path(out) / "sweep.json", [replay, options.calibrate_on, options.reference])
    return names, rows, calibration


def sweep(
    source: str | Path,
    quants: Sequence[str],
    replay: Path | str,
    out: Path | str,
    options: SweepOptions = DEFAULT_OPTIONS,
    *,
    answering: Answering = DEFAULT_ANSWERING,
    loading: Loading = DEFAULT_LOADING,
    say: Callable[[str], None] | None = None,
) -> Swept:
    """Convert a checkpoint to each of `quants`, answer and measure the rows of `replay` with each, report into `out`.

    Losses and KL divergences are against the base, which is the checkpoint in its own dtype. `edge.report.choice`
    chooses a file where `options` has a budget or a maximum loss. `say` receives each stage; None is silent.

    The disk space needed is checked before the work. Raises what converting, evaluating, measuring and reporting
    raise, ResultError where `out` holds another sweep, and Interrupted with a line that says how to resume.
    """
    names, rows, calibration = check_sweep(quants, replay, out, options)
    checkpoint = open_checkpoint(source, revision=options.revision, offline=options.offline)
    if Path(out).resolve() == Path(checkpoint.folder).resolve():
        raise ResultError(f"{out}: is the checkpoint's own folder; choose another folder with --out")
    base = checkpoint.dtype.lower()
    names = [name for name in names if name != base]
    folder = Path(out)
    disk = _disk_needed(checkpoint, names, folder, options.keep)
    if say is not None:
        say(disk)
    settings: dict[str, str | int | bool | None] = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "checkpoint_sha256": folder_provenance(checkpoint.folder)["model_sha256"],
        "rows_sha256": rows_sha256(rows),
        "calibration_sha256": calibration,
        "max_tokens": answering.max_tokens,
        "constrained": answering.constrained,
        "skip_too_long": options.skip_too_long,
        "parallel": loading.parallel,
        "gpu_layers": loading.gpu_layers,
    }
    with sole_user(folder, "edge sweep"):
        state = State.open(folder / "sweep.json", settings)
        place = folder / checkpoint.name
        work = _Sweep(source, base, place, Path(replay), options, answering, loading, state, say)
        work.check_inputs(names, checkpoint.folder)
        if not options.force:
            work.check_files(names)
        try:
            return _finish(work, names, folder / "report.html")
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume") from None


def _finish(work: "_Sweep", names: Sequence[str], page: Path) -> Swept:
    """All stages, the report and the choice."""
    options = work.options
    pairs = work.run(names)
    calibrated_on = options.calibrate_on
    same = None if calibrated_on is None else same_rows(read_rows(work.replay), calibrated_on)
    results = [work.result(work.base), *(result for result, _ in pairs)]
    reported = [*names, *work.earlier(names)]
    work.state.begin_report(options.reference)
    report(
        [work.result(work.base), *map(work.result, reported), *map(work.measurement, reported)],
        page,
        options.reference or results[0],
        markdown=page.with_name("report.md"),
        plots=page.with_name("plots"),
        replay=work.replay,
        notes=[f"{same}: the figures of the quantized files can be too good."] if same else [],
        force=True,  # a sweep with more types has more results
    )
    work.state.end_report()
    choice = chosen = None
    if options.budget is not None or options.max_loss is not None:
        choice = choose(work.candidates(names), budget=options.budget, max_loss=options.max_loss)
    stay = [work.base, *names] if options.keep else [choice.quant] if choice and choice.quant else []
    work.keep(stay)
    work.remove([work.base, *names])
    if choice is not None and choice.quant is not None:
        chosen = work.converted(choice.quant)
    return Swept(page, tuple(results), choice, chosen)


@dataclass(frozen=True)
class _Sweep:
    """The stages, each done once: what `state` lists as done is not made again."""

    source: str | Path
    base: str
    place: Path  # the beginning of each file's name
    replay: Path
    options: SweepOptions
    answering: Answering
    loading: Loading
    state: State
    say: Callable[[str], None] | None

    def run(self, names: Sequence[str]) -> list[tuple[Path, Path]]:
        """The result and the measurement of each type."""
        missing = [name for name in names if not self.measured(name)]
        if missing or not self.answered(self.base):
            self.answer(self.base)
            if missing:
                self.scores()
                self.matrix()
        pairs = []
        for name in names:
            if not self.options.keep and not self.measured(name):
                self.remove(other for other in [self.base, *names] if other != name)
            pairs.append((self.answer(name), self.measure(name)))
        if not self.options.keep and self.state.of(self.base).get("read"):
            self._scores.unlink(missing_ok=True)
        return pairs

    def check_inputs(self, names: Sequence[str], checkpoint: Path) -> None:
        """Check that the sweep writes none of its inputs. Raises ResultError."""
        options, folder = self.options, self.place.parent
        outputs = [folder / "report.html", folder / "report.md", self._scores, self._named(".imatrix")]
        outputs += (folder / "plots").glob("*.png")
        for name in [self.base, *names]:
            outputs.append(self.file(name))
            outputs += [] if self.answered(name) else [self.result(name)]
            outputs += [] if self.measured(name) else [self.measurement(name)]
        for output in outputs:
            check_output(output, [self.replay, options.calibrate_on, options.reference, checkpoint])

    def check_files(self, names: Sequence[str]) -> None:
        """Check that no file that the sweep would replace or remove is of somebody else. Raises ResultError."""
        models = {name: self.file(name) for name in [self.base, *names]}
        self.state.check_models(models, self._scores, self.base)
        self.state.check_report(self.options.reference)

    def earlier(self, names: Sequence[str]) -> list[str]:
        """The other types that this sweep has measured before: the report keeps them."""
        done = [name for name in self.state.stored["stages"] if name not in names and name != self.base]
        return [name for name in done if self.measured(name)]

    def file(self, name: str) -> Path:
        return self._named(f"-{name}.gguf")

    def result(self, name: str) -> Path:
        return self._named(f"-{name}.json")

    def measurement(self, name: str) -> Path:
        return self._named(f"-{name}.measure.json")

    def answered(self, name: str) -> bool:
        return self.state.of(name).get("answered", False) and self.result(name).is_file()

    def measured(self, name: str) -> bool:
        return (
            self.answered(name)
            and self.state.of(name).get("measured", False)
            and self.measurement(name).is_file()
        )

    def converted(self, name: str) -> Path:
        """The GGUF of a type."""
        path = self.file(name)
        if path.is_file() and self.state.of(name).get("sha256") == sha256(path):
            return path
        matrix = None if name in _FLOATS else self.matrix()
        self.state.note(name, {"begun": True})
        self._say(f"{path}: converting")
        done = convert(
            self.source,
            quant=name,
            out=path,
            imatrix=matrix,
            threads=self.loading.threads,
            say=self.say,
            hub=HubOptions(self.options.revision, self.options.offline),
            force=self.options.force,
        )
        for warning in (*done.warnings, *done.template.warnings):
            self._say(f"note: {warning}")
        self.state.note(name, {"sha256": done.sha256, "n_bytes": done.n_bytes})
        return path

    def answer(self, name: str) -> Path:
        """The result of a type."""
        result = self.result(name)
        if not self.answered(name):
            model = self.converted(name)
            self._say(f"{result}: answering")
            forget_peak_memory()  # that of earlier stages
            evaluate(
                model,
                self.replay,
                result,
                skip_too_long=self.options.skip_too_long,
                answering=self.answering,
                loading=with_tuned(model, self.loading, measures=True),
                force=self.options.force,
                say=self.say,
            )
            self.state.note(name, {"answered": True})
        return result

    def scores(self) -> Path:
        """The file with the base's distributions."""
        if not self._scores.is_file():
            model = self.converted(self.base)
            self._say(f"{self._scores}: reading the base's distributions")
            self.state.note(self.base, {"read": True})
            base_scores(
                model,
                self._scores,
                replay=self.replay,
                chosen=Chosen(self.options.skip_too_long),
                loading=with_tuned(model, self._reading, measures=True),
                say=self.say,
            )
        return self._scores

    def matrix(self) -> Path | None:
        """The importance matrix of the base; None if there are no rows for it."""
        rows = self.options.calibrate_on
        if rows is None:
            return None
        path = self._named(".imatrix")
        if not (self.state.of(self.base).get("calibrated") and path.is_file()):
            model = self.converted(self.base)
            with bar("calibrating", self.say, unit="tokens") as watch:
                calibrate(
                    model,
                    path,
                    rows=rows,
                    threads=self.loading.threads,
                    gpu_layers=self.loading.gpu_layers or 0,
                    force=self.options.force,
                    progress=watch,
                )
            self.state.note(self.base, {"calibrated": True})
        return path

    def measure(self, name: str) -> Path:
        """The measurement of a type against the base."""
        found = self.measurement(name)
        if not self.measured(name):
            scores, model = self.scores(), self.converted(name)
            self._say(f"{found}: measuring")
            measure(
                model,
                found,
                base=scores,
                replay=self.replay,
                chosen=Chosen(self.options.skip_too_long),
                loading=with_tuned(model, self._reading, measures=True),
                force=self.options.force,
                say=self.say,
            )
            self.state.note(name, {"measured": True})
        return found

    def candidates(self, names: Sequence[str]) -> list[Candidate]:
        """The figures by which a file is chosen."""
        found = []
        for name, part in zip(
            names, compare(list(map(self.result, names)), self.result(self.base)).parts, strict=True
        ):
            score = next(figure for figure in part.figures if figure.name == "score")
            kl = json.loads(self.measurement(name).read_text(encoding="utf-8"))["aggregate"]["kl_mean"]
            found.append(
                Candidate(
                    name,
                    self.state.of(name)["n_bytes"],
                    score.ours,
                    -(score.difference or 0.0),
                    None if score.high is None else -score.high,
                    None if score.low is None else -score.low,
                    kl,
                )
            )
        return found

    @property
    def _scores(self) -> Path:
        return self._named("-base.scores")

    def _named(self, ending: str) -> Path:
        return self.place.with_name(self.place.name + ending)

    @property
    def _reading(self) -> Loading:
        """The options of a pass that only reads."""
        return Loading(threads=self.loading.threads, gpu_layers=self.loading.gpu_layers)

    def _say(self, text: str) -> None:
        if self.say is not None:
            self.say(text)

    def keep(self, names: Iterable[str]) -> None:
        """Note that the GGUFs of these types are for the user, and name those that an earlier sweep left."""
        for name in names:
            if not self.state.of(name).get("kept"):
                self.state.note(name, {"kept": True})
        for name in sorted(self.state.stored["stages"].keys() - set(names)):
            if self.state.of(name).get("kept") and self.file(name).is_file():
                self._say(f"{self.file(name)}: stays; an earlier sweep chose or kept it")

    def remove(self, names: Iterable[str]) -> None:
        """Remove the GGUFs of these types that the sweep wrote, but none that was chosen or kept."""
        for name in names:
            if self.state.removable(name, self.file(name)):
                self.file(name).unlink()


def _disk_needed(checkpoint: Checkpoint, names: Sequence[str], folder: Path, keep: bool) -> str:
    """The maximum disk space of a sweep, in one line. Raises ConversionError if there is less."""
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
        raise ConversionError(
            f"{folder}: {size(free)} free on this disk, about {size(needed)} needed for the GGUFs; choose another --out"
        )
    return told
