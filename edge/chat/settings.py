"""What a person sets for the answers of a conversation, and how it is named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edge.answer.answering import DEFAULT_MAX_TOKENS, GREEDY, AnswerKind
from edge.answer.sampling import Sampling
from edge.errors import EdgeError

# llama.cpp's defaults for a chat: the most likely token at each place makes small models repeat themselves.
_TEXT_SAMPLING = Sampling(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)
# Names that users of other programs type.
_OTHER_NAMES = {"repeat_penalty": "repetition_penalty", "num_predict": "max_tokens"}
_FLAGS = {"on": True, "off": False}


@dataclass(frozen=True)
class Settings:
    """How answers are written and shown. `Sampling` has the rules for its values."""

    sampling: Sampling = GREEDY
    max_tokens: int | None = None
    """Maximum number of tokens of an answer; None: 1,024 for an action, what is left of the context for text."""
    think: int | None = None
    """Maximum number of tokens of the thought; None: a quarter of an action's budget, no maximum for text."""
    thoughts: bool = False
    """Show thoughts, not only their length."""
    stats: bool = False
    """Show what each answer took."""
    wordwrap: bool = True
    """On a terminal, break the lines of a text between words."""

    def budget(self, answers: AnswerKind, room: int) -> int:
        """Maximum number of tokens of an answer for which `room` tokens are left."""
        wanted = self.max_tokens
        if wanted is None:
            wanted = DEFAULT_MAX_TOKENS if answers == "action" else room
        return min(wanted, room)

    def thought(self, answers: AnswerKind, budget: int) -> int:
        """Maximum number of tokens of the thought in an answer of `budget` tokens."""
        if self.think is not None:
            return self.think
        return budget // 4 if answers == "action" else budget


def default_sampling(answers: AnswerKind) -> Sampling:
    """How tokens are chosen if nobody says how: the most likely token for actions, llama.cpp's defaults for text."""
    return GREEDY if answers == "action" else _TEXT_SAMPLING


def changed(settings: Settings, name: str, value: str) -> Settings:
    """The settings with one value from a person's text. Raises EdgeError for an unknown name or a wrong value."""
    name = name.replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in _READERS:
        raise EdgeError(f"{name}: no setting has this name; the settings are {', '.join(_READERS)}")
    read, words = _READERS[name]
    try:
        number = read(value.strip().lower())
    except (KeyError, ValueError, OverflowError):
        raise EdgeError(f"{name} is {value.strip() or 'empty'}; it must be {words}") from None
    if name in _SAMPLING:
        return replace(settings, sampling=replace(settings.sampling, **{name: number}))
    if name == "max_tokens" and number is not None and number < 1:
        raise EdgeError(f"max_tokens is {number}; it must be at least 1")
    if name == "think" and number is not None and number < 0:
        raise EdgeError(f"think is {number}; it must be off, or a number of tokens")
    return replace(settings, **{name: number})


def shown(settings: Settings) -> list[tuple[str, str]]:
    """The name and the value of each setting, as a person types them."""
    values: dict[str, Any] = {name: getattr(settings.sampling, name) for name in _SAMPLING}
    values |= {name: getattr(settings, name) for name in _READERS if name not in _SAMPLING}
    return [(name, _text(values[name])) for name in _READERS]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _or_default(value: str) -> int | None:
    return None if value == "default" else int(value)


def _think(value: str) -> int | None:
    return 0 if value == "off" else None if value == "on" else _or_default(value)


_NUMBER: tuple[Callable[[str], Any], str] = (float, "a number")
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": (int, "a whole number"),
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "seed": (_or_default, "a whole number, or default"),
    "max_tokens": (_or_default, "a whole number, or default"),
    "think": (_think, "off, on, or a number of tokens"),
    "thoughts": (_FLAGS.__getitem__, "on or off"),
    "stats": (_FLAGS.__getitem__, "on or off"),
    "wordwrap": (_FLAGS.__getitem__, "on or off"),
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
