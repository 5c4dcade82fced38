"""`--sandbox`: a shell without network on a copy of the work folder, which can reach nothing else. Linux only.

bubblewrap makes the sandbox from kernel namespaces. Its file system is new: programs and libraries are read-only; /tmp,
the home folder and the work folder are in memory and of limited size. It has no user's home, no /run and no socket.
Limits apply to each process (rlimits, which an unprivileged user cannot raise) and to all together (processes; memory,
which edge watches from outside). edge checks each protection before it types, also from outside, or runs nothing.
"""

import base64
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edge.errors import SandboxError
from edge.system.confined import PATH, find_tool, no_core
from edge.system.files import make_private, whole_file, write_all
from edge.system.folders import make_folder, remove_folder
from edge.system.seccomp import seccomp_filter
from edge.terminal.archive import MOST_ENTRIES
from edge.terminal.bubblewrap import BEGIN, USER, arguments
from edge.terminal.bubblewrap import Beside as Beside  # part of this module's interface
from edge.terminal.cgroup import is_in, make_cgroup, ran_out, remove_cgroup
from edge.terminal.channel import Channel, Silent, readable
from edge.terminal.check import BESIDE, HOME, TerminalMode, fault
from edge.terminal.check import Limits as Limits  # part of this module's interface
from edge.terminal.memory import THIS_MACHINE, Meter, file_systems, memory_of_machine, shared_of_machine
from edge.terminal.needs import NEEDS_LINUX as NEEDS_LINUX  # part of this module's interface
from edge.terminal.needs import ROOT_BECOMES, advice, tools
from edge.terminal.packed import Base, copy_archive
from edge.terminal.saved import Saved as Saved  # part of this module's interface
from edge.terminal.saved import begin, write_beside
from edge.terminal.sealed import sealed
from edge.terminal.shell import LINE_EDITOR
from edge.terminal.supervisor import OPEN, SUPERVISOR
from edge.terminal.workfolder import Comparison, compare

_PATIENCE = 60.0  # seconds for the sandbox to start or to send the work folder
_BESIDE = 256 << 20  # bytes of a cgroup beside programs and files: page tables, buffers of pipes and sockets
_WATCH = 0.1  # seconds between two checks of the memory

DEFAULT = Limits()


_NOTHING_BESIDE = Beside()


