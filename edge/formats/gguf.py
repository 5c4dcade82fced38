"""Reads and checks the header of a GGUF before llama.cpp does, because llama.cpp stops the process at a bad header.

The GGUF format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): the magic, a version, the counts of tensors
and metadata entries, the metadata, one entry for each tensor, then the tensors' data, aligned. This module does not
call llama.cpp.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, size_label

from edge.errors import ModelFileError
from edge.system.files import whole_file
from edge.system.paths import cache_folder
from edge.system.store import model_name, store_files

# Scalar value types of the format: number -> struct code. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 64  # GGML_MAX_NAME
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # llama_rope_scaling_type_from_string
_KEPT_ITEMS = 4096  # longest array of numbers that is kept; of others, only the place
_ADAPTER = "is an adapter, not a model; give its base with --model, and it with --lora"

# Block length and bytes of each tensor type; Q2_0 is newer than the gguf package on PyPI.
_BLOCKS: dict[int, tuple[int, int]] = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} | {
    42: (64, 18)
}
_TYPE_NAMES: dict[int, str] = {int(kind): kind.name for kind in GGMLQuantizationType} | {42: "Q2_0"}
_FILE_TYPES: dict[int, str] = {int(kind): kind.name.split("_", 1)[-1] for kind in LlamaFileType} | {
    41: "Q2_0"
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF. `shape`: in ggml's order, row length first; `offset`: in bytes in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class ModelFile:
    """What a GGUF says about itself.

    `bits_per_weight`: of the tensors' data, without the header. `end_ids`: the tokens that end an answer (end of
    sequence, of turn, of message), as far as the model has them. `kind`: general.type, such as model or adapter.
    `part`: the number of this file, from 1, and of how many. `causal`: False for an encoder, which writes no text.
    """

    path: Path
    architecture: str
    name: str
    size_label: str
    file_type: str
    n_params: int
    n_bytes: int
    bits_per_weight: float
    context_length: int
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    bos_id: int | None
    eos_id: int | None
    end_ids: tuple[int, ...]
    add_bos: bool
    n_vocab: int
    kind: str = "model"
    part: tuple[int, int] = (1, 1)
    causal: bool = True


@dataclass(frozen=True)
class _Header:
    metadata: dict[str, Any]  # scalars, strings, short lists of numbers
    arrays: dict[str, tuple[int, int, int]]  # every array: item type, count, first byte of its items
    texts: dict[str, tuple[int, int]]  # every string: its first byte and the byte after it
    kinds: dict[str, int]  # the value type of every entry
    tensors: list[TensorInfo]
    end: int  # the byte after the header
    alignment: int


class _Reader:
    """Reads the fields of a header in order. It compares every length with the rest of the file before using it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def fail(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {problem}; convert or fetch it again")

    def skip(self, n_bytes: int) -> int:
        """Move past n_bytes and return the first of them."""
        begin = self.at
        if n_bytes > len(self.data) - begin:
            raise self.fail(f"truncated or damaged at byte {begin:,}")
        self.at = begin + n_bytes
        return begin

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        return struct.unpack_from(f"<{code}", self.data, self.skip(size))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        begin = self.skip(length)
        return self.data[begin : begin + length].decode("utf-8", "replace")

    def array(self) -> tuple[tuple[int, int, int], list[Any] | None]:
        kind, count = self.scalar("I"), self.scalar("Q")
        begin = self.at
        if kind == _STRING:
            if count > len(self.data) // 8:
                raise self.fail(f"truncated or damaged: an array of {count:,} strings cannot fit")
            unpack = struct.Struct("<Q").unpack_from
            at, end = begin, len(self.data)
            for _ in range(count):  # a fast loop: there may be hundreds of thousands of tokens
                if at > end - 8:
                    break
                at += 8 + unpack(self.data, at)[0]
            self.skip(at - begin)
            return (kind, count, begin), None
        if kind not in _SCALARS:
            raise self.fail(f"damaged: an array of the unknown type {kind}")
        self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        items = None
        if count <= _KEPT_ITEMS:
            items = list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, begin))
        return (kind, count, begin), items

    def strings(self, count: int, begin: int) -> list[bytes]:
        """The items of an array of strings that `array` has read."""
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, begin
        items = []
        for _ in range(count):
            end = at + 8 + unpack(data, at)[0]
            items.append(data[at + 8 : end])
            at = end
        return items


