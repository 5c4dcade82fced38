"""Child processes: a module of edge (llama.cpp can stop its process), or a program that starts programs."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def run_module(
    module: str, *arguments: str, stdin: str = "", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with this interpreter and this copy of edge, and wait until it ends.

    Input and output are UTF-8; other bytes become surrogate escapes. `timeout` is in seconds. Raises
    subprocess.TimeoutExpired, and OSError if the process does not start.
    """
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8:surrogateescape",
        "GGML_NO_BACKTRACE": "1",
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        timeout=timeout,
        env=environment,
    )


@contextlib.contextmanager
def program_group(
    command: Sequence[str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Start a program that starts programs. If the block ends before them, for example by Ctrl-C, all get SIGTERM.

    The program has no input. Output that is not UTF-8 becomes U+FFFD. `environment` is added to this process's.
    The block's end waits for the program. Raises OSError if it does not start.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                if sys.platform == "win32":
                    child.terminate()
                else:
                    os.killpg(child.pid, signal.SIGTERM)
                child.communicate()


def signal_name(status: int) -> str | None:
    """The name of the signal that ended a process, from its exit status; None if the process exited."""
    return signal.Signals(-status).name if status < 0 else None
