"""The sums of an unfinished calibration in a file, so that an interrupted calibration can resume.

The file has a line with the SHA-256 of what follows; a line of JSON with the identity of the calibration and the names
and shapes of the tensors; then the sums (float64) and counts (int64) of each tensor, little-endian. The file gets its
name only when it is complete.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from edge.errors import ModelFileError
from edge.formats.imatrix import replacing
from edge.llama.activations import Activation
from edge.system.changes import differences

_MAGIC = b"edge calibration 1 "


@dataclass
class PartialFile:
    """The sums over the first `done` sequences, and the file that keeps them until the calibration is finished.

    `identity`: the model, data, versions and arguments that the sums belong to.
    """

    path: Path
    identity: Mapping[str, Any]
    done: int
    sums: dict[str, Activation]

    @classmethod
    def read(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """Read the sums, or start with none if there is no file.

        Raises ModelFileError if the file cannot be read, is damaged, or belongs to another calibration.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(path, identity, 0, {})
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
        first, _, rest = data.partition(b"\n")
        if not first.startswith(_MAGIC):
            raise ModelFileError(
                f"{path}: is not a calibration file of edge: move it away, or choose another --out"
            )
        if first != _MAGIC + hashlib.sha256(rest).hexdigest().encode():
            raise ModelFileError(f"{path}: is damaged: delete it to start again")
        head, _, values = rest.partition(b"\n")
        fields = json.loads(head)
        if changes := differences(fields["identity"], identity):
            raise ModelFileError(
                f"{path}: belongs to another calibration ({changes}): run the same command as before to "
                "resume, choose another --out, or delete this file"
            )
        sums, at = {}, 0
        for name, rows, columns, counts in fields["tensors"]:
            ends = at + 8 * rows * columns, at + 8 * (rows * columns + counts)
            sums[name] = Activation(
                np.frombuffer(values[at : ends[0]], "<f8").reshape(rows, columns).copy(),
                np.frombuffer(values[ends[0] : ends[1]], "<i8").copy(),
            )
            at = ends[1]
        return cls(path, identity, fields["done"], sums)

    def add(self, new: Mapping[str, Activation]) -> None:
        """Add the sums of the next sequence: `new` is empty if all its tokens were read with earlier ones."""
        for name, activation in new.items():
            if name in self.sums:
                self.sums[name].sums += activation.sums
                self.sums[name].counts += activation.counts
            else:
                self.sums[name] = activation
        self.done += 1

    def write(self) -> None:
        """Write the file, if any sequence is done. Raises ModelFileError if it cannot be written."""
        if not self.done:
            return
        tensors = [
            (name, *activation.sums.shape, len(activation.counts)) for name, activation in self.sums.items()
        ]
        head = {"identity": dict(self.identity), "done": self.done, "tensors": tensors}
        values = b"".join(
            activation.sums.astype("<f8").tobytes() + activation.counts.astype("<i8").tobytes()
            for activation in self.sums.values()
        )
        rest = json.dumps(head).encode() + b"\n" + values
        with replacing(self.path) as file:
            file.write(_MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)

    def remove(self) -> None:
        """Delete the file, if it exists."""
        with contextlib.suppress(OSError):
            self.path.unlink()
