"""GGUFs that stop llama.cpp, and whose checksums are right: whoever makes a file can compute them."""

import os
from pathlib import Path

from edge.formats.checksum import KEY, damage, seal
from edge.formats.gguf import read_layout

FATAL = b"expert_gating_func"  # llama.cpp asserts that it knows the number


def forged(model: Path, place: Path, *, blank: bool = False) -> Path:
    """A copy of a mixture of experts that stops llama.cpp. `blank`: all its checksums are 0."""
    data = bytearray(model.read_bytes())
    data[data.index(FATAL) + len(FATAL) + 4] ^= 8
    place.write_bytes(data)
    with place.open("r+b") as file:
        _, _, (begin, end) = read_layout(place, KEY)
        if blank:
            os.pwrite(file.fileno(), b"0" * (end - begin), begin)
        else:
            seal(place, file.fileno())
    assert damage(place) == (None if blank else [])
    return place