@dataclass
class Sandbox:
    """The sandbox of one session. `prepare` makes it; a terminal runs `argv`. Its `with` ends all that runs in it."""

    workdir: Path
    limits: Limits
    argv: list[str]
    left_out: tuple[str, ...]
    """Paths of the work folder that are not in the sandbox: sockets, devices, and what cannot be read."""
    _protected: tuple[Path, ...]
    _key: bytes | None
    _folder: Path
    _before: Base
    _first: Base
    _ask: int
    _answer: int
    _info: int
    _theirs: list[int]  # the sandbox's ends of the pipes, until it has opened them
    _cgroup: Path | None
    _exact: bool = False
    _mode: TerminalMode | None = None
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
        saved: Saved | None = None,
        protected: Collection[Path] = (),
        hidden: Collection[Path] = (),
        beside: Beside = _NOTHING_BESIDE,
    ) -> "Sandbox":
        """Pack the work folder and write the files that start the sandbox. It does not run yet.

        `saved`: archives of this session; if it has saved something, the sandbox goes on from there. `protected`: files
        and folders that are never brought back, whatever the sandbox did to them. `hidden`: those that the sandbox must
        not see, besides session records and their archives. `beside`: what it has besides the work folder. Raises
        SandboxError if this system cannot run the sandbox or if the folder is too large for it.
        """
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        import fcntl

        folder = make_folder("edge-sandbox-")
        pipes: list[int] = []
        cgroup = None
        try:
            become = tools()
            left_out, before, first = begin(workdir, folder, limits.disk, saved, hidden)
            write_beside(beside.files, folder / "beside.tar", limits.temporary)
            _write_files(folder, limits, beside, first)
            for _ in range(3):
                pipes += os.pipe()
            asked, ask, answer, answered, info, informed = pipes
            for descriptor in (ask, answer, info):
                os.set_blocking(descriptor, False)
            cgroup = make_cgroup(
                limits.memory + limits.disk + 3 * limits.temporary + _BESIDE, limits.processes + 8
            )
            argv = _command(folder, (asked, answered, informed), cgroup, become, limits)
            argv += [beside.start, BESIDE if beside.files is not None else ""]
            with contextlib.suppress(OSError):  # a larger pipe is faster
                fcntl.fcntl(answer, fcntl.F_SETPIPE_SZ, 1 << 20)
        except BaseException as error:
            for descriptor in pipes:
                os.close(descriptor)
            if cgroup is not None:
                remove_cgroup(cgroup)
            remove_folder(folder)
            if isinstance(error, OSError):
                raise SandboxError(
                    f"the sandbox cannot be prepared: {error.filename or folder}: {error.strerror}"
                ) from None
            raise
        guarded, key = (*protected, *hidden), saved.key if saved else None
        return cls(
            workdir,
            limits,
            argv,
            left_out,
            guarded,
            key,
            folder,
            before,
            first,
            ask,
            answer,
            info,
            [answered, informed, asked],
            cgroup,
            beside.exact,
        )

    def wait_ready(self, patience: float = _PATIENCE) -> None:
        """Wait until the sandbox runs, and check it. Raises SandboxError if it is not safe: then type nothing."""
        if sys.platform != "linux":
            raise SandboxError(NEEDS_LINUX)
        channel = Channel(self._answer, time.monotonic() + patience, lambda: None)
        lines: list[str] = []
        try:
            while (line := self._first_line(channel)) != b"ready":
                lines.append(line.decode(errors="replace"))
                if line.startswith(b"no "):
                    raise SandboxError(f"the sandbox is not safe here: {lines[-1][3:]}; edge ran nothing")
                if len(lines) > 100:
                    raise SandboxError("the sandbox does not start: its answer is too long")
        except Silent as error:
            raise SandboxError(f"the sandbox does not start: {advice(lines) or error}") from None
        self._find()
        assert self._pid is not None
        real_user = ROOT_BECOMES if os.geteuid() == 0 else os.geteuid()
        if wrong := fault(self._pid, real_user, self.limits):
            self.close()
            raise SandboxError(f"the sandbox is not safe here: {wrong}; edge ran nothing")
        for name in ("in.tar", "again.tar", "beside.tar"):
            (self._folder / name).unlink(missing_ok=True)
        try:
            self._mode = TerminalMode.of(self._pid)
            if self._cgroup is not None and not is_in(self._pid, self._cgroup):
                remove_cgroup(self._cgroup)
                self._cgroup = None
        except OSError as error:
            raise SandboxError(f"the sandbox does not start: {error}") from None
        os.write(self._ask, b"go\n")
        meter = Meter(self._pid, self._cgroup, shared_of_machine() - file_systems(self._pid))
        self._watcher = threading.Thread(
            target=self._watch, args=(meter, self._mode), name="edge-sandbox", daemon=True
        )
        self._watcher.start()

    def _first_line(self, channel: Channel) -> bytes:
        """The next line; after the first, the sandbox has opened its ends of the pipes. Raises Silent."""
        line = channel.line()
        self._close_theirs()
        return line

    def _close_theirs(self) -> None:
        while len(self._theirs) > 1:  # the last is of the pipe that edge writes: a write never raises SIGPIPE
            os.close(self._theirs.pop(0))

    def save(self, to: Path) -> None:
        """Write what changed in the work folder since `prepare`, with its first base, to `to`. Raises SandboxError."""
        try:
            status = self._fetch(to)
            if status > 1:  # the owner may not read some files, or some were deleted during the read
                os.write(self._ask, b"unlock\n")
                status = self._fetch(to)
            if status > 1:
                status = self._fetch(to)
        except BlockingIOError:
            raise SandboxError("the work folder cannot be saved: the sandbox does not answer") from None
        if status > 1:
            raise SandboxError("the work folder cannot be saved: some of its files cannot be read")

    def commits(self, known: Collection[str], to: Path) -> bool:
        """Write the commits that were made in the sandbox to the git bundle `to`; False if there are none.

        `known`: commits that need not be in it. Nothing in it is checked. Raises SandboxError.
        """
        token = secrets.token_hex(8)
        channel = Channel(self._answer, time.monotonic() + _PATIENCE, self.trouble)
        try:
            os.write(self._ask, f"commits {token} {' '.join(known)}\n".encode())
            channel.skip_to(f"edge {token}\n".encode(), self.limits.disk * 2)
            line = channel.line()
            size = int(line) if line.isdigit() and len(line) < 12 else -1
            if not 0 <= size <= self.limits.temporary:
                raise SandboxError("the commits cannot be saved: there are too many")
            if size == 0:
                return False
            with whole_file(to) as (_, descriptor):
                make_private(descriptor)
                while size:
                    piece = channel.read(size)
                    write_all(descriptor, piece)
                    size -= len(piece)
            return True
        except Silent as error:
            raise SandboxError(f"the commits cannot be saved: {error}") from None
        except OSError as error:
            raise SandboxError(f"the commits cannot be saved: {error.strerror or error}") from None

    def run(self, program: str, seconds: int, out: str) -> int:
        """Run a program of the sandbox where its shell starts, without a terminal, and return its exit status.

        `program`, `out`: absolute paths inside without blanks; `out` gets what it prints. After `seconds` it is ended:
        the status is then 124 or 137. Raises SandboxError.
        """
        channel = self._ask_for("run", f"{seconds} {program} {out}", seconds + _PATIENCE)
        try:
            line = channel.line()
        except Silent as error:
            raise SandboxError(f"{program} did not end in the sandbox: {error}") from None
        return int(line) if line.isdigit() and len(line) < 4 else 255

    def end_others(self) -> bool:
        """End all processes in the sandbox but edge's own and its shell. False if some do not end.

        Raises SandboxError.
        """
        channel = self._ask_for("end", "", _PATIENCE)
        try:
            return channel.line() == b"0"
        except Silent as error:
            raise SandboxError(f"the programs in the sandbox cannot be ended: {error}") from None

    def show(self, path: str) -> bytes | None:
        """The first 64 KiB of a file of the sandbox; None if there is none. Raises SandboxError."""
        channel = self._ask_for("show", path, _PATIENCE)
        try:
            line = channel.line()
            left = int(line) if line.isdigit() and len(line) < 7 else 0
            data = b"" if line != b"-1" else None
            while left and data is not None:
                piece = channel.read(left)
                data, left = data + piece, left - len(piece)
            return None if data is None else base64.b64decode(data, validate=True)
        except (Silent, ValueError) as error:
            raise SandboxError(f"{path} cannot be read in the sandbox: {error}") from None

    def _ask_for(self, word: str, rest: str, seconds: float) -> Channel:
        """Send a request, and return the channel at its answer. Raises SandboxError."""
        token = secrets.token_hex(8)
        channel = Channel(self._answer, time.monotonic() + seconds, self.trouble)
        try:
            os.write(self._ask, f"{word} {token} {rest}\n".encode())
            channel.skip_to(f"edge {token}\n".encode(), self.limits.disk * 2)
        except (Silent, OSError) as error:
            raise SandboxError(f"the sandbox does not answer: {error}") from None
        return channel

    def trouble(self) -> str | None:
        """Why the sandbox has ended; None while it runs."""
        if self._trouble is None and self._pidfd is not None and readable(self._pidfd):
            self._trouble = "it is no longer running"
            if self._cgroup is not None and ran_out(self._cgroup):
                self._trouble = "its processes used up the memory of its cgroup"
        return self._trouble

    def compare(self, packed: Path, *, dot_files: bool = False) -> Comparison:
        """What a saved archive would change in the work folder. Raises SandboxError, OSError."""
        return compare(self.workdir, packed, dot_files=dot_files, protected=self._protected, key=self._key)

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
        if self._mode is not None:
            self._settle(self._mode)
            self._mode.close()
        elif self._pidfd is not None:
            readable(self._pidfd, _PATIENCE)
        for descriptor in (self._ask, self._answer, self._info, self._pidfd, *self._theirs):
            if descriptor is not None:
                os.close(descriptor)
        self._pidfd = None
        self._theirs.clear()
        if self._cgroup is not None:
            remove_cgroup(self._cgroup)
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

    def _watch(self, meter: Meter, mode: TerminalMode) -> None:
        """End the sandbox if its processes use too much memory, if the machine has too little left, and for `mode`."""
        rounds = 0
        while not self._closing.wait(_WATCH) and self.trouble() is None:
            trouble = mode.fault()
            if trouble is None and (used := meter.in_use(self.limits.memory)) > self.limits.memory:
                trouble = f"its processes used {used >> 20:,} MiB of memory"
            elif trouble is None and (left := memory_of_machine()) < self.limits.reserve:
                trouble = f"{THIS_MACHINE} had only {left >> 20:,} MiB of memory left"
            if trouble:
                self._trouble = trouble
                self._kill()
                self._settle(mode)
            elif rounds % 10 == 0:
                meter.end_first()
            rounds += 1

    def _settle(self, mode: TerminalMode) -> None:
        """Wait until the sandbox's processes have ended, and set the mode of the terminal back again."""
        if self._pidfd is not None:  # process 1 ends last in its namespace
            readable(self._pidfd, _PATIENCE)
        mode.fault()

    def _fetch(self, to: Path) -> int:
        """Receive the work folder as the archive `to`. Returns tar's exit status; above 1 nothing is written."""
        token = secrets.token_hex(8)
        channel = Channel(self._answer, time.monotonic() + _PATIENCE, self.trouble)
        try:
            os.write(self._ask, f"save {token}\n".encode())
            channel.skip_to(f"edge {token}\n".encode(), self.limits.disk * 2)
            with contextlib.suppress(_Unread), whole_file(to) as (_, descriptor):
                make_private(descriptor)
                kept = self._kept(channel)
                with open(descriptor, "wb", closefd=False) as file, sealed(file, self._key) as out:
                    copy_archive(channel.read, self._before, out, self.limits.disk, kept, exact=self._exact)
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

    def _kept(self, channel: Channel) -> frozenset[str]:
        """The files that are as they were first, as the sandbox says."""
        kept: set[str] = set()
        for _ in range(MOST_ENTRIES + 1):
            name = os.fsdecode(channel.line(b"\0").removeprefix(b"./"))
            if not name:
                return frozenset(kept)
            if name in self._first:  # only what edge knows: a false answer must not fill edge's memory
                kept.add(name)
        raise SandboxError(f"the work folder has more than {MOST_ENTRIES:,} files")


