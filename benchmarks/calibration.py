#!/usr/bin/env python3
"""Measure what an importance matrix gains for the embedded model.

    python benchmarks/calibration.py OUT_FOLDER

Quantizes the model without a matrix, with a matrix from general text, and with a matrix from terminal sessions.
Compares each file with the bf16 file on the reference answers of the held-out rows.

- Sessions: training-side episodes of scripts/episodes.py with another seed. Their values and wordings do not appear in
  the held-out rows.
- General text: Python's own reference manual from pydoc (PSF licence), with as many tokens as the sessions.
- Held-out rows: models/tiny-terminal/eval.jsonl and the rows of `--more` further held-out episodes, because 143 rows
  give wide intervals.

Teacher forcing: at each token of a reference answer, and at its end, the script compares the two models' distributions
over the vocabulary. It prints the Kullback-Leibler divergence from bf16 in nats, and whether both have the same most
probable token. Intervals are 95 %, from 2,000 bootstrap draws of whole tasks.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

QUANTS = ("Q4_K_M", "Q3_K_M", "IQ3_S", "IQ2_XS")
NEEDS_MATRIX = ("IQ2_XS",)
CHUNK = 512


def make_rows(path: Path, episodes: int, seed: int) -> None:
    """Write replay rows of training-side episodes."""
    from episodes import make_episode, replay_rows

    rng = random.Random(seed)
    rows = replay_rows([make_episode(rng, held=False) for _ in range(episodes)])
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_text(path: Path, model: Path, tokens: int) -> None:
    """Write the first `tokens` tokens of Python's reference manual, and some more for the last chunk."""
    from pydoc_data.topics import topics

    from edge.llama.encode import encode_with

    text = "\n\n".join(topics.values())
    low, high = 0, len(text)
    while high - low > 64:
        middle = (low + high) // 2
        enough = len(encode_with(model, text[:middle])) >= tokens + CHUNK // 2
        low, high = (low, middle) if enough else (middle, high)
    path.write_text(text[:high], encoding="utf-8")


def make_held_out(path: Path, episodes: int, seed: int) -> None:
    """Write rows like those of eval.jsonl, from other episodes."""
    from episodes import held_out_episodes, replay_rows

    rows = [
        {**row, "task_id": f"more-{row['task_id']}"} for row in replay_rows(held_out_episodes(episodes, seed))
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def held_out(model: Path, *files: Path) -> list[tuple[str, list[int], int]]:
    """For each held-out row: its task, prompt and answer as tokens, and the index where the answer begins."""
    from edge.llama.encode import encode_with
    from edge.prompt import prompt_source, render_prompt
    from edge.replay.rows import read_rows

    source = prompt_source(model)
    found = []
    for row in [row for file in files for row in read_rows(file)]:
        prompt = render_prompt(row.messages, source).text
        tokens, begin = encode_with(model, prompt + row.ref_raw), len(encode_with(model, prompt))
        assert tokens[:begin] == encode_with(model, prompt)
        found.append((row.task_id, tokens, begin))
    return found


def log_probabilities(model: Path, rows: Sequence[tuple[str, list[int], int]]) -> list[np.ndarray]:
    """For each row, log probabilities in float32, shape (answer tokens + 1, vocabulary)."""
    import llama_cpp

    longest = max(len(tokens) for _, tokens, _ in rows)
    llm = llama_cpp.Llama(
        str(model),
        n_ctx=longest + 1,
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
    )
    found = []
    for _, tokens, begin in rows:
        llm.reset()
        llm.eval(tokens)
        logits = llm.scores[begin - 1 : len(tokens)].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        found.append((logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32))
    llm.close()
    return found


def compare(reference: list[np.ndarray], other: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each row, at each position: the divergence, and whether the best token is the same."""
    result = []
    for p, q in zip(reference, other, strict=True):
        wide = p.astype(np.float64)
        result.append(((np.exp(wide) * (wide - q)).sum(1), p.argmax(1) == q.argmax(1)))
    return result


def interval(tasks: Sequence[str], values: list[np.ndarray], draws: int = 2000) -> tuple[float, float]:
    """A 95 % interval of the mean over all positions, from a bootstrap over whole tasks."""
    names = sorted(set(tasks))
    sums = np.array([sum(v.sum() for t, v in zip(tasks, values, strict=True) if t == name) for name in names])
    sizes = np.array([sum(len(v) for t, v in zip(tasks, values, strict=True) if t == name) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--more", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    from edge.convert import convert
    from edge.measure.calibrate import calibrate
    from edge.system.paths import embedded_checkpoint, embedded_rows
    from edge.system.tables import table

    bf16 = args.out / "tiny-bf16.gguf"
    convert(embedded_checkpoint(), quant="BF16", out=bf16, threads=args.threads)
    sessions, general = args.out / "sessions.jsonl", args.out / "general.txt"
    make_rows(sessions, args.episodes, args.seed)
    matrices: dict[str, Path | None] = {"none": None}
    matrices["sessions"] = args.out / "sessions-imatrix.gguf"
    done = calibrate(bf16, matrices["sessions"], rows=sessions, threads=args.threads)
    print(done, end="\n\n")
    make_text(general, bf16, done.tokens)
    matrices["general text"] = args.out / "general-imatrix.gguf"
    print(
        calibrate(bf16, matrices["general text"], text=general, chunk=CHUNK, threads=args.threads), end="\n\n"
    )

    more = args.out / "more.jsonl"
    make_held_out(more, args.more, args.seed)
    rows = held_out(bf16, embedded_rows(), more)
    tasks = [task for task, _, _ in rows]
    reference = log_probabilities(bf16, rows)
    positions = sum(map(len, reference))
    print(f"{len(rows)} held-out rows, {positions:,} positions\n")
    lines, figures = [], dict[str, Any]()
    for quant in QUANTS:
        means: dict[str, list[np.ndarray]] = {}
        for name in ("none", "general text", "sessions"):
            matrix = matrices[name]
            if matrix is None and quant in NEEDS_MATRIX:
                continue
            path = args.out / f"tiny-{quant}-{name.replace(' ', '-')}.gguf"
            convert(
                embedded_checkpoint(),
                quant=quant,
                out=path,
                imatrix=matrix,
                threads=args.threads,
                check=False,
            )
            found = compare(reference, log_probabilities(path, rows))
            divergence, same = np.concatenate([d for d, _ in found]), np.concatenate([s for _, s in found])
            means[name] = [d for d, _ in found]
            low, high = interval(tasks, means[name])
            lines.append(
                [
                    quant,
                    name,
                    f"{np.median(divergence):.2e}",
                    f"{divergence.mean():.4f} ({low:.4f}–{high:.4f})",
                    f"{np.quantile(divergence, 0.99):.3f}",
                    f"{100 * same.mean():.2f}",
                ]
            )
            figures[f"{quant} {name}"] = lines[-1][2:]
        for against in ("none", "general text"):
            if against in means:
                differences = [a - b for a, b in zip(means["sessions"], means[against], strict=True)]
                low, high = interval(tasks, differences)
                share = sum(map(np.sum, means["sessions"])) / sum(map(np.sum, means[against]))
                mean = np.concatenate(differences).mean()
                figures[f"{quant}, sessions against {against}"] = (
                    f"mean KL × {share:.2f}, difference {mean:+.4f} ({low:+.4f} to {high:+.4f})"
                )
    header = ("type", "matrix", "KL median", "KL mean (95 %)", "KL p99", "same best token %")
    print("\n".join(table(header, lines, right=(2, 3, 4, 5))), end="\n\n")
    for name, value in figures.items():
        if isinstance(value, str):
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
