#!/usr/bin/env python3
"""Measure the first token after a restart, with the prompt's state on disk and without; kill and damage the store.

python benchmarks/restart.py MODEL.gguf [--tokens 8000] [--rounds 1]
python benchmarks/restart.py MODEL.gguf --llama-server BINARY        the same prompt by llama-server's slot files
python benchmarks/restart.py MODEL.gguf --kills 200 --flips 1000     no timing

Each measurement is a new process: it loads the model, then reads a prompt of `--tokens` tokens of which all but 20 are
instructions. "First token" is the time from the prompt to the logits after it, "loading" the time before it, "closing"
the time after it. "Cold" finds no state; it copies its own in memory while it reads, and writes it when it closes.
"Restored" finds it. With `--without`, a third process neither reads nor writes states. The logits of all must be equal
to the last bit, or the script fails. Texts are made up; the store is in a temporary folder.

`--kills N`: N processes that read a prompt and write its state are killed (SIGKILL) at random moments. After each,
every file of the store must be whole. `--flips N`: N times one bit of a state is flipped before a prompt is read. The
state must be refused, or the logits be right.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.llama.engine import Engine
from edge.llama.jobs import Job, Writer
from edge.llama.loading import Loading, States
from edge.llama.states import StateStore, states_folder, stored_files
from edge.system.tables import table

TASK = 20  # tokens after the instructions


def prompt_of(count: int, seed: int = 0) -> list[int]:
    """Made-up tokens: the instructions are the same for each seed."""
    common, own = random.Random(1), random.Random(seed + 2)
    return [
        *(common.randrange(300, 2000) for _ in range(count - TASK)),
        *(own.randrange(300, 2000) for _ in range(TASK)),
    ]


def logits_after() -> Writer[np.ndarray]:
    """The logits after the prompt, and no answer."""
    return (yield []).copy()


def read(engine: Engine, prompt: list[int]) -> np.ndarray:
    """The logits after a prompt whose instructions may go to disk."""
    length = len(prompt) - TASK
    job = Job(prompt, logits_after(), 1, [length], stored=[length])
    return next(iter(list(engine.run([job]))))[1]


def child(model: Path, count: int, seed: int, threads: int | None, *, states: bool) -> None:
    """One measurement, as a line of JSON."""
    begin = time.perf_counter()
    engine = Engine(model, Loading(threads=threads, states=States() if states else None))
    engine.reserve(count + 8, 2)
    prompt, loaded = prompt_of(count, seed), time.perf_counter()
    logits = read(engine, prompt)
    done = time.perf_counter()
    engine.close()
    print(
        json.dumps(
            {
                "loading": loaded - begin,
                "first token": done - loaded,
                "closing": time.perf_counter() - done,
                "read": engine.prompt_tokens_decoded,
                "logits": hashlib.sha256(logits.tobytes()).hexdigest(),
            }
        )
    )


def measured(model: Path, count: int, seed: int, threads: int | None, states: bool) -> dict[str, Any]:
    """The figures of a new process."""
    options = ["--child", str(seed), "--tokens", str(count), *(["--states"] if states else [])]
    options += [] if threads is None else ["--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, model, *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"a measurement failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def restarts(model: Path, count: int, rounds: int, threads: int | None, without: bool) -> list[list[str]]:
    """The rows of the table."""
    plan = {"cold": True, "restored": True, **({"without states": False} if without else {})}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for number in range(rounds):
        for file in stored_files(states_folder()):
            file.path.unlink()
        for name, states in plan.items():
            runs[name].append(measured(model, count, number, threads, states))
        found = {run[-1]["logits"] for run in runs.values()}
        if len(found) != 1 or runs["restored"][-1]["read"] != TASK:
            sys.exit(f"the logits differ, or nothing was restored: {runs}")
    [file] = stored_files(states_folder())
    cold = statistics.median(run["first token"] for run in runs["cold"])
    rows = []
    for name, found_runs in runs.items():
        first = statistics.median(run["first token"] for run in found_runs)
        rows.append(
            [
                name,
                f"{found_runs[0]['read']:,}",
                f"{statistics.median(run['loading'] for run in found_runs):.2f} s",
                f"{first:.2f} s",
                f"{100 * first / cold:.1f} %",
                f"{statistics.median(run['closing'] for run in found_runs):.2f} s",
                f"{file.n_bytes / 1e6:.1f} MB" if name == "restored" else "–",
            ]
        )
    return rows


def call(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of llama-server."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as answer:
        fields: dict[str, Any] = json.load(answer)
        return fields


@contextlib.contextmanager
def server(binary: Path, model: Path, folder: Path, port: int, count: int) -> Iterator[str]:
    """Start llama-server with one slot; its URL."""
    arguments = [binary, "-m", model, "--port", port, "-np", 1, "-c", count + 64, "--slot-save-path", folder]
    with subprocess.Popen(
        list(map(str, arguments)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        url = f"http://127.0.0.1:{port}"
        try:
            while running.poll() is None:
                try:
                    with urllib.request.urlopen(f"{url}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.1)
            yield url
        finally:
            running.terminate()


def slots(binary: Path, model: Path, count: int) -> list[list[str]]:
    """llama-server: the instructions read and saved in one process, restored in the next one; then the whole prompt."""
    prompt, rows = prompt_of(count), []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("saves", "restored"):
            with server(binary, model, Path(folder), 18080, count) as url:
                begin = time.perf_counter()
                if name == "restored":
                    call(f"{url}/slots/0?action=restore", {"filename": "state"})
                asked = prompt[:-TASK] if name == "saves" else prompt
                body = {"prompt": asked, "n_predict": 1, "cache_prompt": True, "id_slot": 0}
                answer = call(f"{url}/completion", body)
                seconds = time.perf_counter() - begin
                if name == "saves":
                    call(f"{url}/slots/0?action=save", {"filename": "state"})
                read_now = answer["timings"]["prompt_n"]
                size = (Path(folder) / "state").stat().st_size
                rows.append(
                    [
                        f"llama-server, {name}",
                        f"{read_now:,}",
                        "–",
                        f"{seconds:.2f} s",
                        "–",
                        "–",
                        f"{size / 1e6:.1f} MB",
                    ]
                )
    return rows


def kills(model: Path, count: int, number: int) -> str:
    """Kill processes that write a state; every file of the store must be whole after each."""
    begin, rng, left = time.monotonic(), random.Random(3), 0
    prompt = prompt_of(count)
    seconds = 0.0
    for index in range(number + 1):  # the first one ends by itself, and says how long it takes
        for file in stored_files(states_folder()):
            file.path.unlink()
        started = time.monotonic()
        process = os.fork()
        if not process:
            engine = Engine(model, Loading(threads=1, states=States()))
            engine.reserve(count + 8, 2)
            read(engine, prompt)
            engine.close()
            os._exit(0)
        if index:
            time.sleep(rng.uniform(0, 1.1 * seconds))
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        seconds = seconds or time.monotonic() - started
        files = [path for path in states_folder().glob("*.state")] if states_folder().exists() else []
        store = StateStore()
        good = [file for file in stored_files(states_folder()) if store.load(file) is not None]
        if len(good) != len(files):
            sys.exit(f"a killed process left a file that is not whole: {files}")
        left += bool(index and good)
    beside = len([path for path in states_folder().iterdir() if path.suffix != ".state"])
    return (
        f"{number} processes killed within {1.1 * seconds:.1f} s of their start: {left} had written a whole state, "
        f"{number - left} none, 0 a damaged one; {beside} temporary files left ({time.monotonic() - begin:.0f} s)"
    )


def flips(model: Path, count: int, number: int) -> str:
    """Flip one bit of the state before each prompt: refused, or the right logits."""
    begin, rng, refused, right = time.monotonic(), random.Random(4), 0, 0
    engine = Engine(model, Loading(threads=1, states=States()))
    engine.reserve(count + 8, 2)
    prompt = prompt_of(count)
    expected = read(engine, prompt)
    for _ in range(number):
        assert engine.states is not None
        engine.states.close()  # the state is on disk now
        [file] = stored_files(states_folder())
        data = bytearray(file.path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.path.write_bytes(data)
        engine.forget(None)
        before = engine.prompt_tokens_decoded
        logits = read(engine, prompt)
        if not np.array_equal(logits, expected):
            sys.exit("a damaged state gave other logits")
        restored = engine.prompt_tokens_decoded - before == TASK
        refused, right = refused + (not restored), right + restored
    engine.close()
    seconds = time.monotonic() - begin
    return f"{number} flipped bits: {refused} refused, {right} used and right, 0 wrong ({seconds:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--states", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        return child(given.model, given.tokens, given.child, given.threads, states=given.states)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"EDGE_CACHE": f"{folder}/cache", "EDGE_STATE": f"{folder}/state"}
        if given.kills or given.flips:
            if given.kills:
                print(kills(given.model, given.tokens, given.kills), flush=True)
            if given.flips:
                print(flips(given.model, given.tokens, given.flips))
            return None
        rows = restarts(given.model, given.tokens, given.rounds, given.threads, given.without)
        if given.llama_server:
            rows += slots(given.llama_server, given.model, given.tokens)
    print(f"{given.model.name}, {given.tokens:,} tokens, {given.rounds} rounds (medians)\n")
    header = ["", "tokens read", "loading", "first token", "of cold", "closing", "state"]
    print("\n".join(table(header, rows, right=range(1, 7))))
    return None


if __name__ == "__main__":
    main()
