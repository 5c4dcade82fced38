#!/usr/bin/env python3
"""Check kinds of requests: fill each a few times, run its commands in a sandbox, list what fails.

python scripts/default_model/check_kinds.py [FILE.toml …] [--times 3]
"""

import argparse
import random
import re
import sys
import tempfile
from pathlib import Path

from examples import choose
from kinds import KEYS, Kind, read_kinds
from values import Values
from world import run


def faults(kind: Kind, rng: random.Random) -> list[str]:
    """What is wrong with one filling of a kind."""
    found = []
    for wording in kind.say:
        text = Values(rng, held=False).fill(choose(wording, rng))
        if "<" in text or "  " in text or text != text.strip() or re.search(r" [.?,](\s|$)", text):
            found.append(f"a wording reads badly: {text!r}")
    values = Values(rng, held=False)
    values.fill(rng.choice(kind.say))
    for flow in kind.flows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            code, output = run(folder, values.fill(kind.world))
            if code:
                found.append(f"world ends with {code}: {output.strip()[:200]}")
            for number, step in enumerate(flow):
                for text in (step.analysis, step.plan):
                    values.fill(text)
                if step.output is not None:
                    values.fill(step.output)
                for command in step.commands:
                    if step.output is not None or command in KEYS:
                        continue
                    filled = values.fill(command)
                    code, output = run(folder, filled)
                    meant = kind.fails and number == 0
                    if (code != 0) != meant:
                        found.append(f"`{filled}` ends with {code}: {output.strip()[:200]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    kinds = read_kinds(*args.files)
    bad = 0
    for kind in kinds:
        rng = random.Random(kind.name)
        found = {fault for _ in range(args.times) for fault in faults(kind, rng)}
        bad += bool(found)
        for fault in sorted(found):
            print(f"[{kind.name}] {fault}")
    print(f"{len(kinds)} kinds, {bad} with faults")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