def read_model_file(path: str | Path) -> ModelFile:
    """Read and check the header of a GGUF, without the weights: about 10 ms for 50,000 tokens.

    Raises ModelFileError if the file is missing, not a GGUF, truncated (also within the tensor data) or damaged, if it
    has no vocabulary, or if it has numbers at which llama.cpp would stop the process.
    """
    path = Path(path)
    with _opened(path) as reader:
        header = _read_header(reader)
        metadata = header.metadata
        architecture = _text(metadata, "general.architecture")
        if architecture is None:
            raise reader.fail("damaged: general.architecture is missing")
        if metadata.get("general.type") == "adapter":
            raise ModelFileError(f"{path}: {_ADAPTER}")
        tokens = _vocabulary(reader, header)
        n_vocab = len(tokens)
        _check_numbers(reader, metadata, architecture)
        n_params = sum(math.prod(tensor.shape) for tensor in header.tensors)
        if not n_params:
            raise reader.fail("has no tensors")
        bos_id = _token_id(metadata, "tokenizer.ggml.bos_token_id", n_vocab)
        eos_id, *further = (
            _token_id(metadata, f"tokenizer.ggml.{kind}_token_id", n_vocab) for kind in ("eos", "eot", "eom")
        )
        return ModelFile(
            path=path,
            architecture=architecture,
            name=_text(metadata, "general.name") or path.stem,
            size_label=_text(metadata, "general.size_label") or size_label(n_params, n_params, 0, 0),
            file_type=_file_type(header),
            n_params=n_params,
            n_bytes=len(reader.data),
            bits_per_weight=8 * sum(tensor.n_bytes for tensor in header.tensors) / n_params,
            context_length=_count(metadata, f"{architecture}.context_length"),
            chat_template=_text(metadata, "tokenizer.chat_template"),
            bos_token=None if bos_id is None else tokens[bos_id].decode("utf-8", "replace"),
            eos_token=None if eos_id is None else tokens[eos_id].decode("utf-8", "replace"),
            bos_id=bos_id,
            eos_id=eos_id,
            end_ids=tuple(dict.fromkeys(i for i in (eos_id, *further) if i is not None)),
            add_bos=metadata.get("tokenizer.ggml.add_bos_token") is True,
            n_vocab=n_vocab,
            kind=_text(metadata, "general.type") or "model",
            part=(_count(metadata, "split.no") + 1, max(_count(metadata, "split.count"), 1)),
            causal=metadata.get(f"{architecture}.attention.causal") is not False,
        )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """A GGUF's metadata without the vocabulary: numbers, booleans, strings and lists of up to 4,096 numbers.

    Raises ModelFileError if the header is missing or damaged.
    """
    with _opened(Path(path)) as reader:
        return _read_header(reader).metadata


def read_kinds(path: str | Path) -> dict[str, int]:
    """The number of the value type of each metadata entry. Raises ModelFileError as `read_metadata` does."""
    with _opened(Path(path)) as reader:
        return _read_header(reader).kinds


def read_tensors(path: str | Path) -> list[TensorInfo]:
    """The tensors of a GGUF, in the order of the file. Raises ModelFileError if the header is missing or damaged."""
    with _opened(Path(path)) as reader:
        return _read_header(reader).tensors


def read_array(path: str | Path, key: str) -> list[Any]:
    """All items of an array in a GGUF's metadata: numbers, or strings as bytes. [] if it has no array of that name.

    Raises ModelFileError if the header is missing or damaged.
    """
    with _opened(Path(path)) as reader:
        kind, count, begin = _read_header(reader).arrays.get(key, (0, 0, 0))
        if kind == _STRING:
            return reader.strings(count, begin)
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", reader.data, begin))


def read_layout(path: str | Path, key: str) -> tuple[list[TensorInfo], int, tuple[int, int]]:
    """A GGUF's tensors, the byte after its header, and where the metadata string `key` begins and ends.

    The last two are (0, 0) without that string. Raises ModelFileError if the header is missing or damaged.
    """
    with _opened(Path(path)) as reader:
        header = _read_header(reader)
        return header.tensors, header.end, header.texts.get(key, (0, 0))


