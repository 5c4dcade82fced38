"""What a model takes in memory: its weights, its cache, llama.cpp's buffers. Reckoned from a GGUF's header alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ModelFileError
from edge.formats.gguf import ModelFile, TensorInfo, read_metadata, read_model_file, read_tensors

BATCH = 512
"""Tokens decoded at once: llama.cpp's own size of a physical batch; larger ones read no faster on the CPUs measured."""
MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ."""
CELLS_STEP = 256  # llama.cpp pads a cache to a multiple of it
# Values in a block of each type of the cache, and its bytes (ggml-common.h).
KV_BLOCKS = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}


@dataclass(frozen=True)
class Shape:
    """What of a model its memory depends on.

    - weights: the file's bytes; `layer_weights` those of each layer, `output_weights` those of the output head.
      Where llama.cpp keeps a copy arranged for the CPU, the mapped original may leave memory: it counts once
    - kv_values: for each layer, how many numbers the keys and values of one token are; 0 without any of its own.
      A sliding layer is counted as a full one, which for long contexts is more than it takes
    - state_values: for each layer, what a hybrid's convolution or delta net remembers of a sequence, in float32 numbers
    - experts_width: the activations of all experts that work on one token
    """

    path: Path
    context_length: int
    n_vocab: int
    width: int
    heads: int
    head_widths: tuple[int, int]
    experts_width: int
    kv_values: tuple[int, ...]
    state_values: tuple[int, ...]
    weights: int = 0
    layer_weights: tuple[int, ...] = ()
    output_weights: int = 0
    sliding: bool = False  # some layers have a window, and with it a mask of their own
    tied: bool = False
    """Whether the output head is the embedding too: a GPU then gets a copy of it."""


@dataclass(frozen=True)
class Buffers:
    """What llama.cpp allocates beside the weights, in bytes.

    - kv_cache: cells × the layers' keys and values × bytes of a number (f16 2, q8_0 34/32, q4_0 18/32)
    - state: sequences × what the convolutions remember × 4
    - compute: one buffer for all layers. Tokens at once (rounded up to a multiple of the sequences) × 4 bytes ×
      the wider of the vocabulary and a layer, and 6 × width for the hidden states. A layer is as wide as its
      experts' activations or its attention scores with their mask, (heads + 1) × the cells it may see; with flash
      attention there are no scores, only a mask of 2 bytes a cell beside the rest. Sliding layers need a second mask.
      Against what llama.cpp allocated for SmolLM2-135M, the embedded model and the 8 B LFM2-MoE's shape this came
      out 0 to 7 %, or 2 MB, too high.
    - output: sequences × vocabulary × 4, the logits
    """

    kv_cache: int
    state: int
    compute: int
    output: int

    @property
    def total(self) -> int:
        return self.kv_cache + self.state + self.compute + self.output


def read_shape(model: ModelFile | Path) -> Shape:
    """A GGUF's shape, from its header. Raises ModelFileError as read_model_file does."""
    file = read_model_file(model) if isinstance(model, Path) else model
    return shape_of(
        read_metadata(file.path),
        file.n_vocab,
        path=file.path,
        weights=file.n_bytes,
        tensors=read_tensors(file.path),
    )


