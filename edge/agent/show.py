"""An agent's action and what the terminal printed, for a person's eyes: nothing in them can steer the terminal."""

from rich.text import Text

from edge.agent.gate import Proposal
from edge.agent.risks import risks
from edge.system.text import escape
from edge.terminal.tmux import is_key_name

_RISK = "bold red"
_HIDDEN = "reverse"


def visible(text: str, *, keys: bool = False) -> Text:
    """The text with control and other invisible characters as escapes; with `keys` line breaks as ⏎ as well."""
    shown, _ = _visible(text, keys)
    return shown


def _visible(text: str, keys: bool) -> tuple[Text, list[int]]:
    """And where each character of `text` begins in what is shown."""
    shown = Text()
    places = []
    for character in text:
        places.append(len(shown))
        if character == "\n":
            shown.append("⏎\n" if keys else "\n", _HIDDEN if keys else None)
        else:
            shown.append(escape(character), None if character.isprintable() else _HIDDEN)
    places.append(len(shown))
    return shown, places


def shown_proposal(proposal: Proposal) -> Text:
    """The analysis, the plan, and each command's keystrokes with what is risky in them marked and named below."""
    text = Text()
    for name, value in (("analysis", proposal.analysis), ("plan", proposal.plan)):
        text.append(f"{name}: ", "bold").append_text(visible(value.strip())).append("\n")
    for number, command in enumerate(proposal.commands, 1):
        keys, places = _visible(command.keystrokes, True)
        found = risks(command.keystrokes)
        for risk in found:
            keys.stylize(_RISK, places[risk.start], places[risk.end])
        keys.rstrip()
        text.append(f"{number:3}  ", "bold")
        if is_key_name(command.keystrokes):
            keys.append(" (this key)", "dim")
        lines = keys.split("\n") if command.keystrokes else [Text("(wait)", "dim")]
        for line in lines[:-1]:
            text.append_text(line).append("\n     ")
        text.append_text(lines[-1]).append(f"   {command.duration:g} s\n", "dim")
        for kind in dict.fromkeys(risk.kind for risk in found):
            parts = [command.keystrokes[risk.start : risk.end] for risk in found if risk.kind == kind]
            text.append("     ! ", _RISK).append(f"{kind}: ")
            text.append_text(visible(", ".join(part.strip() for part in parts)[:200])).append("\n")
    if not proposal.commands:
        text.append("     (no commands)\n", "dim")
    if proposal.task_complete:
        text.append("task complete\n", "bold green")
    return text
