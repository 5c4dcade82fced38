"""Matching a checkpoint against its family's table: which stored tensor becomes which GGUF tensor, and how.

The tables themselves are in families.py; this module knows no architecture.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoint import Checkpoint, StoredTensor
from edge.errors import ConversionError

Array = npt.NDArray[Any]
Value = int | float | list[int] | str
Dims = dict[str, int]

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS: beyond it llama.cpp would end the process
_MAX_FLOAT = 3e38  # metadata is float32

# Wrappers that training frameworks and multimodal parents put before the names, sometimes twice.
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|_orig_mod|module|base_model)\.)+")
_SKIPPED = re.compile(
    r"^(?:vision_tower|vision_model|visual|audio_tower|audio_encoder|multi_modal_projector|mm_projector)\."
    r"|\.rotary_emb\.inv_freq$|^rotary_emb\.inv_freq$|^pos_emb\.inv_freq$"
)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: where it comes from and how it is made. `shape` is in numpy's order, rows
    first.
    """

    name: str
    shape: tuple[int, ...]
    f32: bool  # always float32, whatever the file's type
    parts: tuple[StoredTensor, ...]  # one, or one per expert, stacked; none: `change` makes it from nothing
    change: Callable[[Array], Array]

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)

    def stored_shape(self) -> tuple[int, ...]:
        """The shape of one part after its change: without the experts' axis if the parts are to be
        stacked.
        """
        return self.shape[1:] if len(self.parts) > 1 else self.shape


@dataclass(frozen=True)
class Plan:
    """A whole GGUF but for the vocabulary: the architecture, its metadata (without the `arch.` prefix),
    tensors.
    """

    architecture: str
    metadata: list[tuple[str, Value]]
    tensors: list[TensorPlan]
    n_vocab: int
    n_experts: int


@dataclass(frozen=True)
class Row:
    """One line of a family's table. `{i}` stands for the layer, `{x}` for the expert."""

    gguf: str
    stored: str
    shape: str
    layers: str = "all"  # the kind of layer that has it
    change: str = ""  # a key of _CHANGES, or zeros: whatever is stored, the GGUF gets zeros
    f32: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """An architecture: its table, and what is read from config.json for it."""

    architecture: str
    rows: tuple[Row, ...]
    dims: Callable[["Config"], Dims]
    layers: Callable[["Config"], list[set[str]]]  # the kinds of each layer
    metadata: Callable[["Config", Dims], list[tuple[str, Value]]]
    extra: Callable[["Config", Dims], list[TensorPlan]]  # tensors that are computed from the config
    tied: bool  # transformers' default for tie_word_embeddings


@dataclass(frozen=True)
class Config:
    """config.json with checked access: every error names the key."""

    where: str
    values: dict[str, Any]

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """The first of the keys that is there. Raises ConversionError: none, or not an integer >= least."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if type(value) is not int or not least <= value < 1 << 31:
                    raise ConversionError(f"{self.where}: {key} is {value!r}, not an integer from {least}")
                return value
        if default is None:
            raise ConversionError(f"{self.where}: has no {keys[0]}")
        return default

    def number(self, *keys: str, default: float) -> float:
        """The first of the keys that is there. Raises ConversionError: not a positive finite number."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if type(value) not in (int, float) or not 0 < value < _MAX_FLOAT:
                    raise ConversionError(f"{self.where}: {key} is {value!r}, not a positive number")
                return float(value)
        return default

    def flag(self, *keys: str, default: bool) -> bool:
        """The first of the keys that is there. Raises ConversionError: not a boolean."""
        found = [self.values[key] for key in keys if self.values.get(key) is not None]
        if found and type(found[0]) is not bool:
            raise ConversionError(f"{self.where}: {keys[0]} is {found[0]!r}, not true or false")
        return bool(found[0]) if found else default

    def must_be(self, key: str, wanted: Any, default: Any) -> None:
        """llama.cpp's graph has the wanted value built in: any other would convert to a model that answers
        wrongly.
        """
        value = self.values.get(key, default)
        if value != wanted:
            raise ConversionError(
                f"{self.where}: {key} {value!r} is not supported by llama.cpp, only {wanted!r}"
            )


def match(checkpoint: Checkpoint, config: Config, family: Family) -> Plan:
    """Match a checkpoint against its family's table.

    Raises ConversionError: a hyper-parameter that is missing or that llama.cpp cannot run, a tensor that is
    missing, of another shape than config.json says, or that has no place in the table.
    """
    n_layers = config.integer("num_hidden_layers")
    if n_layers > _MAX_LAYERS:  # before anything is made for each of them
        raise ConversionError(f"{config.where}: {n_layers} layers; llama.cpp takes at most {_MAX_LAYERS}")
    dims = family.dims(config)
    layers = family.layers(config)
    stored = _bare_names(checkpoint)
    tied = config.flag("tie_embedding", "tie_word_embeddings", default=family.tied)
    if tied:
        stored.pop("lm_head.weight", None)
    tensors = list(_match(family, dims, layers, stored, tied, str(checkpoint.folder)))
    if stored:
        raise ConversionError(
            f"{checkpoint.folder}: {min(stored)} has no place in a {family.architecture} model; "
            "the checkpoint is of another architecture than its config.json says"
        )
    return Plan(
        architecture=family.architecture,
        metadata=family.metadata(config, dims),
        tensors=tensors + family.extra(config, dims),
        n_vocab=dims["V"],
        n_experts=dims.get("X", 0),
    )


