"""How models mark their thoughts: the texts around a thought, found by the special tokens of a vocabulary."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ThoughtMarks:
    """The marks of a model, as texts and as token ids.

    `opening`, `closing`: around a thought. `header`: what stands before the text of an answer; empty for most models.
    """

    opening: str
    closing: str
    header: str = ""
    opening_ids: tuple[int, ...] = ()
    closing_ids: tuple[int, ...] = ()
    header_ids: tuple[int, ...] = ()

    @property
    def least(self) -> int:
        """Tokens of the shortest thought."""
        return len(self.opening_ids) + len(self.closing_ids) + 1

    @staticmethod
    def rest(written: Sequence[int], mark: tuple[int, ...]) -> tuple[int, ...]:
        """What is left of a mark to write: the last token of `written` can be its first one."""
        return mark[1:] if mark and list(written[-1:]) == [mark[0]] else mark


_KNOWN = (
    ThoughtMarks("<think>", "</think>"),
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("<|channel>thought\n", "<channel|>"),  # Gemma 4
    # gpt-oss: a thought is a separate message, and the text of an answer is another.
    ThoughtMarks(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant",
        "<|channel|>final<|message|>",
    ),
)
_SPECIAL = re.compile(r"<[^<>]+>|\[/?THINK\]")


def find_marks(encode: Callable[[str], list[int]]) -> ThoughtMarks | None:
    """The marks whose special texts are single tokens; None if a vocabulary has no such marks.

    `encode`: the token ids of a text, special tokens among them.
    """
    for marks in _KNOWN:
        special = _SPECIAL.findall(marks.opening + marks.closing + marks.header)
        if all(len(encode(text)) == 1 for text in special):
            ids = (
                tuple(encode(text)) if text else () for text in (marks.opening, marks.closing, marks.header)
            )
            return ThoughtMarks(marks.opening, marks.closing, marks.header, *ids)
    return None
