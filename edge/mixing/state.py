"""What a search measured, on disk: an interrupted search resumes, and a search for another size measures less."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from edge.errors import EdgeError, ResultError
from edge.system.hashes import text_sha256
from edge.system.outputs import differences
from edge.system.places import write_json
from edge.system.typed_json import check

_SCHEMA_VERSION = 1


class WeightErrors(TypedDict):
    """The errors of a group's weights in a type."""

    weighted: float
    """The sum of squares, times the weights of the columns in the importance matrix."""
    relative: float
    """The sum of squares over that of the values."""
    rare: float
    """The largest relative error of an expert that the calibration saw rarely; 0 without one."""


class Output(TypedDict):
    """A file that a search wrote, or is writing."""

    size: str
    """The size that the search was for, such as 4.5bpw."""
    recipes: list[str]
    """SHA-256 of the text of each recipe that the search chose for it."""


class StoredCosts(TypedDict):
    """costs.json of `edge convert --quant auto`: what was measured, for this checkpoint and these rows."""

    schema_version: NotRequired[int]
    """Version of this format."""
    search: Mapping[str, str | int | None]
    """The settings by which two searches share measurements."""
    errors: dict[str, dict[str, WeightErrors]]
    """By group, then by type."""
    alone: dict[str, dict[str, float]]
    """The mean KL divergence in nats if only this group has this type; by group, then by type."""
    joint: dict[str, float]
    """The same of whole choices, by the SHA-256 of their types."""
    outputs: NotRequired[dict[str, Output]]
    """The GGUFs of these searches, by the name of the file, which is beside the folder."""


@dataclass
class Costs:
    """The measurements of a search. Each is on disk as soon as it is added."""

    path: Path
    stored: StoredCosts

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, str | int | None]) -> "Costs":
        """Resume from the file at `path`, or begin one. Raises ResultError if it is of another search, or damaged."""
        try:
            before = check(json.loads(path.read_text(encoding="utf-8")), StoredCosts, "it")
        except FileNotFoundError:
            empty: StoredCosts = {
                "schema_version": _SCHEMA_VERSION,
                "search": settings,
                "errors": {},
                "alone": {},
                "joint": {},
            }
            return cls(path, empty)
        except (OSError, ValueError, RecursionError, EdgeError) as error:
            why = " ".join(str(error).split())[:80]
            raise ResultError(f"{path}: does not hold the costs of a search ({why}): remove it") from None
        if (version := before.get("schema_version", _SCHEMA_VERSION)) > _SCHEMA_VERSION:
            raise ResultError(
                f"{path}: has schema version {version}; this edge reads up to {_SCHEMA_VERSION}: update edge"
            )
        if changes := differences(before["search"], settings):
            raise ResultError(f"{path}: is of another search ({changes}): remove it, or choose another --out")
        return cls(path, before)

    def alone(self, group: str) -> dict[str, float]:
        """The measured divergences of a group, by type."""
        return self.stored["alone"].get(group, {})

    def add_alone(self, group: str, kind: str, value: float) -> None:
        self.stored["alone"].setdefault(group, {})[kind] = value
        self._write()

    def joint(self, types: Mapping[str, str]) -> float | None:
        """The measured divergence of a choice, by group; None if it was not measured."""
        return self.stored["joint"].get(_key(types))

    def add_joint(self, types: Mapping[str, str], value: float) -> None:
        self.stored["joint"][_key(types)] = value
        self._write()

    def add_errors(self, group: str, errors: dict[str, WeightErrors]) -> None:
        self.stored["errors"][group] = errors
        self._write()

    def output(self, name: str) -> Output | None:
        """What is known of the GGUF of this name; None if no search wrote it."""
        return self.stored.get("outputs", {}).get(name)

    def add_output(self, name: str, size: str, recipe: str) -> None:
        """Note that the GGUF of this name gets this recipe: before it is written."""
        before = self.output(name)
        digest = str(text_sha256(recipe))
        recipes = [] if before is None else [one for one in before["recipes"] if one != digest]
        self.stored.setdefault("outputs", {})[name] = {"size": size, "recipes": [*recipes, digest]}
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.stored)


def _key(types: Mapping[str, str]) -> str:
    return str(text_sha256(json.dumps(sorted(types.items()))))
