"""Helpers for the escape tests: shells, and files and listeners outside that no attempt may touch."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.terminal.sandbox import Limits, Sandbox, Saved
from edge.terminal.shell import SHELL
from edge.terminal.tmux import Terminal

SMALL = Limits(memory=256 << 20, disk=24 << 20, temporary=8 << 20, processes=40, reserve=64 << 20)
USER = 64_999  # the user of the sandbox's programs if the tests run as root
ROOT = Path(__file__).resolve().parents[2]
UNPRIVILEGED = (
    ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"] if os.geteuid() == 0 else []
)


def until(
    condition: Callable[[], object], seconds: float = 120, what: str = "timeout: the condition is still false"
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@dataclass
class World:
    """Files that everyone may write, a secret that everyone may read, and listeners that record each call.

    Only the sandbox stops an attempt. An `UNPRIVILEGED` shell without a sandbox shows that it would succeed.
    """

    folder: Path
    names: dict[str, object] = field(default_factory=dict)
    """The values that scripts use by name, such as {canary}."""
    calls: list[str] = field(default_factory=list)
    """Names of the listeners that got a connection or a datagram."""
    _sockets: list[socket.socket] = field(default_factory=list)
    _before: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator["World"]:
        folder = Path(tempfile.mkdtemp(prefix="edge-test-world-"))
        world = cls(folder)
        try:
            for name in ("", "bin", "home", "cwd"):
                (folder / name).mkdir(exist_ok=True)
                (folder / name).chmod(0o777)
            for name, text in (("canary", "whole"), ("secret", "KEPT-" + os.urandom(8).hex())):
                (folder / name).write_text(text + "\n")
                (folder / name).chmod(0o666)
            (folder / "home" / ".profile").write_text("# the person's\n")
            (folder / "home" / ".profile").chmod(0o666)
            world._listen()
            world.names |= {
                "world": folder,
                "canary": folder / "canary",
                "secret": folder / "secret",
                "home": folder / "home",
                "sock": folder / "sock",
            }
            world._before = world._files()
            yield world
        finally:
            for one in world._sockets:
                one.close()
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def secret(self) -> str:
        return (self.folder / "secret").read_text().strip()

    def _listen(self) -> None:
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0edge-test-{os.urandom(6).hex()}"),
            ("sock", socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "sock")),
        ):
            try:
                listener = socket.socket(family, kind)
                self._sockets.append(listener)
                listener.bind(address)
            except OSError:
                continue  # no IPv6 on this machine: the test skips that attempt without a sandbox
            if kind == socket.SOCK_STREAM:
                listener.listen()
            bound = listener.getsockname()
            if name == "sock":
                os.chmod(self.folder / "sock", 0o777)
            elif name == "abstract":
                self.names[name] = bound[1:].decode()
            else:
                self.names[name] = bound[1]
            threading.Thread(target=self._count, args=(name, listener, kind), daemon=True).start()

    def _count(self, name: str, listener: socket.socket, kind: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == socket.SOCK_STREAM:
                    connection, _ = listener.accept()
                    self.calls.append(name)
                    connection.close()
                else:
                    listener.recvfrom(100)
                    self.calls.append(name)

    def _files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.folder.rglob("*"))
        }

    def touched(self) -> list[str]:
        """Names of changed files and folders, and of listeners that were called."""
        now = self._files()
        files = [name for name in {**self._before, **now} if self._before.get(name) != now.get(name)]
        return sorted({*files, *self.calls})

    def restore(self) -> None:
        for name in self.touched():
            place = self.folder / name
            if name in self._before:
                if name not in ("sock",) and (self._before[name] or not place.exists()):
                    place.write_bytes(self._before[name])
                    place.chmod(0o666)
            elif place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif place.exists() or place.is_symlink():
                place.unlink()
        self.calls.clear()

    def environment(self) -> dict[str, str]:
        """The environment of the terminals: a user's, with secrets in it."""
        return {
            "PATH": f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "LC_ALL": "C.UTF-8",
            "PS1": "$ ",
            "HISTFILE": "/dev/null",
            "INPUTRC": "/dev/null",
            "TOKEN_OF_THE_PERSON": self.secret,
            "SSH_AUTH_SOCK": f"{self.folder}/sock",
            "DOCKER_HOST": f"unix://{self.folder}/sock",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.folder}/sock",
        }


