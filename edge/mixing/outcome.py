"""What a search for the best file of a size found, and how people read it."""

from dataclasses import dataclass
from pathlib import Path

from edge.convert import Converted
from edge.mixing.rivals import GAIN, Divergences, Rival
from edge.system.text import counted


@dataclass(frozen=True)
class Mixed:
    """A finished search. Divergences are means in nats over the calibration rows.

    `recipe`: None if the file is one of llama.cpp's types. `expected`: the sum of the costs of the groups alone.
    `together`: measured in memory with all of them. `real`: of the mixture's file. `rivals`: llama.cpp's files of the
    same size. `taken`: the one of them that is the output, because the mixture gains too little; else None.
    `measured`: the divergence of the output on other rows, and its 95 % interval, if there were any.
    """

    converted: Converted
    recipe: Path | None
    matrix: Path
    target: int
    expected: float
    together: float
    real: Divergences
    rivals: tuple[Rival, ...]
    taken: Rival | None
    measured: tuple[float, tuple[float, float] | None] | None
    passes: int
    seconds: float

    def to_text(self, source: str) -> str:
        """What was found, for people. `source`: the checkpoint as it was named, for the command that repeats it."""
        difference = f"{100 * (self.real.mean / self.together - 1):+.1f} %" if self.together else "no"
        lines = [
            f"mean KL divergence on the calibration rows: {self.real.mean:.3g} nats a token in the mixture's file; "
            f"{self.together:.3g} in memory (difference {difference}), {self.expected:.3g} as the sum of the costs",
            *(rival.to_text() for rival in self.rivals),
        ]
        if self.rivals:
            best = min(self.rivals, key=lambda rival: rival.measured.mean)
            ratio, low, high = self.real.ratio(best.measured)
            within = "" if low == high else f", 95 % interval {low:.2f} to {high:.2f}"
            lines.append(f"the mixture has {ratio:.2f} of the divergence of {best.name}{within}")
        again = f"--imatrix {self.matrix} --quant {self.converted.quant}"
        if self.taken is not None:
            ratio, _, high = self.real.ratio(self.taken.measured)
            why = "the mixture gains too little on the calibration rows, or nothing"
            if ratio <= GAIN and high >= 1:
                why = "the calibration rows are too few to show that the mixture is better"
            lines.append(f"the file is {self.taken.name}, as llama.cpp makes it: {why}")
            again = again if self.taken.matrix else f"--quant {self.taken.quant}"
        if self.measured is not None:
            kl, bounds = self.measured
            within = "" if bounds is None else f" (95 % interval {bounds[0]:.3g} to {bounds[1]:.3g})"
            lines.append(f"on the rows of --measure: {kl:.3g}{within}")
        types = ""
        if self.recipe is not None:
            types, again = f"; the types: {self.recipe}", f"--recipe {self.recipe} {again}"
        lines += [
            f"{counted(self.passes, 'measurement')} in {self.seconds:.0f} s{types}",
            f"the same file again: edge convert {source} {again}",
        ]
        return "\n".join(lines)
