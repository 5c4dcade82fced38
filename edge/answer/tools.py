"""Answers that call tools: text and calls, or calls alone; a call that has begun is always completed, at any budget."""

import codecs
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from llguidance import LLMatcher, grammar_from
from numpy.typing import NDArray

from edge.answer.call_formats import CallFormat
from edge.answer.call_grammar import calls_grammar, closing_texts, shortest_text
from edge.answer.call_reader import CallReader
from edge.answer.call_schema import Tool, shortest
from edge.answer.calls import Piece, Thinking
from edge.answer.endings import Endings, Guide
from edge.answer.guided import write_guided
from edge.answer.pattern import text_rules
from edge.answer.sampling import Sampling
from edge.answer.scores import Scored, ScoredText
from edge.answer.writer import Answer, Thought, TokenWriter, thought_is_open, write_header, write_thought
from edge.errors import GrammarError
from edge.llama.jobs import Logits, Writer
from edge.llama.thought_marks import ThoughtMarks
from edge.llama.vocabulary import Vocabulary

_LONGEST_ENDING = 4000


@dataclass(frozen=True)
class CallGuide:
    """The calls that an answer may have.

    `guide`: what follows the opening of the first call. `opening`, `ending`: the tokens of the opening, and of the
    shortest call after it.
    """

    form: CallFormat
    tools: tuple[Tool, ...]
    guide: Guide
    opening: tuple[int, ...]
    ending: tuple[int, ...]

    @property
    def shortest(self) -> int:
        """Tokens of the shortest call."""
        return len(self.opening) + len(self.ending)


# What a keyword with a value of a wrong type raises where the schema is read.
_MALFORMED = (TypeError, AttributeError, KeyError, ValueError)


def compile_calls(
    vocabulary: Vocabulary, endings: Endings, form: CallFormat, tools: Sequence[Tool], *, many: bool
) -> CallGuide:
    """Compile the calls of these tools. `many`: an answer may have several. Raises GrammarError that names a tool."""
    try:
        return _compiled(vocabulary, endings, form, tools, many)
    except _MALFORMED:
        for tool in tools:
            try:
                _compiled(vocabulary, endings, form, [tool], many)
            except _MALFORMED:
                raise GrammarError(
                    f"the tool {tool.name}: its parameters are not a valid JSON Schema"
                ) from None
        raise


def _compiled(
    vocabulary: Vocabulary, endings: Endings, form: CallFormat, tools: Sequence[Tool], many: bool
) -> CallGuide:
    matcher = _matcher(vocabulary, form, tools, many)
    rules = tuple(rule for tool in tools for rule in text_rules(tool.root))
    closers = tuple(tuple(_tokens(vocabulary, text)) for text in closing_texts(form, tools))
    guide = Guide(matcher, (), rules, closers, quick=True)
    opening = _tokens(vocabulary, form.opening())
    ending = _shortest(vocabulary, endings, form, tools, guide)
    return CallGuide(form, tuple(tools), guide, tuple(opening), tuple(ending))


def _matcher(vocabulary: Vocabulary, form: CallFormat, tools: Sequence[Tool], many: bool) -> LLMatcher:
    try:
        grammar = grammar_from("lark", calls_grammar(form, tools, vocabulary.parts, many=many))
        matcher = LLMatcher(vocabulary.matcher_tokens(), grammar, log_level=0)
        error = matcher.get_error() if matcher.is_error() else ""
    except RecursionError:
        error = "it is nested too deeply"
    except UnicodeEncodeError:
        error = "it contains half of a surrogate pair"
    if not error:
        return matcher
    if len(tools) > 1:
        for tool in tools:
            _matcher(vocabulary, form, [tool], False)  # raises for the tool that is the reason
    raise GrammarError(f"the tool {tools[0].name}: cannot be compiled: {' '.join(str(error).split())[:300]}")


def _tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    """The tokens of a fixed text, special tokens among them."""
    tokens: list[int] = []
    for part in vocabulary.parts(text):
        tokens += [part] if isinstance(part, int) else vocabulary.matcher_tokens().tokenize_str(part)
    return tokens


def _shortest(
    vocabulary: Vocabulary, endings: Endings, form: CallFormat, tools: Sequence[Tool], guide: Guide
) -> list[int]:
    """The tokens of the shortest call that is known, after the opening. Raises GrammarError without one."""
    ways = []
    for tool in tools:
        try:
            text = shortest_text(form, tool.name, shortest(tool.root, tool.root))
        except LookupError:
            continue
        tokens = _tokens(vocabulary, text)
        if guide.matcher.validate_tokens(tokens) == len(tokens) and endings.holds(guide.matcher, tokens):
            ways.append(tokens)
    if len(ways) < len(tools):
        most = min(map(len, ways), default=_LONGEST_ENDING + 1) - 1
        found = endings.find(guide.matcher, most, replace(guide, quick=False))
        ways += [found] if found is not None else []
    if not ways:
        raise GrammarError("no valid call of the tools was found")
    return min(ways, key=len)


