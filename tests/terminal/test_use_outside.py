"""What a sandbox could make edge, git and the system outside use: memory, time, the crash handler, the processors.

.venv/bin/pytest tests/terminal/test_use_outside.py
"""

import contextlib
import hashlib
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from escapes import POSSIBLE, World, has, run_as_ordinary_user, sandboxed, until

from edge.errors import SandboxError
from edge.system.confined import run_confined
from edge.terminal.archive import read_entries
from edge.terminal.commits import check_commits
from edge.terminal.sandbox import Limits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not POSSIBLE or not has("python3", "prlimit"),
        reason="bubblewrap, tmux, python3 or prlimit is not installed",
    ),
]
TEN = 10 << 20


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


def number(value: int) -> bytes:
    """A size as deltas have it, seven bits a byte."""
    data = b""
    while True:
        value, low = value >> 7, value & 0x7F
        data += bytes([low | (0x80 if value else 0)])
        if not value:
            return data


def entry(kind: int, size: int, between: bytes, data: bytes) -> bytes:
    """An object of a pack: its kind and size, what comes before the data, and the data."""
    first, rest = kind << 4 | size & 15, size >> 4
    begin = bytes([first | 0x80]) + number(rest) if rest else bytes([first])
    return begin + between + zlib.compress(data)


def bomb(times: int) -> bytes:
    """A bundle with an object of `times` 16 MiB: a delta that copies the same zeros again and again."""
    zeros = bytes(1 << 24)
    name = hashlib.sha1(b"blob %d\0" % len(zeros) + zeros).digest()
    delta = number(len(zeros)) + number(0xFFFFFF * times) + b"\xf0\xff\xff\xff" * times
    pack = b"PACK" + struct.pack(">II", 2, 2)
    pack += entry(3, len(zeros), b"", zeros) + entry(7, len(delta), name, delta)
    return b"# v2 git bundle\n" + b"1" * 40 + b" HEAD\n\n" + pack + hashlib.sha1(pack).digest()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_small_bundle_with_a_large_object(tmp_path: Path) -> None:
    """16 kB that mean an object of 8 GB: git outside has less memory than that."""
    (tmp_path / "x.bundle").write_bytes(bomb(500))
    assert (tmp_path / "x.bundle").stat().st_size < 20_000
    subprocess.run(["git", "init", "-q", str(tmp_path / "work")], check=True)
    with pytest.raises(SandboxError, match=r"git index-pack: .*[Mm]emory"):
        check_commits(tmp_path / "work", tmp_path / "x.bundle", "x")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 << 20  # kB


# Answers edge in place of the process that does it: 300 MB of names, then what is no archive.
FALSE_ANSWER = """
import os, signal
ask, answer = open("/proc/2/fd/3", "rb", 0), open("/proc/2/fd/4", "wb", 0)
for pid in os.listdir("/proc"):
    if pid.isdigit() and int(pid) > 2 and open(f"/proc/{pid}/stat").read().split()[3] == "2":
        if b"-i" not in open(f"/proc/{pid}/cmdline", "rb").read().split(bytes(1)):
            os.kill(int(pid), signal.SIGSTOP)
print("ready-%d" % 2, flush=True)
token = ask.read(100).split()[1]
answer.write(b"edge " + token + b"\\n")
for _ in range(5000):
    answer.write(b"x" * 60000 + bytes(1))
answer.write(bytes(3000))
"""
SAVE = """
import resource, tempfile, time
from pathlib import Path
from edge.errors import SandboxError
from edge.terminal.sandbox import Limits, Sandbox
from edge.terminal.tmux import Terminal
with tempfile.TemporaryDirectory() as place:
    work = Path(place) / "work"
    work.mkdir()
    (work / "answer.py").write_text(ANSWER)
    with Sandbox.prepare(work, Limits(disk=4 << 20, temporary=1 << 20, reserve=1)) as sandbox:
        with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready) as terminal:
            terminal.send("python3 answer.py\\n")
            end = time.monotonic() + 60
            while "ready-2" not in terminal.screen() and time.monotonic() < end:
                time.sleep(0.05)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                sandbox.save(Path(place) / "saved.tar")
            except SandboxError as error:
                print(error)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10)
"""


