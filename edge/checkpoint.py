"""A Hugging Face checkpoint on disk: a local folder, or a hub id that is fetched first.

Reads config.json, safetensors (one file or shards), tokenizer.json, tokenizer_config.json and the chat
template. Weights stay on disk; one tensor at a time is mapped into memory.
No Python code of a checkpoint is ever run; its chat template runs in a sandbox (edge/template.py).

The safetensors format: 8 bytes little-endian header length, a JSON header that gives each tensor's dtype,
shape and byte range, then the data (https://huggingface.co/docs/safetensors). We parse it ourselves, since
its numpy mode knows no bfloat16 and its errors do not name the tensor.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError

_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2}
_ITEM_BYTES |= {"U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
_READABLE: dict[str, npt.DTypeLike] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_MAX_HEADER = 100_000_000  # the safetensors package's own limit, bytes

_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "model.safetensors.index.json",
]
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, still on disk: `dtype` is safetensors' name, `offset` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    def read(self) -> npt.NDArray[Any]:
        """Its values, mapped from the file, in its shape: float16, float32, or uint16 with a bfloat16's bits.

        Raises CheckpointError if it is of another dtype.
        """
        if self.dtype not in _READABLE:
            raise CheckpointError(
                f"{self.file}: {self.name} is stored as {self.dtype}; edge reads BF16, F16 and F32"
            )
        if self.n_bytes == 0:
            return np.empty(self.shape, _READABLE[self.dtype])
        return np.memmap(self.file, _READABLE[self.dtype], "r", self.offset, self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read and checked: `source` is what the user gave, `name` fits a file name."""

    folder: Path
    source: str
    name: str
    hub_id: str | None
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    tensors: dict[str, StoredTensor]

    @property
    def dtype(self) -> str:
        """The dtype of most of its bytes: BF16, F16 or F32. Fine-tunes mix a few F32 tensors into a BF16
        one.
        """
        n_bytes = dict.fromkeys(_READABLE, 0)
        for tensor in self.tensors.values():
            if tensor.dtype in n_bytes:
                n_bytes[tensor.dtype] += tensor.n_bytes
        return max(n_bytes, key=lambda dtype: n_bytes[dtype])


def open_checkpoint(source: str | Path, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Open a local folder, or a hub id such as `org/name` (fetched into the Hugging Face cache with
    HF_TOKEN).

    Reads every header, no weights. Raises CheckpointError: nothing there, gated, offline and not cached, a
    missing or truncated file, bad JSON.
    """
    folder, hub_id = locate(source, revision=revision, offline=offline)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; this is not a Hugging Face checkpoint")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(_no_tokenizer(folder))
    tokenizer_config = read_tokenizer_config(folder)
    return Checkpoint(
        folder=folder,
        source=str(source),
        name=_name(folder, hub_id),
        hub_id=hub_id,
        config=read_json(folder / "config.json"),
        generation_config=read_json(folder / "generation_config.json", missing_ok=True),
        tokenizer=read_json(folder / "tokenizer.json"),
        tokenizer_config=tokenizer_config,
        chat_template=read_chat_template(folder, tokenizer_config),
        tensors=_read_tensors(folder),
    )


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file, {} if it is missing and may be. Raises CheckpointError: not a JSON
    object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with the special tokens of special_tokens_map.json, where older checkpoints keep them.

    {} if there is neither. Raises CheckpointError.
    """
    config = read_json(folder / "tokenizer_config.json", missing_ok=True)
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json", missing_ok=True)
    return config


def read_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The chat template of a checkpoint folder, None if it has none; "" if its file is empty.

    As in transformers' tokenizers the .jinja files go before tokenizer_config.json, and of several named
    templates it is `default` that counts. chat_template.json, which only processors read, comes last.
    Raises CheckpointError.
    """
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files.setdefault("default", folder / "chat_template.jinja")
    if files:
        if "default" not in files:
            return None
        try:
            return files["default"].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{files['default']}: cannot be read: {error}") from None
    processor = read_json(folder / "chat_template.json", missing_ok=True)
    for template in (tokenizer_config.get("chat_template"), processor.get("chat_template")):
        if isinstance(template, list):
            named = (item for item in template if isinstance(item, dict) and item.get("name") == "default")
            template = next(named, {}).get("template")
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template
    return None


def locate(
    source: str | Path, *, revision: str | None = None, offline: bool = False
) -> tuple[Path, str | None]:
    """The folder of a checkpoint and its hub id (None for a local folder); fetches the needed files.

    Raises CheckpointError with what to do about it.
    """
    if not str(source):
        raise CheckpointError("the source is empty; give a checkpoint folder or a hub id (owner/name)")
    path = Path(os.path.expanduser(source))  # Path's own fails where there is no such user
    if path.is_dir():
        return path, None
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; give the folder that holds config.json and the safetensors files"
        )
    text = str(source)
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{text}: no such folder, and not a hub id of the form organisation/name")
    folder = _download(text, _SMALL_FILES, revision, offline)
    index = folder / "model.safetensors.index.json"
    weights = sorted(_shards(index)) if index.is_file() else ["model.safetensors"]
    return _download(text, [*_SMALL_FILES, *weights], revision, offline), text


def _download(hub_id: str, files: list[str], revision: str | None, offline: bool) -> Path:
    """huggingface_hub's snapshot folder with at least the named files that the repository has."""
    from huggingface_hub import errors, snapshot_download

    where = hub_id if revision is None else f"{hub_id} (revision {revision})"
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, local_files_only=offline, allow_patterns=files)
        )
    except errors.GatedRepoError:
        problem = (
            "is gated; accept its terms on huggingface.co, then set HF_TOKEN to a token that may read it"
        )
    except errors.RepositoryNotFoundError:
        problem = "is neither a local folder nor a public hub repository (a private one needs HF_TOKEN)"
    except errors.RevisionNotFoundError:
        problem = "has no such revision"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = (
            "is not complete in the local Hugging Face cache; run once without --offline, or copy it here"
            if offline
            else "cannot be fetched and is not in the local cache; check the network, or give a local folder"
        )
    except (OSError, ValueError) as error:  # HTTP errors are OSErrors, a malformed id is a ValueError
        problem = f"cannot be fetched: {' '.join(str(error).split())[:200]}"
    raise CheckpointError(f"{where} {problem}")


