"""Write the header of a GGUF: metadata, vocabulary, and the place of each tensor's data."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.conversion.plan import Plan, TensorPlan, Value
from edge.conversion.tokenizer import Vocabulary
from edge.formats import checksum
from edge.formats.checkpoint import Checkpoint
from edge.version import __version__

_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}  # that llama.cpp looks up in such a model


@dataclass(frozen=True)
class Placed:
    """A tensor, the ggml number of its type, the size of its data and the offset of its data, both in bytes."""

    tensor: TensorPlan
    type: int
    n_bytes: int
    offset: int


def write_header(
    path: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    vocabulary: Vocabulary,
    tensors: Sequence[tuple[TensorPlan, int, int]],
    file_type: int,
    further: Sequence[tuple[str, Value]] = (),
) -> tuple[list[Placed], int]:
    """Write the header to `path`. Returns the tensors with their places, and the size of the whole file in bytes.

    `tensors`: each tensor with its ggml type and its size in bytes, in the order of the file. `file_type`:
    general.file_type. `further`: more metadata, with full keys. Raises OSError.
    """
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(_name(checkpoint.name, vocabulary))
        _add_metadata(writer, checkpoint, plan, file_type, further)
        writer.add_string(checksum.KEY, checksum.blank(len(tensors)))
        _add_vocabulary(writer, vocabulary, checkpoint.chat_template)
        for tensor, number, n_bytes in tensors:
            kind: Any = number  # the gguf package does not know the newest types
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    placed = []
    offset = gguf.GGUFWriter.ggml_pad(path.stat().st_size, gguf.GGUF_DEFAULT_ALIGNMENT)
    for tensor, number, n_bytes in tensors:
        placed.append(Placed(tensor, number, n_bytes, offset))
        offset += gguf.GGUFWriter.ggml_pad(n_bytes, gguf.GGUF_DEFAULT_ALIGNMENT)
    return placed, offset


def _name(name: str, vocabulary: Vocabulary) -> str:
    """The name of the model. llama.cpp obeys it: with "phi-3" or "phi3" in it, special tokens take the spaces after.

    It also needs four tokens then. So the name keeps it only for a tokenizer that does the same.
    """
    tokens = vocabulary.tokenizer.get_added_tokens_decoder().values()
    if set(vocabulary.tokens) >= _PHI3_TOKENS and any(token.rstrip for token in tokens):
        return name
    return re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)


def _add_metadata(
    writer: gguf.GGUFWriter,
    checkpoint: Checkpoint,
    plan: Plan,
    file_type: int,
    further: Sequence[tuple[str, Value]],
) -> None:
    n_params = sum(tensor.n_values for tensor in plan.tensors)
    n_expert_params = sum(tensor.n_values for tensor in plan.tensors if "_exps." in tensor.name)
    one_expert = n_expert_params // max(plan.n_experts, 1)
    writer.add_size_label(gguf.size_label(n_params, n_params - n_expert_params, one_expert, plan.n_experts))
    add_entries(writer, checkpoint.card.entries)
    if checkpoint.hub_id is not None:
        writer.add_source_repo_url(f"https://huggingface.co/{checkpoint.hub_id}")
    writer.add_string("edge.version", __version__)
    if checkpoint.revision is not None:
        writer.add_string("edge.source.revision", checkpoint.revision)
    if checkpoint.adapter is not None:
        writer.add_string("edge.lora", checkpoint.adapter)
    add_entries(writer, ((f"{plan.architecture}.{key}", value) for key, value in plan.metadata))
    add_entries(writer, further)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_entries(writer: gguf.GGUFWriter, entries: Iterable[tuple[str, Value]]) -> None:
    """Add metadata with its type: a `float` is a FLOAT32, an `int` a UINT32."""
    for key, value in entries:
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, chat_template: str | None) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for name, token_id in vocabulary.special_ids.items():
        writer.add_uint32(gguf.Keys.Tokenizer.__dict__[f"{name.upper()}_ID"], token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
