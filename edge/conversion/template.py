"""What a user must know about a chat template: warnings about harm, and notes about messages that it refuses.

edge looks at the template's text and renders short conversations with it (docs/conversion.md).
"""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType
from jinja2 import nodes

from edge.conversion.tokenizer import Vocabulary
from edge.errors import ConversionError, PromptError
from edge.formats.chat_template import TooMuchWork, find_hostile, parsed
from edge.formats.checkpoint import Checkpoint
from edge.formats.template_triggers import conditional_texts
from edge.prompt import Message, PromptSource, render_chat_template

_SHOWN = 3  # findings of one kind that are written out
# No words, and neither a number nor all letters, so that no test of a content is true for all of them.
_SYSTEM, _USER, _ANSWER, _RESULT, _THOUGHT = (f"kQ{i}, 57 x0{i}" for i in range(1, 6))
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # parts of emoji and of words in some scripts
_FILLERS = (
    "\u034f\u2800\u115f\u1160\u17b4\u17b5\u2028\u2029\u3164\uffa0"  # letters and separators that show nothing
)
_TOOL = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}


@dataclass(frozen=True)
class Findings:
    """`warnings`: what can do harm, one line each. `not_taken`: kinds of messages that are refused or dropped."""

    warnings: tuple[str, ...] = ()
    not_taken: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A line about what the template does not take; empty if it takes all."""
        return f"its chat template takes no {', no '.join(self.not_taken)}" if self.not_taken else ""


@dataclass(frozen=True)
class Tokens:
    """The tokens that decide how a template works, as texts.

    `named`: by the names of the template, such as bos_token. `special`: all that are not plain text. `stops`: those at
    which an answer ends.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    special: Collection[str] = ()
    stops: Collection[str] = ()


