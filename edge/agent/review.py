"""`--review`: a person sees each action before it is typed, and accepts, edits or refuses it, or ends the session."""

import json
import sys

import click
from rich.console import Console

from edge.agent.gate import Decision, Gate, Proposal
from edge.answer.action import parse_action
from edge.errors import GrammarError

_QUESTION = "[a]ccept, [e]dit, [r]efuse, [s]top? "


def review_gate(console: Console) -> Gate:
    """Asks on the terminal; the action has been shown before. The end of input stops the session."""

    def decide(proposal: Proposal) -> Decision:
        current = proposal
        forget_typed_ahead()
        while True:
            answer = _ask(console, _QUESTION)
            if answer is None or answer in ("s", "stop"):
                return Decision("stop", proposal)
            if answer in ("a", "accept"):
                return Decision("type", current, edited=current != proposal)
            if answer in ("r", "refuse"):
                why = _ask(console, "Why? (the model reads it) ")
                if why is None:
                    return Decision("stop", proposal)
                return Decision(
                    "refuse", proposal, f"the person at the terminal refused it: {why or 'no reason given'}"
                )
            if answer in ("e", "edit"):
                current = _edited(console, current)
                forget_typed_ahead()

    return decide


def _ask(console: Console, question: str) -> str | None:
    try:
        return console.input(question, markup=False).strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.print()
        raise


def forget_typed_ahead() -> None:
    """Throw away what was typed before a question was shown: nobody can have meant it as the answer."""
    if sys.platform == "win32":
        import msvcrt

        while msvcrt.kbhit():
            msvcrt.getwch()
    elif sys.stdin.isatty():
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _edited(console: Console, proposal: Proposal) -> Proposal:
    """What the person made of it in their editor; as it was if they left it so. Shown again to be accepted."""
    from edge.agent.show import shown_proposal

    text = proposal_json(proposal, indent=2)
    while True:
        try:
            changed = click.edit(text + "\n", extension=".json")
        except (click.ClickException, OSError, UnicodeDecodeError) as error:
            why = error.message if isinstance(error, click.ClickException) else "it left no UTF-8 text"
            console.print(f"The editor failed: {why}", markup=False)
            return proposal
        if changed is None:  # left without saving
            return proposal
        try:
            edited = Proposal(**parse_action(changed))
        except GrammarError as error:
            console.print(f"{error}; edit it again, or leave the editor without saving", markup=False)
            if _ask(console, "Press Enter to edit again. ") is None:
                return proposal
            text = changed.rstrip("\n")
            continue
        console.print(shown_proposal(edited))
        return edited


def proposal_json(proposal: Proposal, indent: int | None = None) -> str:
    """The action's JSON."""
    commands = [{"keystrokes": c.keystrokes, "duration": c.duration} for c in proposal.commands]
    value = {
        "analysis": proposal.analysis,
        "plan": proposal.plan,
        "commands": commands,
        "task_complete": proposal.task_complete,
    }
    return json.dumps(value, ensure_ascii=False, indent=indent)
