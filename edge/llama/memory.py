"""The memory that a model takes: weights, cache, llama.cpp's buffers. Estimated from the header of a GGUF alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import ModelFileError
from edge.formats.adapter import AdapterFile, read_adapter
from edge.formats.gguf import ModelFile, TensorInfo, read_metadata, read_model_file, read_tensors

BATCH = 512
"""Tokens in a batch: llama.cpp's default physical batch. Larger ones read no faster on the measured CPUs."""
MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ."""
CELLS_STEP = 256  # llama.cpp pads a cache to a multiple of it
OWN_BYTES = 125_000_000
"""Memory of Python, edge and its libraries while a model answers: 119 to 134 MB on Linux x86-64 (tests/airgap)."""
# Values in a block of each cache type, and its bytes (ggml-common.h).
KV_BLOCKS = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}


@dataclass(frozen=True)
class Shape:
    """The properties of a model that decide its memory.

    - weights: bytes of the file; `layer_weights` those of each layer, `output_weights` those of the output head.
      llama.cpp may keep a copy arranged for the CPU; the mapped original can then leave memory, so it counts once
    - kv_values: for each layer, numbers in the keys and values of one token; 0 for a layer without its own.
      A sliding layer counts as a full one, which is too much for a long context
    - state_values: for each layer, float32 numbers that a hybrid's convolution or delta net keeps of a sequence
    - experts_width: the activations of all experts that work on one token; `experts_used`: their number
    """

    path: Path
    context_length: int
    n_vocab: int
    width: int
    heads: int
    head_widths: tuple[int, int]
    experts_width: int
    experts_used: int
    kv_values: tuple[int, ...]
    state_values: tuple[int, ...]
    kv_padding: int = 0
    """Numbers by which llama.cpp widens the values of one token, in all layers, if it does not use flash attention."""
    weights: int = 0
    layer_weights: tuple[int, ...] = ()
    output_weights: int = 0
    sliding: bool = False  # some layers have a sliding window, and so a second mask
    tied: bool = False
    """Whether the output head is also the embedding: a GPU then gets a copy of it."""
    adapter_width: int = 0
    """The widest result of a weight in a layer that an adapter changes, through all experts of a token."""
    adapted_output: bool = False
    """Whether an adapter changes the output head."""


@dataclass(frozen=True)
class Buffers:
    """What llama.cpp allocates beside the weights, in bytes.

    - kv_cache: cells × numbers in the keys and values of all layers × bytes of a number (f16 2, q8_0 34/32, q4_0
      18/32).
      Without flash attention, the values of each layer are as wide as those of the widest
    - state: sequences × numbers in the states × 4
    - compute: one buffer for all layers. Tokens of a batch (rounded up to a multiple of the sequences) × 4 bytes ×
      the wider of the vocabulary and a layer, and 6 × width for the hidden states. The width of a layer is that of its
      experts' activations, or of its attention scores with their mask: (heads + 1) × the cells it may see. With flash
      attention there are no scores, only a mask of 2 bytes a cell beside the rest. Sliding layers need a second mask.
      An adapter adds its change where a layer has no scores, as wide as the result of a weight; or a second vocabulary.
      For SmolLM2-135M, the embedded model and the shape of the 8 B LFM2-MoE, the estimate was 0 to 7 %, or 2 MB, higher
      than what llama.cpp allocated.
    - output: sequences × vocabulary × 4, the logits
    """

    kv_cache: int
    state: int
    compute: int
    output: int

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.kv_cache + self.state + self.compute + self.output


def read_shape(model: ModelFile | Path, adapters: Sequence[Path] = ()) -> Shape:
    """The shape of a GGUF with LoRA adapters, from their headers.

    Raises ModelFileError as `read_model_file` and `read_adapter` do.
    """
    file = read_model_file(model) if isinstance(model, Path) else model
    shape = shape_of(
        read_metadata(file.path),
        file.n_vocab,
        path=file.path,
        weights=file.n_bytes,
        tensors=read_tensors(file.path),
    )
    return with_adapters(shape, adapters)


def with_adapters(shape: Shape, adapters: Sequence[Path]) -> Shape:
    """The shape of a model beside which these adapters are in memory. Raises ModelFileError as `read_adapter` does."""
    for file in map(read_adapter, adapters):
        shape = _with_adapter(shape, file)
    return shape


def _with_adapter(shape: Shape, file: AdapterFile) -> Shape:
    by_layer, output = [0] * len(shape.kv_values), 0
    for pair in file.pairs:
        n_bytes, layer = pair.a.n_bytes + pair.b.n_bytes, _layer(pair.name)
        if layer is not None and layer < len(by_layer):
            by_layer[layer] += n_bytes
        elif pair.name == "output.weight":
            output += n_bytes
    widths = [
        pair.b.shape[1] * (shape.experts_used if len(pair.b.shape) > 2 else 1)
        for pair in file.pairs
        if pair.name != "output.weight"
    ]
    before = shape.layer_weights or (0,) * len(by_layer)
    return replace(
        shape,
        weights=shape.weights + sum(tensor.n_bytes for tensor in file.tensors),
        layer_weights=tuple(a + b for a, b in zip(before, by_layer, strict=True)),
        output_weights=shape.output_weights + output,
        adapter_width=max(shape.adapter_width, *widths, 0),
        adapted_output=shape.adapted_output or output > 0,
    )


def shape_of(
    metadata: Mapping[str, Any],
    n_vocab: int,
    *,
    path: Path = Path("the GGUF"),
    weights: int = 0,
    tensors: Sequence[TensorInfo] = (),
) -> Shape:
    """The shape of a model from its GGUF metadata, whose keys are for example `llama.block_count`.

    Raises ModelFileError if a key that decides its memory is missing.
    """
    header = _Header(metadata, path)
    layers = header.number("block_count")
    width = header.number("embedding_length")
    heads = max(header.per_layer("attention.head_count"))
    heads_kv = header.per_layer("attention.head_count_kv", heads)
    key, value = (
        header.number(f"attention.{name}_length", width // max(heads, 1)) for name in ("key", "value")
    )
    sliding = header.per_layer("attention.sliding_window_pattern", 0)
    key_swa, value_swa = (
        header.number(f"attention.{name}_length_swa", full) for name, full in (("key", key), ("value", value))
    )
    # Layers that predict further tokens are not loaded. The last layers may use the keys and values of an earlier one.
    own = layers - header.number("nextn_predict_layers", 0) - header.number("attention.shared_kv_layers", 0)
    recurrent = header.per_layer("attention.recurrent_layers", 0)
    kept = [count if i < own and not recurrent[i] else 0 for i, count in enumerate(heads_kv)]
    by_layer, output, embedding = _weight_bytes(tensors, layers)
    values = [
        count * (value_swa if slides else value) for count, slides in zip(heads_kv, sliding, strict=True)
    ]
    return Shape(
        path=path,
        context_length=header.number("context_length", 0),
        n_vocab=n_vocab,
        width=width,
        heads=heads,
        head_widths=(key, value),
        experts_used=header.number("expert_used_count", 0),
        experts_width=header.number("expert_used_count", 0)
        * 3
        * header.number("expert_feed_forward_length", 0),
        kv_values=tuple(
            count * (key_swa + value_swa if slides else key + value)
            for count, slides in zip(kept, sliding, strict=True)
        ),
        state_values=_state_values(header, width, recurrent, heads_kv),
        kv_padding=sum(max(values) - width for width, heads in zip(values, kept, strict=True) if heads),
        sliding=header.number("attention.sliding_window", 0) > 0,
        weights=weights,
        layer_weights=by_layer,
        output_weights=output or embedding,
        tied=not output,
    )


@dataclass(frozen=True)
class _Header:
    """Numbers from the metadata of a GGUF. Raises ModelFileError if one is missing."""

    metadata: Mapping[str, Any]
    path: Path

    def number(self, name: str, default: int | None = None) -> int:
        return int(self._value(name, default))

    def per_layer(self, name: str, default: int | None = None) -> list[int]:
        """One number for each layer: a list, or the same number for all."""
        layers = self.number("block_count")
        value = self._value(name, default)
        values = [int(item) for item in value] if isinstance(value, list) else [int(value)] * layers
        if len(values) < layers:
            raise ModelFileError(
                f"{self.path}: its metadata contain {name} for {len(values)} of {layers} layers"
            )
        return values[:layers]

    def _value(self, name: str, default: int | None) -> Any:
        value = self.metadata.get(f"{self.metadata['general.architecture']}.{name}", default)
        if value is None:
            raise ModelFileError(
                f"{self.path}: its metadata do not contain {name}, so its memory cannot be estimated"
            )
        return value


def _state_values(
    header: _Header, width: int, recurrent: Sequence[int], heads_kv: Sequence[int]
) -> tuple[int, ...]:
    """For each layer, the numbers in the state of a sequence: of a delta net, or of a convolution."""
    kernel = header.number("shortconv.l_cache", 0)
    delta, inner = header.number("ssm.state_size", 0), header.number("ssm.inner_size", 0)
    channels = inner + 2 * header.number("ssm.group_count", 0) * delta
    net = max(header.number("ssm.conv_kernel", 0) - 1, 0) * channels + delta * inner
    return tuple(
        net if recurrent[i] else 0 if count else width * max(kernel - 1, 0)
        for i, count in enumerate(heads_kv)
    )


def _weight_bytes(tensors: Sequence[TensorInfo], layers: int) -> tuple[tuple[int, ...], int, int]:
    """Bytes of each layer, of the output head (0 if it is tied to the embedding), and of the embedding."""
    by_layer = [0] * layers
    embedding = output = 0
    for tensor in tensors:
        layer = _layer(tensor.name)
        if layer is not None:
            if layer < layers:
                by_layer[layer] += tensor.n_bytes
        elif tensor.name == "token_embd.weight":
            embedding = tensor.n_bytes
        elif tensor.name == "output.weight":
            output = tensor.n_bytes
    return tuple(by_layer), output, embedding


def _layer(name: str) -> int | None:
    """The layer of a tensor; None if it belongs to none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdigit() else None


