"""What two rules of `edge agent` change: waits that end early, and the note about a repeated action.

python scripts/agent_effects.py --model MODEL.gguf [--steps 8] [--tasks 20]

Each task runs four times in the sandbox, greedy, in the same folder: as edge does it; twice with --full-waits; without
the note. The first table compares screens and answers with those of the first run with full waits, and the time that
edge waited. The second run with full waits shows how much differs by chance, such as a time of day on the screen. The
second table shows what the model does after it gave one action three times with the same output. Times are those of
the waits alone, so they depend little on other work of the machine.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from edge.agent.loop import Limits
from edge.agent.options import Interface, Permission, SessionOptions
from edge.agent.session import run_session
from edge.answer.answering import Answering
from edge.llama.loading import Loading

TASKS = (
    "Make a folder named reports.",
    "Remove the file old.log.",
    "Count the lines of data.csv.",
    "List the Python files here.",
    "Find all files that contain the word error.",
    "Show the first three lines of data.csv.",
    "Rename notes.txt to readme.txt.",
    "Copy data.csv to backup.csv.",
    "Make main.py executable.",
    "Show how much space this folder uses.",
    "Sort data.csv and write the result to sorted.csv.",
    "Replace the word red by blue in notes.txt.",
    "Pack all text files into texts.tar.gz.",
    "Show the last line of notes.txt.",
    "Print the sum of the numbers in the second column of data.csv.",
    "Run main.py and write its output to out.txt.",
    "Start a web server on port 8000 in this folder.",
    "Find the largest file.",
    "Write a program that prints the first ten prime numbers, and run it.",
    "Why does the program broken.py fail? Fix it.",
)
FILES = {
    "old.log": "start\nerror: no disk\nstop\n",
    "data.csv": "name,count\na,3\nb,11\nc,7\nd,2\n",
    "notes.txt": "the red house\nthe green tree\na red car\n",
    "main.py": "print('main')\n",
    "broken.py": "print('begin')\nvalue = undefined + 1\n",
    "tools.py": "def twice(x):\n    return 2 * x\n",
}
KINDS = ("now", "full waits", "full waits again", "no note")
NEVER = 1_000_000


@dataclass(frozen=True)
class Ran:
    """One session: how it ended, and its rows."""

    outcome: str
    rows: list[dict[str, Any]]

    @property
    def waited(self) -> float:
        """Seconds that edge waited."""
        return sum(sum(row["session"].get("waited", [])) for row in self.rows)

    @property
    def asked(self) -> float:
        """Seconds that the model asked to wait."""
        return sum(min(one["duration"], 60.0) for row in self.rows for one in row["ref_commands"])

    def repeats(self) -> list[bool]:
        """For each third action in a row with the same output: whether the model gave another action after it.

        One that the session's end follows does not count.
        """
        keys = [json.dumps([one["keystrokes"] for one in row["ref_commands"]]) for row in self.rows]
        screens = [row["messages"][-1]["content"].split("\n\n")[-1] for row in self.rows[1:]]
        found = []
        for index in range(2, len(keys) - 1):
            same = keys[index - 2] == keys[index - 1] == keys[index]
            if same and screens[index - 2] == screens[index - 1] == screens[index]:
                found.append(keys[index + 1] != keys[index])
        return found


def run(model: Path, task: str, kind: str, steps: int, place: Path) -> Ran:
    """Run one session in a new folder."""
    folder, record = place / "work", place / "session.jsonl"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    options = SessionOptions(
        task=task,
        permission=Permission(person=False, sandbox=True, yes=True),
        workdir=folder,
        model=str(model),
        record=record,
        full_waits=kind.startswith("full waits"),
        limits=Limits(steps, 3600.0, told_repeats=NEVER if kind == "no note" else 3),
        loading=Loading(threads=1),
        answering=Answering(max_tokens=256),
    )
    interface = Interface(
        console=Console(file=io.StringIO()),
        say=lambda text: None,
        waiting=contextlib.nullcontext,
        find_model=lambda given: Path(given or ""),
        quiet=True,
    )
    ending = run_session(options, interface)
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return Ran(ending.outcome, rows)


def waits(sessions: list[dict[str, Ran]]) -> None:
    """Print what waits that end early change, beside what differs by chance."""
    for kind in ("now", "full waits", "full waits again"):
        ran = [by_kind[kind] for by_kind in sessions]
        waited, asked = sum(one.waited for one in ran), sum(one.asked for one in ran)
        steps = sum(len(one.rows) for one in ran)
        same = sum(answers(by_kind[kind]) == answers(by_kind["full waits"]) for by_kind in sessions)
        screens = sum(same_steps(by_kind[kind], by_kind["full waits"]) for by_kind in sessions)
        print(
            f"| {kind} | {steps} | {asked:.1f} s | {waited:.1f} s | {same} of {len(ran)} | {screens} of {steps} |"
        )


def answers(ran: Ran) -> list[str]:
    """The model's answers of a session."""
    return [row["ref_raw"] for row in ran.rows]


def same_steps(one: Ran, other: Ran) -> int:
    """Number of steps with the same screens and the same answer."""
    pairs = zip(one.rows, other.rows, strict=False)
    return sum(a["messages"] == b["messages"] and a["ref_raw"] == b["ref_raw"] for a, b in pairs)


def notes(sessions: list[dict[str, Ran]]) -> None:
    """Print what the note about a repeated action changes."""
    for kind in ("now", "no note"):
        ran = [by_kind[kind] for by_kind in sessions]
        found = [changed for one in ran for changed in one.repeats()]
        looped = sum(bool(one.repeats()) for one in ran)
        ends = {end: sum(one.outcome == end for one in ran) for end in sorted({one.outcome for one in ran})}
        shown = ", ".join(f"{end} {count}" for end, count in ends.items())
        print(f"| {kind} | {looped} of {len(ran)} | {sum(found)} of {len(found)} | {shown} |")


def main() -> None:
    """Run the sessions and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    arguments = parser.parse_args()
    sessions: list[dict[str, Ran]] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["EDGE_STATE"] = f"{temporary}/state"
        for number, task in enumerate(TASKS[: arguments.tasks]):
            by_kind = {}
            for kind in KINDS:
                place = Path(temporary, f"{number}-{kind.replace(' ', '-')}")
                place.mkdir()
                by_kind[kind] = run(arguments.model, task, kind, arguments.steps, place)
            ended = ", ".join(f"{kind}: {ran.outcome} in {len(ran.rows)}" for kind, ran in by_kind.items())
            print(f"{task} {ended}", file=sys.stderr, flush=True)
            sessions.append(by_kind)
    print(
        "| waits | steps | the model asked | edge waited | sessions with the same answers | steps all the same |"
    )
    print("|---|---|---|---|---|---|")
    waits(sessions)
    print("\n| note | sessions that repeat | another action next | ended |\n|---|---|---|---|")
    notes(sessions)


if __name__ == "__main__":
    main()