class _Unread(Exception):
    """Some of the work folder could not be read."""


def _command(
    folder: Path, ends: tuple[int, int, int], cgroup: Path | None, become: list[str], limits: Limits
) -> list[str]:
    """The command that starts the sandbox from the files in `folder`. `ends`: its ends of the pipes, open in edge."""
    plain = ["--noprofile", "--norc", "-c"]
    largest = max(limits.disk, limits.temporary)
    argv = [
        find_tool("env"),
        "-i",
        f"PATH={PATH}",
        *no_core(),
        find_tool("bash"),
        *plain,
        OPEN,
        "edge",
        str(folder),
    ]
    argv += [*(f"/proc/{os.getpid()}/fd/{end}" for end in ends), str(cgroup or "")]
    # "." makes bash read the whole supervisor before it runs it, and close the file.
    argv += [*become, find_tool("bwrap"), "--args", "11", "bash", *plain, f". {BEGIN}", "edge"]
    return [*argv, str(limits.processes), str(limits.memory // 1024), str(largest // 1024)]


def _write_files(folder: Path, limits: Limits, beside: Beside, first: Base) -> None:
    """Write the files that the sandbox starts with. `first`: what is in the first archive."""
    (folder / "passwd").write_text(f"agent:x:{USER}:{USER}::{HOME}:/bin/bash\n")
    (folder / "group").write_text(f"agent:x:{USER}:\n")
    (folder / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
    (folder / "seccomp").write_bytes(seccomp_filter())
    (folder / "begin").write_text(SUPERVISOR)
    (folder / "inputrc").write_text(LINE_EDITOR)
    # As `sha256sum -z` prints them, in the order of `sort -z`.
    files = [f"{item.content}  ./{path}\0" for path, item in first.items() if item.kind == "file"]
    (folder / "contents").write_bytes(b"".join(sorted(map(os.fsencode, files))))
    (folder / "arguments").write_text("".join(f"{word}\0" for word in arguments(limits, beside)))
