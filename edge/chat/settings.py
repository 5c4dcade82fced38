"""The settings of a conversation that a person can change, and their names and values."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    name = full_name(name)
    if name not in _SETTINGS:
        raise EdgeError(f"{name}: no setting has this name; the settings are {', '.join(_SETTINGS)}")
    setting = _SETTINGS[name]
    try:
        return setting.change(settings, value.strip().lower())
    except (KeyError, ValueError, OverflowError):
        raise EdgeError(f"{name} is {value.strip() or 'empty'}; it must be {setting.words}") from None


def full_name(name: str) -> str:
    """The name of a setting that users of other programs call `name`, or write with hyphens."""
    name = name.replace("-", "_")
    return _OTHER_NAMES.get(name, name)


def shown(settings: Settings) -> list[tuple[str, str]]:
    """The name and the value of each setting, as a person types them."""
    texts = {name: _text(setting.value(settings)) for name, setting in _SETTINGS.items()}
    texts["think"] = {"default": "on", "0": "off"}.get(texts["think"], texts["think"])
    return list(texts.items())


def _text(value: float | bool | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _or_default(value: str) -> int | None:
    return None if value == "default" else int(value)


def _think(value: str) -> int | None:
    number = 0 if value == "off" else None if value == "on" else _or_default(value)
    if number is not None and number < 0:
        raise EdgeError(f"think is {number}; it must be off, or a number of tokens")
    return number


def _max_tokens(value: str) -> int | None:
    number = _or_default(value)
    if number is not None and number < 1:
        raise EdgeError(f"max_tokens is {number}; it must be at least 1")
    return number


@dataclass(frozen=True)
class _Setting:
    """A setting: what its value must be, the settings with the value of a text, and its value.

    `change` raises EdgeError, or KeyError, ValueError or OverflowError for a text that is not `words`.
    """

    words: str
    change: Callable[[Settings, str], Settings]
    value: Callable[[Settings], float | bool | None]


_FLAG, _NUMBER, _WHOLE = "on or off", "a number", "a whole number"
_SETTINGS = {
    "temperature": _Setting(
        _NUMBER,
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, temperature=float(text))),
        lambda all_: all_.sampling.temperature,
    ),
    "top_p": _Setting(
        _NUMBER,
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, top_p=float(text))),
        lambda all_: all_.sampling.top_p,
    ),
    "top_k": _Setting(
        _WHOLE,
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, top_k=int(text))),
        lambda all_: all_.sampling.top_k,
    ),
    "min_p": _Setting(
        _NUMBER,
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, min_p=float(text))),
        lambda all_: all_.sampling.min_p,
    ),
    "repetition_penalty": _Setting(
        _NUMBER,
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, repetition_penalty=float(text))),
        lambda all_: all_.sampling.repetition_penalty,
    ),
    "seed": _Setting(
        f"{_WHOLE}, or default",
        lambda all_, text: replace(all_, sampling=replace(all_.sampling, seed=_or_default(text))),
        lambda all_: all_.sampling.seed,
    ),
    "max_tokens": _Setting(
        f"{_WHOLE}, or default",
        lambda all_, text: replace(all_, max_tokens=_max_tokens(text)),
        lambda all_: all_.max_tokens,
    ),
    "think": _Setting(
        "off, on, or a number of tokens",
        lambda all_, text: replace(all_, think=_think(text)),
        lambda all_: all_.think,
    ),
    "thoughts": _Setting(
        _FLAG, lambda all_, text: replace(all_, thoughts=_FLAGS[text]), lambda all_: all_.thoughts
    ),
    "stats": _Setting(_FLAG, lambda all_, text: replace(all_, stats=_FLAGS[text]), lambda all_: all_.stats),
    "wordwrap": _Setting(
        _FLAG, lambda all_, text: replace(all_, wordwrap=_FLAGS[text]), lambda all_: all_.wordwrap
    ),
}
"""Every setting by its name, in the order of /set."""
