"""Model files and rows that are damaged or absurd: a clear refusal or correct running, never a crash of the caller.

    pytest tests/cli/test_fault_inputs.py

docs/reliability.md has a line for each test. Damaged checkpoints, for `edge convert`, are in test_damaged.py; GGUF
headers in test_modelfile.py.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Edge

from edge.conversion.inspect import inspect
from edge.errors import ModelFileError
from edge.formats.checksum import KEY, damage
from edge.formats.gguf import read_layout, read_tensors
from edge.llama.library import load_model
from edge.system.paths import embedded_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them"),
]

PLACES = 200
# Reads file names and what to flip from standard input; says what came of each. A crash ends it.
ASKS = """
import json, os, sys
from edge import EdgeError, Runner
model, tokens = sys.argv[1], int(sys.argv[2])
descriptor = os.open(model, os.O_RDWR)
def flip(at, bit):
    os.pwrite(descriptor, bytes((os.pread(descriptor, 1, at)[0] ^ 1 << bit,)), at)
for line in sys.stdin:
    at, bit = json.loads(line)
    flip(at, bit)
    try:
        with Runner.load(model, threads=1) as runner:
            told = runner.act([{"role": "user", "content": "ls"}], tokens).text
            assert isinstance(json.loads(told)["commands"], list)
    except EdgeError as error:
        told = f"error: {error}"
        assert str(error).isprintable()
    flip(at, bit)
    print(json.dumps(told), flush=True)
"""


def ask(model: Path, places: list[tuple[int, int]], tokens: int = 8) -> list[str]:
    """What comes of a model with a bit flipped at each of some places: an answer, or a line after "error: "."""
    told = []
    command = [sys.executable, "-c", ASKS, str(model), str(tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for place in places:
            print(json.dumps(place), file=process.stdin, flush=True)
            line = process.stdout.readline()
            assert line, (place, process.wait())
            told.append(json.loads(line))
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    return told


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes copies of a model to damage; with `foreign`, as of a program that writes no checksums."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))  # nothing is remembered of one test in the next

    def make(model: Path, foreign: bool = False) -> Path:
        path = Path(shutil.copy(model, tmp_path / f"{'foreign' if foreign else 'own'}-{model.name}"))
        if foreign:
            data = path.read_bytes()
            assert data.count(KEY.encode()) == 1
            path.write_bytes(data.replace(KEY.encode(), b"other.sums"))
        return path

    return make


def places_of(model: Path, seed: int, begin: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    last = model.stat().st_size if end is None else end
    return [(rng.randrange(begin, last), rng.randrange(8)) for _ in range(PLACES)]


@pytest.mark.parametrize("model", ["tiny_q4", "smollm2_q4"])
def test_a_flipped_bit_is_refused(model: str, copy: Any, request: pytest.FixtureRequest) -> None:
    """In any place of a file that `edge convert` wrote, but for the padding, which nobody reads."""
    path = copy(request.getfixturevalue(model))
    whole = (
        ask(path, [(path.stat().st_size - 1, 0)])[0] if model == "tiny_q4" else ""
    )  # its last byte may be padding
    data = {at: tensor for tensor in read_tensors(path) for at in (tensor.offset,)}
    assert data
    _, header_end, _ = read_layout(path, KEY)
    everywhere = places_of(path, 70)
    in_header = places_of(path, 71, 0, header_end)
    used = [(at, bit) for at, bit in everywhere if at < header_end or _inside(path, at)]
    assert len(used) > PLACES * 0.95
    if model == "tiny_q4":
        assert not whole.startswith("error: ") or "CRC-32" in whole
        found = ask(path, used + in_header)
    else:  # 100 MB each time
        found = [_checked(path, place) for place in used[:10] + in_header[:60]]
    wrong = [told for told in found if not told.startswith("error: ")]
    # Of the checksums' own text and its name a flipped bit may leave the file as one without; the model is the same.
    assert len(wrong) <= 2 and (not wrong or len(set(wrong)) == 1), wrong
    assert damage(path) == []


def _inside(path: Path, at: int) -> bool:
    return any(tensor.offset <= at < tensor.offset + tensor.n_bytes for tensor in read_tensors(path))


def _checked(path: Path, place: tuple[int, int]) -> str:
    """What `damage` finds with a bit flipped, without loading it."""
    at, bit = place
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes((old[0] ^ 1 << bit,)), at)
        try:
            found = damage(path)
            return f"error: {found}" if found else ""
        except ModelFileError as error:
            return f"error: {error}"
        finally:
            os.pwrite(file.fileno(), old, at)


def test_a_flipped_bit_in_a_file_without_checksums(copy: Any, tiny_bf16: Path) -> None:
    """Refused, or run to a valid answer, which may be another one: never a crash of the caller.

    benchmarks/bit_flips.py tries thousands of places; here some, and those found by trying every number in the header.
    """
    path = copy(tiny_bf16, foreign=True)
    whole = path.read_bytes()
    _, header_end, _ = read_layout(path, KEY)
    values = {}
    for key, skipped in (
        ("expert_gating_func", 4),
        ("attention.layer_norm_rms_epsilon", 4),
        ("head_count_kv", 16),
    ):
        values[key] = whole.index(key.encode()) + len(key) + skipped
    fatal = [
        (values["expert_gating_func"], 3),
        (values["attention.layer_norm_rms_epsilon"] + 3, 7),
        (values["head_count_kv"] + 8 + 3, 5),  # the high byte of layer 2
    ]
    told = ask(path, fatal)
    assert all(
        "damaged, or of a kind that llama.cpp cannot run: it stops the process (SIG" in t for t in told
    ), told
    places = [*places_of(path, 72, 0, header_end)[:6], *places_of(path, 75, header_end)[:6]]
    assert len(ask(path, places)) == len(places)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("model", ["tiny_q4", "smollm2_q4"])
def test_a_file_cut_anywhere_is_refused(model: str, copy: Any, request: pytest.FixtureRequest) -> None:
    path = copy(request.getfixturevalue(model))
    last = read_tensors(path)[-1]
    rng = random.Random(76)
    lengths = sorted((rng.randrange(last.offset + last.n_bytes) for _ in range(PLACES)), reverse=True)
    for length in lengths:
        os.truncate(path, length)
        with pytest.raises(ModelFileError) as caught:
            inspect(path)
        assert "\n" not in str(caught.value)


def test_a_check_is_remembered_and_verify_repeats_it(copy: Any, tiny_q4: Path, edge: Edge) -> None:
    """A disk that changes bits under an unchanged time: `edge run` does not see it, `edge inspect --verify` does."""
    path = copy(tiny_q4)
    tensor = next(tensor for tensor in read_tensors(path) if "ffn_down" in tensor.name)
    assert ask(path, []) == []
    assert edge.run("run", "ls", "-m", path, "--quiet", "--max-tokens", "4").status == 0
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(bytes((path.read_bytes()[tensor.offset] ^ 1,)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    ended = edge.run("inspect", path, "--verify")
    assert ended.status == 1
    assert f"{tensor.name} is not as edge convert wrote it (CRC-32)" in ended.out
    os.utime(path)
    ended = edge.run("run", "ls", "-m", path, "--quiet", "--max-tokens", "4")
    assert ended.status == 1 and len(ended.err.splitlines()) == 1
    assert f"damaged: {tensor.name} is not as edge convert wrote it (CRC-32); convert or fetch" in ended.err


def test_another_program_may_rewrite_the_file(copy: Any, tiny_q4: Path) -> None:
    """It copies the checksums of other data with the metadata; the size tells that they are not this file's."""
    path = copy(tiny_q4)
    with path.open("ab") as file:
        file.write(bytes(32))
    assert damage(path) is None
    load_model(path, _vocabulary_only())


