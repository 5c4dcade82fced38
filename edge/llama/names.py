"""Whether the installed llama.cpp knows the names of a file's architecture and tokenizer, without showing it the file.

llama.cpp has no function that lists them. It gets a small GGUF that edge writes, which has these names and nothing else
of the file, and says whether it knows them before it misses the vocabulary.
"""

import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge.errors import ModelFileError
from edge.formats.gguf import read_metadata

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
_STRING, _ARRAY = 8, 9
_UNKNOWN = re.compile(r"(?:unknown|unsupported) (?:model architecture|(?:pre-)?tokenizer(?: type)?): '[^']*'")


def check_names(path: Path, refusal: Callable[[Path], str]) -> None:
    """Raises ModelFileError if llama.cpp does not know the architecture or the tokenizer that a GGUF names.

    `refusal`: loads the vocabulary of a GGUF with llama.cpp and returns the error that it logs.
    """
    metadata = read_metadata(path)
    names = {key: metadata[key] for key in _KEYS if key in metadata}
    for key, name in names.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ModelFileError(f"{path}: damaged: {key} is not a name; convert or fetch it again")
    with tempfile.TemporaryDirectory(prefix="edge-names-") as folder:
        place = Path(folder, "names.gguf")
        place.write_bytes(_gguf(names))
        if found := _UNKNOWN.search(refusal(place)):
            raise ModelFileError(
                f"{path}: the installed llama.cpp does not know it: {found[0]}; edge shows it no such file: update "
                "llama-cpp-python, or convert a model of a known kind"
            )


def _gguf(names: dict[str, str]) -> bytes:
    """A GGUF of version 3 without tensors: the names, and one merge, because llama.cpp reads the merges first."""
    entries = [_text(key) + struct.pack("<I", _STRING) + _text(name) for key, name in names.items()]
    entries.append(_text("tokenizer.ggml.merges") + struct.pack("<IIQ", _ARRAY, _STRING, 1) + _text("a b"))
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)
    return data + bytes(-len(data) % 32)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
