"""Plan a conversion: match a checkpoint with the table of its family, tensor by tensor.

The tables are in families/. This module does not depend on an architecture.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint, StoredTensor
from edge.formats.tied import OUTPUT, bare_name, settle
from edge.system.text import counted

Array = npt.NDArray[Any]
Value = bool | int | float | str | list[int] | list[bool] | list[str]
Dims = dict[str, int]
Stored = dict[str, StoredTensor]  # by name without wrapper prefixes

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS: above it llama.cpp stops the process
_MAX_FLOAT = 3e38  # GGUF metadata is float32

# Prefixes that training frameworks and multimodal models put before tensor names, sometimes twice.
_TOWERS = re.compile(
    r"^(?:vision_tower|vision_model|visual|audio_tower|audio_encoder|multi_modal_projector|mm_projector"
    r"|embed_vision|embed_audio|v_head)\."  # v_head: TRL's head that values answers, which transformers ignores too
)
_FETCH = "fetch it again, or save it again with save_pretrained"
_REMEDIES = {
    OUTPUT: "if the embeddings are its output matrix too, set tie_word_embeddings to true in config.json, else save it "
    "again with save_pretrained"
}
_SKIPPED = re.compile(r"(?:^|\.)rotary_emb\.inv_freq$|^pos_emb\.inv_freq$")


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: its source and how its values change. `shape` is in numpy's order, rows first."""

    name: str
    shape: tuple[int, ...]
    f32: bool  # always float32, for any type of the file
    parts: tuple[StoredTensor, ...]  # one; or one per expert, to stack; or none: `change` computes the values
    change: Callable[[Array], Array]
    wide: bool = False  # `change` computes: it takes float32 and returns float32
    columns: bool = False  # `change` moves columns, not rows
    idle: bool = False  # llama.cpp does not run it with this model, so no importance matrix has it

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)

    def stored_shape(self) -> tuple[int, ...]:
        """The shape of one part after its change: without the axis of the experts if the parts are stacked."""
        return self.shape[1:] if len(self.parts) > 1 else self.shape


@dataclass(frozen=True)
class Plan:
    """A whole GGUF without its vocabulary. The keys in `metadata` have no `architecture.` prefix."""

    architecture: str
    metadata: list[tuple[str, Value]]
    tensors: list[TensorPlan]
    n_vocab: int
    n_experts: int
    notes: tuple[str, ...] = ()  # what was omitted or repaired, one line each


@dataclass(frozen=True)
class Change:
    """A transform of a stored tensor, and the stored shape that it expects.

    A change that only moves values works on any dtype. A change that computes is `wide`: float32 in, float32 out.
    """

    apply: Callable[[Array, Dims], Array]
    stored_shape: Callable[[tuple[int, ...], Dims], tuple[int, ...]] = lambda shape, dims: shape
    shared: bool = False  # another row uses the rest of the same stored tensor
    wide: bool = False
    columns: bool = False  # it moves columns, not rows

    def take(self, stored: Stored, name: str) -> None:
        """Remove a used tensor from `stored`, unless another row needs it too."""
        if not self.shared:
            del stored[name]


KEEP = Change(lambda array, dims: array)
PLUS_ONE = Change(lambda array, dims: array + np.float32(1), wide=True)
# The kernel of a convolution, stored as [channels, 1, length].
SQUEEZE = Change(lambda array, dims: array[:, 0], lambda shape, dims: (shape[0], 1, *shape[1:]))
# Fused experts, as transformers 5 stores them: [X, 2M, E], gate rows first.
GATE_HALF = Change(
    lambda array, dims: array[:, : dims["M"]],
    lambda shape, dims: (shape[0], 2 * shape[1], shape[2]),
    shared=True,
)
UP_HALF = Change(
    lambda array, dims: array[:, dims["M"] :], lambda shape, dims: (shape[0], 2 * shape[1], shape[2])
)


IDLE = "idle"
"""A kind of layer: llama.cpp does not run it when it answers."""


@dataclass(frozen=True)
class Row:
    """One row of a family's table. `{i}` is the layer, `{x}` the expert.

    A row of experts names one stored tensor per expert. `fused` is the name and the change for a checkpoint that
    stores the experts of a layer as one tensor.
    """

    gguf: str
    stored: str
    shape: str
    layers: str = "all"  # the kind of layer that has this tensor
    change: Change = KEEP
    f32: bool = False
    optional: bool = False
    zeros: bool = False  # the GGUF gets zeros, even if the checkpoint has values
    fused: tuple[str, Change] | None = None
    idle: bool = False  # llama.cpp does not run it; so it is for all rows of a layer of the kind IDLE


def no_extra(config: "Config", dims: Dims) -> list[TensorPlan]:
    """The default of `Family.extra`: no further tensors."""
    return []


def as_it_is(config: "Config", stored: Stored) -> tuple["Config", Stored, list[str]]:
    """The default of `Family.adapt`: no change."""
    return config, stored, []