def shape_of(
    metadata: Mapping[str, Any],
    n_vocab: int,
    *,
    path: Path = Path("the GGUF"),
    weights: int = 0,
    tensors: Sequence[TensorInfo] = (),
) -> Shape:
    """The shape that a GGUF's metadata tell; their keys are e.g. `llama.block_count`.

    Raises ModelFileError where they lack what memory depends on.
    """

    def get(name: str, default: int | None = None) -> Any:
        value = metadata.get(f"{metadata['general.architecture']}.{name}", default)
        if value is None:
            raise ModelFileError(
                f"{path}: its metadata lack {name}, without which its memory cannot be estimated"
            )
        return value

    layers = int(get("block_count"))

    def per_layer(name: str, default: int | None = None) -> list[int]:
        value = get(name, default)
        values = [int(item) for item in value] if isinstance(value, list) else [int(value)] * layers
        if len(values) < layers:
            raise ModelFileError(f"{path}: its metadata hold {name} for {len(values)} of {layers} layers")
        return values[:layers]

    width = int(get("embedding_length"))
    heads = max(per_layer("attention.head_count"))
    heads_kv = per_layer("attention.head_count_kv", heads)
    key, value = (int(get(f"attention.{name}_length", width // max(heads, 1))) for name in ("key", "value"))
    sliding = per_layer("attention.sliding_window_pattern", 0)
    key_swa, value_swa = (
        int(get(f"attention.{name}_length_swa", full)) for name, full in (("key", key), ("value", value))
    )
    # Layers that predict further tokens are not loaded; the last ones may take an earlier one's keys and values.
    own = layers - int(get("nextn_predict_layers", 0)) - int(get("attention.shared_kv_layers", 0))
    recurrent = per_layer("attention.recurrent_layers", 0)
    kept = [count if i < own and not recurrent[i] else 0 for i, count in enumerate(heads_kv)]
    kernel = int(get("shortconv.l_cache", 0))
    delta, inner = int(get("ssm.state_size", 0)), int(get("ssm.inner_size", 0))
    channels = inner + 2 * int(get("ssm.group_count", 0)) * delta
    net = max(int(get("ssm.conv_kernel", 0)) - 1, 0) * channels + delta * inner
    states = [
        net if recurrent[i] else 0 if count else width * max(kernel - 1, 0)
        for i, count in enumerate(heads_kv)
    ]
    by_layer = [0] * layers
    embedding = output = 0
    for tensor in tensors:
        if tensor.name.startswith("blk."):
            number = tensor.name.split(".")[1]
            if number.isdigit() and int(number) < layers:
                by_layer[int(number)] += tensor.n_bytes
        elif tensor.name == "token_embd.weight":
            embedding = tensor.n_bytes
        elif tensor.name == "output.weight":
            output = tensor.n_bytes
    return Shape(
        path=path,
        context_length=int(get("context_length", 0)),
        n_vocab=n_vocab,
        width=width,
        heads=heads,
        head_widths=(key, value),
        experts_width=int(get("expert_used_count", 0)) * 3 * int(get("expert_feed_forward_length", 0)),
        kv_values=tuple(
            count * (key_swa + value_swa if slides else key + value)
            for count, slides in zip(kept, sliding, strict=True)
        ),
        state_values=tuple(states),
        sliding=int(get("attention.sliding_window", 0)) > 0,
        weights=weights,
        layer_weights=tuple(by_layer),
        output_weights=output or embedding,
        tied=not output,
    )


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
    """Bytes of the cache and the buffers; the formulas are in Buffers. `apart`: each sequence has an equal part."""
    cells = padded(cells)
    seen = cells // sequences if apart else cells  # by a token
    batch = min(batch, cells)
    tokens = -(-batch // sequences) * sequences
    masks = 2 if shape.sliding else 1
    scores = 0 if flash_attention else (shape.heads + masks) * seen
    layer = tokens * 4 * (max(shape.experts_width, scores) + 6 * shape.width)
    if flash_attention:
        layer += tokens * 2 * seen * masks
    return Buffers(
        kv_cache=kv_bytes(sum(shape.kv_values), cells, kv_type),
        state=sum(shape.state_values) * sequences * 4,
        compute=max(layer, 4 * (batch * shape.n_vocab + tokens * 6 * shape.width)),
        output=sequences * shape.n_vocab * 4,
    )


def padded(tokens: int) -> int:
    return -(-tokens // CELLS_STEP) * CELLS_STEP


def kv_bytes(values: int, cells: int, kv_type: str) -> int:
    block, n_bytes = KV_BLOCKS[kv_type]
    return values * cells * n_bytes // block
