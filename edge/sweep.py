"""`edge sweep`: convert a checkpoint to several types, evaluate and measure each, and write a report.

    DIR/NAME-bf16.gguf, .json          the base (the checkpoint in its own dtype) and its answers
    DIR/NAME-base.scores               the base's distributions, for the measurements
    DIR/NAME.imatrix                   the importance matrix, if rows to calibrate on are given
    DIR/NAME-Q4_K_M.gguf, .json        a quantization and its answers
    DIR/NAME-Q4_K_M.measure.json       what it lost on the reference answers
    DIR/NAME-auto-Q4_K_M.*             the same of the best file of that size, and its recipe, with a frontier
    DIR/report.html, report.md         the page, and its short form
    DIR/sweep.json                     the settings, and the stages that are done

GGUFs and the base's distributions are removed after their use. Started again with the same arguments, a sweep resumes
where it was, also inside an evaluation; with more types it does those too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edge.answer.answering import DEFAULT_ANSWERING, Answering
from edge.compare.run import published_model
from edge.convert import check_quant
from edge.errors import ConversionError, Interrupted, ResultError
from edge.formats.checkpoint import Checkpoint, open_checkpoint
from edge.llama.loading import DEFAULT_LOADING, Loading
from edge.llama.remote import devices_for
from edge.mixing.run import STANDARD
from edge.replay.prepare import chosen_rows
from edge.replay.provenance import folder_provenance
from edge.replay.rows import Row, read_rows, rows_sha256, same_rows
from edge.report.build import report
from edge.report.choice import Choice, choose
from edge.sweep_stages import AUTO, FLOATS, Stages, SweepOptions
from edge.sweep_state import State
from edge.system.locks import sole_user
from edge.system.machine import free_disk
from edge.system.outputs import check_output
from edge.system.tables import table
from edge.system.text import size
from edge.version import __version__

__all__ = ["SweepOptions", "Swept", "sweep"]

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
    frontier: str = ""
    """With `SweepOptions.frontier`: a table of sizes and KL divergences, for people."""


DEFAULT_OPTIONS = SweepOptions()


def check_sweep(
    quants: Sequence[str], replay: Path | str, out: Path | str, options: SweepOptions
) -> tuple[list[str], list[Row], str | None, str | None]:
    """Check the arguments of `sweep` that need no checkpoint, before a download. Raises what it raises.

    Returns the names of the types, the rows, the SHA-256 of the rows to calibrate on, and how many rows are in both, in
    words, if there are such rows.
    """
    calibrated = options.calibrate_on is not None
    names = list(dict.fromkeys(check_quant(name, has_imatrix=calibrated) for name in quants))
    if not names:
        raise ConversionError("no quantization type is named: name at least one")
    if options.frontier:
        if not calibrated:
            raise ConversionError("a frontier needs replay rows to search with", option="--calibrate")
        sizes = [name for name in names if name in STANDARD]
        if not sizes:
            raise ConversionError(
                f"a frontier needs types whose size it takes: name some of {', '.join(STANDARD)}",
                option="--quants",
            )
        names += [AUTO + name for name in sizes]
    rows = chosen_rows(replay, None, None)
    calibration = same = None
    if options.calibrate_on is not None:
        calibration = rows_sha256(read_rows(options.calibrate_on))
        same = same_rows(rows, options.calibrate_on)
        if same is not None and not options.same_rows:
            raise ResultError(f"{same}; calibrate on other rows, or allow it with --same-rows")
    if options.reference is not None and not Path(options.reference).is_file():
        published_model(options.reference)
    check_output(Path(out) / "sweep.json", [replay, options.calibrate_on, options.reference])
    return names, rows, calibration, same


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
    names, rows, calibration, same = check_sweep(quants, replay, out, options)
    checkpoint = open_checkpoint(source, revision=options.revision, offline=options.offline)
    if Path(out).resolve() == Path(checkpoint.folder).resolve():
        raise ResultError(f"{out}: is the checkpoint's own folder; choose another folder with --out")
    devices_for(loading)  # reports an RPC server that does not answer before the long work
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
        **loading.spread.identity(),
    }
    with sole_user(folder, "edge sweep"):
        state = State.open(folder / "sweep.json", settings)
        place = folder / checkpoint.name
        work = Stages(source, base, place, Path(replay), options, answering, loading, state, say)
        work.check_inputs(names, checkpoint.folder)
        if not options.force:
            work.check_files(names)
        try:
            return _finish(work, names, folder / "report.html", same)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume") from None


def _finish(work: Stages, names: Sequence[str], page: Path, same: str | None) -> Swept:
    """All stages, the report and the choice. `same`: which rows to judge by are also calibration rows, in words."""
    options = work.options
    pairs = work.run(names)
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
    return Swept(page, tuple(results), choice, chosen, _frontier(work, names) if options.frontier else "")


def _frontier(work: Stages, names: Sequence[str]) -> str:
    """A table of the files of one size in each row: llama.cpp's type, the searched file, and the ratio of their KL."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    for name in names:
        auto = AUTO + name
        if auto not in names:
            continue
        (one, _), (other, bounds) = work.divergence(name), work.divergence(auto)
        within = "" if bounds is None else f" ({bounds[0]:.2g} to {bounds[1]:.2g})"
        ratio = f"{other / one:.2f}" if one else "–"
        n_bytes, mine = work.state.of(name)["n_bytes"], work.state.of(auto)["n_bytes"]
        cells = (name, size(n_bytes), f"{one:.2g}", size(mine), f"{other:.2g}{within}", ratio)
        rows.append((n_bytes, cells))
    header = ("type", "size", "mean KL", "auto: size", "mean KL, 95 % interval", "ratio")
    lines = table(header, [cells for _, cells in sorted(rows)], right=range(1, len(header)))
    return "\n".join(lines)


def _disk_needed(checkpoint: Checkpoint, names: Sequence[str], folder: Path, keep: bool) -> str:
    """The maximum disk space of a sweep, in one line. Raises ConversionError if there is less."""
    weights = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    bits = {"F32": 32, "F16": 16, "BF16": 16}[checkpoint.dtype]
    files, stay = [weights], 0  # searched files stay until the choice
    for name in names:
        number = re.search(r"\d+", name)
        assert number is not None, name
        files.append(round(weights * (int(number[0]) + (0 if name in FLOATS else _MORE_BITS)) / bits))
        stay += files[-1] if name.startswith(AUTO) else 0
    needed = sum(files) if keep else max(files) + (weights + stay if stay else 0)
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
