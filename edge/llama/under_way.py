"""The running jobs of an engine: a prompt that it reads, an answer that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edge.llama.cache import State
from edge.llama.drafts import Draft, Repeats
from edge.llama.jobs import Job, Logits
from edge.llama.prefixes import chunk_end

T = TypeVar("T")


@dataclass(eq=False)
class RunningJob(Generic[T]):
    """A job whose answer is being written into `state`."""

    index: int
    job: Job[T]
    state: State
    pending: list[int] = field(default_factory=list)
    """Tokens that the writer yielded and that are not decoded yet."""
    repeats: Repeats | None = None
    """The tokens so far, searched for drafts."""
    draft: Draft | None = None
    """What was decoded ahead with the last batch."""
    answer: T = field(init=False)
    """The answer, set when the job is finished."""
    _begun: bool = field(default=False, init=False)

    def resume(self, logits: Logits) -> bool:
        """Send the writer the logits after its last token; whether the answer is finished."""
        writer = self.job.writer
        try:
            tokens = () if self._begun else next(writer)
            self._begun = True
            self.pending = list(tokens or writer.send(logits))
        except StopIteration as stop:
            self.answer = stop.value
            self.pending = []
            return True
        return False


@dataclass(eq=False)
class PromptReading(Generic[T]):
    """A job whose prompt is being read into `state`."""

    job: Job[T]
    state: State
    stops: set[int]
    """Lengths at which reading stops because the caller keeps a state there."""

    @property
    def logits(self) -> Logits | None:
        """The logits after the prompt, None until it is read."""
        return self.state.logits

    @property
    def at_stop(self) -> bool:
        """Whether the caller keeps a state here; not at the end of the prompt."""
        return self.state.logits is None and len(self.state.tokens) in self.stops

    def next_part(self, room: int) -> Sequence[int]:
        """The tokens of the prompt to read next, at most `room`."""
        begin = len(self.state.tokens)
        prompt = self.job.prompt
        return prompt[begin : chunk_end(begin, (*self.job.cuts, *self.stops, len(prompt)), room)]
