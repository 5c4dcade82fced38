"""The command line for tests: each command has its own process, but not its own start of Python.

`python -m edge` takes 0.4 to 1.5 seconds of processor time to start, nearly all of it for imports, and the tests run
it a thousand times. Here one process does the imports once and forks a child for each command. The child has the
streams, the folder and the environment that the test gives, and ends as a started program ends.

Where an environment variable differs that Python or a package reads at its start, the command gets a new process.
NEW_PROCESSES=1 in the environment of pytest gives each command one, to measure the difference or to look for one.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
# What the commands import. Not huggingface_hub: it reads the environment when it is imported.
MODULES = (
    "edge.agent.loop",
    "edge.agent.review",
    "edge.chat.conversation",
    "edge.cli.main",
    "edge.cli.defaults",
    "edge.compare.run",
    "edge.convert",
    "edge.formats.models",
    "edge.measure.calibrate",
    "edge.measure.run",
    "edge.names",
    "edge.pull",
    "edge.replay.run",
    "edge.replay.score",
    "edge.runner",
    "edge.serve.server",
    "edge.sweep",
    "typer._adapters",
)
# What huggingface_hub and edge's servers import.
PACKAGES = ("asyncio", "filelock", "httpx", "httpx2", "tqdm.auto", "yaml")
# What Python and those modules read from the environment when they start. edge itself reads its variables later.
EARLY = (
    *(
        "CUDA_",
        "GGML_",
        "GLIBC_",
        "LANG",
        "LC_",
        "LD_",
        "LLAMA_",
        "MALLOC_",
        "MATPLOTLIB",
        "MKL_",
        "MPL",
        "NPY_",
    ),
    *(
        "NUMPY_",
        "OMP_",
        "OPENBLAS_",
        "PILLOW_",
        "PROMETHEUS_",
        "PYDANTIC_",
        "PYTHON",
        "PYPARSING",
        "TOKENIZERS_",
    ),
    *("TQDM_", "TYPER_", "TZ", "_TYPER_", "prometheus_"),
)
SET = ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "PYTHONPATH")  # the server has its own values

spent = 0.0  # processor seconds of the commands that ended


class Command:
    """A command that runs, with the part of subprocess.Popen that tests use."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._said = line, b""
        self.returncode: int | None = None
        self.pid = int(self._read(None) or 0)
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None

    def _read(self, timeout: float | None) -> bytes | None:
        """The next line of the server; None if it does not come in time."""
        end = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._said:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._line], [], [], left)[0]:
                return None
            data = self._line.recv(64)
            assert data, "the server of commands ended"
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line

    def poll(self) -> int | None:
        if self.returncode is None and (line := self._read(0)) is not None:
            self._end(line)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            line = self._read(timeout)
            if line is None:
                assert timeout is not None
                raise subprocess.TimeoutExpired("edge", timeout)
            self._end(line)
        assert self.returncode is not None
        return self.returncode

    def _end(self, line: bytes) -> None:
        global spent
        status, seconds = line.split()
        self.returncode = int(status)
        spent += float(seconds)
        self._line.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """What it writes until it ends. Raises subprocess.TimeoutExpired if it does not end in time."""
        seen: dict[str, Any] = {"stdout": None, "stderr": None}

        def read(name: str, stream: IO[Any]) -> None:
            with stream:
                seen[name] = stream.read()

        def write(stream: IO[Any]) -> None:
            with contextlib.suppress(BrokenPipeError), stream:
                if input:
                    stream.write(input)

        threads = [
            threading.Thread(target=read, args=(name, stream), daemon=True)
            for name in seen
            if (stream := getattr(self, name)) is not None
        ]
        if self.stdin is not None:
            threads.append(threading.Thread(target=write, args=(self.stdin,), daemon=True))
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return seen["stdout"], seen["stderr"]

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


Started = Command | subprocess.Popen[Any]


