#!/usr/bin/env python3
"""Compare a replay by edge, llama-server and llama-cpp-python: same model file, same rows, same machine, one call.

python benchmarks/replay.py --model MODEL.gguf --replay ROWS.jsonl --llama-server BINARY

Every peer gets the same token ids (rendered and tokenized as edge does), the same grammar (edge/grammar.gbnf), greedy
choice, and the same number of new tokens and threads. Each run is a separate process. The runs alternate, because the
speed of a machine drifts. The table has their medians.

"wall" is the time from the first prompt to the last answer. The model is loaded and the prompts are tokenized before.
"process" is the whole process of edge or llama-cpp-python. "valid" counts the answers that edge's strict parser reads
as an action. "valid JSON" counts those in which the published scorer finds an object. Peak memory is ru_maxrss of the
process that holds the model, with the mapped model file.

llama-cpp-python answers one prompt after the other with its defaults. Where the model's cache can be cut, it resumes
from the prefix that a prompt shares with the one before. A hybrid's cache cannot be cut, so there it resumes only from
the end of the cache.

llama-server keeps its prompt cache on. The steps of a task go to one slot in their order, with one client for each
slot. Each value of `--slots` and `--server-options` is tried, and edge is compared with the best.

The floor is the time that llama.cpp needs for the work that an engine cannot avoid if it writes one answer at a time:
reading the rows' prefix tree, each distinct token once, in batches of 512; and every free token of edge's answers
(those that the grammar did not force) alone, at the speed measured at the depth of its row. Both are measured on the
rows, between the runs of the peers. An engine that writes several answers in one batch can be faster than the floor.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import peak_memory

from edge.answer.action import parse_action
from edge.errors import GrammarError
from edge.metrics import payload
from edge.system.machine import physical_cores
from edge.system.tables import table

Run = dict[str, Any]
FLOOR = "floor (llama.cpp)"


def child(command: list[str], output: Path) -> tuple[float, int]:
    """Run a command to its end. Return (seconds, peak memory in bytes). Exits this program if it fails."""
    errors = output.with_suffix(".errors")
    began = time.perf_counter()
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        peak = peak_memory(process)
    duration = time.perf_counter() - began
    if process.returncode:
        sys.exit(
            f"{shlex.join(command)}\nended with status {process.returncode}:\n{errors.read_text()[-2000:]}"
        )
    return duration, peak


def peer(kind: str, job: dict[str, Any], folder: Path) -> Run:
    """Run one peer of peers.py."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    script = str(Path(__file__).with_name("peers.py"))
    files = [str(folder / "job.json"), str(folder / "out.json")]
    process_sec, peak = child([sys.executable, script, kind, *files], folder / "printed")
    run: Run = {"peak_bytes": peak, "process_sec": process_sec}
    return run | json.loads((folder / "out.json").read_text(encoding="utf-8"))


def edge(job: dict[str, Any], options: str, folder: Path) -> Run:
    """Run `edge eval` on the chosen rows."""
    with tempfile.TemporaryDirectory(dir=folder) as name:  # without the journal of an earlier run
        out = Path(name) / "edge.json"
        command = [
            sys.executable,
            "-c",
            "from edge.cli.main import main; main()",
            "eval",
            "--model",
            job["model"],
        ]
        command += ["--replay", str(folder / "rows.jsonl"), "--out", str(out), "--think", "off"]
        command += ["--no-state-cache"]  # each run reads all its prompts
        command += ["--max-tokens", str(job["max_tokens"]), "--threads", str(job["threads"])]
        process_sec, peak = child(command + shlex.split(options), folder / "printed")
        result = json.loads(out.read_text(encoding="utf-8"))
    steps, counters = result["per_step"], result["engine"]
    return {
        "load_sec": result["load_time_sec"],
        "wall_sec": result["avg_sec_per_step"] * len(steps),  # more digits than gen_time_sec
        "process_sec": process_sec,
        "peak_bytes": peak,
        "prompt_tokens_decoded": counters["prompt_tokens_decoded"],
        "tokens_out": counters["completion_tokens"],
        "texts": [step["pred_text"] for step in steps],
        "free_tokens": [step["completion_tokens"] - step["forced_tokens"] for step in steps],
    }


