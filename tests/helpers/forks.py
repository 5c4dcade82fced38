"""The command line in a child process with limits on its memory, time and files, or killed in its middle.

One process does the imports, and forks a child for each command: a hundred commands then take seconds, not minutes.
"""

import contextlib
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SECONDS = 60  # after which a command is killed
MEMORY = 1 << 30  # bytes of address space beyond what the imports take
# What Python tells of a process's work on files (https://docs.python.org/3/library/audit_events.html).
EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.truncate",
    "os.mkdir",
    "os.rmdir",
    "fcntl.flock",
    "os.listdir",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (negative: a signal's number), what it wrote, its peak memory in bytes.

    `events`: how often it did something to a file.
    """

    status: int
    out: str
    err: str
    peak: int
    events: int


class Edge:
    """Runs `edge` commands; `Edge.started()` makes one."""

    def __init__(self, to: IO[str], answers: IO[str], pid: int) -> None:
        self._to, self._answers, self.pid = to, answers, pid

    @staticmethod
    @contextlib.contextmanager
    def started(*modules: str, within: Sequence[str] = ()) -> Iterator["Edge"]:
        """`modules`: what is imported before the forks, beside what `edge convert` imports. `within`: a command that
        runs the process, such as `unshare`."""
        command = [*within, sys.executable, __file__, *modules]
        package = str(Path(__file__).resolve().parents[2])
        env = {
            **os.environ,
            "PYTHONPATH": package,
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Edge(process.stdin, process.stdout, process.pid)
            process.stdin.close()

    def run(
        self,
        *arguments: str | Path,
        file_size: int | None = None,
        deadly: bool = False,
        memory: int = MEMORY,
        stop: tuple[int, int] | None = None,
        folder: Path | None = None,
        user: int | None = None,
        state: Path | None = None,
    ) -> Ended:
        """`file_size`: the most bytes that a file may get, as on a disk that is full; where `deadly`, the process ends
        at that byte. `memory`: bytes of address space beyond what the imports take. `stop`: at which of its events it
        gets which signal. `folder`: where it runs. `user`: as whom. `state`: edge's state folder."""
        order = {
            "arguments": [os.fspath(argument) for argument in arguments],
            "file_size": file_size,
            "deadly": deadly,
            "memory": memory,
            "stop": stop,
            "folder": None if folder is None else os.fspath(folder),
            "user": user,
            "state": None if state is None else os.fspath(state),
        }
        print(json.dumps(order), file=self._to, flush=True)
        return Ended(**json.loads(self._answers.readline()))


def _serve() -> None:
    from edge.cli.main import main

    sys.argv[1:], modules = ["convert", "no such folder"], sys.argv[1:]
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stderr(nothing),
        contextlib.suppress(SystemExit),
    ):
        main()  # for what it imports
    for module in modules:
        importlib.import_module(module)

    for line in sys.stdin:
        order = json.loads(line)
        counter = mmap.mmap(-1, 8)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                with open(os.devnull) as nothing:
                    os.dup2(nothing.fileno(), 0)
                sys.stdin = os.fdopen(0, closefd=False)  # unread: edge sets how it decodes
                _limit(order)
                sys.argv = ["edge", *order["arguments"]]
                _count(counter, order["stop"])
                try:
                    main()
                except SystemExit as stop:
                    status = stop.code if isinstance(stop.code, int) else 1
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    status = 99
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            told = _wait(child) | {"out": _text(out), "err": _text(err)}
            print(json.dumps(told | {"events": struct.unpack("q", counter[:8])[0]}), flush=True)


def _count(counter: mmap.mmap, stop: tuple[int, int] | None) -> None:
    """Count what this process does to files, and send it a signal at one of these events."""
    done = 0

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event in EVENTS:
            done += 1
            counter[:8] = struct.pack("q", done)
            if stop is not None and done == stop[0]:
                os.kill(os.getpid(), stop[1])

    sys.addaudithook(hook)


def _limit(order: dict[str, Any]) -> None:
    if order["folder"] is not None:
        os.chdir(order["folder"])
        os.environ["EDGE_MODELS"] = os.path.join(order["folder"], "models")
    if order["state"] is not None:
        os.environ["EDGE_STATE"] = order["state"]
    if order["user"] is not None:
        os.environ["EDGE_CONFIG"] = os.devnull  # the other user may not read the tests' home
        os.setgroups([])
        os.setresgid(*[order["user"]] * 3)
        os.setresuid(*[order["user"]] * 3)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + order["memory"]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order["file_size"] is not None:
        if order["deadly"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))


def _wait(child: int) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return {"status": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024}
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    _serve()
