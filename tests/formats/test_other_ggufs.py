"""GGUFs that are no whole model: a split model is read as one, another kind of file is named in one line.

pytest tests/formats/test_other_ggufs.py
"""

import gzip
import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import command_line
import gguf
import numpy as np
import pytest
from conftest import ROOT
from other_ggufs import file_of_kind, finish, importance_matrix, split

from edge.conversion.inspect import Inspection, inspect
from edge.convert import convert
from edge.errors import ModelFileError
from edge.formats.gguf import model_sha256, read_metadata, read_model_file, read_tensors, sha256
from edge.formats.models import read_usable
from edge.llama.memory import read_shape
from edge.replay.provenance import gguf_provenance


def edge(*words: object) -> subprocess.CompletedProcess[str]:
    return command_line.run(*words, program="python -m edge")


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    assert str(caught.value).startswith(f"{path.parent}/") and "\n" not in str(caught.value)
    return str(caught.value)


# --- other kinds ---


def lora(path: Path) -> Path:
    return file_of_kind(path, "llama", "adapter", adapter__type="lora")


def old_projector(path: Path) -> Path:
    return file_of_kind(path, "clip", clip__projector_type="mlp")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "lora": (lora, "is an adapter, not a model; give its base with --model, and it with --lora"),
    "old lora": (
        lambda path: file_of_kind(path, "llama", adapter__type="lora"),
        "is an adapter, not a model; give its base with --model",
    ),
    "mmproj": (
        lambda path: file_of_kind(path, "clip", "mmproj", clip__vision__block_count=2),
        "is a projector (mmproj), which turns images or sound into input of a model; edge runs text only",
    ),
    "old mmproj": (old_projector, "is a projector (mmproj)"),
    "imatrix": (
        importance_matrix,
        "is an importance matrix, not a model; use it with `edge convert SOURCE --imatrix FILE`",
    ),
    "control vector": (
        lambda path: file_of_kind(path, "controlvector", controlvector__model_hint="llama"),
        "is a control vector, not a model",
    ),
    "unknown": (lambda path: file_of_kind(path, "llama", "wonder"), "is a GGUF of the type 'wonder'"),
    "part": (
        lambda path: file_of_kind(path, "", split__no=1, split__count=3),
        "is part 2 of 3 of a split model; give the first part",
    ),
    "dat": (
        lambda path: path.write_bytes(struct.pack("<II19s", 1, 19, b"blk.0.attn_q.weight") + bytes(64)),
        "is an importance matrix in the older .dat format",
    ),
    "ggla": (lambda path: path.write_bytes(b"algg" + bytes(64)), "is a LoRA adapter in a format from before"),
    "ggjt": (lambda path: path.write_bytes(b"tjgg" + bytes(64)), "is a model in a format from before GGUF"),
    "safetensors": (
        lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}" + bytes(8)),
        "is not a GGUF file",
    ),
    "lfs": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is not a GGUF file but a Git LFS pointer to it; fetch the file with `git lfs pull`",
    ),
    "packed": (
        lambda path: path.write_bytes(gzip.compress(b"GGUF" + bytes(64))),
        "is a compressed file (gzip), not a GGUF; unpack it",
    ),
    "page": (
        lambda path: path.write_text("<!DOCTYPE html><html>Log in</html>"),
        "is not a GGUF file but the answer of a web server",
    ),
    "answer": (
        lambda path: path.write_text('{"error":"Repository not found"}'),
        "is not a GGUF file but JSON; give a GGUF; if the file was downloaded, fetch it again",
    ),
    "rows": (
        lambda path: path.write_text('{"task_id": "a", "step_idx": 0}\n'),
        "is not a GGUF file but JSON; give a GGUF",
    ),
    "draft": (
        lambda path: file_of_kind(path, "eagle3"),
        "has no vocabulary (architecture 'eagle3'): it is a draft for another model, or no language model",
    ),
    "a checkpoint": (
        lambda path: path.write_bytes(struct.pack("<Q", 64) + b'{"__metadata__":{}}'.ljust(64)),
        "is a safetensors file, not a GGUF; convert its folder with `edge convert ",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_is_named_with_what_to_do(kind: str, tmp_path: Path) -> None:
    make, said = KINDS[kind]
    make(tmp_path / "file.gguf")
    assert said in refused(tmp_path / "file.gguf")
    with pytest.raises(ModelFileError):
        read_usable(tmp_path / "file.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mmproj", "imatrix", "part"])
def test_the_commands_say_it(kind: str, tmp_path: Path) -> None:
    make, said = KINDS[kind]
    path = tmp_path / "file.gguf"
    make(path)
    rows = ROOT / "edge" / "examples" / "replay-row.jsonl"
    for words in (
        ("inspect", path, "--verify"),
        ("run", "list the files", "-m", path),
        ("eval", "-m", path, "--replay", rows, "--out", tmp_path / "result.json"),
    ):
        done = edge(*words)
        assert done.returncode == 1, words
        assert f"{path}: {said}" in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