def with_free_tokens(run: Run, free: list[int]) -> Run:
    """Add to the floor's run the time to write edge's free tokens at the depth of each row."""
    write_sec = sum(n * each for n, each in zip(free, run["write_sec_per_token"], strict=True))
    return run | {"wall_sec": run["read_sec"] + write_sec, "write_sec": write_sec, "tokens_out": sum(free)}


def is_action(text: str) -> bool:
    try:
        parse_action(text)
    except GrammarError:
        return False
    return True


def median(runs: list[Run], field: str) -> float:
    return statistics.median(run[field] for run in runs)


def seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(name: str, runs: list[Run]) -> list[str]:
    walls = sorted(run["wall_sec"] for run in runs)
    cells = [name, seconds(median(runs, "wall_sec")), f"{seconds(walls[0])}–{seconds(walls[-1])}"]
    if name == FLOOR:
        cells += ["–", "–"]
    else:
        cells.append(seconds(median(runs, "load_sec")))
        cells.append("–" if name.startswith("llama-server") else seconds(median(runs, "process_sec")))
    cells += [f"{median(runs, 'prompt_tokens_decoded'):,.0f}", f"{median(runs, 'tokens_out'):,.0f}"]
    if name == FLOOR:
        return [*cells, "–", "–", "–"]
    texts = runs[-1]["texts"]
    cells.append(f"{sum(map(is_action, texts))}/{len(texts)}")
    cells.append(f"{sum(payload(text) is not None for text in texts)}/{len(texts)}")
    return [*cells, f"{median(runs, 'peak_bytes') / 2**20:,.0f}"]


def ratio(name: str, runs: list[Run], other: str, others: list[Run]) -> str:
    """One line with the ratio of the medians, and the ratio of each round."""
    value = median(runs, "wall_sec") / median(others, "wall_sec")
    each = ", ".join(f"{a['wall_sec'] / b['wall_sec']:.2f}" for a, b in zip(runs, others, strict=True))
    line = f"- {name} takes {value:.2f} × the wall time of {other} (round by round: {each})"
    mine, theirs = median(runs, "prompt_tokens_decoded"), median(others, "prompt_tokens_decoded")
    return f"{line}; prompt tokens decoded: {mine:,.0f} against {theirs:,.0f} (1 : {theirs / mine:.2f})"


