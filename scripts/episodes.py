#!/usr/bin/env python3
"""Make synthetic terminal episodes: the training text of models/tiny-terminal and its held-out rows.

    python scripts/episodes.py --episodes 100 --seed 7 --out models/tiny-terminal/eval.jsonl

An episode is a task, a terminal and one to three turns. Each turn is an action in the format that `edge` runs. A
checksum puts names and numbers into two groups, so that no value of the held-out rows appears in a training episode.
Each kind of task also has wordings (`unseen`) that training never uses.
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from episode_kinds import KINDS, WORDS, Kind

SYSTEM = "You are a terminal automation assistant. Return JSON only."
SYSTEM_THINK = "You are a terminal automation assistant. Think first, then return JSON."
HELD_OUT_SHARE = 5  # one value in five is for the held-out rows only

SYLLABLES = """ba be bo da do du fa fi ga go ka ki ko la le lo lu ma mi mo na ne no pa pi ra re ri ro sa se si so ta te
ti to va ve vi za zo""".split()
EXTENSIONS = {
    "py": "py",
    "txt": "txt",
    "log": "log",
    "csv": "csv",
    "json": "json",
    "sh": "sh",
    "cfg": "cfg",
    "md": "md",
    "tar": "tar.gz",
}
USERS = "dev root user app ci".split()
HOSTS = "box host lab node web".split()


@dataclass
class Turn:
    """One answer: the reference action and, if the episode thinks, the thought before it."""

    analysis: str
    plan: str
    commands: list[tuple[str, float]]
    complete: bool
    thought: str | None = None

    def text(self) -> str:
        """The action as JSON text, in the style the model is trained on."""
        action = {
            "analysis": self.analysis,
            "plan": self.plan,
            "commands": [{"keystrokes": keys, "duration": seconds} for keys, seconds in self.commands],
            "task_complete": self.complete,
        }
        body = json.dumps(action, ensure_ascii=False)
        return body if self.thought is None else f"<think>\n{self.thought}\n</think>\n{body}"


@dataclass
class Episode:
    """A task with its turns. `messages[k]` are the messages before turn k."""

    kind: str
    unseen_wording: bool
    turns: list[Turn] = field(default_factory=list)
    messages: list[list[dict[str, str]]] = field(default_factory=list)


def held_out(value: str) -> bool:
    """True for the fifth of all names and numbers that only the held-out rows use."""
    return zlib.crc32(value.encode()) % HELD_OUT_SHARE == 0


class Values:
    """Random names and numbers of one group (training or held-out). A placeholder keeps its value."""

    def __init__(self, rng: random.Random, held: bool, hard: float = 1.0) -> None:
        self.rng, self.held, self.hard = rng, held, hard
        self.given: dict[str, str] = {}

    def draw(self, make: Callable[[], str]) -> str:
        while True:
            value = make()
            if held_out(value) == self.held and value not in self.given.values():
                return value

    def stem(self) -> str:
        rng = self.rng
        word = (
            rng.choice(WORDS)
            if rng.random() > 0.35 * self.hard
            else "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3))))
        )
        second = rng.random()
        if second < 0.45:
            return word + rng.choice("__-") + rng.choice(WORDS)
        if second < 0.55:
            return word + str(rng.randint(1, 99))
        return word

    def make(self, placeholder: str) -> str:
        rng, kind = self.rng, re.sub(r"\d+$", "", placeholder)
        if kind in EXTENSIONS:
            return self.draw(lambda: self.stem() + "." + EXTENSIONS[kind])
        if kind == "test":
            return self.draw(lambda: "test_" + self.stem().replace("-", "_") + ".py")
        if kind == "path":
            return self.draw(lambda: self.stem() + "/" + self.stem())
        if kind == "num":
            return self.draw(lambda: str(rng.randint(2, 99)))
        if kind == "size":
            return self.draw(lambda: str(rng.randint(2, 900)))
        if kind == "port":
            return self.draw(lambda: str(rng.randint(1024, 9999)))
        if kind == "pid":
            return self.draw(lambda: str(rng.randint(200, 32000)))
        if kind == "var":
            return self.draw(lambda: self.stem().replace("-", "_").upper())
        if kind == "hash":
            return self.draw(lambda: f"{rng.randrange(16**7):07x}")
        if kind == "text":
            return self.draw(lambda: " ".join(rng.choices(WORDS, k=rng.randint(2, 3))))
        if kind in ("dir", "word", "pkg", "branch", "proc", "user", "link"):
            return self.draw(self.stem)
        raise KeyError(placeholder)

    def fill(self, template: str) -> str:
        """Choose one of each `[a|b]`, then replace each `<placeholder>` with a value."""
        while (match := re.search(r"\[([^\[\]]*\|[^\[\]]*)\]", template)) is not None:
            template = (
                template[: match.start()] + self.rng.choice(match[1].split("|")) + template[match.end() :]
            )

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name not in self.given:
                self.given[name] = self.make(name)
            return self.given[name]

        return re.sub(r"<([a-z]+\d*)>", value, template)


def make_episode(
    rng: random.Random, *, held: bool, unseen: bool = False, hard: float = 1.0, kind: Kind | None = None
) -> Episode:
    """One episode of a random or the given kind. `held` uses held-out values, `unseen` held-out wordings."""
    kind = kind or rng.choice(KINDS)
    values = Values(rng, held, hard)
    episode = Episode(kind.name, unseen)
    task = values.fill(rng.choice(kind.unseen if unseen else kind.say))
    form = rng.random()
    think = rng.random() < 0.15
    prompt = (
        f"{rng.choice(USERS)}@{rng.choice(HOSTS)}:{values.fill(rng.choice(('~', '~', '/app', '~/<dir9>')))}$ "
    )
    user = task if form < 0.25 else f"{task}\n\nCurrent terminal state:\n{prompt}"
    messages = [{"role": "user", "content": user}]
    if think or rng.random() < 0.7:
        messages.insert(0, {"role": "system", "content": SYSTEM_THINK if think else SYSTEM})
    turns = rng.choice(kind.flows)
    for number, (analysis, plan, commands, output) in enumerate(turns):
        filled = [values.fill(command) for command in commands]
        # A first answer may set task_complete only if every flow of the kind has one turn.
        complete = number == len(turns) - 1 and (number > 0 or all(len(flow) == 1 for flow in kind.flows))
        turn = Turn(
            values.fill(analysis), values.fill(plan), [keystrokes(command) for command in filled], complete
        )
        if think:
            turn.thought = values.fill(f"{analysis} {plan}")
        episode.turns.append(turn)
        episode.messages.append(list(messages))
        screen = "\n".join(
            filter(None, [prompt + filled[-1] if filled[-1] else "", values.fill(output), prompt])
        )
        messages += [
            {"role": "assistant", "content": turn.text()},
            {"role": "user", "content": f"New Terminal Output:\n{screen}"},
        ]
    return episode


def keystrokes(command: str) -> tuple[str, float]:
    """(keys, seconds). Key names and waiting are sent unchanged; a command gets a newline."""
    if not command:
        return "", 10.0
    if command.startswith("C-"):
        return command, 0.5
    slow = re.match(r"(pip|python|\./|git clone|make|sleep|tar|curl)", command)
    return command + "\n", 5.0 if slow else 0.1


def replay_rows(episodes: list[Episode]) -> Iterator[dict[str, Any]]:
    """The episodes as replay rows, one for each turn. `source_group` is seen-wording or unseen-wording."""
    for index, episode in enumerate(episodes):
        for step, turn in enumerate(episode.turns):
            messages = episode.messages[step]
            yield {
                "task_id": f"tiny-{index:03d}",
                "sample_idx": 0,
                "step_idx": step,
                "total_steps": len(episode.turns),
                "is_final_step": step == len(episode.turns) - 1,
                "source": f"tiny-terminal/{episode.kind}",
                "source_group": "unseen-wording" if episode.unseen_wording else "seen-wording",
                "prompt": "\n\n".join(f"{m['role'].upper()}:\n{m['content']}" for m in messages),
                "messages": messages,
                "ref_raw": turn.text(),
                "ref_parse_ok": True,
                "ref_analysis": turn.analysis,
                "ref_plan": turn.plan,
                "ref_task_complete": turn.complete,
                "ref_commands": [
                    {"keystrokes": keys, "duration": seconds} for keys, seconds in turn.commands
                ],
                "ref_command_units": [keys.strip() or "<WAIT>" for keys, _ in turn.commands],
            }


def held_out_episodes(count: int, seed: int) -> list[Episode]:
    """`count` held-out episodes, kinds in turn. Every fourth has a wording that training never uses."""
    rng = random.Random(seed)
    return [
        make_episode(rng, held=True, unseen=i % 4 == 3, kind=KINDS[(i * 7) % len(KINDS)])
        for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = list(replay_rows(held_out_episodes(args.episodes, args.seed)))
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.out}: {args.episodes} episodes, {len(rows)} rows, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
