"""What a model predicts on given texts, compared with its base model.

run           measures a model against its base
corpus        token sequences from rows or from text
passes        the two passes: the base, then the model
identity      what a base file must share with a measurement
positions     what is read, and where predictions are measured
spans         the field of an answer that a token belongs to
divergence    KL divergence with its error bound
base_file     the base model's distributions in a file
join          puts shards of a measurement together
figures       the figures of a measurement
schema        the fields of a measurement JSON and their types
calibrate     importance matrices
experts       how many tokens each expert worked on
partial_file  the sums of an unfinished calibration in a file
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.measure.run import measure

__all__ = ["measure"]


def __getattr__(name: str) -> Any:
    """Import the public function on first use, so that the command line starts fast."""
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.measure.run import measure

    return measure
