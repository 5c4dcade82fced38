"""The automaton of a regular expression; it makes a state only when a text reaches it.

For expressions with look-around that have no equal one of a usable size, such as a password with four kinds of
characters: each state is the language of what may follow, a derivative of Brzozowski.
"""

from bisect import bisect_right

from edge.answer.expression import Range, UnknownError, parse, usual_character
from edge.answer.look_ahead import Languages, conditions

_MOST_STEPS = 200_000
_MOST_REPEATED = 1000


class DerivedPattern:
    """As `Pattern`. Raises UnknownError, RecursionError for an expression outside the subset."""

    def __init__(self, text: str) -> None:
        self._languages = Languages(_MOST_REPEATED)
        parts = [self._languages.whole(parse(one, looks=True)) for one in conditions(text)]
        self._first = self._languages.together(parts)
        pieces = self._languages.alphabet()
        self._begins = [low for low, _ in pieces]
        self._pieces: list[Range] = sorted(pieces, key=_strangeness)

    @property
    def size(self) -> int:
        """States, at least."""
        return len(self._pieces)

    def end(self, text: str, least: int = 0) -> str | None:
        """The shortest text that completes `text` to at least `least` characters; None if there is none, or if the
        search is too long."""
        try:
            state = self._first
            for character in text:
                state = self._languages.after(
                    state, self._begins[bisect_right(self._begins, ord(character)) - 1]
                )
            return self._shortest(state, max(0, least - len(text)))
        except (UnknownError, RecursionError):
            return None

    def _shortest(self, state: int, least: int) -> str | None:
        """Layer by layer: the states after each number of characters, and how each was reached."""
        layers: list[dict[int, tuple[int, int]]] = [{state: (state, 0)}]
        seen: set[int] = set()
        left = _MOST_STEPS
        while True:
            size = len(layers) - 1
            ends = [one for one in layers[-1] if size >= least and self._languages.nullable(one)]
            if ends:
                return self._way(layers, ends[0])
            layer: dict[int, tuple[int, int]] = {}
            for one in layers[-1]:
                if one in seen:
                    continue
                if size >= least:
                    seen.add(one)
                left -= len(self._pieces)
                for piece, (low, _) in enumerate(self._pieces):
                    after = self._languages.after(one, low)
                    if after != self._languages.none:
                        layer.setdefault(after, (one, piece))
            if not layer or left < 0:
                return None
            layers.append(layer)

    def _way(self, layers: list[dict[int, tuple[int, int]]], state: int) -> str:
        found = []
        for layer in reversed(layers[1:]):
            state, piece = layer[state]
            found.append(usual_character((self._pieces[piece],)))
        return "".join(reversed(found))


def _strangeness(piece: Range) -> tuple[bool, int]:
    """The order of pieces: those with characters that JSON does not escape come first."""
    character = usual_character((piece,))
    return not character.isascii() or not character.isprintable() or character in '"\\', piece[0]
