"""The JSON file of `edge compare`: its fields, and the identity of the run that wrote it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from edge.compare.causes import Cause, causes_json
from edge.compare.findings import Comparison, Part
from edge.compare.trial_pairs import TrialComparison
from edge.replay.result import run_digest
from edge.system.outputs import Run, check_output, check_replaced, named_run
from edge.system.places import write_json

SCHEMA_VERSION = 1


class StoredComparison(TypedDict):
    """The JSON of `edge compare --json`. Without --reference it has only causes, without --causes none."""

    comparison: int
    """Version of this format. No other JSON of edge has this field."""
    run: dict[str, object]
    """What was compared: the results and the reference, by SHA-256. edge replaces only a file of the same run."""
    reference: NotRequired[str]
    """The reference, as the command named it."""
    model: NotRequired[str]
    """Name of the reference's model for people."""
    paired: NotRequired[bool]
    """Whether the reference has steps, so that edge compared step by step."""
    parts: NotRequired[list[Part]]
    """One entry for each result."""
    causes: NotRequired[list[Cause]]
    """One entry for each pair of results that differ in exactly one thing."""
    trials: NotRequired[list[TrialComparison]]
    """For results of edge trial, which have no parts: one entry for each result."""


def check_comparison(
    out: Path, results: Sequence[Path], reference: str | None, *, causes: bool, force: bool
) -> None:
    """Check that the JSON may be written: not over an input, and over another comparison only with `force`.

    Raises ResultError.
    """
    check_output(out, [*results, reference], option="--json")
    run = _run(results, reference, causes=causes)
    check_replaced(
        out,
        run,
        lambda path: named_run(path, "comparison"),
        kind="a comparison",
        force=force,
        option="--json",
    )


def write_comparison(
    out: Path,
    results: Sequence[Path],
    reference: str | None,
    comparison: Comparison | None,
    causes: Sequence[Cause] | None,
) -> None:
    """Write what was found, complete or not at all. Raises ResultError."""
    write_json(
        out,
        {
            "comparison": SCHEMA_VERSION,
            "run": _run(results, reference, causes=causes is not None),
            **({} if comparison is None else comparison.to_dict()),
            **({} if causes is None else {"causes": causes_json(causes)}),
        },
    )


def write_trial_comparison(
    out: Path, results: Sequence[Path], reference: str, comparisons: Sequence[TrialComparison]
) -> None:
    """Write comparisons of results of `edge trial`, complete or not at all. Raises ResultError."""
    run = _run(results, reference, causes=False)
    fields = {"comparison": SCHEMA_VERSION, "run": run, "reference": reference, "trials": list(comparisons)}
    write_json(out, fields)


def _run(results: Sequence[Path], reference: str | None, *, causes: bool) -> Run:
    known = reference is not None and Path(reference).is_file()
    return {
        "results": {f"{i + 1} {Path(path).name}": run_digest(path) for i, path in enumerate(results)},
        "reference": run_digest(reference) if known and reference else reference,
        "causes": causes,
    }
