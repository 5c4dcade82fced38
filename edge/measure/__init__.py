"""What a model predicts on given texts, compared with its base model.

run         measures a model against its base
corpus      token sequences from rows or from text
calibrate   importance matrices
positions   what is read and where predictions are scored
spans       which field of an answer a token belongs to
divergence  KL divergence with its error bound
base_file   the base model's distributions in a file
figures     the figures of a measurement
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.measure.run import measure

__all__ = ["measure"]


def __getattr__(name: str) -> Any:
    """Import the public function when it is first used: the command line stays light."""
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.measure.run import measure

    return measure
