"""Reads and checks the header of a GGUF before llama.cpp does, because llama.cpp stops the process at a bad header.

A model can be split into several files (llama.cpp's gguf-split). As in llama.cpp, the first part has the metadata and
names the model; edge finds the others by their names, and reads all of them as one model.
"""

import contextlib
import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import LlamaFileType, size_label

from edge.errors import ModelFileError
from edge.formats.gguf_header import (
    SCALARS,
    STRING,
    Header,
    Reader,
    TensorInfo,
    opened,
    read_header,
    regular_status,
)
from edge.formats.gguf_names import part_name, part_of, parts, whole_name
from edge.system.files import whole_file
from edge.system.paths import cache_folder

__all__ = [
    "ModelFile",
    "TensorInfo",
    "model_sha256",
    "part_files",
    "read_array",
    "read_kinds",
    "read_layout",
    "read_metadata",
    "read_model_file",
    "read_padding",
    "read_tensors",
    "recall",
    "remember",
    "sha256",
]

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # llama_rope_scaling_type_from_string
_ADAPTER = "is an adapter, not a model; give its base with --model, and it with --lora"

RECIPE = "edge.recipe"
"""The metadata key of the lines PATTERN=TYPE that chose the types of a mixed-precision file."""
RECIPE_COSTS = "edge.recipe.costs"
"""The metadata key of what was measured to choose them, as JSON text."""

_FILE_TYPES: dict[int, str] = {int(kind): kind.name.split("_", 1)[-1] for kind in LlamaFileType} | {
    41: "Q2_0"
}


