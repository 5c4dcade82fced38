"""The gates: what must agree before edge types an action. Without a gate, edge only shows the action."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge.agent.allow import Allowlist, refusal
from edge.agent.proposal import Proposal


@dataclass(frozen=True)
class Decision:
    """What a gate decides about a proposal.

    `proposal` is what edge types: the model's version, or the version of the person who edited it. The model reads
    `reason` if the verdict is "refuse".
    """

    verdict: Literal["type", "refuse", "stop"]
    proposal: Proposal
    reason: str = ""
    edited: bool = False


Gate = Callable[[Proposal], Decision]


def allow_gate(allowlist: Allowlist) -> Gate:
    """Accepts an action if the list allows all its keystrokes; otherwise refuses the whole action."""

    def decide(proposal: Proposal) -> Decision:
        for number, command in enumerate(proposal.commands, 1):
            if why := refusal(allowlist, command.keystrokes):
                # The model reads this line.
                return Decision("refuse", proposal, f"command {number} is not allowed here: {why}")
        return Decision("type", proposal)

    return decide


def open_gate(proposal: Proposal) -> Decision:
    """Accepts everything. Use it only in the sandbox, which then controls what an action can do."""
    return Decision("type", proposal)


def closed_gate(proposal: Proposal) -> Decision:
    """Stops at the first action: a dry run."""
    return Decision("stop", proposal)


def all_of(gates: Sequence[Gate]) -> Gate:
    """Asks the gates in order, each with the proposal of the one before; the first "refuse" or "stop" decides."""

    def decide(proposal: Proposal) -> Decision:
        edited = False
        for gate in gates:
            decision = gate(proposal)
            if decision.verdict != "type":
                return decision
            proposal, edited = decision.proposal, edited or decision.edited
        return replace(Decision("type", proposal), edited=edited)

    return decide
