"""What ends or starves a command: kill -9, signals, a full disk, little memory, folders that vanish.

    pytest tests/cli/test_faults.py

docs/reliability.md has a line for each test. A moment is a number of things done to files, or of bytes written, never
a time; the seed and the moments are told where a test fails.
"""

import copy
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Edge, Ended
from own_state import own_state

from edge.formats.checksum import damage
from edge.system.paths import embedded_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and signals as Linux has them"),
]

MODULES = (
    "runner",
    "replay.run",
    "measure.calibrate",
    "measure.run",
    "report.build",
    "report.page",
    "sweep",
    "replay.score",
    "compare.run",
    "cli.defaults",
)
LONG = ("convert", "imatrix", "eval", "measure", "report", "sweep", "run")
WRITING = ("convert", "imatrix", "eval", "measure", "report", "score", "compare", "run")
ROOM = 4 << 30  # bytes of address space: more than any of the commands needs


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    with Edge.started(*(f"edge.{name}" for name in MODULES)) as started:
        yield started


class Inputs:
    """What the commands read, and how each is called so that it writes into a folder."""

    def __init__(self, folder: Path, checkpoint: Path, q4: Path, bf16: Path) -> None:
        self.checkpoint, self.q4, self.bf16 = checkpoint, q4, bf16
        self.rows = folder / "rows.jsonl"
        lines = embedded_rows().read_text(encoding="utf-8").splitlines(keepends=True)[:3]
        self.rows.write_text("".join(lines), encoding="utf-8")
        self.results = [folder / "a.json", folder / "b.json"]
        self.predictions = folder / "predictions.jsonl"
        self.predictions.write_text(
            "".join(
                json.dumps(
                    {"task_id": row["task_id"], "step_idx": row["step_idx"], "pred_text": row["ref_raw"]}
                )
                + "\n"
                for row in map(json.loads, lines)
            ),
            encoding="utf-8",
        )

    def command(self, name: str, out: Path) -> list[str | Path]:
        first, second = self.results
        run: list[str | Path] = ["--threads", "1"]
        return {
            "convert": ["convert", self.checkpoint, "--out", out / "x.gguf", "--force", *run],
            "imatrix": [
                "imatrix",
                "--model",
                self.q4,
                "--replay",
                self.rows,
                "--out",
                out / "m.gguf",
                "--force",
                *run,
            ],
            "eval": [
                *(
                    "eval",
                    "--model",
                    self.q4,
                    "--replay",
                    self.rows,
                    "--out",
                    out / "r.json",
                    "--quiet",
                    "--force",
                ),
                *("--max-tokens", "12", "--parallel", "1", *run),
            ],
            "measure": [
                *("measure", "--model", self.q4, "--base", self.bf16, "--replay", self.rows, "--limit", "2"),
                *("--out", out / "d.json", "--quiet", "--force", *run),
            ],
            "report": [
                *("report", first, second, "--reference", first, "--out", out / "page.html", "--force"),
                *("--markdown", out / "page.md", "--plots", out / "plots"),
            ],
            "sweep": [
                *(
                    "sweep",
                    self.checkpoint,
                    "--quants",
                    "Q8_0",
                    "--replay",
                    self.rows,
                    "--out",
                    out / "sweep",
                ),
                *("--max-tokens", "8", "--parallel", "1", "--quiet", *run),
            ],
            "score": ["score", self.predictions, "--replay", self.rows, "--out", out / "s.json", "--force"],
            "compare": ["compare", second, "--reference", first, "--json", out / "c.json", "--force"],
            "run": [
                "run",
                "List the files.",
                "--max-tokens",
                "8",
                "--quiet",
                *run,
            ],  # converts the embedded model
        }[name]


OUTPUTS = {
    "convert": ["x.gguf"],
    "imatrix": ["m.gguf"],
    "eval": ["r.json"],
    "measure": ["d.json"],
    "report": ["page.html", "page.md"],
    "score": ["s.json"],
    "compare": ["c.json"],
    "run": [],
    "sweep": [],
}
OLD = b"an older file"
LEAST = 1000  # bytes of a file: what is printed goes to files too


@pytest.fixture(scope="module")
def inputs(
    edge: Edge, tiny_folder: Path, tiny_q4: Path, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory
) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    made = Inputs(folder, tiny_folder, tiny_q4, tiny_bf16)
    for path, tokens in zip(made.results, ("12", "40"), strict=True):
        options = ("--max-tokens", tokens, "--parallel", "1", "--threads", "1", "--quiet")
        ended = edge.run("eval", "-m", tiny_q4, "-r", made.rows, "-o", path, *options, memory=ROOM)
        assert ended.status == 0, ended
    return made