@dataclass(frozen=True)
class ModelFile:
    """What a GGUF says about itself.

    `bits_per_weight`: of the tensors' data, without the header. `end_ids`: the tokens that end an answer (end of
    sequence, of turn, of message), as far as the model has them. `n_params`, `n_bytes`: of all `parts`, which are more
    than one if the model is split. `causal`: False for an encoder, which writes no text.
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
    parts: int = 1
    causal: bool = True


def read_model_file(path: str | Path) -> ModelFile:
    """Read and check the header of a GGUF, without the weights: about 10 ms for 50,000 tokens.

    Raises ModelFileError if the file is missing, not a GGUF, truncated (also within the tensor data) or damaged, if it
    has no vocabulary, if it has numbers at which llama.cpp would stop the process, if it is another kind of GGUF, or a
    part of a split model that is not the first or that lacks another part.
    """
    path = Path(path)
    with opened(path) as reader:
        header = read_header(reader)
        metadata = header.metadata
        files = _files(path, header)
        _refuse_other_kinds(path, header)
        architecture = _text(metadata, "general.architecture")
        if architecture is None:
            raise reader.fail("damaged: general.architecture is missing")
        tokens = _vocabulary(reader, header)
        n_vocab = len(tokens)
        _check_numbers(reader, metadata, architecture)
        tensors = _all_tensors(header, files)
        n_params = sum(math.prod(tensor.shape) for tensor in tensors)
        if not n_params:
            raise ModelFileError(
                f"{path}: has no tensors: it holds a vocabulary only; give the GGUF of a model"
            )
        bos_id = _token_id(metadata, "tokenizer.ggml.bos_token_id", n_vocab)
        eos_id, *further = (
            _token_id(metadata, f"tokenizer.ggml.{kind}_token_id", n_vocab) for kind in ("eos", "eot", "eom")
        )
        return ModelFile(
            path=path,
            architecture=architecture,
            name=_text(metadata, "general.name") or path.stem,
            size_label=_text(metadata, "general.size_label") or size_label(n_params, n_params, 0, 0),
            file_type=_file_type(metadata, tensors),
            n_params=n_params,
            n_bytes=sum(regular_status(file).st_size for file in files),
            bits_per_weight=8 * sum(tensor.n_bytes for tensor in tensors) / n_params,
            context_length=_count(metadata, f"{architecture}.context_length"),
            chat_template=_text(metadata, "tokenizer.chat_template"),
            bos_token=None if bos_id is None else tokens[bos_id].decode("utf-8", "replace"),
            eos_token=None if eos_id is None else tokens[eos_id].decode("utf-8", "replace"),
            bos_id=bos_id,
            eos_id=eos_id,
            end_ids=tuple(dict.fromkeys(i for i in (eos_id, *further) if i is not None)),
            add_bos=metadata.get("tokenizer.ggml.add_bos_token") is True,
            n_vocab=n_vocab,
            parts=len(files),
            causal=metadata.get(f"{architecture}.attention.causal") is not False,
        )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """A GGUF's metadata without the vocabulary: numbers, booleans, strings and lists of up to 4,096 numbers.

    Raises ModelFileError if the header is missing or damaged.
    """
    with opened(Path(path)) as reader:
        return read_header(reader).metadata


def read_kinds(path: str | Path) -> dict[str, int]:
    """The number of the value type of each metadata entry. Raises ModelFileError as `read_metadata` does."""
    with opened(Path(path)) as reader:
        return read_header(reader).kinds


def read_tensors(path: str | Path) -> list[TensorInfo]:
    """The tensors of a GGUF, in the order of the file; of a split model those of all its parts.

    Raises ModelFileError if the header is missing or damaged, or if a part is missing.
    """
    path = Path(path)
    with opened(path) as reader:
        header = read_header(reader)
        return _all_tensors(header, _files(path, header))


def part_files(path: str | Path) -> list[Path]:
    """The files of a model: `path`, and the other parts if it is the first of a split model.

    Raises ModelFileError if the header is missing or damaged, if `path` is another part, or if a part is missing.
    """
    path = Path(path)
    with opened(path) as reader:
        return _files(path, read_header(reader))


def _files(path: Path, header: Header) -> list[Path]:
    number, count = _count(header.metadata, "split.no") + 1, _count(header.metadata, "split.count")
    if count < 2:
        return [path]
    if number != 1:
        first = part_name(whole_name(path.name), 1, count) if part_of(path.name) else "the first part"
        raise ModelFileError(f"{path}: is part {number} of {count} of a split model; give {first}")
    files = parts(path, count)
    if len(files) != count:
        raise ModelFileError(f"{path}: is part 1 of {count}; its name must end in -00001-of-{count:05}.gguf")
    for file in files[1:]:
        if not file.exists():
            raise ModelFileError(
                f"{path}: is part 1 of {count}, and {file.name} is missing beside it; fetch it too"
            )
    return files


def _all_tensors(header: Header, files: list[Path]) -> list[TensorInfo]:
    """The tensors of all parts of a model. Raises ModelFileError if the files do not belong together."""
    tensors, names = list(header.tensors), {tensor.name for tensor in header.tensors}
    for number, file in enumerate(files[1:], 2):
        with opened(file) as reader:
            other = read_header(reader)
        if (_count(other.metadata, "split.no"), _count(other.metadata, "split.count")) != (
            number - 1,
            len(files),
        ):
            raise ModelFileError(f"{file}: is not part {number} of {len(files)} of a model; fetch it again")
        for tensor in other.tensors:
            if tensor.name in names:
                raise ModelFileError(
                    f"{file}: holds {tensor.name[:80]}, as a part before it does; fetch it again"
                )
            names.add(tensor.name)
            tensors.append(replace(tensor, part=number))
    wanted = header.metadata.get("split.tensors.count", len(tensors))
    if len(files) > 1 and wanted != len(tensors):
        raise ModelFileError(
            f"{files[0]}: its {len(files)} parts hold {len(tensors):,} tensors, not {wanted:,}; fetch them again"
        )
    return tensors


def _refuse_other_kinds(path: Path, header: Header) -> None:
    """Raise ModelFileError for a GGUF that is not a model, with what it is and what to do."""
    metadata = header.metadata
    kind, architecture = (str(metadata.get(f"general.{key}", "")) for key in ("type", "architecture"))
    if kind == "adapter" or (not kind and "adapter.type" in metadata):
        why = _ADAPTER
    elif kind == "imatrix" or any(tensor.name.endswith(".in_sum2") for tensor in header.tensors):
        why = "is an importance matrix, not a model; use it with `edge convert SOURCE --imatrix FILE`"
    elif (
        kind == "mmproj"
        or architecture in ("clip", "mmproj")
        or any(key.startswith("clip.") for key in metadata)
    ):
        why = (
            "is a projector (mmproj), which turns images or sound into input of a model; edge runs text only: give the "
            "GGUF of the model itself"
        )
    elif architecture == "controlvector":
        why = "is a control vector, not a model; edge does not use control vectors: give the GGUF of a model"
    elif kind not in ("", "model"):
        why = f"is a GGUF of the type {kind[:40]!r}, not a language model; give the GGUF of a model"
    else:
        return
    raise ModelFileError(f"{path}: {why}")


def read_array(path: str | Path, key: str) -> list[Any]:
    """All items of an array in a GGUF's metadata: numbers, or strings as bytes. [] if it has no array of that name.

    Raises ModelFileError if the header is missing or damaged.
    """
    with opened(Path(path)) as reader:
        kind, count, begin = read_header(reader).arrays.get(key, (0, 0, 0))
        if kind == STRING:
            return reader.strings(count, begin)
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", reader.data, begin))


def read_layout(path: str | Path, key: str) -> tuple[list[TensorInfo], int, tuple[int, int]]:
    """A GGUF's tensors, the byte after its header, and where the metadata string `key` begins and ends.

    The last two are (0, 0) without that string. Raises ModelFileError if the header is missing or damaged.
    """
    with opened(Path(path)) as reader:
        header = read_header(reader)
        return header.tensors, header.end, header.texts.get(key, (0, 0))


def read_padding(path: str | Path) -> list[tuple[int, int]]:
    """The unused bytes of a GGUF, as pairs of the first byte and the byte after: padding, and bytes at the end.

    Raises ModelFileError if the header is missing or damaged.
    """
    with opened(Path(path)) as reader:
        header = read_header(reader)
        places, at = [], header.end
        for tensor in header.tensors:
            places.append((at, tensor.offset))
            at = tensor.offset + tensor.n_bytes
        last = min(-(-at // header.alignment) * header.alignment, len(reader.data))
        return [(begin, end) for begin, end in (*places, (at, last), (last, len(reader.data))) if begin < end]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal. `model_sha256` identifies a model.

    edge remembers it in the user's cache folder by path, size, times and inode. Raises ModelFileError if the file
    is missing or cannot be read.
    """
    path = Path(path)
    known = recall(path, "sha256")
    if known is not None:
        return known
    before = signature(path)
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    if signature(path) == before:  # otherwise it changed while it was read
        remember(path, "sha256", digest)
    return digest


