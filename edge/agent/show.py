"""Shows actions and terminal output to a person. Control characters are escaped: they cannot control the terminal."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge.agent.proposal import Proposal
from edge.agent.risks import risks
from edge.system.text import escapes, printable
from edge.terminal.tmux import is_key_name

_RISK = "bold red"
_HIDDEN = "reverse"
_INDENT = " " * 8
_BORDER = "| "
_CONTINUED = "> "  # before the rest of a line for which the terminal is too narrow
_MOST = 200  # characters of the keystrokes with one risk
_MARKS = "⏎␣"  # what edge shows for a line break and a space at the end; escaped where the model typed them


def highlighted(text: str) -> Text:
    """`edge.system.text.printable` for a console: the text with line breaks, and its escapes highlighted."""
    return _highlighted(text, keys=False)[0]


def _highlighted(text: str, *, keys: bool) -> tuple[Text, list[int]]:
    """The text with escapes, and where each character of `text` begins in it.

    `keys`: show line breaks as ⏎ too, and spaces at the end as ␣.
    """
    shown = Text()
    places = []
    end = len(text.rstrip(" ")) if keys else len(text)
    for index, (character, escaped) in enumerate(zip(text, escapes(text), strict=True)):
        places.append(len(shown))
        if character == "\n":
            shown.append("⏎\n" if keys else "\n", _HIDDEN if keys else None)
        elif index >= end:
            shown.append("␣", _HIDDEN)
        elif keys and character in _MARKS:
            shown.append(ascii(character)[1:-1], _HIDDEN)
        else:
            shown.append(escaped, None if escaped == character else _HIDDEN)
    places.append(len(shown))
    return shown, places


def shown_facts(facts: Mapping[str, object]) -> Table:
    """One row for each fact that is not empty: its name, and its value, which wraps beside the name."""
    table = Table.grid()
    table.add_column(style="bold", width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if shown := printable(str(value)):
            table.add_row(name, Text(shown))
    return table


def shown_step(number: int, steps: int, seconds: float) -> Text:
    """The line above an action: its step, and the time left."""
    return Text(f"step {number} of {steps}, {time_of(max(seconds, 0))} left\n", "dim")


def time_of(seconds: float) -> str:
    """A time limit for people: 90 s, 30 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Screen(str):
    """What the terminal shows, as the model gets it."""


def shown_screen(text: str, console: Console) -> Text:
    """What the terminal shows, behind a border: its programs can write lines that look like edge's own."""
    return _behind(_BORDER, text.rstrip(), console)


def continued(text: Text, console: Console | None) -> Text:
    """The text, with each line broken at the terminal's width here; what continues a line begins with `> `.

    Otherwise names, keystrokes and lines of files could be as wide as the terminal, and then go on as lines of edge.
    """
    if console is None or not console.is_terminal:
        return text
    width = max(console.width, 2 * len(_CONTINUED))
    lines: list[Text] = []
    text.expand_tabs(8)
    for line in text.split("\n", allow_blank=True):
        if line.cell_len <= width:
            lines.append(line)
            continue
        first, *rest = line.wrap(console, width - len(_CONTINUED), overflow="fold")
        lines += [first, *(Text(_CONTINUED, _HIDDEN).append_text(part) for part in rest)]
    return Text("\n").join(lines)


def _indented(text: str, console: Console | None) -> Text:
    """Lines of the model, which do not begin where edge's own lines do."""
    return _behind(_INDENT, text.strip(), console)[len(_INDENT) :]


def _behind(begin: str, text: str, console: Console | None) -> Text:
    """Each line of a text behind `begin`, also where the console's width breaks the line."""
    lines: Iterable[Text] = highlighted(text).split("\n", allow_blank=True)
    if console is not None and console.is_terminal:
        width = max(console.width - len(begin) - 2, 8)
        lines = [part for line in lines for part in line.wrap(console, width, overflow="fold") or [line]]
    return Text("\n").join([Text(begin).append_text(line) for line in lines])


def shown_proposal(proposal: Proposal, console: Console | None = None) -> Text:
    """The analysis, the plan, and the keystrokes of each command, with their risks marked and listed below them."""
    text = Text()
    for name, value in (("analysis", proposal.analysis), ("plan", proposal.plan)):
        text.append(f"{name}: ", "bold").append_text(_indented(value, console)).append("\n")
    for number, command in enumerate(proposal.commands, 1):
        keys, places = _highlighted(command.keystrokes, keys=True)
        marked = risks(command.keystrokes)
        for risk in marked:
            keys.stylize(_RISK, places[risk.start], places[risk.end])
        keys.rstrip()
        text.append(f"{number:3}  ", "bold")
        if is_key_name(command.keystrokes):
            keys.append(" (this key)", "dim")
        lines = keys.split("\n") if command.keystrokes else [Text("(no keys)", "dim")]
        for line in lines[:-1]:
            text.append_text(line).append("\n     ")
        text.append_text(lines[-1]).append(f"   then wait {command.duration:g} s\n", "dim")
        for kind in dict.fromkeys(risk.kind for risk in marked):
            parts = [command.keystrokes[risk.start : risk.end] for risk in marked if risk.kind == kind]
            text.append("     ! ", _RISK).append(f"{kind}: ")
            listed = ", ".join(part.strip(" \n") for part in parts)
            text.append_text(highlighted(listed[:_MOST])).append(" …\n" if len(listed) > _MOST else "\n")
    if not proposal.commands:
        text.append("     (no commands)\n", "dim")
    if proposal.task_complete:
        text.append("task complete\n", "bold green")
    return continued(text, console)