@pytest.fixture(scope="module")
def whole_run(
    edge: Edge, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Ended, Path]]:
    """How a command ends that nothing disturbs, and its folder. Each command runs once; tests only read the folder."""

    @functools.cache
    def run(name: str) -> tuple[Ended, Path]:
        folder = tmp_path_factory.mktemp(name)
        ended = edge.run(*inputs.command(name, folder), memory=ROOM, folder=folder)
        assert ended.status == 0, ended
        return ended, folder

    return run


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder and below, links and hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(found: dict[str, bytes]) -> dict[str, Any]:
    """Files without what differs from run to run: times, and the pages made of results that hold times."""
    steady: dict[str, Any] = {}
    for name, data in found.items():
        if name.endswith(".json"):
            value = json.loads(data)
            steady[name] = value.get("aggregate"), value.get("per_step"), value.get("stages")
        else:
            steady[name] = name if name.startswith("sweep/") else data
    return steady


def one_line(ended: Ended) -> str:
    """The line with which a command refused, after notes if there are any."""
    assert ended.status == 1, ended
    *notes, line = ended.err.splitlines() or [""]
    assert line.startswith("error: "), ended
    assert all(note.startswith("note: ") for note in notes), ended
    return line


# --- kill -9 ---


@pytest.mark.parametrize("name", LONG)
def test_killed_at_random_moments(
    name: str, edge: Edge, inputs: Inputs, whole_run: Callable[[str], tuple[Ended, Path]], tmp_path: Path
) -> None:
    """Old or whole, and the next run does all that was to be done, with nothing left over."""
    first, whole = whole_run(name)
    out = tmp_path / "out"
    out.mkdir()
    wanted = files(whole)
    most = max(map(len, wanted.values()))
    seed = 60
    rng = random.Random(seed)
    killed = []
    for round in range(4 if name in ("sweep", "report") else 8):
        for output in OUTPUTS[name]:
            if round in (0, 4):
                (out / output).write_bytes(OLD)
        limits: dict[str, Any]
        if round % 2:
            limits = {"file_size": rng.randrange(LEAST, most), "deadly": True}
        else:
            limits = {"stop": (rng.randint(1, first.events), signal.SIGKILL)}
        ended = edge.run(*inputs.command(name, out), memory=ROOM, folder=out, **limits)
        assert ended.status in (0, -signal.SIGKILL, -signal.SIGXFSZ), (seed, limits, ended)
        killed.append(ended.status < 0)
        found = files(out)
        for output in OUTPUTS[name]:
            data = found.get(output, OLD)
            assert data == OLD or told({output: data}) == told({output: wanted[output]}), (
                seed,
                limits,
                output,
            )
        for path in found:  # what has its name is whole
            if path.endswith(".gguf") and not Path(path).name.startswith("."):
                assert found[path] == OLD or not damage(out / path), (seed, limits, path)
    assert sum(killed) >= 3, (seed, killed)  # once it has its model, `edge run` has little to do
    last = edge.run(*inputs.command(name, out), memory=ROOM, folder=out)
    assert last.status == 0, last
    assert told(files(out)) == told(wanted), seed
    assert last.out.replace(str(out), str(whole)).splitlines()[-1:] == first.out.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", [name for name in LONG if name not in ("convert", "sweep")])
def test_stopped_by_a_signal(
    name: str,
    number: signal.Signals,
    edge: Edge,
    inputs: Inputs,
    whole_run: Callable[[str], tuple[Ended, Path]],
    tmp_path: Path,
) -> None:
    """Ctrl-C and SIGTERM: 130 or 143, no traceback, nothing left but what the next run goes on from."""
    first, whole = whole_run(name)
    out = tmp_path / "out"
    out.mkdir()
    seed = 61 + number
    rng = random.Random(seed)
    for moment in [rng.randint(1, first.events) for _ in range(2)]:
        ended = edge.run(*inputs.command(name, out), memory=ROOM, folder=out, stop=(moment, number))
        assert ended.status in (0, 128 + number), (seed, moment, ended)
        assert "Traceback" not in ended.err, (seed, moment, ended)
        left = [path for path in files(out) if path.endswith(".tmp")]
        assert not left, (seed, moment, ended)
    last = edge.run(*inputs.command(name, out), memory=ROOM, folder=out)
    assert last.status == 0, last
    assert told(files(out)) == told(files(whole)), seed


# --- a disk that is full ---