def vocabulary_tokens(vocabulary: Vocabulary) -> Tokens:
    """The tokens of a vocabulary that a conversion writes."""
    named = {kind: vocabulary.tokens[i] for kind, i in vocabulary.special_ids.items()}
    special = [
        text
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    return Tokens(
        {f"{kind}_token": text for kind, text in named.items()},
        special,
        list(dict.fromkeys(named[kind] for kind in ("eos", "eot", "eom") if kind in named)),
    )


def stored_tokens(
    source: PromptSource, texts: Sequence[bytes], kinds: Sequence[int], stops: Sequence[int]
) -> Tokens:
    """The tokens of a GGUF. `texts`, `kinds`: of each token; `stops`: the ids at which an answer ends."""
    named = {"bos_token": source.bos_token, "eos_token": source.eos_token, **source.special_tokens}
    special = [
        text.decode("utf-8", "replace")
        for text, kind in zip(texts, kinds, strict=False)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    return Tokens(
        {name: text for name, text in named.items() if text is not None},
        special,
        [texts[i].decode("utf-8", "replace") for i in stops if i < len(texts)],
    )


def examine(template: str, tokens: Tokens) -> Findings:
    """What there is to say about a template. Nothing about one that is empty or cannot be rendered at all."""
    if not template.strip():
        return Findings()
    warnings, not_taken = [*_hidden(template)], []
    chat = _Chat(template, tokens.named)
    try:
        if chat.write([{"role": "user", "content": _USER}]) is not None:
            warnings += [*_conditional(chat), *_no_stop(chat, tokens)]
            not_taken = [*_not_taken(chat)]
    except TooMuchWork as error:
        warnings.append(f"its chat template does too much work in a short conversation: {error}")
    return Findings(tuple(warnings), tuple(not_taken))


@dataclass(frozen=True)
class _Chat:
    """A template with its tokens."""

    template: str
    named: Mapping[str, str]

    def write(self, messages: Sequence[Message], *, answer: bool = True, **variables: Any) -> str | None:
        """The prompt; None if the template refuses these messages. `answer`: with the begin of an answer."""
        named = dict(self.named)
        try:
            return render_chat_template(
                messages,
                template=self.template,
                bos_token=named.pop("bos_token", None),
                eos_token=named.pop("eos_token", None),
                add_generation_prompt=answer,
                **named,
                **variables,
            )
        except PromptError as error:
            if isinstance(cause := error.__context__, TooMuchWork):
                raise cause from None  # each further conversation could take as long
            return None


def _conditional(chat: _Chat) -> Iterator[str]:
    """A warning about texts that are in a prompt only for certain contents of messages."""
    shown = "\n".join(text for text in _ordinary(chat) if text)
    try:
        texts = conditional_texts(chat.template, shown)
    except RecursionError:
        yield "its chat template is nested too deep to look for text that it writes only for certain contents"
        return
    if texts:
        listed = ", ".join(f'"{text[:60]}"' for text in texts[:_SHOWN])
        more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        yield f"its chat template writes text only for certain contents of messages: {listed}{more}"


def _ordinary(chat: _Chat) -> Iterator[str | None]:
    """The prompts of ordinary conversations."""
    system: Message = {"role": "system", "content": _SYSTEM}
    user: Message = {"role": "user", "content": _USER}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    for messages in ([user], [system, user], [user, answer, user], [system, user, answer, user]):
        for thinking in (True, False):
            yield chat.write(messages, enable_thinking=thinking)
    for messages in _with_tool():
        yield chat.write(messages, tools=[{"type": "function", "function": _TOOL}])


def _hidden(template: str) -> Iterator[str]:
    """A warning about characters that are invisible, or that change the order in which a text is shown."""
    found = list(_places(template, 1))
    if not found:  # perhaps written as escapes in a text of the template
        try:
            for node in parsed(template).find_all((nodes.Const, nodes.TemplateData)):
                text = getattr(node, "data", None) or getattr(node, "value", None)
                if isinstance(text, str):
                    found += [(one, node.lineno) for one, _ in _places(text, node.lineno)]
        except Exception:  # `render` reports why it cannot be parsed
            return
    if found:
        names = dict.fromkeys(f"U+{ord(one):04X} {unicodedata.name(one, '')}".strip() for one, _ in found)
        listed = ", ".join(list(names)[:_SHOWN])
        more = f" and {len(names) - _SHOWN} other kinds" if len(names) > _SHOWN else ""
        yield (
            f"its chat template has hidden characters: {listed}{more}, {len(found):,} in all, the first in line "
            f"{found[0][1]}"
        )


def _places(text: str, line: int) -> Iterator[tuple[str, int]]:
    """The hidden characters of a text, with their lines. `line`: the number of the first line."""
    before = ""
    for one in text:
        kind = unicodedata.category(one)
        joins = one in _JOINERS and not (before.isascii() or unicodedata.category(before) == "Cf")
        hidden = kind == "Cf" or (kind == "Cc" and one not in "\t\n\r") or one in _FILLERS
        selects = "\ufe00" <= one <= "\ufe0f" or "\U000e0100" <= one <= "\U000e01ef"
        if (hidden or selects) and not joins:
            yield one, line
        line += one == "\n"
        before = one


def _no_stop(chat: _Chat, tokens: Tokens) -> Iterator[str]:
    """A warning if the template ends the turns of the assistant with a token at which edge does not stop."""
    user: Message = {"role": "user", "content": _USER}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    ends: list[str] = []
    for messages, further in (([user, answer], False), ([user, answer, user], True)):
        _, marker, rest = (chat.write(messages, answer=further) or "").partition(_ANSWER)
        line = rest.lstrip().partition("\n")[0]
        fitting = [token for token in tokens.special if token and line.startswith(token)]
        if marker and fitting:
            if any(
                stop in line for stop in tokens.stops
            ):  # perhaps after a token that ends a part of the turn
                return
            ends.append(max(fitting, key=len))
    if ends and tokens.stops:
        yield (
            f"its chat template ends a turn with {ends[0]}, which is not among the stop tokens "
            f"({', '.join(tokens.stops)}): an answer may go on after its end; set eos_token_id in "
            "generation_config.json and convert again"
        )


def _with_tool() -> Iterator[list[Message]]:
    """Conversations in which a tool answers, in the forms that templates take."""
    user: Message = {"role": "user", "content": _USER}
    for arguments in ({"path": "."}, '{"path": "."}'):
        function = {"name": "look", "arguments": arguments}
        call: Message = {
            "role": "assistant",
            "content": "",
            "reasoning_content": _THOUGHT,
            "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}],
        }
        result: Message = {"role": "tool", "content": _RESULT, "name": "look", "tool_call_id": "abcdefghi"}
        yield [user, call, result]
    yield [
        user,
        {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT},
        {"role": "tool", "content": _RESULT, "name": "look", "tool_call_id": "abcdefghi"},
    ]


def _not_taken(chat: _Chat) -> Iterator[str]:
    """The kinds of messages that are refused, or whose text is not in the prompt."""
    user: Message = {"role": "user", "content": _USER}
    if _SYSTEM not in (chat.write([{"role": "system", "content": _SYSTEM}, user]) or ""):
        yield "system message"
    parts = chat.write([{"role": "user", "content": [{"type": "text", "text": _USER}]}]) or ""
    if _USER not in parts or "'text'" in parts or '"text"' in parts:
        yield "text parts (content as a list)"
    tools = [chat.write(messages) or "" for messages in _with_tool()]
    if not any(_RESULT in text for text in tools):
        yield "tool messages"
    thought: Message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT}
    last = chat.write([user, thought], answer=False) or ""
    if not any(_THOUGHT in text for text in (*tools, last)):
        yield "thoughts (reasoning_content)"


def rendering_warnings(checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """What is wrong with the chat template, found by rendering one message with it.

    Raises ConversionError if the template is hostile.
    """
    template = checkpoint.chat_template
    if template is None:
        return ["the checkpoint has no chat template; prompts will use a fallback"]
    if not template.strip():
        return ["the checkpoint's chat template is empty; prompts will use a fallback"]
    bos, eos = (vocabulary.special_ids.get(kind) for kind in ("bos", "eos"))
    tokens = {f"{kind}_token": vocabulary.tokens[i] for kind, i in vocabulary.special_ids.items()}
    hostile = find_hostile(template, tokens)
    if hostile is not None:
        raise ConversionError(
            f"{checkpoint.folder}: its chat template is hostile: {hostile}; do not use the checkpoint, "
            "or remove the template"
        )
    try:
        render_chat_template(
            [{"role": "user", "content": "ls"}],
            template=template,
            bos_token=None if bos is None else vocabulary.tokens[bos],
            eos_token=None if eos is None else vocabulary.tokens[eos],
        )
    except PromptError as error:
        return [f"{error}; prompts will use a fallback"]
    return []
