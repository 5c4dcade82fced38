"""Texts of others (a model, a file, a program) for a terminal: what it might obey, or not show, stands as an escape."""

import unicodedata


def escape(character: str) -> str:
    r"""The character; \n, \x1b and their like for one that cannot be seen."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def printable(text: str, *, lines: bool = False) -> str:
    """The whole text; with `lines` its line breaks stay."""
    return "".join(c if lines and c == "\n" else escape(c) for c in text)


def size(n_bytes: float, digits: int = 1) -> str:
    """Bytes for people, in 10^9 with `digits` places or in 10^6 with one: 1.2 GB, 141.0 MB."""
    return f"{n_bytes / 1e9:,.{digits}f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def visible(text: str) -> str:
    """A text with nothing in it that is not seen: what steers a terminal or the order of letters stands as a symbol.

    Line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _symbol(char) for char in text)


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) == "Zs":  # a space of some width
        return " "
    return f"⟨U+{code:04X}⟩"
