"""Compare two results: pair their steps, measure the differences, and say what they mean.

run        compares results with a reference
pairing    pairs the steps of two results
by_task    the figure of steps by task
labels     what a result's model is, by its provenance
board      which of many results can be ranked together
ranking    places, and groups that cannot be told apart
ranking_text  a ranking as Markdown and JSON
notes      what differs between two runs, and what is missing
intervals  bootstrap, Wilson's interval, McNemar's test
paired     interval of a paired difference, detectable loss
verdict    a difference in words
patterns   every sentence of a comparison, and when it is true
findings   the findings as Markdown and JSON
causes     finds pairs of results that differ in one thing
stated     figures that a file states, against those that follow from it
stored     the JSON file of a comparison, and the run that it is of
trials     the JSON of edge trial
trial_figures  the figures of trials
trial_pairs    two results of trials, paired by task
trial_join     puts the shards of trials together
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
