"""The best types under a size, from the divergence that each group costs in each type. Pure functions.

A cost that was not measured comes from the one that was, by the ratio of the weighted errors of the weights: for small
changes, the divergence grows with the square of the change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_PRICES = 12  # of a second of time, that are tried
_STEPS = 40_000  # sizes that the knapsack tells apart, up to the largest
_MOST_SHARE = 4  # times its usual share, that a row counts at most
_ITERATIONS = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """A type for a group. `error`: the weighted squared error of its weights. `measured`: the divergence, if known."""

    type: str
    n_bytes: int
    error: float
    measured: float | None = None
    cost: float = 0.0
    """The divergence that the choice counts: measured, or expected from a measured one; set by `priced`."""
    seconds: float = 0.0
    """What a token takes in it."""


def usual_shares(measured: Sequence[Sequence[float]]) -> Floats:
    """The share of each row in a divergence, as it usually is: the median over measurements, with the sum 1.

    `measured`: for each measurement, what each row adds to it.
    """
    sums = np.array([each for each in measured if sum(each) > 0], np.float64)
    if not len(sums):
        return np.ones(0)
    shares = np.median(sums / sums.sum(axis=1, keepdims=True), axis=0)
    return np.asarray(shares / max(shares.sum(), np.finfo(float).tiny))


def steady_sum(parts: Sequence[float], shares: Floats) -> float:
    """The sum of what rows add to a divergence, if none counts more than four times its usual share of this sum.

    A router chooses other experts for a token if two of them are nearly equal there. Any small change of the weights
    can do that, or not. It then adds the same large divergence, whatever was changed: this says nothing about the cost
    of a type.
    """
    values = np.asarray(parts, np.float64)
    total = float(values.sum())
    if len(shares) != len(values) or not shares.sum():
        return total
    for _ in range(_ITERATIONS):  # it falls to the largest total that is equal to its own sum
        before, total = total, float(np.minimum(values, _MOST_SHARE * shares * total).sum())
        if total >= before * (1 - 1e-9):
            break
    return total


def priced(options: Sequence[Option], factor: float = 1.0) -> list[Option]:
    """The options of a group with their costs, times a `factor`. At least one option has to be measured.

    Of a type without error, the cost is 0. Other types take the measured cost whose error is nearest, in proportion.
    """
    known = [(each.error, each.measured) for each in options if each.measured is not None and each.error > 0]
    found = []
    for each in options:
        if each.error <= 0:
            found.append(replace(each, cost=0.0))
        elif each.measured is not None:
            found.append(replace(each, cost=factor * each.measured))
        else:
            error, cost = min(known, key=lambda pair: abs(np.log(pair[0] / each.error)))
            found.append(replace(each, cost=factor * cost * each.error / error))
    return found


def choose_types(groups: Mapping[str, Sequence[Option]], n_bytes: int) -> dict[str, Option] | None:
    """The option of each group with the least sum of costs in at most `n_bytes`; None if the smallest do not fit.

    A dynamic program over sizes, rounded up to 1/40,000 of the room: exact but for that rounding, and never too large.
    """
    least = sum(min(option.n_bytes for option in options) for options in groups.values())
    room = n_bytes - least
    if room < 0:
        return None
    step = max(1, -(-room // _STEPS))
    slots = room // step + 1
    best = np.zeros(slots)
    picks = []
    for options in groups.values():
        floor = min(option.n_bytes for option in options)
        new = np.full(slots, np.inf)
        pick = np.zeros(slots, np.int16)
        for index, option in enumerate(options):
            more = -(-(option.n_bytes - floor) // step)
            if more >= slots:
                continue
            candidate = best[: slots - more] + option.cost
            here = new[more:]
            better = candidate < here
            here[better] = candidate[better]
            pick[more:][better] = index
        picks.append((pick, floor))
        best = new
    at = slots - 1
    chosen = {}
    for (name, options), (pick, floor) in reversed(list(zip(groups.items(), picks, strict=True))):
        option = options[int(pick[at])]
        chosen[name] = option
        at -= -(-(option.n_bytes - floor) // step)
    return {name: chosen[name] for name in groups}


def choose_fast_types(
    groups: Mapping[str, Sequence[Option]], n_bytes: int, seconds: float
) -> dict[str, Option] | None:
    """As choose_types, with a maximum time for a token, in seconds. None also if no choice of this size is fast enough.

    Each second gets a price in nats, and the lowest price that is enough is searched: the best choice or one near it.
    """

    def priced_at(price: float) -> dict[str, Option] | None:
        changed = {
            name: [replace(each, cost=each.cost + price * each.seconds) for each in options]
            for name, options in groups.items()
        }
        found = choose_types(changed, n_bytes)
        if found is None:
            return None
        kinds = {name: each.type for name, each in found.items()}
        return {
            name: next(each for each in options if each.type == kinds[name])
            for name, options in groups.items()
        }

    best = priced_at(0.0)
    if best is None or _seconds(best) <= seconds:
        return best
    all_options = [option for options in groups.values() for option in options]
    most = max(option.cost for option in all_options)
    low, high, best = 0.0, 1e6 * max(most, 1e-12) / max(each.seconds for each in all_options), None
    if (found := priced_at(high)) is not None and _seconds(found) <= seconds:
        best = found
        for _ in range(_PRICES):
            middle = high / 30 if low == 0 else (low * high) ** 0.5
            found = priced_at(middle)
            if found is not None and _seconds(found) <= seconds:
                best, high = found, middle
            else:
                low = middle
    return best


def _seconds(chosen: Mapping[str, Option]) -> float:
    return sum(option.seconds for option in chosen.values())
