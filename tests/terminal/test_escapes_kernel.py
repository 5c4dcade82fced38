"""Attempts to escape from the sandbox that need their own check from outside: processes, limits, the kernel.

.venv/bin/pytest tests/terminal/test_escapes_kernel.py
"""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from escapes import POSSIBLE, SMALL, UNPRIVILEGED, Shell, World, free, has, sandboxed, until, victim

from edge.errors import SandboxError
from edge.terminal.check import WORK
from edge.terminal.sandbox import Limits
from edge.terminal.tmux import SCREEN_BYTES, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="bubblewrap, tmux, bash, tar or awk is not installed"),
]
PYTHON = pytest.mark.skipif(not has("python3"), reason="there is no python3 in /usr/bin")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


@pytest.fixture(scope="module")
def box(world: World) -> Iterator[Shell]:
    """For attempts that do not change the shell."""
    with sandboxed(world) as shell:
        yield shell


@pytest.fixture(scope="module")
def outside(world: World) -> Iterator[Shell]:
    with free(world) as shell:
        yield shell


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def named(pids: list[int], name: str) -> list[int]:
    """The processes whose command line contains this."""
    found = []
    for pid in pids:
        try:
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def everything() -> list[int]:
    return [int(place) for place in os.listdir("/proc") if place.isdigit()]


# --- processes ---


def test_background_processes_end_with_the_session(world: World) -> None:
    mark = f"edge-mark-{os.urandom(6).hex()}"
    with sandboxed(world) as shell:
        for begin in ("", "setsid nohup ", "setsid setsid -f "):
            shell.run(
                f"({begin}sh -c 'trap : TERM HUP INT; while :; do sleep 1; done' {mark} &) &\n", "disown -a\n"
            )
        until(lambda: len(named(everything(), mark)) >= 3)  # the check finds them here
    assert named(everything(), mark) == []


def test_processes_outside_cannot_be_ended(world: World, outside: Shell) -> None:
    first = victim()
    try:
        outside.run(f"kill -9 {first.pid}\n")  # without a sandbox, one of the same user
        assert first.wait(20) == -9
    finally:
        first.kill()
    second = victim()
    try:
        with sandboxed(world) as shell:
            assert shell.sandbox is not None
            shell.terminal.send(f"kill -9 {second.pid}; pkill -9 sleep; killall -9 sleep\n", 0.2)
            shell.terminal.send(
                "kill -9 1; kill -9 -1; kill -9 2\n"
            )  # itself, and the process that answers edge
            until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
            with pytest.raises(SandboxError, match="has ended"):
                shell.sandbox.save(world.folder.parent / "edge-test-never.tar")
        assert second.poll() is None
    finally:
        second.kill()
        second.wait()


@PYTHON
def test_ptrace_of_process_1_and_of_others(world: World, box: Shell) -> None:
    trace = (
        "import ctypes, os, sys, time\nptrace = ctypes.CDLL(None).ptrace\n"
        "for pid in map(int, sys.argv[1:]): ptrace(0x4206, pid, None, None)\ntime.sleep(3)\n"
    )
    other = victim()
    try:  # without a sandbox
        held = subprocess.Popen([*UNPRIVILEGED, "/usr/bin/python3", "-c", trace, str(other.pid)])
        until(lambda: status(other.pid)["TracerPid"] == str(held.pid))
        held.kill()
        held.wait()
        box.run(f"python3 -c '{trace}' 1 2 {other.pid} & sleep 1\n")
        inside = named(box.inside(), "0x4206")
        assert inside  # it runs
        for pid in (other.pid, *box.inside()):
            assert status(pid)["TracerPid"] == "0"
        box.run("kill -9 %1; wait\n")
    finally:
        other.kill()
        other.wait()


@pytest.mark.skipif(not has("su"), reason="there is no su")
def test_setuid_programs_do_not_become_root(world: World, box: Shell, outside: Shell) -> None:
    outside.terminal.send("su -c id\n")
    until(lambda: any(status(pid)["Uid"].split()[1] == "0" for pid in named(everything(), "su\0-c\0id")))
    outside.terminal.send("C-c", 0.5)
    outside.run("\n")
    box.terminal.send("mount /x; su -c id\n")
    until(
        lambda: (
            named(box.inside(), "su\0-c\0id")
            or "Authentication" in box.terminal.screen()
            or "su:" in box.terminal.screen()
        )
    )
    real = status(box.pid)["Uid"].split()[0]
    assert real != "0"
    for pid in box.inside():
        assert set(status(pid)["Uid"].split()) == {real}
        assert int(status(pid)["CapEff"], 16) == 0
    box.terminal.send("C-c", 0.5)
    box.run("\n")


