"""What this machine has: cores, memory, disk, the devices that llama.cpp finds. Standard library only, so that it
answers even where nothing else installs.

A number that the system does not tell is None, never a guess, except `physical_cores`, which always answers.
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
    """Main memory in bytes, already lowered to the limits of the container and of the process that we are."""

    total: int | None
    available: int | None


def physical_cores() -> int:
    """Physical cores that this process may use: at least 1.

    Two hyper-threads of one core count once: llama.cpp's matrix products gain nothing from the second.
    A CPU affinity (taskset) and a container's CPU quota lower the number.
    """
    if sys.platform == "darwin":
        # Apple's chips mix fast and slow cores; level 0 holds the fast ones, and slow ones make the fast ones
        # wait.
        cores = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    elif sys.platform == "linux":
        cores = _linux_cores()
    else:
        cores = os.cpu_count() or 1
    return max(1, cores)


def memory() -> Memory:
    """Total memory, and what a new process can get without swapping."""
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
    """How much this process may still allocate where `ulimit -v` limits it, in bytes; None where nothing does.

    llama.cpp ends the process where it is refused memory in some places: this tells before.
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
    """The most main memory that this process has had at a time, in bytes, mapped pages included (ru_maxrss)."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes elsewhere


def forget_peak_memory() -> None:
    """Let `peak_memory` count from now on, where the system can: on Linux. Elsewhere it goes on as it was.

    What was freed is given back first, where the C library can (glibc): it would count as in use.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # "5" in proc(5)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or would hold it once it exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cpu_name() -> str:
    """The processor's name as its maker writes it, else its architecture."""
    if sys.platform == "darwin":
        name = _run("sysctl", "-n", "machdep.cpu.brand_string").strip()
    else:
        lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    return name or platform.processor() or platform.machine()


def _linux_cores() -> int:
    cpus = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    cores = set()
    for cpu in cpus:
        # All hyper-threads of a core list the same siblings; a system that does not tell has one core per
        # CPU.
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
