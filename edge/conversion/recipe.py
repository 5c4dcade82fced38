"""A recipe: the type of each tensor of a mixed-precision file, as lines that llama-quantize reads too.

A line is `PATTERN=TYPE`: a regular expression that is searched in the name of a tensor, and a ggml type. The first line
that matches counts. llama-quantize takes the same file as --tensor-type-file, so a recipe has no comments, and white
space separates its lines. A file that was made with a recipe keeps the lines in its metadata, and is a recipe itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConversionError
from edge.formats.gguf import RECIPE, RECIPE_COSTS, read_metadata

_LONGEST = 1 << 20  # characters of a recipe; one of a model with 100 layers has about 50,000
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Recipe:
    """Types for tensors: pairs of a regular expression and the name of a ggml type, the first match counts.

    `costs`: what `edge convert --quant auto` measured to make the recipe, as JSON text; empty for another recipe.
    `path`: the file that it was read from, for messages.
    """

    lines: tuple[tuple[str, str], ...]
    costs: str = ""
    path: Path | None = None

    @property
    def text(self) -> str:
        """The content of the recipe's file."""
        return "".join(f"{pattern}={kind}\n" for pattern, kind in self.lines)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a GGUF records of the recipe."""
        costs = [(RECIPE_COSTS, self.costs)] if self.costs else []
        return ((RECIPE, self.text), *costs)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe: a text file, or a GGUF that was made with one. Raises ConversionError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConversionError(
            f"{path}: cannot be read: {error.strerror or error}", option="--recipe"
        ) from None
    if start.startswith(_MAGIC):
        return _of_gguf(path)
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConversionError(
            f"{path}: is not a recipe: it is not UTF-8 text (byte {error.start})", option="--recipe"
        ) from None
    return Recipe(_lines(path, text), path=path)


def _of_gguf(path: Path) -> Recipe:
    metadata: Mapping[str, Any] = read_metadata(path)
    text, costs = metadata.get(RECIPE), metadata.get(RECIPE_COSTS, "")
    if not isinstance(text, str) or not isinstance(costs, str):
        raise ConversionError(
            f"{path}: was not made with a recipe; give the recipe's text file", option="--recipe"
        )
    return Recipe(_lines(path, text), costs, path)


def _lines(path: Path, text: str) -> tuple[tuple[str, str], ...]:
    if len(text) > _LONGEST:
        raise ConversionError(
            f"{path}: is not a recipe: it has more than {_LONGEST:,} characters", option="--recipe"
        )
    found = []
    for number, part in enumerate(text.split(), 1):
        pattern, sign, kind = part.partition("=")
        if not (pattern and sign and kind) or "\0" in part:
            raise ConversionError(
                f"{path}: entry {number} is {json.dumps(part[:60])}; a recipe has entries PATTERN=TYPE, without "
                r"spaces and comments, for example blk\.0\.ffn_down=q6_k",
                option="--recipe",
            )
        found.append((pattern, kind))
    if not found:
        raise ConversionError(f"{path}: has no line PATTERN=TYPE", option="--recipe")
    return tuple(found)
