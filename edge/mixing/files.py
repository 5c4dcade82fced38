"""The files of a search: which they are, and which of them another search or person wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConversionError, EdgeError
from edge.formats.gguf import RECIPE, model_sha256, read_metadata
from edge.mixing.state import Costs
from edge.system.hashes import file_sha256, text_sha256
from edge.system.outputs import check_output, named_run

_ADVICE = "choose another name with --out, or replace it with --force"


@dataclass(frozen=True)
class Files:
    """`out`: the GGUF. `folder`: kept for other sizes. `size`: the size that the search is for, for people."""

    out: Path
    folder: Path
    size: str

    @property
    def base(self) -> Path:
        return self.folder / "base.gguf"

    @property
    def scores(self) -> Path:
        return self.folder / "base.scores"

    @property
    def costs(self) -> Path:
        return self.folder / "costs.json"

    @property
    def matrix(self) -> Path:
        return self.folder / "calibration.imatrix"

    @property
    def recipe(self) -> Path:
        return self.out.with_suffix(".recipe")

    @property
    def measured(self) -> Path:
        return self.out.with_suffix(".measure.json")

    def remove_large(self) -> None:
        """Remove the unquantized model and its distributions."""
        self.base.unlink(missing_ok=True)
        self.scores.unlink(missing_ok=True)

    def check(self, inputs: Sequence[str | Path | None]) -> None:
        """Check that no output is an input, and that their names differ. Raises ConversionError."""
        kept = (self.costs, self.matrix, self.base, self.scores)
        for path in (self.out, self.recipe, self.measured, *kept):
            check_output(path, inputs, error=ConversionError, streams=False)
        if self.recipe == self.out:
            raise ConversionError(f"{self.out}: is the name of a recipe: choose another name with --out")

    def check_replaced(self, costs: Costs, *, measures: bool) -> None:
        """Check that the outputs are missing, or as a search for this size wrote them. Raises ConversionError."""
        output = costs.output(self.out.name)
        recipes = [] if output is None else output["recipes"]

        def model(path: Path) -> bool:
            text = read_metadata(path).get(RECIPE)
            return text is not None and text_sha256(str(text)) in recipes

        def recipe(path: Path) -> bool:
            return file_sha256(path) in recipes

        def measurement(path: Path) -> bool:
            run = named_run(path, "measurement") or {}
            return run.get("model_sha256") == model_sha256(self.out)

        wanted = [
            (self.out, model),
            (self.recipe, recipe),
            *([(self.measured, measurement)] if measures else []),
        ]
        for path, is_own in wanted:
            if not path.exists() or not path.stat().st_size:
                continue
            try:
                own = is_own(path)
            except (EdgeError, OSError, ValueError, RecursionError):
                own = False
            if not own:
                raise ConversionError(f"{path}: exists, and no search in {self.folder} wrote it; {_ADVICE}")
        if output is not None and self.out.exists() and (before := output["size"]) != self.size:
            raise ConversionError(
                f"{self.out}: holds a GGUF of another run (the size was {before}, is {self.size}); {_ADVICE}"
            )
