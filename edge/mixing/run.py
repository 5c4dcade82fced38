"""`edge convert --quant auto`: the file of a given size whose predictions are nearest to the model's own.

Beside the output OUT.gguf: OUT.recipe, its types as lines. In the folder NAME-costs-HASH beside it: the importance
matrix, and costs.json with all measurements. There too, while the search runs, the unquantized model and its
distributions. An interrupted search resumes; a search for another size in the same folder measures only what is new.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edge.conversion.output import output_place
from edge.convert import Converted, TensorTypes, convert
from edge.errors import ConversionError, EdgeError, Interrupted
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.gguf import ModelFile, read_model_file
from edge.formats.hub import NEWEST, HubOptions
from edge.formats.imatrix import read_imatrix
from edge.llama.loading import Loading
from edge.llama.types import type_name
from edge.measure.calibrate import calibrate
from edge.measure.experts import RARE
from edge.measure.passes import Settings
from edge.measure.positions import rows_plan
from edge.measure.run import base_scores, measure
from edge.mixing.files import Files
from edge.mixing.groups import make_groups
from edge.mixing.probe import Probe, Values, file_divergence
from edge.mixing.search import Search, Types, cost_table, most_metadata, recipe_of, weight_errors, with_types
from edge.mixing.sizes import Sizes, standard_types
from edge.mixing.state import Costs
from edge.replay.provenance import folder_provenance
from edge.replay.rows import read_rows, rows_sha256, same_rows
from edge.system.files import whole_file, write_all
from edge.system.hashes import text_sha256
from edge.system.locks import sole_user
from edge.system.machine import free_disk
from edge.system.progress import bar
from edge.system.text import counted, size
from edge.version import __version__

__all__ = ["Mixed", "Target", "mix"]

STANDARD = "Q2_K Q3_K_S Q3_K_M Q3_K_L IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0".split()
"""llama.cpp's types that a choice is compared with: the largest that is not larger."""
_MOST_BITS = 16.0


@dataclass(frozen=True)
class Target:
    """The size of the file: one of `n_bytes` of the whole file, `bits` per weight, or the file of the type `like`."""

    n_bytes: int | None = None
    bits: float | None = None
    like: str | None = None

    def check(self) -> None:
        """Raises ConversionError if not exactly one is given, or if it is out of range."""
        if sum(each is not None for each in (self.n_bytes, self.bits, self.like)) != 1:
            raise ConversionError("--quant auto needs one of --size, --bpw and --like", option="--quant")
        if self.bits is not None and not 1 <= self.bits <= _MOST_BITS:
            raise ConversionError(f"{self.bits:g} bits per weight: give 1 to {_MOST_BITS:g}", option="--bpw")
        if self.like is not None and type_name(self.like) not in STANDARD:
            raise ConversionError(f"{self.like}: give one of {', '.join(STANDARD)}", option="--like")


@dataclass(frozen=True)
class Mixed:
    """A finished search. Divergences are means in nats over the calibration rows.

    `expected`: the sum of the costs of the groups alone. `together`: measured in memory with all of them. `real`: of
    the file. `standard`: the name, size and `together` of llama.cpp's type to compare with; None if none is so small.
    `measured`: the `real` of the file on other rows, and its 95 % interval, if there were any.
    """

    converted: Converted
    recipe: Path
    matrix: Path
    target: int
    expected: float
    together: float
    real: float
    standard: tuple[str, int, float] | None
    measured: tuple[float, tuple[float, float] | None] | None
    passes: int
    seconds: float

    def to_text(self, source: str) -> str:
        """What was found, for people. `source`: the checkpoint as it was named, for the command that repeats it."""
        difference = f"{100 * (self.real / self.together - 1):+.1f} %" if self.together else "no"
        lines = [
            f"mean KL divergence on the calibration rows: {self.real:.3g} nats a token in the file; "
            f"{self.together:.3g} in memory (difference {difference}), {self.expected:.3g} as the sum of the costs",
        ]
        if self.standard is not None:
            name, n_bytes, kl = self.standard
            lines.append(
                f"{name} with the same matrix has {size(n_bytes)} and {kl:.3g} in memory: "
                f"this file has {self.together / kl:.2f} of that"
            )
        if self.measured is not None:
            kl, bounds = self.measured
            within = "" if bounds is None else f" (95 % interval {bounds[0]:.3g} to {bounds[1]:.3g})"
            lines.append(f"on the rows of --measure: {kl:.3g}{within}")
        lines += [
            f"{counted(self.passes, 'measurement')} in {self.seconds:.0f} s; the types: {self.recipe}",
            f"the same file again: edge convert {source} --recipe {self.recipe} --imatrix {self.matrix} "
            f"--quant {self.converted.quant}",
        ]
        return "\n".join(lines)


