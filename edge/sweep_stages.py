"""The stages of a sweep for each type: convert, answer, measure. What sweep.json lists as done is not made again."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.answer.answering import Answering
from edge.compare.run import compare
from edge.convert import convert
from edge.formats.gguf import sha256
from edge.formats.hub import HubOptions
from edge.llama.loading import Loading
from edge.llama.tuned import with_tuned
from edge.measure.calibrate import calibrate
from edge.measure.run import Chosen, base_scores, measure
from edge.mixing.run import Target, mix
from edge.replay.run import evaluate
from edge.report.choice import Candidate
from edge.runner import reading_layers
from edge.sweep_state import State
from edge.system.machine import forget_peak_memory
from edge.system.outputs import check_output
from edge.system.progress import bar

FLOATS = ("f32", "f16", "bf16")
AUTO = "auto-"
"""The beginning of the name of a file whose types `edge.mixing` chooses; its end is the type that says the size."""


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep does beside converting, evaluating and measuring each type."""

    reference: str | None = None
    """What the report compares with instead of the base: a result JSON or the name of a known model."""
    calibrate_on: Path | str | None = None
    """Replay rows to make one importance matrix from, for all types."""
    same_rows: bool = False
    """Allow rows of the replay among those to calibrate on; the report says so."""
    frontier: bool = False
    """For each type, make the best file of its size too (`edge.mixing`), from the rows to calibrate on."""
    keep: bool = False
    """Keep every GGUF; otherwise each is removed after its use."""
    budget: int | None = None
    """Choose the best file of at most so many bytes."""
    max_loss: float | None = None
    """Choose the smallest file whose loss of score is at most this number of points, with 95 % confidence."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    offline: bool = False
    """Use only the hub's cache."""
    skip_too_long: bool = False
    """Leave out rows that do not fit into the context."""
    force: bool = False
    """Replace files in the folder that another run wrote. The files of another sweep are never replaced."""


@dataclass(frozen=True)
class Stages:
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
        for i, name in enumerate(names):
            if not self.options.keep and not self.measured(name):
                left = any(each.startswith(AUTO) for each in names[i:])  # a search needs the base
                done = [each for each in names if each != name and not each.startswith(AUTO)]
                self.remove([*done, *([] if left or name == self.base else [self.base])])
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
            outputs += [self.file(name).with_suffix(".recipe")] if name.startswith(AUTO) else []
            outputs += [] if self.answered(name) else [self.result(name)]
            outputs += [] if self.measured(name) else [self.measurement(name)]
        for output in outputs:
            check_output(output, [self.replay, options.calibrate_on, options.reference, checkpoint])

    def check_files(self, names: Sequence[str]) -> None:
        """Check that the sweep would replace and remove only its own files. Raises ResultError."""
        models = {name: self.file(name) for name in [self.base, *names]}
        self.state.check_models(models, self._scores, self.base)
        self.state.check_report(self.options.reference)

    def earlier(self, names: Sequence[str]) -> list[str]:
        """The other types that this sweep has measured before: the report keeps them."""
        done = [name for name in self.state.stored["stages"] if name not in names and name != self.base]
        return [name for name in done if self.measured(name)]

    def file(self, name: str) -> Path:
        """Where the GGUF of a type is, while it exists."""
        return self._named(f"-{name}.gguf")

    def result(self, name: str) -> Path:
        """Where the result JSON of a type is."""
        return self._named(f"-{name}.json")

    def measurement(self, name: str) -> Path:
        """Where the measurement JSON of a type is."""
        return self._named(f"-{name}.measure.json")

    def answered(self, name: str) -> bool:
        """Whether the rows are answered with this type."""
        return self.state.of(name).get("answered", False) and self.result(name).is_file()

    def measured(self, name: str) -> bool:
        """Whether this type is also measured against the base."""
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
        if name.startswith(AUTO):
            return self._mixed(name)
        matrix = None if name in FLOATS else self.matrix()
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

    def _mixed(self, name: str) -> Path:
        """The best file of a type's size. The search has the rows to calibrate on, not those of the replay."""
        options, path = self.options, self.file(name)
        assert options.calibrate_on is not None
        base = self.converted(self.base)
        self.state.note(name, {"begun": True})
        self._say(f"{path}: searching")
        found = mix(
            self.source,
            Target(like=name.removeprefix(AUTO)),
            options.calibrate_on,
            out=path,
            base=base,
            hub=HubOptions(options.revision, options.offline),
            force=options.force,
            threads=self.loading.threads,
            say=self.say,
        )
        for line in found.to_text(str(self.source)).splitlines():
            self._say(line)
        self.state.note(name, {"sha256": found.converted.sha256, "n_bytes": found.converted.n_bytes})
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
                loading=self._reading(model),
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
                    loading=self._reading(model),
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
                loading=self._reading(model),
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
            kl = self.divergence(name)[0]
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

    def divergence(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """The mean KL divergence of a type's file from the base in nats, and its 95 % interval if there is one."""
        measured = json.loads(self.measurement(name).read_text(encoding="utf-8"))
        bounds = measured["intervals"].get("kl_mean")
        return measured["aggregate"]["kl_mean"], None if bounds is None else tuple(bounds)

    @property
    def _scores(self) -> Path:
        return self._named("-base.scores")

    def _named(self, ending: str) -> Path:
        return self.place.with_name(self.place.name + ending)

    def _reading(self, model: Path) -> Loading:
        """The options of a pass that only reads: threads and placement."""
        given = self.loading
        loading = with_tuned(
            model, Loading(given.gpu_layers, given.threads, spread=given.spread), measures=True
        )
        return replace(loading, gpu_layers=reading_layers(loading, model))

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