def _name(folder: Path, hub_id: str | None) -> str:
    """A short name for file names: the repository's, else the folder's (not a hub cache's bare hash)."""
    full = folder.resolve()
    name = full.name
    if hub_id is not None:
        name = hub_id.rsplit("/", 1)[-1]
    elif full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        name = full.parent.parent.name.rsplit("--", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _no_tokenizer(folder: Path) -> str:
    if (folder / "tokenizer.model").is_file():
        return (
            f"{folder}: has tokenizer.model but no tokenizer.json; make one with "
            f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    return f"{folder}: no tokenizer.json; copy it from the model that the checkpoint was trained from"


def _shards(index: Path) -> dict[str, list[str]]:
    """The tensor names of each file that a safetensors index lists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        # A name with a folder in it could point anywhere on the disk; one with a * would fetch anything.
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise CheckpointError(
                f"{index}: {name} lies in {file!r}, which is no plain file name of safetensors"
            )
        shards.setdefault(file, []).append(name)
    return shards


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        tensors: dict[str, StoredTensor] = {}
        for file, names in sorted(_shards(index).items()):
            stored = read_header(folder / file)
            missing = [name for name in names if name not in stored]
            if missing:
                raise CheckpointError(
                    f"{folder / file}: lacks {missing[0]}, which {index.name} says is there"
                )
            tensors |= {name: stored[name] for name in names}
        return tensors
    single = folder / "model.safetensors"
    if single.is_file():
        return read_header(single)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{folder}: has {others[0]} but neither model.safetensors nor model.safetensors.index.json"
        )
    if any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder}: has only .bin weights; save them as safetensors (save_pretrained does)"
        )
    raise CheckpointError(f"{folder}: no model.safetensors and no model.safetensors.index.json")


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, each checked to lie wholly inside it.

    Raises CheckpointError: missing, truncated, a damaged header, a range that does not fit.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{file}: truncated or no safetensors file ({size:,} bytes); fetch it again"
                )
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; a shard is missing, fetch it again") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file}: its header is no JSON; the file is damaged, fetch it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is no JSON object; the file is damaged, fetch it again")
    header.pop("__metadata__", None)
    return {name: _stored_tensor(file, size, 8 + length, name, entry) for name, entry in header.items()}


def _stored_tensor(file: Path, size: int, start: int, name: str, entry: object) -> StoredTensor:
    """One entry of a safetensors header; `start` is where the data begins, in bytes."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (
        fields.get("dtype"),
        _counts(fields.get("shape")),
        _counts(fields.get("data_offsets")),
    )
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise CheckpointError(f"{file}: the header's entry for {name} is malformed; fetch the file again")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{file}: {name} is stored as {dtype}; edge reads BF16, F16 and F32")
    begin, end = span
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"{file}: {name} holds {end - begin:,} bytes, which does not fit {dtype} {shape}"
        )
    if start + end > size:
        raise CheckpointError(
            f"{file}: truncated: {name} ends at byte {start + end:,} of {size:,}; fetch the file again"
        )
    return StoredTensor(name, dtype, tuple(shape), file, start + begin, end - begin)


def _counts(value: object) -> list[int] | None:
    """The value if it is a list of sane counts, else None."""
    if isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value):
        return value
    return None
