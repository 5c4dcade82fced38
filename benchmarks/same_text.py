#!/usr/bin/env python3
"""Count the answers of a replay that equal those of each prompt alone in an empty cache.

python benchmarks/same_text.py --model MODEL.gguf --replay ROWS.jsonl [--rows N] [--under N] [--max-tokens 128]

"alone": a newly loaded model answers each row. It reads the prompt from the start, in the chunks that the whole replay
implies (`Runner.answers` with one wanted row). "parallel 1" is exact mode: all rows in one pass over their prefix tree.
Its answers must be the same bytes. "parallel N" writes N answers in one batch. Other kernels then round differently. A
greedy choice between two nearly equal tokens can change, and the rest of the answer with it.
"""

import argparse
import random
import sys
from pathlib import Path

from edge.answer.answering import Answering
from edge.answer.writer import Answer
from edge.llama.prefixes import distinct_tokens
from edge.metrics import aggregate, score_step
from edge.replay.rows import Row, read_rows
from edge.runner import Runner
from edge.system.tables import table


def score(rows: list[Row], answers: list[Answer]) -> float:
    """The score of the replay, 0 to 100."""
    steps = [
        {
            "task_id": row.task_id,
            "step_idx": row.step_idx,
            "source_group": row.source_group,
            **score_step(answer.text, row.ref_raw, row.step_idx),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    return 100 * float(aggregate(steps)["avg_command_f1"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--replay", required=True, type=Path)
    parser.add_argument("--rows", type=int, help="use only the first N rows that fit")
    parser.add_argument("--under", type=int, help="use only rows with fewer prompt tokens")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, help="threads (default: the physical cores)")
    parser.add_argument(
        "--parallel",
        default="2,4,8",
        help="numbers of parallel answers to try, separated by commas; 1: only exact mode",
    )
    parser.add_argument("--alone", type=int, help="answer only N random rows alone")
    given = parser.parse_args()

    def load() -> Runner:
        return Runner.load(given.model, threads=given.threads)

    with load() as runner:
        most = min(given.under or sys.maxsize, runner.engine.context_length - given.max_tokens + 1)
        every = [(row, runner.encode(runner.render(row.messages).text)) for row in read_rows(given.replay)]
        chosen = [(row, prompt) for row, prompt in every if len(prompt) < most][: given.rows]
        rows, prompts = [row for row, _ in chosen], [prompt for _, prompt in chosen]

    def together(parallel: int) -> list[Answer]:
        with load() as runner:
            found = dict(
                runner.answers(
                    prompts, Answering(Answering(Answering(Answering(given.max_tokens)))), parallel=parallel
                )
            )
        return [found[i] for i in range(len(prompts))]

    def alone(i: int) -> Answer:
        with load() as runner:
            [(_, answer)] = runner.answers(
                prompts, Answering(Answering(Answering(Answering(given.max_tokens)))), wanted={i}
            )
        return answer

    exact = together(1)
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(given.alone or len(rows), len(rows))))
    same = 0
    for done, i in enumerate(drawn, 1):
        same += alone(i) == exact[i]
        print(f"\ralone: {done} of {len(drawn)} rows, {same} the same", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    lines = [
        ["alone", f"{same} of {len(drawn)}", ""],
        ["1", f"{len(rows)} of {len(rows)}", f"{score(rows, exact):.2f}"],
    ]
    for parallel in sorted({int(number) for number in given.parallel.split(",")} - {1}):
        answers = together(parallel)
        same = sum(a.text == b.text for a, b in zip(answers, exact, strict=True))
        lines.append([str(parallel), f"{same} of {len(rows)}", f"{score(rows, answers):.2f}"])
    print(
        f"{given.model.name}: {len(rows)} rows, {sum(map(len, prompts)):,} prompt tokens, "
        f"{distinct_tokens(prompts):,} distinct, {given.max_tokens} new tokens\n"
    )
    print(*table(["parallel", "same answers as exact mode", "score"], lines), sep="\n")


if __name__ == "__main__":
    main()
