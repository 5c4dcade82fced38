"""Each command that loads a model refuses one that stops llama.cpp, also if its checksums are right.

.venv/bin/pytest tests/cli/test_forged_models.py
"""

import shutil
import sys
from pathlib import Path

import pytest
from command_line import run
from forged import forged

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bwrap") is None,
    reason="the trial has a sandbox only with bubblewrap",
)
COMMANDS = {
    "run": "run ls --model FORGED",
    "chat": "chat --model FORGED",
    "agent": "agent ls --workdir FOLDER --model FORGED",
    "serve": "serve --port 0 --model FORGED",
    "eval": "eval --replay ROWS --out FOLDER/out.json --limit 1 --model FORGED",
    "trial": "trial --out FOLDER/out.json --time-limit 60 --model FORGED",
    "measure": "measure --replay ROWS --out FOLDER/out.json --model FORGED",
    "imatrix": "imatrix --replay ROWS --out FOLDER/out.gguf --model FORGED",
    "tune": "tune FORGED",
    "doctor": "doctor --offline --model FORGED",
}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=[] if name == "run" else [pytest.mark.slow])
        for name, words in COMMANDS.items()
    ],
)
def test_each_command_refuses_it(words: str, tiny_q4: Path, tiny_folder: Path, tmp_path: Path) -> None:
    path = forged(tiny_q4, tmp_path / "forged.gguf")
    for name, place in (("FORGED", path), ("ROWS", tiny_folder / "eval.jsonl"), ("FOLDER", tmp_path)):
        words = words.replace(name, str(place))
    done = run(*words.split(), input="")
    said = [line for line in (done.stdout + done.stderr).splitlines() if "stops the process" in line]
    assert done.returncode == 1 and len(said) == 1, done
    assert f"{path}: damaged, or of a kind that llama.cpp cannot run: it stops the process (SIG" in said[0]
