"""edge imatrix: compared with transformers in float32, and after every kind of interruption.

pytest tests/measure/test_calibrate.py
"""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.convert import convert
from edge.errors import ContextError, EdgeError, ModelFileError, ReplayError, ResultError
from edge.formats.checksum import KEY
from edge.formats.gguf import read_tensors
from edge.formats.imatrix import Imatrix, read_imatrix
from edge.llama.loading import Loading
from edge.measure.calibrate import calibrate
from edge.measure.experts import RARE
from edge.system.paths import embedded_rows

pytestmark = pytest.mark.slow

ROWS = 24
ONE = Loading(threads=1)
TEXT = Path(__file__).resolve().parents[1] / "helpers" / "plain_text.txt"
CHUNK = 96


@pytest.fixture(scope="module")
def tiny_f32(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_folder, quant="F32", out=tmp_path_factory.mktemp("f32"), threads=1).path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first embedded rows: steps that extend each other, thoughts, system messages."""
    lines = embedded_rows().read_text("utf-8").splitlines(keepends=True)[:ROWS]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- what is counted, from transformers ---


def row_tokens(folder: Path, path: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        + row["ref_raw"]
        for row in fields(path)
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def text_tokens(folder: Path, path: Path, chunk: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    content = path.read_bytes().removesuffix(b"\n").decode()
    assert "<|" not in content  # llama-imatrix does not parse special tokens in a text
    bos = json.loads((folder / "config.json").read_text())["bos_token_id"]
    ids = [bos, *tokenizer.encode(content, add_special_tokens=False).ids]
    whole = len(ids) // chunk
    return [[bos, *ids[i * chunk + 1 : (i + 1) * chunk]] for i in range(whole)]


class Expected:
    """Sums and counts from transformers' modules, by the GGUF's tensor names."""

    NAMES = {  # noqa: RUF012
        "self_attn.q_proj": ["attn_q"],
        "self_attn.k_proj": ["attn_k"],
        "self_attn.v_proj": ["attn_v"],
        "self_attn.out_proj": ["attn_output"],
        "conv.in_proj": ["shortconv.in_proj"],
        "conv.out_proj": ["shortconv.out_proj"],
        "feed_forward.w1": ["ffn_gate"],
        "feed_forward.w3": ["ffn_up"],
        "feed_forward.w2": ["ffn_down"],
        "feed_forward.gate": ["ffn_gate_inp"],
    }

    def __init__(self, folder: Path, sequences: Sequence[list[int]], *, once: bool) -> None:
        """`once`: a token does not count again if an earlier sequence begins with the same tokens up to it."""
        import torch
        from transformers import AutoModelForCausalLM

        self.sums: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for name, module in model.named_modules():
            if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
                if match[2] in self.NAMES:
                    module.register_forward_pre_hook(self.dense(f"blk.{match[1]}.", self.NAMES[match[2]]))
                elif match[2] == "feed_forward.experts":
                    module.register_forward_pre_hook(self.routed(f"blk.{match[1]}."))
        seen = set[tuple[int, ...]]()
        self.tokens = 0
        with torch.no_grad():
            for ids in sequences:
                ends = [tuple(ids[: i + 1]) for i in range(len(ids))]
                self.new = torch.tensor([not once or end not in seen for end in ends])
                self.tokens += int(self.new.sum())
                seen.update(ends)
                model.model(torch.tensor([ids]))

    def add(self, name: str, values: Any, count: Any) -> None:
        self.sums[name] = self.sums.get(name, 0) + values
        self.counts[name] = self.counts.get(name, 0) + count

    def dense(self, layer: str, names: list[str]) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])[self.new].double()
            for name in names:
                self.add(f"{layer}{name}.weight", (rows**2).sum(0)[None], np.array([len(rows)]))

        return hook

    def routed(self, layer: str) -> Any:
        import torch

        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            states, chosen = inputs[0][self.new], inputs[1][self.new]
            for expert in range(module.num_experts):
                rows = states[(chosen == expert).any(1)]
                gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                inner = torch.nn.functional.silu(gate) * up
                which = np.arange(module.num_experts) == expert
                for name, values in (("gate", rows), ("up", rows), ("down", inner)):
                    total = torch.zeros(module.num_experts, values.shape[1], dtype=torch.float64)
                    total[expert] = (values.double() ** 2).sum(0)
                    self.add(f"{layer}ffn_{name}_exps.weight", total, which * len(rows))

        return hook

    def check(self, found: Imatrix, *, column: float, rerouted: int) -> None:
        """Compare sums and counts. `column`: the largest error of a column's sum, as a share of it (or of a tenth of
        the mean if that is more). A tensor's sum may differ by a thousandth. `rerouted`: tokens of a layer that may go
        to another expert, because the scores of two experts are almost equal.
        """
        assert found.entries.keys() == self.sums.keys()
        for name, entry in found.entries.items():
            assert np.abs(entry.counts - self.counts[name]).sum() <= 2 * rerouted * (len(entry.counts) > 1), (
                name
            )
            wanted = self.sums[name].numpy()
            scale = np.maximum(wanted, wanted.mean(1, keepdims=True) / 10)
            assert (np.abs(entry.in_sum2 - wanted) <= column * scale).all(), name
            assert abs(entry.in_sum2.sum() / wanted.sum() - 1) < 1e-3, name


def test_rows_against_transformers(
    tiny_folder: Path, tiny_f32: Path, rows: Path, tmp_path: Path, one_thread: None
) -> None:
    sequences = row_tokens(tiny_folder, rows)
    expected = Expected(tiny_folder, sequences, once=True)
    told = list[tuple[int, int]]()
    done = calibrate(
        tiny_f32, tmp_path / "m.gguf", rows=rows, loading=ONE, progress=lambda *now: told.append(now)
    )
    expected.check(read_imatrix(done.path), column=0.01, rerouted=0)  # the cache holds float16
    assert done.tokens == expected.tokens < done.tokens_given == sum(map(len, sequences))
    assert (done.kind, done.sequences, done.skipped, done.tokens_before) == ("rows", ROWS, 0, 0)
    assert told[-1] == (done.tokens, done.tokens) and told == sorted(told)
    assert read_imatrix(done.path).datasets == (str(rows),)
    assert [layer.layer for layer in done.experts] == [2, 3, 4, 5]
    assert [list(layer.counts) for layer in done.experts] == [
        list(expected.counts[f"blk.{i}.ffn_up_exps.weight"]) for i in range(2, 6)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_text_against_transformers(
    tiny_folder: Path, tiny_f32: Path, tmp_path: Path, one_thread: None
) -> None:
    chunks = text_tokens(tiny_folder, TEXT, CHUNK)
    expected = Expected(tiny_folder, chunks, once=False)
    done = calibrate(tiny_f32, tmp_path / "m.gguf", text=TEXT, chunk=CHUNK, loading=ONE)
    found = read_imatrix(done.path)
    expected.check(
        found, column=0.1, rerouted=3
    )  # flash attention, as llama-imatrix has it, moves single columns
    assert (found.chunk_count, found.chunk_size) == (len(chunks), CHUNK)
    assert done.tokens == done.tokens_given == len(chunks) * CHUNK == expected.tokens
    assert f"{len(chunks)} chunks of {CHUNK}" in str(done)


def test_an_own_output_matrix_is_taken_when_asked_for(random_llama_folder: Path, tmp_path: Path) -> None:
    model = convert(random_llama_folder, quant="F32", out=tmp_path / "llama.gguf", threads=1).path
    names = []
    for process_output in (False, True):
        out = tmp_path / f"{process_output}.gguf"
        calibrate(model, out, text=TEXT, chunk=64, loading=ONE, process_output=process_output)
        names.append(set(read_imatrix(out).entries))
    assert names[1] - names[0] == {"output.weight"}
    wanted = {tensor.name for tensor in read_tensors(model) if len(tensor.shape) == 2}
    assert names[1] == wanted - {"token_embd.weight"}


# --- each token once ---


def test_a_row_given_twice_counts_once(tiny_q4: Path, rows: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.jsonl"
    lines = fields(rows)
    copies = [{**row, "task_id": f"again-{row['task_id']}"} for row in lines]
    twice.write_text("".join(json.dumps(row) + "\n" for row in lines + copies), "utf-8")
    once = calibrate(tiny_q4, tmp_path / "once.gguf", rows=rows, loading=ONE)
    again = calibrate(tiny_q4, tmp_path / "twice.gguf", rows=twice, loading=ONE)
    assert again.tokens == once.tokens and again.sequences == 2 * once.sequences
    a, b = read_imatrix(once.path).entries, read_imatrix(again.path).entries
    for name, entry in a.items():
        np.testing.assert_array_equal(entry.counts, b[name].counts)
        np.testing.assert_allclose(entry.in_sum2, b[name].in_sum2, rtol=1e-5)


# --- interrupted ---


@pytest.fixture(scope="module")
def whole(tiny_q4: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The matrix of a calibration without interruption."""
    return calibrate(
        tiny_q4, tmp_path_factory.mktemp("whole") / "m.gguf", rows=rows, loading=ONE
    ).path.read_bytes()