def start(
    *words: object,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    encoding: str | None = None,
    program: str = "edge",
    controlled: bool = False,
) -> Started:
    """Start `edge` with these words. The streams are as for subprocess.Popen. `program`: `python -m edge` for the name
    that this way of starting has in help and errors. `controlled`: the terminal that is its standard input is its
    controlling terminal, as that of a shell."""
    environment = dict(os.environ if env is None else env)
    arguments = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words]
    if not _can_serve(environment):
        own = ["-m", "edge"] if program != "edge" else ["-c", "from edge.cli.main import main; main()"]
        command = [sys.executable, *own, *arguments]
        session = functools.partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0) if controlled else None
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=environment,
            encoding=encoding,
            start_new_session=controlled,
            preexec_fn=session,
        )
    order = {
        "arguments": arguments,
        "folder": os.path.abspath(cwd or "."),
        "environment": environment,
        "program": program,
        "controlled": controlled,
    }
    ours: list[IO[Any] | None] = [None, None, None]
    theirs: list[int] = []
    with contextlib.ExitStack() as stack:
        for number, wanted in enumerate((stdin, stdout, stderr)):
            if wanted == subprocess.PIPE:
                reader, writer = os.pipe()
                theirs.append(writer if number else reader)
                mode = "" if encoding else "b"
                own, kind = (reader, f"r{mode}") if number else (writer, f"w{mode}")
                ours[number] = os.fdopen(own, kind, encoding=encoding)
                stack.callback(os.close, theirs[-1])
            elif wanted == subprocess.DEVNULL:
                theirs.append(os.open(os.devnull, os.O_RDWR))
                stack.callback(os.close, theirs[-1])
            elif wanted == subprocess.STDOUT:
                theirs.append(theirs[1])
            else:
                theirs.append(
                    number if wanted is None else wanted if isinstance(wanted, int) else wanted.fileno()
                )
        line, far = socket.socketpair()
        with far:
            socket.send_fds(_server(), [b"+"], [far.fileno(), *theirs])
        line.sendall(json.dumps(order).encode())
        line.shutdown(socket.SHUT_WR)
    command = Command(line)
    command.stdin, command.stdout, command.stderr = ours
    return command


def run(
    *words: object,
    input: str | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    encoding: str = "utf-8",
    program: str = "edge",
) -> "subprocess.CompletedProcess[str]":
    """What a command wrote, and its exit status, as subprocess.run gives them. Its standard input is `input`,
    or else the file `stdin`. Kills it after `timeout` seconds and raises subprocess.TimeoutExpired."""
    pipe = subprocess.PIPE
    process = start(
        *words,
        stdin=stdin if input is None else pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=cwd,
        env=env,
        encoding=encoding,
        program=program,
    )
    try:
        out, err = process.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess([program, *map(str, words)], process.returncode, out, err)


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that count when Python and packages start."""
    return {k: v for k, v in environment.items() if k.startswith(EARLY) and k not in SET}


_EARLY = _early(os.environ)
_PATHS = os.environ.get("PYTHONPATH")  # the tests find edge with it


def _can_serve(environment: Mapping[str, str]) -> bool:
    return (
        "NEW_PROCESSES" not in os.environ
        and sys.platform == "linux"  # macOS's own libraries do not work after a fork
        and _early(environment) == _EARLY
        and environment.get("PYTHONPATH") in (None, str(ROOT), _PATHS)
    )


_servers: dict[int, socket.socket] = {}


def _server() -> socket.socket:
    """The line to this process's server, which starts with the first command and ends with this process."""
    if os.getpid() not in _servers:
        ours, theirs = socket.socketpair()
        own = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command, env={**os.environ, **own}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        _servers[os.getpid()] = ours
        atexit.register(_end, ours, process)
    return _servers[os.getpid()]


def _end(line: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    line.close()
    process.wait()


def _serve(orders: socket.socket) -> dict[str, Any] | None:
    """Fork a child for each order. Returns its order in the child, and None in the server when no more will come."""
    ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands
    lines: dict[int, socket.socket] = {}
    while True:
        ready = select.select([orders, ended], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            _tell(lines)
        if orders not in ready:
            continue
        data, found, _, _ = socket.recv_fds(orders, 1, 4)
        if not data:
            return None
        line = socket.socket(fileno=found[0])
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, one in enumerate(found[1:]):
                os.dup2(one, number)
            with line.makefile("rb") as text:
                order: dict[str, Any] = json.load(text)
            for other in (orders, line, *lines.values()):
                other.close()
            for one in (ended, tell, *found[1:]):
                os.close(one)
            return order
        lines[child] = line
        for one in found[1:]:
            os.close(one)
        line.sendall(b"%d\n" % child)


def _tell(lines: dict[int, socket.socket]) -> None:
    """Tell the tests which commands ended, and how."""
    while lines:
        child, status, usage = os.wait4(-1, os.WNOHANG)
        if not child:
            return
        seconds = usage.ru_utime + usage.ru_stime
        with lines.pop(child) as line, contextlib.suppress(OSError):  # a test need not wait
            line.sendall(b"%d %f\n" % (os.waitstatus_to_exitcode(status), seconds))


def _become(order: dict[str, Any]) -> None:
    """Take over what a started program gets: folder, environment, arguments and streams."""
    if order["controlled"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    module = order["program"] != "edge"
    sys.argv = [str(ROOT / "edge" / "__main__.py") if module else "-c", *order["arguments"]]
    sys.path[0] = os.getcwd() if module else ""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        buffering = 0 if number and old.write_through else -1
        binary = open(  # noqa: SIM115
            number, "wb" if number else "rb", buffering, closefd=False
        )  # as Python's start does
        new = io.TextIOWrapper(
            binary,
            old.encoding,
            old.errors,
            newline="\n",
            line_buffering=number == 2 or binary.isatty(),
            write_through=old.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    for package in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    gc.collect()
    gc.freeze()
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        _become(wanted)
        sys.modules["edge.cli.main"].main()
