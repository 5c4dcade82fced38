"""The prefix tree of a replay's prompts: the order to read them in, where they diverge, how many tokens it has.

The tree is never built. In a sorted list of token lists, neighbours share the longest beginnings. What two lists share
is the minimum of what the neighbours between them share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edge.llama.memory import BATCH

Tokens = Sequence[int]


def common_length(a: Tokens, b: Tokens) -> int:
    """How many tokens the beginnings of two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def distinct_tokens(prompts: Sequence[Tokens]) -> int:
    """Nodes of the prefix tree of all prompts: the minimum number of tokens that an engine must read."""
    ordered = [[], *sorted(map(list, prompts))]
    return sum(len(b) - common_length(a, b) for a, b in pairwise(ordered))


def chunk_end(begin: int, stops: Iterable[int], room: int) -> int:
    """Where the chunk of a prompt ends that begins at `begin` and has at most `room` tokens.

    `stops`: the lengths at which reading stops, the end of the prompt among them.
    """
    stop = min(at for at in stops if at > begin)
    end = min(stop, begin + room)
    if stop - end == 1 and end - begin > 1:
        end -= 1  # llama.cpp computes a chunk of one token with other kernels
    return end


def chunk_ends(length: int, stops: Iterable[int], room: int) -> list[int]:
    """Where the chunks of a prompt of `length` tokens end, read from its begin with nothing beside it."""
    ends, all_stops = list[int](), [*stops, length]
    while not ends or ends[-1] < length:
        ends.append(chunk_end(ends[-1] if ends else 0, all_stops, room))
    return ends


def reading_order(prompts: Sequence[Tokens]) -> list[int]:
    """The indices of the prompts in an order that finishes each branch before the next.

    Of two branches, the one with the earlier prompt comes first. A prompt that others extend comes before them.
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
        # A prompt that ends here comes before all that extend it, in the sorted list too.
        ended = [child for child in children if len(prompts[ranked[child[0]]]) == depth]
        parted = [child for child in children if child not in ended]
        parted.sort(key=lambda child: min(ranked[child[0] : child[1]]))
        groups += reversed(ended + parted)
    return order


def branch_points(prompts: Sequence[Tokens]) -> list[list[int]]:
    """For each prompt, the lengths at which another one parts from it, ends, or continues from its end; ascending.

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
    return [sorted(lengths - {0}) for lengths in points]


def depth_held(prompts: Sequence[Tokens]) -> int:
    """Maximum number of states to keep at the same time so that no token is read twice. `prompts` in reading order."""
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
    """Token sequences in reading order. `shared[i]`: how many tokens the beginnings of i and i + 1 share.

    `kind`: "rows" or "text". `sha256` is that of the data. `skipped` counts the rows that are not included. `batch`:
    maximum number of tokens in a batch.
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
        """How many tokens of a sequence were read with an earlier one."""
        return self.shared[index - 1] if index else 0

    def tokens_until(self, index: int) -> int:
        """The number of distinct tokens in the first `index` sequences."""
        return sum(len(self.sequences[i]) - self.seen(i) for i in range(index))

    @property
    def tokens(self) -> int:
        """The number of distinct tokens in all sequences."""
        return self.tokens_until(len(self.sequences))

    def stops(self, index: int) -> list[int]:
        """The lengths at which a sequence is held because a later one parts there; ascending."""
        lengths, least = list[int](), len(self.sequences[index]) + 1
        for length in self.shared[index:]:
            if length < least:
                lengths.append(least := length)
            if length <= self.seen(index):
                break
        return sorted(length for length in lengths if length > self.seen(index))

    def batches(self, index: int) -> list[tuple[int, int]]:
        """The (begin, end) of each batch of the new tokens of a sequence. They depend only on the sequences."""
        edges = [self.seen(index), *self.stops(index), len(self.sequences[index])]
        return [
            (begin, min(begin + self.batch, end))
            for start, end in pairwise(edges)
            for begin in range(start, end, self.batch)
        ]

    def way(self, index: int) -> list[tuple[int, int]]:
        """The batches in which earlier sequences read the tokens that this one shares with them."""
        end, batches = self.seen(index), list[tuple[int, int]]()
        for i in range(index - 1, -1, -1):
            if self.seen(i) < end:
                batches = [part for part in self.batches(i) if part[1] <= end] + batches
                end = self.seen(i)
        return batches
