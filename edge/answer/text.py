"""Free text until the model's own EOS, the budget, or a text at which the client wants it to stop."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from edge.answer.sampling import Sampling
from edge.answer.scores import Scored, ScoredText
from edge.answer.writer import Answer, TokenWriter
from edge.llama.jobs import Writer
from edge.llama.vocabulary import Vocabulary


def text_answer(
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    scores: int | None = None,
    emit: Callable[[str | Scored], None] | None = None,
) -> Writer[Answer]:
    """Text without a grammar, until the model's own EOS or one of the `stop` texts, which is not included.

    `scores`: how many of the most probable tokens the answer gives with each token; None: no scores.
    """
    writer = TokenWriter(prompt, sampling, max_tokens)
    scored = None if scores is None else ScoredText(scores)
    shown = _StoppedText(stop, emit, scored)
    reason: Literal["stop", "length"] = "length"
    while writer.left:
        logits = yield from writer.logits()
        token = writer.sampler.pick(logits)
        piece = vocabulary.piece(token)
        ended = token in vocabulary.end_ids and not ignore_eos
        if scored is not None and piece and not ended:
            scored.add(logits, token, len(shown.text))
        writer.write(token)
        if ended or shown.add(piece):
            reason = "stop"
            break
    shown.end(whole=reason == "length")
    answer = writer.answer(shown.text, reason)
    return replace(answer, stopped_by=shown.stopped_by, scores=tuple(scored.told) if scored else ())


class _StoppedText:
    """Decodes a text and emits it, except what may be the beginning of a stop text."""

    def __init__(
        self, stop: Sequence[str], emit: Callable[[str | Scored], None] | None, scored: ScoredText | None
    ) -> None:
        self._stop = stop
        self._emit = emit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = max(map(len, stop), default=1) - 1  # characters
        self._shown = 0
        self.text = ""
        self.stopped_by: str | None = None
        self._scored = scored

    def add(self, piece: bytes) -> bool:
        """Take in the bytes of a token; True at a stop text, which is cut off."""
        begin = max(0, len(self.text) - self._held)
        self.text += self._decoder.decode(piece)
        ends = [(at, word) for word in self._stop if (at := self.text.find(word, begin)) >= 0]
        if ends:
            at, self.stopped_by = min(ends)
            self.text = self.text[:at]
            return True
        self._show(len(self.text) - self._held)
        return False

    def end(self, *, whole: bool) -> None:
        """Emit the rest. `whole`: also a character whose last bytes are missing."""
        if whole:
            self.text += self._decoder.decode(b"", True)
        self._show(len(self.text))

    def _show(self, end: int) -> None:
        if end <= self._shown:
            return
        text = self.text[self._shown : end]
        self._shown = end
        piece = text if self._scored is None else self._scored.show(text, end)
        if self._emit is not None:
            self._emit(piece)
