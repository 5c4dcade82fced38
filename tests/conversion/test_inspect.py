"""Test `edge inspect`: what a file contains, what is wrong with its data, and whether its source gives the same bits.

pytest tests/conversion/test_inspect.py
"""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.conversion.inspect import Inspection, inspect
from edge.convert import convert
from edge.errors import CheckpointError, ModelFileError
from edge.formats.gguf import read_array, read_padding, read_tensors
from edge.formats.imatrix import Imatrix, Sums, write_imatrix

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_q4(random_small_moe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(
        random_small_moe_folder, quant="Q4_K_M", out=tmp_path_factory.mktemp("q4") / "x.gguf", threads=1
    ).path


@pytest.fixture
def copy(small_q4: Path, tmp_path: Path) -> Path:
    """A copy that a test can damage."""
    return Path(shutil.copyfile(small_q4, tmp_path / "copy.gguf"))


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def place(path: Path, name: str) -> int:
    return next(tensor.offset for tensor in read_tensors(path) if tensor.name == name)


def test_says_what_the_file_holds(small_q4: Path) -> None:
    found = inspect(small_q4)
    assert found.model.architecture == "lfm2moe"
    assert found.ok
    assert not found.verified
    reader = gguf.GGUFReader(small_q4)
    for share in found.types:
        theirs = [tensor for tensor in reader.tensors if tensor.tensor_type.name == share.type]
        assert share.tensors == len(theirs)
        assert share.parameters == sum(int(tensor.n_elements) for tensor in theirs)
        assert share.n_bytes == sum(int(tensor.n_bytes) for tensor in theirs)
    assert sum(share.tensors for share in found.types) == len(reader.tensors) == len(found.tensors)
    assert [share.n_bytes for share in found.types] == sorted((s.n_bytes for s in found.types), reverse=True)
    data = sum(share.n_bytes for share in found.types)
    ends = found.header_bytes + sum(end - begin for begin, end in read_padding(small_q4)[1:])
    assert ends + data == found.model.n_bytes == small_q4.stat().st_size
    assert found.tokens.count == 1024
    assert found.tokens.special == {
        "bos": (1, "<|startoftext|>"),
        "eos": (4, "<|im_end|>"),
        "padding": (0, "<|pad|>"),
    }
    assert (found.tokens.model, found.tokens.pre, found.tokens.add_bos) == ("gpt2", "lfm2", True)
    assert sum(found.tokens.kinds.values()) == 1024
    assert found.tokens.kinds["control"] >= 5
    assert found.template is not None
    assert found.template.status == "chat_template"
    assert found.template.first_line.startswith("{{- bos_token -}}")
    assert found.calibration == {}


def test_text_and_json(small_q4: Path) -> None:
    found = inspect(small_q4, verify=True)
    text = found.to_text()
    for piece in (
        "lfm2moe-small: lfm2moe, ",
        "Q4_K_M, ",
        " bits per weight",
        f"SHA-256      {found.sha256}",
        "Q6_K ",
        "1,024 tokens (",
        "bos 1 <|startoftext|>",
        "edge renders it",
        "calibration  none",
        "no NaN or Inf, no stray bytes",
    ):
        assert piece in text
    assert str(found) == text
    values = json.loads(found.to_json())
    assert values["ok"] is True
    assert values["model"]["path"] == str(small_q4)
    assert values["types"][0]["n_bytes"] == found.types[0].n_bytes
    assert len(values["tensors"]) == len(found.tensors)


def with_metadata(path: Path, **changes: Any) -> Path:
    """A file with one tensor and this metadata; a double underscore in a key means a dot."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "a", "b"])
    writer.add_token_types([3, 3, 1, 1])
    for key, value in changes.items():
        name = key.replace("__", ".")
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_origin_and_calibration(tmp_path: Path) -> None:
    path = with_metadata(
        tmp_path / "x.gguf",
        llama__embedding_length=32,
        general__source__huggingface__repository="org/name",
        edge__source__revision="0123456789abcdef0123456789abcdef01234567",
        edge__lora="tuned",
        quantize__imatrix__file="rows.gguf",
        quantize__imatrix__dataset="rows.jsonl",
        quantize__imatrix__entries_count=3,
        quantize__imatrix__chunks_count=40,
    )
    found = inspect(path, verify=True)
    assert found.origin == {
        "hub id": "org/name",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "adapter": "tuned",
    }
    assert found.calibration == {"matrix": "rows.gguf", "text": "rows.jsonl", "tensors": "3", "chunks": "40"}
    assert "revision 0123456789abcdef" in found.to_text()
    assert "chunks 40" in found.to_text()
    assert found.template is None
    assert "prompts use a fallback" in found.to_text()
    assert found.ok


def test_texts_of_the_file_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = with_metadata(
        tmp_path / "x.gguf",
        general__name="\x1b[2J\nname" + "x" * 1000,
        tokenizer__chat_template="{{ '\x1b]0;x\x07' }}{{ raise_exception('\x9b' ~ 'y' * 9999) }}",
        edge__lora="한" * 500 + "\r",
    )
    found = inspect(path)
    assert all(line.isprintable() and len(line) < 250 for line in found.to_text().splitlines()[1:])
    assert found.template is not None
    assert found.template.status == "chatml_fallback"
    assert "NOT USED" in found.to_text()


# --- verify ---


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q2_K", "MXFP4_MOE"])
def test_data_of_each_type(
    quant: str, random_small_moe_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """edge finds the row of a scale or value that is NaN, and hides the messages of ggml."""
    path = convert(random_small_moe_folder, quant=quant, out=tmp_path / "x.gguf", threads=1).path
    assert inspect(path, verify=True).ok
    tensor = next(t for t in read_tensors(path) if t.name == "blk.0.ffn_up.weight")
    row_bytes = tensor.n_bytes // tensor.shape[1]
    kind, size = tensor.type, row_bytes * 8 // tensor.shape[0]
    at = tensor.offset + 37 * row_bytes
    # Where a type stores its scale: at the start of the block, for these types at the end.
    block = {"Q2_K": 84, "TQ2_0": 66}.get(kind, 0)
    offset = {"Q2_K": block - 4, "TQ2_0": block - 2}.get(kind, 0)
    nan = b"\xff" if kind == "MXFP4" else struct.pack("<f", float("nan")) if kind == "F32" else b"\xff\x7f"
    capfd.readouterr()
    overwrite(path, at + offset, nan)
    found = inspect(path, verify=True)
    assert found.problems == (
        "blk.0.ffn_up.weight is not as edge convert wrote it (CRC-32)",
        f"blk.0.ffn_up.weight: row 37 of {tensor.shape[1]} holds NaN or Inf ({kind})",
    ), size
    assert not found.ok
    assert "PROBLEM" in found.to_text()
    assert capfd.readouterr().err == ""
    assert inspect(path).ok  # without --verify edge does not read the data


def test_bytes_that_belong_to_nothing(copy: Path) -> None:
    gaps = read_padding(copy)
    assert all(0 < end - begin < 32 for begin, end in gaps)
    begin, end = gaps[0]
    overwrite(copy, end - 1, b"x")
    with copy.open("ab") as file:
        file.write(bytes(100_000))
    problems = inspect(copy, verify=True).problems
    assert f"the padding of {end - begin} bytes at {begin:,} is not zero" in problems
    assert any(problem.endswith("belong to no tensor") and problem.startswith("100,") for problem in problems)


def test_metadata_that_the_tensors_contradict(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "x.gguf", llama__embedding_length=64, llama__block_count=2)
    assert inspect(path, verify=True).problems == (
        "token_embd.weight: rows of 32, but embedding_length is 64",
        "the tensors belong to 0 layers, but block_count is 2",
    )


def test_truncated_file_is_refused(copy: Path) -> None:
    os.truncate(copy, copy.stat().st_size // 2)
    with pytest.raises(ModelFileError, match="truncated"):
        inspect(copy)


# --- against the source ---


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_K_M", "TQ1_0"])
def test_every_tensor_is_converted_again(quant: str, random_small_moe_folder: Path, tmp_path: Path) -> None:
    path = convert(random_small_moe_folder, quant=quant, out=tmp_path / "x.gguf", threads=1).path
    found = inspect(path, source=random_small_moe_folder, threads=1)
    assert found.comparison is not None
    assert found.comparison.different == ()
    assert found.comparison.skipped == ()
    assert found.comparison.equal == len(read_tensors(path)) == len(found.tensors)
    assert found.ok
    assert f"{len(found.tensors)} tensors converted again with the same bits" in found.to_text()


def differences(found: Inspection) -> dict[str, str]:
    assert found.comparison is not None
    assert not found.ok
    return {difference.name: difference.problem for difference in found.comparison.different}


def test_one_changed_bit_is_found(copy: Path, random_small_moe_folder: Path) -> None:
    tensor = next(t for t in read_tensors(copy) if t.name == "blk.1.ffn_gate_exps.weight")
    rows = tensor.shape[1] * tensor.shape[2]
    at = tensor.offset + 300 * (tensor.n_bytes // rows) + 9
    with copy.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    found = inspect(copy, source=random_small_moe_folder, threads=1)
    wanted = f"1 of {rows:,} rows differ, the first is 300 ({tensor.type})"
    assert differences(found) == {tensor.name: wanted}
    assert f"DIFFERS      {tensor.name}: {wanted}" in found.to_text()


def test_another_source(small_q4: Path, random_small_moe_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_small_moe_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("other")
    config = json.loads((folder / "config.json").read_text())
    config |= {"norm_eps": 1e-6, "eos_token_id": 2, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    found = differences(inspect(small_q4, source=folder, threads=1))
    assert found.keys() == {
        "lfm2moe.attention.layer_norm_rms_epsilon",
        "lfm2moe.context_length",
        "tokenizer.chat_template",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.eot_token_id",
    }
    assert found["lfm2moe.context_length"] == "2048, but the source gives 4096"
    with pytest.raises(CheckpointError, match="no such folder"):
        inspect(small_q4, source=tmp_path / "nothing")


def test_another_architecture(small_q4: Path, random_llama_folder: Path) -> None:
    found = differences(inspect(small_q4, source=random_llama_folder, threads=1))
    assert found["general.architecture"] == "lfm2moe, but the source is llama"
    assert found["output.weight"] == "the file lacks it"
    assert found["blk.1.ffn_gate_exps.weight"] == "the source has no such tensor"


def test_adapter_from_convert_to_inspect(
    random_small_moe_folder: Path, tmp_path: Path, small_q4: Path
) -> None:
    adapter = tmp_path / "tuned"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["in_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(1)
    name = "base_model.model.model.layers.0.conv.in_proj.lora_"
    shapes = {f"{name}A.weight": (4, 256), f"{name}B.weight": (768, 4)}
    factors = {key: random.standard_normal(shape, np.float32) / 8 for key, shape in shapes.items()}
    save_file(factors, adapter / "adapter_model.safetensors")
    done = convert(random_small_moe_folder, quant="Q4_K_M", out=tmp_path / "x.gguf", lora=adapter, threads=1)
    assert "the adapter tuned is merged into 1 module" in done.warnings
    found = inspect(done.path, verify=True, source=random_small_moe_folder, lora=adapter, threads=1)
    assert found.ok
    assert found.origin["adapter"] == "tuned"
    changed = "blk.0.shortconv.in_proj.weight"
    without = differences(inspect(done.path, source=random_small_moe_folder, threads=1))
    assert without.keys() == {changed, "edge.lora"}
    assert without["edge.lora"] == "made with the adapter tuned; give it with --lora"
    assert differences(inspect(small_q4, source=random_small_moe_folder, lora=adapter, threads=1)).keys() == {
        changed
    }


def test_importance_matrix_from_convert_to_inspect(
    random_small_moe_folder: Path, tmp_path: Path, small_q4: Path
) -> None:
    random = np.random.default_rng(2)
    entries = {}
    for tensor in read_tensors(small_q4):
        matrices = tensor.shape[2] if len(tensor.shape) == 3 else 1
        if tensor.name.endswith(".weight") and len(tensor.shape) > 1 and "token_embd" not in tensor.name:
            sums = random.random((matrices, tensor.shape[0]), np.float32) * 40
            entries[tensor.name] = Sums(sums, np.full(matrices, 40, np.int64))
    matrix = tmp_path / "rows.imatrix"
    write_imatrix(matrix, Imatrix(entries, ("rows.jsonl",), 40, 512))
    path = convert(
        random_small_moe_folder, quant="IQ2_S", out=tmp_path / "x.gguf", imatrix=matrix, threads=1
    ).path
    found = inspect(path, source=random_small_moe_folder, imatrix=matrix, threads=1)
    assert found.ok
    assert found.comparison is not None
    assert found.comparison.equal == len(found.tensors)
    assert found.calibration["text"] == "rows.jsonl"
    assert found.calibration["chunks"] == "40"
    without = inspect(path, source=random_small_moe_folder, threads=1)
    assert not without.ok  # most tensors were not compared
    assert without.comparison is not None
    floats = sum(tensor.type == "F32" for tensor in found.tensors)
    assert (without.comparison.equal, len(without.comparison.skipped)) == (
        floats,
        len(found.tensors) - floats,
    )
    assert f"{len(found.tensors) - floats} not compared" in without.to_text()


def test_real_weights(tiny_q4: Path, tiny_folder: Path) -> None:
    found = inspect(tiny_q4, verify=True, source=tiny_folder, threads=1)
    assert found.ok
    assert read_array(tiny_q4, "tokenizer.ggml.tokens")[found.tokens.special["eos"][0]] == b"<|im_end|>"
