#!/usr/bin/env python3
"""What a conversation costs: prompt tokens read by a session, against the prompts that a stateless engine reads.

python benchmarks/session.py MODEL.gguf [--turns 30] [--max-tokens 64]

An agent's conversation: a task, then in each turn one screen of the terminal (the text is made up, and the same each
time), answered with an action of at most so many tokens. It is held twice: with the system prompt of `edge run`, and
with one that asks the embedded model to think first, so that its template drops the thought of every past turn.
"Length" is the last prompt's, in tokens; "all prompts" are the tokens of every turn's prompt, summed. Tokens that
the session has written itself it need not read; tokens of an answer that the template changed, or whose text the
tokenizer splits in another way than it was written, it reads once.
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
    """What the terminal shows after a turn: 4 to 8 lines."""
    lines = [f"user@lab:/app$ python -m pytest -q tests/test_part{turn}.py"]
    lines += [f"tests/test_part{turn}.py:{10 * i + turn}: check {i} passed" for i in range(2 + turn % 5)]
    text = "\n".join([*lines, f"{turn} of {turn + 3} parts done", "user@lab:/app$ "])
    return [{"role": "user", "content": f"New Terminal Output:\n{text}"}]


def converse(runner: Runner, system: str, turns: int, max_tokens: int) -> list[str]:
    """One line of the table."""
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
    parser.add_argument("--turns", type=int, default=30, help="(default: 30)")
    parser.add_argument("--max-tokens", type=int, default=64, help="new tokens a turn (default: 64)")
    parser.add_argument("--threads", type=int, help="(default: the physical cores)")
    args = parser.parse_args()
    header = ["asked to think", "thoughts", "length", "all prompts", "read", "all / read", "read / length"]
    with Runner.load(args.model, threads=args.threads) as runner:
        rows = [converse(runner, system, args.turns, args.max_tokens) for system in (SYSTEM_PROMPT, THINK)]
    print(f"{args.model.name}, {args.turns} turns, at most {args.max_tokens} new tokens each\n")
    print("\n".join(table([*header, "written", "seconds"], rows, right=range(1, 9))))


if __name__ == "__main__":
    main()
