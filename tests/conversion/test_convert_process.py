"""Test `edge convert` as a process: Ctrl-C, the progress bar, loaded modules, and no code of the checkpoint.

pytest tests/conversion/test_convert_process.py
"""

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edge.formats.gguf import sha256

pytestmark = pytest.mark.slow

COMMAND = "from edge.cli.main import main; main()"
RUN = "import sys; from pathlib import Path; from edge.convert import convert; "
RUN += "print(convert(sys.argv[1], quant=sys.argv[2], out=Path(sys.argv[3]), say=print, threads=1).sha256)"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def start(out: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def run(folder: Path, quant: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, str(folder), quant, str(out / "x.gguf")]
        running.append(subprocess.Popen(command, **options))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.wait()


def running(text: str) -> list[str]:
    """The command lines of all processes of this machine that contain `text`."""
    done = subprocess.run(["ps", "-e", "-ww", "-o", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if text in line]


def temporary(out: Path) -> list[Path]:
    return list(out.glob(".x.gguf.*.tmp"))


def has_data(path: Path) -> bool:
    """Whether the file contains data of tensors, not only the header and a hole."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_blocks * 512 > 8_000_000
    return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["begun", "quantizing"])
def test_ctrl_c_and_kill_leave_nothing(
    phase: str, number: signal.Signals, status: int, smollm2_folder: Path, out: Path
) -> None:
    command = [sys.executable, "-c", COMMAND, "convert", str(smollm2_folder), "--out", str(out / "x.gguf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (found := temporary(out)) and (phase == "begun" or has_data(found[0])):
                break
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
    finally:
        process.kill()
        process.wait()
    assert not list(out.iterdir())
    assert not running(str(out))


def test_killed_at_ten_moments_then_started_again(random_lfm2moe_folder: Path, out: Path) -> None:
    """After `kill -9` an older file is unchanged. The next start removes temporary files and succeeds."""
    source = str(random_lfm2moe_folder)
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "convert",
        source,
        "--quant",
        "Q3_K_M",
        "--out",
        str(out / "x.gguf"),
    ]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    wanted = (out / "x.gguf").read_bytes()
    random = Random(4)
    killed = leftovers = 0
    for round in range(60):  # more than ten, because some runs end before they are killed
        if round % 2:
            (out / "x.gguf").write_bytes(b"an older file")
        else:
            (out / "x.gguf").unlink(missing_ok=True)
        before = temporary(out)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if round % 3:  # at a random moment after it has started to write
            while process.poll() is None and not set(temporary(out)) - set(before):
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.2) * whole)
        else:
            time.sleep(random.uniform(0, 1) * whole)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
            kept = {path.name: path.read_bytes() for path in out.iterdir() if path not in temporary(out)}
            # Or the complete new file, if the process was killed after it renamed the file.
            assert kept in ({"x.gguf": b"an older file"} if round % 2 else {}, {"x.gguf": wanted})
            leftovers = max(leftovers, len(temporary(out)))
        if killed == 10:
            break
    assert killed == 10
    assert leftovers == 1  # each start removed the temporary file of the start before
    other = out / ".x.gguf.0123abcd.tmp"
    with other.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # like a running process that writes the same file
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert sorted(out.iterdir()) == [other, out / "x.gguf"]
    assert (out / "x.gguf").read_bytes() == wanted
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert list(out.iterdir()) == [out / "x.gguf"]


def test_progress_bar_on_a_terminal_only(
    random_small_moe_folder: Path, out: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    main, other = pty.openpty()
    process = start(random_small_moe_folder, "Q8_0", stderr=other, stdout=subprocess.DEVNULL)
    os.close(other)
    shown = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(main)
    assert process.wait(timeout=60) == 0
    assert b"quantizing to Q8_0" in shown
    assert b"MB" in shown or b"kB" in shown

    process = start(random_small_moe_folder, "Q8_0", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    printed, errors = process.communicate(timeout=300)
    assert errors == b""
    assert printed.decode().strip() == sha256(out / "x.gguf")


def test_runs_no_code_and_loads_no_torch(random_small_moe_folder: Path, tmp_path: Path, out: Path) -> None:
    folder = Path(shutil.copytree(random_small_moe_folder, tmp_path / "model"))
    (folder / "modeling.py").write_text("raise SystemExit('checkpoint code was run')")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    check = "; assert not {'torch', 'transformers'} & set(sys.modules)"
    command = [sys.executable, "-c", RUN + check, str(folder), "Q4_K_M", str(out / "x.gguf")]
    subprocess.run(command, check=True, timeout=300)