# --- the kernel's doors ---


@pytest.mark.parametrize(
    "command",
    [
        "unshare -Ur sleep 4",
        "unshare -rmpf sleep 4",
        "nsenter -U -t 1 sleep 4",
        "bwrap --dev-bind / / sleep 4",
    ],
)
def test_no_new_namespaces(command: str, world: World, box: Shell, outside: Shell) -> None:
    if not has(command.split()[0]):
        pytest.skip(f"needs {command.split()[0]}")
    mine = os.readlink("/proc/self/ns/user")
    if not command.startswith("nsenter"):  # nsenter does not leave this namespace
        outside.run(f"{command} & sleep 0.3\n")
        until(
            lambda: any(
                os.readlink(f"/proc/{pid}/ns/user") != mine for pid in named(everything(), "sleep\x004")
            ),
            what=outside.terminal.screen(),
        )
        outside.run("kill %1; wait\n")
    box.run(f"{command} & sleep 0.5\n")
    theirs = os.readlink(f"/proc/{box.pid}/ns/user")
    assert {os.readlink(f"/proc/{pid}/ns/user") for pid in box.inside()} == {theirs}
    assert {os.readlink(f"/proc/{pid}/ns/mnt") for pid in box.inside()} == {
        os.readlink(f"/proc/{box.pid}/ns/mnt")
    }
    box.run("kill %1; wait\n")


def test_mounts_stay_as_they_are(world: World, box: Shell) -> None:
    place = Path(f"/proc/{box.pid}/mountinfo")
    before = place.read_text()
    assert " /usr ro," in before  # what is compared is the list of mounts
    box.run(
        "for p in / /usr /etc /proc /dev; do mount -o remount,rw $p; mount -o remount,rw,bind $p; done;"
        " mount -t tmpfs x /tmp; mount --bind ~ /usr; umount -l /usr; umount /proc\n",
        "chroot ~ /bin/sh -c 'echo in'; pivot_root ~ ~\n",
        "touch /x /usr/x /usr/bin/x /etc/x /dev/x /proc/x /run/x /home/x /var /boot; rm -rf /usr /etc 2> /dev/null\n",
    )
    assert place.read_text() == before
    assert shutil.which("bash") and Path("/etc/passwd").exists()
    names = {path.name for path in Path(f"/proc/{box.pid}/root").iterdir()}
    assert names <= {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev", "proc", "run"} | {
        *("tmp", "home", WORK[1:])
    }
    assert not any(Path(place).exists() for place in ("/x", "/usr/x", "/usr/bin/x", "/etc/x"))


def test_proc_sys_and_core_pattern(world: World, box: Shell) -> None:
    places = [
        Path("/proc/sys", name)
        for name in (
            "kernel/core_pattern",
            "kernel/hostname",
            "vm/drop_caches",
            "fs/file-max",
        )
    ]
    before = [place.read_text() if place.name != "drop_caches" else "" for place in places]
    for place in (
        *places,
        "/proc/sysrq-trigger",
        "/proc/sys/user/max_user_namespaces",
        "/proc/1/oom_score_adj",
    ):
        box.run(f"echo h > {place}\n")
    assert [place.read_text() if place.name != "drop_caches" else "" for place in places] == before
    assert Path(f"/proc/{box.pid}/root/proc/sys/user/max_user_namespaces").exists()


def test_devices_and_sys(world: World, box: Shell) -> None:
    box.run(
        "mknod b b 8 0; mknod c c 1 1; for d in mem kmem port kmsg sda vda fuse kvm; do cat < /dev/$d; done\n"
    )
    root = Path(f"/proc/{box.pid}/root")
    names = {path.name for path in (root / "dev").iterdir()}
    assert (
        {"null", "zero"}
        <= names
        <= {
            *(
                "null",
                "zero",
                "full",
                "random",
                "urandom",
                "tty",
                "console",
                "shm",
                "pts",
                "ptmx",
                "fd",
                "core",
            ),
            *("stdin", "stdout", "stderr", "mqueue"),
        }
    )
    assert not (root / "sys").exists() and not (root / "var").exists()
    assert {path.name for path in (root / WORK[1:]).iterdir()} == {"file"}


