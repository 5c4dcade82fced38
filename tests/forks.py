"""The command line in a child process with limits on its memory, time and files.

One process does the imports, and forks a child for each command: a hundred commands then take seconds, not minutes.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SECONDS = 60  # after which a command is killed
MEMORY = 1 << 30  # bytes of address space beyond what the imports take


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (negative: a signal's number), what it wrote, its peak memory in bytes."""

    status: int
    out: str
    err: str
    peak: int


class Edge:
    """Runs `edge` commands; `Edge.started()` makes one."""

    def __init__(self, to: IO[str], answers: IO[str]) -> None:
        self._to, self._answers = to, answers

    @staticmethod
    @contextlib.contextmanager
    def started() -> Iterator["Edge"]:
        command = [sys.executable, __file__]
        package = str(Path(__file__).resolve().parent.parent)
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
            yield Edge(process.stdin, process.stdout)
            process.stdin.close()

    def run(self, *arguments: str | Path, file_size: int | None = None) -> Ended:
        """`file_size`: the most bytes that a file may get, as on a disk that is full."""
        order = {"arguments": [os.fspath(argument) for argument in arguments], "file_size": file_size}
        print(json.dumps(order), file=self._to, flush=True)
        return Ended(**json.loads(self._answers.readline()))


def _serve() -> None:
    from edge.cli import main

    sys.argv = ["edge", "convert", "no such folder"]
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stderr(nothing),
        contextlib.suppress(SystemExit),
    ):
        main()  # for what it imports

    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                with open(os.devnull) as nothing:
                    os.dup2(nothing.fileno(), 0)
                _limit(order["file_size"])
                sys.argv = ["edge", *order["arguments"]]
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
            print(json.dumps(_wait(child) | {"out": _text(out), "err": _text(err)}), flush=True)


def _limit(file_size: int | None) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))


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
