#!/usr/bin/env python3
"""Compare the cost of a conversion: edge in one pass, and llama.cpp's converter followed by its quantizer.

python benchmarks/convert.py CHECKPOINT --llama-cpp SOURCES --llama-quantize BINARY [--quant Q4_K_M] [--runs 1]

SOURCES are llama.cpp's sources of the installed version, as for scripts/compare_with_llama_cpp.py. The converter needs
torch. The commands alternate in one call. Each command is a separate process, measured from outside with its children:

wall      seconds from start to end. Both sides end with a complete file. edge's time includes the SHA-256 of the file,
          the check that llama.cpp tokenizes as the checkpoint does, and an fsync.
CPU       user and system seconds
memory    ru_maxrss of the largest process. It counts resident pages of mapped files, also those of the checkpoint.
read      bytes requested with read and pread; for mapped files the bytes from the disk. Both are in /proc/PID/io.
written   bytes passed to write and pwrite

If the checkpoint fits into half of the free memory, it is read once before each command. So every command finds it in
the page cache. For a larger checkpoint, each command finds what the previous command left there.

At the end the tensors of the two files are compared. If they differ, the exit code is 1.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from edge.conversion.families import make_plan
from edge.conversion.tokenizer import make_vocabulary
from edge.formats.checkpoint import open_checkpoint
from edge.system.machine import memory, physical_cores
from edge.system.tables import table

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
CONVERTER = SCRIPTS / "llama_cpp_converter.py"
sys.path.insert(0, str(SCRIPTS))


@dataclass(frozen=True)
class Cost:
    """Cost of one or more commands, in seconds and bytes."""

    wall: float
    cpu: float
    memory: int
    read: int
    written: int

    def then(self, other: "Cost") -> "Cost":
        return Cost(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.memory, other.memory),
            self.read + other.read,
            self.written + other.written,
        )


def children(pid: int) -> list[int]:
    """The ids of a process and of all its descendants."""
    found = [pid]
    try:
        for line in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += children(int(line))
    except OSError:
        pass
    return found


def watch(pid: int, seen: dict[int, tuple[int, int]], ended: threading.Event) -> None:
    """Record the bytes that each process has read and written, until `ended` is set."""
    while not ended.wait(0.05):
        for each in children(pid):
            try:
                fields = dict(line.split(": ") for line in Path(f"/proc/{each}/io").read_text().splitlines())
            except (OSError, ValueError):
                continue
            seen[each] = (max(int(fields["rchar"]), int(fields["read_bytes"])), int(fields["wchar"]))


def run(command: list[str]) -> Cost:
    """Run a command to its end and return its cost. Exits this program if the command fails."""
    with tempfile.TemporaryFile("w+") as log:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        seen: dict[int, tuple[int, int]] = {}
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, seen, ended))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\nended with status {process.returncode}:\n{log.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    read, written = (sum(pair[i] for pair in seen.values()) for i in (0, 1))
    return Cost(wall, cpu, 1024 * usage.ru_maxrss, read, written)


def warm(files: list[Path]) -> None:
    """Read the checkpoint into the page cache, if it fits."""
    free = memory().available
    if free is not None and sum(file.stat().st_size for file in files) < free // 2:
        for file in files:
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def main() -> None:
    from compare_with_llama_cpp import tensor_differences

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="SOURCES")
    parser.add_argument("--llama-quantize", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=physical_cores(), help="threads (default: the physical cores)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder with space for three files (default: a temporary folder)"
    )
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    pre = make_vocabulary(checkpoint, make_plan(checkpoint).n_vocab).pre
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    dtype = checkpoint.dtype.lower()
    with tempfile.TemporaryDirectory(prefix="convert-", dir=args.work) as folder:
        ours, floats, theirs = (Path(folder) / f"{name}.gguf" for name in ("edge", dtype, "llama.cpp"))
        edge = [
            str(Path(sys.executable).with_name("edge")),
            "convert",
            str(args.checkpoint),
            "--quant",
            args.quant,
        ]
        edge += ["--out", str(ours), "--threads", str(args.threads)]
        converter = [
            sys.executable,
            str(CONVERTER),
            str(args.llama_cpp),
            pre,
            str(args.checkpoint),
        ]
        converter += ["--outtype", dtype, "--outfile", str(floats)]
        quantizer = [str(args.llama_quantize), str(floats), str(theirs), args.quant, str(args.threads)]
        steps: dict[str, list[Cost]] = {"edge convert": [], "convert_hf_to_gguf.py": [], "llama-quantize": []}
        for number in range(args.runs):
            order = [
                ("edge convert", edge),
                ("convert_hf_to_gguf.py", converter),
                ("llama-quantize", quantizer),
            ]
            for name, command in order if number % 2 == 0 else [*order[1:], order[0]]:
                warm(files if name != "llama-quantize" else [floats])
                steps[name].append(run(command))
                print(f"{name}: {steps[name][-1].wall:.1f} s", file=sys.stderr)
        sizes = {
            name: path.stat().st_size for name, path in (("edge", ours), ("peer", theirs), ("floats", floats))
        }
        same = not tensor_differences(ours, theirs)
    both = [a.then(b) for a, b in zip(steps["convert_hf_to_gguf.py"], steps["llama-quantize"], strict=True)]
    steps["llama.cpp, both steps"] = both
    lines = []
    for name, costs in steps.items():

        def median(field: str, costs: list[Cost] = costs) -> float:
            return statistics.median(getattr(cost, field) for cost in costs)

        line = [name, f"{median('wall'):.1f}", f"{median('cpu'):.1f}", f"{median('memory') / 2**20:,.0f}"]
        lines.append([*line, f"{median('read') / 1e9:.2f}", f"{median('written') / 1e9:.2f}"])
    header = ["command", "wall s", "CPU s", "peak MiB", "GB read", "GB written"]
    print("\n".join(table(header, lines, right=[1, 2, 3, 4, 5])))
    pairs = list(zip(steps["edge convert"], both, steps["llama-quantize"], strict=True))
    size = sum(file.stat().st_size for file in files)
    print(
        f"\n{args.quant}, {args.threads} threads, {args.runs} run(s); checkpoint {size / 1e9:.2f} GB, edge's file "
        f"{sizes['edge'] / 1e9:.3f} GB, llama.cpp's {sizes['peer'] / 1e9:.3f} GB, the {dtype} one between "
        f"{sizes['floats'] / 1e9:.2f} GB. Tensors {'equal' if same else 'DIFFERENT'}.\n"
        f"edge / both steps: {statistics.median(a.wall / b.wall for a, b, _ in pairs):.2f} × wall, "
        f"{statistics.median(a.cpu / b.cpu for a, b, _ in pairs):.2f} × CPU; edge / llama-quantize alone: "
        f"{statistics.median(a.wall / c.wall for a, _, c in pairs):.2f} × wall."
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
