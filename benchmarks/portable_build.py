"""Measure the cost of a llama.cpp for any processor: two installations of edge run one model in turn.

    python benchmarks/portable_build.py MODEL NATIVE_PYTHON PORTABLE_PYTHON [--runs 5]

Uses one thread and measures its processor time, so that other work on the machine has little effect. The best of all
runs counts. With `--each x64,haswell` the script also runs these libraries of the second installation, each alone. The
second installation must then come from a bundle.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

READ, WRITE = 512, 64
CHILD = """
import json, sys, time
from edge.runner import Runner
with Runner.load(sys.argv[1], threads=1) as runner:
    ids = runner.encode("The quick brown fox lists the files of a folder. " * 100)
    def seconds(begin, tokens):  # a different start each time, so that no part of the prompt is cached
        prompt = ids[begin : begin + int(sys.argv[2])]
        began = time.process_time()
        ((_, answer),) = runner.answers([prompt], tokens, constrained=False)
        return time.process_time() - began, answer.completion_tokens
    seconds(0, 1)
    read, _ = seconds(1, 1)
    both, written = seconds(2, int(sys.argv[3]))
mapped = open("/proc/self/maps").read().split()
library = next((place.rpartition("/")[2] for place in mapped if "libggml-cpu" in place), "")
print(json.dumps([int(sys.argv[2]) / read, (written - 1) / (both - read), library]))
"""


def speeds(python: str, model: str) -> tuple[float, float, str]:
    """Tokens read and written a second, and the library that computed them."""
    command = [str(Path(python).absolute()), "-c", CHILD, str(Path(model).absolute()), str(READ), str(WRITE)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tempfile.gettempdir())
    read, written, library = json.loads(run.stdout.splitlines()[-1])
    return read, written, library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("native")
    parser.add_argument("portable")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--each", default="", help="libraries of the second installation to run alone, separated by commas"
    )
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.runs):
        for name, python in (("native", given.native), ("portable", given.portable)):
            read, written, library = speeds(python, given.model)
            found.setdefault(f"{name}, {library}", []).append((read, written))
    if given.each:
        folder = Path(given.portable).parent.parent.glob("lib/python*/site-packages/llama_cpp/lib")
        libraries = sorted(next(folder).glob("libggml-cpu-*.so"))
        for library in libraries:
            if library.stem.removeprefix("libggml-cpu-") not in given.each.split(","):
                continue
            others = [other for other in libraries if other != library]
            for other in others:
                other.rename(other.with_suffix(".off"))
            try:
                for _ in range(given.runs):
                    read, written, name = speeds(given.portable, given.model)
                    found.setdefault(f"alone, {name}", []).append((read, written))
            finally:
                for other in others:
                    other.with_suffix(".off").rename(other)
    print(f"{'library':48} {'read':>8} {'written':>8}   tokens per second of one processor")
    for name, runs in found.items():
        print(f"{name:48} {max(run[0] for run in runs):8,.0f} {max(run[1] for run in runs):8,.1f}")


if __name__ == "__main__":
    main()
