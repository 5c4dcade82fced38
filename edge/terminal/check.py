"""Checks from outside, in /proc, that a sandbox is in force, and how much memory it uses. Linux only."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

WORK = "/app"  # as in Terminal-Bench
HOME = "/home/agent"
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


def fault(pid: int, user: int, limits: Limits) -> str | None:
    """The first protection that is not in force in a sandbox; None if all are.

    `pid`: the sandbox's process 1, as the outside numbers it. `user`: the user who must own it.
    """
    try:
        children = _children(pid)
        if len(children) != 1:
            return "another program runs in it"
        for process in (pid, children[0]):
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
        return _mount_fault(pid, limits) or _limit_fault(children[0], limits)
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
        kind = place.stat().st_mode
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
        elif "ro" not in flags and place not in _DEVICES and kind not in ("proc", "devpts"):
            return f"{place} can be written"
    return f"{', '.join(sizes)} cannot be written" if sizes else None


def _limit_fault(pid: int, limits: Limits) -> str | None:
    wanted = {
        "Max processes": limits.processes,
        "Max data size": limits.memory // 1024 * 1024,
        "Max file size": max(limits.disk, limits.temporary) // 1024 * 1024,
        "Max core file size": 0,
        "Max open files": 1024,
        "Max msgqueue size": 0,
    }
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        name = line[:26].strip()
        if name in wanted and line[26:].split()[:2] != [str(wanted.pop(name))] * 2:
            return f"the limit {name!r} is not in force"
    return f"{', '.join(wanted)} cannot be read" if wanted else None


def memory_in_use(pid: int, limit: int) -> int:
    """Bytes that a process and its descendants use: anonymous and shared memory, without mapped files.

    First counts shared memory once for each process. Only if that is above `limit` does it divide shared memory among
    the processes, which takes longer.
    """
    processes = _family(pid)
    used = sum(_sum(f"/proc/{process}/status", ("RssAnon", "RssShmem", "VmPTE")) for process in processes)
    if used > limit:
        shares = [
            _sum(f"/proc/{process}/smaps_rollup", ("Pss_Anon", "Pss_Shmem"))
            + _sum(f"/proc/{process}/status", ("VmPTE",))
            for process in processes
        ]
        used = min(used, sum(shares)) if all(shares) else used
    return used


def memory_of_machine() -> int:
    """Bytes of memory that this machine has left."""
    return _sum("/proc/meminfo", ("MemAvailable",))


def _family(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        try:
            family += _children(member)
        except OSError:  # it has just ended
            continue
    return family


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _sum(place: str, names: tuple[str, ...]) -> int:
    """The sum of these lines of a file in /proc, given in kB, as bytes; 0 if the process has ended."""
    total = 0
    try:
        for line in Path(place).read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in names:
                total += int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return total
