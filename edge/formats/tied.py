"""Embeddings and output matrix: one matrix in a tied checkpoint, and what an adapter makes of it.

peft trains two matrices on a tied base, each from the base's values, unless `ensure_weight_tying` is set: an adapter of
the embeddings alone leaves the output as it was (peft 0.21, tuners/lora/layer.py and utils/other.py).
"""

from dataclasses import fields
from typing import Any

import numpy as np

from edge.formats.floats import widen
from edge.formats.stored import StoredTensor

EMBEDDINGS, OUTPUT = "embed_tokens.weight", "lm_head.weight"
_ROWS = 4096  # compared at once

Tensors = dict[str, StoredTensor]
Factors = dict[str, tuple[StoredTensor, StoredTensor]]  # A and B of each module


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two matrices hold the same numbers, of any dtypes. Raises CheckpointError as StoredTensor.read."""
    if one.shape != other.shape:
        return False
    values, others = one.read(), other.read()
    return all(
        np.array_equal(
            widen(values[first : first + _ROWS], one.dtype), widen(others[first : first + _ROWS], other.dtype)
        )
        for first in range(0, one.shape[0], _ROWS)
    )


def untie(
    config: dict[str, Any],
    base_config: dict[str, Any],
    bases: dict[str, str],
    tensors: Tensors,
    factors: Factors,
    whole: Tensors,
) -> None:
    """Make two matrices of one where an adapter needs it: adds the missing one to `tensors` and `bases`.

    Both begin with the base's values.
    `config`: adapter_config.json; `base_config`: config.json. `bases`: the names in `tensors` by bare name.
    `factors`, `whole`: the adapter's tensors by bare name; what it stores twice for `ensure_weight_tying` is taken out.
    """
    if config.get("ensure_weight_tying"):
        _drop_copy(base_config, bases, tensors)
    stored = [name for name in (EMBEDDINGS, OUTPUT) if name in bases]
    if len(stored) != 1:
        return
    if config.get("ensure_weight_tying"):
        _take_copies(factors, whole)
    modules = factors.keys() | {name.removesuffix(".weight") for name in whole}
    if not modules & {"embed_tokens", "lm_head"} or (
        config.get("ensure_weight_tying") and "lm_head" not in modules
    ):
        return
    trained = config.get("modules_to_save")
    if (
        EMBEDDINGS in whole
        and OUTPUT not in whole
        and not (isinstance(trained, list) and "embed_tokens" in trained)
    ):
        whole[OUTPUT] = whole[EMBEDDINGS]  # stored because it was resized, not because it was trained
    base = tensors[bases[stored[0]]]
    (missing,) = {EMBEDDINGS, OUTPUT} - {stored[0]}
    name = base.name.removesuffix(stored[0]) + missing
    bases[missing] = name
    tensors[name] = StoredTensor(
        **{each.name: getattr(base, each.name) for each in fields(StoredTensor)} | {"name": name}
    )


def _drop_copy(base_config: dict[str, Any], bases: dict[str, str], tensors: Tensors) -> None:
    """Remove the base's output matrix where config.json ties it and it is a copy of the embeddings."""
    text = base_config.get("text_config")
    keys = ("tie_embedding", "tie_word_embeddings")
    settings = [values.get(key) for values in (base_config, text) if isinstance(values, dict) for key in keys]
    given = next((value for value in settings if isinstance(value, bool)), True)
    both = given and {EMBEDDINGS, OUTPUT} <= bases.keys()
    if both and same_values(tensors[bases[EMBEDDINGS]], tensors[bases[OUTPUT]]):
        del tensors[bases.pop(OUTPUT)]


def _take_copies(factors: Factors, whole: Tensors) -> None:
    """Remove the output matrix where it is a copy of the embeddings, whose factors are stored transposed."""
    if {EMBEDDINGS, OUTPUT} <= whole.keys() and same_values(whole[EMBEDDINGS], whole[OUTPUT]):
        del whole[OUTPUT]
    if {"embed_tokens", "lm_head"} <= factors.keys():
        (a, b), (right, left) = factors["embed_tokens"], factors["lm_head"]
        pairs = ((a, left), (b, right))
        if all(np.array_equal(widen(x.read(), x.dtype), widen(y.read(), y.dtype).T) for x, y in pairs):
            del factors["lm_head"]
