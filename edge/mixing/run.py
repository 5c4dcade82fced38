"""`edge convert --quant auto`: the file of a given size whose predictions are nearest to the model's own.

Beside the output OUT.gguf: OUT.recipe, its types as lines. In the folder NAME-costs-HASH beside it: the importance
matrix, and costs.json with all measurements. There too, while the search runs, the unquantized model and its
distributions. An interrupted search resumes; a search for another size in the same folder measures only what is new.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from edge.conversion.output import output_place
from edge.conversion.recipe import Recipe
from edge.convert import Converted, TensorTypes, convert
from edge.errors import ConversionError, EdgeError, Interrupted
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.formats.gguf import (
    RECIPE,
    RECIPE_COSTS,
    ModelFile,
    read_metadata,
    read_model_file,
    recall,
    remember,
)
from edge.formats.hub import NEWEST, HubOptions
from edge.formats.imatrix import read_imatrix
from edge.llama import ggml
from edge.llama.loading import Loading
from edge.llama.types import type_name
from edge.measure.calibrate import calibrate
from edge.measure.experts import RARE
from edge.measure.passes import Settings
from edge.measure.positions import rows_plan
from edge.measure.run import base_scores, measure
from edge.mixing.groups import Group, make_groups
from edge.mixing.outcome import Mixed
from edge.mixing.probe import UNCERTAIN, Probe, Values, file_divergences, uncertain_rows
from edge.mixing.rivals import Divergences, Measure, Rival, Rivals, better_rival
from edge.mixing.search import TYPES, Search, cost_table, most_metadata, recipe_of, weight_errors, with_types
from edge.mixing.sizes import Sizes, standard_types
from edge.mixing.speed import Speeds, checked_types
from edge.mixing.state import Costs, StoredChoice
from edge.replay.provenance import folder_provenance
from edge.replay.rows import read_rows, rows_sha256, same_rows
from edge.system.files import whole_file, write_all
from edge.system.hashes import text_sha256
from edge.system.locks import sole_user
from edge.system.machine import free_disk
from edge.system.outputs import Run, check_output, check_replaced
from edge.system.progress import bar
from edge.system.text import size
from edge.version import __version__

__all__ = ["Mixed", "Target", "mix"]

STANDARD = "Q2_K Q3_K_S Q3_K_M Q3_K_L IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0".split()
"""llama.cpp's types that a choice is compared with: the largest that is not larger."""
_MOST_SPEED = 10.0
_MOST_BITS, _MOST_BYTES = 16.0, 1 << 50
_SEARCH = "search"  # what is remembered of an output: the search that wrote it


@dataclass(frozen=True)
class Target:
    """The size of the file: one of `n_bytes` of the whole file, `bits` per weight, or the file of the type `like`.

    `speed`: the least share of the tokens a second of llama.cpp's type of this size, as the products of their types
    take time on this machine; None if it does not count. `exclude`: types, or their beginnings, that no tensor gets.
    """

    n_bytes: int | None = None
    bits: float | None = None
    like: str | None = None
    speed: float | None = None
    exclude: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The size in words: Q4_K_M, 4.6bpw or 5150000000 bytes; then what else counts."""
        size = f"{self.bits:g}bpw" if self.bits is not None else f"{self.n_bytes} bytes"
        if self.like is not None:
            size = type_name(self.like)
        fast = [] if self.speed is None else [f"speed {self.speed:g}"]
        without = [] if not self.exclude else [f"without {' '.join(self.exclude)}"]
        return ", ".join([size, *fast, *without])

    def check(self) -> None:
        """Raises ConversionError if not exactly one is given, or if it is out of range."""
        if sum(each is not None for each in (self.n_bytes, self.bits, self.like)) != 1:
            raise ConversionError("--quant auto needs one of --size, --bpw and --like", option="--quant")
        if self.n_bytes is not None and not 1 <= self.n_bytes <= _MOST_BYTES:
            raise ConversionError(f"{self.n_bytes:,} bytes: give a size such as 5.15GB", option="--size")
        if self.bits is not None and not 1 <= self.bits <= _MOST_BITS:
            raise ConversionError(f"{self.bits:g} bits per weight: give 1 to {_MOST_BITS:g}", option="--bpw")
        if self.like is not None and type_name(self.like) not in STANDARD:
            raise ConversionError(f"{self.like}: give one of {', '.join(STANDARD)}", option="--like")
        if self.speed is not None and not 0 < self.speed <= _MOST_SPEED:
            raise ConversionError(f"{self.speed:g}: give a share such as 0.9 or 1", option="--speed")
        if set(checked_types(self.exclude, TYPES)) >= set(TYPES) - {"q8_0"}:
            raise ConversionError("too few types are left to choose from", option="--exclude")


@dataclass(frozen=True)
class _Files:
    """The files of a search. `folder`: kept for other sizes."""

    out: Path
    folder: Path
    given: Path | None = None
    """The unquantized model, if the caller has one."""

    @property
    def base(self) -> Path:
        return self.given or self.folder / "base.gguf"

    @property
    def scores(self) -> Path:
        return self.folder / "base.scores"

    @property
    def matrix(self) -> Path:
        return self.folder / "calibration.imatrix"

    @property
    def rival(self) -> Path:
        return self.folder / "rival.gguf"

    @property
    def recipe(self) -> Path:
        return self.out.with_suffix(".recipe")

    @property
    def measured(self) -> Path:
        return self.out.with_suffix(".measure.json")

    def remove_large(self) -> None:
        """Remove the unquantized model, its distributions, and what an interruption left of llama.cpp's type."""
        for path in (self.folder / "base.gguf", self.scores, self.rival):
            path.unlink(missing_ok=True)


