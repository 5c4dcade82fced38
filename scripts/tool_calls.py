"""Try random sets of tools, budgets and forms on the constraint of tool calls, and, with --url, on a server.

python scripts/tool_calls.py MODEL.gguf --count 10000
python scripts/tool_calls.py MODEL.gguf --count 200 --url http://127.0.0.1:8080/v1

On the constraint alone, tokens are chosen at random among those that it allows; each call is checked with jsonschema,
and must come back as the same text. With --url, the same sets and budgets go to a server of OpenAI's API with
tool_choice "required", such as edge serve or llama-server with --jinja.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF, for its vocabulary")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--url", help="base URL of a server, with /v1")
    options = parser.parse_args()
    if options.url:
        ask(options.url, options.first, options.count)
    else:
        constrain(options.model, options.first, options.count)


def constrain(model: Path, first: int, count: int) -> None:
    """The constraint alone."""
    from random_tools import liked_tokens, try_one

    from edge.answer.endings import Endings
    from edge.llama.vocabulary import file_vocabulary

    rows: dict[str, Counter[str]] = {}
    began = time.process_time()
    with file_vocabulary(model) as vocabulary:
        endings, liked = (
            Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids)),
            liked_tokens(vocabulary),
        )
        for number in range(first, first + count):
            try:
                form, answer = try_one(vocabulary, endings, number, liked)
            except Exception as error:
                print(f"set {number}: {type(error).__name__}: {str(error)[:300]}")
                rows.setdefault("(any)", Counter())["invalid"] += 1
                continue
            row = rows.setdefault(form, Counter())
            row["sets"] += 1
            if answer is None:
                row["refused"] += 1
            else:
                row["calls"] += len(answer.calls)
                row["closed at the budget"] += answer.closed_at_budget
    columns = ("sets", "refused", "calls", "closed at the budget", "invalid")
    print(" | ".join(("form", *columns)))
    for form in sorted(rows):
        print(" | ".join((form, *(str(rows[form][column]) for column in columns))))
    total = sum(rows.values(), Counter())
    print(" | ".join(("all", *(str(total[column]) for column in columns))))
    print(f"{time.process_time() - began:.0f} s of processor time")


def ask(url: str, first: int, count: int) -> None:
    """The same sets, from a server."""
    import httpx
    from jsonschema import Draft202012Validator
    from random_tools import random_tools

    found: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(number)
        tools = random_tools(rng)
        budget = rng.randint(20, 150)
        declared = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": "A tool.", "parameters": tool.parameters},
            }
            for tool in tools
        ]
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "Use a tool."}],
            "tools": declared,
            "tool_choice": "required",
            "max_tokens": budget,
            "temperature": 1,
            "seed": number,
        }
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=600)
        if answer.status_code != 200:
            found[f"status {answer.status_code}"] += 1
            continue
        calls = answer.json()["choices"][0]["message"].get("tool_calls") or []
        schemas = {tool.name: tool.parameters or {"type": "object"} for tool in tools}
        try:
            for call in calls:
                arguments = json.loads(call["function"]["arguments"])
                Draft202012Validator(schemas[call["function"]["name"]]).validate(arguments)
            found["valid" if calls else "no call"] += 1
        except Exception:
            found["invalid"] += 1
    print(dict(found))


if __name__ == "__main__":
    main()
