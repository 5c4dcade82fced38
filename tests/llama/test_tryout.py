"""Unknown GGUF files: names that llama.cpp does not know, and the trial with and without a sandbox.

.venv/bin/pytest tests/llama/test_tryout.py
"""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from forged import forged
from make_adapter import make_adapter

from edge.convert import convert, convert_adapter
from edge.errors import EdgeWarning, ModelFileError
from edge.formats.checksum import KEY
from edge.formats.gguf import read_metadata, read_tensors
from edge.formats.own_files import is_known, mark_written
from edge.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)


@pytest.fixture
def unknown(tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as another program would have written it: without checksums."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    path = tmp_path / "unknown.gguf"
    path.write_bytes(tiny_q4.read_bytes().replace(KEY.encode(), b"other.sums"))
    return path


def renamed(path: Path, old: bytes, new: bytes) -> None:
    """Replace a string of the header by one of the same length."""
    assert len(old) == len(new)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def refusal(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EdgeWarning)
        with pytest.raises(ModelFileError) as caught:
            Runner.load(path, gpu_layers=0)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


COUNT = """
import sys
started = []
sys.addaudithook(lambda event, args: started.append(args[0]) if event == "subprocess.Popen" else None)
FIRST
from edge.runner import Runner
for model in sys.argv[1:]:
    Runner.load(model, gpu_layers=0).close()
print(len([program for program in started if "prlimit" in str(program)]))
"""


def trials(*models: Path, first: str = "") -> int:
    """How many children a new process starts to try these files, one after the other, and for what it does `first`."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT.replace("FIRST", first), *map(str, models)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_an_architecture_that_llama_cpp_does_not_know(unknown: Path) -> None:
    renamed(unknown, b"lfm2moe", b"lfm9moe")
    said = refusal(unknown)
    assert "does not know it: unknown model architecture: 'lfm9moe'; edge shows it no such file" in said


def test_tokenizers_that_llama_cpp_does_not_know(unknown: Path) -> None:
    whole = unknown.read_bytes()
    for key, kind in (("tokenizer.ggml.pre", "pre-tokenizer type"), ("tokenizer.ggml.model", "tokenizer")):
        data = bytearray(whole)
        at = data.index(key.encode()) + len(key) + 4
        length = int.from_bytes(data[at : at + 8], "little")
        data[at + 8 : at + 8 + length] = b"q" * length
        unknown.write_bytes(data)
        assert f"unknown {kind}: '{'q' * length}'; edge shows it no such file" in refusal(unknown)


def test_names_with_other_characters_reach_nothing(unknown: Path) -> None:
    renamed(unknown, b"lfm2moe", b"lfm\n%s'")
    assert "general.architecture is not a name" in refusal(unknown)


@SANDBOX
def test_a_file_that_llama_cpp_refuses_is_not_loaded_here(unknown: Path, tmp_path: Path) -> None:
    data = bytearray(unknown.read_bytes())
    key = b"lfm2moe.attention.head_count\x04"
    at = data.index(key) + len(key) - 1 + 4
    data[at] ^= 4
    unknown.write_bytes(data)
    assert "llama.cpp cannot load it" in refusal(unknown)
    assert not list((tmp_path / "state").glob("model-files/*"))


@SANDBOX
def test_a_trial_in_the_sandbox_is_silent_and_remembered(unknown: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EdgeWarning)
        with Runner.load(unknown, gpu_layers=0) as runner:
            assert runner.act([{"role": "user", "content": "ls"}], 8).text
    assert len(list((tmp_path / "state").glob("model-files/*"))) == 1
    assert trials(unknown) == 0


LOAD = """
import sys
from edge.runner import Runner
with Runner.load(sys.argv[1], gpu_layers=0) as runner:
    print("loaded", len(runner.act([{"role": "user", "content": "ls"}], 8).text) > 0)
"""


@pytest.mark.slow
@SANDBOX
def test_without_a_sandbox_one_line_says_so(unknown: Path) -> None:
    """bubblewrap is there and cannot run: the trial runs in a plain child, and a note names the reason."""
    bwrap = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    assert bwrap is not None
    inside = [bwrap, "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--"]
    run = subprocess.run(
        [*inside, sys.executable, "-c", LOAD, str(unknown)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "loaded True\n", run.stderr
    notes = [line for line in run.stderr.splitlines() if "EdgeWarning" in line]
    assert len(notes) == 1 and "has no sandbox (bwrap: " in notes[0]
    again = subprocess.run(
        [*inside, sys.executable, "-c", LOAD, str(unknown)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.stdout == "loaded True\n" and "EdgeWarning" not in again.stderr


@SANDBOX
def test_the_files_own_template_cannot_end_the_trial(unknown: Path, tiny_bf16: Path) -> None:
    """It fails, so that no token would be computed before this process loads the file."""
    unknown.write_bytes(tiny_bf16.read_bytes().replace(KEY.encode(), b"other.sums"))
    template = read_metadata(unknown)["tokenizer.chat_template"].encode()
    renamed(unknown, template, b"{{ raise_exception('no') }}".ljust(len(template)))
    norm = next(tensor for tensor in read_tensors(unknown) if tensor.name == "blk.3.ffn_norm.weight")
    with unknown.open("r+b") as file:
        file.seek(norm.offset)
        file.write(struct.pack("<f", float("nan")))
    assert "not finite: the model is damaged" in refusal(unknown)


# --- which files need no trial ---


@SANDBOX
@pytest.mark.parametrize("blank", [False, True], ids=["right checksums", "blank checksums"])
def test_checksums_do_not_replace_the_trial(
    blank: bool, tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the trial, this file ends the process of the tests."""
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    path = forged(tiny_q4, tmp_path / "forged.gguf", blank=blank)
    assert "llama.cpp cannot run: it stops the process (SIGABRT" in refusal(path)
    assert not list((tmp_path / "state").glob("model-files/*"))


@pytest.fixture
def own(tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that edge wrote for this user, who has written no other."""
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    path = Path(shutil.copy(tiny_q4, tmp_path / "own.gguf"))
    mark_written(path, hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.slow
@SANDBOX
def test_only_what_edge_did_not_write_is_tried(tiny_folder: Path, tmp_path: Path, own: Path) -> None:
    made = convert(tiny_folder, quant="Q8_0", out=tmp_path / "made.gguf").path
    copied = Path(shutil.copy(made, tmp_path / "copied.gguf"))
    moved = Path(shutil.copy(made, tmp_path / "first.gguf")).rename(tmp_path / "moved.gguf")
    assert trials(made, own, copied, moved) == 0
    data = own.read_bytes()
    own.write_bytes(data.replace(b"tiny-terminal", b"also-terminal").replace(KEY.encode(), b"other.sums"))
    assert trials(own) == 1
    assert trials(own, made) == 0


@pytest.mark.slow
@SANDBOX
def test_a_conversion_needs_no_trial(tiny_folder: Path, tmp_path: Path, own: Path) -> None:
    """Not for the header that llama.cpp reads, nor for the floats of which the matrix is computed."""
    (tmp_path / "rows.jsonl").write_text((tiny_folder / "eval.jsonl").read_text().splitlines()[0] + "\n")
    made, rows = tmp_path / "made.gguf", tmp_path / "rows.jsonl"
    convert_first = f"""from edge.convert import convert
convert({str(tiny_folder)!r}, out={str(made)!r}, calibrate={str(rows)!r}, quant="Q4_K_M", threads=1)
"""
    assert trials(made, first=convert_first) == 0


def test_a_mark_that_edge_did_not_make(own: Path, tmp_path: Path) -> None:
    """Marks of another user, or with other contents, say nothing."""
    assert is_known([own], "x")
    marks = list((tmp_path / "state" / "model-files").iterdir())
    assert len(marks) == 2
    kept = {mark: mark.read_bytes() for mark in marks}
    for change in (
        lambda data: data.replace(b"written", b"x"),
        lambda data: data[:-3] + (b'1"}' if data[-3:-2] == b"0" else b'0"}'),
        lambda data: b"[" * 100_000,
        lambda data: b'{"why": "written", "seal": "\xff"}',
        lambda data: b"",
    ):
        for mark, data in kept.items():
            mark.write_bytes(change(data))
        assert not is_known([own], "x")
    for mark, data in kept.items():
        mark.write_bytes(data)
    assert is_known([own], "x")
    (tmp_path / "state" / "session.key").write_bytes(bytes(32))
    assert not is_known([own], "x")


def test_a_file_that_changed_is_not_known(own: Path) -> None:
    data = own.read_bytes()
    own.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
    assert not is_known([own], "x")
    own.write_bytes(data)
    assert is_known([own], "x")


def test_where_no_mark_can_be_kept(tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder that is a file: nothing is known, and nothing fails."""
    (tmp_path / "state").write_text("")
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    mark_written(tiny_q4)
    assert not is_known([tiny_q4], "x")


WITH_ADAPTER = """
from edge.llama.loading import Adapter, Loading
from edge.runner import Runner
from pathlib import Path
Runner.open({base!r}, Loading(gpu_layers=0, adapters=(Adapter(Path({adapter!r})),))).close()
"""


@pytest.mark.slow
@SANDBOX
def test_an_adapter_that_edge_did_not_write_is_tried(tiny_folder: Path, own: Path, tmp_path: Path) -> None:
    made = make_adapter(tiny_folder, tmp_path / "made", seed=1, size=0.1)
    adapter = convert_adapter(made, tiny_folder, out=tmp_path / "own-adapter.gguf").path
    foreign = tmp_path / own.name  # inside the sandbox, too, it has the name of the model
    own = own.rename(tmp_path / "base.gguf")
    foreign.write_bytes(adapter.read_bytes().replace(KEY.encode(), b"other.sums"))
    for path, wanted in ((adapter, 0), (foreign, 1), (foreign, 0)):
        assert trials(first=WITH_ADAPTER.format(base=str(own), adapter=str(path))) == wanted