@dataclass(frozen=True)
class Wanted:
    """What an answer consists of: text, calls, or both.

    `calls`: those that it may have; `must`: it has calls and no text. `stop`: texts that end the text. `forbidden`: a
    text that is not written, such as the beginning of a call. `form`: the form of the text, and an ending at its start;
    then an answer is either text or calls. `scores`: how many of the most probable tokens each token of the text has,
    for a text without a form or calls; None: no scores.
    """

    calls: CallGuide | None = None
    must: bool = False
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    forbidden: str = ""
    form: tuple[Guide, list[int]] | None = None
    scores: int | None = None

    def least(self, vocabulary: Vocabulary, prompt: Sequence[int]) -> int:
        """Tokens of the shortest answer: a thought that the prompt has opened is closed first."""
        if self.must and self.calls is not None:
            tokens = self.calls.shortest
        elif self.form is not None:
            header = vocabulary.thought.header_ids if vocabulary.thought is not None else ()
            tokens = len(header) + len(self.form[1])
        else:
            tokens = 0
        return tokens + thought_is_open(vocabulary, prompt)


def tool_answer(
    vocabulary: Vocabulary,
    endings: Endings,
    wanted: Wanted,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    think: int,
    emit: Callable[[Piece | Scored], None] | None = None,
) -> Writer[Answer]:
    """A thought, then text, then calls. `wanted.least` tokens have to fit into `max_tokens`.

    `think`: maximum number of tokens of the thought, its tags included; 0 for none.
    """
    show = emit or (lambda piece: None)
    writer = TokenWriter(prompt, sampling, max_tokens)
    opened = thought_is_open(vocabulary, prompt)
    most = writer.left - wanted.least(vocabulary, prompt) + opened
    thought = yield from write_thought(
        writer, vocabulary, min(think, most), lambda text: show(Thinking(text)) if text else None
    )
    calls = wanted.calls
    text = _Text(vocabulary, writer, wanted, show)
    if calls is not None and (wanted.must or (yield from _begins_call(vocabulary, writer, wanted, calls))):
        text.begin(ThoughtMarks.rest(writer.tokens, calls.opening))
    else:
        write_header(writer, vocabulary)
        if wanted.form is not None:
            return (yield from _formed(vocabulary, endings, wanted.form, writer, thought, text))
        yield from text.write(no_thought=thought.text is None, ignore_eos=wanted.ignore_eos)
    if calls is None or not text.called:
        answer = writer.answer(text.shown, "stop" if text.ended else "length", thought=thought)
        scores = tuple(text.scored.told) if text.scored is not None else ()
        return replace(answer, stopped_by=text.stopped_by, scores=scores)
    return (yield from _called(vocabulary, endings, calls, writer, thought, text))


def _called(
    vocabulary: Vocabulary,
    endings: Endings,
    calls: CallGuide,
    writer: TokenWriter,
    thought: Thought,
    text: "_Text",
) -> Generator[Sequence[int], Logits, Answer]:
    reader = CallReader(calls.form, calls.tools)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    written: list[str] = []

    def add(data: bytes) -> None:
        written.append(decoder.decode(data))
        for piece in reader.feed(written[-1]):
            text.show(piece)

    closed = yield from write_guided(vocabulary, endings, calls.guide, list(calls.ending), writer, add)
    answer = writer.answer(
        text.shown, "length" if closed else "stop", closed=closed, thought=thought, calls=tuple(reader.calls)
    )
    return replace(answer, raw=thought.raw + text.raw + calls.form.opening() + "".join(written))


def _begins_call(
    vocabulary: Vocabulary, writer: TokenWriter, wanted: Wanted, calls: CallGuide
) -> Generator[Sequence[int], Logits, bool]:
    """Whether the model's next tokens begin a call, where only the beginning of an answer decides, and a call fits."""
    header = vocabulary.thought.header_ids if vocabulary.thought is not None else ()
    if wanted.form is None and not (header and calls.opening[0] == header[0]):
        return False
    if calls.shortest > writer.left:
        return False
    first = calls.opening[0]
    if not header or first != header[0]:
        return writer.sampler.pick((yield from writer.logits())) == first
    if writer.tokens[-1:] != [first]:
        writer.force([first])
    allowed = np.zeros(vocabulary.n_vocab, np.bool_)
    allowed[[header[1], calls.opening[1]]] = True
    return writer.sampler.pick((yield from writer.logits()), allowed) == calls.opening[1]


def _formed(
    vocabulary: Vocabulary,
    endings: Endings,
    form: tuple[Guide, list[int]],
    writer: TokenWriter,
    thought: Thought,
    text: "_Text",
) -> Generator[Sequence[int], Logits, Answer]:
    guide, ending = form
    closed = yield from write_guided(vocabulary, endings, guide, ending, writer, text.add)
    text.end()
    return writer.answer(text.shown, "length" if closed else "stop", closed=closed, thought=thought)


