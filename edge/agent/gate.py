"""What must say yes before an action is typed. Nothing runs unasked: without a gate an action is only shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge.agent.allow import Allowlist, refusal
from edge.answer.action import Command


@dataclass(frozen=True)
class Proposal:
    """What the model wants typed."""

    analysis: str
    plan: str
    commands: tuple[Command, ...]
    task_complete: bool


@dataclass(frozen=True)
class Decision:
    """Whether it is typed. `proposal` is what is typed, as the model or as the person wrote it.

    `reason` goes back to the model where it was refused.
    """

    verdict: Literal["type", "refuse", "stop"]
    proposal: Proposal
    reason: str = ""
    edited: bool = False


Gate = Callable[[Proposal], Decision]


def allow_gate(allowlist: Allowlist) -> Gate:
    """Lets pass what the list allows, and refuses an action as a whole for the first keystrokes that it does not."""

    def decide(proposal: Proposal) -> Decision:
        for number, command in enumerate(proposal.commands, 1):
            if why := refusal(allowlist, command.keystrokes):
                return Decision("refuse", proposal, f"command {number} is not allowed here: {why}")
        return Decision("type", proposal)

    return decide


def open_gate(proposal: Proposal) -> Decision:
    """Lets everything pass: for the sandbox, which is the gate then."""
    return Decision("type", proposal)


def all_of(gates: Sequence[Gate]) -> Gate:
    """Asks each gate in turn, with what the one before let pass; the first that says no decides."""

    def decide(proposal: Proposal) -> Decision:
        edited = False
        for gate in gates:
            decision = gate(proposal)
            if decision.verdict != "type":
                return decision
            proposal, edited = decision.proposal, edited or decision.edited
        return replace(Decision("type", proposal), edited=edited)

    return decide
