"""Importance matrix files: edge and others read back what edge writes; a damaged file gives one error line.

pytest tests/formats/test_imatrix.py
"""

import hashlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge.errors import ModelFileError
from edge.formats.imatrix import Imatrix, Sums, read_imatrix, replacing, write_imatrix


def sums(rows: list[list[float]], counts: list[int]) -> Sums:
    return Sums(np.array(rows, np.float32), np.array(counts))


SMALL = Imatrix(
    {
        "blk.1.ffn_down_exps.weight": sums([[3.0, 6.0], [0.0, 0.0], [1.0, 0.5]], [3, 0, 7]),
        "blk.0.attn_q.weight": sums([[1.0, 4.0, 0.1]], [10]),
    },
    ("rows.jsonl", "völlig anders.txt"),
    chunk_count=2,
    chunk_size=5,
)


@st.composite
def matrices(draw: st.DrawFn) -> Imatrix:
    names = draw(
        st.lists(st.from_regex(r"blk\.[0-9]{1,2}\.[a-z_]{1,20}\.weight", fullmatch=True), unique=True)
    )
    entries = {}
    for name in [*names, "output.weight"]:
        shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 9)))
        values = st.floats(0, float(np.finfo(np.float32).max), width=32)
        entries[name] = Sums(
            draw(arrays.arrays(np.float32, shape, elements=values)),
            draw(arrays.arrays(np.int64, shape[0], elements=st.integers(0, 1 << 24))),
        )
    datasets = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
    return Imatrix(entries, tuple(datasets), draw(st.integers(0, 1 << 31)), draw(st.integers(0, 1 << 31)))


@pytest.mark.slow
@given(matrices())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_back(tmp_path: Path, imatrix: Imatrix) -> None:
    path = tmp_path / "matrix.gguf"
    write_imatrix(path, imatrix)
    back = read_imatrix(path)
    assert (back.datasets, back.chunk_count, back.chunk_size) == (
        imatrix.datasets,
        imatrix.chunk_count,
        imatrix.chunk_size,
    )
    assert back.entries.keys() == imatrix.entries.keys()
    for name, entry in imatrix.entries.items():
        np.testing.assert_array_equal(back.entries[name].in_sum2, entry.in_sum2)
        np.testing.assert_array_equal(back.entries[name].counts, entry.counts)
    assert os.listdir(tmp_path) == ["matrix.gguf"]


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "m.gguf", SMALL)
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == list(SMALL.datasets)
    assert reader.get_field("imatrix.chunk_count").contents() == 2
    assert reader.get_field("imatrix.chunk_size").contents() == 5
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [
        f"{name}.{kind}" for name in sorted(SMALL.entries) for kind in ("in_sum2", "counts")
    ]
    experts = tensors["blk.1.ffn_down_exps.weight.in_sum2"]
    assert experts.shape.tolist() == [2, 3]
    assert experts.data.tolist() == [[3.0, 6.0], [0.0, 0.0], [1.0, 0.5]]
    assert tensors["blk.1.ffn_down_exps.weight.counts"].data.reshape(-1).tolist() == [3.0, 0.0, 7.0]


def test_llama_imatrix_writes_the_same_bytes(tmp_path: Path) -> None:
    """The checksum is that of llama-imatrix (llama-cpp-python 0.3.36) with `--in-file SMALL.gguf -c 5 -b 5`."""
    write_imatrix(tmp_path / "m.gguf", SMALL)
    wanted = "268a5cae89f735c341c1acf1ffee93da04e186c931c35a35a23148ecfda3ac94"
    assert hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest() == wanted


def test_weights_are_means_and_one_where_nothing_was_counted() -> None:
    weights = SMALL.weights()
    assert weights["blk.1.ffn_down_exps.weight"].dtype == np.float32
    third, seventh = np.float32(6.0) / np.float32(3), np.float32(0.5) / np.float32(7)
    wanted = [1.0, third, 1.0, 1.0, np.float32(1) / np.float32(7), seventh]
    assert weights["blk.1.ffn_down_exps.weight"].tolist() == [float(value) for value in wanted]
    assert weights["blk.0.attn_q.weight"].tolist() == [
        float(np.float32(value) / np.float32(10)) for value in (1.0, 4.0, 0.1)
    ]


def test_metadata_is_that_of_llama_quantize() -> None:
    assert SMALL.metadata("m.gguf") == [
        ("quantize.imatrix.file", "m.gguf"),
        ("quantize.imatrix.dataset", "rows.jsonl"),
        ("quantize.imatrix.entries_count", 2),
        ("quantize.imatrix.chunks_count", 2),
    ]
    bare = Imatrix(SMALL.entries, (), 0, 512)
    assert [name for name, _ in bare.metadata("x")] == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]
    assert bare.metadata("é" * 100)[0][1] == "é" * 63  # 127 bytes, no half character