def _vocabulary_only() -> Any:
    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    return params


def test_weights_that_are_nan(copy: Any, tiny_bf16: Path, edge: Edge, rows: Path, tmp_path: Path) -> None:
    """NaN in a file without checksums: no command makes an answer or a figure of it."""
    path = copy(tiny_bf16, foreign=True)
    norm = next(tensor for tensor in read_tensors(path) if tensor.name == "blk.3.ffn_norm.weight")
    with path.open("r+b") as file:
        file.seek(norm.offset)
        file.write(struct.pack("<f", float("nan")))
    out = tmp_path / "out.json"
    for command in (
        ["run", "ls", "--quiet"],
        ["eval", "--quiet", "--replay", rows, "--out", out],
        ["imatrix", "--replay", rows, "--out", out],
        ["measure", "--quiet", "--replay", rows, "--out", out],
    ):
        ended = edge.run(*command, "--model", path, memory=4 << 30)
        assert ended.status == 1, ended
        assert ended.err.count("\n") == 1 and "not finite: the model is damaged" in ended.err
        assert not out.exists()


# --- rows and messages ---


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    modules = (
        "runner",
        "replay.run",
        "measure.calibrate",
        "measure.run",
        "llama.encode",
        "conversion.inspect",
        "conversion.verify",
    )
    with Edge.started(*(f"edge.{name}" for name in modules)) as started:
        yield started


def row(**changes: Any) -> dict[str, Any]:
    first = json.loads(embedded_rows().read_text(encoding="utf-8").splitlines()[0])
    return {**first, "messages": [{"role": "user", "content": "hi"}], **changes}


def line(**changes: Any) -> bytes:
    return json.dumps(row(task_id="absurd", **changes)).encode() + b"\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n", encoding="utf-8")
    return path


