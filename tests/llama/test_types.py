"""Every quantization type: the same tensors, types and bits as llama.cpp's own quantizer, with and without a matrix.

    pytest tests/llama/test_types.py

The peer is llama_model_quantize of the installed library, on the file that edge writes in the checkpoint's dtype.
scripts/compare_with_llama_cpp.py compares this file with that of llama.cpp's converter, which needs torch.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import random_folder

from edge.convert import TensorTypes, convert
from edge.errors import ConversionError
from edge.formats.gguf import read_metadata, read_tensors
from edge.llama.types import NEEDS_IMATRIX, QUANT_TYPES

pytestmark = pytest.mark.slow

QUANTIZED = [name for name in QUANT_TYPES if name not in ("F32", "F16", "BF16")]

# Quantizes one file to several types in one process. The matrix comes as a GGUF with in_sum2 and counts.
PEER = """
import ctypes, json, sys
import gguf, llama_cpp, numpy as np

source, matrix, wanted = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
keep, entries = [], None
if matrix:
    tensors = {t.name: t.data for t in gguf.GGUFReader(matrix).tensors}
    names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name in zip(entries, names):
        sums, counts = tensors[name + ".in_sum2"], tensors[name + ".counts"].reshape(-1, 1)
        sums = sums.reshape(len(counts), -1)
        values = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32).reshape(-1)
        keep.append(values)
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
for out, ftype, options in wanted:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 1
    if entries is not None:
        params.imatrix = entries
    for name, value in options.items():
        if name == "tt_overrides":
            value = (llama_cpp.llama_model_tensor_override * (len(value) + 1))(
                *((pattern.encode(), number) for pattern, number in value)
            )
        setattr(params, name, value)
    assert llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) == 0, out