def _bare_names(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors by their names without wrappers; those that a text model does not need are left out."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        bare = _WRAPPERS.sub("", name)
        if _SKIPPED.search(bare):
            continue
        if bare in stored:
            raise ConversionError(
                f"{checkpoint.folder}: {name} and {stored[bare].name} are the same tensor twice"
            )
        stored[bare] = tensor
    return stored


def _match(
    family: Family,
    dims: Dims,
    layers: list[set[str]],
    stored: dict[str, StoredTensor],
    tied: bool,
    where: str,
) -> Iterator[TensorPlan]:
    """The plan of each tensor that the table asks for; what it uses is taken out of `stored`."""
    for row in family.rows:
        if "{i}" not in row.gguf and not (tied and row.gguf == "output.weight"):
            yield from _match_row(row, row.gguf, row.stored, dims, stored, where)
    for i, kinds in enumerate(layers):
        for row in family.rows:
            if "{i}" in row.gguf and row.layers in kinds:
                names = (row.gguf.replace("{i}", str(i)), row.stored.replace("{i}", str(i)))
                yield from _match_row(row, *names, dims, stored, where)


def _match_row(
    row: Row, gguf_name: str, stored_name: str, dims: Dims, stored: dict[str, StoredTensor], where: str
) -> Iterator[TensorPlan]:
    shape = tuple(
        dims[axis] if axis.isalpha() else int(axis[:-1]) * dims[axis[-1]] for axis in row.shape.split()
    )
    if row.change == "zeros":
        stored.pop(stored_name, None)
        yield made(gguf_name, np.zeros(shape, np.float32))
        return
    change = _CHANGES[row.change]
    names = [stored_name]
    part_shape = change.stored_shape(shape, dims)
    if "{x}" in stored_name:
        fused, fused_change = _FUSED[row.stored.rsplit(".", 2)[1]]
        fused_name = stored_name.split("{x}")[0] + fused
        if fused_name in stored:
            names, change = [fused_name], _CHANGES[fused_change]
            part_shape = change.stored_shape(shape, dims)
        else:
            names = [stored_name.replace("{x}", str(x)) for x in range(dims["X"])]
            part_shape = shape[1:]
    parts = []
    for name in names:
        part = stored.get(name)
        if part is None:
            if row.optional:
                return
            raise ConversionError(f"{where}: the checkpoint lacks {name}")
        if part.shape != part_shape:
            raise ConversionError(
                f"{where}: {part.name} is {list(part.shape)}, but config.json asks for {list(part_shape)}"
            )
        parts.append(part)
        change.take(stored, name)
    apply = change.apply
    f32 = row.f32 or len(shape) == 1
    yield TensorPlan(gguf_name, shape, f32, tuple(parts), lambda array: apply(array, dims))


def made(name: str, values: Array) -> TensorPlan:
    """A float32 tensor that no checkpoint holds."""
    return TensorPlan(name, values.shape, True, (), lambda _: values)


# --- transforms ---


@dataclass(frozen=True)
class Change:
    """A transform of a stored tensor, on any dtype, and the stored shape that it starts from."""

    apply: Callable[[Array, Dims], Array]
    stored_shape: Callable[[tuple[int, ...], Dims], tuple[int, ...]] = lambda shape, dims: shape
    shared: bool = False  # another row takes the rest of the same stored tensor

    def take(self, stored: dict[str, StoredTensor], name: str) -> None:
        if not self.shared:
            del stored[name]


def _interleave(array: Array, dims: Dims) -> Array:
    """Rows of each head from transformers' order (first half, second half) to llama.cpp's rotated pairs."""
    head = dims["D"]
    pairs = array.reshape(-1, 2, head // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


_CHANGES = {
    "": Change(lambda array, dims: array),
    "interleave": Change(_interleave),
    "squeeze": Change(lambda array, dims: array[:, 0], lambda shape, dims: (shape[0], 1, shape[1])),
    # Fused experts, as transformers 5 keeps them: [X, 2M, E], gate rows first; [X, E, M].
    "gate half": Change(
        lambda array, dims: array[:, : dims["M"]],
        lambda shape, dims: (shape[0], 2 * shape[1], shape[2]),
        shared=True,
    ),
    "up half": Change(
        lambda array, dims: array[:, dims["M"] :], lambda shape, dims: (shape[0], 2 * shape[1], shape[2])
    ),
}
_FUSED = {"w1": ("gate_up_proj", "gate half"), "w3": ("gate_up_proj", "up half"), "w2": ("down_proj", "")}