def read_padding(path: str | Path) -> list[tuple[int, int]]:
    """The unused bytes of a GGUF, as pairs of the first byte and the byte after: padding, and bytes at the end.

    Raises ModelFileError if the header is missing or damaged.
    """
    with _opened(Path(path)) as reader:
        header = _read_header(reader)
        places, at = [], header.end
        for tensor in header.tensors:
            places.append((at, tensor.offset))
            at = tensor.offset + tensor.n_bytes
        last = min(-(-at // header.alignment) * header.alignment, len(reader.data))
        return [(begin, end) for begin, end in (*places, (at, last), (last, len(reader.data))) if begin < end]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal, which identifies a model.

    edge remembers it in the user's cache folder by path, size and modification time. Raises ModelFileError if the file
    is missing or cannot be read.
    """
    path = Path(path)
    known = recall(path, "sha256")
    if known is not None:
        return known
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    remember(path, "sha256", digest)
    return digest


def recall(path: Path, what: str) -> str | None:
    """The remembered value of a file; None if there is none, or if its size or modification time has changed.

    Raises ModelFileError if the file is missing or cannot be read.
    """
    memory, key = _memory(path, what)
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return str(known[what]) if known["file"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not remembered, or damaged: the caller computes it again


def remember(path: Path, what: str, value: str) -> None:
    """Remember a value of a file as it is now, in the user's cache folder, if that can be written."""
    memory, key = _memory(path, what)
    # Without the cache, the next call takes longer.
    with contextlib.suppress(OSError), whole_file(memory) as (_, descriptor):
        os.write(descriptor, json.dumps({"file": key, what: value}).encode())


def _memory(path: Path, what: str) -> tuple[Path, str]:
    """The cache file for a value of a file, and the key that must be in it."""
    status = _status(path)
    try:
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    return cache_folder() / what / f"{name}.json", key


def _status(path: Path) -> os.stat_result:
    """The status of a regular file. edge does not open a FIFO or a device, because that may block."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelFileError(f"{path}: is a broken link: {os.readlink(path)} does not exist") from None
        raise ModelFileError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise ModelFileError(f"{str(path)!r}: cannot be read: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        made = [name for name in map(model_name, store_files()) if name.startswith(f"{path.resolve().name}-")]
        stored = f", or use one in the model store: {', '.join(made)}" if made else ""
        raise ModelFileError(
            f"{path}: is a folder, not a GGUF; make a GGUF with `edge convert {path}`{stored}"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path}: is not a regular file; give the path of a GGUF")
    return status


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    """A reader of the file, which is mapped into memory."""
    _status(path)
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelFileError(f"{path}: is empty; convert or fetch it again") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    with data:
        yield _Reader(path, data)


def _read_header(reader: _Reader) -> _Header:
    if reader.data[:4] != b"GGUF":
        raise reader.fail("is not a GGUF file")
    reader.at = 4
    version = reader.scalar("I")
    if version not in (2, 3):
        hint = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise reader.fail(f"is a GGUF of version {version}{hint}; edge reads versions 2 and 3")
    n_tensors, n_entries = reader.scalar("Q"), reader.scalar("Q")
    metadata: dict[str, Any] = {}
    arrays: dict[str, tuple[int, int, int]] = {}
    texts: dict[str, tuple[int, int]] = {}
    kinds: dict[str, int] = {}
    for _ in range(n_entries):  # too large a count soon reaches the end of the file
        key, kind = reader.string(), reader.scalar("I")
        if key in kinds:
            raise reader.fail(f"damaged: the key {key[:80]!r} occurs twice")
        kinds[key] = kind
        if kind == _ARRAY:
            arrays[key], items = reader.array()
            if items is not None:
                metadata[key] = items
        elif kind == _STRING:
            begin = reader.at + 8
            metadata[key] = reader.string()
            texts[key] = begin, reader.at
        elif kind in _SCALARS:
            metadata[key] = reader.scalar(_SCALARS[kind])
        else:
            raise reader.fail(f"damaged: {key[:80]!r} has the unknown type {kind}")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise reader.fail(f"damaged: general.alignment is {str(alignment)[:40]!r}, not a power of two")
    tensors = list(_read_tensors(reader, n_tensors, alignment))
    return _Header(metadata, arrays, texts, kinds, tensors, reader.at, alignment)


def _read_tensors(reader: _Reader, count: int, alignment: int) -> Iterator[TensorInfo]:
    """The entries of the tensors, checked against the file. ggml demands that they are in order, without gaps."""
    entries: list[tuple[str, tuple[int, ...], int, int, int]] = []
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        name = reader.string()
        n_dimensions = reader.scalar("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise reader.fail(f"damaged: the tensor {name[:80]!r} has {n_dimensions} dimensions")
        if len(name.encode()) >= _MAX_NAME or name in names:
            raise reader.fail(f"damaged: the tensor name {name[:80]!r} is too long or occurs twice")
        names.add(name)
        shape = tuple(reader.scalar("Q") for _ in range(n_dimensions))
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        block, block_bytes = _BLOCKS.get(kind, (0, 0))
        row = shape[0] if shape else 1
        if not block or row % block or math.prod(shape) >= 1 << 62:
            raise reader.fail(f"damaged: {name!r} has the shape {list(shape)} and the type {kind}")
        n_bytes = math.prod(shape) // block * block_bytes
        if offset != expected:
            raise reader.fail(f"damaged: {name!r} is at byte {offset:,} of the data, not at {expected:,}")
        expected += -(-n_bytes // alignment) * alignment
        entries.append((name, shape, kind, offset, n_bytes))
    begin = -(-reader.at // alignment) * alignment
    for name, shape, kind, offset, n_bytes in entries:
        end = begin + offset + n_bytes
        if end > len(reader.data):
            raise reader.fail(f"truncated: {name} ends at byte {end:,}, the file at {len(reader.data):,}")
        yield TensorInfo(name, shape, _TYPE_NAMES[kind], begin + offset, n_bytes)


def _vocabulary(reader: _Reader, header: _Header) -> list[bytes]:
    """The tokens as bytes, checked for what llama.cpp asserts about them."""
    model = _text(header.metadata, "tokenizer.ggml.model")
    kind, count, begin = header.arrays.get("tokenizer.ggml.tokens", (0, 0, 0))
    if model in (None, "none", "no_vocab") or kind != _STRING or not count:
        raise reader.fail("has no vocabulary")
    tokens = reader.strings(count, begin)
    # Each token must occur once, as a C string and with llama.cpp's name for an empty one.
    texts = [token.split(b"\0", 1)[0] or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
    seen = {text: i for i, text in enumerate(texts)}
    if len(seen) < count:
        twice = next(text for i, text in enumerate(texts) if seen[text] != i)
        raise reader.fail(f"damaged: the token {twice[:40].decode('utf-8', 'replace')!r} occurs twice")
    if model == "llama":
        byte = next((i for i in range(256) if b"<0x%02X>" % i not in seen and bytes((i,)) not in seen), None)
        if byte is not None:
            raise reader.fail(f"damaged: its vocabulary has no token for the byte 0x{byte:02X}")
    return tokens


def _check_numbers(reader: _Reader, metadata: dict[str, Any], architecture: str) -> None:
    """Check the numbers that llama.cpp asserts for every architecture (llama_model_base::load_hparams)."""

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        values = value if isinstance(value, list) else [value]  # a list has one item for each layer
        return max((item for item in values if type(item) is int), default=0)

    layers = number("block_count")
    if f"{architecture}.block_count" in metadata and not 1 <= layers <= _MAX_LAYERS:
        raise reader.fail(f"damaged: it has {layers:,} layers; llama.cpp reads 1 to {_MAX_LAYERS}")
    if number("nextn_predict_layers") > layers:
        raise reader.fail(
            f"damaged: {number('nextn_predict_layers'):,} of {layers:,} layers are prediction layers"
        )
    experts, used = number("expert_count"), number("expert_used_count")
    if experts > _MAX_EXPERTS or used > experts or (experts and not used):
        raise reader.fail(
            f"damaged: {used:,} of {experts:,} experts for each token; llama.cpp reads at most {_MAX_EXPERTS}"
        )
    groups, used = number("expert_group_count"), number("expert_group_used_count")
    if groups and (groups >= experts or (groups > 1 and (experts % groups or not 0 < used < groups))):
        raise reader.fail(f"damaged: {used:,} of {groups:,} groups for each token, of {experts:,} experts")
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        raise reader.fail(f"damaged: the unknown rope scaling type {scaling[:40]!r}")


def _file_type(header: _Header) -> str:
    """The quantization type in the metadata (Q4_K_M), else the type of most of the tensors' bytes."""
    number = header.metadata.get("general.file_type")
    if type(number) is int and number in _FILE_TYPES:
        return _FILE_TYPES[number]
    n_bytes: dict[str, int] = {}
    for tensor in header.tensors:
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    return max(n_bytes, key=lambda kind: n_bytes[kind])


def _text(metadata: dict[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _count(metadata: dict[str, Any], key: str) -> int:
    value = metadata.get(key)
    return value if type(value) is int and value >= 0 else 0


def _token_id(metadata: dict[str, Any], key: str, n_vocab: int) -> int | None:
    value = metadata.get(key)
    return value if type(value) is int and 0 <= value < n_vocab else None
