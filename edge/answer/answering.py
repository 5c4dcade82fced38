"""How an answer is written: its budget, its parts, its form, as one value."""

from dataclasses import dataclass
from typing import Literal

from edge.answer.sampling import Sampling
from edge.answer.style import STYLE_NAMES, StyleName
from edge.errors import EdgeError

AnswerKind = Literal["action", "text"]
"""What a conversation consists of: actions under the grammar, or free text."""
ANSWER_KINDS: tuple[AnswerKind, ...] = ("action", "text")
DEFAULT_MAX_TOKENS = 1024
DEFAULT_TEXT_SHARE = 0.6
GREEDY = Sampling()


@dataclass(frozen=True)
class Answering:
    """Options of writing an answer. Raises EdgeError for a value outside its range."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    """Maximum number of tokens, thought included."""
    sampling: Sampling = GREEDY
    think: int | None = None
    """Maximum number of tokens of the thought; by default a quarter of max_tokens, 0 for none."""
    text_share: float = DEFAULT_TEXT_SHARE
    """Share of the rest that analysis and plan together may fill."""
    style: StyleName = "auto"
    """White space of the action: auto (the model's own), compact, indented or free."""
    constrained: bool = True
    """Keep to the grammar of an action; otherwise the model writes freely."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EdgeError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if not 0 <= self.text_share <= 1:
            raise EdgeError(f"text_share is {self.text_share}; it must be from 0 to 1")
        if self.think is not None and self.think < 0:
            raise EdgeError(f"think is {self.think}; it must be 0 (off) or more tokens")
        if self.style not in STYLE_NAMES:
            raise EdgeError(f"style is {self.style}; it must be one of {', '.join(STYLE_NAMES)}")

    @property
    def thought_tokens(self) -> int:
        """Maximum number of tokens of the thought."""
        return self.max_tokens // 4 if self.think is None else self.think


DEFAULT_ANSWERING = Answering()
FREE = Answering(constrained=False)
