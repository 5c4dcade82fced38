"""GGUFs that are no whole model: the parts of a split one, and files of other kinds as llama.cpp's tools write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split(source: Path, whole: Path, shares: Sequence[int]) -> list[Path]:
    """The parts of a GGUF as llama-gguf-split writes them: all metadata in the first, nearly none in the others.

    `shares`: the numbers of tensors of all parts but the last; the first is 0 with --no-tensor-first-split.
    """
    reader = GGUFReader(source)
    ends = [sum(shares[: i + 1]) for i in range(len(shares))]
    bounds = list(zip([0, *ends], [*ends, len(reader.tensors)], strict=True))
    paths = [
        whole.with_name(f"{whole.stem}-{number:05}-of-{len(bounds):05}.gguf")
        for number in range(1, len(bounds) + 1)
    ]
    for number, (path, (begin, end)) in enumerate(zip(paths, bounds, strict=True)):
        writer = GGUFWriter(path, "")
        writer.kv_data[0].clear()
        if number == 0:
            for key, item in reader.fields.items():
                if not key.startswith("GGUF."):
                    kind = item.types[0]
                    sub = item.types[-1] if kind == GGUFValueType.ARRAY else None
                    writer.add_key_value(key, item.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(bounds))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[begin:end]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        finish(writer)
    return paths


def file_of_kind(path: Path, architecture: str, kind: str | None = None, **values: Any) -> Path:
    """A GGUF with a tensor and metadata, whose keys have double underscores for dots."""
    writer = GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
    for name, value in values.items():
        key = name.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    writer.add_tensor("v.patch_embd.weight", np.ones((4, 32), np.float32))
    finish(writer)
    return path


def importance_matrix(path: Path) -> Path:
    """As llama-imatrix writes it: without an architecture."""
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.ones((1, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.ones((1, 1), np.float32))
    finish(writer)
    return path
