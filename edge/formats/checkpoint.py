"""A Hugging Face checkpoint on disk: a local folder, or a repository that edge downloads from the hub.

Reads config.json, safetensors (one file or shards), tokenizer.json, tokenizer_config.json and the chat template.
Weights stay on disk; edge maps one tensor at a time into memory. edge never runs Python code of a checkpoint. Its chat
template runs in a sandbox (edge/formats/chat_template.py).
"""

import fnmatch
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.formats.foreign import check_not_mlx
from edge.formats.hub import HUB_ID, HubOptions, Repository, download, open_repository
from edge.formats.model_card import CARD, CardFacts, read_card
from edge.formats.stored import StoredTensor, read_header, read_json, read_small
from edge.formats.weight_files import INDEX, SINGLE, read_tensors, shards
from edge.system.progress import bar

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "checkpoint_name",
    "locate",
    "needed_files",
    "open_checkpoint",
    "read_chat_template",
    "read_header",
    "read_json",
    "read_tokenizer_config",
]

_MAX_TEMPLATE = 1 << 18  # bytes; the longest known template has 30,000

_SMALL_FILES = [
    CARD,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "model.safetensors.index.json",
]
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read and checked.

    `source`: the folder or hub id that the user gave. `name`: a name that is safe in file names. `revision`: the
    commit on the hub, if the folder contains it. `card`: what a GGUF records of its model card. `adapter`: the names of
    the LoRA adapters merged into the tensors (see edge/formats/lora.py). `notes`: lines for the user about adapters and
    about the files that were read. `extends`: the base, if the tokenizer is the adapter's; `adapter_tokenizer`: the
    adapter's tokenizer.json, if that was read. `tied`: whether one matrix is the embeddings and the output; None if
    that was not decided yet (edge/formats/tied.py).
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
    card: CardFacts = field(default_factory=CardFacts)
    extends: "Checkpoint | None" = None
    adapter_tokenizer: Path | None = None
    tied: bool | None = None

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer.json that `tokenizer` was read from."""
        return self.adapter_tokenizer or self.folder / "tokenizer.json"

    @property
    def dtype(self) -> str:
        """The dtype of most bytes: BF16, F16 or F32. A fine-tune in BF16 often has a few tensors in F32."""
        n_bytes = {"BF16": 0, "F16": 0, "F32": 0}
        for tensor in self.tensors.values():
            if tensor.dtype in n_bytes:
                n_bytes[tensor.dtype] += tensor.n_bytes
        return max(n_bytes, key=lambda dtype: n_bytes[dtype])


def open_checkpoint(source: str | Path, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Open a local folder, or a hub id such as `owner/name`, downloaded into the Hugging Face cache with HF_TOKEN.

    Reads every header but no weights. Raises CheckpointError if there is no checkpoint, if the repository is gated or
    not in the cache while `offline`, or if a file is missing, truncated or damaged.
    """
    folder, hub_id = locate(source, revision=revision, offline=offline)
    if not os.path.lexists(folder / "config.json"):
        check_not_mlx(folder)
        if os.path.lexists(folder / "adapter_config.json"):
            raise CheckpointError(
                f"{folder}: is a LoRA adapter; name its base with --base, or merge it: convert its base with --lora "
                f"{folder}"
            )
        raise CheckpointError(f"{folder}: no config.json; give the folder of a Hugging Face checkpoint")
    if not os.path.lexists(folder / "tokenizer.json"):
        raise CheckpointError(_no_tokenizer(folder))
    tokenizer_config = read_tokenizer_config(folder)
    tensors, notes = read_tensors(folder)
    if os.path.lexists(folder / "adapter_config.json"):
        notes += (
            f"{folder} also has an adapter (adapter_config.json); edge merges it into these weights only with --lora "
            f"{folder}: do that if they do not contain it yet",
        )
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
        tensors=tensors,
        revision=_revision(folder),
        notes=notes,
        card=read_card(folder),
    )


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens that older checkpoints keep in two other files.

    These are the special tokens of special_tokens_map.json, and the ids of added_tokens.json (`added_tokens_encoder`).
    A list of further special tokens is under `extra_special_tokens`, else under `additional_special_tokens`, and names
    of some under `model_specific_special_tokens`: of the forms in the files, those that transformers 5 reads.
    {} if no file exists. Raises CheckpointError.
    """
    config = read_json(folder / "tokenizer_config.json", missing_ok=True)
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    _name_tokens(config)
    if "added_tokens_decoder" not in config:
        further = read_json(folder / "special_tokens_map.json", missing_ok=True)
        lists = [values.get("extra_special_tokens") for values in (config, further)]
        config |= further
        if isinstance(lists[1], list):
            config["extra_special_tokens"] = [*(lists[0] if isinstance(lists[0], list) else []), *lists[1]]
        _name_tokens(config)
        encoder = read_json(folder / "added_tokens.json", missing_ok=True)
        if encoder:
            config["added_tokens_encoder"] = encoder
    return config


def _name_tokens(config: dict[str, Any]) -> None:
    """Move special tokens that extra_special_tokens names to their own key, as transformers does."""
    if isinstance(config.get("extra_special_tokens"), dict):
        named = config.get("model_specific_special_tokens")
        own = config.pop("extra_special_tokens")
        config["model_specific_special_tokens"] = {**(named if isinstance(named, dict) else {}), **own}


def read_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The chat template of a checkpoint folder; None if it has none, "" if its file is empty.

    The order is that of transformers: .jinja files, then tokenizer_config.json, then chat_template.json, which only
    processors read. Of several named templates `default` counts. Raises CheckpointError.
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
    """The template. Raises CheckpointError if it is too long or if a GGUF cannot hold it as a C string in UTF-8."""
    if len(template) > _MAX_TEMPLATE:
        raise CheckpointError(
            f"{file}: its chat template has {len(template):,} characters; edge reads at most {_MAX_TEMPLATE:,}"
        )
    if "\0" in template or re.search("[\ud800-\udfff]", template):
        raise CheckpointError(
            f"{file}: its chat template holds a NUL or half of a surrogate pair; remove that character"
        )
    return template


def locate(
    source: str | Path, *, revision: str | None = None, offline: bool = False
) -> tuple[Path, str | None]:
    """The folder of a checkpoint and its hub id (None for a local folder). Downloads the needed files from the hub.

    Raises CheckpointError if there is no such folder or repository, or if it cannot be downloaded.
    """
    if not str(source):
        raise CheckpointError("the source is empty; give a checkpoint folder or a hub id (owner/name)")
    path = Path(os.path.expanduser(source))  # Path.expanduser fails if there is no such user
    if path.is_dir():
        return path, None
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file; give the folder that holds config.json and the safetensors files"
        )
    text = str(source)
    if not HUB_ID.fullmatch(text):
        raise CheckpointError(f"{text}: no such folder, and not a hub id of the form owner/name")
    repository = open_repository(text, HubOptions(revision, offline))
    with bar("downloading", lambda line: None, unit="bytes") as progress:  # a bar on a terminal only
        return download(repository, needed_files(repository), progress=progress), text


def needed_files(repository: Repository) -> list[str]:
    """The files of a repository that `open_checkpoint` reads. Downloads the index of the shards, which names them.

    Raises CheckpointError if the repository holds no safetensors, or if its index is damaged.
    """
    names = [
        name for name in repository.files if any(fnmatch.fnmatchcase(name, kind) for kind in _SMALL_FILES)
    ]
    if repository.absent is not None and not {"config.json", "tokenizer.json"} <= repository.files.keys():
        raise repository.absent
    single = [SINGLE] if SINGLE in repository.files else []
    if INDEX in repository.files:
        weights = sorted(shards(download(repository, [INDEX]) / INDEX))
        absent = [name for name in weights if name not in repository.files]
        if not absent:
            return [*names, *dict.fromkeys([*weights, *single])]
        if not single:
            raise repository.absent or CheckpointError(
                f"{repository.hub_id}: {INDEX} lists {absent[0]}, which the repository does not hold"
            )
    if single:
        return [*names, *single]
    if any(name.endswith(".gguf") for name in repository.files):
        raise CheckpointError(
            f"{repository.hub_id}: holds GGUFs, which need no conversion; edge pull {repository.hub_id}"
        )
    if repository.absent is not None:
        raise repository.absent
    return names


def _revision(folder: Path) -> str | None:
    """The hub's commit of a folder in the cache, or of one that `hf download --local-dir` wrote; else None."""
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
    """A short name for file names: the name of the repository, else of the folder."""
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
            f"{folder}: has tokenizer.model but no tokenizer.json; make it with "
            f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    return f"{folder}: no tokenizer.json; copy it from the base model of the checkpoint"