"""


def ftype(quant: str) -> int:
    import llama_cpp

    return int(getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}"))


def peer(source: Path, matrix: Path | None, wanted: list[tuple[Path, str, dict[str, Any]]]) -> None:
    """Have llama.cpp write each of the files: (path, type, further parameters)."""
    listed = [(str(path), ftype(quant), options) for path, quant, options in wanted]
    command = [sys.executable, "-c", PEER, str(source), str(matrix or ""), json.dumps(listed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def matrix_for(model: Path, path: Path) -> Path:
    """An importance matrix with random values for a model's matrices; one expert of each stack has no counts."""
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in read_tensors(model):
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.") and "conv.conv" not in tensor.name:
            columns, matrices = tensor.shape[0], tensor.shape[2] if len(tensor.shape) > 2 else 1
            counts = random.integers(1, 900, (matrices, 1)).astype(np.float32)
            if matrices > 1:
                counts[1] = 0
            sums = random.gamma(0.5, 2, (matrices, columns)).astype(np.float32) * counts
            writer.add_tensor(f"{tensor.name}.in_sum2", sums)
            writer.add_tensor(f"{tensor.name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(path: Path) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, type, shape and bytes of each tensor, in the file's order."""
    data = path.read_bytes()
    return [(t.name, t.type, t.shape, data[t.offset : t.offset + t.n_bytes]) for t in read_tensors(path)]


def compare(folder: Path, tmp_path: Path, quants: list[str], *, matrix: bool) -> None:
    floats = convert(folder, quant="BF16", out=tmp_path / "bf16.gguf", check=False).path
    imatrix = matrix_for(floats, tmp_path / "imatrix.gguf") if matrix else None
    peer(floats, imatrix, [(tmp_path / f"{quant}-peer.gguf", quant, {}) for quant in quants])
    for quant in quants:
        done = convert(
            folder, quant=quant, out=tmp_path / "x.gguf", imatrix=imatrix, check=False, threads=2, force=True
        )
        theirs = tmp_path / f"{quant}-peer.gguf"
        # Everything at the same place, but for the metadata in front.
        assert contents(done.path) == contents(theirs), quant
        ours, other = read_metadata(done.path), read_metadata(theirs)
        assert ours.pop("edge.crc32") != other.pop("edge.crc32")  # which llama-quantize copied
        about = {key: value for key, value in ours.items() if key.startswith("quantize.imatrix.")}
        assert {key: value for key, value in ours.items() if key not in about} == other, quant
        assert bool(about) == matrix
        theirs.unlink()


def test_every_type_without_a_matrix(random_small_moe_folder: Path, tmp_path: Path) -> None:
    quants = [quant for quant in QUANTIZED if quant not in NEEDS_IMATRIX]
    assert len(quants) > 20
    compare(random_small_moe_folder, tmp_path, quants, matrix=False)


def test_every_type_with_a_matrix(one_thread: None, tmp_path: Path) -> None:
    """On the smallest model with each kind of layer: the types of low bits are slow to make."""
    import make_random

    layers = {
        **{"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        **{"num_experts": 2, "num_experts_per_tok": 1},
    }
    folder = random_folder("lfm2moe-smallest", lambda path: make_random.lfm2moe(path, **layers))
    compare(folder, tmp_path, QUANTIZED, matrix=True)


@pytest.mark.parametrize("matrix", [False, True])
def test_the_embedded_model(matrix: bool, tiny_folder: Path, tmp_path: Path) -> None:
    compare(tiny_folder, tmp_path, ["Q4_K_M", "Q3_K_M", *["IQ2_XS"] * matrix], matrix=matrix)


def test_smollm2_where_most_tensors_fall_back(smollm2_folder: Path, tmp_path: Path) -> None:
    compare(smollm2_folder, tmp_path, ["Q4_K_M"], matrix=True)


def test_types_of_single_tensors(random_small_moe_folder: Path, tmp_path: Path) -> None:
    """As llama-quantize's --tensor-type, --output-tensor-type and --token-embedding-type."""
    import llama_cpp

    folder = random_small_moe_folder
    q8, q6, iq4 = llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_Q6_K, llama_cpp.GGML_TYPE_IQ4_NL
    floats = convert(folder, quant="BF16", out=tmp_path / "bf16.gguf", check=False).path
    options = {"tt_overrides": [("ffn_down", q8), (r"blk\.\d\.attn", q6)], "token_embedding_type": iq4}
    peer(floats, None, [(tmp_path / "1.gguf", "Q3_K_M", options)])
    ours = convert(
        folder,
        quant="Q3_K_M",
        out=tmp_path / "x.gguf",
        tensor_types=TensorTypes([("ffn_down", "Q8_0"), (r"blk\.\d\.attn", "q6_k")], embedding="IQ4_NL"),
        check=False,
    )
    assert contents(ours.path) == contents(tmp_path / "1.gguf")
    assert {"Q8_0", "Q6_K", "IQ4_NL"} <= {kind for _, kind, _, _ in contents(ours.path)}
    peer(floats, None, [(tmp_path / "2.gguf", "Q4_0", {"output_tensor_type": q8})])
    types = TensorTypes(output="q8_0")
    ours = convert(folder, quant="Q4_0", out=tmp_path / "x.gguf", tensor_types=types, check=False, force=True)
    assert contents(ours.path) == contents(tmp_path / "2.gguf")


@pytest.mark.parametrize(
    ("quant", "types", "problem"),
    [
        ("Q4_K_M", TensorTypes([("ffn", "q9")]), "q9 is not a ggml type; choose one of "),
        ("Q4_K_M", TensorTypes(output="x"), "x is not a ggml type"),
        ("Q4_K_M", TensorTypes(output="q8_k"), "q8_k is not a ggml type"),
        ("Q4_K_M", TensorTypes([("(", "q8_0")]), "is not a regular expression of C++"),
        (
            "Q4_K_M",
            TensorTypes([("ffn_down", "iq2_xs")]),
            "needs an importance matrix: give one with --imatrix",
        ),
        ("Q4_K_M", TensorTypes(embedding="iq1_s"), "needs an importance matrix: give one with --imatrix"),
        ("F16", TensorTypes(output="q8_0"), "F16 is not a quantized type"),
    ],
)
def test_wrong_types_are_refused(
    quant: str, types: TensorTypes, problem: str, random_small_moe_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(ConversionError) as caught:
        convert(random_small_moe_folder, quant=quant, out=out, tensor_types=types, check=False)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_matrix_of_another_model_is_refused(
    random_small_moe_folder: Path, random_lfm2moe_folder: Path, tmp_path: Path
) -> None:
    other = convert(random_lfm2moe_folder, quant="BF16", out=tmp_path / "bf16.gguf", check=False).path
    matrix = matrix_for(other, tmp_path / "imatrix.gguf")
    with pytest.raises(
        ConversionError, match=r"it was made for another model|the given one has no weights for it"
    ):
        convert(random_small_moe_folder, quant="IQ2_XS", out=tmp_path / "x.gguf", imatrix=matrix)
    assert not (tmp_path / "x.gguf").exists()


def test_a_matrix_without_an_entry_for_the_model_is_refused(
    random_small_moe_folder: Path, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("zz.0.ffn_up.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("zz.0.ffn_up.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConversionError, match="has no entry for any tensor of this model"):
        convert(
            random_small_moe_folder, out=tmp_path / "x.gguf", imatrix=tmp_path / "imatrix.gguf", check=False
        )
    assert not (tmp_path / "x.gguf").exists()


def test_calibrated_in_one_go(tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As with the matrix made first; nothing but the output and the matrix stays; no input is ever overwritten."""
    lines = (tiny_folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    said: list[str] = []
    one = convert(
        tiny_folder, quant="Q2_K_S", out=tmp_path / "a.gguf", calibrate=rows, threads=1, say=said.append
    )
    matrix = tmp_path / "a.gguf.imatrix"
    assert said[0].startswith(f"{matrix}: ") and not any("\n" in line for line in said)
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "a.gguf.imatrix", "rows.jsonl"]
    two = convert(tiny_folder, quant="Q2_K_S", out=tmp_path / "b.gguf", imatrix=matrix, threads=1)
    assert contents(one.path) == contents(two.path)
    for options in ({"calibrate": rows, "out": rows}, {"imatrix": matrix, "out": matrix}):
        before = options["out"].read_bytes()
        with pytest.raises(ConversionError, match="is an input of this command"):
            convert(tiny_folder, quant="Q4_0", **options)
        assert options["out"].read_bytes() == before