def report(job: dict[str, Any], results: dict[str, list[Run]], rounds: int) -> list[str]:
    prompts = job["prompts"]
    lengths = sorted(map(len, prompts))
    lines = [
        f"{Path(job['model']).name}: {len(prompts)} rows of {len(set(job['tasks']))} tasks, "
        f"{lengths[0]:,} to {lengths[-1]:,} tokens, {sum(lengths):,} in total, {job['distinct']:,} distinct; "
        f"{job['max_tokens']} new tokens each; {job['threads']} threads; median of {rounds}.",
        "",
    ]
    header = ["peer", "wall s", "from–to", "load s", "process s", "prompt tokens decoded", "tokens out"]
    header += ["valid", "valid JSON", "peak MiB"]
    lines += table(header, [row(name, runs) for name, runs in results.items()], right=range(1, len(header)))
    if FLOOR in results:
        runs = results[FLOOR]
        depths = [1000 * each for run in runs for each in run["write_sec_per_token"]]
        lines += [
            "",
            f"Floor: {seconds(median(runs, 'read_sec'))} s to read "
            f"({job['distinct'] / median(runs, 'read_sec'):.0f} tokens/s), "
            f"{seconds(median(runs, 'write_sec'))} s to write "
            f"({min(depths):.1f} to {max(depths):.1f} ms a token).",
        ]
    lines.append("")
    servers = [name for name in results if name.startswith("llama-server")]
    best = min(servers, key=lambda name: median(results[name], "wall_sec"), default=None)
    for name in results:
        if name.startswith("edge"):
            for other in (best, "llama-cpp-python", FLOOR):
                if other in results:
                    lines.append(ratio(name, results[name], other, results[other]))
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--replay", required=True, type=Path, help="replay rows (JSON Lines)")
    parser.add_argument(
        "--rows", type=int, default=36, help="use the first N rows that fit; 0: all (default: 36)"
    )
    parser.add_argument(
        "--under", type=int, default=4000, help="use only rows with fewer prompt tokens (default: 4000)"
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="new tokens for each row (default: 128)")
    parser.add_argument("--threads", type=int, help="threads for every peer (default: the physical cores)")
    parser.add_argument("--runs", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument(
        "--only",
        default="edge,server,python,floor",
        help="peers to run, separated by commas (default: edge,server,python,floor)",
    )
    parser.add_argument(
        "--llama-server", type=Path, help="llama-server binary; without it this peer is left out"
    )
    parser.add_argument(
        "--slots", default="1,4", help="slot counts to try, separated by commas (default: 1,4)"
    )
    parser.add_argument(
        "--server-options",
        action="append",
        help='more options for llama-server: --server-options="-fa off"; if given twice, both are tried',
    )
    parser.add_argument(
        "--edge-options",
        action="append",
        help='more options for `edge eval`: --edge-options="--parallel 1"; if given twice, both are tried',
    )
    parser.add_argument(
        "--floor-flash-attention",
        action="store_true",
        help="measure the floor with flash attention (default: off, as edge on a CPU)",
    )
    parser.add_argument("--json", type=Path, help="file for the figures of every run")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - {"edge", "server", "python", "floor"}:
        parser.error(f"--only: unknown peer: {', '.join(sorted(unknown))}")
    if "floor" in args.only and "edge" not in args.only:
        parser.error("--only: the floor uses edge's free tokens, so it needs edge")
    return args


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(args.model.resolve())
        job = {"model": model, "max_tokens": args.max_tokens, "threads": args.threads or physical_cores()}
        chosen = {"replay": str(args.replay.resolve()), "under": args.under, "rows": args.rows}
        job |= peer("prepare", job | chosen, folder)
        lines = [line for line in args.replay.read_bytes().splitlines(keepends=True) if line.strip()]
        (folder / "rows.jsonl").write_bytes(b"".join(lines[number] for number in job["numbers"]))

        results: dict[str, list[Run]] = {}

        def add(name: str, run: Run) -> Run:
            results.setdefault(name, []).append(run)
            print(f"{name}: {run['wall_sec']:.1f} s", file=sys.stderr)
            return run

        for _ in range(args.runs):
            free: list[int] = []
            for options in (args.edge_options or [""]) if "edge" in args.only else []:
                run = add(f"edge {options}".strip(), edge(job, options, folder))
                free = free or run["free_tokens"]
            if "server" in args.only and args.llama_server:
                for options in args.server_options or [""]:
                    server = {
                        "binary": os.fspath(args.llama_server.resolve()),
                        "options": shlex.split(options),
                    }
                    for slots in map(int, args.slots.split(",")):
                        name = f"llama-server, {slots} slot{'s' * (slots > 1)} {options}".strip()
                        add(name, peer("server", job | server | {"slots": slots}, folder))
            if "python" in args.only:
                add("llama-cpp-python", peer("python", job, folder))
            if "floor" in args.only:
                run = peer("floor", job | {"flash_attention": args.floor_flash_attention}, folder)
                add(FLOOR, with_free_tokens(run, free))
        for line in report(job, results, args.runs):
            print(line)
        if args.json:
            head = {key: value for key, value in job.items() if key != "prompts"}
            args.json.write_text(json.dumps(head | {"results": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
