"""The gates: what must agree before edge types an action. Without a gate, edge only shows the action."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge.agent.allow import Allowlist, judge
from edge.agent.proposal import Proposal
from edge.agent.rules import Place


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


def allow_gate(allowlist: Allowlist, place: Place, ask: Callable[[Proposal, str], Decision] | None) -> Gate:
    """Accepts an action if the list allows all its keystrokes; refuses it as a whole if the list refuses one.

    `ask` gets an action that needs a person, and why; None: nobody can be asked, so the gate refuses it.
    """

    def decide(proposal: Proposal) -> Decision:
        verdicts = [judge(allowlist, command.keystrokes, place) for command in proposal.commands]
        for number, verdict in enumerate(verdicts, 1):
            why = verdict.reason
            if verdict.decision == "ask" and ask is None:
                why = f"{why} a person, and nobody can be asked"
            elif verdict.decision != "refuse":
                continue
            # The model reads this line.
            return Decision("refuse", proposal, f"command {number} is not allowed here: {why}")
        asked = [f"command {n}, {one.reason}" for n, one in enumerate(verdicts, 1) if one.decision == "ask"]
        return ask(proposal, "; ".join(asked)) if asked and ask is not None else Decision("type", proposal)

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
