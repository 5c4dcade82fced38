"""`--sandbox`: a shell without network, with a copy of the work folder, from which nothing else can be reached.

bubblewrap makes it, of namespaces that the kernel keeps apart. The file system in it is built from nothing: programs
and libraries read-only, /tmp, the home and the work folder in memory and of bounded size. So there is no home folder,
no /run, no socket to reach. Limits hold for each process (rlimits, which an unprivileged user cannot raise) and for all
together (processes; memory, watched from outside). Nothing is typed before the sandbox has checked itself; if anything
of it cannot be had, SandboxError, and nothing runs. docs/safety.md says what was tried against it.
"""

import json
import os
import platform
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from edge.errors import SandboxError
from edge.output import whole_file
from edge.workfolder import Changes, Entry, Manifest, bring_back, changes, pack

WORK = "/app"  # where Terminal-Bench has it, too
_USER = 1000  # within the sandbox
_ROOT_BECOMES = 64_999  # the real user where edge runs as root: one that owns nothing
_PATIENCE = 60.0  # seconds for the sandbox to start or to hand over the work folder
_WATCH = 0.1  # seconds

_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "nsswitch.conf", "localtime", "timezone"),
    *("os-release", "debian_version", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki", "mime.types"),
    *(
        "terminfo",
        "magic",
        "perl",
        "python3",
        "python3.11",
        "python3.12",
        "python3.13",
        "java-17-openjdk",
        "fonts",
    ),
    *("bash_completion", "inputrc", "gitconfig", "protocols", "services", "vim", "nanorc"),
)

# Run inside, before anything of the model's: unpack, set the limits, check, tell, then one shell after another.
_SUPERVISOR = r"""
exec 2>&1  # bubblewrap's own complaints went to a file
trap ':' INT QUIT HUP TSTP
no() { printf 'no %s\n' "$1" > /run/edge/answer; sleep 2; exit 1; }
cd /app || no 'there is no work folder'
tar -x --no-same-owner -f /run/edge/in.tar || no 'the work folder cannot be unpacked: is --disk large enough?'
ulimit -HSu "$1" && ulimit -HSd "$2" && ulimit -HSf "$3" || no 'the limits cannot be set'
ulimit -HSn 1024 && ulimit -HSc 0 || no 'the limits cannot be set'
[ "$(ulimit -Hu)" = "$1" ] && [ "$(ulimit -Hd)" = "$2" ] || no 'the limits do not hold'
[ "$(id -u)" != 0 ] || no 'it runs as root'
[ "$(grep -c : /proc/net/dev)" = 1 ] || no 'there is a network'
while read -r name value; do
  case $name in
    CapEff: | CapPrm: | CapInh: | CapBnd: | CapAmb:) [ "$value" = 0000000000000000 ] || no 'it has capabilities' ;;
    NoNewPrivs:) [ "$value" = 1 ] || no 'setuid programs work' ;;
    Seccomp:) [ "$value" = 2 ] || no 'the filter of system calls is not in force' ;;
  esac
done < /proc/self/status
[ -r /proc/1/status ] && [ ! -e /proc/2147483 ] || no 'there is no /proc of its own'
for place in / /usr /etc /dev /proc/sys/kernel/core_pattern; do
  if [ -w "$place" ]; then no "$place can be written"; fi
done
if ( : > /edge-probe ) 2> /dev/null; then no 'the root can be written'; fi
for place in /home/*/.ssh /root/.ssh /run/docker.sock /run/user /var/run/docker.sock /sys/kernel; do
  if [ -e "$place" ]; then no "$place can be seen"; fi
done
if command -v unshare > /dev/null && unshare -U true 2> /dev/null; then no 'it can make namespaces of its own'; fi
(
  exec < /dev/null > /dev/null 2>&1
  while read -r word < /run/edge/ask; do
    tar -c --format=pax --hard-dereference -C /app . > /run/edge/answer
  done
) &
printf 'ready\n' > /run/edge/answer
while :; do
  PS1='\u@\h:\w\$ ' bash --noprofile --norc +o histexpand -i
  printf '[the shell has ended; this is a new one]\n'
  sleep 0.2
  cd /app || exit 1
done
"""


