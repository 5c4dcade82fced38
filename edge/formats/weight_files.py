"""Which files of a checkpoint folder hold its weights, and which tensors are in them.

A folder has model.safetensors, or shards and an index that lists them. If it is saved twice, it may have both:
transformers then reads model.safetensors, and so does edge where the index and its shards cannot be read.
"""

import os
import re
from pathlib import Path

from edge.errors import CheckpointError
from edge.formats.stored import StoredTensor, read_header, read_json, same_values

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Tensors = dict[str, StoredTensor]


def read_tensors(folder: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a checkpoint folder by name, and notes for the user about the files that hold them.

    Raises CheckpointError if the weights are missing, damaged or pickled, or if the folder has two different sets.
    """
    single, index = folder / SINGLE, folder / INDEX
    if os.path.lexists(single):
        if not os.path.lexists(index):
            return read_header(single), ()
        stored = read_header(single)
        try:
            dead, sharded = _missing(index), Tensors()
            sharded = _read_shards(index) if dead is None else sharded
        except CheckpointError as error:
            dead = str(error).partition("; ")[0]
        if dead is not None:
            return stored, (f"{folder} has both {SINGLE} and {INDEX}; edge reads {SINGLE}, because {dead}",)
        if all(tensor.file.name == SINGLE for tensor in sharded.values()):
            return sharded, ()
        return _same(folder, stored, sharded)
    if os.path.lexists(index):
        return _read_shards(index), ()
    raise CheckpointError(_no_weights(folder))


def shards(index: Path) -> dict[str, list[str]]:
    """The tensor names of each file in a safetensors index. Raises CheckpointError if it is damaged."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; fetch it again")
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        # A name with a folder in it could point anywhere on the disk; one with a * could download anything.
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise CheckpointError(
                f"{index}: lists {name} in {file!r}, which is not a plain safetensors file name; fetch it again"
            )
        files.setdefault(file, []).append(name)
    return files


def _missing(index: Path) -> str | None:
    """A line about the first file of an index that is missing, if one is. Raises CheckpointError as `shards` does."""
    missing = [file for file in sorted(shards(index)) if not os.path.exists(index.parent / file)]
    return f"{INDEX} lists {missing[0]}, which is missing" if missing else None


def _read_shards(index: Path) -> Tensors:
    folder, listed = index.parent, shards(index)
    place = {name: file for file, names in listed.items() for name in names}
    tensors: Tensors = {}
    for file in sorted(listed):
        stored = read_header(folder / file)
        missing = [name for name in listed[file] if name not in stored]
        if missing:
            raise CheckpointError(
                f"{folder / file}: does not contain {missing[0]}, which {index.name} lists; fetch both again"
            )
        for name in stored:
            if place.get(name) != file:
                other = f"lists in {place[name]}" if name in place else "does not list"
                raise CheckpointError(
                    f"{folder / file}: contains {name}, which {index.name} {other}; fetch both again"
                )
        tensors |= stored
    return tensors


def _same(folder: Path, single: Tensors, sharded: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of model.safetensors. Raises CheckpointError if the shards hold other weights."""
    different = sorted(single.keys() ^ sharded.keys())
    if not different:
        different = [name for name in sorted(single) if not same_values(single[name], sharded[name])]
    if different:
        raise CheckpointError(
            f"{folder}: has two models: {SINGLE} and the files that {INDEX} lists differ in {different[0]}; remove the "
            "one that is out of date"
        )
    return single, (f"{folder} has its weights twice; edge reads {SINGLE}, which equals the shards",)


def _no_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        part = re.search(r"-\d+-of-\d+\.safetensors$", others[0])
        fix = "save it again with save_pretrained"
        if part:
            fix = f"it is a part of a checkpoint: fetch {INDEX} and all parts that it lists"
        elif others[0].startswith("consolidated"):
            fix = (
                f"it is in Mistral's own format: fetch the files that transformers reads, {SINGLE} or {INDEX}"
            )
        return f"{folder}: has {others[0]}, but not {SINGLE} or {INDEX}; {fix}"
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        return (
            f"{folder}: its weights are pickled ({pickled[0]}), which can run code; save them as safetensors with "
            "save_pretrained"
        )
    return f"{folder}: no {SINGLE} and no {INDEX}; fetch the weights"
