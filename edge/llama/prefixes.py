"""The prefix tree of a replay's prompts: in which order to read them, where they part, how many tokens it has.

The tree is never built. Sorted token lists have their neighbours share the most, and what two lists share is
the least that any neighbours between them share; that tells all there is to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edge.llama.memory import BATCH

Tokens = Sequence[int]


def common_length(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def distinct_tokens(prompts: Sequence[Tokens]) -> int:
    """Nodes of the prefix tree of all prompts: the fewest tokens that any engine must read."""
    ordered = [[], *sorted(map(list, prompts))]
    return sum(len(b) - common_length(a, b) for a, b in pairwise(ordered))


def reading_order(prompts: Sequence[Tokens]) -> list[int]:
    """The prompts' indices in an order that finishes each branch before the next.

    Of two branches the one that holds the earlier prompt comes first; a prompt that others extend comes before
    them.
    """
    if not prompts:
        return []
    ranked = sorted(range(len(prompts)), key=lambda i: (list(prompts[i]), i))
    shared = [0, *(common_length(prompts[i], prompts[j]) for i, j in pairwise(ranked))]
    order = []
    groups = [(0, len(ranked))]
    while groups:
        low, high = groups.pop()
        if high - low == 1:
            order.append(ranked[low])
            continue
        depth = min(shared[low + 1 : high])
        edges = [low, *(k for k in range(low + 1, high) if shared[k] == depth), high]
        children = list(pairwise(edges))
        # A prompt that ends here stands before all that extend it, also in the sorted list.
        ended = [child for child in children if len(prompts[ranked[child[0]]]) == depth]
        parted = [child for child in children if child not in ended]
        parted.sort(key=lambda child: min(ranked[child[0] : child[1]]))
        groups += reversed(ended + parted)
    return order


def branch_points(prompts: Sequence[Tokens]) -> list[list[int]]:
    """For each prompt, ascending, the lengths at which another one parts from it, ends, or goes on from its end.

    `prompts` must be in reading order.
    """
    shared = [common_length(a, b) for a, b in pairwise(prompts)]
    points: list[set[int]] = [set() for _ in prompts]
    for i in range(len(prompts)):
        for side in (shared[i:], reversed(shared[:i])):
            least = len(prompts[i]) + 1
            for depth in side:
                if depth < least:
                    least = depth
                    points[i].add(depth)
                if not least:
                    break
    return [sorted(found - {0}) for found in points]


def depth_held(prompts: Sequence[Tokens]) -> int:
    """How many states must be held at once, at most, so that no token is read twice. In reading order."""
    shared = [common_length(a, b) for a, b in pairwise(prompts)]
    held = list[int]()
    most = 0
    for depth in reversed(shared):
        while held and held[-1] >= depth:
            held.pop()
        if depth:
            held.append(depth)
        most = max(most, len(held))
    return most


@dataclass(frozen=True)
class Corpus:
    """Token sequences in the order in which they are read. `shared[i]`: tokens that i + 1 begins with as i does.

    `kind`: "rows" or "text". `sha256` is that of the data, `skipped` counts rows that were left out, `batch` is the
    most tokens that are read at once.
    """

    kind: str
    path: Path
    sha256: str
    sequences: list[list[int]]
    shared: list[int]
    skipped: int = 0
    notes: tuple[str, ...] = ()
    batch: int = BATCH

    def seen(self, index: int) -> int:
        """How many tokens of a sequence were read with the ones before it."""
        return self.shared[index - 1] if index else 0

    def tokens_until(self, index: int) -> int:
        """The tokens that count in the first so many sequences."""
        return sum(len(self.sequences[i]) - self.seen(i) for i in range(index))

    @property
    def tokens(self) -> int:
        return self.tokens_until(len(self.sequences))

    def stops(self, index: int) -> list[int]:
        """The lengths, ascending, at which a sequence is held because a later one parts there."""
        lengths, least = list[int](), len(self.sequences[index]) + 1
        for length in self.shared[index:]:
            if length < least:
                lengths.append(least := length)
            if length <= self.seen(index):
                break
        return sorted(length for length in lengths if length > self.seen(index))

    def batches(self, index: int) -> list[tuple[int, int]]:
        """The (begin, end) of each batch of what is new in a sequence. They depend on nothing but the sequences."""
        edges = [self.seen(index), *self.stops(index), len(self.sequences[index])]
        return [
            (begin, min(begin + self.batch, end))
            for start, end in pairwise(edges)
            for begin in range(start, end, self.batch)
        ]

    def way(self, index: int) -> list[tuple[int, int]]:
        """The batches in which the sequences before have read what this one shares with them."""
        end, batches = self.seen(index), list[tuple[int, int]]()
        for i in range(index - 1, -1, -1):
            if self.seen(i) < end:
                batches = [part for part in self.batches(i) if part[1] <= end] + batches
                end = self.seen(i)
        return batches
