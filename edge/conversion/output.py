"""Where a conversion writes, and what it may replace."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConversionError
from edge.formats.checksum import KEY
from edge.formats.gguf import read_metadata, read_tensors, recall
from edge.llama.types import FTYPES
from edge.system.hashes import text_sha256
from edge.system.outputs import Run, check_replaced
from edge.system.places import check_place, place_of
from edge.system.store import store_folder

_PATHS = frozenset(("quantize.imatrix.file", "quantize.imatrix.dataset"))


def output_place(out: str | Path | None, file: str) -> tuple[Path, Path]:
    """The path of the output, and the same with links resolved. If `out` is a folder, the file in it is named `file`.

    Creates nothing. Raises ConversionError if no file can be written there.
    """
    path = store_folder() / file if out is None else Path(out) if str(out) else out
    named = ""
    if isinstance(path, Path) and os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        named, path = str(path), path / file
    check_place(path, named=named, error=ConversionError, streams=False)
    if os.path.islink(path) and os.path.realpath(Path(path).parent) == os.path.realpath(store_folder()):
        # Behind a link in the store is a file of the hub's cache, whose name is its checksum.
        raise ConversionError(f"{path}: is a link to another model's file; choose another name with --out")
    return Path(path), place_of(path)[0]


@dataclass(frozen=True)
class Replaced:
    """The file that the conversion may replace: none, one of the same conversion, or with `force` any."""

    out: Path
    force: bool
    there: bool
    """Whether there is a file before the conversion."""

    @classmethod
    def at(cls, out: Path, force: bool) -> "Replaced":
        return cls(out, force, out.is_file() and out.stat().st_size > 0)

    def check(self, run: Run) -> None:
        """Compare the header at `out` with the values of `run` that will be written. Raises ConversionError.

        The header has paths as a command named them. Where edge remembers the sources, `check_sources` compares those.
        """
        if self.there and recall(self.out, "made_from") is not None:
            run = {name: value for name, value in run.items() if name not in _PATHS}

        def read(path: Path) -> Run:
            before = header_run(path)
            return {name: before.get(name) for name in run}

        check_replaced(self.out, run, read, kind="a GGUF", force=self.force, error=ConversionError)

    def check_sources(self, made_from: str) -> None:
        """Compare the sources of the file at `out`, if edge remembers them, with these. Raises ConversionError.

        Two checkpoints of one architecture can have the same header: only this tells their files apart.
        """
        before = recall(self.out, "made_from") if self.there else None
        if before is None:
            return

        def read(_: Path) -> Run:
            named: dict[str, object] = json.loads(before)
            return named

        run = json.loads(made_from)
        check_replaced(self.out, run, read, kind="a GGUF", force=self.force, error=ConversionError)


def sources(**inputs: Path | str | None) -> str:
    """The inputs of a conversion as text, by name: a hub id, or the path of a file or folder."""
    named = {
        name: os.path.realpath(path) if isinstance(path, Path) or os.path.exists(path) else path
        for name, path in inputs.items()
        if path is not None
    }
    return json.dumps(named, sort_keys=True)


def header_run(path: Path) -> Run:
    """What the header of a GGUF says of its conversion. Raises ModelFileError."""
    metadata, tensors = read_metadata(path), read_tensors(path)
    listed = "".join(f"{tensor.name} {tensor.type} {tensor.shape}\n" for tensor in tensors)
    own = {key: value for key, value in metadata.items() if key != KEY}
    return {
        "architecture": metadata.get("general.architecture"),
        "type": next(
            (name for name, number in FTYPES.items() if number == metadata.get("general.file_type")), None
        ),
        "tensors": text_sha256(listed),
        **own,
    }