@dataclass(frozen=True)
class Family:
    """An architecture: its table, and functions that read config.json."""

    architecture: str
    rows: tuple[Row, ...]
    dims: Callable[["Config"], Dims]
    layers: Callable[["Config"], list[set[str]]]  # for each layer, its kinds
    metadata: Callable[["Config", Dims], list[tuple[str, Value]]]
    tied: bool | None  # transformers' default of tie_word_embeddings; None: the stored tensors decide
    extra: Callable[["Config", Dims], list[TensorPlan]] = no_extra  # tensors computed from the config
    # transformers' defaults of keys that published config.json files omit
    defaults: Mapping[str, object] = field(default_factory=dict)
    # Changes names and config.json to the form that the table expects; called first. The texts are notes for the user.
    adapt: Callable[["Config", Stored], tuple["Config", Stored, list[str]]] = as_it_is


@dataclass(frozen=True)
class Config:
    """Checked access to config.json. Each error names the file (`where`) and the key."""

    where: str
    values: dict[str, object]

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """The value of the first key that exists.

        Raises ConversionError if no key exists, or if the value is not an integer of at least `least`.
        """
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if type(value) is not int or not least <= value < 1 << 31:
                    raise ConversionError(
                        f"{self.where}: {key} is {value!r}, not an integer of at least {least}"
                    )
                return value
        if default is None:
            raise ConversionError(f"{self.where}: has no {keys[0]}")
        return default

    def number(self, *keys: str, default: float | None = None) -> float:
        """The value of the first key that exists.

        Raises ConversionError if no key exists, or if the value is not positive and finite.
        """
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if (
                    isinstance(value, bool)
                    or not isinstance(value, int | float)
                    or not 0 < value < _MAX_FLOAT
                ):
                    raise ConversionError(f"{self.where}: {key} is {value!r}, not a positive number")
                return float(value)
        if default is None:
            raise ConversionError(f"{self.where}: has no {keys[0]}")
        return default

    def flag(self, *keys: str, default: bool) -> bool:
        """The value of the first key that exists. Raises ConversionError if it is not a boolean."""
        for key in keys:
            value = self.values.get(key)
            if type(value) is bool:
                return value
            if value is not None:
                raise ConversionError(f"{self.where}: {key} is {value!r}, not true or false")
        return default

    def must_be(self, key: str, wanted: object, default: object) -> None:
        """Raises ConversionError if a key does not have the value that is built into llama.cpp.

        With any other value the GGUF would compute wrong results.
        """
        value = self.values.get(key, default)
        if value != wanted:
            raise ConversionError(
                f"{self.where}: {key} {value!r} is not supported by llama.cpp, only {wanted!r}"
            )


def text_values(values: dict[str, object]) -> dict[str, object]:
    """The values of config.json for the text model. A multimodal model stores them in text_config.

    As in transformers, the parent's other values do not count there, but its tie_word_embeddings does, and not that of
    text_config.
    """
    text = values.get("text_config")
    if not isinstance(text, dict):
        return values
    parent = {
        key: value for key, value in values.items() if key == "architectures" or key.endswith("_token_id")
    }
    return parent | text | {"tie_word_embeddings": values.get("tie_word_embeddings")}


def decide_tied(checkpoint: Checkpoint, config: Config, family: Family) -> Checkpoint:
    """The checkpoint with one matrix or two as embeddings and output, as config.json or the family's default says.

    A multimodal parent that does not say it has one matrix unless it stores two.
    Raises ConversionError if the setting is not a boolean.
    """
    if checkpoint.tied is not None:
        return checkpoint
    config = Config(config.where, {**family.defaults, **config.values})
    separate = any(bare_name(name) == OUTPUT for name in checkpoint.tensors)
    parent = isinstance(checkpoint.config.get("text_config"), dict)
    default = not separate if family.tied is None or parent else family.tied
    older = ("tie_embedding",) if family.architecture.startswith("lfm2") else ()  # as in transformers
    return settle(checkpoint, config.flag(*older, "tie_word_embeddings", default=default))


def match(checkpoint: Checkpoint, config: Config, family: Family) -> Plan:
    """Match a checkpoint, for which `decide_tied` was called, with the table of its family.

    Raises ConversionError for a hyper-parameter that is missing or that llama.cpp cannot run, and for a tensor that is
    missing, has another shape than config.json requires, or is not in the table.
    """
    n_layers = config.integer("num_hidden_layers")
    if n_layers > _MAX_LAYERS:  # before a list is built for each layer
        raise ConversionError(
            f"{config.where}: {counted(n_layers, 'layer')}; llama.cpp takes at most {_MAX_LAYERS}"
        )
    stored, notes = _bare_names(checkpoint)
    config = Config(config.where, {**family.defaults, **config.values})
    config, stored, further = family.adapt(config, stored)
    dims = family.dims(config)
    layers = family.layers(config)
    tensors = list(_match(family, dims, layers, stored, bool(checkpoint.tied), str(checkpoint.folder)))
    if stored:
        raise ConversionError(
            f"{checkpoint.folder}: {min(stored)} is not a tensor of a {family.architecture} model; "
            "the architecture in config.json does not fit the checkpoint"
        )
    return Plan(
        architecture=family.architecture,
        metadata=family.metadata(config, dims),
        tensors=tensors + family.extra(config, dims),
        n_vocab=dims["V"],
        n_experts=dims.get("X", 0),
        notes=(*notes, *further),
    )