@pytest.mark.parametrize("name", WRITING)
def test_no_space_left(
    name: str, edge: Edge, inputs: Inputs, whole_run: Callable[[str], tuple[Ended, Path]], tmp_path: Path
) -> None:
    """A file may get no longer than so many bytes: one line, and what was there is there."""
    _, whole = whole_run(name)
    out = tmp_path / "out"
    out.mkdir()
    for output in OUTPUTS[name]:
        (out / output).write_bytes(OLD)
    before = files(out)
    most = max(map(len, files(whole).values()))
    seed = 62
    rng = random.Random(seed)
    for size in [LEAST, *(rng.randrange(LEAST, most) for _ in range(3))]:
        ended = edge.run(*inputs.command(name, out), memory=ROOM, folder=out, file_size=size)
        assert "File too large" in one_line(ended), (seed, size, ended)
        now = files(out)
        now.pop("r.json.journal", None)  # the steps that are done
        assert now == before, (seed, size)
        (out / "r.json.journal").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def small_disk(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Edge, Path, Path]]:
    """A file system of 24 MB in a mount namespace: who runs there, its folder there, and as seen from here."""
    folder = tmp_path_factory.mktemp("disk")
    within = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"', str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted in a namespace here")
    with Edge.started(*(f"edge.{name}" for name in MODULES), within=within) as started:
        started.run("--version")  # it is mounted now
        yield started, folder, Path(f"/proc/{started.pid}/root{folder}")


