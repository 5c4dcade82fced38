"""Count what `edge run` does with a model file that has one flipped bit, at many random places.

    python benchmarks/bit_flips.py models/tiny-terminal-Q4_K_M.gguf --places 2000
    python benchmarks/bit_flips.py MODEL --places 2000 --within header      metadata, vocabulary and tensor infos
    python benchmarks/bit_flips.py MODEL --places 2000 --within fields      the header without the vocabulary's texts
    python benchmarks/bit_flips.py MODEL --places 2000 --unchecked          as a file without edge's checksums

Each place is tried in a separate process, forked from a process that has done the imports. The script prints how many
runs refused the file (one line, exit code 1), gave the same answer, gave another valid action, or ended in another
way. It prints each run that ended in another way.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gguf

SECONDS = 60
MEMORY = 2 << 30  # bytes of address space beyond what the imports take


def ask(model: Path, max_tokens: int) -> tuple[int, str, str]:
    """Run `edge run` in a forked process; return its exit status, stdout and stderr."""
    from edge.cli.main import main

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.argv = ["edge", "run", "List the Python files here.", "--model", str(model), "--quiet"]
            sys.argv += ["--max-tokens", str(max_tokens), "--threads", "1", "--json"]
            status = 99
            try:
                main()
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        end = time.monotonic() + SECONDS
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        out.seek(0)
        err.seek(0)
        return (
            os.waitstatus_to_exitcode(status),
            out.read().decode("utf-8", "replace"),
            err.read().decode("utf-8", "replace"),
        )


def verdict(ended: tuple[int, str, str], whole: str) -> str:
    """Classify how a run ended: refused, same answer, other answer, or a fault."""
    status, out, err = ended
    if status == 0:
        try:
            action = json.loads(out)
        except ValueError:
            return "INVALID JSON"
        if not isinstance(action, dict) or not isinstance(action.get("commands"), list):
            return "INVALID JSON"
        return "same answer" if out == whole else "other answer"
    if status == 1 and err.startswith("error: ") and err.count("\n") == 1 and not out:
        return "refused"
    if status == -signal.SIGKILL:
        return "HANG"
    return "CRASH" if status < 0 else "FAULT"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--within", choices=("file", "header", "fields", "data"), default="file")
    parser.add_argument("--unchecked", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()

    import edge.runner
    from edge.formats.gguf import read_tensors
    from edge.llama.library import start

    start()
    assert edge.runner
    tensors = read_tensors(options.model)
    data = min(tensor.offset for tensor in tensors)
    n_bytes = options.model.stat().st_size
    places: Sequence[int] = {
        "file": range(n_bytes),
        "header": range(data),
        "fields": fields(options.model, data) if options.within == "fields" else (),
        "data": range(data, n_bytes),
    }[options.within]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["EDGE_CACHE"] = str(Path(folder) / "cache")
        copy = Path(folder) / "model.gguf"
        shutil.copy(options.model, copy)
        if options.unchecked:
            forget_checksums(copy)
        whole = ask(copy, options.max_tokens)
        assert verdict(whole, whole[1]) == "same answer", whole
        rng = random.Random(options.seed)
        counts: Counter[str] = Counter()
        with copy.open("r+b") as file:
            for _ in range(options.places):
                at, bit = rng.choice(places), rng.randrange(8)
                flip(file.fileno(), at, bit)
                ended = ask(copy, options.max_tokens)
                found = verdict(ended, whole[1])
                flip(file.fileno(), at, bit)
                counts[found] += 1
                if found.isupper():
                    inside = next(
                        (t.name for t in tensors if t.offset <= at < t.offset + t.n_bytes), "header"
                    )
                    print(
                        f"{found}: byte {at:,} bit {bit} ({inside}): {ended[0]} {ended[2][-400:]!r}",
                        flush=True,
                    )
    with contextlib.suppress(BrokenPipeError):
        print(
            f"{options.model.name}, {options.places} places in its {options.within}: {dict(counts.most_common())}"
        )


def fields(path: Path, end: int) -> list[int]:
    """The positions of the header's bytes outside long arrays."""
    from edge.formats.gguf import read_tensors

    places = set(range(end))
    read_tensors(path)  # gguf's reader can loop without end at a damaged header
    for field in gguf.GGUFReader(path).fields.values():
        if len(field.data) > 100:
            begin = field.offset + sum(part.nbytes for part in field.parts[: field.data[0]])
            places -= set(range(begin, field.offset + sum(part.nbytes for part in field.parts)))
    return sorted(places)


def flip(descriptor: int, at: int, bit: int) -> None:
    """Flip a bit. A second call restores it."""
    byte = os.pread(descriptor, 1, at)[0]
    os.pwrite(descriptor, bytes((byte ^ 1 << bit,)), at)


def forget_checksums(path: Path) -> None:
    """Rename the checksum entry of a file that edge wrote, so that no reader finds it."""
    name = b"edge.crc32"
    data = path.read_bytes()
    assert data.count(name) <= 1
    path.write_bytes(data.replace(name, b"some.other"))


if __name__ == "__main__":
    main()
