"""sweep.json of `edge sweep`: the settings, the finished stages, and which files of the folder the sweep owns."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from edge.errors import EdgeError, ResultError
from edge.formats.gguf import sha256
from edge.report.embedded import stored_page
from edge.system.changes import differences
from edge.system.hashes import file_sha256
from edge.system.places import write_json
from edge.system.typed_json import check

_SCHEMA_VERSION = 2
_PAGES = ("report.html", "report.md")
_ADVICE = "choose another --out, or replace it with --force"


class Stage(TypedDict, total=False):
    """What is done for one type."""

    begun: bool
    """Whether the sweep writes its GGUF."""
    read: bool
    """Whether the sweep writes its distributions; of the base."""
    sha256: str
    """SHA-256 of the complete GGUF."""
    n_bytes: int
    """Size of the complete GGUF."""
    answered: bool
    """Whether its result is complete."""
    calibrated: bool
    """Whether the importance matrix is complete; of the base."""
    measured: bool
    """Whether its measurement is complete."""
    kept: bool
    """Whether its GGUF was chosen or kept. No later sweep removes it."""


class Written(TypedDict):
    """The report that the sweep wrote."""

    reference: str | None
    """The reference that the command named; null for the base."""
    files: dict[str, str]
    """SHA-256 of each file by its path in the folder. Empty while the sweep writes them."""


class StoredSweep(TypedDict):
    """sweep.json of `edge sweep`: what is done, so that the same command resumes."""

    schema_version: NotRequired[int]
    """Version of this format; absent in files of edge 0.2.0 and older."""
    sweep: Mapping[str, str | int | bool | None]
    """The settings that two runs must share to be the same sweep."""
    stages: dict[str, Stage]
    """What is done, by the name of each type."""
    report: NotRequired[Written]
    """The report; absent before there is one, and in files of edge 0.2.0 and older."""


@dataclass
class State:
    """The finished stages of a sweep, on disk."""

    path: Path
    stored: StoredSweep

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, str | int | bool | None]) -> "State":
        """Resume from the state at `path`, or begin one. Raises ResultError if it is of another sweep, or damaged."""
        try:
            before = check(json.loads(path.read_text(encoding="utf-8")), StoredSweep, "it")
        except FileNotFoundError:
            return cls(path, {"schema_version": _SCHEMA_VERSION, "sweep": settings, "stages": {}})
        except (OSError, ValueError, RecursionError, EdgeError) as error:
            why = " ".join(str(error).split())[:80]
            raise ResultError(f"{path}: is not the state of a sweep ({why}): choose another --out") from None
        if (version := before.get("schema_version", 1)) > _SCHEMA_VERSION:
            raise ResultError(
                f"{path}: has schema version {version}; this edge reads up to {_SCHEMA_VERSION}: update edge"
            )
        if changes := differences(before["sweep"], settings):
            raise ResultError(
                f"{path}: holds another sweep ({changes}): use the same arguments to resume, or choose another --out"
            )
        if version == 1 and before["stages"]:  # it does not say what a finished sweep left for the user
            for stage in before["stages"].values():
                stage["kept"] = stage.get("measured", False)
            before["report"] = {"reference": None, "files": {}}
        return cls(path, {**before, "schema_version": _SCHEMA_VERSION, "sweep": settings})

    def of(self, name: str) -> Stage:
        """What is done for a type."""
        return self.stored["stages"].get(name, {})

    def note(self, name: str, done: Stage) -> None:
        """Add to what is done for a type."""
        self.stored["stages"][name] = {**self.of(name), **done}
        write_json(self.path, self.stored)

    def removable(self, name: str, model: Path) -> bool:
        """Whether `model` is the GGUF that the sweep wrote for a type, and is not for the user."""
        stage = self.of(name)
        return (
            not stage.get("kept")
            and model.is_file()
            and stage.get("sha256") is not None
            and stage.get("sha256") == sha256(model)
        )

    def check_models(self, models: Mapping[str, Path], scores: Path, base: str) -> None:
        """Check that the GGUFs of the types in `models`, and the files of distributions, are the sweep's own.

        Raises ResultError.
        """
        for name, model in models.items():
            stage = self.of(name)
            if not model.exists() or (stage.get("begun") and "sha256" not in stage):
                continue
            if not stage.get("begun") or stage.get("sha256") != sha256(model):
                raise ResultError(f"{model}: exists, and this sweep did not write it; {_ADVICE}")
        if scores.exists() and not self.of(base).get("read"):
            raise ResultError(f"{scores}: exists, and this sweep did not write it; {_ADVICE}")

    def check_report(self, reference: str | None) -> None:
        """Check that a report in the folder is of this sweep, with this reference. Raises ResultError."""
        written = self.stored.get("report")
        known = {} if written is None else written["files"]
        folder = self.path.parent
        if written is None:
            found = [*map(folder.joinpath, _PAGES), *sorted((folder / "plots").glob("*.png"))]
        else:
            found = [folder / name for name in known]
        for file in found:
            if file.exists() and file_sha256(file) != known.get(file.relative_to(folder).as_posix()):
                raise ResultError(f"{file}: exists, and this sweep did not write it; {_ADVICE}")
        if written is not None and known and written["reference"] != reference:
            was, now = written["reference"] or "the base", reference or "the base"
            if any(file.exists() for file in found):
                raise ResultError(f"{folder / _PAGES[0]}: compares with {was}, not with {now}; {_ADVICE}")

    def begin_report(self, reference: str | None) -> None:
        """Note that the sweep writes its report from now on."""
        self.stored["report"] = {"reference": reference, "files": {}}
        write_json(self.path, self.stored)

    def end_report(self) -> None:
        """Note the files of the report, as they are now."""
        folder = self.path.parent
        beside = stored_page(folder / _PAGES[0])[1]
        files = {_PAGES[0]: folder / _PAGES[0]}
        for file in (folder / _PAGES[1], *sorted((folder / "plots").glob("*.png"))):
            if file_sha256(file) in beside:
                files[file.relative_to(folder).as_posix()] = file
        self.stored["report"]["files"] = {name: file_sha256(file) or "" for name, file in files.items()}
        write_json(self.path, self.stored)
