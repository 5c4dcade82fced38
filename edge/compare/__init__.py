"""Two results: which steps pair, what differs, and what that means.

run        compares results with a reference
pairing    which steps of two results belong together
intervals  bootstrap, detectable loss, Wilson, McNemar
verdict    a difference in one sentence
findings   the findings as Markdown and JSON
causes     pairs of results that differ in one thing
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.compare.run import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    """Import the public function when it is first used: the command line stays light."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.compare.run import compare

    return compare
