r"""Untrusted text (a model, a file, a program) made safe to show; sizes for people.

A character that `str.isprintable` refuses may steer a terminal, change the order of letters, or be invisible. Three
functions replace it; choose by where the text goes:

printable  terminals, logs, error lines: an escape as Python writes it, such as \x1b
visible    pages and cards: a symbol, such as ␛; line ends and tabs stay
masked     table cells: one · for each character, so that the width stays

`edge.agent.show.highlighted` is `printable` with the escapes marked, for a terminal with styles.
"""

import unicodedata


def escape(character: str) -> str:
    r"""One character as it is; as an escape (\n, \x1b, …) if it cannot be seen."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def printable(text: str, *, lines: bool = False) -> str:
    """The text with an escape for each character that cannot be seen. With `lines` its line breaks stay."""
    return "".join(c if lines and c == "\n" else escape(c) for c in text)


def visible(text: str) -> str:
    """The text with a symbol for each character that cannot be seen. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _symbol(char) for char in text)


def masked(text: str) -> str:
    """The text with a · for each character that cannot be seen, line ends and tabs included."""
    return "".join(char if char.isprintable() else "·" for char in text)


def size(n_bytes: float, digits: int = 1) -> str:
    """Bytes for people: in GB (10^9) with `digits` decimals, or in MB (10^6) with one: 1.2 GB, 141.0 MB."""
    return f"{n_bytes / 1e9:,.{digits}f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) == "Zs":  # a space of some width
        return " "
    return f"⟨U+{code:04X}⟩"
