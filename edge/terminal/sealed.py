"""Files that only edge can have written: their last bytes are a seal (HMAC-SHA256) made with a secret key.

No program in a sandbox can read the key. A program that runs as the user can read it: the seal does not protect from
that program.
"""

import contextlib
import hashlib
import hmac
import os
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from edge.errors import SandboxError

_SEAL_BYTES = 32
_PIECE = 1 << 20


class Writer(Protocol):
    """What takes the bytes of an archive, in order."""

    def write(self, data: bytes, /) -> object: ...


class _Sealing:
    def __init__(self, file: BinaryIO, key: bytes) -> None:
        self._file, self.mac = file, hmac.new(key, digestmod=hashlib.sha256)

    def write(self, data: bytes, /) -> None:
        self.mac.update(data)
        self._file.write(data)


@contextlib.contextmanager
def sealed(file: BinaryIO, key: bytes | None) -> Iterator[Writer]:
    """Writes to `file`, and the seal after it if the block does not raise. Without a key, there is no seal."""
    if key is None:
        yield file
        return
    sealing = _Sealing(file, key)
    yield sealing
    file.write(sealing.mac.digest())


def check_seal(file: BinaryIO, key: bytes) -> None:
    """Check the seal of a whole file, then go back to its begin. Raises SandboxError if it is not right, OSError."""
    left = os.fstat(file.fileno()).st_size - _SEAL_BYTES
    mac = hmac.new(key, digestmod=hashlib.sha256)
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        mac.update(piece)
        left -= len(piece)
    if left or not hmac.compare_digest(file.read(_SEAL_BYTES), mac.digest()):
        raise SandboxError(
            "this session did not write it, or it changed since: edge does not use it; remove it"
        )
    file.seek(0)
