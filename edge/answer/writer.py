"""Write one answer token by token: a thought, then the action under its grammar with a valid end, or free text.

Answers are generators in the form that the engine takes (`edge.llama.jobs.Writer`): they yield tokens and receive the
logits after them. So the engine can write many at the same time, and an answer knows nothing of the others.
"""

import codecs
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.answer.action import ActionScanner
from edge.answer.calls import ToolCall
from edge.answer.constraint import Constraint
from edge.answer.sampling import Sampler, Sampling
from edge.answer.scores import TokenScore
from edge.answer.style import StyleName, style_grammar, style_of
from edge.errors import GrammarError
from edge.llama.jobs import Guide, Logits, Writer
from edge.llama.thought_marks import ThoughtMarks
from edge.llama.vocabulary import Vocabulary

_BLANKS_AFTER_THOUGHT = 4  # tokens of white space that a model may write between its thought and its action


@dataclass(frozen=True)
class Answer:
    """A written answer."""

    text: str
    """The JSON of the action, or the raw text of an unconstrained answer."""
    raw: str
    """The thought in its tags and then the text: what a conversation continues from."""
    thought: str | None
    finish_reason: Literal["stop", "length"]
    closed_at_budget: bool
    prompt_tokens: int
    completion_tokens: int
    forced_tokens: int
    thought_tokens: int
    calls: tuple[ToolCall, ...] = ()
    stopped_by: str | None = None
    """The `stop` text that ended the answer."""
    cached_tokens: int = 0
    """Tokens of the prompt that were kept from earlier requests, so they were not read again."""
    scores: tuple[TokenScore, ...] = ()
    """Of each token, if they were asked for."""


@dataclass(frozen=True)
class Thought:
    """The thought of an answer. `text` is None if there is none."""

    text: str | None = None
    raw: str = ""
    """With its tags, and the white space after them."""
    tokens: int = 0


_NO_THOUGHT = Thought()


class TokenWriter:
    """The tokens of one answer so far. They are decoded when the next logits are asked for."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> None:
        self._logits: Logits | None = None
        self._pending: list[int] = []
        self._greedy = sampling.greedy
        self.sampler = Sampler(sampling, prompt)
        self.prompt = prompt
        self.tokens: list[int] = []
        self.left = max_tokens
        self.forced = 0

    @property
    def last(self) -> int:
        """The last token of the answer; before the first one, that of the prompt."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    def logits(self) -> Generator[Sequence[int], Logits, Logits]:
        """The logits after the last token. They are valid until the next call."""
        if self._logits is None or self._pending:
            pending, self._pending = self._pending, []
            self._logits = yield pending
        return self._logits

    def choose(
        self, accepts: Callable[[int], bool], allowed: Callable[[], NDArray[np.bool_]]
    ) -> Generator[Sequence[int], Logits, int]:
        """The next token under a grammar, not written yet.

        `accepts` checks one token. `allowed` makes the mask of all tokens, of shape (n_vocab,); it costs ten times as
        much as the check, so a greedy choice tries the model's best token first.
        """
        logits = yield from self.logits()
        if self._greedy and accepts(token := self.sampler.pick(logits)):
            return token
        return self.sampler.pick(logits, allowed())

    def write(self, token: int) -> None:
        """Add a token that the model chose."""
        self.tokens.append(token)
        self._pending.append(token)
        self.sampler.saw(token)
        self.left -= 1

    def force(self, tokens: Sequence[int]) -> None:
        """Add tokens that the grammar forces."""
        for token in tokens:
            self.write(token)
        self.forced += len(tokens)

    def answer(
        self,
        text: str,
        finish_reason: Literal["stop", "length"],
        *,
        closed: bool = False,
        thought: Thought = _NO_THOUGHT,
        calls: tuple[ToolCall, ...] = (),
    ) -> Answer:
        """The finished answer. `closed`: its end was written because the budget ran out."""
        return Answer(
            text=text,
            raw=thought.raw + text,
            thought=thought.text,
            finish_reason=finish_reason,
            closed_at_budget=closed,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.tokens),
            forced_tokens=self.forced,
            thought_tokens=thought.tokens,
            calls=calls,
        )


def free_answer(
    vocabulary: Vocabulary, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling
) -> Writer[Answer]:
    """An answer without the grammar, until the checkpoint's own EOS: what vLLM would return."""
    writer = TokenWriter(prompt, sampling, max_tokens)
    ended = False
    while writer.left and not ended:
        token = writer.sampler.pick((yield from writer.logits()))
        writer.write(token)
        ended = token in vocabulary.end_ids
    return writer.answer(vocabulary.text(writer.tokens), "stop" if ended else "length")


