"""Which GGUFs of a folder of models are usable: the store, its older place and ./models.

.venv/bin/pytest tests/formats/test_usable.py
"""

import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.errors import ModelFileError
from edge.formats.gguf_names import parts
from edge.formats.models import found_models, local_models, read_usable, stored_models
from edge.system.store import named_file, store_files, store_folder


def small(
    path: Path, architecture: str = "llama", kind: str = "model", part: tuple[int, int] = (0, 1)
) -> Path:
    """A GGUF with a vocabulary and one tensor."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    if part[1] > 1:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_tensor(f"part{part[0]}.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encoder(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["[CLS]", "a"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def importance_matrix(path: Path) -> Path:
    """As llama-imatrix writes it."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.ones((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary_only(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def cut(path: Path) -> Path:
    data = small(path).read_bytes()
    path.write_bytes(data[:-64])
    return path


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "is empty"),
    "cut": (cut, "truncated"),
    "text": (lambda path: path.write_text("not a model"), "is not a GGUF file"),
    "imatrix": (importance_matrix, "is an importance matrix, not a model"),
    "lora": (lambda path: small(path, kind="adapter"), "is an adapter, not a model"),
    "mmproj": (lambda path: small(path, "clip", "mmproj"), "is a projector (mmproj)"),
    "vocab": (vocabulary_only, "has no tensors"),
    "encoder": (encoder, "is an encoder"),
    "gone": (lambda path: path.symlink_to("nowhere"), "a broken link"),
    "pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "m-00002-of-00002": (lambda path: small(path, part=(1, 2)), "is part 2 of 2"),
    "n-00001-of-00002": (lambda path: small(path, part=(0, 2)), "n-00002-of-00002.gguf is missing"),
    "renamed": (lambda path: small(path, part=(0, 2)), "must end in -00001-of-00002.gguf"),
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.mark.skipif(os.name == "nt", reason="links and FIFOs")
def test_what_is_unusable_is_never_chosen(store: Path) -> None:
    """Each kind of file that is not a language model, all newer than the one model."""
    model = small(store / "model.gguf")
    os.utime(model, (1, 1))
    for name, (make, _) in UNUSABLE.items():
        make(store / f"{name}.gguf")
    (store / "folder.gguf").mkdir()
    assert [found.path for found in stored_models()] == [model]
    problems = {found.path.stem: found.problem for found in found_models(store_files())}
    assert problems.keys() == {"model", *UNUSABLE}
    for name, (_, words) in UNUSABLE.items():
        assert words in problems[name], name
        assert str(store / f"{name}.gguf") not in problems[name]


def test_a_split_model_is_one_model(store: Path) -> None:
    first, second = (small(store / f"big-0000{n + 1}-of-00002.gguf", part=(n, 2)) for n in (0, 1))
    (found,) = found_models(store_files())
    assert found.usable and found.path == first
    assert found.n_bytes == first.stat().st_size + second.stat().st_size
    assert parts(first, 2) == [first, second]
    with pytest.raises(ModelFileError, match="is part 2 of 2"):
        read_usable(second)


def test_order_and_names(store: Path, tmp_path: Path) -> None:
    """The newest first, the older place included; ./models is apart; a link has its own time."""
    older = tmp_path / "cache" / "models"
    older.mkdir(parents=True)
    target = small(tmp_path / "blob")
    for number, path in enumerate((older / "old.gguf", store / "New.gguf", store / "mid.gguf")):
        os.utime(small(path), (number * 10 + 10, number * 10 + 10))
    os.utime(target, (1, 1))
    (store / "link.gguf").symlink_to(target)
    assert [found.path.name for found in stored_models()] == ["link.gguf", "mid.gguf", "New.gguf", "old.gguf"]
    assert local_models() == []
    assert not Path("models").exists()
    Path("models").mkdir()
    here = small(Path("models") / "mid.gguf")
    assert [found.path for found in local_models()] == [here]
    assert named_file("mid") == named_file("mid.gguf") == here
    assert named_file("new") == store / "New.gguf"
    assert named_file("old") == older / "old.gguf"
    assert named_file("none") is None and named_file("") is None


def test_the_store_is_where_the_platform_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_MODELS", "~/own")
    assert store_folder() == Path.home() / "own"
    monkeypatch.delenv("EDGE_MODELS")
    monkeypatch.setattr("sys.platform", "linux")
    assert store_folder() == Path.home() / ".local/share/edge/models"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store_folder() == tmp_path / "edge" / "models"
    monkeypatch.setattr("sys.platform", "darwin")
    assert store_folder() == Path.home() / "Library/Application Support/edge/models"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert store_folder() == tmp_path / "edge" / "models"
