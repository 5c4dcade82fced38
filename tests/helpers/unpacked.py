"""A work folder as a sandbox has it, unpacked by tar, for tests of what comes back."""

import io
import subprocess
from pathlib import Path

from edge.terminal.packed import copy_archive, pack, read_base
from edge.terminal.sealed import sealed
from edge.terminal.workfolder import Comparison, compare

MOST = 10 << 20
KEY = b"a key of 32 bytes for the tests."


class Session:
    """A copy of the folder that tar unpacked, and what comes back from it."""

    def __init__(self, folder: Path, place: Path) -> None:
        place.mkdir()
        self.folder, self.inside, self.packed = folder, place / "inside", place / "saved.tar"
        pack(folder, place / "in.tar", MOST)
        self.base = read_base(place / "in.tar")
        self.inside.mkdir()
        subprocess.run(["tar", "-xf", place / "in.tar", "-C", self.inside, "./"], check=True)

    def compare(self, **options: object) -> Comparison:
        command = [
            "tar",
            "-c",
            "--format=gnu",
            "-b",
            "1",
            "--hard-dereference",
            "-C",
            str(self.inside),
            "-f",
            "-",
            ".",
        ]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        with self.packed.open("wb") as file, sealed(file, KEY) as out:
            copy_archive(io.BytesIO(data).read, self.base, out, MOST)
        return compare(self.folder, self.packed, key=KEY, **options)  # type: ignore[arg-type]
