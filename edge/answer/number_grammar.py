"""Regular expressions for numbers as Python's json.dumps writes them: one text for each number."""

import math
from typing import Any

# A float of 15 digits is the same number again, and JavaScript keeps whole numbers of 15 digits.
WHOLE = "0|-?[1-9][0-9]{0,14}"
_FRACTION = r"(\.([0-9]{0,8}[1-9]))"
_SMALL = r"0\.0{0,3}[1-9]([0-9]{0,12}[1-9])?"  # from 0.0001: Python writes smaller ones with an exponent
_DECIMAL = (
    rf"{_SMALL}|[1-9][0-9]{{0,5}}\.([0-9]{{0,8}}[1-9]|0)|[1-9][0-9]{{6,8}}\.([0-9]{{0,5}}[1-9]|0)"
    r"|[1-9](\.([0-9]{0,12}[1-9]))?e(-0[5-9]|-[1-9][0-9]|\+1[6-9]|\+[2-9][0-9])"
)
NUMBER = rf"{WHOLE}|0\.0|-?({_DECIMAL})"
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MOST = 10**15 - 1


def whole_range(low: int, high: int) -> str:
    """A regular expression for the whole numbers from `low` to `high`, without leading zeros."""
    parts = []
    if low < 0:
        parts += [f"-{part}" for part in _positive(max(1, -high), -low)]
    if low <= 0 <= high:
        parts.append("0")
    if high > 0:
        parts += _positive(max(1, low), high)
    return "|".join(parts)


def _positive(low: int, high: int) -> list[str]:
    found = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)
        found += _same_length(str(low), str(end))
        low = end + 1
    return found


def _same_length(low: str, high: str) -> list[str]:
    """For numbers of the same number of digits."""
    if low == high:
        return [low]
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return [f"[0-9]{{{len(low)}}}"]
    first, last = int(low[0]), int(high[0])
    rest = len(low) - 1
    if first == last:
        return [low[0] + part for part in _same_length(low[1:], high[1:])]
    if not rest:
        return [f"[{first}-{last}]"]
    found = []
    if low[1:] != "0" * rest:
        found += [low[0] + part for part in _same_length(low[1:], "9" * rest)]
        first += 1
    ends = []
    if high[1:] != "9" * rest:
        ends = [high[0] + part for part in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return found + ends


def bounds(schema: dict[str, Any]) -> tuple[float, float, bool, bool] | None:
    """The smallest and the largest number, and whether each is excluded; None if a bound is not a number."""
    low, high, above, below = -math.inf, math.inf, False, False
    for name in _BOUNDS:
        value = schema.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST:
            return None
        out = name.startswith("exclusive")
        if name.lower().endswith("minimum"):
            if value >= low:
                low, above = value, out or (above and value == low)
        elif value <= high:
            high, below = value, out or (below and value == high)
    return low, high, above, below


def integer(schema: dict[str, Any]) -> str | None:
    """A regular expression for an integer between the schema's bounds; None if there is no such integer."""
    found = bounds(schema)
    if found is None:
        return None
    low, high, above, below = found
    if low == -math.inf and high == math.inf:
        return WHOLE
    least = -_MOST if low == -math.inf else math.floor(low) + 1 if above else math.ceil(low)
    most = _MOST if high == math.inf else math.ceil(high) - 1 if below else math.floor(high)
    return whole_range(least, most) if least <= most else None


def number(schema: dict[str, Any]) -> str | None:
    """A regular expression for numbers between the schema's bounds.

    None if there is none in this form: decimals are between two whole numbers that the bounds allow.
    """
    found = bounds(schema)
    if found is None:
        return None
    low, high, _, _ = found
    if low == -math.inf and high == math.inf:
        return NUMBER
    parts = [part] if (part := integer(schema)) else []
    most = 10**6 - 1
    first, last = max(0, math.ceil(max(low, -most))), math.floor(min(high, most)) - 1
    parts += _decimals("", first, last)
    first, last = max(0, math.ceil(max(-high, -most))), math.floor(min(-low, most)) - 1
    parts += _decimals("-", first, last)
    return "|".join(parts) or None


def _decimals(sign: str, first: int, last: int) -> list[str]:
    """Decimals with a whole part from `first` to `last`."""
    parts = []
    if first == 0 <= last:
        parts.append(f"{sign}{_SMALL}")
        first = 1
    if first <= last:
        parts.append(f"{sign}({whole_range(first, last)}){_FRACTION}")
    return parts