def test_a_false_answer_does_not_fill_edges_memory(world: World) -> None:
    """Only an ordinary user's sandbox may open the pipes to edge again."""
    run = run_as_ordinary_user(f"ANSWER = {FALSE_ANSWER!r}\n{SAVE}")
    assert not run.stderr, run.stderr
    assert "damaged" in run.stdout and run.stdout.splitlines()[-1] == "True"


def test_long_names_do_not_fill_edges_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of 4,000 bytes cost the sandbox little, and edge keeps each name."""
    monkeypatch.setattr("edge.terminal.archive._HEAD_BYTES", 1 << 20)

    def blocks() -> Iterator[bytes]:
        folder = "/".join(["d" * 200] * 19)
        for name in [".", *(f"./{'/'.join(['d' * 200] * depth)}" for depth in range(1, 20))]:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            yield info.tobuf(tarfile.GNU_FORMAT)
        for count in range(200_000):
            yield tarfile.TarInfo(f"./{folder}/{count}").tobuf(tarfile.GNU_FORMAT)

    data, source = bytearray(), blocks()

    def read(count: int) -> bytes:
        while len(data) < count and (more := next(source, b"")):
            data.extend(more)
        piece = bytes(data[:count])
        del data[:count]
        return piece

    with pytest.raises(SandboxError, match="too many files, or too long names"):
        for _ in read_entries(read, 1 << 30):
            pass


def test_files_without_content(world: World, tmp_path: Path) -> None:
    """Each takes about 1 KiB of the kernel, and the size of a file system in memory does not count it."""
    (tmp_path / "make.py").write_text(
        "import os\nfor n in range(10**6): os.close(os.open(f'/tmp/{n}', os.O_CREAT))\n"
    )
    limits = Limits(memory=48 << 20, disk=1 << 20, temporary=1 << 20, reserve=1)
    with sandboxed(world, limits, workdir=tmp_path) as shell:
        assert shell.sandbox is not None
        shell.terminal.send("python3 make.py\n")
        until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
        assert "MiB of memory" in str(shell.sandbox.trouble())


# Every other program of the machine, the crash handler and the pool of large pages are outside.
TAKES = """
import ctypes, mmap, os, resource, signal
def tries(action):
    try:
        return action() is not False
    except (OSError, ValueError):
        return False
core = resource.RLIMIT_CORE
tries(lambda: resource.setrlimit(core, (0, 0)))
tries(lambda: resource.prlimit(os.getpid(), core, (0, 0)))
ctypes.CDLL(None).syscall({setrlimit}, core, (ctypes.c_ulong * 2)())
done = dict(
    core=resource.getrlimit(core) != (1, 1),
    realtime=tries(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
    nice=tries(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)),
    large=ctypes.CDLL(None, use_errno=True).mmap(None, 2 << 20, 3, 0x40022, -1, 0) != -1 or ctypes.get_errno() != 1,
)
print("taken:", *(name for name, able in done.items() if able), "end")
""".replace("{setrlimit}", "164" if os.uname().machine == "aarch64" else "160")


def test_what_only_a_limit_stops(world: World, tmp_path: Path) -> None:
    """A user who may take the processors (rtprio, nice), as audio groups may; a crash handler; large pages."""
    (tmp_path / "takes.py").write_text(TAKES)
    free = subprocess.run([sys.executable, str(tmp_path / "takes.py")], capture_output=True, text=True)
    assert "core" in free.stdout and "large" in free.stdout  # without a sandbox
    before = {name: resource.getrlimit(name) for name in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE)}
    try:
        for name, value in ((resource.RLIMIT_RTPRIO, 50), (resource.RLIMIT_NICE, 40)):
            with contextlib.suppress(OSError, ValueError):  # not every root may; the limits are 0 then
                resource.setrlimit(name, (value, value))
        with sandboxed(world, Limits(disk=TEN, temporary=1 << 20, reserve=1), workdir=tmp_path) as shell:
            assert "taken: end" in shell.run("python3 takes.py\n")
    finally:
        for name, pair in before.items():
            resource.setrlimit(name, pair)


def test_the_trial_of_an_unknown_file_has_limits(tmp_path: Path) -> None:
    """Its memory, and the crash handler, which would read its memory outside."""
    script = tmp_path / "take.py"
    script.write_text(
        "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "try:\n    x = bytearray(6 << 30)\n    print('taken')\nexcept MemoryError:\n    print('refused')\n"
    )
    said = run_confined("cProfile", "-o/dev/null", [script], 60).output
    assert "(1, 1)" in said and "refused" in said and "taken" not in said
