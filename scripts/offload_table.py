#!/usr/bin/env python3
"""Print the answers and scores of layers on a device beside those of the CPU, as a Markdown table.

python scripts/offload_table.py --rpc             the device is llama.cpp's RPC backend, compiled and served here
python scripts/offload_table.py                   the device is the GPU that llama.cpp finds
python scripts/offload_table.py --rpc --rows 60   more or fewer of the embedded rows (default: 60)

The model is the embedded one in Q4_K_M, or --model FILE. "same answers" counts the rows whose answers are the same to
the letter with the same options on the CPU. Both sides have the same flash attention, because it changes answers.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import rpc_server  # noqa: E402

from edge.system.tables import table  # noqa: E402

OFF, ON = ("--no-flash-attention",), ("--flash-attention",)
CASES = {
    "1 answer at a time (exact mode)": (("--parallel", "1", *OFF), ()),
    "8 answers at a time": (("--parallel", "8", *OFF), ()),
    "8 answers, flash attention": (("--parallel", "8", *ON), ()),
    "8 answers, KV cache q8_0": (("--parallel", "8", "--kv-type", "q8_0"), ()),
    "8 answers, 3 layers on the device": (("--parallel", "8", *OFF), ("--gpu-layers", "3")),
}


def edge(words: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "from edge.cli.main import main; main()", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def result(words: list[str], out: Path, environment: dict[str, str]) -> dict[str, Any]:
    edge(["eval", *words, "--out", str(out), "--quiet"], environment)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def device(rpc: bool, folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The options and the environment of a command that computes on the device."""
    if not rpc:
        yield [], dict(os.environ)
        return
    if why := rpc_server.missing():
        sys.exit(why)
    rpc_server.compile_backend(folder / "libggml-rpc.so")
    with rpc_server.serving_device(folder / "libggml-rpc.so") as server:
        yield ["--rpc", server.endpoint], server.environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rpc", action="store_true")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--replay", type=Path, default=ROOT / "models" / "tiny-terminal" / "eval.jsonl")
    args = parser.parse_args()
    # Without these, a GPU would also compute the large batches of the CPU's side.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "tiny-Q4_K_M.gguf"
        if args.model is None:
            source = str(ROOT / "models" / "tiny-terminal")
            edge(["convert", source, "--quant", "Q4_K_M", "--out", str(model)], dict(os.environ))
        common = ["--model", str(model), "--replay", str(args.replay), "--limit", str(args.rows)]
        common += ["--max-tokens", str(args.max_tokens)]
        with device(args.rpc, folder) as (where, environment):
            for number, (case, (both, only)) in enumerate(CASES.items()):
                cpu = result(
                    [*common, *both, "--gpu-layers", "0"], folder / f"cpu{number}.json", os.environ | hidden
                )
                other = result([*common, *both, *only, *where], folder / f"device{number}.json", environment)
                pairs = zip(cpu["per_step"], other["per_step"], strict=True)
                same = sum(a["pred_text"] == b["pred_text"] for a, b in pairs)
                sides = [run["aggregate"] for run in (cpu, other)]
                scores = [f"{100 * side['avg_command_f1']:.2f}" for side in sides]
                scores += [f"{side['first_cmd_exact_pct']:.1f} %" for side in sides]
                lines.append([case, other["gpu"], f"{same} of {len(cpu['per_step'])}", *scores])
    header = ("case", "device", "same answers", "score, CPU", "score", "first command, CPU", "first command")
    print("\n".join(table(header, lines)))


if __name__ == "__main__":
    main()
