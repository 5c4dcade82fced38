"""A server of `edge serve` in another process, for as long as a test needs it."""

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import command_line


@contextlib.contextmanager
def serving(model: Path, *options: object, **environment: str) -> Iterator[str]:
    """The address of a server of this model, without /v1."""
    with command_line.start(
        *("serve", "--model", model, "--port", "0", "--threads", "1", *options),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
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