@pytest.mark.parametrize("name", [*WRITING, "sweep"])
def test_a_disk_that_is_full(
    name: str,
    small_disk: tuple[Edge, Path, Path],
    inputs: Inputs,
    whole_run: Callable[[str], tuple[Ended, Path]],
) -> None:
    there, folder, seen = small_disk
    largest = max(map(len, files(whole_run(name)[1]).values()))
    out = seen / name
    out.mkdir()
    for output in OUTPUTS[name]:
        (out / output).write_bytes(OLD)
    before = files(out)
    filler = seen / "filler"
    for pages in {0, largest // 4096 // 2}:
        with filler.open("wb") as file:
            status = os.statvfs(seen)
            os.posix_fallocate(file.fileno(), 0, (status.f_bavail - pages) * status.f_bsize)
        ended = there.run(*inputs.command(name, folder / name), memory=ROOM, folder=folder / name)
        line = one_line(ended)
        assert "No space left on device" in line or "needed" in line or "choose another --out" in line, ended
        now = files(out)
        now.pop("r.json.journal", None)
        now.pop("sweep/sweep.json", None)
        assert {name: data for name, data in now.items() if not name.endswith(".journal")} == before
        (out / "r.json.journal").unlink(missing_ok=True)
        filler.unlink()
    ended = there.run(*inputs.command(name, folder / name), memory=ROOM, folder=folder / name)
    assert ended.status == 0, ended  # with room, the same command does it
    shutil.rmtree(out)


# --- little memory ---


@pytest.mark.parametrize("name", ["convert", "imatrix", "eval", "measure", "run", "report"])
def test_little_memory(name: str, edge: Edge, inputs: Inputs, tmp_path: Path) -> None:
    """From almost nothing up to enough, by `ulimit -v`: one line or all of it, never an abort."""
    statuses = []
    for megabytes in (1, 24, 80, 160, 250, 700):
        out = tmp_path / str(megabytes)
        out.mkdir()
        ended = edge.run(*inputs.command(name, out), memory=megabytes << 20, folder=out)
        statuses.append(ended.status)
        if ended.status:
            one_line(ended)
            left = [path for path in files(out) if path not in ("r.json.journal", "m.gguf.partial")]
            assert not [path for path in left if not path.startswith("models/")], (megabytes, ended)
    assert statuses[0] == 1
    assert statuses[-1] == 0


# --- folders ---


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a fresh process."""
    code = "from edge.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, check=False, **options)


@pytest.fixture
def locked(inputs: Inputs) -> Iterator[tuple[Path, Inputs, int | None]]:
    """A folder, inputs that everybody may read, and who runs: not root, whom modes do not stop."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        for path in (inputs.q4, inputs.bf16, inputs.rows, inputs.predictions, *inputs.results):
            shutil.copy(path, folder)
        shutil.copytree(inputs.checkpoint, folder / "checkpoint")
        copies = copy.copy(inputs)
        copies.checkpoint, copies.q4 = folder / "checkpoint", folder / inputs.q4.name
        copies.bf16, copies.rows = folder / inputs.bf16.name, folder / inputs.rows.name
        copies.predictions = folder / inputs.predictions.name
        copies.results = [folder / path.name for path in inputs.results]
        (folder / "out").mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        user = 65534 if os.getuid() == 0 else None
        state = own_state(folder / "state")  # otherwise edge tries the models in a child process first
        (state / "model-files").unlink()
        shutil.copytree(os.path.join(os.environ["EDGE_STATE"], "model-files"), state / "model-files")
        for path in (state, *state.rglob("*")) if user is not None else ():
            os.chown(path, user, user)
        yield folder / "out", copies, user
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_cannot_be_written(
    name: str, edge: Edge, locked: tuple[Path, Inputs, int | None]
) -> None:
    """One line, and what was there is there. `edge run` writes the embedded model to the store, if it can."""
    out, copies, user = locked
    (out / "models").mkdir()
    for output in OUTPUTS[name]:
        (out / output).write_bytes(OLD)
    before = files(out)
    (out / "models").chmod(0o555)
    out.chmod(0o555)
    ended = edge.run(
        *copies.command(name, out), memory=ROOM, folder=out, user=user, state=out.parent / "state"
    )
    if name == "run" and ended.status == 0:
        assert "converting the embedded" in ended.err
    else:
        assert "Permission denied" in one_line(ended)
    assert files(out) == before


def test_a_model_in_a_folder_that_cannot_be_written(
    edge: Edge, locked: tuple[Path, Inputs, int | None]
) -> None:
    """Reading needs no right to write: neither beside the model nor in the cache."""
    out, copies, user = locked
    model = Path(shutil.copy(copies.q4, out))
    model.chmod(0o444)
    out.chmod(0o555)
    asked = ["run", "ls", "--max-tokens", "8", "--quiet", "--json", "--model"]
    for command in ([*asked, model], ["inspect", "--json", model]):
        ended = edge.run(*command, memory=ROOM, user=user, state=out.parent / "state")
        assert ended.status == 0, ended
        assert json.loads(ended.out)
    assert list(out.iterdir()) == [model]


def test_two_processes_convert_to_the_same_name(inputs: Inputs, edge: Edge, tmp_path: Path) -> None:
    """Both end well, and the file is whole: the last one's, of two types here so that they can be told apart."""
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(3):
        code = "from edge.cli.main import main; main()"
        command = [
            sys.executable,
            "-c",
            code,
            "convert",
            str(inputs.checkpoint),
            "--out",
            str(out / "x.gguf"),
            "--force",
        ]
        both = [
            subprocess.Popen(
                [*command, "--quant", quant], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for quant in ("Q4_K_M", "Q8_0")
        ]
        told = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert [path.name for path in out.iterdir()] == ["x.gguf"]
        assert damage(out / "x.gguf") == []


@pytest.mark.parametrize("name", ["convert", "imatrix", "eval", "measure"])
def test_an_output_folder_that_vanishes(name: str, edge: Edge, inputs: Inputs, tmp_path: Path) -> None:
    """Removed while the command writes into it: one line, and the folder does not come back half filled."""
    out = tmp_path / "out"
    out.mkdir()
    code = "from edge.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, inputs.command(name, out))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(out.iterdir()):
            time.sleep(0.002)
        gone = tmp_path / "gone"
        out.rename(gone)
        shutil.rmtree(gone)
        said = process.communicate(timeout=120)[1]
    if process.returncode:
        assert process.returncode == 1
        assert said.startswith("error: ") and len(said.splitlines()) == 1, said
        assert not out.exists() or not any(out.iterdir())
    else:  # it writes its output at the end, and makes the folder again for that
        assert not out.exists() or sorted(files(out)) in ([], OUTPUTS[name])


# --- what is printed ---


@pytest.mark.parametrize("name", ["run", "inspect", "prompt", "models"])
def test_stdout_without_a_reader(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """`edge … | head -1`, stdout closed, stdout on a full disk: no traceback, and no success where output was lost."""
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "long " * 40_000}]), encoding="utf-8")
    arguments: list[str | Path] = {
        "run": ["run", "ls", "-m", inputs.q4, "--quiet", "--max-tokens", "8"],
        "inspect": ["inspect", inputs.q4],
        "prompt": ["prompt", "-m", inputs.q4, "--messages", messages],
        "models": ["models"],
    }[name]
    reader, writer = os.pipe()
    os.close(reader)
    gone = run(*arguments, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert gone.returncode == 1
    with open("/dev/full", "w") as full:
        filled = run(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert filled.returncode == 1
    assert filled.stderr == "error: standard output: No space left on device\n"
    closed = run(*arguments, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert closed.returncode in (0, 1)
    for ended in (gone, filled, closed):
        assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr, ended
