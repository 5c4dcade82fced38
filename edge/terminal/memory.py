"""How much memory the sandbox uses, seen from outside, in /proc or in its cgroup. Linux only."""

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.terminal.cgroup import used
from edge.terminal.check import HOME, WORK, children

THIS_MACHINE = "this machine"
"""The beginning of the reason why a sandbox was ended because the machine had no memory left."""
_NAME = 1024  # bytes of the kernel for a file in memory: its inode, its name
_FREE_NAMES = 10_000  # files of each file system that do not count


@dataclass(frozen=True)
class Meter:
    """Measures the memory of a sandbox.

    `pid`: its process 1. `cgroup`: its own, if it has one. `before`: `shared_of_machine` less the sandbox's
    `file_systems` when it started.
    """

    pid: int
    cgroup: Path | None = None
    before: int = 0

    def in_use(self, limit: int) -> int:
        """Bytes that the processes use: anonymous, shared and in swap, without mapped files and file systems in memory.

        More than `limit` is exact; less can be less than what is used by what other processes share.
        """
        if self.cgroup is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return used(self.cgroup) - file_systems(self.pid)
        processes = family(self.pid)
        in_tables = memory_in_use(self.pid, limit, processes) + _of_names(self.pid)
        # Shared memory that a process has dropped from its page table (MADV_DONTNEED) or that is in swap is in no count
        # of the processes. It exists while a process maps a part of it. Reading all maps takes long, so first compare
        # the sizes of the mappings that are not private: there cannot be more.
        if in_tables + sum(map(_not_private, processes)) <= limit:
            return in_tables
        mapped = _shared_mappings(processes)
        if not mapped:
            return in_tables
        unmapped = shared_of_machine() - self.before - file_systems(self.pid)
        own = _of_names(self.pid) + sum(
            _sum(f"/proc/{process}/status", ("RssAnon", "VmSwap", "VmPTE")) for process in processes
        )
        return max(in_tables, own + max(sum(mapped.values()), unmapped))

    def end_first(self) -> None:
        """Let Linux end the sandbox's processes before others if memory runs out. They can undo it, so repeat it."""
        for process in family(self.pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/oom_score_adj").write_text("1000")


def memory_in_use(pid: int, limit: int, processes: Sequence[int] = ()) -> int:
    """Bytes that a process and its descendants use: anonymous, shared and swapped memory, without mapped files.

    First counts shared memory once for each process. Only if that is above `limit` does it divide shared memory among
    the processes, which takes longer. `processes`: these, if they are known.
    """
    processes = processes or family(pid)
    names = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")
    total = sum(_sum(f"/proc/{process}/status", names) for process in processes)
    if total > limit:
        shares = [
            _sum(f"/proc/{process}/smaps_rollup", ("Pss_Anon", "Pss_Shmem", "SwapPss"))
            + _sum(f"/proc/{process}/status", ("VmPTE",))
            for process in processes
        ]
        total = min(total, sum(shares)) if all(shares) else total
    return total


def memory_of_machine() -> int:
    """Bytes of memory that this machine has left."""
    return _sum("/proc/meminfo", ("MemAvailable",))


def shared_of_machine() -> int:
    """Bytes of shared memory and of swap that this machine uses, file systems in memory included."""
    swap = _sum("/proc/meminfo", ("SwapTotal",)) - _sum("/proc/meminfo", ("SwapFree",))
    return _sum("/proc/meminfo", ("Shmem",)) + swap


def _not_private(process: int) -> int:
    """Bytes of a process's mappings without those that are private and can be written."""
    status = f"/proc/{process}/status"
    return max(0, _sum(status, ("VmSize",)) - _sum(status, ("VmData", "VmStk")))


def _shared_mappings(processes: Sequence[int]) -> dict[tuple[str, str], int]:
    """Bytes of each anonymous shared memory that a process maps, by device and inode: up to the last mapped byte."""
    found: dict[tuple[str, str], int] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/maps").read_text(errors="replace").splitlines():
                if line.endswith("/dev/zero (deleted)"):
                    place, _, offset, device, inode = line.split()[:5]
                    first, last = (int(end, 16) for end in place.split("-"))
                    key = (device, inode)
                    found[key] = max(found.get(key, 0), int(offset, 16) + last - first)
    return found


def file_systems(pid: int) -> int:
    """Bytes in the sandbox's file systems, which are in memory and have their own limits."""
    total = 0
    for place in (WORK, HOME, "/tmp", "/dev/shm"):
        with contextlib.suppress(OSError):
            total += shutil.disk_usage(f"/proc/{pid}/root{place}").used
    return total


def _of_names(pid: int) -> int:
    """Bytes of the kernel for the files and folders in the sandbox's file systems: their sizes do not count them."""
    total = 0
    if sys.platform == "win32":
        return total
    for place in (WORK, HOME, "/tmp", "/dev/shm"):
        with contextlib.suppress(OSError):
            state = os.statvfs(f"/proc/{pid}/root{place}")
            total += max(0, state.f_files - state.f_ffree - _FREE_NAMES) * _NAME
    return total


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    members = [pid]
    for member in members:
        try:
            members += children(member)
        except OSError:  # it has just ended
            continue
    return members


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
