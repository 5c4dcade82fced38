"""The loop of an agent: shows the model the screen, takes its action, and types it if the gate allows it.

The rules are those of Terminus-2, the agent of Terminal-Bench. edge types keystrokes exactly as they are, and waits
after each command as long as the model says (60 s at most). The session ends after two task_complete in a row.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from rich.text import Text

from edge.agent.gate import Decision, Gate
from edge.agent.kept import archive_path
from edge.agent.proposal import Proposal
from edge.agent.record import Record, StepFacts
from edge.agent.show import shown_step
from edge.agent.wording import confirmation, first_messages, observation, refused, repeated, typing_notes
from edge.agent.workplace import Workplace
from edge.answer.action import Action, Command
from edge.answer.answering import Answering
from edge.errors import ContextError, EdgeError
from edge.prompt import Message
from edge.runner import Runner, Session
from edge.terminal.tmux import SCREEN_BYTES, limit_output

Outcome = Literal[
    "complete", "stopped", "steps", "time", "refusals", "repeated", "failed", "ended", "interrupted"
]
DEFAULT_CONTEXT = 32_768
_MAX_REFUSALS = 5  # in a row
_TOLD_REPEATS, _MAX_REPEATS = 3, 5  # the same action in a row, with the same output
_MIN_OUTPUT = 500  # bytes of terminal output that a prompt must have room for


class _TimeUpError(Exception):
    """The time limit was reached while the model wrote an answer."""


class _NoAnswerError(Exception):
    """The model could not answer: the context is full, or the engine failed. Its cause is the EdgeError."""


@dataclass(frozen=True)
class Limits:
    """What ends a session: the number of model answers, and the time in seconds.

    The time in which the gate decides does not count. The loop checks it before each batch of tokens, and while it
    waits for the terminal.
    """

    steps: int = 50
    seconds: float = 1800.0


@dataclass
class Agent:
    """The parts of a session. `run` works on the task of the record until the session ends.

    `show` receives each proposal, and each text of the terminal, when it comes.
    """

    runner: Runner
    workplace: Workplace
    gate: Gate
    record: Record
    show: Callable[[Proposal | str | Text], None]
    context: int = DEFAULT_CONTEXT
    """Maximum number of tokens of a prompt and its answer. Above it, the loop leaves out older steps."""
    limits: Limits = field(default_factory=Limits)
    answering: Answering = field(default_factory=Answering)
    template: str | None = None
    """Another first prompt; see `wording.read_template`."""
    lost: bool = False
    """The work folder is older than the last action, because the process was killed during that action."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes the context in which the model reads and writes."""
    failure: str = field(default="", init=False)
    """Why the model could not answer, if the session ended as "failed"."""
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
            with self.runner.before_each_batch(self._check_time):
                outcome = self._steps()
        except _TimeUpError:
            outcome = "time"
        except _NoAnswerError as error:
            outcome, self.failure = "failed", str(error.__cause__)
            if error.__cause__ is not None and not self.record.rows:
                raise error.__cause__ from None
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            self.record.finish(outcome, self.workplace.last_output())
        return outcome

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def _check_time(self) -> None:
        if self._late():
            raise _TimeUpError

    def _steps(self) -> Outcome:
        session = self.runner.session()
        pending = self._first_messages(session)
        refusals = completions = 0
        for number in range(1, self.limits.steps + 1):
            if self._late():
                return "time"
            try:
                with self.waiting():
                    action = self._answer(session, pending)
            except EdgeError as error:
                raise _NoAnswerError from error
            proposal = Proposal(action.analysis, action.plan, action.commands, action.task_complete)
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
            self._write_step(session, action, decision)
            commands = decision.proposal.commands
            if not self.workplace.type(commands, self._late):
                return "ended"
            self.workplace.save(archive_path(self.record.path))
            completions = completions + 1 if decision.proposal.task_complete else 0
            if completions == 2:
                return "complete"
            if self._late():
                return "time"
            output = self.workplace.output()
            self.show(output)
            notes = self.workplace.notes + typing_notes(commands, action.closed_at_budget)
            repeats = self._count_repeats(commands, output)
            if repeats >= _MAX_REPEATS:
                return "repeated"
            if repeats >= _TOLD_REPEATS:
                notes.append(repeated(repeats))
                self.show(notes[-1])
            question = confirmation(self.runner.model_name) if completions == 1 else ""
            pending = [observation(output, notes, question)]
        return "steps"

    def _count_repeats(self, commands: Sequence[Command], output: str) -> int:
        """How often in a row these commands came, and this output after them; a wait for a program does not count."""
        typed = "\0".join(command.keystrokes for command in commands)
        if not typed.strip("\0") and self.workplace.terminal.prompt() is None:
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

    def _first_messages(self, session: Session) -> list[Message]:
        """The first messages of this run. Loads the conversation of a resumed record into the session."""
        screen = limit_output(self.workplace.terminal.screen())
        if not self.record.rows:
            task = self.record.facts["task"]
            return first_messages(task, screen, self.runner.model_name, self.template)
        last = self.record.rows[-1]
        session.messages = [*last["messages"], {"role": "assistant", "content": last["ref_raw"]}]
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

    def _answer(self, session: Session, pending: list[Message]) -> Action:
        """The model's answer. If the conversation is too long, leave out older steps, then shorten the output.

        Raises ContextError if that is not enough.
        """
        options = self.answering
        output_bytes = SCREEN_BYTES
        while True:
            try:
                prompt = self.runner.encode(self.runner.render([*session.messages, *pending]).text)
                if len(prompt) + options.max_tokens > self.context:
                    raise ContextError(
                        f"a prompt of {len(prompt)} tokens and an answer of {options.max_tokens} exceed the context "
                        f"length of {self.context}: use a larger --context or a smaller --max-tokens"
                    )
                return session.act(
                    pending,
                    options.max_tokens,
                    sampling=options.sampling,
                    think=options.think,
                    text_share=options.text_share,
                    style=options.style,
                )
            except ContextError:
                if shorter := without_older_steps(session.messages):
                    session.messages = shorter
                elif output_bytes > _MIN_OUTPUT and session.messages:
                    output_bytes //= 2
                    pending = [
                        {**message, "content": limit_output(message["content"], output_bytes)}
                        for message in pending
                    ]
                else:
                    raise

    def _write_step(self, session: Session, action: Action, decision: Decision) -> None:
        """Write to the record what edge is about to type."""
        prompt, answer = session.messages[:-1], session.messages[-1]["content"]
        step: StepFacts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "prompt_tokens": action.prompt_tokens,
            "completion_tokens": action.completion_tokens,
        }
        if decision.edited:
            step["model_answer"] = answer
            answer = decision.proposal.to_json()
            session.messages[-1] = {"role": "assistant", "content": answer}
        self.record.append(prompt, answer, decision.proposal.fields(), step)


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
