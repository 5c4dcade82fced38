"""What the sandbox of `edge agent` costs on a large folder: its start, and the save after each step. Before and after.

git worktree add /tmp/before 9dd1d13
PYTHONPATH=$PWD python benchmarks/sandbox_step.py --before /tmp/before [--pairs 5] [--mib 200] [--files 1500]

Each pair is one session of each tree, one after the other, in alternating order, each in a process of its own. A step
writes one small file and saves. Processor time is that of the process and of all that it started, the sandbox included;
it and the bytes written depend little on other work of the machine.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 1 << 30


def session(workdir: Path, steps: int, place: Path) -> dict[str, Any]:
    """One session with the edge that this process imports; 9dd1d13 has other modules."""
    try:
        from edge.terminal.sandbox import Sandbox
        from edge.terminal.saved import Saved
        from edge.terminal.tmux import Terminal
    except ModuleNotFoundError:
        from edge.sandbox import Sandbox  # type: ignore[no-redef,import-not-found]
        from edge.terminal import Terminal  # type: ignore[no-redef,attr-defined]

        Saved = None  # type: ignore[assignment,misc]
    archive = place / "work.tar"
    began = time.perf_counter()
    if Saved is None:
        made = Sandbox.prepare(workdir)
    else:
        made = Sandbox.prepare(workdir, saved=Saved(archive, place / "first.tar", b"k" * 32))
    saves = []
    with made as sandbox:
        prepared = time.perf_counter()
        with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready) as terminal:
            while terminal.prompt() is None:
                time.sleep(0.005)
            started = time.perf_counter()
            for number in range(steps):
                terminal.send(f"echo {number} > step{number}\n", 0.3)
                begin = time.perf_counter()
                sandbox.save(archive)
                saves.append(time.perf_counter() - begin)
            size = archive.stat().st_size
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "prepared s": prepared - began,
        "first prompt s": started - prepared,
        "save s": statistics.median(saves),
        "processor s": sum(one.ru_utime + one.ru_stime for one in used),
        "saved MiB": size / (1 << 20),
    }


def fill(folder: Path, mib: int, files: int) -> None:
    """A folder of random files, so that nothing compresses them."""
    chance = random.Random(1)
    for number in range(files):
        path = folder / f"d{number % 40}" / f"f{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes((mib << 20) // files))


def run(tree: Path, workdir: Path, steps: int) -> dict[str, Any]:
    """A session of the edge in `tree`, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", str(workdir), "--place", place]
        env = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run([*command, "--steps", str(steps)], env=env, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Run the pairs and print the medians, with the lowest and the highest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(session(given.child, given.steps, given.place)))
        return
    trees = {"now": Path(__file__).resolve().parents[1]}
    if given.before is not None:
        trees["before"] = given.before.resolve()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        fill(Path(temporary), given.mib, given.files)
        for pair in range(given.pairs):
            for name in sorted(trees, reverse=pair % 2 == 0):
                found[name].append(run(trees[name], Path(temporary), given.steps))
                print(name, found[name][-1], file=sys.stderr, flush=True)
            load.append(os.getloadavg()[0])
    print(f"load average {min(load):.1f} to {max(load):.1f}; {given.pairs} pairs, {given.steps} steps each")
    print("| | " + " | ".join(trees) + " |\n|---|" + "---|" * len(trees))
    for what in found["now"][0]:
        cells = []
        for name in trees:
            values = [one[what] for one in found[name]]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
