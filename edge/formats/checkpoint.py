"""A Hugging Face checkpoint on disk: a local folder, or a hub id that is fetched first.

Reads config.json, safetensors (one file or shards), tokenizer.json, tokenizer_config.json and the chat
template. Weights stay on disk; one tensor at a time is mapped into memory.
No Python code of a checkpoint is ever run; its chat template runs in a sandbox (edge/formats/chat_template.py).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.formats.stored import StoredTensor, read_header, read_json, read_small

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "checkpoint_name",
    "locate",
    "open_checkpoint",
    "read_chat_template",
    "read_header",
    "read_json",
    "read_tokenizer_config",
]

_MAX_TEMPLATE = 1 << 18  # bytes; the longest known has 30,000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

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
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read and checked: `source` is what the user gave, `name` fits a file name.

    `revision`: the hub's commit, where the folder tells it. `adapter`: the LoRA adapter merged into its tensors,
    `notes`: what its user should know about that; see edge/formats/lora.py.
    """

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
    revision: str | None = None
    adapter: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The dtype of most of its bytes: BF16, F16 or F32. Fine-tunes mix a few F32 tensors into a BF16
        one.
        """
        n_bytes = {"BF16": 0, "F16": 0, "F32": 0}
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
    if not os.path.lexists(folder / "config.json"):
        if os.path.lexists(folder / "adapter_config.json"):
            raise CheckpointError(f"{folder}: is a LoRA adapter; convert its base model with --lora {folder}")
        raise CheckpointError(f"{folder}: no config.json; this is not a Hugging Face checkpoint")
    if not os.path.lexists(folder / "tokenizer.json"):
        raise CheckpointError(_no_tokenizer(folder))
    tokenizer_config = read_tokenizer_config(folder)
    return Checkpoint(
        folder=folder,
        source=str(source),
        name=checkpoint_name(folder, hub_id),
        hub_id=hub_id,
        config=read_json(folder / "config.json"),
        generation_config=read_json(folder / "generation_config.json", missing_ok=True),
        tokenizer=read_json(folder / "tokenizer.json"),
        tokenizer_config=tokenizer_config,
        chat_template=read_chat_template(folder, tokenizer_config),
        tensors=_read_tensors(folder),
        revision=_revision(folder),
    )


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
    if os.path.lexists(folder / "chat_template.jinja"):
        files.setdefault("default", folder / "chat_template.jinja")
    if files:
        if "default" not in files:
            return None
        file = files["default"]
        try:
            return _checked_template(file, read_small(file, _MAX_TEMPLATE).decode("utf-8"))
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
    processor = read_json(folder / "chat_template.json", missing_ok=True)
    for name, template in (
        ("tokenizer_config.json", tokenizer_config.get("chat_template")),
        ("chat_template.json", processor.get("chat_template")),
    ):
        if isinstance(template, list):
            named = (item for item in template if isinstance(item, dict) and item.get("name") == "default")
            template = next(named, {}).get("template")
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return _checked_template(folder / name, template)
    return None


def _checked_template(file: Path, template: str) -> str:
    """The template, if a GGUF can hold it and llama.cpp, which reads a C string, sees all of it."""
    if len(template) > _MAX_TEMPLATE:
        raise CheckpointError(
            f"{file}: a chat template of {len(template):,} characters; edge takes {_MAX_TEMPLATE:,}"
        )
    if "\0" in template or re.search("[\ud800-\udfff]", template):
        raise CheckpointError(f"{file}: its chat template holds a NUL or half of a surrogate pair")
    return template


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


def _revision(folder: Path) -> str | None:
    """The hub's commit of a folder in its cache, or of one that `hf download --local-dir` has written."""
    full = folder.resolve()
    if full.parent.name == "snapshots" and _COMMIT.fullmatch(full.name):
        return full.name
    try:
        data = read_small(
            folder / ".cache" / "huggingface" / "download" / "config.json.metadata", _MAX_TEMPLATE
        )
    except (OSError, CheckpointError):
        return None
    first = data.split(b"\n", 1)[0].decode("ascii", "replace").strip()
    return first if _COMMIT.fullmatch(first) else None


def checkpoint_name(folder: Path, hub_id: str | None = None) -> str:
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
    if os.path.lexists(index):
        shards = _shards(index)
        place = {name: file for file, names in shards.items() for name in names}
        tensors: dict[str, StoredTensor] = {}
        for file in sorted(shards):
            stored = read_header(folder / file)
            missing = [name for name in shards[file] if name not in stored]
            if missing:
                raise CheckpointError(
                    f"{folder / file}: lacks {missing[0]}, which {index.name} says is there"
                )
            for name in stored:
                if place.get(name) != file:
                    other = f"says lies in {place[name]}" if name in place else "does not list"
                    raise CheckpointError(f"{folder / file}: holds {name}, which {index.name} {other}")
            tensors |= stored
        return tensors
    single = folder / "model.safetensors"
    if os.path.lexists(single):
        return read_header(single)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{folder}: has {others[0]} but neither model.safetensors nor model.safetensors.index.json"
        )
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: its weights are pickled ({pickled[0]}), which can run code; save them as safetensors "
            "(save_pretrained does)"
        )
    raise CheckpointError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
