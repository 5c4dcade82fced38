"""`--sandbox`: a shell without network on a copy of the work folder, which can reach nothing else. Linux only.

bubblewrap makes the sandbox from kernel namespaces. Its file system is new: programs and libraries are read-only; /tmp,
the home folder and the work folder are in memory and of limited size. It has no user's home, no /run and no socket.
Limits apply to each process (rlimits, which an unprivileged user cannot raise) and to all together (processes; memory,
which edge watches from outside). edge checks every protection, also from outside, before it types anything. If one is
not in force, it raises SandboxError and runs nothing. docs/safety.md lists the escape attempts in the tests.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edge.errors import SandboxError
from edge.system.files import make_private, whole_file
from edge.system.folders import make_folder, remove_folder
from edge.terminal.channel import Channel, Silent
from edge.terminal.check import HOME, WORK, fault, memory_in_use, memory_of_machine
from edge.terminal.check import Limits as Limits  # part of this module's interface
from edge.terminal.packed import Base, copy_archive, pack, read_base
from edge.terminal.seccomp import seccomp_filter
from edge.terminal.shell import NEVER_WAIT, NEXT_LINE_PROMPT, PROMPT, PROMPT_COMMAND
from edge.terminal.workfolder import Changes, compare

NEEDS_LINUX = "the sandbox needs Linux and its namespaces: use --review, or WSL on Windows"
_USER = 1000  # inside the sandbox
_ROOT_BECOMES = 64_999  # the real user if edge runs as root: one that owns nothing
_PATIENCE = 60.0  # seconds for the sandbox to start or to send the work folder
_WATCH = 0.1  # seconds between two checks of the memory
_BEGIN = "/run/edge"  # the supervisor inside the sandbox
_PATH = "/usr/local/bin:/usr/bin:/bin"

_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "nsswitch.conf", "localtime", "timezone"),
    *("os-release", "debian_version", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki", "mime.types"),
    *("terminfo", "magic", "perl", "python3", "python3.11", "python3.12", "python3.13", "java-17-openjdk"),
    *("fonts", "bash_completion", "inputrc", "gitconfig", "protocols", "services", "vim", "nanorc"),
)

# Runs outside: opens the pipes and files between edge and the sandbox before root privileges are dropped. Errors of
# bubblewrap go to edge. The environment is empty, because the sandbox can read bubblewrap's in /proc/1/environ.
_OPEN = """
cd / && unset OLDPWD && exec 3< "$1/ask" 4> "$1/answer" 5< "$1/in.tar" 6< "$1/passwd" 7< "$1/group" 8< "$1/hosts" \
  9< "$1/seccomp" 10> "$1/info" 11< "$1/arguments" 12< "$1/begin" 2>&4 && shift && exec "$@"
"""

# Runs inside, before any of the model's commands: limits, the work folder, then one shell after another. awk tests the
# limit on processes, because it fails at once; bash would try again for seconds.
_SUPERVISOR = (
    r"""
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
      unlock) chmod -R u+rwX "$WORK" ;;
    esac
  done < /dev/null >&4 2> /dev/null
}
set -m
serve &
while cd "$WORK"; do
  INPUTRC=/dev/null PROMPT_COMMAND='@COMMAND@' PS1='@PROMPT@' PS2='@NEXT@' \
    bash --noprofile --norc +o histexpand -i 3<&- 4>&-
  [ -t 1 ] || exit
  stty sane
  printf '[the shell has ended; this is a new one]\n'
  sleep 0.2
