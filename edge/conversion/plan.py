"""Matching a checkpoint against its family's table: which stored tensor becomes which GGUF tensor, and how.

The tables themselves are in families/; this module knows no architecture.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint, StoredTensor

Array = npt.NDArray[Any]
Value = bool | int | float | str | list[int] | list[bool]
Dims = dict[str, int]
Stored = dict[str, StoredTensor]  # by names without wrappers

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS: beyond it llama.cpp would end the process
_MAX_FLOAT = 3e38  # metadata is float32

# Wrappers that training frameworks and multimodal parents put before the names, sometimes twice.
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|_orig_mod|module|base_model)\.)+")
_TOWERS = re.compile(
    r"^(?:vision_tower|vision_model|visual|audio_tower|audio_encoder|multi_modal_projector|mm_projector"
    r"|embed_vision|embed_audio)\."
)
_SKIPPED = re.compile(r"(?:^|\.)rotary_emb\.inv_freq$|^pos_emb\.inv_freq$")


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
    wide: bool = False  # `change` computes: it takes a part as float32 and gives float32

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
    notes: tuple[str, ...] = ()  # what was left out or repaired, each in one line


@dataclass(frozen=True)
class Change:
    """A transform of a stored tensor, and the stored shape that it starts from.

    One that only moves values works on any dtype; one that computes is `wide`: float32 in, float32 out.
    """

    apply: Callable[[Array, Dims], Array]
    stored_shape: Callable[[tuple[int, ...], Dims], tuple[int, ...]] = lambda shape, dims: shape
    shared: bool = False  # another row takes the rest of the same stored tensor
    wide: bool = False

    def take(self, stored: Stored, name: str) -> None:
        if not self.shared:
            del stored[name]


KEEP = Change(lambda array, dims: array)
PLUS_ONE = Change(lambda array, dims: array + np.float32(1), wide=True)
# A convolution's kernel, stored as [channels, 1, length].
SQUEEZE = Change(lambda array, dims: array[:, 0], lambda shape, dims: (shape[0], 1, *shape[1:]))
# Fused experts, as transformers 5 keeps them: [X, 2M, E], gate rows first.
GATE_HALF = Change(
    lambda array, dims: array[:, : dims["M"]],
    lambda shape, dims: (shape[0], 2 * shape[1], shape[2]),
    shared=True,
)
UP_HALF = Change(
    lambda array, dims: array[:, dims["M"] :], lambda shape, dims: (shape[0], 2 * shape[1], shape[2])
)


@dataclass(frozen=True)
class Row:
    """One line of a family's table. `{i}` stands for the layer, `{x}` for the expert.

    A row of experts names its stored tensor one by one, and with `fused` how it is called and changed where
    the checkpoint holds a layer's experts as one tensor.
    """

    gguf: str
    stored: str
    shape: str
    layers: str = "all"  # the kind of layer that has it
    change: Change = KEEP
    f32: bool = False
    optional: bool = False
    zeros: bool = False  # whatever is stored, the GGUF gets zeros
    fused: tuple[str, Change] | None = None


def no_extra(config: "Config", dims: Dims) -> list[TensorPlan]:
    return []


def as_it_is(config: "Config", stored: Stored) -> tuple["Config", Stored, list[str]]:
    return config, stored, []


@dataclass(frozen=True)
class Family:
    """An architecture: its table, and what is read from config.json for it."""

    architecture: str
    rows: tuple[Row, ...]
    dims: Callable[["Config"], Dims]
    layers: Callable[["Config"], list[set[str]]]  # the kinds of each layer
    metadata: Callable[["Config", Dims], list[tuple[str, Value]]]
    tied: bool | None  # transformers' default for tie_word_embeddings; None: as the stored tensors are
    extra: Callable[["Config", Dims], list[TensorPlan]] = no_extra  # tensors computed from the config
    # transformers' defaults of keys that published config.json files leave out
    defaults: dict[str, Any] = field(default_factory=dict)
    # Before the table is looked at: stored names and config.json brought into its form, with notes.
    adapt: Callable[["Config", Stored], tuple["Config", Stored, list[str]]] = as_it_is


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

    def number(self, *keys: str, default: float | None = None) -> float:
        """The first of the keys that is there. Raises ConversionError: none, or not a positive finite number."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if type(value) not in (int, float) or not 0 < value < _MAX_FLOAT:
                    raise ConversionError(f"{self.where}: {key} is {value!r}, not a positive number")
                return float(value)
        if default is None:
            raise ConversionError(f"{self.where}: has no {keys[0]}")
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


