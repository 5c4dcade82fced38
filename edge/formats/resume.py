"""A download that survives lost connections: a partial file grows until it has its size and its SHA-256."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge.errors import EdgeError
from edge.formats.hub_errors import is_final, request_errors
from edge.system.text import size

_CHUNK = 1 << 20
_PAUSES = (0.5, 1.0, 2.0)  # seconds before each try that follows one without a new byte

Pieces = Callable[[int], Iterator[tuple[bytes, int]]]
"""The bytes of a file from a given one on, in pieces, each with the byte where the answer of the server begins."""


@dataclass(frozen=True)
class Wanted:
    """A file to download. `authority`: who says its size and SHA-256, for error lines: "the hub reports"."""

    name: str
    n_bytes: int
    sha256: str
    authority: str


def complete(
    partial: Path,
    wanted: Wanted,
    pieces: Pieces,
    progress: Callable[[int], object],
    error: type[EdgeError],
) -> None:
    """Append to a partial file what it lacks, and check its SHA-256. A partial file may be missing.

    `progress` receives the bytes done. Raises `error` if the connection is lost for too long, and if the content is
    wrong: then the partial file is removed. What `pieces` raises passes, unless another try can help.
    """
    with open(partial, "a+b") as stream:
        stream.seek(0)
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        if stream.tell() > wanted.n_bytes:
            stream.seek(0)
            stream.truncate()
            digest = hashlib.sha256()
        digest = _append(stream, wanted, digest, pieces, progress, error)
        os.fsync(stream.fileno())
    if digest.hexdigest() != wanted.sha256:
        partial.unlink(missing_ok=True)
        raise error(
            f"{wanted.name}: has the SHA-256 {digest.hexdigest()}, but {wanted.authority} {wanted.sha256}; "
            "the download was removed, try again"
        )


def _append(
    stream: BinaryIO,
    wanted: Wanted,
    digest: "hashlib._Hash",
    pieces: Pieces,
    progress: Callable[[int], object],
    error: type[EdgeError],
) -> "hashlib._Hash":
    """Append what is missing. After a lost connection, ask again for the rest."""
    failures = 0
    while (begin := stream.tell()) < wanted.n_bytes:
        progress(begin)
        try:
            for chunk, first in pieces(begin):
                if first == 0 and stream.tell() and begin:  # the server sent the file from its beginning
                    stream.seek(0)
                    stream.truncate()
                    digest, begin = hashlib.sha256(), 0
                stream.write(chunk)
                stream.flush()  # a killed process loses nothing
                digest.update(chunk)
                failures = 0
                progress(stream.tell())
                if stream.tell() > wanted.n_bytes:
                    break
            problem: Exception | None = None
        except request_errors() as raised:
            problem = raised
        if stream.tell() > wanted.n_bytes:
            raise error(f"{wanted.name}: is longer than the {wanted.n_bytes:,} bytes that {wanted.authority}")
        if stream.tell() < wanted.n_bytes:
            if problem is not None and is_final(problem):
                raise problem
            if failures == len(_PAUSES):
                raise error(
                    f"{wanted.name}: the connection was lost at {size(stream.tell())} of "
                    f"{size(wanted.n_bytes)}; run the same command again to resume"
                ) from None
            time.sleep(_PAUSES[failures])
            failures += 1
    progress(stream.tell())
    return digest