# --- split models ---


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(20,), (0, 30, 1)], ids=["two", "first-without-tensors"])
def test_a_split_model_is_read_whole(
    shares: tuple[int, ...], random_small_moe_folder: Path, tmp_path: Path
) -> None:
    """What a file says of itself, its data, its memory, and the comparison with its source."""
    whole = convert(random_small_moe_folder, quant="Q4_K_M", out=tmp_path / "whole.gguf", threads=1).path
    first, *others = split(whole, tmp_path / "part.gguf", shares)
    one, all_parts = read_model_file(whole), read_model_file(first)
    assert all_parts.parts == len(shares) + 1
    assert (all_parts.n_params, all_parts.file_type) == (one.n_params, one.file_type)
    assert all_parts.bits_per_weight == one.bits_per_weight
    assert all_parts.n_bytes == sum(path.stat().st_size for path in (first, *others))
    assert [(t.name, t.shape, t.type) for t in read_tensors(first)] == [
        (t.name, t.shape, t.type) for t in read_tensors(whole)
    ]
    found, reference = inspect(first, verify=True, source=random_small_moe_folder), inspect(whole)
    assert isinstance(found, Inspection) and isinstance(reference, Inspection)
    assert found.problems == () and found.ok
    assert found.comparison is not None and found.comparison.equal == len(reference.tensors)
    assert found.types == reference.types
    data = sum(tensor.n_bytes for tensor in found.tensors)
    assert 0 <= all_parts.n_bytes - data - found.header_bytes <= found.padding_bytes
    assert f"in {len(shares) + 1} parts" in found.to_text()
    assert json.loads(found.to_json())["model"]["parts"] == len(shares) + 1
    shape, other = read_shape(first), read_shape(whole)
    assert (shape.layer_weights, shape.output_weights) == (other.layer_weights, other.output_weights)
    assert gguf_provenance(first)["tensor_types"] == gguf_provenance(whole)["tensor_types"]
    # Damage in the last part is found, and named.
    tensor = read_tensors(first)[-1]
    assert tensor.part == len(shares) + 1
    before = model_sha256(first)
    with others[-1].open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff" * tensor.n_bytes)
    damaged = inspect(first, verify=True)
    assert any(p.startswith(f"{others[-1].name}: {tensor.name}: row 0 ") for p in damaged.problems)
    assert model_sha256(first) != before and sha256(first) == sha256(first)


@pytest.mark.slow
def test_a_split_model_answers_as_the_whole(tiny_q4: Path, tmp_path: Path) -> None:
    first, *_ = split(tiny_q4, tmp_path / "part.gguf", (9, 9))
    words = ("run", "Remove the file old.log.", "--quiet", "--max-tokens", "12", "-m")
    ours, theirs = edge(*words, first), edge(*words, tiny_q4)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == theirs.stdout


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three parts of a small model."""
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "a"])
    for name in "abc":
        writer.add_tensor(f"{name}.weight", np.zeros((2, 32), np.float32))
    finish(writer)
    return split(tmp_path / "whole.gguf", tmp_path / "m.gguf", (1, 1))


def test_parts_that_do_not_belong_together(parts: list[Path]) -> None:
    first, second, third = parts
    assert read_model_file(first).n_params == 3 * 64
    for part, number in ((second, 2), (third, 3)):
        assert f"is part {number} of 3 of a split model; give {first.name}" in refused(part)
    assert read_metadata(second)["split.no"] == 1
    data = second.read_bytes()
    shutil.copy(third, second)
    assert f"{second}: is not part 2 of 3 of a model" in refused(first)
    second.write_bytes(data[:-8])
    assert f"{second}: truncated" in refused(first)
    second.unlink()
    assert f"{first}: is part 1 of 3, and {second.name} is missing beside it" in refused(first)
    second.write_bytes(data)
    renamed = first.rename(first.with_name("renamed.gguf"))
    assert "its name must end in -00001-of-00003.gguf" in refused(renamed)


def test_tensors_twice_or_too_few(parts: list[Path]) -> None:
    first, second, _ = parts
    data = second.read_bytes()
    second.write_bytes(data.replace(b"b.weight", b"a.weight"))
    assert f"{second}: holds a.weight, as a part before it does" in refused(first)
    second.write_bytes(data)
    head = first.read_bytes()
    key = b"split.tensors.count" + struct.pack("<I", 5)
    at = head.index(key) + len(key)
    first.write_bytes(head[:at] + struct.pack("<i", 4) + head[at + 4 :])
    assert "its 3 parts hold 3 tensors, not 4" in refused(first)