def check_mix(target: Target, rows: str | Path, measure_on: str | Path | None, out: str | Path | None) -> str:
    """Check the arguments of `mix` that need no checkpoint. Returns the SHA-256 of the rows."""
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
    base: Path | None = None,
    hub: HubOptions = NEWEST,
    force: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Mixed:
    """Convert a checkpoint to the file of a size that diverges least from it on calibration `rows`.

    `rows`: replay rows; also the importance matrix is made from them. `measure_on`: other rows, on which the finished
    file is measured; the measurement JSON is OUT.measure.json. `base`: the checkpoint in its own dtype as a GGUF, if
    there is one; it stays. `out`, `hub`, `force`, `threads`, `say`: as in convert.

    Raises what converting, calibrating and measuring raise, and Interrupted with a line that says how to resume.
    """
    begin = time.monotonic()
    calibration = check_mix(target, rows, measure_on, out)
    checkpoint = open_checkpoint(source, revision=hub.revision, offline=hub.offline)
    place, _ = output_place(out, f"{checkpoint.name}-auto-{re.sub('[ ,]+', '-', target.name)}.gguf")
    settings: dict[str, str | int | None] = {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "checkpoint_sha256": folder_provenance(checkpoint.folder)["model_sha256"],
        "rows_sha256": calibration,
        "uncertain_percent": round(100 * UNCERTAIN),
    }
    key = str(text_sha256(repr(sorted(settings.items()))))[:8]
    files = _Files(place, place.parent / f"{checkpoint.name}-costs-{key}", base)
    run = {**settings, "size": target.name}
    _check_outputs(files, [rows, measure_on, base, checkpoint.folder], run, force)
    work = _Work(source, checkpoint, target, Path(rows), files, hub, run, force, threads, say)
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


def _check_outputs(files: _Files, inputs: Sequence[str | Path | None], run: Run, force: bool) -> None:
    """Raises ConversionError, before the search, for an output that is an input, or a file of another run or kind."""
    kept = (files.folder / "costs.json", files.matrix, files.scores, files.rival, files.folder / "base.gguf")
    for path in (files.out, files.recipe, files.measured, *kept):
        check_output(path, inputs, error=ConversionError, streams=False)
    if files.recipe == files.out:
        raise ConversionError(f"{files.out}: is the name of a recipe: choose another name with --out")

    def before(path: Path) -> Run:
        if (written := recall(path, _SEARCH)) is not None:
            named: dict[str, object] = json.loads(written)
            return named
        written_by = read_metadata(files.out) if files.out.is_file() else {}
        own = RECIPE_COSTS in written_by  # convert compares the recipes
        if path == files.recipe:  # a recipe that somebody changed is no longer the search's
            own = own and path.read_bytes() == str(written_by.get(RECIPE)).encode()
        return run if own else {}

    for path, kind in ((files.out, "a GGUF"), (files.recipe, "a recipe")):
        check_replaced(path, run, before, kind=kind, force=force, error=ConversionError)