def action_answer(
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    think: int,
    text_share: float,
    style: StyleName = "auto",
    emit: Callable[[str], None] | None = None,
    emit_thought: Callable[[str], None] | None = None,
    guide: Guide | None = None,
) -> Writer[Answer]:
    """An answer whose text is a whole action, with any model, budget or temperature.

    - think: maximum number of tokens of the thought, its tags included; below 3 there is none
    - text_share: share of the budget that analysis and plan together may fill before they are closed
    - style: white space, see `edge.answer.style`; where it leaves no choice, tokens are forced, and decoded together
      with what follows
    - emit: receives the text of the action as it becomes certain
    - emit_thought: receives the text of the thought, once for each token of it
    - guide: receives how many tokens of a draft the grammar accepts
    """
    writer = TokenWriter(prompt, sampling, max_tokens)
    thought = yield from write_thought(writer, vocabulary, think, emit_thought)
    write_header(writer, vocabulary)
    action = _ActionText(vocabulary, writer, style, emit)
    if guide is not None:
        guide.fitting = lambda tokens: action.constraint.fitting(
            tokens
        )  # the constraint changes with the style
    text_limit = int(text_share * writer.left)
    text_tokens = 0
    while writer.left and not action.constraint.complete:
        tokens = action.closing_of_texts() if text_tokens >= text_limit else []
        if len(tokens) > writer.left:
            break  # the ending below is shorter, and no command would fit behind this one
        tokens = tokens or action.forced()[: writer.left]
        if tokens:
            writer.force(tokens)
        else:
            text_tokens += action.scanner.in_text
            try:
                token = yield from writer.choose(action.constraint.accepts, action.constraint.mask)
            except GrammarError:
                break  # no token of this vocabulary can continue here; the ending below still can
            writer.write(token)
            tokens = [token]
        if not action.add(tokens):
            break
    closed = not action.constraint.complete
    return writer.answer(action.end(), "length" if closed else "stop", closed=closed, thought=thought)


def chat_answer(
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    think: int,
    emit: Callable[[str], None] | None = None,
    emit_thought: Callable[[str], None] | None = None,
) -> Writer[Answer]:
    """Free text until the checkpoint's own EOS, with the thought kept apart from it.

    `think`, `emit_thought`: as in `action_answer`. `emit` receives the text. The greedy tokens are those of
    `free_answer`, unless the thought reaches its maximum or has no end.
    """
    writer = TokenWriter(prompt, sampling, max_tokens)
    thought = yield from write_thought(writer, vocabulary, think, emit_thought)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    ended = False
    allowed: NDArray[np.bool_] | None = None
    write_header(writer, vocabulary)
    if thought.text is None and vocabulary.thought is not None:
        # `write_thought` has decided that there is no thought, so the text must not begin one.
        allowed = np.ones(vocabulary.n_vocab, np.bool_)
        allowed[vocabulary.thought.opening_ids[0]] = False
    while writer.left and not ended:
        token = writer.sampler.pick((yield from writer.logits()), allowed)
        allowed = None
        writer.write(token)
        ended = token in vocabulary.text_ends
        piece = decoder.decode(b"" if ended else vocabulary.piece(token), ended or not writer.left)
        text += piece
        if emit is not None and piece:
            emit(piece)
    return writer.answer(text, "stop" if ended else "length", thought=thought)


