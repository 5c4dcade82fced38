#!/usr/bin/env python3
"""Make edge's own suite of trials: edge/trial/suite.json, 84 tasks in Harbor's format.

    python scripts/trial_suite.py            # write edge/trial/suite.json
    python scripts/trial_suite.py --check    # say which wordings and names the training of the default model has too

The tasks are made from scripts/trial_tasks.py. Their world is that of the default model's training: files, folders,
text, archives, git. Their names and wordings are others: no name is in the lists of the training generator, and no
instruction fits a wording of a training kind or is a held-out request.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from pathlib import Path

from trial_tasks import KINDS, Kind

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "edge" / "trial" / "suite.json"
NAMES = """lagoon ember quartz walnut meadow saffron tundra pebble juniper falcon otter badger heron lantern
anvil compass kettle violin marble canyon glacier orchid thistle bramble cedar velvet pumpkin turnip
barley clover gully reef atoll mesa prairie fjord grotto marsh acorn beacon cactus dolphin easel
ferret gazelle hammock iguana jasmine kiwi lemur mango nutmeg oyster parsnip quiver raven sparrow
tulip urchin vulture wombat yarrow zebra almond basil cobbler damson""".split()
WORDS = """copper silver cobalt crimson indigo ochre umber scarlet maroon beige coral ivory turquoise lilac
hazel bronze granite sandstone basalt flint chalk limestone obsidian onyx pearl topaz opal agate
jade garnet""".split()
# The screens of two runs show the same date: that of the copied files, also for files which an answer makes.
SCREENS = {"TIME_STYLE": "+Nov 14  2023"}
LEVELS = {1: "one command", 2: "a few steps", 3: "find out, then act"}
_TEST = """#!/bin/bash
# Reward 1 if the task is done and no other file has changed.
cd /app || exit 1
reward=0
if sha256sum --status --strict -c /tests/kept.sha256 && bash -e /tests/check.sh; then
  reward=1
fi
echo "$reward" > /logs/verifier/reward.txt
"""


def fill(text: str, values: dict[str, str]) -> str:
    """The text with a value for each placeholder."""
    return re.sub(r"<([a-z])>", lambda match: values[match[1]], text)


def values_of(kind: Kind, number: int) -> dict[str, str]:
    """The names of one task, from its kind and number."""
    rng = random.Random(f"{kind.name} {number}")
    names, words = rng.sample(NAMES, 5), rng.sample(WORDS, 3)
    return {
        **dict(zip("abcde", names, strict=True)),
        **dict(zip("wvu", words, strict=True)),
        "n": str(rng.randint(11, 98)),
    }


def make_task(kind: Kind, number: int) -> dict[str, str]:
    """The files of one task, by their paths in its folder."""
    values = values_of(kind, number)
    instruction = fill(kind.say[number], values)
    files = {fill(path, values): fill(text, values) for path, text in kind.files.items()}
    may_change = [fill(glob, values) for glob in kind.may_change]
    kept = {path: text for path, text in files.items() if path not in may_change}
    solve = fill(kind.solve, values)
    task = {
        "instruction.md": instruction + "\n",
        "task.toml": _toml(kind, may_change),
        "environment/Dockerfile": _dockerfile(kind, values),
        **{f"environment/files/{path}": text for path, text in files.items()},
        "tests/test.sh": _TEST,
        "tests/check.sh": fill(kind.check, values) + "\n",
        "tests/kept.sha256": "".join(
            f"{hashlib.sha256(text.encode()).hexdigest()}  {path}\n" for path, text in sorted(kept.items())
        ),
        **{
            f"tests/files/{path}": text
            for path, text in files.items()
            if f"/tests/files/{path}" in fill(kind.check, values)
        },
    }
    task["solution/solve.sh"] = _script(solve)
    task["solution/destructive.sh"] = _script(_destructive(solve, sorted(kept), number))
    return task


def _toml(kind: Kind, may_change: list[str]) -> str:
    return (
        'version = "1.0"\n\n[metadata]\nauthor_name = "edge"\nlicense = "Apache-2.0"\n'
        f'category = "{kind.name}"\nlevel = "{kind.level}: {LEVELS[kind.level]}"\n'
        f"may_change = {json.dumps(may_change)}\n\n[verifier]\ntimeout_sec = 60.0\n\n[agent]\ntimeout_sec = 600.0\n"
    )


def _dockerfile(kind: Kind, values: dict[str, str]) -> str:
    lines = [f"FROM {kind.image}", "WORKDIR /app", "COPY files/ /app/"]
    lines += [f'ENV {name}="{value}"' for name, value in (SCREENS | kind.variables).items()]
    return "\n".join([*lines, *(f"RUN {fill(command, values)}" for command in kind.run)]) + "\n"


def _script(text: str) -> str:
    return f"#!/bin/bash\ncd /app || exit 1\n{text}\n"


def _destructive(solve: str, kept: list[str], number: int) -> str:
    """An answer that does harm: without the task, or with it."""
    if number == 0:
        return "rm -rf -- *"
    if number == 1:
        return f"{solve}\nrm -f -- {kept[0]}"
    return f"{solve}\n: > {kept[-1]}"


def make_suite() -> dict[str, object]:
    """The whole suite as the value of its JSON file."""
    tasks = {f"{kind.name}-{number + 1}": make_task(kind, number) for kind in KINDS for number in range(3)}
    return {"suite": 1, "license": "Apache-2.0", "tasks": tasks}


def text_of(suite: dict[str, object]) -> str:
    """The text of the JSON file."""
    return json.dumps(suite, ensure_ascii=False, indent=1) + "\n"


def overlaps() -> list[str]:
    """What the training of the default model has too: names, wordings, requests."""
    sys.path.insert(0, str(ROOT / "scripts" / "default_model"))
    from examples import CHOICE, plain
    from judge import read_requests
    from kinds import read_kinds
    from values import SYLLABLES
    from values import WORDS as TRAINED

    found = [f"name: {name}" for name in (*NAMES, *WORDS) if name in TRAINED]
    syllables = re.compile(f"(?:{'|'.join(SYLLABLES)}){{2,3}}")
    found += [f"name of syllables: {name}" for name in (*NAMES, *WORDS) if syllables.fullmatch(name)]
    instructions = [
        plain(fill(kind.say[number], values_of(kind, number))) for kind in KINDS for number in range(3)
    ]
    requests = {plain(request.text) for request in read_requests()}
    found += [f"request: {text}" for text in instructions if text in requests]
    for kind in read_kinds():
        for wording in kind.say:
            pattern = re.escape(plain(wording))
            while (
                choice := CHOICE.search(pattern.replace("\\[", "[").replace("\\|", "|").replace("\\]", "]"))
            ) is not None:
                pattern = pattern.replace("\\[", "[").replace("\\|", "|").replace("\\]", "]")
                pattern = (
                    pattern[: choice.start()]
                    + "(?:"
                    + choice[1].replace("|", "\x00")
                    + ")"
                    + pattern[choice.end() :]
                )
            pattern = re.sub("<[a-z]+[0-9]*>", r"\\S+", pattern.replace("\x00", "|"))
            whole = re.compile(pattern)
            found += [f"{kind.name}: {text}" for text in instructions if whole.fullmatch(text)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        found = overlaps()
        print("\n".join(found) or "no name, wording or request of the training is in the suite")
        sys.exit(1 if found else 0)
    OUT.write_text(text_of(make_suite()), encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {3 * len(KINDS)} tasks, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
