"""`--sandbox`: a shell without network, with a copy of the work folder, from which nothing else can be reached.

bubblewrap makes it, of namespaces that the kernel keeps apart. The file system in it is built from nothing: programs
and libraries read-only, /tmp, the home and the work folder in memory and of bounded size. So there is no home folder,
no /run, no socket to reach. Limits hold for each process (rlimits, which an unprivileged user cannot raise) and for all
together (processes; memory, watched from outside). Nothing is typed before what holds has been checked, from outside
too; if anything of it cannot be had, SandboxError, and nothing runs. docs/safety.md says what was tried against it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edge.errors import SandboxError
from edge.system.files import whole_file
from edge.system.folders import make_folder, remove_folder
from edge.terminal.check import HOME, WORK, fault, memory_in_use, memory_of_machine
from edge.terminal.check import (
    Limits as Limits,
)  # `from edge.terminal.sandbox import Limits` is how it is meant
from edge.terminal.seccomp import seccomp_filter
from edge.terminal.tmux import PROMPT
from edge.terminal.workfolder import Base, Changes, compare, copy_archive, pack, read_base

_USER = 1000  # within the sandbox
_ROOT_BECOMES = 64_999  # the real user where edge runs as root: one that owns nothing
_PATIENCE = 60.0  # seconds for the sandbox to start or to hand over the work folder
_WATCH = 0.1  # seconds
_BEGIN = "/run/edge"  # within the sandbox
_PATH = "/usr/local/bin:/usr/bin:/bin"

_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "nsswitch.conf", "localtime", "timezone"),
    *("os-release", "debian_version", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki", "mime.types"),
    *("terminfo", "magic", "perl", "python3", "python3.11", "python3.12", "python3.13", "java-17-openjdk"),
    *("fonts", "bash_completion", "inputrc", "gitconfig", "protocols", "services", "vim", "nanorc"),
)

# Outside: opens what edge and the sandbox say to each other by, before root's rights are given up. bubblewrap's own
# complaints go to edge. The environment is empty: what bubblewrap began with can be read in /proc/1/environ.
_OPEN = """
cd / && unset OLDPWD && exec 3< "$1/ask" 4> "$1/answer" 5< "$1/in.tar" 6< "$1/passwd" 7< "$1/group" 8< "$1/hosts" \
  9< "$1/seccomp" 10> "$1/info" 11< "$1/arguments" 12< "$1/begin" 2>&4 && shift && exec "$@"
"""

# Inside, before anything of the model's: limits, the work folder, then one shell after another. The limit on processes
# is tried with awk, which gives up at once where bash would try again for seconds.
_SUPERVISOR = r"""
exec 2>&1
trap : INT QUIT HUP TERM TSTP
no() { printf 'no %s\n' "$1" >&4; sleep 5; exit 1; }
tar -x --no-same-owner -C "$WORK" -f - ./ <&5 || no 'the work folder cannot be unpacked: is --disk large enough?'
exec 5<&-
ulimit -HSu "$1" && ulimit -HSd "$2" && ulimit -HSf "$3" && ulimit -HSn 1024 && ulimit -HSc 0 && ulimit -HSq 0 ||
  no 'the limits cannot be set'
one_more=$( (ulimit -Su 1; exec awk 'BEGIN { "echo more" | getline x; print x }') 2> /dev/null)
[ "$one_more" != more ] || no 'the limit on processes does not hold here (Linux 5.14 or newer?)'
printf 'ready\n' >&4
read -r -u 3 _ || exit 1
serve() {
  while read -r -u 3 word token; do
    case $word in
      save)
        printf 'edge %s\n' "$token"
        tar -c --format=gnu -b 1 --hard-dereference -C "$WORK" -f - .
        printf '%d\n' "$?"
        ;;
      mend) chmod -R u+rwX "$WORK" ;;
    esac
  done < /dev/null >&4 2> /dev/null
}
set -m
serve &
while cd "$WORK"; do
  INPUTRC=/dev/null PS1='@PROMPT@' bash --noprofile --norc +o histexpand -i 3<&- 4>&-
  [ -t 1 ] || exit
  stty sane
  printf '[the shell has ended; this is a new one]\n'
  sleep 0.2
