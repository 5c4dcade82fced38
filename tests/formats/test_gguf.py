"""Reads the header of a GGUF: correct for real files, one clear error for each kind of damage.

pytest tests/formats/test_gguf.py
"""

import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import ModelFileError
from edge.formats.gguf import ModelFile, read_metadata, read_model_file, read_tensors, sha256

TOKENS = ["<s>", "</s>", "a", "é"]


def write_gguf(
    path: Path, *, model: str | None = "gpt2", tokens: list[str] | None = TOKENS, **numbers: int | str
) -> None:
    """A small, complete GGUF with every kind of metadata and tensors of three types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(64)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_array("llama.attention.head_count_kv", [2, 0])
    writer.add_float64("llama.some.number", 0.5)
    if model is not None:
        writer.add_tokenizer_model(model)
    if tokens is not None:
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_bos_token_id(0)
    for key, value in ({"eos_token_id": 1} | numbers).items():
        full = f"tokenizer.ggml.{key}" if key.endswith("_id") else f"llama.{key}"
        writer.add_string(full, value) if isinstance(value, str) else writer.add_uint32(full, value)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.add_tensor(
        "b.weight",
        gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.add_tensor("c.weight", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(path)
    return path


def test_says_what_the_file_says(whole: Path) -> None:
    n_params = 2 * 32 + 3 * 64 + 5
    n_bytes = 2 * 32 * 4 + 3 * 64 * 34 // 32 + 5 * 2
    assert read_model_file(whole) == ModelFile(
        path=whole,
        architecture="llama",
        name="small",
        size_label="0.26K",
        file_type="Q8_0",
        n_params=n_params,
        n_bytes=whole.stat().st_size,
        bits_per_weight=8 * n_bytes / n_params,
        context_length=64,
        chat_template="{{ messages }}",
        bos_token="<s>",
        eos_token="</s>",
        bos_id=0,
        eos_id=1,
        end_ids=(1,),
        add_bos=True,
        n_vocab=4,
    )
    metadata = read_metadata(whole)
    assert metadata["llama.attention.head_count_kv"] == [2, 0]
    assert metadata["llama.some.number"] == 0.5
    assert "tokenizer.ggml.tokens" not in metadata


@pytest.mark.slow
def test_agrees_with_the_gguf_package(smollm2_q4: Path) -> None:
    reader = gguf.GGUFReader(smollm2_q4)
    ours = [(t.name, t.shape, t.type, t.offset, t.n_bytes) for t in read_tensors(smollm2_q4)]
    theirs = [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in reader.tensors
    ]
    assert ours == theirs
    model = read_model_file(smollm2_q4)
    assert (model.file_type, model.n_vocab) == ("Q4_K_M", 49152)
    assert (model.bos_token, model.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert model.n_params == 134_515_008
    assert 6 < model.bits_per_weight < 6.5


def test_is_quick(smollm2_q4: Path) -> None:
    read_model_file(smollm2_q4)
    begin = time.process_time()
    read_model_file(smollm2_q4)
    assert time.process_time() - begin < 0.3


def test_sha256_is_remembered_until_the_file_changes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    file.write_bytes(b"one")
    assert sha256(file) == sha256(file) == hashlib.sha256(b"one").hexdigest()
    [memory] = (tmp_path / "cache").rglob("*.json")
    memory.write_text(memory.read_text().replace(hashlib.sha256(b"one").hexdigest(), "remembered"))
    assert sha256(file) == "remembered"  # edge did not read it again
    status = file.stat()
    time.sleep(0.05)  # the system's clock for files has steps
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same path, size, time and inode
    assert sha256(file) == hashlib.sha256(b"two").hexdigest()
    (tmp_path / "new").write_bytes(b"six")
    os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "new", file)
    assert sha256(file) == hashlib.sha256(b"six").hexdigest()
    with pytest.raises(ModelFileError, match="no such file"):
        sha256(tmp_path / "nothing")


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


HEADER = struct.Struct("<4sIQQ")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file"),
        (b"\0" * 4096, "is not a GGUF file"),
        (b"PK\x03\x04" + b"x" * 100, "is a compressed file (zip), not a GGUF"),
        (HEADER.pack(b"GGUF", 1, 0, 0), "version 1"),
        (HEADER.pack(b"GGUF", 3 << 24, 0, 0), "big-endian"),
        (HEADER.pack(b"GGUF", 3, 0, 0), "general.architecture is missing"),
        (HEADER.pack(b"GGUF", 3, 1 << 60, 0), "truncated"),
        (HEADER.pack(b"GGUF", 3, 0, 1 << 60), "truncated"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 63), "truncated"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 40), "cannot fit"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 1 << 62), "truncated"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1), "unknown type 9"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77), "unknown type 77"),
    ],
)
def test_damaged_headers(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    assert problem in refused(path)


def test_missing_and_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nothing.gguf")
    assert "is a folder, not a GGUF; it has no GGUF and no checkpoint" in refused(tmp_path)
    for name, advice in (
        ("config.json", f"make a GGUF with `edge convert {tmp_path}`"),
        (
            "adapter_config.json",
            f"it is a LoRA adapter: make a GGUF with `edge convert {tmp_path} --base SOURCE`",
        ),
        ("b.gguf", f"name a file in it, such as {tmp_path / 'b.gguf'}"),
    ):
        (tmp_path / name).touch()
        assert f"is a folder, not a GGUF; {advice}" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refused(tmp_path / "fifo")
    assert "is not a regular file" in refused(Path("/dev/zero"))
    with pytest.raises(ModelFileError, match="is not a regular file"):
        sha256(tmp_path / "fifo")
    with pytest.raises(ModelFileError, match="cannot be read: embedded null byte"):
        read_model_file("a\0b")


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": ["<s>", "</s>", "a", "a"]}, "the token 'a' occurs twice"),
        ({"tokens": ["<s>", "</s>", "a\0b", "a\0c"]}, "the token 'a' occurs twice"),
        ({"tokens": ["<s>", "</s>", "", "[EMPTY_2]"]}, "the token '[EMPTY_2]' occurs twice"),
        ({"model": "no_vocab"}, "has no vocabulary"),
        ({"model": "none"}, "has no vocabulary"),
        ({"model": None}, "has no vocabulary"),
        ({"tokens": None}, "has no vocabulary"),
        ({"model": "llama"}, "no token for the byte 0x00"),
        ({"model": "llama", "tokens": ["<s>", "</s>", *BYTES[:-1]]}, "no token for the byte 0xFF"),
        ({"expert_count": 4, "expert_used_count": 9}, "9 of 4 experts for each token"),
        ({"expert_used_count": 1}, "1 of 0 experts for each token"),
        ({"expert_count": 4}, "0 of 4 experts for each token"),
        ({"expert_count": 2000, "expert_used_count": 1}, "1 of 2,000 experts for each token"),
        (
            {"expert_count": 4, "expert_used_count": 1, "expert_group_count": 4},
            "groups for each token, of 4 experts",
        ),
        ({"block_count": 0}, "0 layers"),
        ({"block_count": 513}, "513 layers"),
        ({"block_count": 2, "nextn_predict_layers": 3}, "3 of 2 layers are prediction layers"),
        ({"rope.scaling.type": "spiral"}, "the unknown rope scaling type 'spiral'"),
    ],
)
def test_what_ends_llama_cpp_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, **changes)
    assert problem in refused(path)


def test_end_ids(tmp_path: Path) -> None:
    """EOS, end of turn, end of message, each once, and only if that token exists."""
    path = tmp_path / "x.gguf"
    for ids, wanted in (
        ({"eot_token_id": 2, "eom_token_id": 1}, (1, 2)),
        ({"eos_token_id": 4, "eot_token_id": 3}, (3,)),
        ({"eos_token_id": 99}, ()),
    ):
        write_gguf(path, **ids)
        model = read_model_file(path)
        assert model.end_ids == wanted
        assert model.eos_token == ("</s>" if 1 in wanted else None)
    write_gguf(path, model="llama", tokens=["<s>", "</s>", *BYTES], expert_count=4, expert_used_count=4)
    assert read_model_file(path).n_vocab == 258


def test_cut_anywhere(whole: Path, tmp_path: Path) -> None:
    """An incomplete download: every length except the full one (and its last padding) is an error."""
    data = whole.read_bytes()
    end = max(tensor.offset + tensor.n_bytes for tensor in read_tensors(whole))
    path = tmp_path / "cut.gguf"
    for length in [*range(0, end, 7), end - 1]:
        path.write_bytes(data[:length])
        refused(path)


@pytest.mark.slow
@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, 100_000),
    bytes_=st.one_of(
        st.binary(min_size=1, max_size=16),
        st.integers(0, 64).map(lambda bit: struct.pack("<Q", (1 << bit) - 1)),
    ),
)
def test_overwritten_anywhere(whole: Path, tmp_path: Path, at: int, bytes_: bytes) -> None:
    """Random bytes or absurd counts written over the header: a clear error or a readable file, quickly."""
    data = bytearray(whole.read_bytes())
    at %= min(tensor.offset for tensor in read_tensors(whole))
    data[at : at + len(bytes_)] = bytes_
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    try:
        model = read_model_file(path)
    except ModelFileError as error:
        assert "\n" not in str(error).replace(str(path), "")
    else:
        assert model.n_params > 0
        assert all(tensor.offset + tensor.n_bytes <= len(data) for tensor in read_tensors(path))
