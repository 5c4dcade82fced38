"""Wrong usage: one line in edge's words, which names the option and what was probably meant.

pytest tests/cli/test_usage.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def refused(*arguments: str, cwd: Path) -> str:
    """The error of a command that is wrong, without its `error: `. The last line of stderr, and the only one so."""
    done = subprocess.run(
        [sys.executable, "-m", "edge", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env={**os.environ, "EDGE_MODELS": str(cwd), "EDGE_CONFIG": ""},
    )
    assert done.returncode == 2 and not done.stdout, done
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.lower().startswith("error")] == lines[-1:]
    for foreign in ("Error", "Input should", "Invalid value", "Possible options", "unable to parse"):
        assert foreign not in done.stderr
    return lines[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("runn hi", "no command runn; did you mean run?"),
        ("models lst", "no command lst; did you mean list?"),
        ("help models pth", "no command pth; did you mean path?"),
        (
            "config set model m",
            "no command set; edge config prints the file of settings and how to choose a model",
        ),
        ("xyzzy", "no command xyzzy; the help lists them"),
        ("run hi --max-token 5", "no option --max-token; did you mean --max-tokens?"),
        ("run hi --xyzzy", "no option --xyzzy"),
        ("run show the disk", "too many arguments: the disk; a text with blanks needs quotes, a list commas"),
        ("run hi --screen", "--screen: needs a value"),
        ("run hi --quiet=2", "--quiet: takes no value"),
        ("run hi --max-tokens abc", "--max-tokens: must be a whole number, not abc"),
        ("run hi --max-tokens 0", "--max-tokens: must be at least 1, not 0"),
        ("run hi --threads 1000", "--threads: must be at most 512, not 1000"),
        ("run hi --batch 99999999", "--batch: must be at most 1,048,576, not 99999999"),
        ("run hi --temperature warm", "--temperature: must be a number, not warm"),
        ("run hi --temperature -1", "--temperature: must be at least 0, not -1"),
        (
            "run hi --style compct",
            "--style: must be one of auto, compact, indented, free, not compct; did you mean compact?",
        ),
        ("eval --backend vlm", "--backend: must be one of edge, vllm, openai, not vlm; did you mean vllm?"),
        ("run hi --think of", "--think: must be off, or a number of tokens, not of"),
        ("compare", "RESULT is missing"),
        ("prompt", "--messages is missing"),
        (
            "compare a.json",
            "--reference: give it a result or a known model to compare with, or give --causes",
        ),
        ("schema replay", "NAME: replay: no format has this name"),
    ],
)
def test_wrong_usage(line: str, error: str, tmp_path: Path) -> None:
    found = refused(*line.split(), cwd=tmp_path)
    assert found == error or found.startswith(f"{error} (the names"), found


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("convert c -q Q4_KM", "--quant: Q4_KM is not a quantization type of llama.cpp; did you mean Q4_K_M"),
        ("sweep c --out s --quants Q8_0,Q4_KM", "--quants: Q4_KM is not a quantization type"),
        (
            "convert c --output-tensor-type q4k",
            "--output-tensor-type: q4k is not a ggml type; did you mean q4_",
        ),
        ("convert a --base c -q q8", "--quant: q8 is not a type for an adapter; did you mean Q8_0?"),
    ],
)
def test_a_mistyped_quantization_type(line: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    assert refused(*line.split(), cwd=tmp_path).startswith(meant)
