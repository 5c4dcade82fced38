"""What an engine works on: a job is a prompt and the generator that writes its answer."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Logits = NDArray[np.float32]
"""Shape (n_vocab,)."""
Writer = Generator[Sequence[int], Logits, T]
"""Yields the tokens that follow, receives the logits after the last of them, and returns the answer.

The logits are valid until the next yield. An empty first yield asks for the logits after the prompt.
"""


@dataclass(eq=False)
class Guide:
    """What the writer of an answer says about tokens that may follow. The writer sets `fitting` while it writes."""

    fitting: Callable[[Sequence[int]], int] = len
    """How many tokens of a draft, from its beginning, its grammar accepts now."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """A prompt in token ids, and the writer of its answer."""

    prompt: Sequence[int]
    writer: Writer[T]
    room: int
    """Maximum number of tokens that the writer yields."""
    cuts: Sequence[int] = ()
    """Lengths of the prompt at which reading stops, because other prompts part there."""
    held: Sequence[int] = ()
    """Lengths of the prompt at which a state is held, because the owner's next prompt may part there."""
    stored: Sequence[int] = ()
    """Lengths of the prompt, each in `cuts` or its end, at which the state may go to disk."""
    guide: Guide | None = None
    """Cuts drafts before they are decoded. Without one they are decoded whole."""
