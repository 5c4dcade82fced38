"""How long the sandbox of `edge agent` takes from its preparation to the first prompt, checks included.

PYTHONPATH=$PWD python benchmarks/sandbox_start.py [ROUNDS]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from edge.terminal.sandbox import Sandbox
from edge.terminal.tmux import Terminal


def start(workdir: Path) -> tuple[float, float]:
    """Seconds until the sandbox is prepared, and from there until the first prompt."""
    began = time.perf_counter()
    with Sandbox.prepare(workdir) as sandbox:
        prepared = time.perf_counter()
        with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready) as terminal:
            while terminal.prompt() is None:
                time.sleep(0.005)
            return prepared - began, time.perf_counter() - prepared


def main() -> None:
    """Print the medians of some starts with a work folder of one file."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as place:
        Path(place, "file").write_text("a\n")
        times = [start(Path(place)) for _ in range(rounds)]
    for name, column in zip(("prepared", "first prompt"), zip(*times, strict=True), strict=True):
        low, middle, high = min(column), statistics.median(column), max(column)
        print(f"{name}: {middle * 1000:.0f} ms ({low * 1000:.0f} to {high * 1000:.0f}), {rounds} starts")


if __name__ == "__main__":
    main()
