"""`edge replay`: shows a recorded session again in the terminal, step by step."""

import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from edge.agent.proposal import read_answer, split_thought
from edge.agent.show import highlighted, shown_proposal
from edge.errors import GrammarError, ReplayError
from edge.prompt import Message
from edge.replay.rows import read_lines, read_rows
from edge.system.text import printable


def play(path: Path, console: Console, *, task_id: str | None = None, delay: float = 0.0) -> None:
    """Show the new messages and the action of each step on the console.

    `task_id`: show only this task. `delay`: seconds between steps. Ignores a last row that a killed process did not
    write whole. Raises ReplayError if the file has no replay rows, or no row of that task.
    """
    rows = [
        row for row in read_rows(path, torn=True, schema="session-record") if task_id in (None, row.task_id)
    ]
    if not rows:
        raise ReplayError(f"{path}: has no task {task_id}")
    previous: tuple[str, int] | None = None
    shown = 0  # messages of this task that are on the screen
    for number, row in enumerate(rows):
        if (row.task_id, row.sample_idx) != previous:
            previous, shown = (row.task_id, row.sample_idx), 0
        elif number:
            time.sleep(delay)
        of = f" of {row.total_steps}" if row.total_steps else ""
        console.print(Rule(Text(f"{printable(row.task_id)}  step {row.step_idx + 1}{of}")))
        for message in row.messages[shown:] if len(row.messages) > shown else row.messages[-1:]:
            console.print(_shown_message(message), end="\n\n")
        shown = len(row.messages) + 1  # with the answer
        console.print(_shown_answer(row.ref_raw))
    _show_end(path, console, task_id)


def _show_end(path: Path, console: Console, task_id: str | None) -> None:
    """Show what the last row of a session holds: the last text of the terminal, and how the session ended."""
    for _, fields in read_lines(path, torn=True):
        session = fields.get("session")
        if task_id in (None, fields["task_id"]) and isinstance(session, dict) and "outcome" in session:
            console.print(highlighted(str(session.get("output", ""))), end="\n\n")
            console.print(Rule(Text(f"ended: {printable(str(session['outcome']))}")))


def _shown_message(message: Message) -> Text:
    content = message.get("content")
    text = content if isinstance(content, str) else str(content)
    return Text(f"[{printable(message['role'])}]\n", "dim").append_text(highlighted(text))


def _shown_answer(raw: str) -> Text:
    thought, answer = split_thought(raw)
    shown = highlighted(thought)
    if thought:
        shown.stylize("dim")
        shown.append("\n")
    try:
        return shown.append_text(shown_proposal(read_answer(answer)))
    except GrammarError:
        return shown.append_text(highlighted(answer.strip()))
