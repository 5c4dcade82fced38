"""What this machine has: cores, memory, disk.

Imports the standard library only, so that it works where nothing else is installed. A number that the system does not
report is None, never a guess; only `physical_cores` always gives one.
"""

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MAX_THREADS = 512  # GGML_MAX_N_THREADS; more end the process


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, after the limits of the container and of this process."""

    total: int | None
    available: int | None


def physical_cores() -> int:
    """Physical cores that this process may use: at least 1.

    The two hyper-threads of a core count once: the second does not speed up llama.cpp's matrix products. A CPU
    affinity (taskset) and a container's CPU quota lower the number.
    """
    if sys.platform == "darwin":
        # Apple's chips have fast and slow cores. Level 0 is the fast ones; with slow ones added, the fast ones wait.
        cores = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    elif sys.platform == "linux":
        cores = _linux_cores()
    else:
        cores = os.cpu_count() or 1
    return max(1, cores)


def thread_counts() -> list[int]:
    """Numbers of threads that are worth a try, ascending: cores of the fastest kind, with slower ones, all, half.

    Laptops have fast and slow cores. With both kinds at work, the fast ones wait for the slow ones.
    """
    cores = physical_cores()
    found = {1, cores // 2, cores - 1, cores}
    if sys.platform == "darwin":
        found |= {_sysctl("hw.perflevel0.physicalcpu") or cores, _sysctl("hw.physicalcpu") or cores}
    elif sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        found.add(min(len(allowed), 2 * cores))  # hyper-threads; a container's quota may allow fewer
        speeds: dict[int, set[str]] = {}
        for cpu in allowed:
            place = f"/sys/devices/system/cpu/cpu{cpu}"
            speed = _read(f"{place}/cpufreq/cpuinfo_max_freq") or _read(f"{place}/cpu_capacity")
            core = _read(f"{place}/topology/thread_siblings_list").strip() or str(cpu)
            speeds.setdefault(int(speed.strip() or 0), set()).add(core)
        together = 0
        for _, kind in sorted(speeds.items(), reverse=True):
            together += len(kind)
            found.add(min(together, cores))
    return sorted(n for n in found if 1 <= n <= MAX_THREADS)


def memory() -> Memory:
    """Total memory, and how much a new process can get without swapping."""
    if sys.platform == "darwin":
        return Memory(_sysctl("hw.memsize"), _darwin_available())
    if sys.platform != "linux":
        return Memory(None, None)
    fields = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(limit_file).strip(), _read(used_file).strip()
        # Without a limit, version 2 says "max" and version 1 a number near 2**63.
        if limit.isdigit() and used.isdigit() and total is not None and int(limit) < total:
            total = int(limit)
            available = min(available or total, max(0, total - int(used)))
    left = address_space_left()
    if left is not None:
        available = left if available is None else min(available, left)
    return Memory(total, available)


def address_space_left() -> int | None:
    """Bytes that this process may still allocate under `ulimit -v`; None without such a limit.

    llama.cpp stops the process in some places if an allocation fails, so edge checks before.
    """
    if sys.platform != "linux":
        return None
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return max(0, most - int(pages[0]) * resource.getpagesize())


def peak_memory() -> int | None:
    """The largest main memory of this process so far, in bytes, mapped pages included (ru_maxrss)."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # other systems count in KiB


def forget_peak_memory() -> None:
    """Let `peak_memory` count from now on. Only Linux can do this; elsewhere nothing changes.

    First returns freed memory to the system, where the C library can (glibc): it would count as in use.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # "5" in proc(5)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_disk(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cpu_name() -> str:
    """The processor's full name, or its architecture if the system does not report a name."""
    if sys.platform == "darwin":
        name = _run("sysctl", "-n", "machdep.cpu.brand_string").strip()
    else:
        lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    return name or platform.processor() or platform.machine()


def _linux_cores() -> int:
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        # All hyper-threads of a core list the same siblings. Without a list, each CPU counts as a core.
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip()
        cores.add(siblings or str(cpu))
    count = len(cores)
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, -(-int(quota[0]) // int(quota[1])))
    return count


def _darwin_available() -> int | None:
    page_size, pages = 4096, 0
    for line in _run("vm_stat").splitlines():
        if "page size of" in line:
            page_size = int(line.split("page size of")[1].split()[0])
        name, _, value = line.partition(":")
        if name in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable"):
            pages += int(value.strip().rstrip("."))
    return pages * page_size or None


def _sysctl(name: str) -> int | None:
    value = _run("sysctl", "-n", name).strip()
    return int(value) if value.isdigit() else None


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