done
""".replace("@PROMPT@", PROMPT)
    .replace("@NEXT@", NEXT_LINE_PROMPT)
    .replace("@COMMAND@", PROMPT_COMMAND)
)

DEFAULT = Limits()


@dataclass
class Sandbox:
    """The sandbox of one session. `prepare` makes it; a terminal runs `argv`. Its `with` ends all that runs in it."""

    workdir: Path
    limits: Limits
    argv: list[str]
    left_out: tuple[str, ...]
    """Paths of the work folder that are not in the sandbox: sockets, devices, and what cannot be read."""
    _protected: tuple[Path, ...]
    _folder: Path
    _before: Base
    _ask: int
    _answer: int
    _info: int
    _pid: int | None = None  # the sandbox's process 1, as the outside numbers it
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
        """Pack the work folder and write the files that start the sandbox. It does not run yet.

        `packed`: an archive that `save` wrote, to resume from. `protected`: files and folders that are never brought
        back, whatever the sandbox did to them. Raises SandboxError if this system cannot run the sandbox or if the
        folder is too large for it.
        """
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        import fcntl

        folder = make_folder("edge-sandbox-")
        pipes: list[int] = []
        try:
            argv = _command(folder, limits)
            left_out = pack(workdir, folder / "in.tar", limits.disk) if packed is None else ()
            before = read_base(packed or folder / "in.tar")
            if packed is not None:
                shutil.copyfile(packed, folder / "in.tar")
            _write_files(folder, limits)
            for name, flags in (("ask", os.O_RDWR), ("answer", os.O_RDONLY), ("info", os.O_RDONLY)):
                os.mkfifo(folder / name, 0o600)
                pipes.append(os.open(folder / name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
            with contextlib.suppress(OSError):  # a larger pipe is faster
                fcntl.fcntl(pipes[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        except BaseException as error:
            for descriptor in pipes:
                os.close(descriptor)
            remove_folder(folder)
            if isinstance(error, OSError):
                raise SandboxError(
                    f"the sandbox cannot be prepared: {error.filename or folder}: {error.strerror}"
                ) from None
            raise
        ask, answer, info = pipes
        return cls(workdir, limits, argv, left_out, tuple(protected), folder, before, ask, answer, info)

    def wait_ready(self, patience: float = _PATIENCE) -> None:
        """Wait until the sandbox runs, and check it. Raises SandboxError if it is not safe: then type nothing."""
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        channel = Channel(self._answer, time.monotonic() + patience, lambda: None)
        lines: list[str] = []
        try:
            while (line := channel.line()) != b"ready":
                lines.append(line.decode(errors="replace"))
                if line.startswith(b"no "):
                    raise SandboxError(f"the sandbox is not safe here: {lines[-1][3:]}; edge ran nothing")
                if len(lines) > 100:
                    raise SandboxError("the sandbox does not start: its answer is too long")
        except Silent as error:
            raise SandboxError(f"the sandbox does not start: {_advice(lines) or error}") from None
        self._find()
        assert self._pid is not None
        real_user = _ROOT_BECOMES if os.geteuid() == 0 else os.geteuid()
        if wrong := fault(self._pid, real_user, self.limits):
            self.close()
            raise SandboxError(f"the sandbox is not safe here: {wrong}; edge ran nothing")
        (self._folder / "in.tar").unlink(missing_ok=True)
        os.write(self._ask, b"go\n")
        self._watcher = threading.Thread(target=self._watch, name="edge-sandbox", daemon=True)
        self._watcher.start()

    def save(self, to: Path) -> None:
        """Write the work folder as it is now, with its first base, to the archive `to`. Raises SandboxError."""
        try:
            status = self._fetch(to)
            if status > 1:  # the owner may not read some files; 1 means that some changed during the read
                os.write(self._ask, b"unlock\n")
                status = self._fetch(to)
        except BlockingIOError:
            raise SandboxError("the work folder cannot be saved: the sandbox does not answer") from None
        if status > 1:
            raise SandboxError("the work folder cannot be saved: some of its files cannot be read")

    def trouble(self) -> str | None:
        """Why the sandbox has ended; None while it runs."""
        if self._trouble is None and self._pidfd is not None and _readable(self._pidfd):
            self._trouble = "it is no longer running"
        return self._trouble

    def changes(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """What a saved archive would change in the work folder. Raises SandboxError, OSError."""
        return compare(self.workdir, packed, dot_files=dot_files, protected=self._protected).changes

    def bring_back(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """Make the changes of a saved archive in the work folder, and return them. The archive keeps the rest.

        Raises SandboxError, OSError.
        """
        comparison = compare(self.workdir, packed, dot_files=dot_files, protected=self._protected)
        done = comparison.apply()
        if done.withheld:
            comparison.keep_rest(done)
        return done

    def close(self) -> None:
        """End all processes of the sandbox, and wait until they have ended."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._pidfd is None:
            with contextlib.suppress(SandboxError):
                self._find()
        self._kill()
        if self._watcher is not None:
            self._watcher.join()
        if self._pidfd is not None:  # process 1 ends last in its namespace
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
        """Open a pidfd of the sandbox's process 1, whose number bubblewrap reports."""
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        try:
            self._pid = int(json.loads(os.read(self._info, 4096))["child-pid"])
            self._pidfd = os.pidfd_open(self._pid)
        except (OSError, ValueError, KeyError, TypeError):
            raise SandboxError("the sandbox does not start: bubblewrap has ended") from None

    def _kill(self) -> None:
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _watch(self) -> None:
        """End the sandbox if its processes use too much memory, or if the machine has too little left."""
        assert self._pid is not None
        while not self._closing.wait(_WATCH) and self.trouble() is None:
            trouble = None
            if (used := memory_in_use(self._pid, self.limits.memory)) > self.limits.memory:
                trouble = f"its processes used {used >> 20:,} MiB of memory"
            elif (left := memory_of_machine()) < self.limits.reserve:
                trouble = f"this machine had only {left >> 20:,} MiB of memory left"
            if trouble:
                self._trouble = trouble
                self._kill()

    def _fetch(self, to: Path) -> int:
        """Receive the work folder as the archive `to`. Returns tar's exit status; above 1 nothing is written."""
        token = secrets.token_hex(8)
        channel = Channel(self._answer, time.monotonic() + _PATIENCE, self.trouble)
        try:
            os.write(self._ask, f"save {token}\n".encode())
            channel.skip_to(f"edge {token}\n".encode(), self.limits.disk * 2)
            with contextlib.suppress(_Unread), whole_file(to) as (_, descriptor):
                make_private(descriptor)
                with open(descriptor, "wb", closefd=False) as file:
                    copy_archive(channel.read, self._before, file, self.limits.disk)
                line = channel.line()
                status = int(line) if line.isdigit() and len(line) < 4 else 255
                if status > 1:
                    raise _Unread
            return status
        except Silent as error:
            raise SandboxError(f"the work folder cannot be saved: {error}") from None
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            raise SandboxError(f"{to}: cannot be written: {error.strerror or error}") from None