@dataclass
class Shell:
    """An interactive shell in a terminal, in a sandbox or without one."""

    terminal: Terminal
    sandbox: Sandbox | None = None
    _count: int = 40

    def run(self, *keystrokes: str) -> str:
        """Type the keystrokes in turn, wait for the shell, and return what the screen showed."""
        for keys in keystrokes:
            self.terminal.send(keys, 0.1 if len(keystrokes) > 1 else 0)
        self._count += 1
        self.terminal.send(f"\necho m$(({self._count}*1000))x\n")
        mark = f"m{self._count * 1000}x"
        until(lambda: mark in self.terminal.screen(), what=f"no {mark}: {self.terminal.screen()}")
        return self.terminal.output(1 << 20)

    @property
    def pid(self) -> int:
        """The PID of the sandbox's process 1, as seen from outside."""
        assert self.sandbox is not None and self.sandbox._pid is not None
        return self.sandbox._pid

    def inside(self) -> list[int]:
        """The PIDs of all processes in the sandbox, as seen from outside."""
        try:
            here = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        except OSError:  # process 1 has ended
            return []
        found = []
        for place in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if place.isdigit() and os.stat(f"/proc/{place}/ns/pid").st_ino == here:
                    found.append(int(place))
        return found


@contextlib.contextmanager
def sandboxed(
    world: World,
    limits: Limits = SMALL,
    workdir: Path | None = None,
    protected: tuple[Path, ...] = (),
    extra: Mapping[str, str] | None = None,
    saved: Saved | None = None,
) -> Iterator[Shell]:
    """A shell in the real sandbox, started from an environment with secrets."""
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-test-work-")))
            (workdir / "file").write_text("of the work folder\n")
        sandbox = stack.enter_context(Sandbox.prepare(workdir, limits, saved, protected))
        start = Terminal.start(
            sandbox.argv, cwd="/", env=world.environment() | dict(extra or {}), ready=sandbox.wait_ready
        )
        yield Shell(stack.enter_context(start), sandbox)


@contextlib.contextmanager
def free(world: World) -> Iterator[Shell]:
    """A shell without a sandbox, as an unprivileged user, for attempts that do no harm outside `world`."""
    argv = [*UNPRIVILEGED, *SHELL]
    with Terminal.start(argv, cwd=world.folder / "cwd", env=world.environment()) as terminal:
        yield Shell(terminal)


def victim() -> subprocess.Popen[bytes]:
    """A process outside the sandbox, of the same user as the sandbox's programs."""
    return subprocess.Popen([*UNPRIVILEGED, "/bin/sleep", "600"], stdin=subprocess.DEVNULL)


def has(*programs: str) -> bool:
    """Return whether the sandbox has these programs."""
    return all(shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin") for name in programs)


POSSIBLE = sys.platform == "linux" and has("bwrap", "tmux", "bash", "tar", "awk", "stty")


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[tuple[list[str], str]]:
    """A command that runs Python as an ordinary user, and a folder with a copy of edge: only root may read the project.

    Skips the test if such a user may run no Python 3.11.
    """
    python = sys.executable
    if (
        UNPRIVILEGED
        and subprocess.run([*UNPRIVILEGED, "env", python, "-c", ""], capture_output=True).returncode
    ):
        python = "/usr/bin/python3"  # only root may run the one of the tests
        new = [*UNPRIVILEGED, "env", python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if not Path(python).exists() or subprocess.run(new).returncode:
            pytest.skip("no Python 3.11 that an ordinary user may run")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        shutil.copytree(
            ROOT / "edge", f"{place}/edge", ignore=shutil.ignore_patterns("__pycache__", "_models")
        )
        yield [python, "-c"], place


def run_as_ordinary_user(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of Python as an ordinary user, with a copy of edge. Skips the test as `as_ordinary_user` does."""
    with as_ordinary_user() as (python, place):
        return subprocess.run(
            [*UNPRIVILEGED, "env", *python, script],
            env={"PATH": "/usr/bin:/bin", "HOME": place, "PYTHONPATH": place, "LANG": "C.UTF-8"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
