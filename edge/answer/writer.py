"""Write one answer, token by token: a thought, the action under its grammar, a valid end at any budget.

Answers are generators, as the engine takes them: they yield tokens and are sent the logits after them. So many
can be written at once, and none knows of the others.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.answer.action import ActionScanner
from edge.answer.constraint import Constraint
from edge.answer.sampling import Sampler, Sampling
from edge.answer.style import StyleName, style_grammar, style_of
from edge.errors import GrammarError
from edge.llama.engine import Logits, Writer
from edge.llama.vocabulary import THINK_CLOSE, THINK_OPEN, Vocabulary

_BLANKS_AFTER_THOUGHT = 4  # tokens of white space that a model may put between its thought and its action


@dataclass(frozen=True)
class Answer:
    """What was written. `text` is the action's JSON, or the raw text of an unconstrained answer.

    `raw` is all of it, the thought in its tags before the action, as a conversation goes on from it.
    """

    text: str
    raw: str
    thought: str | None
    finish_reason: Literal["stop", "length"]
    closed_at_budget: bool
    prompt_tokens: int
    completion_tokens: int
    forced_tokens: int
    thought_tokens: int


class TokenWriter:
    """The answer's tokens so far; what is written is decoded only when the next logits are asked for."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> None:
        self._logits: Logits | None = None
        self._pending: list[int] = []
        self.sampler = Sampler(sampling, prompt)
        self.prompt = prompt
        self.tokens: list[int] = []
        self.left = max_tokens
        self.forced = 0

    @property
    def last(self) -> int:
        """The token written last, or the prompt's."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    def logits(self) -> Generator[Sequence[int], Logits, Logits]:
        """Those after the last token written. They are valid until the next are asked for."""
        if self._logits is None or self._pending:
            pending, self._pending = self._pending, []
            self._logits = yield pending
        return self._logits

    def write(self, token: int) -> None:
        self.tokens.append(token)
        self._pending.append(token)
        self.sampler.saw(token)
        self.left -= 1

    def force(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.write(token)
        self.forced += len(tokens)


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
    text = vocabulary.text(writer.tokens)
    reason: Literal["stop", "length"] = "stop" if ended else "length"
    return Answer(text, text, None, reason, False, len(prompt), len(writer.tokens), 0, 0)


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
) -> Writer[Answer]:
    """An answer whose text is a whole action, whatever the model, the budget or the temperature.

    `think` is the most tokens a thought may take, its tags included; below 3 there is none. `text_share` is the
    part of the budget that analysis and plan may fill together before they are closed. `style`: see `edge.style`; what
    it leaves no choice for is forced, and decoded together with what follows. `emit` gets the action's text as it
    becomes certain.
    """
    writer = TokenWriter(prompt, sampling, max_tokens)
    thought, before = yield from _think(writer, vocabulary, think)
    thought_tokens = len(writer.tokens)
    scanner = ActionScanner()
    known = style_of(style, scanner)
    constraint = Constraint(vocabulary.matcher_tokens(), style_grammar(known))
    begin = len(writer.tokens)
    data = bytearray()
    shown = 0
    text_limit = int(text_share * writer.left)
    text_tokens = 0
    while writer.left and not constraint.complete:
        tokens = _closing_text(constraint, scanner, vocabulary, writer) if text_tokens >= text_limit else []
        if len(tokens) > writer.left:
            break  # the ending below is shorter, and no command would fit behind this one
        tokens = tokens or vocabulary.forced_tokens(writer.last, constraint.forced_bytes())[: writer.left]
        if tokens:
            writer.force(tokens)
        else:
            text_tokens += scanner.in_text
            logits = yield from writer.logits()
            token = writer.sampler.pick(logits) if sampling.greedy else -1
            try:
                if not constraint.accepts(token):  # the mask costs ten times as much as the check
                    token = writer.sampler.pick(logits, constraint.mask())
            except GrammarError:
                break  # this vocabulary cannot go on from here; the ending below still can
            writer.write(token)
            tokens = [token]
        piece = b"".join(map(constraint.bytes_of, tokens))
        scanner.feed(piece)
        data.extend(piece)
        if b'"' in piece and (seen := style_of(style, scanner)) != known:  # a gap ends where a string begins
            known = seen
            constraint = Constraint(vocabulary.matcher_tokens(), style_grammar(known))
            tokens = writer.tokens[begin:]
        try:
            for token in tokens:
                constraint.consume(token)
        except GrammarError:
            break  # llguidance has reached a limit of its own
        if emit is not None and (certain := scanner.releasable()) > shown:
            emit(data[shown:certain].decode())
            shown = certain

    keep, ending_text = scanner.closing()
    text = data[:keep].decode() + ending_text
    if emit is not None:
        emit(data[shown:keep].decode() + ending_text)
    closed = not constraint.complete
    return Answer(
        text,
        before + text,
        thought,
        "length" if closed else "stop",
        closed,
        len(prompt),
        len(writer.tokens),
        writer.forced,
        thought_tokens,
    )


def _closing_text(
    constraint: Constraint, scanner: ActionScanner, vocabulary: Vocabulary, writer: TokenWriter
) -> list[int]:
    """Tokens that end the open analysis and plan, so that commands can follow; none within a character."""
    if not (scanner.in_text and scanner.at_boundary):
        return []
    text = constraint.forced_bytes(b'"')
    if scanner.field == "analysis" and len(text) > 1:
        text = constraint.forced_bytes(text + b'"')  # an empty plan
    return vocabulary.forced_tokens(writer.last, text) or vocabulary.forced_tokens(
        writer.last, b'"', whole=True
    )


def _think(
    writer: TokenWriter, vocabulary: Vocabulary, think: int
) -> Generator[Sequence[int], Logits, tuple[str | None, str]]:
    """Write the thought, if the template has opened one or the model wants to; the thought, and all with tags."""
    opening, closing = vocabulary.think_open, vocabulary.think_close
    if opening is None or closing is None or not writer.left:
        return None, ""
    think = min(think, writer.left)
    # Some templates open the thought themselves, as the last thing in the prompt or before a line break.
    opened = opening in writer.prompt[-3:] and closing not in writer.prompt[-3:]
    if not opened:
        if think < 3 or writer.sampler.pick((yield from writer.logits())) != opening:
            return None, ""
        writer.write(opening)
    begin = len(writer.tokens)
    token = opening
    while len(writer.tokens) < think - 1:
        token = writer.sampler.pick((yield from writer.logits()))
        if token == closing or token in vocabulary.end_ids:
            break
        writer.write(token)
    thought = vocabulary.text(writer.tokens[begin:])
    writer.forced += token != closing
    writer.write(closing)
    end = len(writer.tokens)
    for _ in range(min(_BLANKS_AFTER_THOUGHT, think - end)):
        token = writer.sampler.pick((yield from writer.logits()))
        piece = vocabulary.piece(token)
        if not piece or piece.strip():
            break
        writer.write(token)
    blanks = vocabulary.text(writer.tokens[end:])
    return thought.strip(), f"{THINK_OPEN}{thought}{THINK_CLOSE}{blanks}"
