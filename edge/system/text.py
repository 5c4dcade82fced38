r"""Untrusted text (a model, a file, a program) made safe to show; sizes and similar names for people.

A character that `str.isprintable` refuses may steer a terminal, change the order of letters, or be invisible. Some that
it accepts are invisible too (fillers, variation selectors, the blank braille pattern): `is_visible` knows both. Four
functions replace them; choose by where the text goes:

printable  terminals, logs, error lines: an escape as Python writes it, such as \x1b
safe_json  JSON on a terminal: an escape of JSON, such as \u001b, so that it is the same JSON
visible    pages and cards: a symbol, such as ␛; line ends and tabs stay
masked     table cells: one · for each character, so that the width stays

`edge.agent.show.highlighted` is `printable` with the escapes marked, for a terminal with styles.
"""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

_SUGGESTED = 3
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_LEAST_PART = 3  # letters: a shorter part is in too many names
_MARKS_PER_LETTER = 4  # accents; words need no more
# Characters that Unicode lists as ignorable, or whose glyph is blank, and that str.isprintable accepts.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u2d7f\u3164\ufe00-\ufe0f\uffa0\ufffc\U0001107f\U00013441"
    "\U00013442\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)


def is_visible(text: str) -> bool:
    """Whether each character of the text can be seen. The plain space counts as visible."""
    return text.isprintable() and _BLANK.search(text) is None


def escape(character: str) -> str:
    r"""One character as it is; as an escape (\n, \x1b, …) if it cannot be seen."""
    return character if is_visible(character) else character.encode("unicode_escape").decode()


def printable(text: str, *, lines: bool = False) -> str:
    """The text with an escape for each character that cannot be seen. With `lines` its line breaks stay."""
    return "".join(c if lines and c == "\n" else e for c, e in zip(text, escapes(text), strict=True))


def escapes(text: str) -> Iterator[str]:
    """Each character as `escape` shows it. Accents in piles, or without a letter, become escapes too: a terminal paints
    them over the lines around, or over what stands before the text.
    """
    marks = _MARKS_PER_LETTER
    for character in text:
        if unicodedata.category(character) not in ("Mn", "Me"):
            marks = 0 if is_visible(character) and character not in " /" else _MARKS_PER_LETTER
            yield escape(character)
        elif marks < _MARKS_PER_LETTER:
            marks += 1
            yield escape(character)
        else:
            yield character.encode("unicode_escape").decode()


def json_escape(character: str) -> str:
    r"""A character of a JSON string as it is; as JSON's escape (\n, \u001b, …) if it cannot be seen."""
    if is_visible(character):
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def safe_json(text: str) -> str:
    """JSON text, or a part of it, that is the same JSON and cannot steer a terminal. Line breaks and tabs stay."""
    if is_visible(text):
        return text
    return "".join(char if char in "\n\t" else json_escape(char) for char in text)


def did_you_mean(word: str, names: Iterable[str], cutoff: float = 0.6, *, parts: bool = True) -> str:
    """`did you mean A, B or C?`: names for a mistyped or incomplete `word`; empty if there are none.

    First those that are as similar as `cutoff` says (as in difflib); then, with `parts`, those that begin with the word
    and those that contain it. Case does not matter.
    """
    by_name = {name.lower(): name for name in names}
    wanted = word.lower()
    found = difflib.get_close_matches(wanted, by_name, _SUGGESTED - 1, cutoff)
    if parts and len(wanted) >= _LEAST_PART:
        found += sorted(name for name in by_name if name.startswith(wanted))
        found += sorted(
            (name for name in by_name if wanted in name), key=lambda name: (name.find(wanted), name)
        )
    shown = [by_name[name] for name in dict.fromkeys(found)][:_SUGGESTED]
    return f"did you mean {' or '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}?" if shown else ""


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """What is wrong with a key of a file: the key, similar keys, and all that fit."""
    known = list(keys)
    meant = did_you_mean(key, known)
    return f"unknown key {key!r}; {f'{meant} All keys: ' if meant else 'the keys are '}{', '.join(known)}"


def visible(text: str) -> str:
    """The text with a symbol for each character that cannot be seen. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _symbol(char) for char in text)


def masked(text: str) -> str:
    """The text with a · for each character that cannot be seen, line ends and tabs included."""
    return "".join(char if is_visible(char) else "·" for char in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 step, 1,234 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quoted(texts: Sequence[str], most: int = 3) -> str:
    """The first texts of a list in quotes; … means the others."""
    return ", ".join(map(repr, texts[:most])) + (", …" if len(texts) > most else "")


def size(n_bytes: float, digits: int = 1) -> str:
    """Bytes for people: in GB (10^9) with `digits` decimals, or in MB (10^6) with one: 1.2 GB, 141.0 MB."""
    return f"{n_bytes / 1e9:,.{digits}f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def parsed_size(text: str) -> int | None:
    """The bytes of a size such as 6GB, 800MB, 5.5GiB or 100; None if it is not one."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([KMG]I?|)B?", text.strip().upper())
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) == "Zs":  # a space of some width
        return " "
    return f"⟨U+{code:04X}⟩"