class _ActionText:
    """The text of an action so far, with the state of its grammar."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        writer: TokenWriter,
        style: StyleName,
        emit: Callable[[str], None] | None,
    ) -> None:
        self.scanner = ActionScanner()
        self._vocabulary = vocabulary
        self._writer = writer
        self._begin = len(writer.tokens)
        self._style_name: StyleName = style
        self._style = style_of(style, self.scanner)
        self.constraint = Constraint(vocabulary.matcher_tokens(), style_grammar(self._style))
        self._data = bytearray()
        self._emit = emit
        self._shown = 0  # bytes

    def add(self, tokens: Sequence[int]) -> bool:
        """Take in the tokens that were written last; False if llguidance has reached one of its limits."""
        piece = b"".join(map(self.constraint.bytes_of, tokens))
        self.scanner.feed(piece)
        self._data.extend(piece)
        if b'"' in piece:  # white space ends where a string begins
            style = style_of(self._style_name, self.scanner)
            if style != self._style:
                self._style = style
                self.constraint = Constraint(self._vocabulary.matcher_tokens(), style_grammar(style))
                tokens = self._writer.tokens[self._begin :]
        try:
            for token in tokens:
                self.constraint.consume(token)
        except GrammarError:
            return False
        if self._emit is not None and (certain := self.scanner.releasable()) > self._shown:
            self._emit(self._data[self._shown : certain].decode())
            self._shown = certain
        return True

    def forced(self) -> list[int]:
        """The tokens that the grammar forces here: none inside a string."""
        if self.scanner.at_boundary:
            return []
        return self._vocabulary.forced_tokens(self._writer.last, self.constraint.forced_bytes())

    def closing_of_texts(self) -> list[int]:
        """Tokens that end the open analysis and plan, so that commands can follow; none within a character."""
        if not (self.scanner.in_text and self.scanner.at_boundary):
            return []
        text = self.constraint.forced_bytes(b'"')
        if self.scanner.field == "analysis" and len(text) > 1:
            text = self.constraint.forced_bytes(text + b'"')  # an empty plan
        last = self._writer.last
        return self._vocabulary.forced_tokens(last, text) or self._vocabulary.forced_tokens(
            last, b'"', whole=True
        )

    def end(self) -> str:
        """Close the action; the whole text."""
        keep, ending = self.scanner.closing()
        if self._emit is not None:
            self._emit(self._data[self._shown : keep].decode() + ending)
        return self._data[:keep].decode() + ending


def thought_is_open(vocabulary: Vocabulary, prompt: Sequence[int]) -> bool:
    """Whether the chat template has opened a thought, at the end of the prompt or before a line break."""
    marks = vocabulary.thought
    if marks is None:
        return False
    tail = list(prompt[-len(marks.opening_ids) - 2 :])
    opened = any(tail[at:][: len(marks.opening_ids)] == list(marks.opening_ids) for at in range(3))
    return opened and marks.closing_ids[0] not in tail[-3:]


def write_thought(
    writer: TokenWriter,
    vocabulary: Vocabulary,
    think: int,
    emit: Callable[[str], None] | None = None,
) -> Generator[Sequence[int], Logits, Thought]:
    """Write the thought, if the chat template has opened one or the model begins one."""
    marks = vocabulary.thought
    if marks is None or not writer.left:
        return _NO_THOUGHT
    think = min(think, writer.left)
    if not thought_is_open(vocabulary, writer.prompt):
        if think < marks.least or not (yield from _begins_thought(writer, marks)):
            return _NO_THOUGHT
        writer.force(marks.rest(writer.tokens, marks.opening_ids))
    begin = len(writer.tokens)
    token = -1
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while len(writer.tokens) < think - len(marks.closing_ids):
        token = writer.sampler.pick((yield from writer.logits()))
        if token == marks.closing_ids[0] or token in vocabulary.end_ids:
            break
        writer.write(token)
        if emit is not None:
            emit(decoder.decode(vocabulary.piece(token)))
    text = vocabulary.text(writer.tokens[begin:])
    writer.forced -= token == marks.closing_ids[0]
    writer.force(marks.closing_ids[: max(1, writer.left)])
    end = len(writer.tokens)
    for _ in range(0 if marks.header else min(_BLANKS_AFTER_THOUGHT, think - end)):
        token = writer.sampler.pick((yield from writer.logits()))
        piece = vocabulary.piece(token)
        if not piece or piece.strip():
            break
        writer.write(token)
    blanks = vocabulary.text(writer.tokens[end:])
    # A template that writes a header takes no marks of thoughts in a message.
    raw = "" if marks.header else f"{marks.opening}{text}{marks.closing}{blanks}"
    return Thought(text.strip(), raw, len(writer.tokens))


def _begins_thought(writer: TokenWriter, marks: ThoughtMarks) -> Generator[Sequence[int], Logits, bool]:
    """Whether the model's next tokens begin a thought. Where a header begins like one, the first token is written."""
    first, second = marks.opening_ids[:2] if marks.header else (marks.opening_ids[0], -1)
    if writer.sampler.pick((yield from writer.logits())) != first:
        return False
    if not marks.header:
        return True
    writer.write(first)
    return writer.sampler.pick((yield from writer.logits())) == second


def write_header(writer: TokenWriter, vocabulary: Vocabulary) -> None:
    """Write the tokens before the text of an answer, or the rest of them: none for most models."""
    if vocabulary.thought is not None:
        writer.force(vocabulary.thought.rest(writer.tokens, vocabulary.thought.header_ids)[: writer.left])
