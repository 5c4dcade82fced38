"""Checks from outside, in /proc, that a sandbox is in force. Linux only."""

import contextlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from edge.system.confined import core_limit

WORK = "/app"  # as in Terminal-Bench
HOME = "/home/agent"
BESIDE = f"{HOME}/.beside"  # the files of a sandbox besides its work folder
_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts")
_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "console")}


@dataclass(frozen=True)
class Limits:
    """Limits for all processes in the sandbox together, in bytes and counts."""

    memory: int = 2 << 30
    disk: int = 1 << 30
    """Size of the work folder, which is in memory."""
    temporary: int = 256 << 20
    """Size of /tmp, of the home folder and of /dev/shm, each."""
    processes: int = 128
    reserve: int = 256 << 20
    """The machine's free memory below which edge ends the sandbox."""


@dataclass
class TerminalMode:
    """The permissions of the terminal outside. The sandbox's programs own it as this user does, and can change them."""

    _descriptor: int
    _mode: int

    @classmethod
    def of(cls, pid: int) -> "TerminalMode":
        """The permissions of the terminal of the sandbox's process 1, as they are now. Raises OSError."""
        if sys.platform != "linux":
            raise OSError("there is no /proc")
        descriptor = os.open(f"/proc/{pid}/fd/0", os.O_PATH | os.O_CLOEXEC)
        return cls(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode))

    def fault(self) -> str | None:
        """Undo a change. Returns why the sandbox must end: others could read or write the terminal."""
        now = stat.S_IMODE(os.fstat(self._descriptor).st_mode)
        if now == self._mode:
            return None
        with contextlib.suppress(OSError):
            os.chmod(f"/proc/self/fd/{self._descriptor}", self._mode)
        if now & ~self._mode & 0o077:
            return f"a program opened the terminal outside to other users (mode {now:o}); edge set it back"
        return None

    def close(self) -> None:
        os.close(self._descriptor)


def fault(pid: int, user: int, limits: Limits) -> str | None:
    """The first protection that is not in force in a sandbox; None if all are.

    `pid`: the sandbox's process 1, as the outside numbers it. `user`: the user who must own it.
    """
    try:
        inside = children(pid)
        if len(inside) != 1:
            return "another program runs in it"
        for process in (pid, inside[0]):
            if wrong := _process_fault(process, user):
                return wrong
        if _status(pid)["NSpid"].split()[-1] != "1":
            return "it shares process numbers with this system"
        for name in _NAMESPACES:
            if os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino:
                return f"it shares the {name} namespace"
        devices = Path(f"/proc/{pid}/net/dev").read_text().split("\n")[2:]
        if [line.partition(":")[0].strip() for line in devices if line.strip()] != ["lo"]:
            return "there is a network"
        return _mount_fault(pid, limits) or _limit_fault(inside[0], limits)
    except (OSError, ValueError, KeyError, IndexError) as error:
        return f"it cannot be checked ({error})"


def _process_fault(pid: int, user: int) -> str | None:
    state = _status(pid)
    if user == 0 or set(state["Uid"].split()) != {str(user)}:
        return "it runs as the wrong user"
    if any(int(state[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
        return "it has capabilities"
    if state["NoNewPrivs"] != "1":
        return "setuid programs work in it"
    if state["Seccomp"] != "2":
        return "its filter of system calls is not in force"
    for place in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kind = place.stat().st_mode
        except FileNotFoundError:  # closed since it was listed
            continue
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISSOCK(kind):
            return f"it has a file of this system open ({os.readlink(place)})"
    return None


def _mount_fault(pid: int, limits: Limits) -> str | None:
    sizes = {
        WORK: limits.disk,
        HOME: limits.temporary,
        "/tmp": limits.temporary,
        "/dev/shm": limits.temporary,
    }
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        front, _, back = line.partition(" - ")
        place, options = front.split()[4:6]
        kind, _, whole = back.split(" ", 2)
        flags = options.split(",")
        if "nosuid" not in flags:
            return f"{place} is not mounted nosuid"
        if place in sizes:
            if kind != "tmpfs" or f"size={-(-sizes.pop(place) // 4096) * 4}k" not in whole.split(","):
                return f"{place} has another size"
        elif "ro" not in flags and place not in _DEVICES and kind != "devpts":
            return f"{place} can be written"
    return f"{', '.join(sizes)} cannot be written" if sizes else None


def _limit_fault(pid: int, limits: Limits) -> str | None:
    wanted = {
        "Max processes": limits.processes,
        "Max data size": limits.memory // 1024 * 1024,
        "Max file size": max(limits.disk, limits.temporary) // 1024 * 1024,
        "Max core file size": core_limit(),  # of 1 byte: no crash handler of the system runs
        "Max nice priority": 0,  # some users may take the processors from all others
        "Max realtime priority": 0,
        # What the sandbox holds of the next three counts for the user outside too.
        "Max open files": 768,  # as many descriptors can be on their way through sockets
        "Max pending signals": 1024,
        "Max locked memory": 1024 << 10,
        "Max msgqueue size": 0,
    }
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        name = line[:26].strip()
        if name in wanted and line[26:].split()[:2] != [str(wanted.pop(name))] * 2:
            return f"the limit {name!r} is not in force"
    return f"{', '.join(wanted)} cannot be read" if wanted else None


def children(pid: int) -> list[int]:
    """The child processes of a process. Raises OSError."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