def test_a_file_of_another_writer(tmp_path: Path) -> None:
    """Other tensors, metadata and order, and a count of 2.5: edge reads it as llama-quantize does."""
    writer = GGUFWriter(tmp_path / "other.gguf", "none")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_tensor("blk.0.x.weight.counts", np.array([2.5], np.float32))
    writer.add_tensor("unknown", np.zeros(3, np.float32))
    writer.add_tensor("blk.0.x.weight.in_sum2", np.array([6.0, 3.0], np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    found = read_imatrix(tmp_path / "other.gguf")
    assert list(found.entries) == ["blk.0.x.weight"]
    assert found.entries["blk.0.x.weight"].counts.tolist() == [3]  # std::lround
    assert found.weights()["blk.0.x.weight"].tolist() == [2.0, 1.0]


def other(path: Path, **changes: object) -> None:
    """SMALL's first tensor in a file with something missing or wrong."""
    values: dict[str, object] = {
        "type": "imatrix",
        "count": 1,
        "size": 512,
        "datasets": ["a"],
        "in_sum2": np.ones((1, 4), np.float32),
        "counts": np.ones((1, 1), np.float32),
        **changes,
    }
    writer = GGUFWriter(path, "none")
    writer.add_type(str(values["type"]))
    if values["count"] is not None:
        writer.add_uint32("imatrix.chunk_count", values["count"])
    if isinstance(values["size"], str):
        writer.add_string("imatrix.chunk_size", values["size"])
    else:
        writer.add_uint32("imatrix.chunk_size", values["size"])
    if values["datasets"] is not None:
        writer.add_array("imatrix.datasets", values["datasets"])
    for kind in ("in_sum2", "counts"):
        if values[kind] is not None:
            writer.add_tensor(f"blk.0.x.weight.{kind}", values[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


BAD: dict[str, tuple[dict[str, object], str]] = {
    "a model": ({"type": "model"}, "not an importance matrix"),
    "no sums": ({"in_sum2": None}, "not an importance matrix"),
    "no counts": ({"counts": None}, "sums only"),
    "no datasets": ({"datasets": None}, "imatrix.datasets is missing"),
    "no chunk count": ({"count": None}, "imatrix.chunk_count is missing"),
    "a size in words": ({"size": "many"}, "chunk numbers"),
    "float16": ({"in_sum2": np.ones((1, 4), np.float16)}, "not F32"),
    "counts that do not divide": ({"counts": np.ones((3, 1), np.float32)}, "4 sums for 3 counts"),
    "NaN": ({"in_sum2": np.full((1, 4), np.nan, np.float32)}, "not finite"),
    "infinity": ({"counts": np.full((1, 1), np.inf, np.float32)}, "not finite"),
    "a negative count": ({"counts": np.full((1, 1), -1, np.float32)}, "negative count"),
    "a negative sum": ({"in_sum2": np.full((1, 4), -1, np.float32)}, "negative sum"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    changes, said = BAD[case]
    path = tmp_path / "bad.gguf"
    other(path, **changes)
    with pytest.raises(ModelFileError) as error:
        read_imatrix(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_long_arrays_cost_no_time(tmp_path: Path) -> None:
    """The gguf package makes an object of each item, and a loop without end of a count that no file can hold."""
    path = tmp_path / "long.gguf"
    write_imatrix(path, SMALL)
    data = path.read_bytes()
    items = (1 << 24) + 4  # the entry is then a multiple of the alignment
    entry = struct.pack("<Q4sIIQ", 4, b"long", 9, 0, items) + bytes(items)
    path.write_bytes(data[:16] + struct.pack("<Q", 5) + entry + data[24:])
    begin = time.process_time()
    assert read_imatrix(path).datasets == SMALL.datasets
    assert time.process_time() - begin < 1


def make_dat(path: Path) -> None:
    path.write_bytes(b"\1\0\0\0\x13\0\0\0blk.0.attn_q.weight" + bytes(60))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("blk.0.attn_q.weight 1 2 3"), "is not a GGUF file"),
        (make_dat, "older .dat format"),
    ],
)
def test_no_matrix_at_all(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    make(path)
    with pytest.raises(ModelFileError, match=said):
        read_imatrix(path)


def test_a_model_is_no_matrix(tiny_q4: Path) -> None:
    with pytest.raises(ModelFileError, match="not an importance matrix"):
        read_imatrix(tiny_q4)


def test_any_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, SMALL)
    whole = path.read_bytes()
    needed = len(whole) - (32 - 12)  # the last tensor holds 12 bytes and is padded to 32
    for length in range(0, needed, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_imatrix(path)


@pytest.mark.parametrize("entry", [("n" * 60, sums([[1.0]], [1])), ("blk.0.x.weight", sums([[np.inf]], [1]))])
def test_what_cannot_be_read_back_is_not_written(entry: tuple[str, Sums], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_imatrix(tmp_path / "m.gguf", Imatrix(dict([entry]), (), 1, 1))
    assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_imatrix(tmp_path / "file" / "m.gguf", SMALL)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, SMALL)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.gguf"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "m[1].gguf"
    code = (
        "import os, sys; from edge.formats.imatrix import replacing\n"
        "with replacing(sys.argv[1]) as file: file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(os.listdir(tmp_path)) == 1 and not path.exists()
    write_imatrix(path, SMALL)
    assert os.listdir(tmp_path) == ["m[1].gguf"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(tmp_path / "target.gguf")
    write_imatrix(tmp_path / "link.gguf", SMALL)
    assert (tmp_path / "link.gguf").is_symlink()
    assert read_imatrix(tmp_path / "target.gguf").chunk_size == 5