def said(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


TURNS = [("user" if i % 2 == 0 else "assistant", "ls") for i in range(1001)]
MEGABYTES = "The quick brown fox. ls -la /tmp\n" * 300_000
# The second line of a file of rows, and what each of eval, imatrix and measure says: "" for done, else a part of it.
ROWS: dict[str, tuple[bytes, tuple[str, str, str]]] = {
    "broken UTF-8": (line().replace(b'"hi"', b'"h\xff"'), ("rows.jsonl:2: is not UTF-8 text",) * 3),
    "half of a surrogate pair": (line().replace(b'"hi"', b'"\\ud800"'), ("rows.jsonl:2: not JSON",) * 3),
    "no messages": (
        line(messages=[]),
        ("rows.jsonl:2: messages is an empty list; it must be a list of at least one message",) * 3,
    ),
    "content that is null": (
        line(messages=said(("user", None))),
        ("rows.jsonl:2: messages[0] is an object; it must be an object with content or tool_calls",) * 3,
    ),
    "content that is empty": (line(messages=said(("user", "")), ref_raw=""), ("",) * 3),
    "an unknown role": (line(messages=said(("wizard", "hi"))), ("",) * 3),
    "NUL in a text": (line(messages=said(("user", "a\0b"))), ("",) * 3),
    "1,000 turns": (line(messages=said(*TURNS)), ("", "", "does not fit into a context of 512")),
    "a message of 10 MB": (  # imatrix leaves out what is too long, with a note
        line(messages=said(("user", MEGABYTES))),
        ("absurd step 0 has", "", "absurd step 0 has"),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_absurd_rows(name: str, edge: Edge, tiny_q4: Path, tmp_path: Path) -> None:
    """A line that names file and line or step, or a whole output; in bounded memory, and within forks.SECONDS."""
    data, wanted = ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + data)
    for command, problem in zip(
        (["eval", "--max-tokens", "8"], ["imatrix"], ["measure"]), wanted, strict=True
    ):
        out = tmp_path / f"{command[0]}.out"
        quiet = [] if command[0] == "imatrix" else ["--quiet"]
        arguments = [*command, *quiet, "--model", tiny_q4, "--replay", path, "--out", out, "--threads", "2"]
        if name == "1,000 turns":  # two of the three read them in part: 7,000 tokens take their time
            arguments += ["--ctx", "512"] if command[0] != "eval" else []
        ended = edge.run(*arguments, memory=4 << 30)
        assert ended.peak < 1 << 30
        if problem:
            assert ended.status == 1 and not out.exists(), ended
            assert ended.err.count("\n") == 1 and problem in ended.err and "rows.jsonl" in ended.err
        else:
            assert ended.status == 0 and out.exists(), ended
            if command[0] != "imatrix":
                json.loads(out.read_text(encoding="utf-8"))
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".out", ".jsonl")] == []


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(
            (name, "tiny_q4")
            for name in ("words", "one letter", "turns", "unknown role", "empty", "broken UTF-8")
        ),
        ("unknown role", "smollm2_q4"),  # their templates differ
        ("empty", "smollm2_q4"),
    ],
)
def test_absurd_messages(
    name: str, model: str, edge: Edge, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """`edge prompt` shows what it is given, `edge run` refuses what does not fit."""
    path, messages = request.getfixturevalue(model), tmp_path / "messages.json"
    chat = {
        "words": said(("user", MEGABYTES)),
        "one letter": said(("user", "a" * 3_000_000)),
        "turns": said(*TURNS[:201]),
        "unknown role": said(("wizard", "hi")),
        "empty": said(("user", "")),
        "broken UTF-8": [],
    }[name]
    messages.write_bytes(json.dumps(chat).encode() if chat else b'[{"role": "user", "content": "\xff"}]')
    shown = edge.run("prompt", "--model", path, "--messages", messages, "--tokens", memory=4 << 30)
    options = ("--max-tokens", "8", "--quiet", "--json", "--threads", "2")
    asked = edge.run("run", "--model", path, "--messages", messages, *options, memory=4 << 30)
    assert max(shown.peak, asked.peak) < 1 << 30
    if name == "broken UTF-8":
        for ended in (shown, asked):
            assert ended.status == 1 and f"{messages}: is not JSON in UTF-8" in ended.err, ended
        return
    assert shown.status == 0 and all(isinstance(i, int) for i in json.loads(shown.out))
    if name in ("words", "one letter"):
        assert asked.status == 1 and asked.err.count("\n") == 1
        assert "do not fit into the context length of this model, 32768" in asked.err
    else:
        assert asked.status == 0 and json.loads(asked.out)["commands"] == [], asked


def test_a_long_text_in_little_memory(edge: Edge, tiny_q4: Path, tmp_path: Path) -> None:
    """llama.cpp's tokenizer would end the process where it is refused memory."""
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps(said(("user", "a" * 3_000_000))), encoding="utf-8")
    for megabytes in (60, 200, 350, 500):
        ended = edge.run(
            "prompt", "--model", tiny_q4, "--messages", messages, "--tokens", memory=megabytes << 20
        )
        assert ended.status == 1 and ended.err.count("\n") == 1, ended
        assert ended.err.startswith("error: ")
