#!/usr/bin/env python3
"""Measure edge on a full-size model: load time, resident memory, tokens per second, beside llama-bench.

python benchmarks/full_scale.py --model MODEL.gguf --replay ROWS.jsonl --llama-bench BINARY

The rows are all steps under 4,000 tokens of the first two tasks. `edge eval` answers them twice: with one new token
each, which measures reading, and with 128. "In" is the number of distinct prompt tokens a second in the first run.
"Out" is the number of additional tokens of the second run divided by its additional seconds. It includes tokens that
the grammar forced: they are part of the text, and are decoded together with what follows.

llama-bench reads 512 tokens and writes 32, at depth 0 and at the depth of the rows' median prompt, with the same
threads and without flash attention, as edge on a CPU. Its "write" is one sequence. edge writes several answers of a
task in one batch (with `--edge-options="--parallel 1"` it writes one answer at a time).

No figure depends on the text of the model. With random weights it writes random text in valid JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from replay import child, edge, peer

from edge.system.machine import physical_cores
from edge.system.tables import table

READ, WRITTEN = 512, 32  # tokens in llama-bench's tests


def raw(
    binary: Path, job: dict[str, Any], depth: int, repetitions: int, folder: Path
) -> list[dict[str, Any]]:
    """llama-bench's figures, one dict for each test: n_prompt, n_gen, n_depth; avg_ts, stddev_ts in tokens/s."""
    command = [str(binary), "--model", job["model"], "--threads", str(job["threads"]), "--output", "json"]
    command += ["-p", str(READ), "-n", str(WRITTEN), "-d", f"0,{depth}", "-ub", "512", "-fa", "0"]
    child([*command, "-r", str(repetitions)], folder / "bench.json")
    figures: list[dict[str, Any]] = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--replay", required=True, type=Path, help="replay rows (JSON Lines)")
    parser.add_argument("--tasks", type=int, default=2, help="use the first N tasks (default: 2)")
    parser.add_argument(
        "--under", type=int, default=4000, help="use only rows with fewer prompt tokens (default: 4000)"
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="new tokens for each row (default: 128)")
    parser.add_argument("--threads", type=int, help="number of threads (default: the physical cores)")
    parser.add_argument("--edge-options", default="", help="more options for `edge eval`, in one string")
    parser.add_argument(
        "--llama-bench", type=Path, help="llama-bench binary; without it there are no raw figures"
    )
    parser.add_argument(
        "--repetitions", type=int, default=2, help="repetitions of llama-bench's tests (default: 2)"
    )
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job: dict[str, Any] = {
            "model": str(args.model.resolve()),
            "threads": args.threads or physical_cores(),
            "max_tokens": args.max_tokens,
        }
        chosen = {
            "replay": str(args.replay.resolve()),
            "under": args.under,
            "rows": 0,
            "task_count": args.tasks,
        }
        job |= peer("prepare", job | chosen, folder)
        lines = [line for line in args.replay.read_bytes().splitlines(keepends=True) if line.strip()]
        (folder / "rows.jsonl").write_bytes(b"".join(lines[number] for number in job["numbers"]))
        depth = sorted(map(len, job["prompts"]))[len(job["prompts"]) // 2]

        reading = edge(job | {"max_tokens": 1}, args.edge_options, folder)
        print(f"read: {reading['wall_sec']:.1f} s", file=sys.stderr)
        whole = edge(job, args.edge_options, folder)
        print(f"read and written: {whole['wall_sec']:.1f} s", file=sys.stderr)
        tokens_in = reading["prompt_tokens_decoded"] / reading["wall_sec"]
        seconds = whole["wall_sec"] - reading["wall_sec"]
        tokens_out = (whole["tokens_out"] - reading["tokens_out"]) / seconds
        free_out = (sum(whole["free_tokens"]) - sum(reading["free_tokens"])) / seconds
        print(
            f"{args.model.name}: {args.model.stat().st_size / 1e9:.2f} GB; {len(job['prompts'])} rows of "
            f"{len(set(job['tasks']))} tasks, {sum(map(len, job['prompts'])):,} prompt tokens, {job['distinct']:,} "
            f"distinct, median {depth:,}; {job['max_tokens']} new tokens each; {job['threads']} threads.\n"
        )
        rows = [
            ["load", f"{whole['load_sec']:.1f} s"],
            ["peak resident memory", f"{whole['peak_bytes'] / 2**30:.2f} GiB"],
            ["rows answered in", f"{whole['wall_sec']:.1f} s"],
            ["prompt tokens decoded", f"{whole['prompt_tokens_decoded']:,}"],
            ["tokens out", f"{whole['tokens_out']:,}"],
            ["in", f"{tokens_in:.1f} tokens/s"],
            ["out", f"{tokens_out:.1f} tokens/s, {free_out:.1f} of them free"],
        ]
        for figure in raw(args.llama_bench, job, depth, args.repetitions, folder) if args.llama_bench else []:
            what = f"read {figure['n_prompt']}" if figure["n_prompt"] else f"write {figure['n_gen']}"
            speed = f"{figure['avg_ts']:.1f} ± {figure['stddev_ts']:.1f} tokens/s"
            rows.append([f"llama-bench: {what} at depth {figure['n_depth']:,}", speed])
        print("\n".join(table(["", "edge" if not args.edge_options else f"edge {args.edge_options}"], rows)))


if __name__ == "__main__":
    main()
