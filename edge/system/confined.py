"""A module of edge as a child process that reads one untrusted file, and can reach nothing else.

`run_confined` needs Linux and bubblewrap: no network, no environment, no processes of this system, and no files except
programs, this Python, its packages and the file, all read-only. `run_plain` is for other systems: only the environment
is empty. Both children are the first that Linux ends if memory runs out.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge.errors import SandboxError
from edge.system.seccomp import seccomp_filter

PATH = "/usr/local/bin:/usr/bin:/bin"
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEBIAN = {
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "awk": "mawk",
    "find": "findutils",
}
_LIBRARIES = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime")  # of /etc
_PACKAGE = Path(__file__).resolve().parent.parent
_INSIDE = Path("/untrusted")  # the folder of the files inside
_SCRATCH = 64 << 20  # bytes of /tmp inside
_MEMORY = (
    4 << 30
)  # bytes of a child's own memory, besides twice its files: llama.cpp can rearrange the weights
_MOST_MEMORY = (
    1 << 60
)  # bytes: a file with holes can be so large that a limit for it is not a number for the system
_SYS_RESOURCE = 24  # the capability to raise limits (linux/capability.h)
_KEPT = 1 << 16  # bytes of output that are kept; more is read and dropped
_CHILD = '{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null; exec "$@"'
# Where libraries are. Without these variables, llama.cpp cannot be loaded in some installations.
_PLACES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True)
class Outcome:
    """How a child ended. `status`: its exit code, negative for a signal. `output`: the beginning of its output."""

    status: int
    output: str


def run_confined(
    module: str, word: str, files: Sequence[Path], timeout: float, more: Sequence[Path] = ()
) -> Outcome:
    """Run `python -m module word FILE MORE` in a sandbox; FILE is the first of `files`. It can read these files only.

    Inside, the files have their own names in another folder, and each of `more` in a folder of its own. Raises
    SandboxError if this system cannot make the sandbox, subprocess.TimeoutExpired, OSError. bubblewrap may fail later:
    then the module has written nothing.
    """
    if sys.platform != "linux":
        raise SandboxError("this system has no sandbox for it")
    bwrap = find_tool("bwrap")
    python = os.path.realpath(sys.executable)
    inside = {file: _INSIDE / file.name for file in files}
    inside |= {file: Path(f"{_INSIDE}-{i}", file.name) for i, file in enumerate(more)}
    rules, writer = os.pipe()  # 64 KiB without a reader; the filter is a tenth of that
    try:
        with open(writer, "wb") as pipe:
            pipe.write(seccomp_filter())
        environment = _environment("/tmp")
        command = [
            *no_core(),
            f"--data={min(_MEMORY + 2 * sum(file.stat().st_size for file in inside), _MOST_MEMORY)}",
            *(find_tool("sh"), "-c", _CHILD, "edge", bwrap),
            *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
            *("--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox"),
            *("--seccomp", str(rules)),
            *system_mounts(),
            *(word for name in _LIBRARIES for word in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")),
            *("--size", str(_SCRATCH), "--tmpfs", "/tmp"),  # before what lies in /tmp outside
            *_python_mounts(python),
            *(
                word
                for file, place in inside.items()
                for word in ("--ro-bind", str(file.resolve()), str(place))
            ),
            *("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
            *("--remount-ro", "/", "--chdir", "/", "--clearenv"),
            *(word for name, value in environment.items() for word in ("--setenv", name, value)),
            *(python, "-P", "-S", "-m", module, word),
            *(str(inside[file]) for file in (files[0], *more)),
        ]
        outcome = _run(command, {}, timeout, (rules,))
    finally:
        os.close(rules)
    # bubblewrap exits with 128 and the number of the signal that ended its child.
    return Outcome(128 - outcome.status, outcome.output) if outcome.status > 128 else outcome


def run_plain(module: str, word: str, files: Sequence[Path], timeout: float) -> Outcome:
    """Run `python -m module word FILES` as an ordinary child process with an empty environment and home folder.

    Raises subprocess.TimeoutExpired, OSError.
    """
    with tempfile.TemporaryDirectory(prefix="edge-home-", ignore_cleanup_errors=True) as home:
        environment = _environment(home)
        environment |= {name: os.environ[name] for name in _PLACES if name in os.environ}
        command = [sys.executable, "-P", "-S", "-m", module, word]
        command += [str(file.absolute()) for file in files]
        if sys.platform == "linux":
            command = ["/bin/sh", "-c", _CHILD, "edge", *command]
        return _run(command, environment, timeout)


def find_tool(name: str) -> str:
    """The path of a program that a sandbox needs. Raises SandboxError if it is missing."""
    if (place := shutil.which(name, path=PATH)) is None:
        package = _DEBIAN.get(name, name)
        raise SandboxError(
            f"the sandbox needs {name} in /usr/bin or /bin; on Debian and Ubuntu: apt-get install {package}"
        )
    return place


def no_core() -> list[str]:
    """The words before a command that keep its crashes from the system's crash handler, which runs outside as root.

    Linux gives a core dump to a handler also where the limit of its size is 0, and not where it is 1 byte (core(5),
    fs/coredump.c). The filter of system calls lets no program change the limit. Raises SandboxError.
    """
    limit = core_limit()
    return [find_tool("prlimit"), f"--core={limit}:{limit}"]


def core_limit() -> int:
    """The limit of core dumps in a sandbox, in bytes: 1, or 0 where the system allows this user nothing else."""
    if sys.platform == "win32":
        return 1
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        return 1
    state = Path("/proc/self/status").read_text().split()
    return 1 if int(state[state.index("CapEff:") + 1], 16) >> _SYS_RESOURCE & 1 else 0


def system_mounts() -> list[str]:
    """bubblewrap's arguments that show the programs and libraries of this system, read-only."""
    binds = ["--ro-bind", "/usr", "/usr"]
    for name in _PROGRAMS:
        place = Path("/", name)
        if place.is_symlink():
            binds += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            binds += ["--ro-bind", str(place), str(place)]
    return binds