@dataclass(frozen=True)
class _Work:
    """The stages of a search."""

    source: str | Path
    checkpoint: Checkpoint
    target: Target
    rows: Path
    files: _Files
    hub: HubOptions
    named: Run
    """The search, as it is remembered of the output."""
    force: bool
    threads: int | None
    out_say: Callable[[str], None] | None

    def run(self, settings: Mapping[str, str | int | None], measure_on: Path | None, begin: float) -> Mixed:
        files, reading = self.files, Settings.checked(Loading(threads=self.threads))
        costs = Costs.open(files.folder / "costs.json", settings)
        file = self._base()
        plan = rows_plan(file, self.rows)
        one_pass = self._scores()
        places = costs.rows(lambda: uncertain_rows(plan, files.scores))
        reads = plan.part(places).tokens
        matrix = read_imatrix(self._matrix())
        sizes = Sizes.of(files.base, matrix.metadata(str(files.matrix)))
        standard = standard_types(files.base, STANDARD)
        changed = standard["Q8_0"]
        groups = tuple(make_groups(tensor for tensor in sizes.tensors if tensor.name in changed))
        unknown = sum(not costs.alone(group.name) for group in groups)
        self._say(
            f"{len(groups)} groups; {len(places)} of {len(plan.rows)} rows with most of the uncertainty; {reads:,} "
            f"tokens to read for each of about {unknown + len(groups) // 2 + 10} measurements"
            + (f" of about {one_pass * reads / plan.tokens:.0f} s" if one_pass else "")
        )
        values = Values(files.base, files.matrix, RARE)
        for group in groups:
            if group.name not in costs.stored["errors"]:
                costs.add_errors(group.name, weight_errors(group, values))
        with Probe(file, values, plan, files.scores, reading, places) as probe:
            own = self.checkpoint.dtype.lower()
            search = Search(
                *(groups, sizes, costs, probe.divergence, own, self._say),
                exclude=checked_types(self.target.exclude, TYPES),
            )
            found = costs.choice(self.target.name)
            if found is None:
                others = {number for types in standard.values() for number in types.values()}
                speeds = self._speeds(groups, own, others, reading)
                found = _searched(search, self.target, standard, speeds, probe.whole)
                costs.add_choice(self.target.name, found)
            passes = probe.passes
        ended = self._best_file(
            search, found, lambda path: file_divergences(path, plan, files.scores, reading)
        )
        measured = None if measure_on is None else self._measured(measure_on)
        files.remove_large()
        return Mixed(
            converted=ended.converted,
            recipe=files.recipe if ended.taken is None else None,
            matrix=files.matrix,
            target=found["target"],
            expected=found["expected"],
            together=found["together"],
            real=ended.mixture,
            rivals=ended.rivals,
            taken=ended.taken,
            measured=measured,
            passes=passes,
            seconds=time.monotonic() - begin,
        )

    def _speeds(
        self, groups: Sequence[Group], own: str, numbers: set[int], reading: Settings
    ) -> Speeds | None:
        """What types take on this machine: those of a search, and `numbers`. None if it does not count."""
        if self.target.speed is None:
            return None
        kinds = {*TYPES, own, *(ggml.type_name(number).lower() for number in numbers)}
        speeds = Speeds.measured(self.files.base, groups, sorted(kinds), reading.threads)
        for line in speeds.to_text(groups):
            self._say(line)
        return speeds

    def _best_file(self, search: Search, found: StoredChoice, divergences: Measure) -> "_Ended":
        """Write the mixture, or llama.cpp's type of this size if the mixture gains too little."""
        files, costs = self.files, search.costs
        rivals: list[Rival] = []
        if found["standard"] is not None:
            how = Rivals(
                *(self.source, files.rival, files.matrix, self.hub, self.threads, costs, divergences),
                say=self.out_say,
            )
            rivals = how.measured(found["standard"], found["target"])
        recipe = recipe_of(search.groups, found["types"], found["costs"])
        name = str(text_sha256(json.dumps(recipe.metadata)))
        converted = None
        if (known := costs.file(name)) is None:
            converted = self._write(recipe, found)
            known = {"n_bytes": converted.n_bytes, "by_task": divergences(files.out)}
            costs.add_file(name, known)
        mixture = Divergences(known["by_task"])
        if (taken := better_rival(mixture, rivals)) is not None:
            converted = self._take(taken)
        return _Ended(converted or self._write(recipe, found), mixture, tuple(rivals), taken)

    def _take(self, rival: Rival) -> Converted:
        """Write a file of llama.cpp's type. A recipe beside it would be of another file."""
        converted = self._converted(rival.quant, self.files.matrix if rival.matrix else None)
        self.files.recipe.unlink(missing_ok=True)
        return converted

    def check_disk(self) -> None:
        weights = sum(tensor.n_bytes for tensor in self.checkpoint.tensors.values())
        free = free_disk(self.files.folder)
        told = (
            f"disk: about {size(2 * weights)} of {size(free)} free, for the unquantized model and the output; "
            f"memory: about {size(1.1 * weights)}"
        )
        self._say(told)
        if 2 * weights > free:
            raise ConversionError(f"{self.files.folder}: {told.removeprefix('disk: ')}: choose another --out")

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
                loading = Loading(threads=self.threads)
                calibrate(self.files.base, self.files.matrix, rows=self.rows, loading=loading, progress=watch)
        return self.files.matrix

    def _write(self, recipe: Recipe, found: StoredChoice) -> Converted:
        """The mixture, and its recipe. Raises ConversionError if it is larger than the target."""
        converted = self._converted(found["quant"], self.files.matrix, recipe)
        if converted.n_bytes > found["target"]:
            raise ConversionError(
                f"{self.files.out}: has {converted.n_bytes:,} bytes, not at most {found['target']:,}: report this"
            )
        with whole_file(self.files.recipe) as (_, descriptor):
            write_all(descriptor, recipe.text.encode())
        remember(self.files.recipe, _SEARCH, json.dumps(self.named))
        return converted

    def _converted(self, quant: str, matrix: Path | None, recipe: Recipe | None = None) -> Converted:
        out = self.files.out
        mine = (
            out.is_file() and recall(out, _SEARCH) is not None
        )  # of this search: that was checked before it
        converted = convert(
            self.source,
            quant=quant,
            out=out,
            imatrix=matrix,
            tensor_types=None if recipe is None else TensorTypes(recipe=recipe),
            hub=self.hub,
            force=self.force or mine,
            threads=self.threads,
            say=self.out_say,
        )
        remember(out, _SEARCH, json.dumps(self.named))
        return converted

    def _measured(self, rows: Path) -> tuple[float, tuple[float, float] | None]:
        out = self.files.out
        result = measure(
            out,
            self.files.measured,
            base=self.files.base,
            replay=rows,
            loading=Loading(threads=self.threads),
            force=self.force,
            say=self.out_say,
        )
        low, high = result["intervals"].get("kl_mean", (None, None))
        bounds = None if low is None or high is None else (low, high)
        return result["aggregate"]["kl_mean"], bounds

    def _say(self, text: str) -> None:
        if self.out_say is not None:
            self.out_say(text)