@PYTHON
def test_keys_of_the_session_ring(world: World, tmp_path: Path) -> None:
    """A separate process with a key in its session ring starts a shell with and without the sandbox."""
    if sys.maxsize < 2**32 or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the numbers of the calls are not known here")
    numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    call = ctypes.CDLL(None).syscall
    if (
        call(numbers[1], 1, None) < 0
        or (key := call(numbers[0], b"user", b"edge-test", b"KEY-4711", 8, -3)) < 0
    ):
        pytest.skip("the kernel has no keys")
    call(numbers[1], 5, key, 0x3F3F0000)  # readable for its user and for processes with the ring
    read = (
        'python3 -c "import ctypes; b = ctypes.create_string_buffer(9);'
        f' ctypes.CDLL(None).syscall({numbers[1]}, 11, {key}, b, 8); print(b.value[::-1])"\n'
    )
    with free(world) as shell:
        assert "1174-YEK" in shell.run(read)
    with sandboxed(world) as shell:
        shown = shell.run(read)
        assert "b''" in shown and "1174-YEK" not in shown


@PYTHON
@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_ALG", "AF_PACKET", "AF_NETLINK"])
def test_sockets_outside_the_network_namespace(family: str, world: World, box: Shell) -> None:
    """Holds sockets open while the test looks at the process."""
    kind = "SOCK_SEQPACKET" if family == "AF_ALG" else "SOCK_STREAM" if family == "AF_VSOCK" else "SOCK_RAW"
    protocol = 9 if family == "AF_NETLINK" else 0  # 9: the kernel's audit
    code = (
        f"import socket, time; s = socket.socket(socket.{family}, socket.{kind}, {protocol}); time.sleep(9)"
    )

    def sockets(pids: list[int]) -> list[str]:
        links = []
        for pid in pids:
            try:
                links += [os.readlink(place) for place in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
        return [link for link in links if link.startswith("socket:")]

    free_one = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        until(lambda: free_one.poll() is not None or sockets([free_one.pid]))
        if free_one.poll() is not None:
            pytest.skip(f"no {family} here")
    finally:
        free_one.kill()
        free_one.wait()
    box.run(f"timeout 9 python3 -c '{code}' & sleep 0.7\n")
    assert sockets(box.inside()) == []
    box.run("kill %1; wait\n")


# --- limits ---


def test_a_fork_bomb(world: World) -> None:
    """At most 300 forks; the limit is 40."""
    seconds = f"600.{os.getpid()}"  # no other process sleeps so long
    with sandboxed(world) as shell:
        shell.terminal.send(f"bash -c 'for i in $(seq 300); do sleep {seconds} & done' 2> /dev/null\n")
        most = 0
        end = time.monotonic() + 60
        while time.monotonic() < end and most < SMALL.processes - 3:
            most = max(most, len(shell.inside()))
        assert SMALL.processes // 2 < most  # the bomb worked
        assert named(shell.inside(), f"sleep\0{seconds}\0")
        time.sleep(0.5)
        assert len(shell.inside()) <= SMALL.processes + 1  # and process 1, which is bubblewrap
        subprocess.run(["true"], check=True)
    assert named(everything(), f"sleep\0{seconds}\0") == []


def test_full_disks(world: World, tmp_path: Path) -> None:
    with sandboxed(world) as shell:
        assert shell.sandbox is not None
        for place in (WORK, "/tmp", "~", "/dev/shm"):
            shell.run(f"for i in 1 2 3; do head -c 32M /dev/zero > {place}/zeros$i; done 2> /dev/null\n")
        for place, size in (
            (WORK, SMALL.disk),
            *((p, SMALL.temporary) for p in ("tmp", "home/agent", "dev/shm")),
        ):
            state = os.statvfs(f"/proc/{shell.pid}/root/{place.lstrip(chr(47))}")
            assert state.f_blocks * state.f_frsize == size
            assert state.f_bavail == 0  # it was filled
        shell.sandbox.save(tmp_path / "full.tar")
        assert (tmp_path / "full.tar").stat().st_size < SMALL.disk + (1 << 20)
        shell.run(f"cd {WORK}; rm -f zeros*; truncate -s 20M hole1 hole2 hole3\n")
        with pytest.raises(SandboxError, match="larger than its limit"):  # a size without blocks
            shell.sandbox.save(tmp_path / "holes.tar")
        assert not (tmp_path / "holes.tar").exists()
        shell.run("rm -f hole*\n")
        shell.sandbox.save(tmp_path / "again.tar")


def test_huge_output(world: World, box: Shell) -> None:
    box.terminal.send("yes 'a line of output that is repeated' | head -c 30000000; echo over-$((1+1))\n")
    until(lambda: "over-2" in box.terminal.screen(), 60)
    assert len(box.terminal.output().encode()) < SCREEN_BYTES + 200
    server = box.terminal._server.pid
    assert int(status(server)["VmRSS"].split()[0]) < 64 << 10  # kB


@PYTHON
@pytest.mark.parametrize(
    "take",
    [
        "python3 -c \"x = b'x' * (400 << 20); input()\"",
        "for i in 1 2 3 4 5 6 7 8; do python3 -c \"x = b'x' * (60 << 20); input()\" < <(sleep 60) & done; wait",
    ],
    ids=["by one process", "by many"],
)
def test_memory(take: str, world: World) -> None:
    """The limit is 256 MiB: one process gets no more, and edge ends the sandbox if all together use more."""
    with sandboxed(world) as shell:
        assert shell.sandbox is not None
        shell.terminal.send(take + "\n")
        if "for" in take:
            until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
            assert "MiB of memory" in str(shell.sandbox.trouble())
            until(lambda: not shell.inside())
        else:
            until(lambda: "MemoryError" in shell.terminal.screen())
            assert shell.sandbox.trouble() is None


def test_the_machine_keeps_some_memory(world: World) -> None:
    with sandboxed(world, Limits(disk=1 << 20, temporary=1 << 20, reserve=1 << 50)) as shell:
        until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
        assert shell.sandbox is not None and "this machine had only" in str(shell.sandbox.trouble())


@PYTHON
def test_memory_that_belongs_to_no_process(world: World, box: Shell) -> None:
    code = "import os, time; fd = os.memfd_create(chr(120)); os.write(fd, bytes(1 << 20)); time.sleep(9)"

    def held(pids: list[int]) -> bool:
        for pid in pids:
            try:
                if any("memfd:" in os.readlink(place) for place in Path(f"/proc/{pid}/fd").iterdir()):
                    return True
            except OSError:
                continue
        return False

    free_one = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: held([free_one.pid]))
    free_one.kill()
    free_one.wait()
    box.run(f"timeout 9 python3 -c '{code}' & sleep 0.7\n")
    assert not held(box.inside())
    box.run("kill %1; wait\n")