def _packages() -> list[str]:
    """The folders that this process imports from, without the current folder and the one that holds edge's sources."""
    found = [str(Path(place).absolute()) for place in sys.path if place and Path(place).exists()]
    if _PACKAGE.parent.name in ("site-packages", "dist-packages"):
        return found
    return [place for place in found if Path(place).resolve() not in (_PACKAGE.parent, Path.cwd().resolve())]


def _python_mounts(python: str) -> list[str]:
    """bubblewrap's arguments that show this Python, its packages and edge, read-only. Raises SandboxError."""
    wanted = [sys.base_prefix, sys.base_exec_prefix, python, *_packages(), str(_PACKAGE)]
    home = Path(os.path.expanduser("~"))
    shown: list[Path] = [Path("/usr")]
    binds: list[str] = []
    for place in map(Path, wanted):
        if place == Path("/") or home.is_relative_to(place):
            raise SandboxError(f"this Python imports from {place}, which holds more than programs")
        if not any(place.is_relative_to(one) for one in shown):
            shown.append(place)
            binds += ["--ro-bind", str(place), str(place)]
    return binds


def _environment(home: str) -> dict[str, str]:
    """What the child needs and nothing of this process's environment."""
    return {
        "PATH": PATH,
        "HOME": home,
        "USERPROFILE": home,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join([str(_PACKAGE.parent), *_packages()]),
        "PYTHONIOENCODING": "utf-8:surrogateescape",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GGML_NO_BACKTRACE": "1",
    }


def _run(
    command: Sequence[str], environment: Mapping[str, str], timeout: float, descriptors: tuple[int, ...] = ()
) -> Outcome:
    kept = bytearray()

    def drain(pipe: IO[bytes]) -> None:
        while data := pipe.read1(1 << 16):  # type: ignore[attr-defined]
            kept.extend(data[: _KEPT - len(kept)])

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=descriptors,
        cwd=os.path.abspath(os.sep),
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        reader = threading.Thread(target=drain, args=(child.stdout,), daemon=True)
        reader.start()
        try:
            status = child.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            reader.join(10)
    return Outcome(status, kept.decode("utf-8", "replace"))
