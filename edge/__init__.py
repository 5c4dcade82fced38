"""edge: quantize a terminal agent's checkpoint, run it offline with guaranteed JSON, measure what it cost."""

__version__ = "0.1.0"
