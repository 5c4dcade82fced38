"""`edge agent`: shows the model the screen, takes its action, types it into the terminal if the gate lets it.

The semantics are those of Terminus-2, the agent of Terminal-Bench: keystrokes verbatim, each waited for as long as the
model says (60 s at most), the session over when task_complete was given twice in a row.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge.agent.gate import Decision, Gate, Proposal
from edge.agent.record import Record
from edge.agent.review import proposal_json
from edge.agent.wording import confirmation, first_messages, not_typed, observation, refused, typing_notes
from edge.answer.action import Action
from edge.answer.sampling import Sampling
from edge.errors import AgentError, ContextError
from edge.prompt import Message
from edge.runner import Runner, Session
from edge.terminal.tmux import MAX_DURATION, SCREEN_BYTES, SHELL, Terminal, limit_output

if TYPE_CHECKING:
    from edge.terminal.sandbox import Sandbox

Outcome = Literal["complete", "stopped", "steps", "time", "refusals", "ended", "interrupted"]
_MOST_REFUSALS = 5  # in a row
_LEAST_OUTPUT = 500  # bytes of the screen that a prompt must have room for


class _TimeUpError(Exception):
    """The time limit was reached within an answer."""


@dataclass
class Agent:
    """A session's parts: model, terminal, gate and record. `run` works on the task until it ends.

    `show` is called with each proposal, and each text that the terminal printed, as they come.
    """

    runner: Runner
    terminal: Terminal
    gate: Gate
    record: Record
    show: Callable[[Proposal | str], None]
    workdir: Path
    sandbox: "Sandbox | None" = None
    lost: bool = False
    """Whether the work folder is one from before the last action, since the session was killed while it ran."""
    line_by_line: bool = False
    """Whether a line is typed only once the shell waits for it, since a list allowed it as the shell's."""
    template: str | None = None
    context: int = 32_768
    """Tokens that a prompt and its answer may take together; older steps are left out above it."""
    max_tokens: int = 1024
    max_steps: int = 50
    time_limit: float = 1800.0
    """Seconds from the start of `run`, without those in which the gate decides; looked at before each batch of the
    model's and while the terminal is waited for."""
    answer_options: dict[str, Any] = field(default_factory=lambda: {"sampling": Sampling()})
    """What `Runner.act` takes besides."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Is entered while the model reads and writes."""
    _end: float = field(default=0.0, init=False)

    def run(self) -> Outcome:
        """Work on the record's task, from its beginning or from where the record ends; how it ended.

        Ends with KeyboardInterrupt as "interrupted". The record is finished, whatever ends it but a kill.
        Raises AgentError, ContextError; the record is finished as "ended" then.
        """
        outcome: Outcome = "ended"
        self._end = time.monotonic() + self.time_limit

        def check_time() -> None:
            if self._late():
                raise _TimeUpError

        self.runner.engine.before_batch = check_time
        try:
            outcome = self._steps()
        except _TimeUpError:
            outcome = "time"
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            self.runner.engine.before_batch = None
            self.record.finish(outcome, self._last_output())
        return outcome

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def _steps(self) -> Outcome:
        session = self.runner.session()
        pending = self._first(session)
        refusals = completions = 0
        for _ in range(self.max_steps):
            if self._late():
                return "time"
            with self.waiting():
                action = self._answer(session, pending)
            proposal = Proposal(action.analysis, action.plan, action.commands, action.task_complete)
            self.show(proposal)
            began = time.monotonic()
            decision = self.gate(proposal)
            self._end += time.monotonic() - began
            if decision.verdict == "stop":
                return "stopped"
            if decision.verdict == "refuse":
                self.show(f"Nothing was typed: {decision.reason}")
                refusals, completions = refusals + 1, 0
                if refusals == _MOST_REFUSALS:
                    return "refusals"
                pending = [refused(decision.reason, self.terminal.output())]
                continue
            refusals = 0
            self._keep(session, action, decision)
            untyped: list[str] = []
            if not self._type(decision.proposal, untyped):
                return "ended"
            self._checkpoint()
            completions = completions + 1 if decision.proposal.task_complete else 0
            if completions == 2:
                return "complete"
            if self._late():
                return "time"
            output = self._output()
            self.show(output)
            notes = untyped + typing_notes(decision.proposal.commands, action.closed_at_budget)
            question = confirmation(self.runner.model_file.name) if completions == 1 else ""
            pending = [observation(output, notes, question)]
        return "steps"

    def _first(self, session: Session) -> list[Message]:
        screen = limit_output(self.terminal.screen())
        if not self.record.rows:
            name = self.runner.model_file.name
            return first_messages(self.record.facts["task"], screen, name, self.template)
        last = self.record.rows[-1]
        session.messages = [*last["messages"], {"role": "assistant", "content": last["ref_raw"]}]
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
        """The model's answer; where the conversation is too long, without its older steps."""
        most = SCREEN_BYTES
        while True:
            try:
                prompt = self.runner.encode(self.runner.render([*session.messages, *pending]).text)
                if len(prompt) + self.max_tokens > self.context:
                    raise ContextError(
                        f"a prompt of {len(prompt)} tokens and an answer of {self.max_tokens} are more than the "
                        f"context of {self.context}: choose a larger --context or a smaller --max-tokens"
                    )
                return session.act(pending, self.max_tokens, **self.answer_options)
            except ContextError:
                if shorter := without_older_steps(session.messages):
                    session.messages = shorter
                elif most > _LEAST_OUTPUT and session.messages:
                    most //= 2
                    pending = [
                        {**message, "content": limit_output(message["content"], most)} for message in pending
                    ]
                else:
                    raise

    def _keep(self, session: Session, action: Action, decision: Decision) -> None:
        """Write down what is about to be typed, before it is."""
        seen, answer = session.messages[:-1], session.messages[-1]["content"]
        step: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "prompt_tokens": action.prompt_tokens,
            "completion_tokens": action.completion_tokens,
        }
        if decision.edited:
            step["model_answer"] = answer
            answer = proposal_json(decision.proposal)
            session.messages[-1] = {"role": "assistant", "content": answer}
        proposal = decision.proposal
        fields = {
            "analysis": proposal.analysis,
            "plan": proposal.plan,
            "commands": [{"keystrokes": c.keystrokes, "duration": c.duration} for c in proposal.commands],
            "task_complete": proposal.task_complete,
        }
        self.record.append(seen, answer, fields, step)

    def _type(self, proposal: Proposal, untyped: list[str]) -> bool:
        """Type the commands in turn; False where the terminal cannot go on. `untyped` gets a note on what was not."""

        def stop() -> bool:
            return self._late() or (self.sandbox is not None and self.sandbox.trouble() is not None)

        for number, command in enumerate(proposal.commands, 1):
            if stop():
                if self._late():
                    self.show(
                        f"The time limit was reached: command {number} was not typed, nor what follows it."
                    )
                break
            if self.terminal.ended and not self._new_shell():
                return False
            send = self.terminal.send_lines if self.line_by_line else self.terminal.send
            if send(command.keystrokes, min(command.duration, MAX_DURATION), stop=stop) is False:
                untyped.append(not_typed(number))
                self.show(untyped[-1])
                break
        if self.sandbox is not None and (trouble := self.sandbox.trouble()):
            self.show(f"The sandbox has ended: {trouble}")
            return False
        return not self.terminal.ended or self._new_shell()

    def _new_shell(self) -> bool:
        if self.sandbox is not None:
            self.show(f"The sandbox has ended: {self.sandbox.trouble() or 'its shell is gone'}")
            return False
        self.terminal.restart(SHELL, cwd=self.workdir)
        return True

    def _output(self) -> str:
        return self.terminal.output()

    def _checkpoint(self) -> None:
        if self.sandbox is not None:
            self.sandbox.save(packed_path(self.record.path))

    def _last_output(self) -> str:
        try:
            return self.terminal.output()
        except AgentError:
            return ""


def packed_path(record: Path) -> Path:
    """Where a sandboxed session keeps its work folder, as a tar, until it is brought back."""
    return record.with_name(record.name + ".work.tar")


def without_older_steps(messages: Sequence[Message]) -> list[Message]:
    """The conversation without the older half of its steps, and a line that says so; empty where none is left.

    What stands before the first answer stays: the task. Half at once, so that what is read again is read rarely.
    """
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    steps = (len(messages) - first) // 2  # an answer and what it was shown
    if first == 0 or len(messages) - first < 2:
        return []
    cut = first + 2 * max(1, steps // 2)
    head = [dict(message) for message in messages[:first]]
    line = "[The first steps after this were left out for want of room.]"
    if not head[-1]["content"].endswith(line):
        head[-1]["content"] += f"\n\n{line}"
    return [*head, *messages[cut:]]