def check_mix(target: Target, rows: str | Path, measure_on: str | Path | None, out: str | Path | None) -> str:
    """Check what `mix` gets, as far as that needs no checkpoint. Returns the SHA-256 of the rows."""
    target.check()
    read = read_rows(rows)
    if measure_on is not None:
        read_rows(measure_on)
        if same := same_rows(read, measure_on):
            raise ConversionError(f"{same}; measure on rows that the search does not see", option="--measure")
    output_place(out, "model-auto.gguf")
    return rows_sha256(read)


def mix(
    source: str | Path,
    target: Target,
    rows: str | Path,
    *,
    out: str | Path | None = None,
    measure_on: str | Path | None = None,
    hub: HubOptions = NEWEST,
    force: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Mixed:
    """Convert a checkpoint to the file of a size that diverges least from it on calibration `rows`.

    `rows`: replay rows; also the importance matrix is made from them. `measure_on`: other rows, on which the finished
    file is measured; the measurement JSON is OUT.measure.json. `out`, `hub`, `force`, `threads`, `say`: as in convert.

    Raises what converting, calibrating and measuring raise, and Interrupted with a line that says how to resume.
    """
    begin = time.monotonic()
    calibration = check_mix(target, rows, measure_on, out)
    checkpoint = open_checkpoint(source, revision=hub.revision, offline=hub.offline)
    name = f"{checkpoint.name}-auto-{_shown(target)}"
    place, _ = output_place(out, f"{name}.gguf")
    settings: dict[str, str | int | None] = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "checkpoint_sha256": folder_provenance(checkpoint.folder)["model_sha256"],
        "rows_sha256": calibration,
    }
    key = str(text_sha256(repr(sorted(settings.items()))))[:8]
    files = Files(place, place.parent / f"{checkpoint.name}-costs-{key}", _shown(target))
    files.check([rows, measure_on, checkpoint.folder])
    if not force:
        files.check_replaced(Costs.open(files.costs, settings), measures=measure_on is not None)
    work = _Work(source, checkpoint, target, Path(rows), files, hub, threads, say)
    work.check_disk()
    with sole_user(files.folder, "edge convert --quant auto", error=ConversionError):
        try:
            return work.run(settings, None if measure_on is None else Path(measure_on), begin)
        except Interrupted:
            raise
        except EdgeError:  # the measurements stay, the large files do not
            files.remove_large()
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume") from None


def _shown(target: Target) -> str:
    if target.like is not None:
        return type_name(target.like)
    return f"{target.bits:g}bpw" if target.bits is not None else size(target.n_bytes or 0).replace(" ", "")


