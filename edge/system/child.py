"""Child processes: a module of edge run as a program, because llama.cpp may stop the whole process."""

import os
import signal
import subprocess
import sys
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


def signal_name(status: int) -> str | None:
    """The name of the signal that ended a process, from its exit status; None if the process exited."""
    return signal.Signals(-status).name if status < 0 else None
