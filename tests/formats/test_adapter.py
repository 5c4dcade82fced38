"""Adapter files: what edge accepts, llama.cpp runs; what is damaged or does not fit gets one line that says why.

    pytest tests/formats/test_adapter.py

llama.cpp stops the process at some files. So whatever the check accepts is loaded in this process and computes a token.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.convert import convert
from edge.errors import EdgeWarning, ModelFileError
from edge.formats.adapter import check_base, is_adapter, read_adapter
from edge.formats.gguf import read_model_file, read_tensors
from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Adapter, Loading

RANK = 4
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def base(random_small_moe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with every kind of weight: attention, convolutions, dense layers, experts."""
    out = tmp_path_factory.mktemp("base") / "base.gguf"
    return convert(random_small_moe_folder, quant="F32", out=out, threads=1).path


def factors(base: Path, *names: str, rank: int = RANK) -> Tensors:
    """Factors in numpy's order for weights of the base."""
    random = np.random.default_rng(1)
    made: Tensors = {}
    for tensor in read_tensors(base):
        if tensor.name in names:
            columns, rows, *more = tensor.shape
            made[f"{tensor.name}.lora_a"] = random.normal(0, 0.1, (*more, rank, columns)).astype(np.float32)
            made[f"{tensor.name}.lora_b"] = random.normal(0, 0.1, (*more, rows, rank)).astype(np.float32)
    assert len(made) == 2 * len(names)
    return made


NAMES = (
    "blk.1.attn_q.weight",
    "blk.0.ffn_down.weight",
    "blk.1.ffn_gate_exps.weight",
    "blk.0.shortconv.in_proj.weight",
)
HEAD: dict[str, Any] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": np.float32(8),
}


