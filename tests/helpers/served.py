"""A server of `edge serve` in another process, for as long as a test needs it."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def serving(model: Path, *options: object, **environment: str) -> Iterator[str]:
    """The address of a server of this model, without /v1."""
    command = [sys.executable, "-c", "from edge.cli.main import main; main()", "serve", "--model", str(model)]
    command += ["--port", "0", "--threads", "1", *map(str, options)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("".join(lines))
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        rest.start()
        try:
            yield found[1]
        finally:
            process.terminate()
            process.wait(30)
            rest.join()