@dataclass(frozen=True)
class _Ended:
    """The output. `mixture`: of the mixture's file. `rivals`, `taken`: as in Mixed."""

    converted: Converted
    mixture: Divergences
    rivals: tuple[Rival, ...]
    taken: Rival | None


def _searched(
    search: Search,
    target: Target,
    standard: Mapping[str, Mapping[str, int]],
    speeds: Speeds | None,
    all_rows: Callable[[Mapping[str, int]], float],
) -> StoredChoice:
    """The best choice for a target, after all measurements. `standard`: the types of llama.cpp's files.

    `all_rows`: the divergence in memory, on all rows.
    """
    sizes = search.sizes
    whole = {quant: sizes.before() + sizes.data(types) for quant, types in standard.items()}
    before = sizes.before(most_metadata(search.groups))
    if target.like is not None:
        n_bytes = whole[type_name(target.like)]
    elif target.bits is not None:
        n_bytes = before + int(target.bits * sizes.n_params / 8)
    else:
        n_bytes = target.n_bytes or 0
    room = n_bytes - before
    quant = max(
        (each for each in STANDARD if whole[each] <= n_bytes), key=lambda each: whole[each], default=None
    )
    if speeds is not None and target.speed is not None:
        limit = speeds.of_types(search.groups, standard[quant or STANDARD[0]]) / target.speed
        search = replace(search, speeds=speeds, seconds=limit)
    search.begin(8 * room / sizes.n_params)
    chosen = search.refine(room)
    best, together = chosen, search.of_choice(with_types(chosen))
    corrected = search.choose(room, search.factors(with_types(chosen), chosen))
    if (other := search.of_choice(with_types(corrected))) < together:
        best, together = corrected, other
    best = search.plain(best)
    together = all_rows(search.numbers(with_types(best)))
    if speeds is not None:
        seconds = speeds.of_types(search.groups, search.numbers(with_types(best)))
        most = speeds.of_types(search.groups, standard[quant or STANDARD[0]])
        name = quant or STANDARD[0]
        search.say(
            f"the products of the mixture: {1 / seconds:,.0f} tokens a second; of {name}: {1 / most:,.0f}"
        )
    return {
        "types": with_types(best),
        "costs": cost_table(best, together),
        "expected": sum(option.cost for option in best.values()),
        "together": together,
        "target": n_bytes,
        "quant": quant or STANDARD[0],
        "standard": quant,
    }