def write(path: Path, tensors: Tensors, architecture: str = "lfm2moe", **changes: Any) -> Path:
    """An adapter of these tensors. `changes`: metadata, with __ for a dot; None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    head = {**HEAD, **{key.replace("__", "."): value for key, value in changes.items()}}
    for key, value in head.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, np.float32):
            writer.add_float32(key, float(value))
        elif isinstance(value, float):
            writer.add_float64(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    for name, values in tensors.items():
        q8 = values.dtype == np.uint8  # the bytes of blocks
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if q8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def checked(path: Path, base: Path) -> list[str]:
    return check_base(read_adapter(path), base)


def one_token(base: Path, adapter: Path) -> np.ndarray:
    """The logits after a token, computed by llama.cpp with the adapter."""

    def script() -> Writer[np.ndarray]:
        return (yield []).copy()

    engine = Engine(base, Loading(gpu_layers=0, threads=1, trusted=True, adapters=(Adapter(adapter),)))
    try:
        engine.reserve(64, 2)
        [(_, found)] = engine.run([Job([5, 6, 7], script(), 1)])
        return found
    finally:
        engine.close()


def test_an_adapter(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", factors(base, *NAMES), general__name="Mine")
    file = read_adapter(path)
    assert (file.name, file.architecture, file.alpha, file.ranks) == ("Mine", "lfm2moe", 8.0, (RANK,))
    assert sorted(pair.name for pair in file.pairs) == sorted(NAMES)
    assert file.base == () and file.ignored == ()
    assert is_adapter(path) and not is_adapter(base)
    assert checked(path, base) == []
    assert np.isfinite(one_token(base, path)).all()
    with pytest.raises(ModelFileError, match="is an adapter, not a model; give its base with --model"):
        read_model_file(path)


def without(suffix: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors.pop(f"{NAMES[0]}{suffix}")

    return change


def reshaped(name: str, *shape: int, dtype: Any = np.float32) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{NAMES[0]}{name}": np.zeros(shape, dtype)})


EXPERTS = "blk.1.ffn_gate_exps.weight"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without(".lora_a"), r"blk.1.attn_q.weight has no \.lora_a"),
        (without(".lora_b"), r"blk.1.attn_q.weight has no \.lora_b"),
        (lambda tensors: tensors.clear(), "it has no tensors"),
        (reshaped(".lora_a", 5, 256), "lora_a has rank 5, .*lora_b has rank 4"),
        (reshaped(".lora_a", 4, 255), r"attn_q.weight has the shape \[255, 256\] in it and \[256, 256\] in"),
        (reshaped(".lora_b", 255, 4), r"attn_q.weight has the shape \[256, 255\] in it and \[256, 256\] in"),
        (reshaped(".lora_a", 256), r"has the shape \[256\], not that of a matrix"),
        (reshaped(".lora_a", 1, 1, 4, 256), r"has the shape \[256, 4, 1, 1\], not that of a matrix"),
        (reshaped(".lora_a", 4, 0), r"has the shape \[0, 4\], not that of a matrix"),
        (reshaped(".lora_a", 2, 4, 256), "have different numbers of matrices"),
        (
            reshaped(".lora_a", 4, 256, dtype=np.int32),
            "has the type I32; edge runs adapters in F32, F16, BF16, Q8_0",
        ),
        (reshaped(".lora_a", 4, 256, dtype=np.float64), "has the type F64"),
        (
            lambda tensors: tensors.update(
                {f"{EXPERTS}.lora_{x}": tensors[f"{EXPERTS}.lora_{x}"][:3] for x in "ab"}
            ),
            r"ffn_gate_exps.weight has the shape \[256, 256, 3\] in it and \[256, 256, 4\] in",
        ),
        (
            lambda tensors: tensors.update(other=np.zeros((4, 4), np.float32)),
            "'other' is neither a .lora_a nor",
        ),
        (
            lambda tensors: tensors.update({"blk.0.nothing.weight.lora_a": np.zeros((4, 8), np.float32)}),
            r"blk.0.nothing.weight has no \.lora_b",
        ),
        (
            lambda tensors: tensors.update(
                {f"blk.9.attn_q.weight.lora_{x}": tensors[f"{NAMES[0]}.lora_{x}"] for x in "ab"}
            ),
            "changes blk.9.attn_q.weight, which .*base.gguf does not have; give its own base",
        ),
        (
            lambda tensors: tensors.update(
                {
                    "token_embd.weight.lora_a": np.zeros((1024, 4), np.float32),
                    "token_embd.weight.lora_b": np.zeros((256, 4), np.float32),
                }
            ),
            "changes the token embeddings, which .*base.gguf also uses as its output",
        ),
        (
            lambda tensors: tensors.update(
                {
                    "blk.0.shortconv.conv.weight.lora_a": np.zeros((4, 3), np.float32),
                    "blk.0.shortconv.conv.weight.lora_b": np.zeros((256, 4), np.float32),
                }
            ),
            "changes blk.0.shortconv.conv.weight, and llama.cpp does not apply adapters to it",
        ),
    ],
)
def test_tensors_that_llama_cpp_cannot_use(
    change: Callable[[Tensors], object], problem: str, base: Path, tmp_path: Path
) -> None:
    tensors = factors(base, *NAMES)
    change(tensors)
    path = write(tmp_path / "a.gguf", tensors)
    with pytest.raises(ModelFileError, match=problem) as caught:
        checked(path, base)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"general__type": "model"}, "is a model, not an adapter; give it with --model"),
        ({"general__type": "imatrix"}, "is not an adapter .general.type is 'imatrix'."),
        ({"general__type": None}, "is not an adapter .general.type is 'None'."),
        ({"general__type": 7}, "is not an adapter .general.type is '7'."),
        ({"adapter__type": None}, "adapter.type is missing"),
        ({"adapter__type": 3}, "adapter.type is not a text"),
        ({"adapter__type": "ia3"}, "is an adapter of the type 'ia3'; llama.cpp runs lora only"),
        ({"adapter__lora__alpha": 8.0}, "adapter.lora.alpha is not a finite number of 32 bits"),
        ({"adapter__lora__alpha": 8}, "adapter.lora.alpha is not a finite number of 32 bits"),
        ({"adapter__lora__alpha": "8"}, "adapter.lora.alpha is not a finite number of 32 bits"),
        ({"adapter__lora__alpha": np.float32("inf")}, "adapter.lora.alpha is not a finite number of 32 bits"),
        ({"adapter__lora__alpha": [8.0]}, "adapter.lora.alpha is not a finite number of 32 bits"),
        ({"adapter__alora__invocation_tokens": [1, 2]}, "is an activated LoRA"),
        (
            {"architecture": "llama"},
            "is an adapter for the architecture llama, and .* is lfm2moe; give its own base",
        ),
    ],
)
def test_metadata_that_llama_cpp_cannot_use(
    changes: dict[str, Any], problem: str, base: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.gguf", factors(base, *NAMES), **changes)
    with pytest.raises(ModelFileError, match=problem):
        checked(path, base)


def test_other_files(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a model, not an adapter"):
        read_adapter(base)
    with pytest.raises(
        ModelFileError, match=r"is a folder; make an adapter file of it with `edge convert .* --base"
    ):
        read_adapter(tmp_path)
    with pytest.raises(ModelFileError, match="no such file"):
        read_adapter(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        read_adapter(tmp_path / "text.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float, base: Path, tmp_path: Path) -> None:
    tensors = factors(base, *NAMES)
    tensors[f"{NAMES[1]}.lora_b"][7, 1] = value
    path = write(tmp_path / "a.gguf", tensors)
    with pytest.raises(ModelFileError, match=r"blk.0.ffn_down.weight.lora_b has NaN or Inf"):
        one_token(base, path)


def test_no_alpha_means_the_scale_alone(base: Path, tmp_path: Path) -> None:
    """llama.cpp takes alpha / rank as the factor, and 1 without an alpha."""
    tensors = factors(base, *NAMES)
    without_alpha = write(tmp_path / "a.gguf", tensors, adapter__lora__alpha=None)
    same = write(tmp_path / "b.gguf", tensors, adapter__lora__alpha=np.float32(RANK))
    np.testing.assert_array_equal(one_token(base, without_alpha), one_token(base, same))


def test_what_a_user_must_know(base: Path, tmp_path: Path) -> None:
    """Another base than the recorded one, and norms that llama.cpp does not use, are notes."""
    tensors = factors(base, *NAMES)
    own = write(tmp_path / "own.gguf", tensors, general__base_model__0__name="LFM2moe small")
    assert checked(own, base) == []  # the same letters and digits
    hub = write(
        tmp_path / "hub.gguf",
        tensors,
        general__base_model__0__repo_url="https://huggingface.co/x/lfm2moe-small/",
    )
    assert checked(hub, base) == []
    renamed = tmp_path / "LFM2-8B-A1B.Q4_1.gguf"
    renamed.symlink_to(base)
    by_file = write(tmp_path / "by_file.gguf", tensors, general__base_model__0__name="LFM2-8B-A1B")
    assert checked(by_file, renamed) == []  # the name of the file says it
    other = write(tmp_path / "other.gguf", tensors, general__base_model__0__name="LFM2-8B-A1B")
    [line] = checked(other, base)
    assert line == (
        f"{other}: was trained on LFM2-8B-A1B, and {base} is lfm2moe-small; with another base the answers can be "
        "worthless"
    )
    with pytest.warns(EdgeWarning, match="was trained on LFM2-8B-A1B"):
        one_token(base, other)
    norm = write(tmp_path / "norm.gguf", {**tensors, "blk.0.attn_norm.weight": np.ones(256, np.float32)})
    [line] = checked(norm, base)
    assert "llama.cpp does not use 1 norms in it (blk.0.attn_norm.weight)" in line


def test_every_truncation_is_found(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "a.gguf", factors(base, *NAMES)).read_bytes()
    cut = tmp_path / "cut.gguf"
    for end in [*range(0, 600, 7), *range(600, len(data), len(data) // 40)]:
        cut.write_bytes(data[:end])
        with pytest.raises(ModelFileError, match=r"^\S+cut.gguf: "):
            checked(cut, base)


# --- random files: what the check accepts, llama.cpp runs ---

Shape = Sequence[int]
TYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "I32": np.int32}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[dict[str, tuple[Shape, str]], dict[str, Any]]:
    """Tensors as name -> (shape, type), most of them right, and metadata."""
    wrong = draw(st.integers(0, 3)) == 0
    tensors: dict[str, tuple[Shape, str]] = {}
    for name in draw(st.lists(st.sampled_from(WEIGHTS), min_size=1, max_size=4, unique_by=lambda w: w[0])):
        weight, shape = name
        rank = draw(st.sampled_from((1, 2, 4, 32)))
        columns, rows, *more = shape if len(shape) > 1 else (*shape, 1)
        a, b = [*more, rank, columns], [*more, rows, rank]
        if weight == "token_embd.weight" and draw(st.booleans()):
            a, b = [rows, rank], [columns, rank]
        if wrong:
            half = draw(st.sampled_from((a, b)))
            how = draw(st.sampled_from(("size", "more", "less", "none")))
            if how == "size":
                i = draw(st.integers(0, len(half) - 1))
                half[i] = max(0, half[i] + draw(st.integers(-2, 2)))
            elif how == "more":
                half.insert(0, draw(st.integers(1, 3)))
            elif how == "less":
                half.pop(0)
        kinds = ("F32", "F16", "Q8_0", "I32") if wrong else ("F32", "F16", "Q8_0")
        for suffix, values in ((".lora_a", a), (".lora_b", b)):
            if not (wrong and draw(st.integers(0, 9)) == 0):
                tensors[weight + suffix] = tuple(values), draw(st.sampled_from(kinds))
    head: dict[str, Any] = {}
    if wrong and draw(st.booleans()):
        key = draw(
            st.sampled_from(("general__type", "adapter__type", "adapter__lora__alpha", "architecture"))
        )
        head[key] = draw(
            st.sampled_from(("adapter", "lora", "lfm2moe", "x", "", 3, 1.5, np.float32(-2), None, [1]))
        )
        if key == "architecture" and not isinstance(head[key], str):
            head.pop(key)
    return tensors, head


# Every weight of the base, and one that it does not have; set by the fixture.
WEIGHTS: list[tuple[str, Shape]] = [("blk.7.attn_q.weight", (256, 256))]


@pytest.fixture(scope="module")
def known(base: Path) -> Path:
    WEIGHTS[1:] = [(tensor.name, tensor.shape) for tensor in read_tensors(base)]
    return base


@pytest.mark.slow
def test_what_is_accepted_runs(known: Path, tmp_path: Path) -> None:
    ran = refused = 0

    @given(adapters())
    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    def check(drawn: tuple[dict[str, tuple[Shape, str]], dict[str, Any]]) -> None:
        nonlocal ran, refused
        shapes, head = drawn
        random = np.random.default_rng(0)
        path = tmp_path / "random.gguf"
        tensors: Tensors = {}
        for name, (shape, kind) in shapes.items():
            values = random.normal(0, 0.1, shape).astype(np.float32)
            if kind == "Q8_0" and shape and shape[-1] and shape[-1] % 32 == 0:
                tensors[name] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            else:
                tensors[name] = values.astype(TYPES.get(kind, np.float16))
        write(path, tensors, **head)
        try:
            notes = checked(path, known)
        except ModelFileError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            return
        ran += 1
        assert notes == []
        assert np.isfinite(one_token(known, path)).all()

    check()
    assert ran > 10 and refused > 10  # both happen


@pytest.mark.slow
def test_damaged_bytes(known: Path, tmp_path: Path) -> None:
    """Flipped bytes anywhere in the header or the data: an error of one line, or a file that runs."""
    whole = write(tmp_path / "whole.gguf", factors(known, *NAMES)).read_bytes()
    path = tmp_path / "damaged.gguf"

    @given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=3))
    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    def check(changes: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for at, value in changes:
            data[at] = value
        path.write_bytes(data)
        try:
            one_token(known, path)
        except ModelFileError as error:
            assert str(error).startswith((f"{path}: ", f"{known}: ")) and "\n" not in str(error)

    check()
