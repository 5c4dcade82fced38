"""A cgroup (version 2) for the sandbox, where this user may make one: it counts and limits memory exactly. Linux only.

systemd delegates a part of the tree to each user, and root may use all of it. Elsewhere (version 1, containers, logins
without a user service) there is none, and edge counts the memory itself (edge/terminal/memory.py).
"""

import contextlib
import os
import secrets
import time
from pathlib import Path

_PATIENCE = 2.0  # seconds for the processes of a cgroup to disappear


def make_cgroup(memory: int, processes: int) -> Path | None:
    """A cgroup beside this process's, with limits of memory in bytes and of processes; None if there can be none."""
    try:
        parent = _own().parent
        if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
            return None
        place = parent / f"edge-sandbox-{secrets.token_hex(8)}"
        place.mkdir()
    except (OSError, ValueError):
        return None
    try:
        for name, value in (("memory.max", memory), ("memory.oom.group", 1)):
            (place / name).write_text(f"{value}\n")
        for name, value in (("memory.swap.max", 0), ("pids.max", processes)):  # not in every kernel and tree
            with contextlib.suppress(OSError):
                (place / name).write_text(f"{value}\n")
    except OSError:
        remove_cgroup(place)
        return None
    return place


def is_in(pid: int, cgroup: Path) -> bool:
    """Whether a process is in this cgroup. Raises OSError if there is no such process."""
    return any(
        line.endswith(f"/{cgroup.name}") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    )


def used(cgroup: Path) -> int:
    """Bytes of a cgroup that no file backs: anonymous, shared, swap, the kernel's. Raises OSError, ValueError."""
    state = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    kernel = state.get("kernel") or sum(
        int(state.get(name, 0)) for name in ("kernel_stack", "pagetables", "slab")
    )
    swap = cgroup / "memory.swap.current"
    return (
        int(state["anon"])
        + int(state["shmem"])
        + int(kernel)
        + (int(swap.read_text()) if swap.exists() else 0)
    )


def ran_out(cgroup: Path) -> bool:
    """Whether the kernel ended processes of a cgroup because its memory was used up."""
    try:
        events = dict(line.split() for line in (cgroup / "memory.events").read_text().splitlines())
    except (OSError, ValueError):
        return False
    return int(events.get("oom_kill", 0)) > 0


def remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup whose processes have ended. If one is left, the cgroup stays."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _own() -> Path:
    """This process's cgroup as a folder. Raises OSError, ValueError if there is no cgroup of version 2."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next(line[3:] for line in [*lines, "0::"] if line.startswith("0::"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        front, _, back = line.partition(" - ")
        root, place = front.split()[3:5]
        if back.startswith("cgroup2 ") and own.startswith("/") and own != root and own.startswith(root):
            return Path(place, os.path.relpath(own, root))
    raise ValueError("no cgroup of version 2")