def buffers(
    shape: Shape,
    cells: int,
    *,
    sequences: int = 2,
    batch: int = BATCH,
    kv_type: str = "f16",
    flash_attention: bool = False,
    apart: bool = False,
) -> Buffers:
    """Bytes of the cache and the buffers; the formulas are in `Buffers`. `apart`: each sequence has an equal part."""
    cells = padded(cells)
    seen = cells // sequences if apart else cells  # by a token
    batch = min(batch, cells)
    tokens = -(-batch // sequences) * sequences
    masks = 2 if shape.sliding else 1
    outputs = 2 if shape.adapted_output else 1  # the logits, and the change of an adapter
    scores = 0 if flash_attention else (shape.heads + masks) * seen
    layer = tokens * 4 * (max(shape.experts_width + shape.adapter_width, scores) + 6 * shape.width)
    if flash_attention:
        layer += tokens * 2 * seen * masks
    return Buffers(
        kv_cache=kv_bytes(
            sum(shape.kv_values) + (0 if flash_attention else shape.kv_padding), cells, kv_type
        ),
        state=sum(shape.state_values) * sequences * 4,
        compute=max(layer, 4 * (batch * shape.n_vocab * outputs + tokens * 6 * shape.width)),
        output=sequences * shape.n_vocab * 4,
    )


def padded(tokens: int) -> int:
    """The number of cells that a cache has for this number of tokens."""
    return -(-tokens // CELLS_STEP) * CELLS_STEP


def kv_bytes(values: int, cells: int, kv_type: str) -> int:
    """Bytes of a cache with `values` numbers in each cell."""
    block, n_bytes = KV_BLOCKS[kv_type]
    return values * cells * n_bytes // block
