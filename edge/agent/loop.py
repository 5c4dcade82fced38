"""The loop of an agent: shows the model the screen, takes its action, and types it if the gate allows it.

The rules are those of Terminus-2, the agent of Terminal-Bench. edge types keystrokes exactly as they are, and waits
after each command as long as the model says (60 s at most). The session ends after two task_complete in a row.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from rich.text import Text

from edge.agent.answerer import Answer, Answerer, InvalidAnswerError, TimeUpError
from edge.agent.gate import Decision, Gate
from edge.agent.kept import archive_path
from edge.agent.proposal import Proposal
from edge.agent.record import Record, StepFacts
from edge.agent.show import Screen, shown_step
from edge.agent.wording import (
    confirmation,
    first_messages,
    invalid_answer,
    observation,
    refused,
    repeated,
    typing_notes,
)
from edge.agent.workplace import Workplace
from edge.answer.action import Command
from edge.errors import AgentError, ContextError, EdgeError
from edge.prompt import Message
from edge.terminal.tmux import SCREEN_BYTES, limit_output

Outcome = Literal[
    "complete",
    "stopped",
    "steps",
    "time",
    "refusals",
    "repeated",
    "invalid",
    "failed",
    "ended",
    "interrupted",
]
_MAX_REFUSALS = 5  # in a row
_MAX_INVALID = 3  # in a row
_HASTY: tuple[Outcome, ...] = ("stopped", "interrupted")  # the person wants the end now
_MIN_OUTPUT = 500  # bytes of terminal output that a prompt must have room for


class _NoAnswerError(Exception):
    """The model could not answer: the context is full, or the engine failed. Its cause is the EdgeError."""


@dataclass(frozen=True)
class Limits:
    """What ends a session: the number of model answers, and the time in seconds.

    The time in which the gate decides does not count. The loop checks it while the model answers, and while it waits
    for the terminal. `told_repeats`, `repeats`: how often one action may come in a row with the same output, before the
    model is told and before the session ends.
    """

    steps: int = 50
    seconds: float = 1800.0
    told_repeats: int = 3
    repeats: int = 5


@dataclass
class Agent:
    """The parts of a session. `run` works on the task of the record until the session ends.

    `show` receives each proposal, and each text of the terminal, when it comes.
    """

    model: Answerer
    workplace: Workplace
    gate: Gate
    record: Record
    show: Callable[[Proposal | str | Text], None]
    limits: Limits = field(default_factory=Limits)
    template: str | None = None
    """Another first prompt; see `wording.read_template`."""
    lost: bool = False
    """The work folder is older than the last action, because the process was killed during that action."""
    settle: float = 0.0
    """Seconds that a command which still runs at the end of the session has left."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes the context in which the model reads and writes."""
    failure: str = field(default="", init=False)
    """Why the model could not answer, if the session ended as "failed" or "invalid"."""
    _messages: list[Message] = field(
        default_factory=list, init=False
    )  # the conversation up to the last answer
    _end: float = field(default=0.0, init=False)
    _last: tuple[str, str] = field(default=("", ""), init=False)
    _repeats: int = field(default=0, init=False)

    def run(self) -> Outcome:
        """Work on the task, from its beginning or from the end of the record. Returns how the session ended.

        KeyboardInterrupt ends the session as "interrupted", and an answer that fails ends it as "failed". Raises
        AgentError or SandboxError; the record then ends as "ended". Raises the EdgeError of a failed answer if the
        record has no step to continue from. The record is finished in all cases except a killed process.
        """
        outcome: Outcome = "ended"
        self._end = time.monotonic() + self.limits.seconds
        try:
            outcome = self._steps()
        except TimeUpError:
            outcome = "time"
        except _NoAnswerError as error:
            outcome, self.failure = "failed", str(error.__cause__)
            if error.__cause__ is not None and not self.record.rows:
                raise error.__cause__ from None
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            self.record.finish(outcome, self._last_output(outcome))
        return outcome

    def _last_output(self, outcome: Outcome) -> str:
        """What is new in the terminal at the end. Lets the last command end: a person has accepted all of it."""
        late = False
        if self.settle and outcome != "ended":
            with contextlib.suppress(AgentError, KeyboardInterrupt):  # AgentError: tmux has ended
                late = self.workplace.settle(0.0 if outcome in _HASTY else self.settle)
                if late:
                    self.workplace.save(archive_path(self.record.path))
        output = self.workplace.last_output()
        if late and output:
            self.show(Screen(output))
        return output

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def _steps(self) -> Outcome:
        pending = self._first_messages()
        refusals = completions = invalid = 0
        for number in range(1, self.limits.steps + 1):
            if self._late():
                return "time"
            try:
                answer = self._answer(pending)
            except InvalidAnswerError as error:
                self.show(f"The answer is not a valid action: {error}")
                invalid, completions = invalid + 1, 0
                if invalid == _MAX_INVALID:
                    self.failure = str(error)
                    return "invalid"
                pending = [invalid_answer(str(error), self.workplace.output())]
                continue
            invalid = 0
            proposal = answer.proposal
            self.show(shown_step(number, self.limits.steps, self._end - time.monotonic()))
            self.show(proposal)
            decision = self._decide(proposal)
            if decision.verdict == "stop":
                return "stopped"
            if decision.verdict == "refuse":
                self.show(f"Nothing was typed: {decision.reason}")
                refusals, completions = refusals + 1, 0
                if refusals == _MAX_REFUSALS:
                    return "refusals"
                pending = [refused(decision.reason, self.workplace.output())]
                continue
            refusals = 0
            self._write_step(answer, decision)
            commands = decision.proposal.commands
            alive = self.workplace.type(commands, self._late)
            self.record.add_waits(self.workplace.waits)
            if not alive:
                return "ended"
            self.workplace.save(archive_path(self.record.path))
            completions = completions + 1 if decision.proposal.task_complete else 0
            if completions == 2:
                return "complete"
            if self._late():
                return "time"
            output = self.workplace.output()
            self.show(Screen(output))
            repeats = self._count_repeats(commands, output)
            if repeats >= self.limits.repeats:
                return "repeated"
            question = confirmation(self.model.name) if completions == 1 else ""
            pending = [observation(output, self._notes(commands, answer.cut, repeats), question)]
        return "steps"

    def _notes(self, commands: Sequence[Command], cut: bool, repeats: int) -> list[str]:
        """The notes for the model about its action. Shows the note about a repeated action."""
        notes = self.workplace.notes + typing_notes(commands, cut)
        if repeats >= self.limits.told_repeats:
            notes.append(repeated(repeats))
            self.show(notes[-1])
        return notes

    def _count_repeats(self, commands: Sequence[Command], output: str) -> int:
        """How often in a row these commands came, and this output after them; a wait for a program does not count."""
        typed = "\0".join(command.keystrokes for command in commands)
        if not typed.strip("\0") and self.workplace.terminal.busy():
            return 0
        now = (typed, output)
        self._repeats = self._repeats + 1 if now == self._last else 1
        self._last = now
        return self._repeats

    def _decide(self, proposal: Proposal) -> Decision:
        began = time.monotonic()
        decision = self.gate(proposal)
        self._end += time.monotonic() - began  # the person's time does not count
        return decision

    def _first_messages(self) -> list[Message]:
        """The first messages of this run. Loads the conversation of a resumed record."""
        screen = limit_output(self.workplace.terminal.screen())
        if not self.record.rows:
            task = self.record.facts["task"]
            return first_messages(task, screen, self.model.name, self.template)
        last = self.record.rows[-1]
        self._messages = [*last["messages"], {"role": "assistant", "content": last["ref_raw"]}]
        # The model reads these notes.
        notes = [
            "Note: the session was interrupted here. This is a new terminal; what ran in the old one has ended."
        ]
        if self.lost:
            notes.append(
                "Note: what the last action did to the files is lost; they are as they were before it."
            )
            self.show(notes[-1])
        return [observation(f"Current Terminal Screen:\n{screen}", notes)]

    def _answer(self, pending: list[Message]) -> Answer:
        """The model's answer to the pending messages; both become part of the conversation.

        If the conversation is too long, leave out older steps, then shorten the output. Raises _NoAnswerError if there
        is not an answer, InvalidAnswerError, TimeUpError.
        """
        output_bytes = SCREEN_BYTES
        while True:
            try:
                with self.waiting():
                    answer = self.model.answer([*self._messages, *pending], self._end)
            except InvalidAnswerError as error:
                self._remember(pending, error.answer)
                raise
            except ContextError as error:
                if shorter := without_older_steps(self._messages):
                    self._messages = shorter
                elif output_bytes > _MIN_OUTPUT and self._messages:
                    output_bytes //= 2
                    pending = [
                        {**message, "content": limit_output(message["content"], output_bytes)}
                        for message in pending
                    ]
                else:
                    raise _NoAnswerError from error
            except EdgeError as error:
                raise _NoAnswerError from error
            except MemoryError:
                message = "out of memory: end other programs, or use a smaller model or --context"
                raise _NoAnswerError from EdgeError(message)
            else:
                self._remember(pending, answer.raw)
                return answer

    def _remember(self, pending: Sequence[Message], answer: str) -> None:
        self._messages = [*self._messages, *pending, {"role": "assistant", "content": answer}]

    def _write_step(self, answer: Answer, decision: Decision) -> None:
        """Write to the record what edge is about to type."""
        prompt, raw = self._messages[:-1], answer.raw
        step: StepFacts = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        if answer.prompt_tokens is not None:
            step["prompt_tokens"] = answer.prompt_tokens
        if answer.completion_tokens is not None:
            step["completion_tokens"] = answer.completion_tokens
        if decision.edited:
            step["model_answer"] = raw
            raw = decision.proposal.to_json()
            self._messages[-1] = {"role": "assistant", "content": raw}
        self.record.append(prompt, raw, decision.proposal.fields(), step)


def without_older_steps(messages: Sequence[Message]) -> list[Message]:
    """The conversation without the older half of its steps, and with a line that says so; empty if no step is left.

    Keeps everything before the first answer: the task. Leaves out half of the steps each time, so that the model
    rarely reads the conversation again.
    """
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    steps = (len(messages) - first) // 2  # an answer and the message after it
    if first == 0 or len(messages) - first < 2:
        return []
    cut = first + 2 * max(1, steps // 2)
    head = [dict(message) for message in messages[:first]]
    line = "[The first steps after this were left out for want of room.]"  # the model reads it
    if not head[-1]["content"].endswith(line):
        head[-1]["content"] += f"\n\n{line}"
    return [*head, *messages[cut:]]
