"""Attempts on memory, on limits of the user outside, on the terminal outside, and on rare system calls.

.venv/bin/pytest tests/terminal/test_wall.py
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from escapes import POSSIBLE, UNPRIVILEGED, Shell, World, as_ordinary_user, has, sandboxed, until

from edge.terminal.cgroup import make_cgroup, remove_cgroup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not POSSIBLE or not has("python3"), reason="bubblewrap, tmux or python3 is not installed"
    ),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


@pytest.fixture(scope="module")
def box(world: World) -> Iterator[Shell]:
    with sandboxed(world) as shell:
        yield shell


SHARED = """
import ctypes, mmap, time
m = mmap.mmap(-1, 400 << 20)
for at in range(0, len(m), 1 << 20): m[at : at + (1 << 20)] = b"x" * (1 << 20)
{then}
time.sleep(60)
"""
UNMAP = """
c = ctypes.CDLL(None)
c.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
first = ctypes.addressof(ctypes.c_char.from_buffer(m))
assert c.munmap(first + (1 << 20), len(m) - (1 << 20)) == 0
"""


@pytest.mark.parametrize("then", ["m.madvise(mmap.MADV_DONTNEED)", UNMAP], ids=["dropped", "unmapped"])
def test_shared_memory_that_is_in_no_page_table(then: str, world: World, tmp_path: Path) -> None:
    """The limit is 256 MiB. The resident size of the process is small."""
    (tmp_path / "take.py").write_text(SHARED.replace("{then}", then))
    with sandboxed(world, workdir=tmp_path) as shell:
        assert shell.sandbox is not None
        shell.terminal.send("python3 take.py\n")
        until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
        assert "memory" in str(shell.sandbox.trouble())
        until(lambda: not shell.inside())


def test_shared_memory_below_the_limit_is_no_trouble(world: World, tmp_path: Path) -> None:
    text = SHARED.replace("400 <<", "150 <<").replace(
        "time.sleep(60)", "time.sleep(1); print('kept-' + str(2))"
    )
    (tmp_path / "take.py").write_text(text.replace("{then}", "m.madvise(mmap.MADV_DONTNEED)"))
    with sandboxed(world, workdir=tmp_path) as shell:
        assert shell.sandbox is not None
        shell.terminal.send("python3 take.py & python3 -c 'import time; time.sleep(2)' & wait\n")
        until(lambda: "kept-2" in shell.terminal.screen())
        assert shell.sandbox.trouble() is None


def test_a_cgroup_counts_where_one_can_be_made(world: World) -> None:
    place = make_cgroup(1 << 30, 100)
    if place is None:
        lines = Path("/proc/cgroups").read_text().splitlines()
        number = next((line.split()[1] for line in lines if line.startswith("memory")), None)
        why = "this user may make no cgroup of version 2 with a memory controller"
        pytest.skip(f"{why}: that belongs to version 1 here" if number not in (None, "0") else why)
    remove_cgroup(place)
    assert not place.exists()
    with sandboxed(world) as shell:
        assert shell.sandbox is not None
        cgroup = shell.sandbox._cgroup
        assert cgroup is not None and int((cgroup / "memory.current").read_text()) > 0
        shell.terminal.send(
            "for i in 1 2 3 4 5 6; do python3 -c \"x = b'x' * (60 << 20); input()\" < <(sleep 60) & done\n"
        )
        until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
    assert not cgroup.exists()


def test_linux_ends_the_sandbox_first(world: World, box: Shell) -> None:
    def scores() -> set[str]:
        return {Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in box.inside()}

    assert scores() == {"1000"}
    box.run("sleep 20 & for p in /proc/[0-9]*; do echo 0 > $p/oom_score_adj; done 2> /dev/null\n")
    until(lambda: scores() == {"1000"})
    box.run("kill %1; wait\n")


CALLS = """
import ctypes, fcntl, mmap, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"
def call(x86, on_arm, *words):
    return libc.syscall(on_arm if arm else x86, *words)
def tries(action):
    try:
        action()
    except (OSError, AttributeError):
        return False
    return True