@dataclass(frozen=True)
class Limits:
    """Bytes and counts for all that runs in the sandbox. `disk`: of the work folder, which lies in memory."""

    memory: int = 2 << 30
    disk: int = 1 << 30
    temporary: int = 256 << 20
    """Of /tmp, the home and /dev/shm each."""
    processes: int = 128


DEFAULT = Limits()


@dataclass
class Sandbox:
    """A sandbox for one session. Made by `prepare`; a terminal runs `argv`; its `with` ends all that runs in it."""

    workdir: Path
    limits: Limits
    argv: list[str]
    _folder: Path
    _before: Manifest
    _trouble: str | None = None
    _closing: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @classmethod
    def prepare(cls, workdir: Path, limits: Limits = DEFAULT, packed: Path | None = None) -> "Sandbox":
        """Pack the work folder and write down how the sandbox begins. `packed`: a tar of `save`'s to go on from.

        Raises SandboxError where this system has no sandbox, or the folder is too large for it.
        """
        if sys.platform != "linux":
            raise SandboxError("the sandbox needs Linux: its namespaces are what keeps a program in")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxError(
                "bubblewrap is not installed; on Debian and Ubuntu: apt-get install bubblewrap"
            )
        for needed in ("bash", "tar", "id", "grep", "sleep", *(["setpriv"] if os.geteuid() == 0 else [])):
            if shutil.which(needed, path="/usr/local/bin:/usr/bin:/bin") is None:
                raise SandboxError(f"the sandbox needs {needed} in /usr/bin or /bin")
        folder = Path(tempfile.mkdtemp(prefix="edge-sandbox-"))
        try:
            inside = folder / "inside"
            inside.mkdir(mode=0o755)
            with (inside / "in.tar").open("wb") as out:
                if packed is None:
                    before = pack(workdir, out, limits.disk)
                else:
                    with packed.open("rb") as file:
                        shutil.copyfileobj(file, out)
                    before = _read_manifest(packed)
            for name in ("ask", "answer"):
                os.mkfifo(inside / name, 0o600)
            (folder / "passwd").write_text(f"agent:x:{_USER}:{_USER}::/home/agent:/bin/bash\n")
            (folder / "group").write_text(f"agent:x:{_USER}:\n")
            (folder / "seccomp").write_bytes(_seccomp())
            _hand_over(folder)
            argv = _argv(bwrap, folder, limits)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(workdir, limits, argv, folder, before)

    def wait_ready(self, patience: float = _PATIENCE) -> None:
        """Wait until the sandbox has checked itself. Raises SandboxError if not; type nothing then."""
        try:
            told = self._receive(patience).decode(errors="replace").strip()
        except SandboxError as error:
            log = (self._folder / "log").read_text(errors="replace").strip() if self._log_there() else ""
            advice = "does the system allow unprivileged user namespaces? See docs/safety.md"
            raise SandboxError(f"the sandbox does not start: {log or error}; {advice}") from None
        if told != "ready":
            raise SandboxError(f"the sandbox is not safe here: {told.removeprefix('no ')}; nothing was run")
        (self._folder / "inside" / "in.tar").unlink(missing_ok=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def save(self, to: Path) -> None:
        """Keep the work folder as it is now as a tar, and beside it what it was at first. Raises SandboxError."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                ask = os.open(self._folder / "inside" / "ask", os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                if self.trouble() or time.monotonic() > end:
                    raise SandboxError(
                        f"the work folder cannot be had: {self.trouble() or 'the sandbox does not answer'}"
                    ) from None
                time.sleep(0.02)
        try:
            os.write(ask, b"save\n")
        finally:
            os.close(ask)
        with whole_file(to) as (_, descriptor):
            os.fchmod(descriptor, 0o600)
            self._receive(_PATIENCE, descriptor)
        manifest = to.with_suffix(".json")
        with whole_file(manifest) as (_, descriptor):
            os.fchmod(descriptor, 0o600)
            with os.fdopen(os.dup(descriptor), "w") as file:
                json.dump({path: asdict(entry) for path, entry in self._before.items()}, file)

    def trouble(self) -> str | None:
        """Why the sandbox was ended from outside, or that it has ended; None while it runs."""
        if self._trouble is None and (pid := self._pid()) is not None and not Path(f"/proc/{pid}").exists():
            self._trouble = "it is not running any more"
        return self._trouble

    def changes(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """What a saved tar changes in the work folder. Raises SandboxError."""
        return changes(self.workdir, self._before, packed, dot_files=dot_files)

    def bring_back(self, packed: Path, *, dot_files: bool = False) -> Changes:
        """Make these changes there. Raises SandboxError, OSError."""
        return bring_back(self.workdir, self._before, packed, dot_files=dot_files)

    def close(self) -> None:
        """End all that runs in it."""
        self._closing.set()
        self._kill()
        if self._watcher is not None:
            self._watcher.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pid(self) -> int | None:
        try:
            return int((self._folder / "pid").read_text())
        except (OSError, ValueError):
            return None

    def _log_there(self) -> bool:
        return (self._folder / "log").is_file()

    def _kill(self) -> None:
        for pid in reversed(_family(self._pid())):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue

    def _watch(self) -> None:
        """End the sandbox when what runs in it takes too much memory. Its files in memory count as well."""
        while not self._closing.wait(_WATCH):
            used = sum(map(_memory_of, _family(self._pid())))
            if used > self.limits.memory:
                self._trouble = f"its processes took {used >> 20:,} MiB of memory"
                self._kill()
                return

    def _receive(self, patience: float, into: int | None = None) -> bytes:
        """One answer, until the sandbox closes it: into a file, or returned if short. What it says is not trusted."""
        most = 1 << 16 if into is None else self.limits.disk * 5 // 4 + (64 << 20)
        end = time.monotonic() + patience
        data = bytearray()
        size = 0
        answer = os.open(self._folder / "inside" / "answer", os.O_RDONLY | os.O_NONBLOCK)
        try:
            poll = select.poll()
            poll.register(answer, select.POLLIN)
            while True:
                if time.monotonic() > end:
                    raise SandboxError("the sandbox does not answer in time")
                if not poll.poll(100):
                    if self.trouble():
                        raise SandboxError(f"the sandbox has ended: {self.trouble()}")
                    continue
                try:
                    chunk = os.read(answer, 1 << 20)
                except BlockingIOError:
                    continue
                if not chunk:
                    if size:
                        return bytes(data)
                    time.sleep(0.02)
                    continue
                size += len(chunk)
                if size > most:
                    raise SandboxError("the sandbox hands over more than its work folder can hold")
                if into is None:
                    data += chunk
                    if data.endswith(b"\n"):
                        return bytes(data)
                else:
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(into, view) :]
        finally:
            os.close(answer)


def _argv(bwrap: str, folder: Path, limits: Limits) -> list[str]:
    binds: list[str] = ["--ro-bind", "/usr", "/usr"]
    for name in _PROGRAMS:
        place = Path("/", name)
        if place.is_symlink():
            binds += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            binds += ["--ro-bind", str(place), str(place)]
    for name in _ETC:
        binds += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    small = str(limits.temporary)
    become = [
        *(
            "setpriv",
            f"--reuid={_ROOT_BECOMES}",
            f"--regid={_ROOT_BECOMES}",
            "--clear-groups",
            "--no-new-privs",
        ),
        *("--inh-caps=-all", "--bounding-set=-all"),
    ]
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/agent",
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "TERM": "screen-256color",
        "LANG": "C.UTF-8",
        "HISTFILE": "/dev/null",
        "LESSHISTFILE": "-",
    }
    kib = 1024
    return [
        *(
            "sh",
            "-c",
            'echo $$ > "$1/pid"; exec 9< "$1/seccomp" 2> "$1/log"; shift; exec "$@"',
            "sh",
            str(folder),
        ),
        *(become if os.geteuid() == 0 else []),
        *(bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *(
            "--uid",
            str(_USER),
            "--gid",
            str(_USER),
            "--hostname",
            "sandbox",
            "--cap-drop",
            "ALL",
            "--seccomp",
            "9",
        ),
        *binds,
        *(
            "--ro-bind",
            str(folder / "passwd"),
            "/etc/passwd",
            "--ro-bind",
            str(folder / "group"),
            "/etc/group",
        ),
        *("--proc", "/proc", "--dev", "/dev", "--size", small, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--size", small, "--tmpfs", "/tmp", "--size", small, "--tmpfs", "/home/agent"),
        *("--size", str(limits.disk), "--tmpfs", WORK, "--ro-bind", str(folder / "inside"), "/run/edge"),
        *("--remount-ro", "/", "--chdir", WORK, "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
        *("--", "bash", "--noprofile", "--norc", "-c", _SUPERVISOR, "edge"),
        *(str(limits.processes), str(limits.memory // kib), str(max(limits.disk, limits.temporary) // kib)),
    ]


def _hand_over(folder: Path) -> None:
    """Where edge is root, the sandbox's user must reach these files."""
    if os.geteuid() == 0:
        for place in (folder, folder / "inside", *(folder / "inside").iterdir()):
            os.chown(place, _ROOT_BECOMES, _ROOT_BECOMES)
        for name in ("passwd", "group", "seccomp"):
            os.chmod(folder / name, 0o644)


def _read_manifest(packed: Path) -> Manifest:
    place = packed.with_suffix(".json")
    try:
        return {path: Entry(**entry) for path, entry in json.loads(place.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SandboxError(f"{place}: cannot be read: {error}; begin a new session") from None


def _family(pid: int | None) -> list[int]:
    """A process and all that descend from it: of a sandbox, all that is in it."""
    if pid is None:
        return []
    children: dict[int, list[int]] = {}
    for place in os.listdir("/proc"):
        if place.isdigit():
            try:
                fields = Path("/proc", place, "stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(place))
            except (OSError, ValueError, IndexError):
                continue
    family = [pid] if Path(f"/proc/{pid}").exists() else []
    for member in family:
        family += children.get(member, [])
    return family


def _memory_of(pid: int) -> int:
    """Bytes that a process holds itself: anonymous and shared memory, not the files that it has mapped."""
    used = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmPTE:")):
                used += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return used


def _seccomp() -> bytes:
    """A filter of system calls for bubblewrap, as the kernel reads it (struct sock_filter, linux/filter.h).

    Refused as if the kernel had none of them (ENOSYS): what makes memory that no limit counts (memfd_create, shmget),
    keyrings, which no namespace keeps apart, and a few ways into the kernel that a shell has no use for.
    """
    architectures = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
    numbers = {  # by architecture: x86_64, and the generic table that aarch64 has
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
        "shmget": (29, 194),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "kexec_load": (246, 104),
        "open_by_handle_at": (304, 265),
    }
    machine = platform.machine()
    if machine not in architectures:
        raise SandboxError(f"the sandbox has no filter of system calls for {machine}")
    audit, column = architectures[machine]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    allow, no_such_call = 0x7FFF0000, 0x00050000 | 38
    calls = [number[column] for number in numbers.values()]
    # Forward jumps count from the next instruction.
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, no_such_call), (load, 0, 0, 0)]
    program += [(above, len(calls) + 1, 0, 0x40000000)]  # the x32 calls of x86_64, which have other numbers
    program += [(equal, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    program += [(give, 0, 0, allow), (give, 0, 0, no_such_call)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
