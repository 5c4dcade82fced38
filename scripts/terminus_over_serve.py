"""Ask `edge serve` as Harbor's Terminus-2 does: through Harbor's LiteLLM, with the parser of Terminus-2.

Harbor needs Python 3.12 or newer, so this script runs in a separate environment:

python3.12 -m venv harbor-venv && harbor-venv/bin/pip install harbor==0.25.0
edge serve --model MODEL.gguf &
harbor-venv/bin/python scripts/terminus_over_serve.py replay.jsonl --base-url http://127.0.0.1:8080/v1 --rows 40
"""

import argparse
import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replay", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--most-characters", type=int, default=8000, help="leave out longer prompts")
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()

    os.environ.setdefault("OPENAI_API_KEY", "none")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise LiteLLM fetches prices
    from harbor.agents.terminus_2.terminus_json_plain_parser import TerminusJSONPlainParser
    from harbor.llms.lite_llm import LiteLLM

    llm = LiteLLM(model_name="openai/edge", api_base=options.base_url, temperature=0.0)
    reader = TerminusJSONPlainParser()
    counts: Counter[str] = Counter()
    for line in options.replay.read_text(encoding="utf-8").splitlines():
        messages: list[dict[str, Any]] = json.loads(line)["messages"]
        if sum(len(message["content"]) for message in messages) > options.most_characters:
            continue
        if counts["asked"] == options.rows:
            break
        counts["asked"] += 1
        *history, last = messages
        answer = await llm.call(last["content"], history, max_tokens=options.max_tokens)
        result = reader.parse_response(answer.content)
        counts["answered"] += 1
        counts["errors of the parser"] += bool(result.error)
        # The model decides its keystrokes. Any other warning would be a fault of edge.
        warnings = [w for w in result.warning.splitlines() if "should end with newline" not in w]
        counts["warnings of the parser"] += bool(warnings)
        counts["commands"] += len(result.commands)
        for text in (result.error, *warnings):
            if text:
                print(text)
    for name in ("asked", "answered", "errors of the parser", "warnings of the parser", "commands"):
        print(f"{name}: {counts[name]}")


asyncio.run(main())
