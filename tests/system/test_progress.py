"""The progress of long work on a terminal.

pytest tests/system/test_progress.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

WORK = """
import time
from edge.system.progress import bar
with bar("writing the answer", print, unit="tokens", limit={limit}) as progress:
    for done in range(4):
        progress(done, 1000)
        time.sleep(0.6)
"""


def shown(limit: bool) -> str:
    """What is drawn on a terminal of 80 columns."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", WORK.format(limit=limit)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(slave)
    data = b""
    try:
        while part := os.read(master, 65536):
            data += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert child.wait() == 0, data
    return data.decode()


def test_a_limit_is_not_a_forecast() -> None:
    """An answer may end before its budget: no bar, and the time left is at most that."""
    text = shown(True)
    assert "of at most 1,000 tokens, at most 0:" in text and "━" not in text
    text = shown(False)
    assert "━" in text and "/1000" in text and "at most" not in text
