"""Adapters whose vocabulary has another number of rows than the base's: `resize_token_embeddings` before the training.

peft stores the resized matrices whole beside the factors (0.21, get_peft_model_state_dict). edge merges the adapter
where every row of the trained model is known: in the adapter, or, if rows were removed, in the base.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.formats.stored import StoredTensor
from edge.formats.tied import EMBEDDINGS, OUTPUT, Factors, Tensors
from edge.system.text import counted

_NAMING = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")  # files that name added tokens


def fit_rows(
    file: Path, bases: dict[str, str], tensors: Tensors, factors: Factors, whole: Tensors
) -> int | None:
    """The rows of the adapter's vocabulary if they differ from the base's, or None. Cuts removed rows off the base's.

    `file`: the adapter's weights; the other arguments are those of `untie`, after it.
    Raises CheckpointError if rows of the trained model are neither in the adapter nor in the base.
    """
    names = [name for name in (EMBEDDINGS, OUTPUT) if name in bases]
    found = {name: tensors[bases[name]] for name in names}
    wanted = {rows for name in names for rows in _rows(name, factors, whole)}
    have = {tensor.shape[0] for tensor in found.values() if len(tensor.shape) == 2}
    if not wanted or wanted == have or len(have) != 1:
        return None
    rows, old = max(wanted - have), have.pop()
    for name, base in found.items():
        own = whole.get(name)
        if own is not None and own.shape[:1] == (rows,):
            continue
        if own is None and rows < old and type(base) is StoredTensor:
            size = base.n_bytes // old * rows
            tensors[base.name] = replace(base, shape=(rows, *base.shape[1:]), n_bytes=size)
            continue
        lacks = f"{own.name} has {own.shape[0]:,}" if own is not None else f"it does not hold those of {name}"
        raise CheckpointError(
            f"{file}: its vocabulary has {rows:,} rows, {_more(rows, old)}, but {lacks}; resize the base with "
            f"resize_token_embeddings({rows}), merge with peft's merge_and_unload, save model and tokenizer, and "
            "convert the result"
        )
    if rows > old and not any(os.path.lexists(file.parent / name) for name in _NAMING):
        raise CheckpointError(
            f"{file.parent}: its vocabulary has {rows:,} rows, {_more(rows, old)}: tokens were added, but no tokenizer "
            "is beside the adapter; put the tokenizer.json and tokenizer_config.json of the training there"
        )
    return rows


def resized_config(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """config.json of a base with `rows` rows of the vocabulary."""
    text = config.get("text_config")
    if isinstance(text, dict):
        return {**config, "text_config": {**text, "vocab_size": rows}}
    return {**config, "vocab_size": rows}


def resized_note(folder: Path, rows: int, old: int) -> str:
    """What edge did, for the user."""
    what = "tokens were added" if rows > old else "rows without a token were removed"
    return f"the vocabulary is the adapter's ({folder}): {rows:,} rows, {_more(rows, old)}: {what}"


def _rows(name: str, factors: Factors, whole: Tensors) -> list[int]:
    """The rows that the adapter's tensors for a matrix have."""
    rows = [whole[name].shape[0]] if name in whole and len(whole[name].shape) == 2 else []
    pair = factors.get(name.removesuffix(".weight"))
    if pair is not None:
        a, b = pair
        rows.append(a.shape[1] if "lora_embedding_" in a.name else b.shape[0])
    return rows


def _more(rows: int, old: int) -> str:
    if rows > old:
        return f"{counted(rows - old, 'row')} more than the base"
    return f"{counted(old - rows, 'row')} fewer than the base"