def signature(path: Path) -> str:
    """What tells that a file is still the same without reading it: path, size, times of change, inode.

    The system sets the time of the inode's change: no program can put it back. Raises ModelFileError if the file is
    missing or cannot be read.
    """
    status = regular_status(path)
    try:
        place = path.resolve()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    return f"{place}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def model_sha256(path: str | Path) -> str:
    """The SHA-256 that identifies a model: of its file, or of the digests of its parts, one on each line.

    Raises ModelFileError as `part_files` and `sha256` do.
    """
    files = part_files(path)
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(f"{sha256(file)}\n" for file in files).encode()).hexdigest()


def recall(path: Path, what: str) -> str | None:
    """The remembered value of a file; None if there is none, or if its `signature` has changed.

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
    key = signature(path)
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    return cache_folder() / what / f"{name}.json", key


def _vocabulary(reader: Reader, header: Header) -> list[bytes]:
    """The tokens as bytes, checked for what llama.cpp asserts about them."""
    model = _text(header.metadata, "tokenizer.ggml.model")
    kind, count, begin = header.arrays.get("tokenizer.ggml.tokens", (0, 0, 0))
    if model in (None, "none", "no_vocab") or kind != STRING or not count:
        architecture = _text(header.metadata, "general.architecture")
        raise ModelFileError(
            f"{reader.path}: has no vocabulary (architecture {str(architecture)[:40]!r}): it is a draft for another "
            "model, or no language model; give the GGUF of a whole one"
        )
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


def _check_numbers(reader: Reader, metadata: dict[str, Any], architecture: str) -> None:
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


def _file_type(metadata: dict[str, Any], tensors: list[TensorInfo]) -> str:
    """The quantization type in the metadata (Q4_K_M), else the type of most of the tensors' bytes.

    Of a file that was made with a recipe: recipe-5.07bpw, or auto-5.07bpw if edge chose the types.
    """
    if isinstance(metadata.get(RECIPE), str):
        bits = (
            8 * sum(each.n_bytes for each in tensors) / max(sum(math.prod(each.shape) for each in tensors), 1)
        )
        return f"{'auto' if RECIPE_COSTS in metadata else 'recipe'}-{bits:.2f}bpw"
    number = metadata.get("general.file_type")
    if type(number) is int and number in _FILE_TYPES:
        return _FILE_TYPES[number]
    n_bytes: dict[str, int] = {}
    for tensor in tensors:
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
