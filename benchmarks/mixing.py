#!/usr/bin/env python3
"""Compare `edge convert --quant auto` with llama.cpp's types of the same size, on the embedded model.

    python benchmarks/mixing.py OUT_FOLDER [--seeds 1,2,3] [--types Q2_K,Q3_K_M,…] [--checkpoint FOLDER]

For each seed, training-side episodes of scripts/episodes.py are the calibration rows (the first `--rows` of 120
episodes): the search sees only these. For each type, it makes the auto file of at most its size, and files of that type
with the same importance matrix and without one. All are measured on the held-out rows:
models/tiny-terminal/eval.jsonl, whose tasks, names and wordings the calibration rows do not have.

The table has the mean KL divergence from the bf16 file in nats, and the ratio of the auto file's to each of the others'
with a 95 % interval: from 10,000 bootstrap draws of whole tasks, the same draw for both files. The column "file" says
whether the auto file is a mixture or llama.cpp's type. The last column is what the search knew: the divergence of the
mixture on the calibration rows, and its ratio to the better of llama.cpp's two files. Interrupted, the same command
resumes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
TINY = ROOT / "models" / "tiny-terminal"
EPISODES = 120


def calibration_rows(place: Path, seed: int, rows: int) -> Path:
    """The first rows of training-side episodes."""
    from calibration import make_rows

    path = place / f"calibration-{seed}.jsonl"
    make_rows(path, EPISODES, 100 + seed)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:rows]), encoding="utf-8")
    return path


def sums(measurement: Path) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the divergences and the number of positions, by task in the order of their names."""
    by_task: dict[str, list[float]] = {}
    for step in json.loads(measurement.read_text(encoding="utf-8"))["per_step"]:
        total = by_task.setdefault(step["task_id"], [0.0, 0.0])
        total[0] += step["kl_mean"] * step["tokens"]
        total[1] += step["tokens"]
    pairs = np.array([by_task[task] for task in sorted(by_task)])
    return pairs[:, 0], pairs[:, 1]


def ratio(ours: Path, theirs: Path) -> tuple[float, float, float, float, float]:
    """Both means, their ratio and its interval."""
    from edge.compare.intervals import interval, resampled_means

    (a, counts), (b, _) = sums(ours), sums(theirs)
    samples = resampled_means(a, counts) / resampled_means(b, counts)
    low, high = interval(samples, len(counts))
    return a.sum() / counts.sum(), b.sum() / counts.sum(), a.sum() / b.sum(), low, high


def main() -> None:
    from edge.convert import convert
    from edge.llama.loading import Loading
    from edge.measure.run import base_scores, measure
    from edge.mixing.run import Target, mix

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--types", default="Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpoint", type=Path, default=TINY)
    parser.add_argument("--held-out", type=Path, default=TINY / "eval.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    loading = Loading(threads=args.threads)
    base = args.out / "held-out.scores"
    if not base.is_file():
        convert(args.checkpoint, quant="bf16", out=args.out / "bf16.gguf", threads=args.threads, force=True)
        base_scores(args.out / "bf16.gguf", base, replay=args.held_out, loading=loading)

    def measured(model: Path) -> Path:
        path = model.with_suffix(".held-out.json")
        if not path.is_file():
            measure(model, path, base=base, replay=args.held_out, loading=loading)
        return path

    def converted(path: Path, quant: str, matrix: Path | None) -> Path:
        if not path.is_file():
            convert(args.checkpoint, quant=quant, imatrix=matrix, out=path, threads=args.threads)
        return path

    print(
        "| seed | size of | file | bytes: auto, type | KL: auto | KL: type, ratio | KL: type with the matrix, ratio | "
        "on the calibration rows: mixture, ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for seed in args.seeds.split(","):
        for quant in args.types.split(","):
            plain = converted(args.out / f"{quant}.gguf", quant, None)
            place = args.out / f"seed-{seed}"
            place.mkdir(exist_ok=True)
            auto = place / f"auto-{quant}.gguf"
            rows = calibration_rows(place, int(seed), args.rows)
            notes = place / f"auto-{quant}.json"
            if not notes.is_file():
                found = mix(
                    args.checkpoint, Target(like=quant), rows, out=auto, threads=args.threads, force=True
                )
                best = min((rival.measured for rival in found.rivals), key=lambda each: each.mean)
                middle, low, high = found.real.ratio(best)
                known = {
                    "text": f"{found.real.mean:.3g}, {middle:.2f} ({low:.2f} to {high:.2f})",
                    "file": "mixture" if found.taken is None else found.taken.name,
                    "matrix": str(found.matrix),
                }
                notes.write_text(json.dumps(known))
            known = json.loads(notes.read_text())
            with_matrix = converted(place / f"{quant}.gguf", quant, Path(known["matrix"]))
            cells = [ratio(measured(auto), measured(other)) for other in (plain, with_matrix)]
            others = [f"{b:.3g}, {r:.2f} ({low:.2f} to {high:.2f})" for _, b, r, low, high in cells]
            print(
                f"| {seed} | {quant} | {known['file']} | {auto.stat().st_size:,}, {plain.stat().st_size:,} | "
                f"{cells[0][0]:.3g} | {others[0]} | {others[1]} | {known['text']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
