r"""How many passes of a model drafts save, on recorded steps, and what they cost on this machine.

python benchmarks/drafts.py --model SmolLM2-135M-Instruct.Q4_1.gguf --replay replay_terminal_dev.jsonl \
    [--rows 36] [--under 4000] [--max-tokens 128] [--draft 15]

Each row is answered at temperature 0, one after the other, three times: without drafts; with drafts where the measured
cost of a pass says that they save time; and with drafts as if a pass over 16 tokens took no longer than one over one
token, as on a device that waits for its memory. Passes and tokens are counts, so they do not depend on the machine.
"same text" counts the answers that equal those without drafts: a pass over several tokens rounds in another way, so a
tie can end differently.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from edge.answer.answering import Answering
from edge.llama.drafts import Costs
from edge.llama.loading import Loading
from edge.replay.rows import Row, read_rows
from edge.runner import Runner


@dataclass(frozen=True)
class Outcome:
    """What one way of answering took."""

    texts: list[str]
    tokens: int
    passes: int
    drafted: int
    accepted: int
    costs: Costs | None


def outcome(
    model: Path, prompts: list[list[int]], max_tokens: int, draft: int, costs: Costs | None
) -> Outcome:
    with Runner.open(model, Loading(gpu_layers=None, draft=draft)) as runner:
        drafting = runner.engine.drafting
        if drafting is not None:
            drafting.costs = costs
        texts = [runner.answer(prompt, Answering(max_tokens)).text for prompt in prompts]
        engine = runner.engine
        return Outcome(
            texts,
            engine.answer_tokens_decoded,
            engine.answer_passes,
            drafting.drafted if drafting else 0,
            drafting.accepted if drafting else 0,
            drafting.costs if drafting else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--replay", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=36)
    parser.add_argument("--under", type=int, default=4000, help="use only rows with fewer prompt tokens")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--draft", type=int, default=15)
    options = parser.parse_args()
    with Runner.open(options.model, Loading(gpu_layers=0)) as runner:

        def encoded(row: Row) -> list[int]:
            return runner.encode(runner.render(row.messages).text)

        prompts = [
            prompt for prompt in map(encoded, read_rows(options.replay)) if len(prompt) < options.under
        ]
    prompts = prompts[: options.rows]
    ways = {
        "no drafts": (0, None),
        "where the measured cost says so": (options.draft, None),
        "as if passes were free": (options.draft, Costs(((16, 1.0),))),
    }
    found = {
        name: outcome(options.model, prompts, options.max_tokens, draft, costs)
        for name, (draft, costs) in ways.items()
    }
    plain = found["no drafts"]
    print(f"{len(prompts)} rows, answers of up to {options.max_tokens} tokens")
    print("| drafts | tokens decoded | passes | tokens a pass | drafted | accepted | same text |")
    print("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        same = sum(a == b for a, b in zip(plain.texts, one.texts, strict=True))
        print(
            f"| {name} | {one.tokens:,} | {one.passes:,} | {one.tokens / one.passes:.2f} | {one.drafted:,} "
            f"| {one.accepted:,} | {same} of {len(prompts)} |"
        )
    costs = found["where the measured cost says so"].costs
    measured = ", ".join(f"{n} tokens {cost:.2f}" for n, cost in costs.points) if costs else "not measured"
    print(f"a pass here, beside one over one token: {measured}")


if __name__ == "__main__":
    main()