done
""".replace("@PROMPT@", PROMPT)

DEFAULT = Limits()


@dataclass
class Sandbox:
    """A sandbox for one session. Made by `prepare`; a terminal runs `argv`; its `with` ends all that runs in it."""

    workdir: Path
    limits: Limits
    argv: list[str]
    left_out: tuple[str, ...]
    """What of the work folder the sandbox has not: sockets, devices, what cannot be read."""
    _protected: tuple[Path, ...]
    _folder: Path
    _before: Base
    _ask: int
    _answer: int
    _info: int
    _pid: int | None = None  # of the sandbox's process 1, as it is called outside
    _pidfd: int | None = None
    _trouble: str | None = None
    _closing: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @classmethod
    def prepare(
        cls,
        workdir: Path,
        limits: Limits = DEFAULT,
        packed: Path | None = None,
        protected: Collection[Path] = (),
    ) -> "Sandbox":
        """Pack the work folder and write down how the sandbox begins.

        `packed`: an archive of `save`'s to go on from. `protected`: files and folders that are never brought back,
        whatever the sandbox did to them. Raises SandboxError where this system has no sandbox, or the folder is too
        large for it.
        """
        if sys.platform != "linux":
            raise SandboxError("the sandbox needs Linux: its namespaces are what keeps a program in")
        tools = {
            name: _tool(name) for name in ("env", "bash", "bwrap", "tar", "awk", "chmod", "sleep", "stty")
        }
        become: list[str] = []
        if os.geteuid() == 0:
            user = str(_ROOT_BECOMES)
            become = [_tool("setpriv"), "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]
            become += ["--inh-caps=-all", "--bounding-set=-all"]
        if os.stat(tools["bwrap"]).st_mode & 0o4000:
            raise SandboxError(
                f"{tools['bwrap']} is setuid, which has no --disable-userns: see docs/safety.md, or use --review"
            )
        folder = make_folder("edge-sandbox-")
        opened: list[int] = []
        try:
            left_out: tuple[str, ...] = ()
            if packed is None:
                left_out = pack(workdir, folder / "in.tar", limits.disk)
            before = read_base(packed or folder / "in.tar")
            if packed is not None:
                shutil.copyfile(packed, folder / "in.tar")
            (folder / "passwd").write_text(f"agent:x:{_USER}:{_USER}::{HOME}:/bin/bash\n")
            (folder / "group").write_text(f"agent:x:{_USER}:\n")
            (folder / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
            (folder / "seccomp").write_bytes(seccomp_filter())
            (folder / "begin").write_text(_SUPERVISOR)
            (folder / "arguments").write_text("".join(f"{word}\0" for word in _arguments(limits)))
            for name, flags in (("ask", os.O_RDWR), ("answer", os.O_RDONLY), ("info", os.O_RDONLY)):
                os.mkfifo(folder / name, 0o600)
                opened.append(os.open(folder / name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
            with contextlib.suppress(OSError):  # larger steps are faster
                fcntl.fcntl(opened[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        except BaseException as error:
            for descriptor in opened:
                os.close(descriptor)
            remove_folder(folder)
            if isinstance(error, OSError):
                raise SandboxError(
                    f"the sandbox cannot be prepared: {error.filename or folder}: {error.strerror}"
                ) from None
            raise
        argv = [
            tools["env"],
            "-i",
            f"PATH={_PATH}",
            tools["bash"],
            "--noprofile",
            "--norc",
            "-c",
            _OPEN,
            "edge",
        ]
        largest = max(limits.disk, limits.temporary)
        argv += [str(folder), *become, tools["bwrap"], "--args", "11", "bash", "--noprofile", "--norc"]
        argv += ["-c", f". {_BEGIN}", "edge"]  # so it is read in full before it begins, and closed
        argv += [str(limits.processes), str(limits.memory // 1024), str(largest // 1024)]
        ask, answer, info = opened
        return cls(workdir, limits, argv, left_out, tuple(protected), folder, before, ask, answer, info)

    def wait_ready(self, patience: float = _PATIENCE) -> None:
        """Wait until the sandbox has begun, and check it. Raises SandboxError if not; type nothing then."""
        stream = _Stream(self._answer, time.monotonic() + patience, lambda: None)
        told: list[str] = []
        try:
            while (line := stream.line()) != b"ready":
                told.append(line.decode(errors="replace"))
                if line.startswith(b"no "):
                    raise SandboxError(f"the sandbox is not safe here: {told[-1][3:]}; nothing was run")
                if len(told) > 100:
                    raise SandboxError("the sandbox says too much")
        except _Silent as error:
            raise SandboxError(f"the sandbox does not start: {_advice(told) or error}") from None
        self._find()
        assert self._pid is not None
        real_user = _ROOT_BECOMES if os.geteuid() == 0 else os.geteuid()
        if wrong := fault(self._pid, real_user, self.limits):
            self.close()
            raise SandboxError(f"the sandbox is not safe here: {wrong}; nothing was run")
        (self._folder / "in.tar").unlink(missing_ok=True)
        os.write(self._ask, b"go\n")
        self._watcher = threading.Thread(target=self._watch, name="edge-sandbox", daemon=True)
        self._watcher.start()

    def save(self, to: Path) -> None:
        """Keep the work folder as it is now, and what it was at first, as an archive. Raises SandboxError."""
        try:
            status = self._fetch(to)
            if status > 1:  # files that their owner may not read; 1: some changed while they were read
                os.write(self._ask, b"mend\n")
                status = self._fetch(to)
        except BlockingIOError:
            raise SandboxError("the work folder cannot be had: the sandbox does not answer") from None
        if status > 1:
            raise SandboxError("the work folder cannot be had: not all of it can be read")

    def trouble(self) -> str | None:
        """Why the sandbox was ended from outside, or that it has ended; None while it runs."""
        if self._trouble is None and self._pidfd is not None and _readable(self._pidfd):
            self._trouble = "it is not running any more"
        return self._trouble

    def changes(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """What a saved archive changes in the work folder. Raises SandboxError, OSError."""
        return compare(self.workdir, packed, dot_files=dot_files, protected=self._protected).changes

    def bring_back(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """Make these changes there; what could be made. The archive keeps the rest. Raises SandboxError, OSError."""
        comparison = compare(self.workdir, packed, dot_files=dot_files, protected=self._protected)
        done = comparison.apply()
        if done.withheld:
            comparison.keep_rest(done)
        return done

    def close(self) -> None:
        """End all that runs in it; when this returns, nothing does."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._pidfd is None:
            with contextlib.suppress(SandboxError):
                self._find()
        self._kill()
        if self._watcher is not None:
            self._watcher.join()
        if self._pidfd is not None:  # process 1 ends after all others of its namespace
            select.select([self._pidfd], [], [], _PATIENCE)
        for descriptor in (self._ask, self._answer, self._info, self._pidfd):
            if descriptor is not None:
                os.close(descriptor)
        self._pidfd = None
        remove_folder(self._folder)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self) -> None:
        """Take hold of the sandbox's process 1, which bubblewrap has told the number of."""
        try:
            self._pid = int(json.loads(os.read(self._info, 4096))["child-pid"])
            self._pidfd = os.pidfd_open(self._pid)
        except (OSError, ValueError, KeyError, TypeError):
            raise SandboxError("the sandbox does not start: bubblewrap has ended") from None

    def _kill(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _watch(self) -> None:
        """End the sandbox when what runs in it takes too much memory, or the machine has too little left."""
        assert self._pid is not None
        while not self._closing.wait(_WATCH) and self.trouble() is None:
            trouble = None
            if (used := memory_in_use(self._pid, self.limits.memory)) > self.limits.memory:
                trouble = f"its processes took {used >> 20:,} MiB of memory"
            elif (left := memory_of_machine()) < self.limits.reserve:
                trouble = f"this machine had only {left >> 20:,} MiB of memory left"
            if trouble:
                self._trouble = trouble
                self._kill()

    def _fetch(self, to: Path) -> int:
        """Have the work folder sent, to `to`; tar's exit status, with which `to` is kept if it is 0 or 1."""
        token = secrets.token_hex(8)
        stream = _Stream(self._answer, time.monotonic() + _PATIENCE, self.trouble)
        try:
            os.write(self._ask, f"save {token}\n".encode())
            stream.skip_to(f"edge {token}\n".encode(), self.limits.disk * 2)
            with contextlib.suppress(_Unread), whole_file(to) as (_, descriptor):
                os.fchmod(descriptor, 0o600)
                with open(descriptor, "wb", closefd=False) as file:
                    copy_archive(stream.read, self._before, file, self.limits.disk)
                line = stream.line()
                status = int(line) if line.isdigit() and len(line) < 4 else 255
                if status > 1:
                    raise _Unread
            return status
        except _Silent as error:
            raise SandboxError(f"the work folder cannot be had: {error}") from None
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            raise SandboxError(f"{to}: cannot be written: {error.strerror or error}") from None


class _Silent(Exception):
    """The sandbox does not say what it should."""


class _Unread(Exception):
    """Not all of the work folder could be read."""


@dataclass
class _Stream:
    """What the sandbox says, until `end` by time.monotonic(). It is not trusted."""

    _descriptor: int
    _end: float
    _trouble: Callable[[], str | None]
    _buffer: bytearray = field(default_factory=bytearray)

    def read(self, count: int) -> bytes:
        """From one to `count` bytes. Raises _Silent."""
        if not self._buffer:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def line(self) -> bytes:
        """Up to the next line's end, which is left out. Raises _Silent."""
        while (place := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > 1 << 16:
                raise _Silent("it says too much")
            self._fill()
        line = bytes(self._buffer[:place])
        del self._buffer[: place + 1]
        return line

    def skip_to(self, mark: bytes, most: int) -> None:
        """Past the next `mark`: what comes before it is left from an earlier question. Raises _Silent."""
        while (place := self._buffer.find(mark)) < 0:
            most -= len(self._buffer)
            if most < 0:
                raise _Silent("it says something else")
            del self._buffer[: -len(mark)]
            self._fill()
        del self._buffer[: place + len(mark)]

    def _fill(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while True:
            if time.monotonic() > self._end:
                raise _Silent("it does not answer in time")
            for _, event in poll.poll(100):
                if event & select.POLLIN and (data := os.read(self._descriptor, 1 << 20)):
                    self._buffer += data
                    return
                if event & select.POLLHUP:
                    raise _Silent("it has ended")
            if trouble := self._trouble():
                raise _Silent(f"it has ended: {trouble}")


def _tool(name: str) -> str:
    """Where the sandbox finds a program that it needs."""
    if (place := shutil.which(name, path=_PATH)) is None:
        package = {"bwrap": "bubblewrap", "setpriv": "util-linux", "awk": "mawk"}.get(name, name)
        raise SandboxError(
            f"the sandbox needs {name} in /usr/bin or /bin; on Debian and Ubuntu: apt-get install {package}"
        )
    return place


def _arguments(limits: Limits) -> list[str]:
    """bubblewrap's arguments, by --args: a list of processes shows others."""
    binds: list[str] = ["--ro-bind", "/usr", "/usr"]
    for name in _PROGRAMS:
        place = Path("/", name)
        if place.is_symlink():
            binds += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            binds += ["--ro-bind", str(place), str(place)]
    for name in _ETC:
        binds += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for descriptor, name in ((6, "/etc/passwd"), (7, "/etc/group"), (8, "/etc/hosts"), (12, _BEGIN)):
        binds += ["--ro-bind-data", str(descriptor), name]
    small = str(limits.temporary)
    environment = {
        "PATH": _PATH,
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "TERM": "screen-256color",
        "LANG": "C.UTF-8",
        "HISTFILE": "/dev/null",
        "LESSHISTFILE": "-",
        "WORK": WORK,
    }
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--cap-drop", "ALL"),
        *(
            "--uid",
            str(_USER),
            "--gid",
            str(_USER),
            "--hostname",
            "sandbox",
            "--seccomp",
            "9",
            "--info-fd",
            "10",
        ),
        *binds,
        *("--proc", "/proc", "--dev", "/dev", "--size", small, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", small, "--tmpfs", "/tmp", "--size", small, "--tmpfs", HOME),
        *("--size", str(limits.disk), "--tmpfs", WORK, "--remount-ro", "/", "--chdir", WORK, "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    ]


def _advice(told: list[str]) -> str:
    """What bubblewrap complained of, and what helps."""
    said = "; ".join(line.strip() for line in told[:3] if line.strip())
    if not said:
        return ""
    if "--disable-userns" in said or "--size" in said:
        return f"{said}; bubblewrap 0.8 or newer is needed"
    if any(word in said for word in ("uid map", "namespace", "Operation not permitted", "Permission denied")):
        return (
            f"{said}; this system allows no unprivileged user namespaces: see docs/safety.md, or use --review"
        )
    return f"{said}; see docs/safety.md, or use --review"


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])
