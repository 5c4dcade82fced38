#!/usr/bin/env python3
"""Compare all threads with edge's choice of threads, while other programs use the cores.

python benchmarks/busy.py MODEL.gguf [MODEL.gguf ...] [--rounds 3]

For 0, 1 and 2 programs that compute all the time, in each round, in alternating order: one answer with all threads,
as llama.cpp uses them (`Loading.steady`), and one with those that edge chooses. Both are loaded before, and read the
prompt again for each answer. Greedy, so both write the same text, which the script checks. Linux.

s          seconds of an answer, prompt included: the median of the rounds
ratio      median over the rounds of the time with edge's choice divided by that with all threads
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edge import Runner, task_messages
from edge.llama.loading import Loading, with_own_adapter
from edge.system.machine import physical_cores
from edge.system.tables import table

TASK = "Show the disk usage of /var/log, and then the ten largest files in it."


def answer(runner: Runner, number: int) -> tuple[float, str]:
    """Seconds and text of an answer. `number` makes the prompt a new one."""
    start = time.monotonic()
    text = runner.act(task_messages(f"{number}. {TASK}")).text
    return time.monotonic() - start, text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for busy in (0, 1, 2):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            times: dict[bool, list[float]] = {True: [], False: []}
            try:
                runners = {
                    steady: Runner.open(model, with_own_adapter(model, Loading(steady=steady)))
                    for steady in (True, False)
                }
                for number in range(args.rounds):
                    texts = set()
                    for steady in (True, False) if number % 2 else (False, True):
                        seconds, text = answer(runners[steady], number)
                        times[steady].append(seconds)
                        texts.add(text)
                    if len(texts) > 1:
                        raise SystemExit(f"{model}: other text with other threads: {texts}")
                for runner in runners.values():
                    runner.close()
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            ratio = statistics.median(b / a for a, b in zip(times[True], times[False], strict=True))
            medians = [f"{statistics.median(times[steady]):.2f}" for steady in (True, False)]
            rows.append([model.stem, str(busy), *medians, f"{ratio:.2f}"])
    head = ["model", "busy programs", f"s with {physical_cores()} threads", "s with edge's choice", "ratio"]
    print("\n".join(table(head, rows, right=range(1, 5))))


if __name__ == "__main__":
    main()
