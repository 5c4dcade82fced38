#!/usr/bin/env python3
"""Measure the cost of a conversation: prompt tokens that a session reads, and those that a stateless engine reads.

python benchmarks/session.py MODEL.gguf [--turns 30] [--max-tokens 64]

The conversation of an agent: a task, then one screen of the terminal in each turn, answered with an action of at most
`--max-tokens` tokens. The text of the screens is made up and the same each time. The script runs the conversation
twice: with the system prompt of `edge run`, and with a prompt that asks the embedded model to think first, so that its
template drops the thought of every past turn.

"Length" is the number of tokens of the last prompt. "All prompts" is the sum over the prompts of all turns. The session
does not read tokens that it wrote. It reads once the tokens of an answer that the template changed, or whose text the
tokenizer splits differently.
"""

import argparse
import time
from pathlib import Path

from edge.prompt import SYSTEM_PROMPT, Message, task_messages
from edge.runner import Runner
from edge.system.tables import table

THINK = "You are a terminal automation assistant. Think first, then return JSON."
TASK = "Find out why the tests in /app fail, repair the code and run them again."


def screen(turn: int) -> list[Message]:
    """The terminal's screen after a turn."""
    lines = [f"user@lab:/app$ python -m pytest -q tests/test_part{turn}.py"]
    lines += [f"tests/test_part{turn}.py:{10 * i + turn}: check {i} passed" for i in range(2 + turn % 5)]
    text = "\n".join([*lines, f"{turn} of {turn + 3} parts done", "user@lab:/app$ "])
    return [{"role": "user", "content": f"New Terminal Output:\n{text}"}]


def converse(runner: Runner, system: str, turns: int, max_tokens: int) -> list[str]:
    """Run the conversation and return one row of the table."""
    engine = runner.engine
    task = task_messages(TASK, "user@lab:/app$ ")
    read, written = engine.prompt_tokens_decoded, engine.answer_tokens_decoded
    session = runner.session([{"role": "system", "content": system}, *task[1:]])
    lengths: list[int] = []
    thoughts = 0
    begin = time.perf_counter()
    for turn in range(turns):
        action = session.act(screen(turn) if turn else [], max_tokens)
        lengths.append(action.prompt_tokens)
        thoughts += action.thought is not None
    seconds = time.perf_counter() - begin
    session.close()
    read = engine.prompt_tokens_decoded - read
    written = engine.answer_tokens_decoded - written
    return [
        "yes" if system == THINK else "no",
        f"{thoughts} of {turns}",
        f"{lengths[-1]:,}",
        f"{sum(lengths):,}",
        f"{read:,}",
        f"{sum(lengths) / read:.1f} ×",
        f"{read / lengths[-1]:.2f}",
        f"{written:,}",
        f"{seconds:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=30, help="number of turns (default: 30)")
    parser.add_argument("--max-tokens", type=int, default=64, help="new tokens for each turn (default: 64)")
    parser.add_argument("--threads", type=int, help="threads (default: the physical cores)")
    args = parser.parse_args()
    header = ["asked to think", "thoughts", "length", "all prompts", "read", "all / read", "read / length"]
    with Runner.load(args.model, threads=args.threads) as runner:
        rows = [converse(runner, system, args.turns, args.max_tokens) for system in (SYSTEM_PROMPT, THINK)]
    print(f"{args.model.name}, {args.turns} turns, at most {args.max_tokens} new tokens each\n")
    print("\n".join(table([*header, "written", "seconds"], rows, right=range(1, 9))))


if __name__ == "__main__":
    main()
