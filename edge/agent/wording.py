"""The words that the model sees: first the task and the screen, then the terminal output after each action.

Models are trained and measured with these words: do not change a constant or a sentence here without new results.
"""

import string
from collections.abc import Sequence
from pathlib import Path

from edge.answer.action import Command
from edge.errors import PromptError
from edge.prompt import Message, task_messages
from edge.system.paths import DEFAULT_NAME, EMBEDDED_NAME
from edge.system.places import read_text

_INSTRUCTIONS = """\
You work in a terminal to get a task done. Each of your answers is typed into it, and then you are shown what it \
printed. Answer with one JSON object and nothing else:

{{"analysis": "what the terminal shows, and what is still missing", "plan": "what the next commands are for", \
"commands": [{{"keystrokes": "ls -la\\n", "duration": 0.5}}], "task_complete": false}}

- keystrokes are typed exactly as they are. End a command with \\n, or it does not run. C-c and C-d alone are keys.
- duration is how many seconds to wait before what comes next: 0.1 for quick commands, more for slow ones, 60 at most. \
Empty keystrokes only wait; rather look again than wait long.
- commands may be empty. Set task_complete to true once the work is done and you have seen that it is.

Task:
{instruction}

Current terminal state:
{terminal_state}"""

_CONFIRM_SHORT = "Is the task complete?"
_CONFIRM = (
    "You set task_complete to true. If all that the task asks for is done, answer with task_complete true once more, "
    "which ends the session. Otherwise go on."
)
NEW_SHELL = "Note: the shell has ended. This is a new shell."
_TRAINED = (EMBEDDED_NAME, DEFAULT_NAME)  # on the short wording
_FIELDS = {"instruction", "terminal_state"}


def read_template(path: Path | str) -> str:
    """Read a prompt template of Terminus-2: {instruction} and {terminal_state}, with {{ and }} for literal braces.

    Raises ReplayError if the file cannot be read, PromptError if it is not such a template.
    """
    template = read_text(path)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError(f"{path}: {error}; write literal braces twice: {{{{ and }}}}") from None
    names = {name for _, name, _, _ in parts if name is not None}
    if names != _FIELDS or any(spec or conversion for _, _, spec, conversion in parts):
        fields = ", ".join(sorted(f"{{{name}}}" for name in names)) or "no field"
        raise PromptError(
            f"{path}: has {fields}; a template needs {{instruction}} and {{terminal_state}} only"
        )
    return template


def first_messages(task: str, screen: str, model_name: str, template: str | None = None) -> list[Message]:
    """The first messages of a conversation. edge's own models get the short wording of their training."""
    if template is None and model_name in _TRAINED:
        return task_messages(task, screen)
    text = (template or _INSTRUCTIONS).format(instruction=task, terminal_state=screen)
    return [{"role": "user", "content": text}]


def opening(model_name: str, template: str | None = None) -> str:
    """What the first user message of every conversation begins with: the words before the task."""
    return str(first_messages("\0", "", model_name, template)[-1]["content"]).partition("\0")[0]


def confirmation(model_name: str) -> str:
    """The question that follows the first task_complete."""
    return _CONFIRM_SHORT if model_name in _TRAINED else _CONFIRM


def observation(output: str, notes: Sequence[str] = (), question: str = "") -> Message:
    """The next message: notes, a question, and what the terminal printed."""
    parts = [*notes, *([question] if question else []), output]
    return {"role": "user", "content": "\n\n".join(parts)}


def refused(reason: str, output: str) -> Message:
    """The next message after a refused action, with the reason."""
    return observation(output, [f"Nothing was typed: {reason}"])


def invalid_answer(why: str, output: str) -> Message:
    """The next message after an answer that is not an action, with the reason."""
    note = f"Note: your answer was not a valid action: {why}. Nothing was typed. Answer with one JSON object only."
    return observation(output, [note])


def repeated(times: int) -> str:
    """The note for an action that came several times in a row, with the same output each time."""
    return f"Note: you gave the same action {times} times, and its output was the same. Try something else."


def not_typed(number: int) -> str:
    """The note for a command that edge did not type because the shell was not at its prompt."""
    return (
        f"Note: command {number} was not typed, or not all of it, nor what follows it: another program is running. "
        "Wait with empty keystrokes, or end it with C-c, before the next command."
    )


def not_saved(why: str) -> str:
    """The note for an action after which the sandbox's work folder could not be saved."""
    return f"Note: the work folder could not be saved: {why}. Only what is saved comes back to the user."


def typing_notes(commands: Sequence[Command], closed_at_budget: bool) -> list[str]:
    """Warnings about the model's answer, as in Terminus-2."""
    notes = [
        f"Note: the keystrokes of command {number} do not end with a line break, so what followed was typed on the "
        "same line."
        for number, command in enumerate(commands[:-1], 1)
        if command.keystrokes.strip()
        and not command.keystrokes.endswith("\n")
        and len(command.keystrokes) > 3
    ]
    if closed_at_budget:
        notes.append("Note: your answer was too long and was cut; commands after the cut were not typed.")
    return notes