KILLED_AT = """
import os, sys
from edge.llama.loading import Loading
from edge.measure.calibrate import calibrate
model, out, rows, at, every = sys.argv[1:]
def told(counted, total):
    if counted >= int(at):
        os.kill(os.getpid(), 9)
calibrate(model, out, rows=rows, loading=Loading(threads=1), save_every=float(every), progress=told)
"""


def test_killed_again_and_again(tiny_q4: Path, rows: Path, whole: bytes, tmp_path: Path) -> None:
    """Also in the middle of a branch: its beginning is then read again, but not counted again."""
    out = tmp_path / "m.gguf"
    for at in (300, 301, 800, 1300, 1700):
        process = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(tiny_q4), str(out), str(rows), str(at), "0"], check=False
        )
        assert process.returncode == -signal.SIGKILL
        assert not out.exists() and (tmp_path / "m.gguf.partial").exists()
    done = calibrate(tiny_q4, out, rows=rows, loading=ONE)
    assert done.tokens_before >= 1300
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_interrupted_again_and_again(tiny_q4: Path, rows: Path, whole: bytes, tmp_path: Path) -> None:
    """Ctrl-C after each sixth batch: before, at and after the end of a row."""
    out, begun = tmp_path / "m.gguf", 0
    while not out.exists():
        calls = 0

        def told(counted: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 6:
                signal.raise_signal(signal.SIGINT)

        try:
            done = calibrate(tiny_q4, out, rows=rows, loading=ONE, save_every=1e9, progress=told)
        except KeyboardInterrupt as error:
            begun += 1
            assert re.search(
                r"interrupted after [\d,]+ of [\d,]+ tokens, which are kept in .*partial", str(error)
            )
        assert begun < ROWS
    assert begun > 3 and done.tokens_before > 0
    assert out.read_bytes() == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_text_goes_on_too(tiny_q4: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"text": TEXT, "chunk": CHUNK, "loading": ONE}
    whole = calibrate(tiny_q4, tmp_path / "whole.gguf", **arguments).path.read_bytes()

    def told(counted: int, total: int) -> None:
        if counted > total / 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        calibrate(tiny_q4, tmp_path / "m.gguf", progress=told, **arguments)
    done = calibrate(tiny_q4, tmp_path / "m.gguf", **arguments)
    assert 0 < done.tokens_before < done.tokens
    assert done.path.read_bytes() == whole


@pytest.fixture
def partial(tiny_q4: Path, rows: Path, tmp_path: Path) -> Iterator[Path]:
    """The partial file of an interrupted calibration."""

    def told(counted: int, total: int) -> None:
        if counted > total / 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        calibrate(tiny_q4, tmp_path / "m.gguf", rows=rows, loading=ONE, progress=told)
    yield tmp_path / "m.gguf.partial"
    assert not (tmp_path / "m.gguf").exists()


def test_other_arguments_are_refused(
    tiny_q4: Path, tiny_bf16: Path, rows: Path, partial: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    left = partial.read_bytes()
    less = tmp_path / "less.jsonl"
    less.write_text("".join(rows.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    for model, changed, named in (
        (tiny_bf16, {"rows": rows}, "(another model file)"),
        (tiny_q4, {"rows": less}, "(other replay rows)"),
        (tiny_q4, {"rows": rows, "process_output": True}, "--process-output was off, is on"),
        (tiny_q4, {"text": TEXT}, "now with text"),
    ):
        with pytest.raises(ModelFileError, match="another calibration") as error:
            calibrate(model, out, loading=ONE, **changed)
        assert named in str(error.value) and "\n" not in str(error.value)
        assert partial.read_bytes() == left


def test_a_damaged_partial_is_refused(tiny_q4: Path, rows: Path, partial: Path, tmp_path: Path) -> None:
    whole = partial.read_bytes()
    middle = len(whole) // 2
    for data, said in (
        (whole[:-1], "is damaged"),
        (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "is damaged"),
        (b"", "is not a calibration file of edge"),
        (b"my notes\n", "is not a calibration file of edge"),
    ):
        partial.write_bytes(data)
        with pytest.raises(ModelFileError, match=said):
            calibrate(tiny_q4, tmp_path / "m.gguf", rows=rows, loading=ONE)
        assert partial.read_bytes() == data


# --- experts ---


def changed(model: Path, tensor: str, values: dict[int, float], out: Path) -> Path:
    """A copy of the model with some values of a float32 tensor replaced, and without edge's checksums."""
    out.write_bytes(model.read_bytes().replace(KEY.encode(), b"other.sums"))
    info = next(info for info in read_tensors(model) if info.name == tensor)
    assert info.type == "F32"
    with out.open("r+b") as file:
        for place, value in values.items():
            file.seek(info.offset + 4 * place)
            file.write(np.float32(value).tobytes())
    return out


def test_an_expert_never_at_work(tiny_q4: Path, rows: Path, whole: bytes, tmp_path: Path) -> None:
    """The router's bias excludes one expert: it is reported and gets weight 1, and the others keep their values."""
    model = changed(tiny_q4, "blk.2.exp_probs_b.bias", {1: -1e4}, tmp_path / "tiny.gguf")
    done = calibrate(model, tmp_path / "m.gguf", rows=rows, loading=ONE)
    assert [layer.never for layer in done.experts] == [(1,), (), (), ()]
    assert "layer" in str(done) and "1 on none" in str(done)
    assert re.search(r"^\| +2 \| +4 \| 1 ", str(done), re.MULTILINE)
    found = read_imatrix(done.path)
    for name in ("gate", "up", "down"):
        weights = found.weights()[f"blk.2.ffn_{name}_exps.weight"].reshape(4, -1)
        assert (weights[1] == 1).all() and (weights[[0, 2, 3]] != 1).any(1).all()
    entry = found.entries["blk.2.ffn_up_exps.weight"]
    assert entry.counts[1] == 0 and entry.counts.sum() == 2 * done.tokens


def test_experts_seldom_at_work(tiny_q4: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("List the Python files in this folder. " * 8)
    done = calibrate(tiny_q4, tmp_path / "m.gguf", text=text, chunk=16, loading=ONE)
    layers = [Counter(0 if not n else 1 if n < RARE else 2 for n in layer.counts) for layer in done.experts]
    assert sum(layer[1] for layer in layers) > 0
    assert [(len(layer.never), len(layer.rare)) for layer in done.experts] == [(n[0], n[1]) for n in layers]
    assert f"fewer than {RARE} tokens" in str(done)
    assert "| none      | 0–3 " in str(done)  # there are only 64 tokens


# --- bad input ---


def test_rows_longer_than_the_context(tiny_q4: Path, rows: Path, tmp_path: Path) -> None:
    done = calibrate(tiny_q4, tmp_path / "m.gguf", rows=rows, loading=Loading(threads=1, context=110))
    assert 0 < done.skipped < ROWS and done.sequences + done.skipped == ROWS
    assert f"{done.skipped} of {ROWS} rows are longer than the context of 110 tokens" in str(done)
    with pytest.raises(ContextError, match="no row fits into a context of 10 tokens"):
        calibrate(tiny_q4, tmp_path / "n.gguf", rows=rows, loading=Loading(threads=1, context=10))
    with pytest.raises(ContextError, match="has a context of 32768 tokens, not 99999"):
        calibrate(tiny_q4, tmp_path / "n.gguf", rows=rows, loading=Loading(threads=1, context=99999))


def test_arguments_that_make_no_sense(tiny_q4: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("too short")
    latin.write_bytes(b"caf\xe9 " * 1000)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases: list[tuple[type[EdgeError], str, dict[str, Any]]] = [
        (EdgeError, "give one of them", {}),
        (EdgeError, "give one of them", {"rows": rows, "text": TEXT}),
        (EdgeError, "chunk is 1", {"text": TEXT, "chunk": 1}),
        (EdgeError, "threads is 513", {"text": TEXT, "loading": Loading(threads=513)}),
        (EdgeError, "context is 1", {"rows": rows, "loading": Loading(context=1)}),
        (ContextError, "a chunk of 40000 does not fit", {"text": TEXT, "chunk": 40000}),
        (ReplayError, "at least two chunks of 512", {"text": short}),
        (ReplayError, "is not UTF-8", {"text": latin}),
        (ReplayError, "cannot be read", {"text": tmp_path / "missing"}),
        (ReplayError, "cannot be read", {"rows": tmp_path / "missing"}),
        (ReplayError, "contains no rows", {"rows": empty}),
    ]
    for kind, said, arguments in cases:
        with pytest.raises(kind, match=said) as error:
            calibrate(tiny_q4, out, **{"loading": ONE, **arguments})
        assert "\n" not in str(error.value)
    with pytest.raises(ResultError, match="is a folder"):
        calibrate(tiny_q4, tmp_path, rows=rows)
    with pytest.raises(ResultError, match="not a regular file"):
        calibrate(tiny_q4, "/dev/null", rows=rows)
    with pytest.raises(ModelFileError, match="is not a GGUF"):
        calibrate(TEXT, out, rows=rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "latin.txt", "short.txt"]


def test_a_model_that_gives_no_numbers(tiny_q4: Path, rows: Path, tmp_path: Path) -> None:
    model = changed(tiny_q4, "blk.3.ffn_norm.weight", {0: np.nan}, tmp_path / "tiny.gguf")
    with pytest.raises(ModelFileError, match=r"the input of blk\.3\.\S+ is not finite"):
        calibrate(model, tmp_path / "m.gguf", rows=rows, loading=ONE)
    assert not (tmp_path / "m.gguf").exists()
