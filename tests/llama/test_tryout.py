"""Unknown GGUF files: names that llama.cpp does not know, and the trial with and without a sandbox.

.venv/bin/pytest tests/llama/test_tryout.py
"""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from edge.errors import EdgeWarning, ModelFileError
from edge.formats.checksum import KEY
from edge.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)


@pytest.fixture
def unknown(tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as another program would have written it: without checksums."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
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
    assert not (tmp_path / "cache" / "tried").exists()


@SANDBOX
def test_a_trial_in_the_sandbox_is_silent_and_remembered(unknown: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EdgeWarning)
        with Runner.load(unknown, gpu_layers=0) as runner:
            assert runner.act([{"role": "user", "content": "ls"}], 8).text
    assert list((tmp_path / "cache" / "tried").iterdir())


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
