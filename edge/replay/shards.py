"""Split work into shards of whole tasks, so that several machines can do it (`--shard I/N`).

The rule needs only the tasks of all items, in their order: every machine that has the same items finds the same
shards. `edge.replay.join` and `edge.measure.join` put the shards together again.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from edge.errors import EdgeError
from edge.system.text import counted

MOST = 4096
"""Maximum number of shards."""
_OPTION = "--shard"


class ShardFields(TypedDict):
    """`shard`: which part of all rows a file holds. A whole result has no such field."""

    index: int
    """Number of the shard, from 1."""
    count: int
    """Number of shards."""
    rows: int
    """Number of rows of all shards together."""
    places: list[int]
    """The place of each step of per_step among all rows, from 0."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 1. Raises EdgeError for numbers out of range."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise EdgeError(
                f"{self}: the number of shards must be from 1 to {MOST}, as in 2/3", option=_OPTION
            )
        if not 1 <= self.index <= self.count:
            raise EdgeError(f"{self}: the shard must be from 1 to {self.count}, as in 2/3", option=_OPTION)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def places(self, tasks: Sequence[str], what: str) -> list[int]:
        """The places of this shard's items, ascending; `tasks` has the task of each of all items, in their order.

        Each shard has whole tasks. The task with the most items goes first, each to the shard that has the fewest items
        so far; of equals, the earlier task and the lower shard. Raises EdgeError that begins with `what` if there are
        fewer tasks than shards.
        """
        sizes = Counter(tasks)
        if len(sizes) < self.count:
            raise EdgeError(
                f"{what}: has {counted(len(sizes), 'task')}, too few for {self.count} shards: a shard has whole tasks"
            )
        loads = [0] * self.count
        mine = set()
        for task, size in sizes.most_common():  # equal sizes stay in the order of their tasks
            shard = loads.index(min(loads))
            loads[shard] += size
            if shard == self.index - 1:
                mine.add(task)
        return [place for place, task in enumerate(tasks) if task in mine]

    def fields(self, places: Sequence[int], rows: int) -> ShardFields:
        """The field `shard` of a file with the items at these places."""
        return {"index": self.index, "count": self.count, "rows": rows, "places": list(places)}


def parse_shard(text: str | None) -> Shard | None:
    """The shard that `--shard I/N` names; None for 1/1, which is the whole, and without the option.

    Raises EdgeError.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    if match is None:
        raise EdgeError(f"{text[:40]!r} is not a shard such as 2/3 (shard 2 of 3)", option=_OPTION)
    shard = Shard(int(match[1]), int(match[2]))
    return shard if shard.count > 1 else None


def shard_note(fields: ShardFields, steps: int, whose: str) -> str:
    """The sentence that a result is only a shard. `whose`: its subject."""
    index, count, rows = fields["index"], fields["count"], counted(fields["rows"], "step")
    return f"{whose} is shard {index} of {count}: it has {steps} of {rows}. `edge join` puts the shards together."