# --- the terminal ---


def test_escape_sequences_reach_nothing_around_the_pane(world: World, box: Shell) -> None:
    """A clipboard (OSC 52), a pass-through to the terminal around tmux, a title, tmux's own window name."""
    clipboard = r"\033]52;c;ZWRnZQ==\a"
    script = rf"printf '{clipboard}\033Ptmux;\033{clipboard}\033\\\033]2;title\a\033kname\033\\'" + "\n"

    def buffers(terminal: Terminal) -> str:
        return terminal._tmux("list-buffers")

    with free(world) as shell:  # the check finds it where tmux allows it
        shell.terminal._tmux("set", "-s", "set-clipboard", "on")
        shell.run(script)
        until(lambda: buffers(shell.terminal))
    box.run(script)
    assert buffers(box.terminal) == ""
    assert box.terminal._tmux("display-message", "-p", "-t", "edge", "#{window_name}").strip() != "name"


def test_tmux_itself(world: World, box: Shell) -> None:
    """tmux's prefix and commands, typed and through its socket."""
    run = f"run-shell 'touch {world.folder}/tmux'"
    subprocess.run(
        ["tmux", "-S", str(box.terminal.folder / "tmux"), "run-shell", f"touch {world.folder}/tmux"],
        check=True,
    )
    until(lambda: (world.folder / "tmux").exists())  # this is possible through its socket
    (world.folder / "tmux").unlink()
    box.run("C-b", f":{run}\n", "C-c", f"tmux -S {box.terminal.folder}/tmux {run}\n", f"tmux new -d {run}\n")
    time.sleep(0.3)
    assert not (world.folder / "tmux").exists()
    assert box.terminal.screen()