class _Unread(Exception):
    """Some of the work folder could not be read."""


def _command(folder: Path, limits: Limits) -> list[str]:
    """The command that starts the sandbox from the files in `folder`. Raises SandboxError if a tool is missing."""
    if sys.platform != "linux":
        raise SandboxError(NEEDS_LINUX)
    tools = {name: _tool(name) for name in ("env", "bash", "bwrap", "tar", "awk", "chmod", "sleep", "stty")}
    become: list[str] = []
    if os.geteuid() == 0:
        user = str(_ROOT_BECOMES)
        become = [_tool("setpriv"), "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]
        become += ["--inh-caps=-all", "--bounding-set=-all"]
    if os.stat(tools["bwrap"]).st_mode & 0o4000:
        raise SandboxError(
            f"{tools['bwrap']} is setuid and then has no --disable-userns: run chmod u-s on it, or use --review"
        )
    plain = ["--noprofile", "--norc", "-c"]
    largest = max(limits.disk, limits.temporary)
    argv = [tools["env"], "-i", f"PATH={_PATH}", tools["bash"], *plain, _OPEN, "edge", str(folder)]
    # "." makes bash read the whole supervisor before it runs it, and close the file.
    argv += [*become, tools["bwrap"], "--args", "11", "bash", *plain, f". {_BEGIN}", "edge"]
    return [*argv, str(limits.processes), str(limits.memory // 1024), str(largest // 1024)]


def _write_files(folder: Path, limits: Limits) -> None:
    """Write the files that the sandbox starts with."""
    (folder / "passwd").write_text(f"agent:x:{_USER}:{_USER}::{HOME}:/bin/bash\n")
    (folder / "group").write_text(f"agent:x:{_USER}:\n")
    (folder / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
    (folder / "seccomp").write_bytes(seccomp_filter())
    (folder / "begin").write_text(_SUPERVISOR)
    (folder / "arguments").write_text("".join(f"{word}\0" for word in _arguments(limits)))


def _tool(name: str) -> str:
    """The path of a program that the sandbox needs. Raises SandboxError if it is missing."""
    if (place := shutil.which(name, path=_PATH)) is None:
        package = {"bwrap": "bubblewrap", "setpriv": "util-linux", "awk": "mawk"}.get(name, name)
        raise SandboxError(
            f"the sandbox needs {name} in /usr/bin or /bin; on Debian and Ubuntu: apt-get install {package}"
        )
    return place


def _arguments(limits: Limits) -> list[str]:
    """bubblewrap's arguments. It reads them from a file (--args), so that a list of processes does not show them."""
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
        **NEVER_WAIT,
        "WORK": WORK,
    }
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--cap-drop", "ALL"),
        *("--uid", str(_USER), "--gid", str(_USER), "--hostname", "sandbox"),
        *("--seccomp", "9", "--info-fd", "10"),
        *binds,
        *("--proc", "/proc", "--dev", "/dev", "--size", small, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", small, "--tmpfs", "/tmp", "--size", small, "--tmpfs", HOME),
        *("--size", str(limits.disk), "--tmpfs", WORK, "--remount-ro", "/", "--chdir", WORK, "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    ]


def _advice(lines: list[str]) -> str:
    """bubblewrap's error lines as one text, and what helps; empty without lines."""
    text = "; ".join(line.strip() for line in lines[:3] if line.strip())
    if not text:
        return ""
    if "--disable-userns" in text or "--size" in text:
        return f"{text}; install bubblewrap 0.8 or newer"
    if any(word in text for word in ("uid map", "namespace", "Operation not permitted", "Permission denied")):
        return (
            f"{text}; this system allows no unprivileged user namespaces: allow them with sysctl "
            "(kernel.unprivileged_userns_clone=1; Ubuntu 24.04: kernel.apparmor_restrict_unprivileged_userns=0), "
            "or use --review"
        )
    return f"{text}; mend this, or use --review"


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])