def text_values(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json's values as they are for the text model: a multimodal parent keeps them in text_config.

    Whether the output matrix is the embedding is the parent's to say, as in transformers.
    """
    text = values.get("text_config")
    if not isinstance(text, dict):
        return values
    tied = values.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return values | text | {"tie_word_embeddings": tied}


def match(checkpoint: Checkpoint, config: Config, family: Family) -> Plan:
    """Match a checkpoint against its family's table.

    Raises ConversionError: a hyper-parameter that is missing or that llama.cpp cannot run, a tensor that is
    missing, of another shape than config.json says, or that has no place in the table.
    """
    n_layers = config.integer("num_hidden_layers")
    if n_layers > _MAX_LAYERS:  # before anything is made for each of them
        raise ConversionError(f"{config.where}: {n_layers} layers; llama.cpp takes at most {_MAX_LAYERS}")
    stored, notes = _bare_names(checkpoint)
    config = Config(config.where, family.defaults | config.values)
    config, stored, further = family.adapt(config, stored)
    dims = family.dims(config)
    layers = family.layers(config)
    default = "lm_head.weight" not in stored if family.tied is None else family.tied
    tied = config.flag("tie_embedding", "tie_word_embeddings", default=default)
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
        notes=(*notes, *further),
    )


def _bare_names(checkpoint: Checkpoint) -> tuple[Stored, list[str]]:
    """The tensors by their names without wrappers, without those that a text model does not need; and what
    was left out or repaired.
    """
    stored: Stored = {}
    towers: Counter[str] = Counter()
    doubled: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        bare = _WRAPPERS.sub("", name)
        if _SKIPPED.search(bare):
            continue
        if _TOWERS.search(bare):
            towers[bare.partition(".")[0]] += 1
            continue
        if bare in stored:
            raise ConversionError(
                f"{checkpoint.folder}: {name} and {stored[bare].name} are the same tensor twice"
            )
        prefix = name.removesuffix(bare)
        if max(prefix.split(".").count(part) for part in ("model", "language_model")) > 1:
            doubled[prefix] += 1
        stored[bare] = tensor
    notes = [
        f"the doubled prefix {prefix} of {count} tensors was repaired" for prefix, count in doubled.items()
    ]
    if towers:
        notes.append(
            f"{', '.join(sorted(towers))} ({sum(towers.values())} tensors) left out: "
            "the GGUF holds the text model alone"
        )
    return stored, notes


def _match(
    family: Family, dims: Dims, layers: list[set[str]], stored: Stored, tied: bool, where: str
) -> Iterator[TensorPlan]:
    """The plan of each tensor that the table asks for; what it uses is taken out of `stored`."""
    all_kinds = {"all"}.union(*layers)
    for row in family.rows:
        if "{i}" not in row.gguf and row.layers in all_kinds and not (tied and row.gguf == "output.weight"):
            yield from _match_row(row, row.gguf, row.stored, dims, stored, where)
    for i, kinds in enumerate(layers):
        for row in family.rows:
            if "{i}" in row.gguf and row.layers in kinds:
                names = (row.gguf.replace("{i}", str(i)), row.stored.replace("{i}", str(i)))
                yield from _match_row(row, *names, dims, stored, where)


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
            raise ConversionError(f"{where}: the checkpoint lacks {name}")
        if part.shape != part_shape:
            raise ConversionError(
                f"{where}: {part.name} is {list(part.shape)}, but config.json asks for {list(part_shape)}"
            )
        parts.append(part)
        change.take(stored, name)
    apply = change.apply
    f32 = row.f32 or len(shape) == 1
    yield TensorPlan(gguf_name, shape, f32, tuple(parts), lambda array: apply(array, dims), change.wide)


def _stored_as(name: str, stored: Stored) -> str:
    """The name, with the `.weight` that some exports give to parameters without one."""
    return name if name in stored or f"{name}.weight" not in stored else f"{name}.weight"


def _size(axis: str, dims: Dims) -> int:
    """An axis of a row: a key of `dims`, a number, or a number times a key (`2M`)."""
    if axis.isdigit():
        return int(axis)
    factor = axis.rstrip(string.ascii_letters)
    return int(factor or 1) * dims[axis.removeprefix(factor)]


def made(name: str, values: Array) -> TensorPlan:
    """A float32 tensor that no checkpoint holds."""
    return TensorPlan(name, values.shape, True, (), lambda _: values)
