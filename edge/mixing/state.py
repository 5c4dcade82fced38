"""What a search measured, on disk: an interrupted search resumes, and a search for another size measures less."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from edge.errors import EdgeError, ResultError
from edge.mixing.choice import Floats, steady_sum, usual_shares
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


class MeasuredFile(TypedDict):
    """A real file, measured on the calibration rows."""

    n_bytes: int
    """Its size."""
    by_task: dict[str, list[float]]
    """The sum of its KL divergences in nats, and the number of positions; by task."""


class StoredChoice(TypedDict):
    """What a search for one size chose: the same command again makes the same file."""

    types: dict[str, str]
    """The type of each group."""
    costs: str
    """The table of its costs, as in the metadata of the file."""
    expected: float
    """The sum of the costs in nats."""
    together: float
    """The divergence of all of them together, in memory."""
    target: int
    """Maximum size of the file in bytes."""
    quant: str
    """The file type in the metadata."""
    standard: str | None
    """The largest of llama.cpp's types that fits into the size; null if none fits."""


class StoredCosts(TypedDict):
    """costs.json of `edge convert --quant auto`: what was measured, for this checkpoint and these rows."""

    schema_version: NotRequired[int]
    """Version of this format."""
    search: Mapping[str, str | int | None]
    """The settings that two searches must share to use the same measurements."""
    rows: NotRequired[list[int]]
    """The calibration rows that each measurement of a search reads, by their places in the file, from 0."""
    errors: dict[str, dict[str, WeightErrors]]
    """By group, then by type."""
    alone: dict[str, dict[str, list[float]]]
    """What each of `rows` adds to the mean KL divergence, in nats, if only this group has this type; by group, then by
    type."""
    joint: dict[str, list[float]]
    """The same of whole choices, by the SHA-256 of their types."""
    choices: NotRequired[dict[str, StoredChoice]]
    """What was chosen, by size."""
    files: NotRequired[dict[str, MeasuredFile]]
    """Real files: llama.cpp's types by their name, choices by the SHA-256 of their recipe and costs."""


@dataclass
class Costs:
    """The measurements of a search. Each is on disk as soon as it is added."""

    path: Path
    stored: StoredCosts
    shares: Floats = field(default_factory=lambda: np.ones(0))
    """The usual share of each row in a divergence."""

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
        found = cls(path, before)
        found._renew()
        return found

    def rows(self, choose: Callable[[], list[int]]) -> list[int]:
        """The rows that each measurement reads, chosen by `choose` the first time."""
        if "rows" not in self.stored:
            self.stored["rows"] = choose()
            self._write()
        return self.stored["rows"]

    def alone(self, group: str) -> dict[str, float]:
        """The measured divergences of a group, by type, in nats."""
        found = self.stored["alone"].get(group, {})
        return {kind: steady_sum(parts, self.shares) for kind, parts in found.items()}

    def add_alone(self, group: str, kind: str, parts: list[float]) -> None:
        """Store what each row adds to the divergence of a group in a type, in nats."""
        self.stored["alone"].setdefault(group, {})[kind] = _short(parts)
        self._renew()
        self._write()

    def joint(self, types: Mapping[str, str]) -> float | None:
        """The measured divergence of a choice, by group; None if it was not measured."""
        parts = self.stored["joint"].get(_key(types))
        return None if parts is None else steady_sum(parts, self.shares)

    def add_joint(self, types: Mapping[str, str], parts: list[float]) -> None:
        """Store what each row adds to the divergence of a choice, in nats."""
        self.stored["joint"][_key(types)] = _short(parts)
        self._write()

    def file(self, name: str) -> MeasuredFile | None:
        """A measured file by its name in costs.json; None if it was not measured."""
        return self.stored.get("files", {}).get(name)

    def add_file(self, name: str, measured: MeasuredFile) -> None:
        """Store a measured file under a name."""
        self.stored["files"] = {**self.stored.get("files", {}), name: measured}
        self._write()

    def choice(self, wanted: str) -> StoredChoice | None:
        """What was chosen for a size; None if that search did not end."""
        return self.stored.get("choices", {}).get(wanted)

    def add_choice(self, wanted: str, choice: StoredChoice) -> None:
        """Store what was chosen for a size."""
        self.stored["choices"] = {**self.stored.get("choices", {}), wanted: choice}
        self._write()

    def add_errors(self, group: str, errors: dict[str, WeightErrors]) -> None:
        """Store the weight errors of a group, by type."""
        self.stored["errors"][group] = errors
        self._write()

    def _renew(self) -> None:
        self.shares = usual_shares(
            [parts for each in self.stored["alone"].values() for parts in each.values()]
        )

    def _write(self) -> None:
        write_json(self.path, self.stored)


def _short(parts: list[float]) -> list[float]:
    return [float(f"{part:.6g}") for part in parts]


def _key(types: Mapping[str, str]) -> str:
    return str(text_sha256(json.dumps(sorted(types.items()))))
