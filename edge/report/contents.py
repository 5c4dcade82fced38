"""The contents of a report before it is a page: its entries, their comparison with the reference, and the causes."""

from collections.abc import Mapping
from dataclasses import dataclass

from edge.compare.causes import Cause
from edge.compare.findings import Comparison, Figure, Part
from edge.compare.trial_pairs import TrialComparison, TrialPairs
from edge.compare.trials import TrialFigures, TrialResult
from edge.report.evidence import Run
from edge.report.measurements import CheckedMeasurement
from edge.report.worse import WorseStep

MAIN = ("score", "first_cmd_exact_pct", "valid_json_pct")
"""The figures in the first table and in the plots. The tables of differences have all figures."""


@dataclass(frozen=True)
class Tried:
    """A result of `edge trial`, and its difference from the reference's."""

    path: str
    name: str
    """The name of its file."""
    label: str
    """The label of the result of the same model file; without such a result, its own name."""
    is_matched: bool
    """Whether a result of the report is about the same model file with the same adapters."""
    is_reference: bool
    """Whether it is about the reference."""
    same_tasks: bool
    """Whether the reference tried exactly the same tasks. True for the reference."""
    result: TrialResult
    comparison: TrialComparison | None
    """Its difference from the reference's trials; None if they share no task that counts on both sides."""

    @property
    def figures(self) -> TrialFigures:
        """The figures over all its trials."""
        return self.result["figures"]

    @property
    def pair(self) -> TrialPairs | None:
        """The paired difference over all tasks."""
        return self.comparison["pairs"][0] if self.comparison else None


@dataclass(frozen=True)
class Entry:
    """One row of the table of quantizations. A value is None or () where the file does not have it."""

    label: str
    run: Run | None
    """None for published figures without a result."""
    published: bool
    """edge did not measure it: each of its figures gets a mark."""
    is_reference: bool
    backend: str
    constrained: bool | None
    n_bytes: float | None
    bits_per_weight: float | None
    steps: int
    tasks: int | None
    score: float | None
    """0 to 100."""
    score_interval: tuple[float, float] | None
    """95 %, bootstrap over tasks."""
    figures: Mapping[str, float]
    """The figures of the aggregate, by their names there."""
    tokens_per_second: float | None
    """Answer tokens divided by the seconds of the whole run, which includes reading the prompts."""
    peak_bytes: float | None
    part: Part | None
    """Its comparison with the reference."""
    measurements: tuple[CheckedMeasurement, ...]
    worse: tuple[WorseStep, ...]
    other: str = ""
    """For another run of a file, or a run that differs in more than its file: in what, in words. "" for the others."""
    tried: Tried | None = None
    """The trials of the same model file."""

    @property
    def measured(self) -> CheckedMeasurement | None:
        """The measurement in the table: one with a base if there is one, and of these one on reference answers."""
        ranked = sorted(self.measurements, key=lambda m: ("kl_mean" not in m.aggregate, m.kind != "rows"))
        return ranked[0] if ranked else None

    def figure(self, name: str) -> Figure | None:
        """One figure of its comparison."""
        return next((f for f in self.part.figures if f.name == name), None) if self.part else None


@dataclass(frozen=True)
class Report:
    """Everything that a report shows."""

    title: str
    """The heading that the user gave, or ""."""
    subject: str
    """The name of the quantized model, or "" where the files do not have the same one."""
    entries: tuple[Entry, ...]
    """The reference is the first, if there is one."""
    comparison: Comparison | None
    causes: tuple[Cause, ...]
    notes: tuple[str, ...]
    tried: tuple[Tried, ...] = ()
    """The trials: those of the reference first, those of no result of the report last."""

    @property
    def reference(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.is_reference), None)

    @property
    def compared(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.part is not None]

    @property
    def files(self) -> list[Entry]:
        """The reference and the entries that compare with it: one run of each file, made like the reference."""
        return [entry for entry in self.entries if not entry.other]

    @property
    def others(self) -> list[Entry]:
        """The other runs: they separate causes."""
        return [entry for entry in self.entries if entry.other]

    @property
    def quantized(self) -> list[Entry]:
        """The compared files, without unquantized ones if any is quantized."""
        compared = [entry for entry in self.files if entry.part is not None]
        return [entry for entry in compared if entry.run and not entry.run.unquantized] or compared