done = [
    name
    for name, able in {
        "msgget": call(68, 186, 0, 0o1600) >= 0,
        "semget": call(64, 190, 0, 1, 0o1600) >= 0,
        "shmget": call(29, 194, 0, 4096, 0o1600) >= 0,
        "mq_open": call(240, 180, b"edge", 0o102, 0o600, None) >= 0,
        "inotify": call(294, 26, 0) >= 0,
        "io_setup": call(206, 0, 1, ctypes.byref(ctypes.c_ulong())) >= 0,
        "mbind": call(237, 235, 0, 0, 0, None, 0, 0) >= 0,
        "personality": call(135, 92, 0x0400000) >= 0,
        "unknown": call(600, 600) >= 0,
        "sctp": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)),
        "mptcp": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)),
        "sequenced": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET)),
        "discipline": tries(lambda: fcntl.ioctl(0, 0x5423, struct.pack("i", 0))),
        "exclusive": tries(lambda: fcntl.ioctl(0, 0x540C)),
    }.items()
    if able
]
print("calls:", *done, "end")
"""


def test_rare_system_calls(world: World, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    free = subprocess.run([sys.executable, str(tmp_path / "calls.py")], capture_output=True, text=True)
    assert "inotify" in free.stdout and "personality" in free.stdout  # without a sandbox
    with sandboxed(world, workdir=tmp_path) as shell:
        assert "calls: end" in shell.run("python3 calls.py\n")


def test_what_counts_for_the_user_outside_is_small(box: Shell) -> None:
    for pid in box.inside()[1:]:
        limits = Path(f"/proc/{pid}/limits").read_text()
        for name, most in (
            ("Max pending signals", "1024"),
            ("Max open files", "768"),
            ("Max msgqueue size", "0"),
        ):
            line = next(line for line in limits.splitlines() if line.startswith(name))
            assert line[26:].split()[:2] == [most, most] or pid == box.pid


def test_the_path_of_the_folder_outside_does_not_show(world: World, box: Shell, tmp_path: Path) -> None:
    assert box.sandbox is not None
    names = [box.sandbox._folder.name, box.terminal.folder.name, tempfile.gettempdir() + "/edge"]
    shown = box.run(
        "ls -l /proc/[0-9]*/fd/ | tee seen; cat /proc/[0-9]*/{mountinfo,maps,cmdline,environ,mounts} >> seen\n"
    )
    seen = (Path(f"/proc/{box.pid}/root/app/seen")).read_text(errors="replace")
    assert "pipe:[" in seen and "/usr/lib" in seen
    assert not [name for name in names if name in seen or name in shown]


# An ordinary user owns the terminal outside, as the sandbox's programs do.
SCRIPT = """
import os, stat, tempfile, time
from pathlib import Path
from edge.terminal.sandbox import Limits, Sandbox
from edge.terminal.tmux import Terminal
def mode(terminal):
    return stat.S_IMODE(os.fstat(terminal).st_mode)
for command in ("chmod 666 /dev/console", "chmod 666 /proc/2/fd/0", "chmod 000 /proc/1/fd/0", "chmod 666 /proc/2/fd/*"):
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "work").mkdir()
        limits = Limits(disk=4 << 20, temporary=1 << 20, reserve=1)
        with Sandbox.prepare(Path(place) / "work", limits) as sandbox:
            with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready) as terminal:
                name = terminal._tmux("display-message", "-p", "-t", "edge", "#{pane_tty}").strip()
                tty = os.open(name, os.O_PATH)
                before = mode(tty)
                terminal.send("while :; do " + command + "; done\\n", 0.5)
                end = time.monotonic() + (60 if "666" in command else 1)  # only 666 is trouble
                while not sandbox.trouble() and time.monotonic() < end:
                    time.sleep(0.05)
                trouble = sandbox.trouble() or ""
                time.sleep(0.3)
                changed = "sandbox" if "to other users" in trouble else trouble
                print(command, mode(tty) == before or "666" not in command, changed)
"""


def test_the_modes_of_the_terminal_outside(world: World) -> None:
    with as_ordinary_user() as (python, place):
        run = subprocess.run(
            [*UNPRIVILEGED, "env", *python, SCRIPT],
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": place,
                "PYTHONPATH": place,
                "LANG": "C.UTF-8",
            },
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert not run.stderr, run.stderr
    assert run.stdout.splitlines() == [
        "chmod 666 /dev/console True sandbox",
        "chmod 666 /proc/2/fd/0 True sandbox",
        "chmod 000 /proc/1/fd/0 True ",
        "chmod 666 /proc/2/fd/* True sandbox",
    ]
