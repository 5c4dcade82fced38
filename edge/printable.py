"""Texts of others (a model, a file, a program) for a terminal: what it might obey, or not show, stands as an escape."""


def escape(character: str) -> str:
    r"""The character; \n, \x1b and their like for one that cannot be seen."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def printable(text: str, *, lines: bool = False) -> str:
    """The whole text; with `lines` its line breaks stay."""
    return "".join(c if lines and c == "\n" else escape(c) for c in text)
