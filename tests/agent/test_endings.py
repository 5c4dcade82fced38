"""How a session ends when the model gives one action again and again, or cannot answer.

.venv/bin/pytest tests/agent/test_endings.py
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from own_state import own_state

from edge.agent.answerer import Answer, LocalAnswerer
from edge.agent.gate import Decision, Gate, open_gate
from edge.agent.loop import Agent, Limits
from edge.agent.proposal import Proposal
from edge.agent.record import Record
from edge.agent.wording import first_messages
from edge.agent.workplace import open_workplace
from edge.answer.action import Command
from edge.answer.answering import Answering
from edge.errors import ContextError
from edge.llama.loading import Loading
from edge.prompt import Message
from edge.runner import Runner
from edge.terminal.tmux import Terminal

ROOT = Path(__file__).resolve().parents[2]
EDGE = [sys.executable, "-c", "from edge.cli.main import main; main()"]
TASK = "Make a folder named reports."
TOKENS = 48

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


@pytest.fixture
def runner(tiny_q4: Path) -> Iterator[Runner]:
    with Runner.open(tiny_q4, Loading(threads=1)) as runner:
        yield runner


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "session.jsonl"


@contextlib.contextmanager
def agent(runner: Runner, record: Path, gate: Gate, steps: int = 7) -> Iterator[Agent]:
    folder = record.with_name("folder")
    folder.mkdir()
    with (
        Record.create(record, {"task": TASK}) as kept,
        open_workplace(folder, None, line_by_line=False, say=print) as workplace,
    ):
        model = LocalAnswerer(runner, Answering(max_tokens=TOKENS))
        yield Agent(model, workplace, gate, kept, print, limits=Limits(steps))


def first_prompt(runner: Runner, screen: str) -> int:
    """The number of tokens of the first prompt."""
    return len(runner.encode(runner.render(first_messages(TASK, screen, runner.model_name)).text))


def limit_context(agent: Agent, tokens: int) -> None:
    assert isinstance(agent.model, LocalAnswerer)
    agent.model.context = tokens


def person(*actions: Sequence[Command]) -> Gate:
    """A person who replaces each action: the first by the first of these, and so on, and then by the last."""
    left = list(actions)

    def decide(proposal: Proposal) -> Decision:
        commands = tuple(left.pop(0) if len(left) > 1 else left[0])
        return Decision("type", replace(proposal, commands=commands, task_complete=False), edited=True)

    return decide


def told(record: Path) -> list[bool]:
    """For each step, whether the model was told before it that it repeats an action."""
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    return ["gave the same action" in row["messages"][-1]["content"] for row in rows]


SAME = (Command("echo same\n", 20.0),)  # it ends early


@pytest.mark.parametrize("again", [SAME, (Command("C-c", 2.0),), (), (Command("", 0.5),)])
def test_a_repeated_action_is_told_and_then_ends_the_session(
    runner: Runner, record: Path, again: Sequence[Command]
) -> None:
    """A command, a key, no command, and a wait at the prompt."""
    with agent(runner, record, person(SAME, again), steps=9) as one:
        assert one.run() == "repeated"
    first = [] if again == SAME else [False]
    assert told(record) == [*first, False, False, False, True, True]
    last = json.loads(record.read_text().splitlines()[-1])
    assert "you gave the same action 4 times, and its output was the same" in last["messages"][-1]["content"]
    assert last["session"]["outcome"] == "repeated"


@pytest.mark.parametrize(
    "actions",
    [
        [(Command("echo $((number += 1))\n", 20.0),)],
        [(Command(f"echo {'ab'[number % 2]}\n", 20.0),) for number in range(7)],
        [(Command("sleep 600\n", 1.0),), (Command("", 0.2),)],
        [(Command("sleep 600\n", 1.0),), ()],
        [(Command("sleep 600 &\n", 1.0),), (Command("", 0.2),)],
    ],
    ids=[
        *("other output", "other actions", "a wait for a program", "no command while a program runs"),
        "a wait for a background job",
    ],
)
def test_what_is_not_a_repeated_action(
    runner: Runner, record: Path, actions: Sequence[Sequence[Command]]
) -> None:
    with agent(runner, record, person(*actions)) as one:
        assert one.run() == "steps"
    assert told(record) == [False] * 7


def test_a_full_context_ends_the_session(runner: Runner, record: Path) -> None:
    with agent(runner, record, person(SAME)) as one:
        limit_context(one, first_prompt(runner, one.workplace.terminal.screen()) + TOKENS)
        assert one.run() == "failed"
        assert "exceed the context length" in one.failure
    assert told(record) == [False]
    with Record.resume(record) as kept:
        assert kept.outcome == "failed"


def test_a_failed_engine_ends_the_session(runner: Runner, record: Path) -> None:
    """The model is freed during the second step."""

    def decide(proposal: Proposal) -> Decision:
        if one.record.rows:
            runner.close()
        return Decision("type", replace(proposal, commands=SAME, task_complete=False))

    with agent(runner, record, decide) as one:
        assert one.run() == "failed"
        assert "was closed" in one.failure
    assert len(told(record)) == 2


class Hungry(LocalAnswerer):
    """Wants more memory than there is after the first answer."""

    asked = 0

    def answer(self, messages: Sequence[Message], end: float) -> Answer:
        self.asked += 1
        if self.asked > 1:
            bytearray(1 << 62)
        return super().answer(messages, end)


def test_a_session_without_memory_ends(runner: Runner, record: Path) -> None:
    with agent(runner, record, person(SAME)) as one:
        one.model = Hungry(runner, Answering(max_tokens=TOKENS))
        assert one.run() == "failed"
        assert one.failure.startswith("out of memory: ")
    assert told(record) == [False]
    with Record.resume(record) as kept:
        assert kept.outcome == "failed"


def test_a_first_answer_that_fails_is_an_error(runner: Runner, record: Path) -> None:
    with agent(runner, record, open_gate) as one:
        limit_context(one, 60)
        with pytest.raises(ContextError, match="exceed the context length of 60"):
            one.run()
    assert not record.exists()


def environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "EDGE_STATE": str(own_state(folder.parent / "state")), "COLUMNS": "150"}
    return {**os.environ, **own, "HOME": str(folder), "EDGE_CACHE": str(folder.parent / "cache")}


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_failed_session_says_how_to_continue(runner: Runner, record: Path, tiny_q4: Path) -> None:
    folder = record.with_name("folder")
    folder.mkdir()
    tokens = 256

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["agent", *arguments, "--model", tiny_q4, "--threads", 1, "--max-tokens", tokens]
        return subprocess.run(
            [*EDGE, *map(str, words), "--sandbox", "--yes", "--max-steps", "2"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    new = ("--workdir", folder, "--record", record)  # edge asks for the name of a home folder
    done = run(TASK, *new, "--context", 256)
    assert done.returncode == 1 and "exceed the context length of 256" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert {path.name for path in record.parent.iterdir()} <= {"folder", "state", "cache"}
    context = first_prompt(runner, "agent@sandbox:/app$") + tokens
    done = run(TASK, *new, "--context", context)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("note: the model could not answer: a prompt of ") and "larger --context" in line
    assert line.endswith(f"; session record: {record}; continue it with --resume {record}")
    rows = record.read_text().count("\n")
    assert rows == 1
    done = run("--resume", record)
    assert done.returncode in (0, 1), done.stderr
    assert record.read_text().count("\n") > rows and (folder / "reports").is_dir()


def test_a_person_is_told_that_the_session_repeats(record: Path, tiny_q4: Path) -> None:
    """A person edits each action to the same one."""
    folder = record.with_name("folder")
    folder.mkdir()
    action = {
        "analysis": "",
        "plan": "",
        "commands": [{"keystrokes": "echo same\n", "duration": 3.0}],
        "task_complete": False,
    }
    (record.parent / "action").write_text(json.dumps(action))
    editor = record.with_name("editor")
    editor.write_text(f'#!/bin/sh\ncp {record.parent / "action"} "$1"\n')
    editor.chmod(0o755)
    env = {**environment(folder), "EDITOR": str(editor), "VISUAL": str(editor)}
    words = ["agent", "Make a folder.", "--model", tiny_q4, "--threads", 1, "--max-tokens", TOKENS]
    with Terminal.start([*EDGE, *map(str, words), "--record", str(record)], cwd=folder, env=env) as terminal:
        for _ in range(5):
            for key in "ea":
                asked = until_asked(terminal)
                terminal.send(f"{key}\n")
                while (
                    terminal.screen() == asked
                ):  # a next question can follow so soon that this one is never gone
                    time.sleep(0.05)
        until_asked(terminal)
        assert terminal.ended
        text = " ".join(terminal.screen().split())
        assert "note: the model gave one action five times, and its output was the same" in text
        assert "Note: you gave the same action 4 times" in text
    assert told(record) == [False, False, False, True, True]


def until_asked(terminal: Terminal) -> str:
    """The screen that ends with a question, or the last one of an ended terminal."""
    end = time.monotonic() + 120
    while not ((screen := terminal.screen()).endswith("[s]top?") or terminal.ended):
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)
    return screen
