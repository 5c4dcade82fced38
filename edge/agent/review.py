"""`--review`: a person sees each action before edge types it, and accepts, edits or refuses it, or stops."""

import os
import shutil
import sys
from collections.abc import Callable

import click
from rich.console import Console

from edge.agent.gate import Decision, Gate
from edge.agent.proposal import Proposal
from edge.agent.show import shown_proposal
from edge.answer.action import parse_action
from edge.errors import GrammarError
from edge.system.tables import fitted
from edge.system.text import printable

_QUESTION = "[?] help, [a]ccept, [e]dit, [r]efuse, [s]top? "
_KEYS = """\
a   edge types these keystrokes into {place}
e   change the action in your editor; edge shows it again before it types anything
r   edge types nothing, and the model reads your reason
s   end the session; the record stays, and edge agent --resume continues it
> at the begin of a line: it continues the line above it. ⏎ is Enter.
A line with ! names a risk: it is a hint, and not all risks are known.
"then wait 3 s": after these keystrokes, edge waits up to that long before it types more or shows the screen to the \
model. A program that takes longer goes on. edge waits 60 s at most."""
# In order. Debian's `sensible-editor` is not there: it can ask which editor to use, before it opens the file.
_EDITORS = ("editor", "nano", "micro", "vim", "nvim", "vi", "emacs", "mg", "joe", "ed", "notepad")


def review_gate(console: Console, sandbox: bool) -> Gate:
    """Asks on the console; the caller has shown the action before. The end of input stops the session.

    `sandbox`: the keystrokes go to a sandbox, not to the person's own shell.
    """

    def decide(proposal: Proposal) -> Decision:
        current = proposal
        discard_typed_ahead()
        while True:
            answer = ask(console, _QUESTION)
            if answer is None or answer in ("s", "stop"):
                return Decision("stop", proposal)
            if answer in ("?", "h", "help"):
                place = "the sandbox" if sandbox else "your own shell, where they run as you"
                print_wrapped(console, _KEYS.format(place=place))
            elif answer in ("a", "accept"):
                return Decision("type", current, edited=current != proposal)
            elif answer in ("r", "refuse"):
                why = ask(console, "Reason (the model reads it): ")
                if why is None:
                    return Decision("stop", proposal)
                # The model reads this line.
                reason = f"the person at the terminal refused it: {why or 'no reason given'}"
                return Decision("refuse", proposal, reason)
            elif answer in ("e", "edit"):
                changed = _edited(console, current)
                if changed is None:
                    console.print("The action is as it was:", markup=False)
                current = changed or current
                console.print(shown_proposal(current, console))
                discard_typed_ahead()
            elif answer:
                print_wrapped(
                    console, f"{printable(answer)}: not an answer; type a, e, r or s, or ? for help"
                )

    return decide


def ask_gate(console: Console, sandbox: bool, *, show: bool) -> Callable[[Proposal, str], Decision]:
    """Asks about an action that an allowlist leaves to a person. `show`: the caller has not shown the action."""
    decide = review_gate(console, sandbox)

    def asked(proposal: Proposal, why: str) -> Decision:
        if show:
            console.print(shown_proposal(proposal, console))
        console.print(f"The allowlist leaves this action to you ({printable(why)}).", markup=False)
        return decide(proposal)

    return asked


def print_wrapped(console: Console, text: str) -> None:
    """Print text in lines that break at blanks; off a terminal, as it is."""
    console.print(fitted(text, console.width if console.is_terminal else None), markup=False)


def ask(console: Console, question: str) -> str | None:
    """The answer without white space around it; None at the end of input. Raises KeyboardInterrupt."""
    try:
        return console.input(question, markup=False).strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.print()
        raise


def discard_typed_ahead() -> None:
    """Discard what was typed before a question appeared: it cannot be the answer to that question."""
    if sys.platform == "win32":
        import msvcrt

        while msvcrt.kbhit():
            msvcrt.getwch()
    elif sys.stdin.isatty():
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _editor() -> str:
    """The person's editor: $VISUAL, $EDITOR, or the first of the usual ones that is installed."""
    for name in ("VISUAL", "EDITOR"):
        if os.environ.get(name, "").strip():
            return os.environ[name]
    if found := next((name for name in _EDITORS if shutil.which(name)), None):
        return found
    raise click.ClickException("there is none: set EDITOR to the name of your editor, or install nano")


def _edited(console: Console, proposal: Proposal) -> Proposal | None:
    """The person's version from their editor; None if they saved no change."""
    text = proposal.to_json(indent=2)
    while True:
        try:
            changed = click.edit(text + "\n", editor=_editor(), extension=".json")
        except (click.ClickException, OSError, UnicodeDecodeError) as error:
            why = (
                error.message
                if isinstance(error, click.ClickException)
                else "the file is missing or not UTF-8"
            )
            console.print(f"The editor failed: {why}", markup=False)
            return None
        if changed is None:  # the person left without saving
            return None
        try:
            return Proposal(**parse_action(changed))
        except GrammarError as error:
            console.print(f"{error}; edit it again, or leave the editor without saving", markup=False)
            if ask(console, "Press Enter to edit again. ") is None:
                return None
            text = changed.rstrip("\n")