def test_the_process_that_answers_edge(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that answers edge stops, then its pipe has other data: an error in time, and no file."""
    monkeypatch.setattr("edge.terminal.sandbox._PATIENCE", 2.0)
    with sandboxed(world) as shell:
        assert shell.sandbox is not None
        kept = tmp_path / "kept.tar"
        answering = next(pid for pid in shell.inside() if status(pid)["NSpid"].split()[-1] not in ("1", "2"))
        inside = status(answering)["NSpid"].split()[-1]
        shell.run(f"kill -STOP {inside}\n")
        with pytest.raises(SandboxError, match="cannot be saved: it does not answer in time"):
            shell.sandbox.save(kept)
        shell.run("for f in /proc/2/fd/4 /proc/1/fd/2; do timeout 3 yes edge > $f & done; sleep 0.2\n")
        shell.run(f"kill -CONT {inside}\n")
        until(lambda: not named(shell.inside(), "yes"))
        monkeypatch.setattr(
            "edge.terminal.sandbox._PATIENCE", 60.0
        )  # a busy machine needs time for a right answer
        shell.sandbox.save(kept)  # skips the rest of the first answer and other data
        assert not shell.sandbox.compare(kept).changes
        monkeypatch.setattr("edge.terminal.sandbox._PATIENCE", 2.0)
        shell.run(f"kill -9 {inside}\n")
        with pytest.raises(SandboxError, match="cannot be saved"):
            shell.sandbox.save(tmp_path / "never.tar")
        assert [path.name for path in tmp_path.iterdir()] == ["kept.tar"]


# --- what comes back into the work folder ---


def test_dot_files_links_and_the_sessions_own_files(world: World, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    (workdir / ".git" / "hooks").mkdir(parents=True)
    (workdir / "sub").mkdir()
    (workdir / "allow.toml").write_text("# nothing is allowed\n")
    (tmp_path / "canary").write_text("whole\n")
    with sandboxed(world, workdir=workdir, protected=(workdir / "allow.toml",)) as shell:
        assert shell.sandbox is not None
        shell.run(
            "echo evil | tee .envrc .bashrc .git/config .git/hooks/pre-commit allow.toml CLAUDE.md sub/.npmrc\n",
            "chmod +x .git/hooks/*; ln -s ../canary out; ln -s / root; ln -s sub/../.. up; ln /etc/passwd hard\n",
            "rm -rf sub; ln -s .. sub; echo broken > sub/canary; mkfifo fifo; cp /bin/true suid; chmod u+s suid\n",
            "echo fine > fine; ln -s fine soft\n",
        )
        shell.sandbox.save(tmp_path / "kept.tar")
        changes = shell.sandbox.compare(tmp_path / "kept.tar").apply()
    assert changes.new == ["fine", "soft", "suid"]  # the control: edge brings these back
    assert {path for path, _ in changes.withheld} >= {
        *(".envrc", ".bashrc", ".git", "allow.toml", "CLAUDE.md", "out", "root", "up", "fifo", "sub")
    }
    assert {path.name for path in workdir.iterdir()} == {".git", "sub", "allow.toml", "fine", "soft", "suid"}
    assert not (workdir / "suid").stat().st_mode & 0o7000
    assert list((workdir / ".git").rglob("*")) == [workdir / ".git" / "hooks"]
    assert (workdir / "sub").is_dir() and not (workdir / "sub").is_symlink()
    assert (workdir / "allow.toml").read_text() == "# nothing is allowed\n"
    assert (tmp_path / "canary").read_text() == "whole\n"


def test_hooks_in_the_environment_do_not_run(world: World, tmp_path: Path) -> None:
    """BASH_ENV, ENV, PROMPT_COMMAND and an exported function in the terminal's environment."""
    (tmp_path / "hook").write_text("echo hooked-$((1+1))\n")
    poison = {name: f"echo hooked-$((1+1)); . {tmp_path}/hook" for name in ("PROMPT_COMMAND", "PS1")}
    poison |= {
        "BASH_ENV": f"{tmp_path}/hook",
        "ENV": f"{tmp_path}/hook",
        "BASH_FUNC_ls%%": "() { echo hooked-$((1+1)); }",
    }
    with Terminal.start(cwd=tmp_path, env=world.environment() | poison) as terminal:
        until(lambda: "hooked-2" in terminal.screen())
    with sandboxed(world, extra=poison) as shell:
        assert "hooked-2" not in shell.run("ls; bash -c true; sh -c true\n")
