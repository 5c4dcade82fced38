"""An action of the model before anybody has decided on it, and its JSON."""

import json
from dataclasses import dataclass
from typing import TypedDict

from edge.answer.action import Command, parse_action
from edge.metrics import json_text

_CLOSINGS = ("</think>", "[/THINK]", "<channel|>")  # of thoughts


class CommandFields(TypedDict):
    """A command in JSON."""

    keystrokes: str
    """What edge types, unchanged."""
    duration: float
    """Seconds to wait after the keystrokes."""


class ActionFields(TypedDict):
    """An action in JSON, in the order of edge/grammar.gbnf."""

    analysis: str
    plan: str
    commands: list[CommandFields]
    task_complete: bool


@dataclass(frozen=True)
class Proposal:
    """What the model proposes to type."""

    analysis: str
    plan: str
    commands: tuple[Command, ...]
    task_complete: bool

    def fields(self) -> ActionFields:
        """The action as JSON values."""
        return {
            "analysis": self.analysis,
            "plan": self.plan,
            "commands": [{"keystrokes": c.keystrokes, "duration": c.duration} for c in self.commands],
            "task_complete": self.task_complete,
        }

    def to_json(self, indent: int | None = None) -> str:
        """The action as JSON text."""
        return json.dumps(self.fields(), ensure_ascii=False, indent=indent)


def split_thought(answer: str) -> tuple[str, str]:
    """The thought of an answer with its closing mark, and the rest. A chat template can have written the opening."""
    if answer.lstrip().startswith("{"):
        return "", answer
    for mark in _CLOSINGS:
        thought, closing, rest = answer.partition(mark)
        if closing:
            return thought + closing, rest
    return "", answer


def read_answer(answer: str) -> Proposal:
    """The action in an answer of any engine: behind a thought, in a code fence or between words, in any order of keys.

    Raises GrammarError.
    """
    return Proposal(**parse_action(json_text(split_thought(answer)[1]), any_order=True))
