"""llama.cpp's own types beside a choice: real files that fit into the same size, measured on the same rows.

The search chooses on the calibration rows, so its mixture looks better there than it is on other rows. Where the gain
is small, or comes from few rows, llama.cpp's type can be the better file. So the mixture has to gain a fifth on the
calibration rows, and the interval of its ratio has to be below 1. Otherwise the file is llama.cpp's. No other rows
decide it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.compare.intervals import interval, resampled_means
from edge.convert import convert
from edge.formats.hub import HubOptions
from edge.mixing.state import Costs
from edge.system.text import size

__all__ = ["GAIN", "Divergences", "Measure", "Rival", "Rivals", "better_rival"]

GAIN = 0.8
"""The most of a divergence that another file may have on the calibration rows, to be taken for it."""
Measure = Callable[[Path], dict[str, list[float]]]
"""Measures a file: for each task the sum of its divergences in nats, and the number of positions."""


@dataclass(frozen=True)
class Divergences:
    """The divergences of a file on the calibration rows: by task, as a Measure gives them."""

    by_task: Mapping[str, Sequence[float]]

    @property
    def mean(self) -> float:
        """The mean over all positions, in nats."""
        return sum(one for one, _ in self.by_task.values()) / sum(count for _, count in self.by_task.values())

    def ratio(self, other: "Divergences") -> tuple[float, float, float]:
        """The ratio of the means, and its 95 % interval from draws of tasks; with one task only the ratio, thrice.

        Infinite if the other has no divergence.
        """
        if not other.mean:
            return (np.inf,) * 3
        ratio = self.mean / other.mean
        if len(self.by_task) < 2:
            return (ratio,) * 3
        ours, theirs = (
            np.array([each[task] for task in self.by_task]) for each in (self.by_task, other.by_task)
        )
        below = resampled_means(theirs[:, 0], theirs[:, 1])
        samples = resampled_means(ours[:, 0], ours[:, 1]) / np.maximum(below, np.finfo(float).tiny)
        return (ratio, *interval(samples, len(ours)))

    def gains(self, other: "Divergences") -> bool:
        """Whether it is enough below the other (`GAIN`), and surely below it: other rows are likely to show it too."""
        ratio, _, high = self.ratio(other)
        return ratio <= GAIN and high < 1


@dataclass(frozen=True)
class Rival:
    """A file of one of llama.cpp's types. `matrix`: whether it was made with the importance matrix of the search."""

    quant: str
    matrix: bool
    n_bytes: int
    measured: Divergences

    @property
    def name(self) -> str:
        """Its name in messages."""
        return _name(self.quant, self.matrix)

    def to_text(self) -> str:
        """Its figures, for people."""
        return f"{self.name}: {size(self.n_bytes)}, {self.measured.mean:.3g} nats in its file"


def better_rival(mixture: Divergences, rivals: Sequence[Rival]) -> Rival | None:
    """The file of llama.cpp to take instead of a mixture; None if the mixture gains enough over each of them.

    Of llama.cpp's files, it is one that is at least as good as the mixture if there is one. Of two such files, it is
    the one without a matrix unless the other gains enough: the matrix knows the rows too.
    """
    near = [rival for rival in rivals if not mixture.gains(rival.measured)]
    if not near:
        return None
    good = [rival for rival in near if rival.measured.mean <= mixture.mean] or near
    plain_first = sorted(good, key=lambda rival: rival.matrix)
    best = plain_first[0]
    for rival in plain_first[1:]:
        if rival.measured.gains(best.measured):
            best = rival
    return best


@dataclass(frozen=True)
class Rivals:
    """How the files of llama.cpp's types are made and measured. `place`: the file that they have for that time."""

    source: str | Path
    place: Path
    matrix: Path
    hub: HubOptions
    threads: int | None
    costs: Costs
    divergences: Measure
    say: Callable[[str], None] | None

    def measured(self, quant: str, most: int) -> list[Rival]:
        """The files of a type with the matrix and without it, as far as they have at most `most` bytes."""
        found = [self._measured(quant, matrix) for matrix in (True, False)]
        return [rival for rival in found if rival.n_bytes <= most]

    def _measured(self, quant: str, matrix: bool) -> Rival:
        name = _name(quant, matrix)
        if (known := self.costs.file(name)) is None:
            done = convert(
                self.source,
                quant=quant,
                out=self.place,
                imatrix=self.matrix if matrix else None,
                hub=self.hub,
                check=False,
                force=True,
                threads=self.threads,
                say=self.say,
            )
            known = {"n_bytes": done.n_bytes, "by_task": self.divergences(self.place)}
            self.place.unlink()
            self.costs.add_file(name, known)
        return Rival(quant, matrix, known["n_bytes"], Divergences(known["by_task"]))


def _name(quant: str, matrix: bool) -> str:
    return f"{quant} {'with' if matrix else 'without'} the matrix"