class _Text:
    """The text before the calls. `shown`: what is certain, and was emitted; `raw`: with the white space before a call;
    `called`: a call has begun."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        writer: TokenWriter,
        wanted: Wanted,
        show: Callable[[Piece | Scored], None],
    ) -> None:
        self.scored = None if wanted.scores is None else ScoredText(wanted.scores)
        self.shown = ""
        self.raw = ""
        self.called = False
        self.ended = False
        self.stopped_by: str | None = None
        self.show = show
        self._vocabulary, self._writer, self._calls = vocabulary, writer, wanted.calls
        self._stop = [word for word in wanted.stop if word]
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._trigger = wanted.calls.form.trigger if wanted.calls else wanted.forbidden
        parts = vocabulary.parts(self._trigger) if self._trigger else []
        self._token = parts[0] if len(parts) == 1 and isinstance(parts[0], int) else None
        self._longest = max(map(len, self._stop), default=1) - 1

    def add(self, data: bytes) -> None:
        """Add text that is certain."""
        self._text += self._decoder.decode(data)
        self._show_to(len(self._text))

    def end(self) -> None:
        """The text is complete."""
        self._release(final=True)

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin a call: write its opening, or the rest of it."""
        self._writer.force(tokens)
        self.called = True

    def write(self, *, no_thought: bool, ignore_eos: bool) -> Generator[Sequence[int], Logits, None]:
        """Write until the model ends the text or begins a call, or until the budget or a stop text."""
        vocabulary, writer = self._vocabulary, self._writer
        refused = (
            {vocabulary.thought.opening_ids[0]} if no_thought and vocabulary.thought is not None else set()
        )
        while writer.left and not self.called and not self.ended:
            logits = yield from writer.logits()
            token = writer.sampler.pick(logits, self._allowed(refused))
            if token in vocabulary.text_ends and not ignore_eos:
                writer.write(token)
                self.ended = True
                break
            rest = self._rest_of_opening(token)
            if rest is None:
                refused.add(token)
                continue
            refused = set()
            if self.scored is not None and vocabulary.piece(token):
                self.scored.add(logits, token, len(self._text))
            writer.write(token)
            self._add(token)
            if rest:
                end = len(self._text) if self._token is not None else self._text.rfind(self._trigger)
                self.raw = self._text[:end]
                self._text = self.raw.rstrip()
                self.begin(rest[1:])
            else:
                self._release()
        self._release(final=True)

    def _allowed(self, refused: set[int]) -> NDArray[np.bool_] | None:
        if not refused:
            return None
        allowed = np.ones(self._vocabulary.n_vocab, np.bool_)
        allowed[list(refused)] = False
        return allowed if allowed.any() else None

    def _rest_of_opening(self, token: int) -> list[int] | None:
        """[] if this token begins no call. Otherwise the token, and the rest of the call's opening; None if the token
        may not follow: the call does not fit, or has another form."""
        if not self._trigger:
            return []
        calls = self._calls
        if token == self._token:
            rest = list(calls.opening) if calls else []
        else:
            written = self._from_trigger(token)
            if written is None:
                return []
            opening = calls.form.opening() if calls and self._token is None else ""
            rest = (
                [token, *_tokens(self._vocabulary, opening[len(written) :])]
                if opening.startswith(written)
                else []
            )
        fits = calls is not None and 0 < len(rest) <= self._writer.left - len(calls.ending)
        return rest if fits else None

    def _from_trigger(self, token: int) -> str | None:
        """The text from the trigger on, if this token completes it."""
        piece = self._vocabulary.piece(token).decode("utf-8", "ignore")
        if self._calls is not None and self._calls.form.at_start:
            whole = (self._text + piece).lstrip()
            return whole if whole.startswith(self._trigger) and not self.shown else None
        tail = self._text[max(0, len(self._text) - len(self._trigger) + 1) :] + piece
        at = tail.find(self._trigger)
        return tail[at:] if at >= 0 else None

    def _add(self, token: int) -> None:
        if token == self._token:
            return
        self._text += self._decoder.decode(self._vocabulary.piece(token))
        begin = max(0, len(self.shown) - self._longest)
        ends = [(at, word) for word in self._stop if (at := self._text.find(word, begin)) >= 0]
        if ends:
            at, self.stopped_by = min(ends)
            self._text = self._text[:at]
            self.ended = True

    def _release(self, final: bool = False) -> None:
        """Emit what is certain: no beginning of a trigger or a stop text, no white space that a call may follow."""
        if not final:
            certain = self._text[: self._held()]
            end = len(certain.rstrip() if self._calls is not None else certain)
        else:
            self._text += "" if self.called or self.ended else self._decoder.decode(b"", True)
            end = len(self._text)
        self._show_to(end)

    def _show_to(self, end: int) -> None:
        if end > len(self.shown):
            text = self._text[len(self.shown) : end]
            self.show(text if self.scored is None else self.scored.show(text, end))
            self.shown = self._text[:end]

    def _held(self) -> int:
        """Where the beginning of the trigger or of a stop text begins at the end of the text."""
        end = len(self._text)
        for word in (self._trigger, *self._stop):
            sizes = range(min(len(word) - 1, len(self._text)), 0, -1)
            size = next((size for size in sizes if self._text.endswith(word[:size])), 0)
            end = min(end, len(self._text) - size)
        return end
