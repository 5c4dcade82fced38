"""What a measurement keeps of the base model: its distributions at the nodes of a plan, in a file.

    edge base scores 1\\n
    {"base_sha256": …, "plan_sha256": …, …}\\n         the identity, one line of JSON
    records, one a node, in the plan's order

A record is `_HEAD`, then the targets' log-probabilities (float64), the ids (uint32) and logits (float32) kept, and
where the rest is kept by classes a zlib stream of the codes (a byte a token) and classes (float64). Little-endian.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edge.divergence import CLASSES, Kept
from edge.errors import ResultError

_MAGIC = b"edge base scores 1\n"
_LONGEST = 1 << 20  # bytes of the identity's line
# Best token, log_norm, log_rest, entropy; how many targets, ids, logits; bytes of the stream.
_HEAD = struct.Struct("<iddd HIII")


def is_base_scores(path: Path) -> bool:
    """Whether a file is one of these."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def begin_scores(file: BinaryIO, identity: Mapping[str, Any]) -> None:
    """Write what comes before the records."""
    file.write(_MAGIC + json.dumps(dict(identity)).encode() + b"\n")


def write_record(file: BinaryIO, kept: Kept, targets: Sequence[float]) -> None:
    """Append a node: what is kept of its distribution, and the log-probabilities of its targets."""
    ids = np.empty(0, np.uint32) if kept.ids is None else kept.ids
    stream = b""
    if kept.codes is not None and kept.classes is not None:
        stream = zlib.compress(kept.codes.tobytes() + kept.classes.astype("<f8").tobytes(), 1)
    file.write(
        _HEAD.pack(
            kept.best,
            kept.log_norm,
            kept.log_rest,
            kept.entropy,
            len(targets),
            len(ids),
            len(kept.logits),
            len(stream),
        )
    )
    for values, kind in ((np.asarray(targets), "<f8"), (ids, "<u4"), (kept.logits, "<f4")):
        file.write(values.astype(kind).tobytes())
    file.write(stream)


def read_identity(path: Path) -> dict[str, Any]:
    """What the scores are of. Raises ResultError."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ResultError(f"{path}: holds no base scores")
            found = json.loads(file.readline(_LONGEST))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ResultError(f"{path}: is damaged: make the base scores anew")
    return found


def read_records(path: Path) -> Iterator[tuple[Kept, list[float]]]:
    """Each node's, in the plan's order. Raises ResultError for a file that is cut or damaged."""
    with path.open("rb") as file:
        file.read(len(_MAGIC))
        file.readline(_LONGEST)
        while head := file.read(_HEAD.size):
            try:
                best, log_norm, log_rest, entropy, n_targets, n_ids, n_logits, n_stream = _HEAD.unpack(head)
                targets = _array(file, "<f8", n_targets).tolist()
                ids, logits = _array(file, "<u4", n_ids), _array(file, "<f4", n_logits)
                codes = classes = None
                if n_stream:
                    data = zlib.decompress(file.read(n_stream))
                    codes = np.frombuffer(data[: -CLASSES * 32], np.uint8)
                    classes = np.frombuffer(data[-CLASSES * 32 :], "<f8").reshape(CLASSES, 4)
            except (struct.error, ValueError, zlib.error):
                raise ResultError(f"{path}: is cut or damaged: make the base scores anew") from None
            yield (
                Kept(best, log_norm, ids if n_ids else None, logits, log_rest, entropy, codes, classes),
                targets,
            )


def _array(file: BinaryIO, kind: str, count: int) -> np.ndarray[Any, Any]:
    data = file.read(np.dtype(kind).itemsize * count)
    if len(data) < np.dtype(kind).itemsize * count:
        raise ValueError("cut")
    return np.frombuffer(data, kind)
