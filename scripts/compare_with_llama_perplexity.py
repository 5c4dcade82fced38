#!/usr/bin/env python3
"""Compare the figures of `edge measure --text` with those of `llama-perplexity --kl-divergence`.

python scripts/compare_with_llama_perplexity.py BASE.gguf MODEL.gguf --llama-perplexity llama-perplexity [--chunks 12]
python scripts/compare_with_llama_perplexity.py BASE.gguf MODEL.gguf --direct --chunks 2

Both read the same chunks of the same text, without flash attention, with the same batch size and an f16 cache. The
default text is the beginning of Python's own reference manual from pydoc. llama-perplexity keeps 16 bits of each log
probability of the base: the range of at most 16 nats below the greatest, in 65,535 steps. So it has two perplexities of
the base: that of the run, which is compared, and that of the kept values, which is only shown.

`--direct` compares edge with the sum over the whole vocabulary instead, from the logits of llama_cpp.Llama. It also
prints that sum without the terms that llama-perplexity leaves out.

Prints a Markdown table. The exit code is 1 if a figure differs by more than 1 % and by more than half a unit of the
last digit that llama-perplexity prints.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import llama_cpp
import numpy as np

from edge.formats.gguf import read_model_file
from edge.llama.loading import Loading
from edge.llama.vocabulary import file_vocabulary
from edge.measure.positions import text_plan
from edge.measure.run import measure
from edge.system.tables import table

# The figures of edge, and the pattern of each in the output of llama-perplexity.
KEPT = "base_perplexity of what was kept"
FIGURES = {
    "perplexity": r"Mean PPL\(Q\) +: +([\d.]+)",
    "base_perplexity": r"Final estimate: PPL = ([\d.]+)",
    KEPT: r"Mean PPL\(base\) +: +([\d.]+)",
    "kl_mean": r"Mean +KLD: +([\d.]+)",
    "kl_median": r"Median +KLD: +(-?[\d.]+)",
    "kl_p90": r"90\.0% +KLD: +([\d.]+)",
    "kl_p99": r"99\.0% +KLD: +([\d.]+)",
    "kl_max": r"Maximum KLD: +([\d.]+)",
    "top1_agreement_pct": r"Same top p: +([\d.]+)",
}


def write_text(path: Path, model: Path, tokens: int) -> None:
    """Write the beginning of the manual, at least `tokens` tokens long."""
    text = "\n\n".join(topics.values())
    with file_vocabulary(model) as vocabulary:
        size = 2 * tokens
        while len(vocabulary.encode(text[:size], special=False, ends=True)) < tokens and size < len(text):
            size += tokens
    path.write_text(text[:size], encoding="utf-8")


def theirs(
    binary: Path, base: Path, model: Path, text: Path, chunk: int, chunks: int, folder: Path
) -> dict[str, str]:
    """Each figure as llama-perplexity prints it. Raises SystemExit with its last lines if it fails."""
    logits = folder / "base.kld"
    common = ["-c", str(chunk), "-b", "512", "-ub", "512", "-t", "1", "-fa", "off", "--chunks", str(chunks)]
    told = ""
    for more in (
        ["-m", str(base), "-f", str(text), "--kl-divergence-base", str(logits)],
        ["-m", str(model), "--kl-divergence-base", str(logits), "--kl-divergence"],
    ):
        done = subprocess.run([str(binary), *common, *more], capture_output=True, text=True, check=False)
        told += done.stdout + done.stderr
        if done.returncode:
            raise SystemExit(f"{binary} failed:\n" + "\n".join(told.splitlines()[-5:]))
    found = {}
    for name, pattern in FIGURES.items():
        match = re.search(pattern, told)
        if match is None:
            raise SystemExit(f"{binary} does not print {name}:\n{told[-3000:]}")
        found[name] = match[1]
    return found


def direct(base: Path, model: Path, text: Path, chunk: int, chunks: int) -> tuple[float, float]:
    """The mean divergence over the whole vocabulary, and without terms of a log probability below -16."""
    read = []
    for path in (base, model):
        llm = llama_cpp.Llama(
            str(path),
            n_ctx=chunk,
            n_batch=512,
            n_ubatch=512,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            verbose=False,
        )
        for tokens in text_plan(read_model_file(path), text, chunk, limit=chunks).corpus.sequences:
            llm.reset()
            llm.eval(tokens)
            read.append(llm.scores[chunk // 2 : chunk - 1].copy())
        llm.close()
    whole, cut = [], []
    for p, q in zip(read[: len(read) // 2], read[len(read) // 2 :], strict=True):
        for a, b in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
            a, b = a - np.logaddexp.reduce(a), b - np.logaddexp.reduce(b)
            terms = np.exp(a) * (a - b)
            whole.append(terms.sum())
            cut.append(terms[a > -16].sum())
    return float(np.mean(whole)), float(np.mean(cut))


def differs(ours: float, printed: str) -> bool:
    """Whether the figures differ by more than 1 % and by more than half a unit of the last printed digit."""
    digit = 10.0 ** -len(printed.partition(".")[2])
    return abs(ours - float(printed)) > max(0.01 * abs(ours), digit / 2 + 1e-12)


def compare(
    binary: Path, base: Path, model: Path, *, text: Path | None = None, chunk: int = 512, chunks: int = 12
) -> list[tuple[str, float, str, bool]]:
    """For each figure: (name, edge's value, llama-perplexity's printed value, whether they differ)."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if text is None:
            text = folder / "text.txt"
            write_text(text, model, chunk * chunks)
        ours = measure(
            model,
            folder / "ours.json",
            base=base,
            text=text,
            chunk=chunk,
            limit=chunks,
            loading=Loading(batch=512, threads=1),
        )["aggregate"]
        printed = theirs(binary, base, model, text, chunk, chunks, folder)
    found = []
    for name in FIGURES:
        value = ours[name.split()[0]]
        found.append((name, value, printed[name], name != KEPT and differs(value, printed[name])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-perplexity", type=Path, default=Path("llama-perplexity"))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--direct", action="store_true")
    args = parser.parse_args()
    if args.direct:
        with tempfile.TemporaryDirectory() as temporary:
            text = args.text or Path(temporary) / "text.txt"
            if args.text is None:
                write_text(text, args.model, args.chunk * args.chunks)
            ours = measure(
                args.model,
                Path(temporary) / "ours.json",
                base=args.base,
                text=text,
                chunk=args.chunk,
                limit=args.chunks,
                loading=Loading(threads=1),
            )["aggregate"]
            whole, cut = direct(args.base, args.model, text, args.chunk, args.chunks)
        lines = [
            ["edge", f"{ours['kl_mean']:.8f}"],
            ["error bound of edge", f"{ours['kl_error_bound']:.8f}"],
            ["over the whole vocabulary", f"{whole:.8f}"],
            ["without log probabilities below -16", f"{cut:.8f}"],
        ]
        print("\n".join(table(("mean divergence", "nats"), lines, right=(1,))))
        sys.exit(abs(ours["kl_mean"] - whole) > ours["kl_error_bound"] + 1e-6)
    rows = compare(
        args.llama_perplexity, args.base, args.model, text=args.text, chunk=args.chunk, chunks=args.chunks
    )
    lines = [
        [
            name,
            f"{ours:.6f}",
            printed,
            f"{100 * (ours / float(printed) - 1):+.2f} %" if float(printed) else "",
        ]
        for name, ours, printed, _ in rows
    ]
    print("\n".join(table(("figure", "edge", "llama-perplexity", "difference"), lines, right=(1, 2, 3))))
    sys.exit(any(row[3] for row in rows))


if __name__ == "__main__":
    main()
