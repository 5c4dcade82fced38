"""Embeddings and output matrix: one matrix in a tied checkpoint, and how an adapter changes that.

peft trains two matrices on a tied base, each from the base's values, unless `ensure_weight_tying` is set: an adapter of
the embeddings alone leaves the output as it was (peft 0.21, tuners/lora/layer.py and utils/other.py).
"""

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np

from edge.formats.checkpoint import Checkpoint
from edge.formats.floats import widen
from edge.formats.stored import StoredTensor, same_values

EMBEDDINGS, OUTPUT = "embed_tokens.weight", "lm_head.weight"

# Prefixes that peft, training frameworks and multimodal models put before the names of tensors, sometimes twice.
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|_orig_mod|module|base_model)\.)+")

Tensors = dict[str, StoredTensor]
Factors = dict[str, tuple[StoredTensor, StoredTensor]]  # A and B of each module


def bare_name(name: str) -> str:
    """A tensor's name without the prefixes of wrappers."""
    return _WRAPPERS.sub("", name)


def settle(checkpoint: Checkpoint, tied: bool) -> Checkpoint:
    """The checkpoint with one matrix as embeddings and output, or with two. `tied`: what config.json says.

    As in transformers 5: a stored output matrix that differs from the embeddings stays, a copy is left out, and one
    without embeddings serves as both.
    """
    names = {bare_name(name): name for name in checkpoint.tensors}
    if not tied or OUTPUT not in names:
        return replace(checkpoint, tied=tied)
    tensors = dict(checkpoint.tensors)
    output = tensors.pop(names[OUTPUT])
    if EMBEDDINGS not in names:
        name = names[OUTPUT].removesuffix(OUTPUT) + EMBEDDINGS
        return replace(checkpoint, tied=True, tensors={**tensors, name: replace(output, name=name)})
    if same_values(tensors[names[EMBEDDINGS]], output):
        return replace(checkpoint, tied=True, tensors=tensors)
    note = (
        f"{checkpoint.folder / 'config.json'} ties the output matrix to the embeddings, but {output.name} differs from "
        "them: edge keeps both, as transformers 5 does; other programs may use the embeddings for both"
    )
    return replace(checkpoint, tied=False, notes=(*checkpoint.notes, note))


def untie(
    config: dict[str, Any],
    bases: dict[str, str],
    tensors: Tensors,
    factors: Factors,
    whole: Tensors,
    *,
    one_scale: bool,
) -> bool:
    """Make two matrices of one where an adapter needs it: adds the missing one to `tensors` and `bases`.

    Both begin with the base's values. Returns whether it made two.
    `config`: adapter_config.json. `bases`: the names in `tensors` by bare name. `factors`, `whole`: the adapter's
    tensors by bare name; what it stores twice for one matrix is taken out, and what it stores once for two is added.
    `one_scale`: rank_pattern and alpha_pattern give both the same factor of B·A. Else they differ, also if peft ties
    them, because it ties A and B only (0.21).
    """
    stored = [name for name in (EMBEDDINGS, OUTPUT) if name in bases]
    if len(stored) != 1:
        return False
    keep = bool(config.get("ensure_weight_tying"))
    copied = _take_copies(factors, whole, keep and one_scale)
    changed = {name for name in ("embed_tokens", "lm_head") if name in factors}
    replaced = {name for name in (EMBEDDINGS, OUTPUT) if name in whole}
    saved = config.get("modules_to_save")
    names = saved if isinstance(saved, list) else []
    trained = {f"{bare_name(name)}.weight" for name in names if isinstance(name, str)}
    if not changed and (copied or replaced <= {EMBEDDINGS} - trained):
        return False  # stored because the vocabulary was resized, or the same for both
    if keep and not {"lm_head", OUTPUT} & (changed | replaced):
        return False
    for name, other in ((EMBEDDINGS, OUTPUT), (OUTPUT, EMBEDDINGS)):
        if replaced == {name} and (copied or name not in trained) and changed:
            whole[other] = whole[name]
    base = tensors[bases[stored[0]]]
    (missing,) = {EMBEDDINGS, OUTPUT} - {stored[0]}
    name = base.name.removesuffix(stored[0]) + missing
    bases[missing] = name
    tensors[name] = StoredTensor(
        **{each.name: getattr(base, each.name) for each in fields(StoredTensor)} | {"name": name}
    )
    return True


def tied_factors(config: dict[str, Any], factors: Factors) -> bool:
    """Whether peft keeps the factors of both matrices tied: those of the output are a copy, transposed."""
    if not config.get("ensure_weight_tying") or not {"embed_tokens", "lm_head"} <= factors.keys():
        return False
    (a, b), (right, left) = factors["embed_tokens"], factors["lm_head"]
    if a.shape != left.shape[::-1] or b.shape != right.shape[::-1]:
        return False
    pairs = ((a, left), (b, right))
    return all(np.array_equal(widen(x.read(), x.dtype), widen(y.read(), y.dtype).T) for x, y in pairs)


def _take_copies(factors: Factors, whole: Tensors, tied: bool) -> bool:
    """Remove the output matrix where it is a copy of the embeddings. Returns whether a whole matrix was.

    `tied`: peft keeps the two tied, with one scale. Then the factors of the output are a copy too.
    """
    if tied and tied_factors({"ensure_weight_tying": True}, factors):
        del factors["lm_head"]
    copied = {EMBEDDINGS, OUTPUT} <= whole.keys() and same_values(whole[EMBEDDINGS], whole[OUTPUT])
    if copied:
        del whole[OUTPUT]
    return copied