def _bare_names(checkpoint: Checkpoint) -> tuple[Stored, list[str]]:
    """The tensors that a text model needs, by name without wrapper prefixes; and notes on what changed.

    Raises ConversionError if two names become the same.
    """
    stored: Stored = {}
    towers: Counter[str] = Counter()
    doubled: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        bare = bare_name(name)
        if _SKIPPED.search(bare):
            continue
        if _TOWERS.search(bare):
            towers[bare.partition(".")[0]] += 1
            continue
        if bare in stored:
            raise ConversionError(f"{checkpoint.folder}: {name} and {stored[bare].name} name the same tensor")
        prefix = name.removesuffix(bare)
        if max(prefix.split(".").count(part) for part in ("model", "language_model")) > 1:
            doubled[prefix] += 1
        stored[bare] = tensor
    notes = [
        f"the doubled prefix {prefix} was removed from {count} tensor names"
        for prefix, count in doubled.items()
    ]
    if towers:
        notes.append(
            f"{', '.join(sorted(towers))} ({counted(sum(towers.values()), 'tensor')}) omitted: "
            "the GGUF contains only the text model"
        )
    return stored, notes


def _match(
    family: Family, dims: Dims, layers: list[set[str]], stored: Stored, tied: bool, where: str
) -> Iterator[TensorPlan]:
    """The plan of each tensor in the table. Removes the tensors that it uses from `stored`."""
    all_kinds = {"all"}.union(*layers)
    for row in family.rows:
        if "{i}" not in row.gguf and row.layers in all_kinds and not (tied and row.gguf == "output.weight"):
            yield from _match_row(row, row.gguf, row.stored, dims, stored, where)
    for i, kinds in enumerate(layers):
        for row in family.rows:
            if "{i}" in row.gguf and row.layers in kinds:
                names = (row.gguf.replace("{i}", str(i)), row.stored.replace("{i}", str(i)))
                row_here = replace(row, idle=row.idle or IDLE in kinds)
                yield from _match_row(row_here, *names, dims, stored, where)


def _match_row(
    row: Row, gguf_name: str, stored_name: str, dims: Dims, stored: Stored, where: str
) -> Iterator[TensorPlan]:
    shape = tuple(_size(axis, dims) for axis in row.shape.split())
    if row.zeros:
        stored.pop(stored_name, None)
        yield made(gguf_name, np.zeros(shape, np.float32))
        return
    change = row.change
    names = [_stored_as(stored_name, stored)]
    part_shape = change.stored_shape(shape, dims)
    if "{x}" in stored_name:
        names = [stored_name.replace("{x}", str(x)) for x in range(dims["X"])]
        part_shape = shape[1:]
        if row.fused is not None:
            whole = _stored_as(stored_name.partition("{x}")[0] + row.fused[0], stored)
            if whole in stored:
                names, change = [whole], row.fused[1]
                part_shape = change.stored_shape(shape, dims)
    parts = []
    for name in names:
        part = stored.get(name)
        if part is None:
            if row.optional:
                return
            raise ConversionError(f"{where}: the checkpoint lacks {name}; {_REMEDIES.get(name, _FETCH)}")
        if part.shape != part_shape:
            raise ConversionError(
                f"{where}: {part.name} is {list(part.shape)}, but config.json asks for {list(part_shape)}"
            )
        parts.append(part)
        change.take(stored, name)
    apply = change.apply
    f32 = row.f32 or len(shape) == 1
    yield TensorPlan(
        name=gguf_name,
        shape=shape,
        f32=f32,
        parts=tuple(parts),
        change=lambda array: apply(array, dims),
        wide=change.wide,
        columns=change.columns,
        idle=row.idle,
    )


def _stored_as(name: str, stored: Stored) -> str:
    """The name as stored. Some exports add `.weight` to the names of plain parameters."""
    return name if name in stored or f"{name}.weight" not in stored else f"{name}.weight"


def _size(axis: str, dims: Dims) -> int:
    """The length of an axis of a row: a key of `dims`, a number, or a number times a key (`2M`)."""
    if axis.isdigit():
        return int(axis)
    factor = axis.rstrip(string.ascii_letters)
    return int(factor or 1) * dims[axis.removeprefix(factor)]


def made(name: str, values: Array) -> TensorPlan:
    """A float32 tensor that edge computes, because checkpoints do not store it."""
    return TensorPlan(name, values.shape, True, (), lambda _: values)