@dataclass(frozen=True)
class _Work:
    """The stages of a search."""

    source: str | Path
    checkpoint: Checkpoint
    target: Target
    rows: Path
    files: Files
    hub: HubOptions
    threads: int | None
    out_say: Callable[[str], None] | None

    def run(self, settings: Mapping[str, str | int | None], measure_on: Path | None, begin: float) -> Mixed:
        files, reading = self.files, Settings.checked(Loading(threads=self.threads))
        costs = Costs.open(files.costs, settings)
        file = self._base()
        plan = rows_plan(file, self.rows)
        one_pass = self._scores()
        matrix = read_imatrix(self._matrix())
        sizes = Sizes.of(files.base, matrix.metadata(str(files.matrix)))
        changed = standard_types(files.base, "Q8_0")
        groups = tuple(make_groups(tensor for tensor in sizes.tensors if tensor.name in changed))
        unknown = sum(not costs.alone(group.name) for group in groups)
        self._say(
            f"{len(groups)} groups, {plan.tokens:,} tokens to read for each of about "
            f"{unknown + len(groups) // 2 + 10} measurements"
            + (f" of about {one_pass:.0f} s" if one_pass else "")
        )
        values = Values(files.base, files.matrix, RARE)
        for group in groups:
            if group.name not in costs.stored["errors"]:
                costs.add_errors(group.name, weight_errors(group, values))
        with Probe(file, values, plan, files.scores, reading) as probe:
            search = Search(groups, sizes, costs, probe.divergence, self.checkpoint.dtype.lower(), self._say)
            found = _searched(search, self.target, files.base)
            passes = probe.passes
        converted = self._write(search, found, costs)
        real = file_divergence(files.out, plan, files.scores, reading)
        measured = None if measure_on is None else self._measured(measure_on)
        files.remove_large()
        return Mixed(
            converted,
            files.recipe,
            files.matrix,
            found.target,
            found.expected,
            found.together,
            real,
            found.standard,
            measured,
            passes,
            time.monotonic() - begin,
        )

    def check_disk(self) -> None:
        weights = sum(tensor.n_bytes for tensor in self.checkpoint.tensors.values())
        free = free_disk(self.files.folder)
        told = (
            f"disk: about {size(2 * weights)} of {size(free)} free, for the unquantized model and the output; "
            f"memory: about {size(1.1 * weights)}"
        )
        self._say(told)
        if 2 * weights > free:
            raise ConversionError(
                f"{self.files.out.parent}: {size(free)} free on this disk, about {size(2 * weights)} needed for the "
                "unquantized model and the output; choose another --out"
            )

    def _base(self) -> ModelFile:
        if not self.files.base.is_file():
            convert(
                self.source,
                quant=self.checkpoint.dtype,
                out=self.files.base,
                threads=self.threads,
                hub=self.hub,
                say=self.out_say,
            )
        return read_model_file(self.files.base)

    def _scores(self) -> float:
        """The seconds of a pass; 0 if the distributions were there."""
        if self.files.scores.is_file():
            return 0.0
        begin = time.monotonic()
        loading = Loading(threads=self.threads)
        base_scores(self.files.base, self.files.scores, replay=self.rows, loading=loading, say=self.out_say)
        return time.monotonic() - begin

    def _matrix(self) -> Path:
        if not self.files.matrix.is_file():
            with bar("calibrating", self.out_say, unit="tokens") as watch:
                calibrate(
                    self.files.base, self.files.matrix, rows=self.rows, threads=self.threads, progress=watch
                )
        return self.files.matrix

    def _write(self, search: Search, found: "_Found", costs: Costs) -> Converted:
        """The file, and its recipe. Raises ConversionError if it is larger than the target."""
        recipe = recipe_of(search.groups, found.types, found.table)
        costs.add_output(self.files.out.name, self.files.size, recipe.text)
        converted = convert(
            self.source,
            quant=found.quant,
            out=self.files.out,
            imatrix=self.files.matrix,
            tensor_types=TensorTypes(recipe=recipe),
            hub=self.hub,
            force=True,  # checked before the search
            threads=self.threads,
            say=self.out_say,
        )
        if converted.n_bytes > found.target:
            raise ConversionError(
                f"{self.files.out}: has {converted.n_bytes:,} bytes, not at most {found.target:,}: report this"
            )
        with whole_file(self.files.recipe) as (_, descriptor):
            write_all(descriptor, recipe.text.encode())
        return converted

    def _measured(self, rows: Path) -> tuple[float, tuple[float, float] | None]:
        out = self.files.out
        result = measure(
            out,
            self.files.measured,
            base=self.files.base,
            replay=rows,
            loading=Loading(threads=self.threads),
            force=True,  # checked before the search
            say=self.out_say,
        )
        low, high = result["intervals"].get("kl_mean", (None, None))
        bounds = None if low is None or high is None else (low, high)
        return result["aggregate"]["kl_mean"], bounds

    def _say(self, text: str) -> None:
        if self.out_say is not None:
            self.out_say(text)


@dataclass(frozen=True)
class _Found:
    """The choice: `quant` is what the metadata's file type says, that of the nearest standard type."""

    types: Types
    table: dict[str, object]
    expected: float
    together: float
    target: int
    quant: str
    standard: tuple[str, int, float] | None


def _searched(search: Search, target: Target, base: Path) -> _Found:
    """The best choice for a target, after all measurements."""
    sizes = search.sizes
    standard = {quant: standard_types(base, quant) for quant in STANDARD}
    whole = {quant: sizes.before() + sizes.data(types) for quant, types in standard.items()}
    before = sizes.before(most_metadata(search.groups))
    if target.like is not None:
        n_bytes = whole[type_name(target.like)]
    elif target.bits is not None:
        n_bytes = before + int(target.bits * sizes.n_params / 8)
    else:
        n_bytes = target.n_bytes or 0
    room = n_bytes - before
    search.begin(8 * room / sizes.n_params)
    chosen = search.refine(room)
    best, together = chosen, search.of_choice(with_types(chosen))
    corrected = search.choose(room, search.factors(with_types(chosen), chosen))
    if (other := search.of_choice(with_types(corrected))) < together:
        best, together = corrected, other
    quant = max(
        (each for each in STANDARD if whole[each] <= n_bytes), key=lambda each: whole[each], default=None
    )
    compared = None
    if quant is not None:
        kl = search.together(standard[quant], {"standard": quant})
        compared = (quant, whole[quant], kl)
    best = search.plain(best)
    return _Found(
        with_types(best),
        cost_table(best, together),
        sum(option.cost for option in best.values()),
        together,
        n_bytes,
        quant or STANDARD[0],
        compared,
    )
